//! Bundles: what a runtime is called with, and the configuration that it finds there, with our hook in it.
//!
//! Source of the command line: runc 1.1 `main.go` and its `create.go`; of the configuration: the OCI runtime specification
//! 1.0.2, `config.md`, POSIX-platform hooks. The configuration is edited by splicing: what we do not know stays as it is.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::json::{self, Member};
use crate::model::fault::Fault;
use crate::model::name::ContainerId;

/// How long the hook may take, in seconds: above what it waits for itself, so that its own words are heard.
const HOOK_TIMEOUT_S: u32 = 30;

/// Where a hook finds tools: it is started with an empty environment.
const HOOK_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// runc's global options that are followed by a value.
const WITH_VALUE: [&str; 5] = ["--log", "--log-format", "--root", "--criu", "--rootless"];

/// A call of a runtime that we have a part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeCall {
    /// The bundle, if a container is made of it.
    pub(crate) makes: Option<PathBuf>,
    /// The container that it is about, if the last argument is the id of one.
    pub(crate) container: Option<ContainerId>,
    /// Where its caller looks for what went wrong.
    pub(crate) log: Option<PathBuf>,
    /// Whether that is written as JSON.
    pub(crate) logs_json: bool,
}

/// Reads the arguments of a runtime. Those that are none of ours, or that runc will refuse, make nothing.
pub(crate) fn read_call(args: &[OsString]) -> RuntimeCall {
    // It comes last, but in `kill ID SIGNAL`.
    let container = args.iter().rev().find_map(|arg| arg.to_str()?.parse().ok());
    let mut rest = args.iter().map(OsString::as_os_str);
    let (mut log, mut logs_json) = (None, false);
    let command = loop {
        let (option, value) = match rest.next().and_then(OsStr::to_str) {
            Some(option) if WITH_VALUE.contains(&option) => (option, rest.next()),
            Some(option) if option.starts_with('-') => {
                option.split_once('=').map_or((option, None), |(option, value)| (option, Some(OsStr::new(value))))
            }
            command => break command,
        };
        match option {
            "--log" => log = value.map(PathBuf::from),
            "--log-format" => logs_json = value == Some(OsStr::new("json")),
            _ => {}
        }
    };
    let makes = matches!(command, Some("create" | "run" | "restore")).then(|| {
        // runc's default is its working folder.
        let mut bundle = PathBuf::from(".");
        while let Some(arg) = rest.next() {
            let text = arg.to_str().unwrap_or_default();
            if matches!(text, "--bundle" | "-bundle" | "-b" | "--b") {
                bundle = rest.next().map(PathBuf::from).unwrap_or(bundle);
            } else if let Some(value) = text.strip_prefix("--bundle=").or_else(|| text.strip_prefix("-b=")) {
                bundle = PathBuf::from(value);
            }
        }
        bundle
    });
    RuntimeCall { makes, container, log, logs_json }
}

/// A line of a runtime's log that tells of an error, as runc writes it (logrus' formats). containerd tells its client the
/// last one of a runtime that failed, and nothing of what that wrote on its standard error (containerd's
/// `pkg/process/utils.go`, `getLastRuntimeError`).
pub(crate) fn log_line(message: &str, time: &str, as_json: bool) -> String {
    let quote = |text: &str| String::from_utf8_lossy(&json::quote(text)).into_owned();
    if as_json {
        format!("{{\"level\":\"error\",\"msg\":{},\"time\":{}}}\n", quote(message), quote(time))
    } else {
        format!("time={} level=error msg={}\n", quote(time), quote(message))
    }
}

/// Puts our hook into a bundle's configuration, last of its kind.
///
/// # Errors
/// `World`: it is no configuration that can have hooks.
pub(crate) fn with_hook(config: &[u8], program: &Path, args: &[String]) -> Result<Vec<u8>, Fault> {
    let wrong = |what: &str| Fault::World(format!("put a hook into the bundle's config.json: {what}"));
    let top = json::document(config).ok_or_else(|| wrong("it is no JSON"))?;
    let members = json::members(config, &top).ok_or_else(|| wrong("it is no object"))?;
    let program = program.to_str().ok_or_else(|| wrong("the path of the hook is no text"))?;
    let texts = |texts: &[String]| String::from_utf8_lossy(&json::quote_all(texts)).into_owned();
    let hook = format!(
        r#"{{"path":{},"args":{},"env":{},"timeout":{HOOK_TIMEOUT_S}}}"#,
        String::from_utf8_lossy(&json::quote(program)),
        texts(args),
        texts(&[HOOK_PATH.to_owned()]),
    );
    let one = format!("[{hook}]").into_bytes();
    let value = |members: &[Member], key: &str| {
        let found = members.iter().find(|member| member.key == key).map(|member| member.value.clone());
        found.filter(|span| !json::is_null(config, span))
    };
    let edit = match value(&members, "hooks") {
        None => {
            let hooks = [br#"{"createRuntime":"#.as_slice(), &one, b"}"].concat();
            json::set_member(config, &top, &members, "hooks", hooks)
        }
        Some(hooks) => {
            let kinds = json::members(config, &hooks).ok_or_else(|| wrong("its hooks are no object"))?;
            match value(&kinds, "createRuntime") {
                None => json::set_member(config, &hooks, &kinds, "createRuntime", one),
                Some(list) => {
                    let others = json::elements(config, &list).ok_or_else(|| wrong("createRuntime is no list"))?;
                    let comma = if others.is_empty() { "" } else { "," };
                    let end = list.end - 1;
                    (end..end, format!("{comma}{hook}").into_bytes())
                }
            }
        }
    };
    Ok(json::splice(config, vec![edit]))
}

/// What a bundle's configuration tells the hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct BundleConfig {
    pub(crate) hostname: String,
    mounts: Vec<Mount>,
    process: Process,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Mount {
    destination: String,
    source: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Process {
    env: Vec<String>,
}

impl BundleConfig {
    /// The file on the host that becomes the container's hosts file.
    pub(crate) fn hosts_path(&self) -> Option<&Path> {
        let mounts = self.mounts.iter().filter(|mount| mount.destination == "/etc/hosts");
        mounts.map(|mount| Path::new(&mount.source)).next_back()
    }

    /// Whether the environment, which may be the image's, speaks of Calico.
    pub(crate) fn speaks_of_calico(&self) -> bool {
        self.process.env.iter().any(|variable| variable.starts_with("CALICO_IP="))
    }
}

/// What runc tells a hook. Source: OCI runtime specification 1.0.2, `runtime.md`, State.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct HookState {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) bundle: PathBuf,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn call(line: &str) -> RuntimeCall {
        read_call(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_makes_a_container_is_taken_for_that() {
        let id = "a".repeat(64);
        let global = "--root /run/x --log /l.json --log-format json --systemd-cgroup";
        for (rest, bundle) in [
            (format!("create --bundle /b --pid-file /p {id}"), "/b"),
            (format!("create --bundle=/b {id}"), "/b"),
            (format!("run -b /b --detach {id}"), "/b"),
            (format!("restore --image-path /i --bundle /b {id}"), "/b"),
            (format!("create {id}"), "."),
        ] {
            let found = call(&format!("{global} {rest}"));
            assert_eq!(found.makes.as_deref(), Some(Path::new(bundle)), "{rest}");
            assert_eq!(found.container.unwrap().as_str(), id);
            assert_eq!((found.log.as_deref(), found.logs_json), (Some(Path::new("/l.json")), true));
        }
        for rest in
            ["start ID", "delete --force ID", "exec --process /create ID", "state ID", "kill ID 15", "kill --all ID 9"]
        {
            let found = call(&format!("{global} {}", rest.replace("ID", &id)));
            assert_eq!((found.makes, found.container), (None, id.parse().ok()), "{rest}");
        }
        assert_eq!(call(&format!("{global} --version")).makes, None);
        // A value is no command.
        assert_eq!(call(&format!("--root create state {id}")).makes, None);
        assert_eq!(call(""), RuntimeCall { makes: None, container: None, log: None, logs_json: false });
        let log = call("--log=/l --log-format=text delete x");
        assert_eq!((log.log.as_deref(), log.logs_json), (Some(Path::new("/l")), false));
    }

    #[test]
    fn an_error_is_told_in_a_line_that_containerd_reads() {
        let line = log_line("no \"x\"\n", "2026-01-02T03:04:05Z", true);
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, json!({"level": "error", "msg": "no \"x\"\n", "time": "2026-01-02T03:04:05Z"}));
        assert_eq!(log_line("no", "t", false), "time=\"t\" level=error msg=\"no\"\n");
    }

    #[test]
    fn the_hook_comes_last_and_all_else_stays() {
        let args = ["calico-runtime".to_owned(), "hook \"x\"".to_owned()];
        let hook = json!({"path": "/x/calico-runtime", "args": args, "env": [HOOK_PATH], "timeout": HOOK_TIMEOUT_S});
        for (before, earlier) in [
            (r#"{"ociVersion":"1.0.2-dev","big":123456789012345678901234567890}"#, vec![]),
            (r#"{"hooks":null}"#, vec![]),
            (r#"{ "hooks": {} }"#, vec![]),
            (r#"{"hooks":{"prestart":[{"path":"/p"}]}}"#, vec![]),
            (r#"{"hooks":{"createRuntime":null}}"#, vec![]),
            (r#"{"hooks":{"createRuntime":[ ]}}"#, vec![]),
            (r#"{"hooks":{"createRuntime":[{"path":"/c"}]},"z":[1]}"#, vec![json!({"path": "/c"})]),
        ] {
            let after = with_hook(before.as_bytes(), Path::new("/x/calico-runtime"), &args).unwrap();
            let after: Value = serde_json::from_slice(&after).unwrap();
            let mut wanted: Value = serde_json::from_str(before).unwrap();
            if wanted["hooks"].is_null() {
                wanted["hooks"] = json!({});
            }
            wanted["hooks"]["createRuntime"] = earlier.into_iter().chain([hook.clone()]).collect();
            assert_eq!(after, wanted, "{before}");
        }
        for wrong in ["", "[]", r#"{"hooks":[]}"#, r#"{"hooks":{"createRuntime":{}}}"#] {
            assert!(with_hook(wrong.as_bytes(), Path::new("/x"), &args).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_hosts_file_is_found_among_the_mounts() {
        let text = r#"{"hostname":"web","mounts":[{"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/etc/hosts","source":"/var/lib/docker/c/hosts"}],"process":{"env":["A=b","CALICO_IP=auto"]}}"#;
        let config: BundleConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.hosts_path(), Some(Path::new("/var/lib/docker/c/hosts")));
        assert!(config.speaks_of_calico());
        let bare: BundleConfig = serde_json::from_str("{}").unwrap();
        assert!(bare.hosts_path().is_none() && !bare.speaks_of_calico());
    }
}
