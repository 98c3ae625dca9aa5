//! What stands between a node and its dockerd, or its etcd, and has its own way with some questions.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::host::Host;

/// What becomes of request lines, by their beginning: they are answered with a status, or the connection is closed.
type Answers = Arc<Mutex<Vec<(String, Option<u16>)>>>;

/// Between a node and its dockerd.
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
        self.answers.lock().unwrap().push((request.to_owned(), Some(status)));
    }

    /// Breaks off connections that begin with this from now on.
    pub(crate) fn break_off(&self, request: &str) {
        self.answers.lock().unwrap().push((request.to_owned(), None));
    }

    /// Passes everything on again.
    pub(crate) fn pass(&self) {
        self.answers.lock().unwrap().clear();
    }
}

fn serve(mut asked: UnixStream, behind: &Path, answers: &Answers) -> io::Result<()> {
    let mut first = [0; 4096];
    let length = asked.read(&mut first)?;
    let begins = |(request, _): &&(String, Option<u16>)| first[..length].starts_with(request.as_bytes());
    let own = answers.lock().unwrap().iter().find(begins).map(|(_, status)| *status);
    if let Some(status) = own {
        let Some(status) = status else { return Ok(()) };
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

/// What was said on one connection.
type Words = Arc<Mutex<Vec<u8>>>;

/// Stands before a unix socket, passes everything on and keeps what comes from the side of clients.
pub(crate) struct Recorder {
    socket: PathBuf,
    said: Arc<Mutex<Vec<Words>>>,
}

impl Recorder {
    /// A socket of this name among the host's files, and what is behind it.
    pub(crate) fn before(host: &Host, name: &str, behind: PathBuf) -> Self {
        let socket = host.scratch().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let said: Arc<Mutex<Vec<Words>>> = Arc::default();
        let all = Arc::clone(&said);
        thread::spawn(move || {
            for asked in listener.incoming() {
                let (asked, behind, words) = (asked.unwrap(), behind.clone(), Words::default());
                all.lock().unwrap().push(Arc::clone(&words));
                thread::spawn(move || record(&asked, &behind, &words).ok());
            }
        });
        Recorder { socket, said }
    }

    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// What was said by now on each connection on which anything was, sorted.
    pub(crate) fn said(&self) -> Vec<Vec<u8>> {
        let said = self.said.lock().unwrap();
        let mut said: Vec<Vec<u8>> = said.iter().map(|words| words.lock().unwrap().clone()).collect();
        said.retain(|words| !words.is_empty());
        said.sort();
        said
    }
}

fn record(asked: &UnixStream, behind: &Path, words: &Mutex<Vec<u8>>) -> io::Result<()> {
    let behind = UnixStream::connect(behind)?;
    let (mut from, mut to) = (behind.try_clone()?, asked.try_clone()?);
    let back = thread::spawn(move || {
        io::copy(&mut from, &mut to)?;
        to.shutdown(Shutdown::Write)
    });
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = { asked }.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        words.lock().unwrap().extend_from_slice(&buffer[..count]);
        { &behind }.write_all(&buffer[..count])?;
    }
    behind.shutdown(Shutdown::Write)?;
    back.join().expect("a copy of bytes does not panic")
}

/// Between a node and its etcd, as [`Between`] is. It breaks off the connection on which something was said, once etcd has
/// heard it and before the node hears of that.
pub(crate) struct BetweenEtcd {
    /// What a node is told of where etcd listens.
    pub(crate) endpoint: String,
    heeded: Arc<Mutex<Option<String>>>,
}

impl BetweenEtcd {
    /// Passes everything on until told otherwise.
    pub(crate) fn before(host: &Host) -> Self {
        let behind = host.etcd().endpoint.trim_start_matches("http://").to_owned();
        let listener = host.space.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let heeded = Arc::new(Mutex::new(None));
        let (space, known) = (host.space.clone(), Arc::clone(&heeded));
        thread::spawn(move || {
            for asked in listener.incoming() {
                let behind = space.enter(|| TcpStream::connect(&behind).unwrap());
                let (asked, known) = (asked.unwrap(), Arc::clone(&known));
                thread::spawn(move || carry(&asked, &behind, &known).ok());
            }
        });
        BetweenEtcd { endpoint, heeded }
    }

    /// Breaks off the next connection on which this is said.
    pub(crate) fn break_off_after(&self, text: &str) {
        *self.heeded.lock().unwrap() = Some(text.to_owned());
    }
}

fn carry(asked: &TcpStream, behind: &TcpStream, heeded: &Mutex<Option<String>>) -> io::Result<()> {
    let is_said = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| -> io::Result<()> {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = { asked }.read(&mut buffer)?;
                let mut heeded = heeded.lock().unwrap();
                let said = |text: &String| buffer[..count].windows(text.len()).any(|part| part == text.as_bytes());
                if heeded.take_if(|text| said(text)).is_some() {
                    is_said.store(true, Ordering::Relaxed);
                }
                drop(heeded);
                if count == 0 {
                    return behind.shutdown(Shutdown::Write);
                }
                { behind }.write_all(&buffer[..count])?;
            }
        });
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = { behind }.read(&mut buffer)?;
            if count == 0 || is_said.load(Ordering::Relaxed) {
                behind.shutdown(Shutdown::Both)?;
                return asked.shutdown(Shutdown::Both);
            }
            { asked }.write_all(&buffer[..count])?;
        }
    })
}
