//! One exchange of raw bytes over a connection of its own, and what is compared of it.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::normal;
use crate::lab::host::Host;

/// How dockerd is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// dockerd's own socket.
    Raw,
    /// The node's unix socket.
    Unix,
    /// The node's port 2377.
    Tcp,
}

/// What a client does once it has sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It awaits so many replies and asks a last `/_ping`: the answer to that shows whether the connection was kept.
    Ping(usize),
    /// It sends its FIN and reads to the end.
    Fin,
}

/// Longer than anything here takes; a connection that says nothing for so long is a difference in itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// What shows that a connection is still in use.
const LAST_PING: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A client's end of a connection.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn open(host: &Host, way: Way) -> Self {
        let stream = match way {
            Way::Raw => Stream::Unix(UnixStream::connect(host.raw_socket()).unwrap()),
            Way::Unix => Stream::Unix(UnixStream::connect(host.proxy_socket()).unwrap()),
            Way::Tcp => return Stream::open_over_tcp(host).0,
        };
        stream.set_patience(PATIENCE);
        stream
    }

    /// A connection to the node over TCP, and the port of this end.
    pub(crate) fn open_over_tcp(host: &Host) -> (Self, u16) {
        let stream = host.space.enter(|| TcpStream::connect(("127.0.0.1", 2377))).unwrap();
        let port = stream.local_addr().unwrap().port();
        let stream = Stream::Tcp(stream);
        stream.set_patience(PATIENCE);
        (stream, port)
    }

    /// How long a read or a write may wait.
    pub(crate) fn set_patience(&self, patience: Duration) {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(patience)).unwrap();
                stream.set_write_timeout(Some(patience)).unwrap();
            }
            Stream::Tcp(stream) => {
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(patience)).unwrap();
                stream.set_write_timeout(Some(patience)).unwrap();
            }
        }
    }

    pub(crate) fn again(&self) -> Self {
        match self {
            Stream::Unix(stream) => Stream::Unix(stream.try_clone().unwrap()),
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone().unwrap()),
        }
    }

    /// Sends the FIN. A peer that is gone already is no error.
    pub(crate) fn finish(&self) {
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a connection came to its end, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A FIN, or a reset after all that was said: which of them depends on whether the client's last bytes had been read.
    Closed,
    /// Nothing more came, and no end.
    Silent,
}

/// All that came back.
pub(crate) struct Exchange {
    pub(crate) bytes: Vec<u8>,
    end: End,
    heads: Vec<bool>,
    /// How long the whole took.
    pub(crate) took: Duration,
}

/// Sends bytes over a new connection and reads to its end. `heads` tells of each request whether its reply has no body.
pub(crate) fn exchange(host: &Host, way: Way, request: &[u8], heads: &[bool], then: Then) -> Exchange {
    let began = Instant::now();
    let mut stream = Stream::open(host, way);
    let mut bytes = Vec::new();
    let end = std::thread::scope(|scope| {
        let mut writing = stream.again();
        let writer = scope.spawn(move || {
            // Who has heard enough may have closed already.
            let _ = writing.write_all(request);
            if then == Then::Fin {
                writing.finish();
            }
        });
        let (mut end, mut is_stream) = (None, false);
        if let Then::Ping(count) = then {
            loop {
                let replies = normal::split(&bytes, heads, end.is_some());
                if replies.open_ended {
                    // A client of a stream of another protocol has no more to say here. To a call that still answers
                    // in HTTP a FIN would mean that nobody wants to know the rest.
                    if replies.switched {
                        stream.finish();
                    }
                    is_stream = true;
                    break;
                }
                if replies.whole >= count || end.is_some() {
                    break;
                }
                end = read_some(&mut stream, &mut bytes);
            }
            writer.join().unwrap();
            if end.is_none() && !is_stream {
                let _ = stream.write_all(LAST_PING);
            }
        }
        loop {
            if let Some(end) = end {
                break end;
            }
            end = read_some(&mut stream, &mut bytes);
        }
    });
    let mut heads = heads.to_vec();
    heads.push(false);
    Exchange { bytes, end, heads, took: began.elapsed() }
}

fn read_some(stream: &mut Stream, bytes: &mut Vec<u8>) -> Option<End> {
    let mut some = vec![0; 64 * 1024];
    match stream.read(&mut some) {
        Ok(0) => Some(End::Closed),
        Ok(count) => {
            bytes.extend_from_slice(&some[..count]);
            None
        }
        Err(error) => match error.kind() {
            // A read with a time limit is not taken up again when the process goes on after a stop (signal(7)).
            ErrorKind::Interrupted => None,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Some(End::Silent),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Some(End::Closed),
            kind => panic!("read a reply: {kind}: {error}"),
        },
    }
}

impl Exchange {
    /// The status of the first reply; 0 if there is none.
    pub(crate) fn status(&self) -> u16 {
        std::str::from_utf8(self.bytes.get(9..12).unwrap_or_default()).unwrap_or_default().parse().unwrap_or(0)
    }

    pub(crate) fn replies(&self) -> normal::Split<'_> {
        normal::split(&self.bytes, &self.heads, self.end == End::Closed)
    }

    /// What must be the same each way.
    pub(crate) fn compared(&self, sorts: bool) -> String {
        format!("{}\nend: {:?}", self.replies().text(sorts), self.end)
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(4_000)];
        write!(f, "{:?} after {:?}, {} bytes: {}", self.end, self.took, self.bytes.len(), shown.escape_ascii())
    }
}

/// The first line in which two texts differ, from a little before the place.
pub(crate) fn first_difference(one: &str, other: &str) -> String {
    let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let line = one.as_bytes()[..same].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let from = line.max(same.saturating_sub(150));
    let shown = |text: &str| {
        let rest = String::from_utf8_lossy(&text.as_bytes()[from..]).into_owned();
        rest.lines().next().unwrap_or_default().chars().take(400).collect::<String>()
    };
    format!("  {}\n  {}", shown(one), shown(other))
}
