//! Commands that end: run, with a time limit, and judged.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::wait::pause;

/// A command that is still to be run.
pub(crate) struct Run {
    command: Command,
    input: Vec<u8>,
    limit: Duration,
}

/// A command that has ended.
#[derive(Clone)]
pub(crate) struct Ran {
    what: String,
    /// `None`: ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Run {
    #[expect(clippy::disallowed_methods, reason = "the one place of the tests, as edge/exec.rs is of the product")]
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Run { command: Command::new(program), input: Vec::new(), limit: Duration::from_mins(1) }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn without_env(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    /// With more time than a command usually needs.
    pub(crate) fn lasting(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// For what goes on beside the test: the command with its pipes, not yet started.
    pub(crate) fn background(self) -> Command {
        self.command
    }

    /// The same as a line for a shell.
    pub(crate) fn line(&self) -> String {
        let quoted = |text: &OsStr| format!("'{}'", text.to_string_lossy().replace('\'', r"'\''"));
        let mut words = vec!["env".to_owned()];
        for (key, value) in self.command.get_envs() {
            match value {
                Some(value) => words.push(format!("{}={}", key.to_string_lossy(), quoted(value))),
                None => words.push(format!("-u {}", key.to_string_lossy())),
            }
        }
        // `env` takes its options before the settings.
        words[1..].sort_by_key(|word| !word.starts_with("-u "));
        words.push(quoted(self.command.get_program()));
        words.extend(self.command.get_args().map(quoted));
        words.join(" ")
    }

    /// Runs it to its end. A command that does not end in time, or cannot be started, ends the test.
    pub(crate) fn run(mut self) -> Ran {
        let what = format!("{:?}", self.command);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {what}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input;
        // A command that does not read its input is no error.
        thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = drain(child.stdout.take().unwrap());
        let stderr = drain(child.stderr.take().unwrap());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > self.limit {
                let _ = child.kill();
                let _ = child.wait();
                let said = |stream: &thread::JoinHandle<Vec<u8>>| stream.is_finished();
                let complete = said(&stdout) && said(&stderr);
                let text = if complete {
                    String::from_utf8_lossy(&stderr.join().unwrap()).into_owned()
                } else {
                    String::new()
                };
                panic!("{what}: no end after {:?} {text}", self.limit);
            }
            pause(Duration::from_millis(2));
        };
        Ran { what, code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }
}

fn drain(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    })
}

impl Ran {
    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Its output; a failure ends the test.
    #[track_caller]
    pub(crate) fn ok(&self) -> String {
        assert!(self.succeeded(), "should have succeeded: {self}");
        self.out()
    }

    /// What it said on both streams; a success, or another exit code, ends the test.
    #[track_caller]
    pub(crate) fn fails_with(&self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "should have failed with exit code {code}: {self}");
        format!("{}\n{}", self.out(), self.err())
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nexit code {:?}\nstdout: {}\nstderr: {}", self.what, self.code, self.out(), self.err())
    }
}
