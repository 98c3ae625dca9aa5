//! The floor: the calls of tools that the node makes for something, recorded once, and made again by hand in a network namespace with a copy of the
//! same rules. Nobody who uses these tools is faster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::lab::{feed, run};
use crate::namespace::Namespace;
use crate::sets::Probe;
use crate::watch::{Event, Watch};

const LIMIT: Duration = Duration::from_mins(1);
/// The tools that write rules; whatever else the node asks of them is passed on unrecorded.
const TOOLS: [&str; 4] = ["iptables-restore", "ip6tables-restore", "ipset", "nft"];

/// By what it is seen that a change is in the kernel.
#[derive(Clone)]
pub(crate) enum Sign {
    /// A chain whose name holds this came or was written.
    Chain(String),
    /// A set got a member.
    Member(String, String),
}

/// Looks for a sign in the network namespace of the thread that made it.
pub(crate) enum Sight {
    Chain(Watch),
    Member(Probe),
}

impl Sight {
    pub(crate) fn of(sign: &Sign) -> Outcome<Sight> {
        Ok(match sign {
            Sign::Chain(name) => Sight::Chain(Watch::new(name)?),
            Sign::Member(set, address) => Sight::Member(Probe::new(set, address)?),
        })
    }

    pub(crate) fn forget(&self) {
        if let Sight::Chain(watch) = self {
            watch.forget();
        }
    }

    pub(crate) fn came(&self) -> Outcome<Instant> {
        match self {
            Sight::Chain(watch) => watch.next(Event::Came, LIMIT),
            Sight::Member(probe) => probe.until(true, LIMIT),
        }
    }
}

/// One call that the node made of a tool, with what it fed to it.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) program: String,
    arguments: Vec<String>,
    pub(crate) input: String,
}

impl Call {
    pub(crate) fn make(&self) -> Outcome<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        feed(&self.program, &arguments, &self.input).map(|_| ())
    }
}

/// A folder of stand-ins for the tools, each of which records what it is fed and then becomes the tool.
pub(crate) struct Recorder {
    pub(crate) tools: PathBuf,
    calls: PathBuf,
}

impl Recorder {
    pub(crate) fn new(folder: &Path) -> Outcome<Recorder> {
        let (tools, calls) = (folder.join("recorder"), folder.join("calls"));
        fs::create_dir_all(&tools)?;
        fs::create_dir_all(&calls)?;
        for tool in TOOLS {
            let real = run("sh", &["-c", &format!("command -v {tool}")])?;
            let script = format!(
                "#!/bin/sh\ncase \"{tool} $*\" in *restore*|*' -f '*) ;; *) exec {real} \"$@\" ;; esac\ncall={}/$(date +%s%N)\necho {tool} \"$@\" >$call.call\ntee $call.text | {real} \"$@\"\n",
                calls.display(),
                real = real.trim(),
            );
            let path = tools.join(tool);
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Recorder { tools, calls })
    }

    /// The calls since the last time, in their order.
    pub(crate) fn take(&self) -> Outcome<Vec<Call>> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&self.calls)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "call"));
        paths.sort();
        let mut calls = Vec::new();
        for path in paths {
            let line = fs::read_to_string(&path)?;
            let text = path.with_extension("text");
            let mut words = line.split_whitespace().map(str::to_owned);
            let program = words.next().ok_or("an empty call")?;
            calls.push(Call { program, arguments: words.collect(), input: fs::read_to_string(&text)? });
            fs::remove_file(&path)?;
            fs::remove_file(&text)?;
        }
        Ok(calls)
    }
}

/// The node's calls for one thing that comes and goes.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) add: Vec<Call>,
    pub(crate) remove: Vec<Call>,
}

/// The same calls by hand, in a network namespace with a copy of the rules that are here now.
pub(crate) struct Floor {
    namespace: Namespace,
    script: Script,
    sign: Sign,
}

impl Floor {
    pub(crate) fn new(script: Script, sign: Sign) -> Outcome<Floor> {
        let (sets, rules, rules6) = (run("ipset", &["save"])?, run("iptables-save", &[])?, run("ip6tables-save", &[])?);
        let namespace = Namespace::new()?;
        namespace.run(move || {
            feed("ipset", &["restore"], &sets)?;
            feed("iptables-restore", &[], &rules)?;
            feed("ip6tables-restore", &[], &rules6)
        })?;
        Ok(Floor { namespace, script, sign })
    }

    pub(crate) fn sample(&self) -> Outcome<Duration> {
        let (script, sign) = (self.script.clone(), self.sign.clone());
        self.namespace.run(move || by_hand(&script, &Sight::of(&sign)?))
    }
}

fn by_hand(script: &Script, sight: &Sight) -> Outcome<Duration> {
    sight.forget();
    let start = Instant::now();
    for call in &script.add {
        call.make()?;
    }
    let took = sight.came()?.saturating_duration_since(start);
    for call in &script.remove {
        call.make()?;
    }
    Ok(took)
}
