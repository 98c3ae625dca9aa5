//! Something that stands between a node and its dockerd and has its own answers to some questions.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use super::host::Host;

/// Which request lines are answered, by their beginning, and with which status.
type Answers = Arc<Mutex<Vec<(String, u16)>>>;

/// Its threads end with their connections, and the last one with the test process.
pub(crate) struct Between {
    socket: PathBuf,
    answers: Answers,
}

impl Between {
    /// Passes everything on until told otherwise.
    pub(crate) fn before(host: &Host) -> Self {
        let socket = host.scratch().join("between.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (answers, behind) = (Answers::default(), host.raw_socket());
        let known = Arc::clone(&answers);
        thread::spawn(move || {
            for asked in listener.incoming() {
                let (asked, behind, known) = (asked.unwrap(), behind.clone(), Arc::clone(&known));
                // Whoever goes away in the middle of a request ends its own connection only.
                thread::spawn(move || serve(asked, &behind, &known).ok());
            }
        });
        Between { socket, answers }
    }

    /// What a node is told of where dockerd listens.
    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Answers connections that begin with this with a status from now on.
    pub(crate) fn answer(&self, request: &str, status: u16) {
        self.answers.lock().unwrap().push((request.to_owned(), status));
    }

    /// Passes everything on again.
    pub(crate) fn pass(&self) {
        self.answers.lock().unwrap().clear();
    }
}

fn serve(mut asked: UnixStream, behind: &Path, answers: &Answers) -> io::Result<()> {
    let mut first = [0; 4096];
    let length = asked.read(&mut first)?;
    let begins = |(request, _): &&(String, u16)| first[..length].starts_with(request.as_bytes());
    let own = answers.lock().unwrap().iter().find(begins).map(|(_, status)| *status);
    if let Some(status) = own {
        let body = r#"{"message":"not today"}"#;
        return write!(
            asked,
            "HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let mut behind = UnixStream::connect(behind)?;
    behind.write_all(&first[..length])?;
    let (mut from, mut to) = (asked.try_clone()?, behind.try_clone()?);
    let forth = thread::spawn(move || {
        io::copy(&mut from, &mut to)?;
        to.shutdown(Shutdown::Write)
    });
    io::copy(&mut behind, &mut asked)?;
    asked.shutdown(Shutdown::Write)?;
    forth.join().expect("a copy of bytes does not panic")
}
