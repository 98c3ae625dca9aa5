//! Child processes: the only place that starts any.
//!
//! A tool that runs to its end is started with [`run`]. A child that lives as long as the node is started by a
//! [`Spawner`], because the kernel ties its life to a thread, not to a process: `PR_SET_PDEATHSIG` fires when the thread
//! that forked is gone (prctl(2)), and the threads of the async runtime come and go. So one thread, as old as the node,
//! forks them all. The alternative, a list of process ids to clean up at the next start, kills strangers when ids are
//! used again.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::edge::activation;
use crate::model::fault::Fault;

/// How long a tool may run, for what it does at all and for each of its input's bytes; and the most that it comes to. All rules of
/// 5,000 endpoints at once take iptables-restore 6 to 20 s (docs/benchmarks.md).
const TIME_LIMIT: Duration = Duration::from_secs(15);
const TIME_A_BYTE: Duration = Duration::from_micros(10);
const LONGEST: Duration = Duration::from_mins(1);

/// How much of a tool's complaint is repeated.
const COMPLAINT_LONGEST: usize = 600;

/// A child with our environment, but for what systemd told this process alone.
#[expect(clippy::disallowed_methods, reason = "the one place that starts children")]
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in activation::VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Runs a tool to its end, with `stdin` as its input.
///
/// # Errors
/// `Away`: the tool cannot be started, or did not end in time, 15 s and more where its input is large, in which case it has
/// been killed. What it was to do says nothing about that. `World`: it ended with another code than 0; its complaint is in the message.
///
/// # Cancel safety
/// The tool is killed when the future is dropped.
pub(crate) async fn run(program: &str, args: &[&str], stdin: &str) -> Result<String, Fault> {
    let bytes = u32::try_from(stdin.len()).unwrap_or(u32::MAX);
    run_within((TIME_LIMIT + TIME_A_BYTE * bytes).min(LONGEST), program, args, stdin).await
}

/// The same of a tool that shows much, however little it is told.
pub(crate) async fn run_long(program: &str, args: &[&str]) -> Result<String, Fault> {
    run_within(LONGEST, program, args, "").await
}

async fn run_within(limit: Duration, program: &str, args: &[&str], stdin: &str) -> Result<String, Fault> {
    let doing = format!("run {program} {}", args.join(" "));
    let told = |cause: String| format!("{}: {cause}", doing.trim_end());
    let (away, world) = (|cause| Fault::Away(told(cause)), |cause| Fault::World(told(cause)));
    let input = Stdio::from(in_memory(stdin).map_err(|error| away(error.to_string()))?);
    let child = command(program)
        .args(args)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| away(error.to_string()))?;
    let output = match timeout(limit, child.wait_with_output()).await {
        Ok(output) => output.map_err(|error| world(error.to_string()))?,
        Err(_) => return Err(away(format!("no end within {} s, killed", limit.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: String = complaint.trim().chars().take(COMPLAINT_LONGEST).collect();
    Err(world(format!("{}: {complaint}", output.status)))
}

/// A file without a name that holds a text. A tool reads it at its own pace; through a pipe, of 64 KiB, it and we would
/// wake each other for every page of a long one.
fn in_memory(text: &str) -> std::io::Result<File> {
    let file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    // Leaves the place where reading begins at the start.
    file.write_all_at(text.as_bytes(), 0)?;
    Ok(file)
}

/// Becomes another program; comes back only if that cannot be.
pub(crate) fn become_program(program: &str, args: &[OsString]) -> Fault {
    use std::os::unix::process::CommandExt as _;
    let error = command(program).args(args).as_std_mut().exec();
    Fault::World(format!("run {program}: {error}"))
}

/// What a child that lives with the node is started as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    /// Whether its input is a pipe that we hold; else it has none.
    pub(crate) input: bool,
}

struct Order {
    start: Start,
    answer: oneshot::Sender<std::io::Result<Child>>,
}

/// The thread that starts children which die with the node. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    orders: std::sync::mpsc::Sender<Order>,
}

/// A running child that dies with the node.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Spawner {
    /// Starts the thread. Called once, early, from inside the runtime; the thread ends when the last clone is dropped, and
    /// its children with it.
    pub(crate) fn new() -> Result<Self, Fault> {
        let (orders, inbox) = std::sync::mpsc::channel::<Order>();
        let runtime = tokio::runtime::Handle::current();
        let serve = move || {
            let _inside = runtime.enter();
            while let Ok(order) = inbox.recv() {
                // Nobody waits any more: the child is dropped, and killed with that.
                let _ = order.answer.send(spawn(&order.start));
            }
        };
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(serve)
            .map_err(|error| Fault::World(format!("start the thread that starts children: {error}")))?;
        Ok(Spawner { orders })
    }

    /// Starts a child.
    pub(crate) async fn start(&self, start: Start) -> Result<Running, Fault> {
        let name = start.program.clone();
        let world = |cause: String| Fault::World(format!("start {name}: {cause}"));
        let (answer, started) = oneshot::channel();
        let gone = || world("the thread that starts children is gone".to_owned());
        self.orders.send(Order { start, answer }).map_err(|_| gone())?;
        let child = started.await.map_err(|_| gone())?.map_err(|error| world(error.to_string()))?;
        Ok(Running { name, child })
    }
}

fn spawn(start: &Start) -> std::io::Result<Child> {
    let mut command = command(&start.program);
    command
        .args(&start.args)
        .stdin(if start.input { Stdio::piped() } else { Stdio::null() })
        // What a child says belongs beside our log, and standard output may be somebody's data.
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let parent = Pid::this();
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed:
    // prctl and getppid are bare system calls; it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died between fork and prctl; then nothing will ever signal us.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
    command.spawn()
}

impl Running {
    /// The input of the child, once, if it was started with one. To drop it closes it.
    pub(crate) fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// `None` once the end of the child has been waited for.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the end; answers how it ended, for people.
    ///
    /// # Cancel safety
    /// It can be called again.
    pub(crate) async fn wait(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends the child: TERM, and KILL if it takes longer than the grace.
    pub(crate) async fn end(&mut self, grace: Duration) {
        if let Err(fault) = self.signal(Signal::SIGTERM) {
            tracing::debug!(%fault, "the child has ended already");
        }
        if timeout(grace, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::warn!(%error, child = self.name, "a child could not be killed");
        }
    }

    /// Sends a signal, unless the child has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Fault> {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        kill(Pid::from_raw(pid), signal)
            .map_err(|error| Fault::World(format!("send {signal} to {} (process {pid}): {error}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tools_output_and_its_complaint_come_back() {
        assert_eq!(run("cat", &[], "words").await.unwrap(), "words");
        let error = run("sh", &["-c", "echo broken >&2; exit 3"], "").await.unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
        assert!(matches!(run("/no/such/tool", &[], "").await, Err(Fault::Away(_))));
    }

    #[tokio::test]
    async fn a_tool_that_does_not_read_its_input_is_no_error() {
        assert!(run("true", &[], &"x".repeat(1 << 20)).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_holds_on_to_its_input_and_takes_signals() {
        let spawner = Spawner::new().unwrap();
        let start = Start { program: "cat".to_owned(), args: Vec::new(), input: true };
        let mut child = spawner.start(start.clone()).await.unwrap();
        let input = child.take_input();
        assert!(child.pid().is_some() && input.is_some());
        drop(input);
        assert!(child.wait().await.contains('0'));
        let mut child = spawner.start(start).await.unwrap();
        let _input = child.take_input();
        child.signal(Signal::SIGTERM).unwrap();
        assert!(child.wait().await.contains("15"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_dies_with_the_thread_that_started_it() {
        let spawner = Spawner::new().unwrap();
        let start = Start { program: "sleep".to_owned(), args: vec!["60".to_owned()], input: false };
        let mut child = spawner.start(start).await.unwrap();
        drop(spawner);
        assert!(child.wait().await.contains('9'));
    }
}
