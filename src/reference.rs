//! The reference of the tests: what Go, and dockerd written in it, make of the bytes of a client.
//!
//! One child for all tests of a process, built from `reference/main.go` with Debian's Go, which is the one that Debian's
//! dockerd is built with, and Debian's copy of dockerd's router. Questions and answers are lines, so that a case costs
//! tens of microseconds and a law can be tried on thousands of them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde::de::DeserializeOwned;

struct Go {
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Ends with its standard input, which is ours until the process ends.
    _child: Child,
}

static GO: LazyLock<Mutex<Go>> = LazyLock::new(|| Mutex::new(Go::start()));

impl Go {
    #[expect(clippy::disallowed_methods, reason = "a test builds and asks its reference; the product starts neither")]
    fn start() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/reference/main.go");
        // Beside the test itself, in the target folder.
        let program = std::env::current_exe().unwrap().with_file_name(format!("reference-{}", std::process::id()));
        let built = Command::new("go")
            .args(["build", "-o"])
            .args([&program, &source])
            .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("GOPATH", "/usr/share/gocode")])
            .status()
            .expect(
                "run go: install Debian's packages golang-go and golang-github-gorilla-mux-dev (tools/setup.sh test)",
            );
        assert!(built.success(), "go build {}: {built}", source.display());
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It runs on without its file.
        std::fs::remove_file(&program).unwrap();
        let (questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Go { questions, answers: BufReader::new(answers), _child: child }
    }
}

/// Asks the reference. `question` is one of those that `main` in `reference/main.go` lists.
pub(crate) fn ask<T: DeserializeOwned>(question: &str, parts: &[&[u8]]) -> T {
    let mut line = question.to_owned();
    for part in parts {
        line.push(' ');
        line.push_str(&hex(part));
    }
    line.push('\n');
    let mut go = GO.lock().unwrap_or_else(PoisonError::into_inner);
    go.questions.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    go.answers.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error} in the answer {answer:?} to {line}"))
}

/// Bytes in the reference's spelling.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
