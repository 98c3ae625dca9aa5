//! The process of this host's dockerd: which one it is, how it was started, and the signal that makes it read its
//! configuration file again.
//!
//! It is the process that listens at the engine's socket, which the kernel tells to who connects there (`SO_PEERCRED`,
//! unix(7)); where systemd listens for dockerd, or the engine is at a TCP address, it is the one in dockerd's pid file. A
//! process of any other name gets no signal: a hangup ends most programs.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::wire::Engine;
use crate::model::fault::Fault;

/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a dockerd that is started because somebody connects may take to write its pid file, which it does early.
const START: Duration = Duration::from_secs(10);

/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// The name of dockerd's program, as the kernel keeps it.
const PROGRAM: &str = "dockerd";

/// What dockerd reads where `--config-file` names nothing else. Source: dockerd(8).
const DEFAULT_CONFIG: &str = "/etc/docker/daemon.json";

/// Where dockerd writes its process id where nothing else is named. Source: dockerd(8).
const DEFAULT_PIDFILE: &str = "/var/run/docker.pid";

/// systemd, which listens in place of a dockerd that it starts when somebody connects.
const INIT: i32 = 1;

/// A dockerd that runs.
#[derive(Debug, Clone)]
pub(crate) struct Dockerd {
    pid: i32,
    /// What tells it from a later process of the same id.
    born: Option<String>,
    args: Vec<String>,
}

/// The dockerd behind an engine's address; `None`: nobody listens there.
///
/// # Errors
/// `Refusal`: what listens there is no dockerd of this host. `World`: it does not let anybody in.
pub(crate) async fn find(engine: &Engine, pidfile: Option<&Path>) -> Result<Option<Dockerd>, Fault> {
    let doing = format!("find the process of dockerd at {engine}");
    let listens = match engine {
        Engine::Unix(path) => connected(UnixStream::connect(path)).await.and_then(|found| {
            let owner = found.map(|stream| stream.peer_cred()).transpose()?;
            Ok(owner.map(|owner| owner.pid().filter(|pid| *pid > 0)))
        }),
        Engine::Tcp(address) => connected(TcpStream::connect(address)).await.map(|found| found.map(|_| Some(INIT))),
    };
    let Some(listens) = listens.map_err(|error| Fault::World(format!("{doing}: {error}")))? else { return Ok(None) };
    let Some(pid) = listens else {
        return Err(Fault::Refusal(format!("{doing}: it runs where its process id means nothing here")));
    };
    if pid != INIT {
        return process(pid, &doing).map(Some);
    }
    let pidfile = pidfile.unwrap_or(Path::new(DEFAULT_PIDFILE));
    let look = || noted(pidfile, &doing).and_then(|pid| process(pid, &doing));
    // To connect to systemd is to have dockerd started, if it does not run yet.
    let patience = if matches!(engine, Engine::Unix(_)) { START } else { Duration::ZERO };
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if let Ok(found) = look() {
            return Ok(Some(found));
        }
        tokio::time::sleep(LOOK).await;
    }
    look().map(Some)
}

/// The dockerd that has this process id.
fn process(pid: i32, doing: &str) -> Result<Dockerd, Fault> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim_end() != PROGRAM {
        return Err(Fault::Refusal(format!("{doing}: process {pid} is {:?} and not {PROGRAM}", name.trim_end())));
    }
    let args = fs::read(format!("/proc/{pid}/cmdline")).map_err(|error| Fault::World(format!("{doing}: {error}")))?;
    let args = args.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    Ok(Dockerd { pid, born: born(pid), args })
}

/// When a process began, in the kernel's ticks; `None`: there is none. Source: proc(5), `/proc/pid/stat`, field 22.
fn born(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold anything, and ends with the last parenthesis.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// A connection; `None`: there is nobody.
async fn connected<T>(connect: impl Future<Output = io::Result<T>>) -> io::Result<Option<T>> {
    match tokio::time::timeout(CONNECT, connect).await {
        Ok(Ok(stream)) => Ok(Some(stream)),
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The process id in a pid file.
fn noted(pidfile: &Path, doing: &str) -> Result<i32, Fault> {
    let fault = |cause: String| {
        Fault::Refusal(format!(
            "{doing}: its pid file {}: {cause}; \"pidfile\" in dockerd's configuration names another one",
            pidfile.display()
        ))
    };
    let text = fs::read_to_string(pidfile).map_err(|error| fault(error.to_string()))?;
    text.trim().parse().ok().filter(|pid| *pid > 0).ok_or_else(|| fault(format!("{:?} is no process id", text.trim())))
}

impl Dockerd {
    /// Has it read its configuration file again.
    ///
    /// # Errors
    /// `World`: it is gone.
    pub(crate) fn reload(&self) -> Result<(), Fault> {
        if self.has_ended() {
            return Err(Fault::World(format!("send {self} SIGHUP: it has ended")));
        }
        kill(Pid::from_raw(self.pid), Signal::SIGHUP)
            .map_err(|error| Fault::World(format!("send {self} SIGHUP: {error}")))
    }

    pub(crate) fn has_ended(&self) -> bool {
        born(self.pid) != self.born
    }

    /// Whether one of its options, such as `--add-runtime`, was given on its command line.
    pub(crate) fn has_option(&self, option: &str) -> bool {
        self.option(option).is_some()
    }

    fn option(&self, option: &str) -> Option<&str> {
        let (place, arg) =
            self.args.iter().enumerate().rfind(|(_, arg)| {
                arg.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            })?;
        arg.split_once('=').map(|(_, value)| value).or_else(|| self.args.get(place + 1).map(String::as_str))
    }

    /// The configuration file that it reads, by its own reckoning.
    pub(crate) fn config_file(&self) -> PathBuf {
        PathBuf::from(self.option("--config-file").unwrap_or(DEFAULT_CONFIG))
    }

    /// Whether a path leads it to the file to which `here` leads us: it may run under another root or in a container.
    pub(crate) fn sees(&self, path: &Path, here: &Path) -> bool {
        let start = if path.is_absolute() { "root" } else { "cwd" };
        let inner = path.strip_prefix("/").unwrap_or(path);
        is_same(here, &Path::new(&format!("/proc/{}/{start}", self.pid)).join(inner))
    }
}

impl std::fmt::Display for Dockerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dockerd (process {})", self.pid)
    }
}

/// Whether two paths lead to one file, or to the same name in one folder if there is no file yet.
fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), Err(_)) => {
            let name = one.file_name();
            name.is_some_and(|name| !name.as_bytes().is_empty())
                && name == other.file_name()
                && one.parent().zip(other.parent()).is_some_and(|(one, other)| is_same(one, other))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn dockerd(args: &[&str]) -> Dockerd {
        let pid = i32::try_from(std::process::id()).unwrap();
        Dockerd { pid, born: born(pid), args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }

    #[test]
    fn a_process_that_has_the_id_of_one_that_ended_gets_no_signal() {
        let here = dockerd(&[]);
        assert!(here.born.is_some() && !here.has_ended());
        let before = Dockerd { born: Some("1".to_owned()), ..here };
        assert!(before.has_ended());
        let told = before.reload().unwrap_err().to_string();
        assert!(told.contains("it has ended"), "{told}");
    }

    #[test]
    fn options_are_read_off_the_command_line() {
        for (args, file) in [
            (&["dockerd", "--debug"][..], DEFAULT_CONFIG),
            (&["dockerd", "--config-file", "/a"], "/a"),
            (&["dockerd", "--config-file=/a=b"], "/a=b"),
            (&["dockerd", "--config-file=/a", "--config-file", "/b"], "/b"),
            (&["dockerd", "--config-files", "/a"], DEFAULT_CONFIG),
        ] {
            assert_eq!(dockerd(args).config_file(), Path::new(file), "{args:?}");
        }
        assert!(dockerd(&["dockerd", "--add-runtime=x=/y"]).has_option("--add-runtime"));
        assert!(!dockerd(&["dockerd"]).has_option("--add-runtime"));
    }

    #[test]
    fn a_file_is_known_by_itself_and_one_that_is_not_there_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let dockerd = dockerd(&[]);
        assert!(dockerd.sees(&one, &one));
        assert!(!dockerd.sees(&one, &other));
        assert!(dockerd.sees(&one.join("x"), &one.join("x")));
        fs::write(&one, "").unwrap();
        assert!(!dockerd.sees(&one, &other));
        fs::hard_link(&one, &other).unwrap();
        assert!(dockerd.sees(&one, &other));
        assert!(dockerd.sees(Path::new("Cargo.toml"), Path::new("Cargo.toml")), "relative to its own folder");
    }

    #[tokio::test]
    async fn only_a_dockerd_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let engine = Engine::Unix(socket.clone());
        assert!(find(&engine, None).await.unwrap().is_none(), "no socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let Err(Fault::Refusal(said)) = find(&engine, None).await else { panic!("a test is no dockerd") };
        assert!(said.contains("and not dockerd"), "{said}");
        drop(listener);
        comes_to_find_none(&engine, None).await;

        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let engine = Engine::Tcp(tcp.local_addr().unwrap().to_string());
        let pidfile = folder.path().join("docker.pid");
        for text in ["", "x", "-1", "0"] {
            fs::write(&pidfile, text).unwrap();
            let Err(Fault::Refusal(said)) = find(&engine, Some(&pidfile)).await else { panic!("{text:?}") };
            assert!(said.contains("is no process id"), "{said}");
        }
        fs::write(&pidfile, std::process::id().to_string()).unwrap();
        let Err(Fault::Refusal(said)) = find(&engine, Some(&pidfile)).await else { panic!("a test is no dockerd") };
        assert!(said.contains("and not dockerd"), "{said}");
        drop(tcp);
        comes_to_find_none(&engine, Some(&pidfile)).await;
    }

    /// A child that another test starts at this moment has the sockets of this one until it runs its own program.
    async fn comes_to_find_none(engine: &Engine, pidfile: Option<&Path>) {
        let gone = async {
            while !matches!(find(engine, pidfile).await, Ok(None)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nobody listens there");
    }
}
