//! Wires: sockets as the proxy sees them, be they TCP, unix or TLS.
//!
//! All operations take `&self`, so that one task can carry both directions at once, and an empty buffer has no memory: an
//! idle connection costs its socket and its task. What is there already is read and written without waiting for the event
//! loop to say that it can be, which saves a turn of it on each message.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send, setsockopt,
    shutdown, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::clock;
use super::pipe::Pipe;
use super::tls::{Certificates, TlsStream};
use crate::model::fault::Fault;
use crate::plan::backoff::Backoff;

/// How much is read at once where much comes.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// How much is read at once else: more than most messages have, and as much as a record of TLS holds.
pub(crate) const LITTLE_BYTES: usize = 16 * 1024;

thread_local! {
    static LITTLE: RefCell<Box<[u8]>> = RefCell::new(vec![0; LITTLE_BYTES].into());
}

/// A silent TCP peer is asked whether it lives after this long, and then as often again.
const KEEPALIVE_SECONDS: u32 = 5;

/// How many of these questions may stay without answer.
const KEEPALIVE_COUNT: u32 = 3;

/// How long a client waits before it asks again an engine whose queue of connections is full.
const QUEUE_PAUSE: Backoff = Backoff::between(Duration::from_millis(5), Duration::from_millis(200));

/// How much of a first request is looked for before anybody has said that it is there: a head, as clients send it.
const FIRST_BYTES: usize = 2048;

/// How often a half-closed unix peer is looked at: epoll has no event of its own for the second half.
const HANGUP_CHECK: Duration = Duration::from_secs(1);

/// Where a Docker engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl std::str::FromStr for Engine {
    type Err = Fault;
    /// `unix://PATH` or `tcp://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Engine::Unix(path.into())),
            Some(("tcp", address)) if address.contains(':') => Ok(Engine::Tcp(address.to_owned())),
            _ => {
                Err(Fault::Refusal(format!("{text:?} is no Docker engine: it must be unix:///PATH or tcp://HOST:PORT")))
            }
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Engine::Unix(path) => write!(f, "unix://{}", path.display()),
            Engine::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// What tells a unix socket from another one at the same path. Numbers of inodes are used again; a change of its owner or
/// mode is none of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketIdentity {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

impl From<std::fs::Metadata> for SocketIdentity {
    fn from(found: std::fs::Metadata) -> Self {
        SocketIdentity { device: found.dev(), inode: found.ino(), made: (found.mtime(), found.mtime_nsec()) }
    }
}

impl Engine {
    /// The group of the unix socket that is there now.
    pub(crate) fn group(&self) -> Option<u32> {
        let Engine::Unix(path) = self else { return None };
        std::fs::metadata(path).ok().map(|found| found.gid())
    }

    /// The unix socket that is there now.
    pub(crate) fn socket(&self) -> Option<SocketIdentity> {
        let Engine::Unix(path) = self else { return None };
        std::fs::metadata(path).ok().map(SocketIdentity::from)
    }
}

/// One end of a stream.
#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, so that the others do not pay for its room.
    Tls(Box<TlsStream>),
}

/// Sets a TCP listener so that what it accepts sends at once and finds out when its peer has died: Linux hands these
/// settings down, which saves asking for them on every connection.
pub(crate) fn set_up_tcp(listener: &impl AsFd) -> io::Result<()> {
    setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
    Ok(setsockopt(listener, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?)
}

/// Connects at once, as unix sockets do, or fails: with `EAGAIN` where the queue is full, in which a blocking client would
/// wait. tokio's own connect waits for a turn of the event loop.
fn try_connect_unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    UnixStream::from_std(socket.into())
}

/// Connects as a blocking client does: where the queue is full, it waits in it.
pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let mut pause = QUEUE_PAUSE;
    loop {
        match try_connect_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => clock::sleep(pause.failed()).await,
            connected => return connected,
        }
    }
}

impl Wire {
    /// A connection to an engine. A path is resolved anew each time: a daemon that starts again makes a new socket.
    pub(crate) async fn connect(engine: &Engine) -> io::Result<Wire> {
        match engine {
            Engine::Unix(path) => Ok(Wire::Unix(connect_unix(path).await?)),
            Engine::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Wire::Tcp(stream))
            }
        }
    }

    /// A connection to an engine at a unix socket that takes one at once.
    pub(crate) fn connect_at_once(engine: &Engine) -> Option<Wire> {
        match engine {
            Engine::Unix(path) => try_connect_unix(path).ok().map(Wire::Unix),
            Engine::Tcp(_) => None,
        }
    }

    /// An accepted TCP connection with TLS over it. Nothing can be read or written before the
    /// [`handshake`](Self::handshake).
    pub(crate) fn accepted_tls(stream: TcpStream, certificates: &Certificates) -> io::Result<Wire> {
        Ok(Wire::Tls(Box::new(certificates.accept(stream)?)))
    }

    /// Whether it came over TCP, with TLS or without.
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self, Wire::Tcp(_) | Wire::Tls(_))
    }

    /// Gets to know a client that is to speak TLS; one that speaks HTTP gets `to_plain`, as it is.
    ///
    /// # Errors
    /// The client is not to be let in.
    pub(crate) async fn handshake(&self, to_plain: &[u8]) -> io::Result<()> {
        match self {
            Wire::Tls(stream) => stream.handshake(to_plain).await,
            Wire::Tcp(_) | Wire::Unix(_) => Ok(()),
        }
    }

    /// Whether a certificate of ours, which the client has accepted, carries a name.
    pub(crate) fn is_certified_for(&self, name: &str) -> bool {
        matches!(self, Wire::Tls(stream) if stream.is_named(name))
    }

    /// Waits until there are bytes, the peer's FIN or an error.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            // One task has a wire at a time, so tokio need not keep a list of who waits.
            Wire::Tcp(stream) => poll_fn(|context| stream.poll_read_ready(context)).await,
            Wire::Unix(stream) => poll_fn(|context| stream.poll_read_ready(context)).await,
            Wire::Tls(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => poll_fn(|context| stream.poll_write_ready(context)).await,
            Wire::Unix(stream) => poll_fn(|context| stream.poll_write_ready(context)).await,
            Wire::Tls(stream) => stream.writable().await,
        }
    }

    fn try_read_into(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receive(bytes, |socket, bytes| Ok(recv(socket, bytes, MsgFlags::MSG_DONTWAIT)?))
    }

    /// Reads what has arrived. A read that does not fill its room has taken all there was, and the event loop is told so, as
    /// a read that finds nothing would, without that read.
    fn receive(&self, bytes: &mut [u8], recv: impl Fn(RawFd, &mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut short = None;
        // Within the event loop's own look at the socket: it forgets only what it knew before the read. Another thread than
        // the one that hears of events may read, and what comes meanwhile is an event of its own.
        let mut receive = |socket: RawFd| match recv(socket, bytes)? {
            count if (1..bytes.len()).contains(&count) => {
                short = Some(count);
                Err(io::ErrorKind::WouldBlock.into())
            }
            count => Ok(count),
        };
        let read = match self {
            Wire::Tcp(stream) => stream.try_io(Interest::READABLE, || receive(stream.as_raw_fd())),
            Wire::Unix(stream) => stream.try_io(Interest::READABLE, || receive(stream.as_raw_fd())),
            // What has been read of it says nothing of the socket.
            Wire::Tls(stream) => return stream.try_read(bytes),
        };
        short.map_or(read, Ok)
    }

    /// Appends what has arrived, up to so many bytes.
    ///
    /// A little is read into the thread's own memory first: then a message costs a buffer of its own size, and nothing
    /// is asked for that turns out not to be needed.
    fn try_read(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        let count = if most <= LITTLE_BYTES {
            LITTLE.with_borrow_mut(|little| {
                let count = self.try_read_into(&mut little[..most])?;
                if buffer.is_empty() {
                    *buffer = BytesMut::from(&little[..count]);
                } else {
                    buffer.extend_from_slice(&little[..count]);
                }
                Ok::<_, io::Error>(count)
            })?
        } else {
            let held = buffer.len();
            buffer.resize(held + most, 0);
            let read = self.try_read_into(&mut buffer[held..]);
            buffer.truncate(held + read.as_ref().map_or(0, |count| *count));
            read?
        };
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => stream.try_write(bytes),
            Wire::Unix(stream) => stream.try_write(bytes),
            Wire::Tls(stream) => stream.try_write(bytes),
        }
    }

    /// Sends what was taken to be written. Only TLS holds anything back.
    async fn flush(&self) -> io::Result<()> {
        match self {
            Wire::Tls(stream) => stream.flush().await,
            Wire::Tcp(_) | Wire::Unix(_) => Ok(()),
        }
    }

    /// The socket over which bytes go as they are.
    pub(super) fn plain(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Wire::Tcp(stream) => Some(stream.as_fd()),
            Wire::Unix(stream) => Some(stream.as_fd()),
            Wire::Tls(_) => None,
        }
    }

    /// Appends what has arrived already, without waiting for the event loop to say so: a client mostly sends with its
    /// connect. A FIN and errors are left to [`Wire::read`].
    pub(crate) fn read_ahead(&self, buffer: &mut BytesMut) {
        let mut first = [0; FIRST_BYTES];
        if let Some(socket) = self.plain()
            && let Ok(count) = recv(socket.as_raw_fd(), &mut first, MsgFlags::MSG_DONTWAIT)
        {
            buffer.extend_from_slice(&first[..count]);
        }
    }

    /// Which process listens at the unix socket that this one is connected to: the one that called listen(2), as seen from
    /// here (`SO_PEERCRED`, unix(7)).
    pub(crate) fn listener(&self) -> Option<i32> {
        match self {
            Wire::Unix(stream) => getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid()),
            Wire::Tcp(_) | Wire::Tls(_) => None,
        }
    }

    /// Whether a connection on which nothing was said is still one, as far as the event loop has been told. Its end was told
    /// before anything that happened later.
    pub(crate) fn is_open(&self) -> bool {
        let is_silent = |told: io::Result<()>| matches!(told, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        match self {
            Wire::Tcp(stream) => is_silent(stream.try_io(Interest::READABLE, || Ok(()))),
            Wire::Unix(stream) => is_silent(stream.try_io(Interest::READABLE, || Ok(()))),
            Wire::Tls(_) => false,
        }
    }

    /// Writes what the kernel takes now, without waiting for the event loop to say that it would.
    fn write_now(&self, bytes: &[u8], more: MsgFlags) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | more;
        match self.plain() {
            Some(socket) => Ok(send(socket.as_raw_fd(), bytes, flags)?),
            None => self.try_write(bytes),
        }
    }

    /// Appends what has arrived, a little of it; 0 is the peer's FIN. An empty buffer gives up its memory while it waits.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped before it is ready.
    pub(crate) async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.read_up_to(buffer, LITTLE_BYTES).await
    }

    /// The same, with another limit than [`LITTLE_BYTES`].
    pub(crate) async fn read_up_to(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        if buffer.is_empty() {
            *buffer = BytesMut::new();
        }
        loop {
            self.readable().await?;
            match self.try_read(buffer, most) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// Writes the first `count` bytes of a buffer and takes them out of it.
    ///
    /// # Cancel safety
    /// What was written is out of the buffer and of the count, what was not is still in them.
    pub(crate) async fn write_from(&self, buffer: &mut BytesMut, count: &mut usize) -> io::Result<()> {
        self.write_before(buffer, count, MsgFlags::empty()).await
    }

    /// The same; with `MSG_MORE` TCP makes one segment of them and of what is written next.
    pub(super) async fn write_before(
        &self,
        buffer: &mut BytesMut,
        count: &mut usize,
        more: MsgFlags,
    ) -> io::Result<()> {
        while *count > 0 {
            let written = self.write_some(&buffer[..*count], more).await?;
            buffer.advance(written);
            *count -= written;
        }
        self.flush().await
    }

    /// Writes all bytes.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write_some(bytes, MsgFlags::empty()).await?..];
        }
        self.flush().await
    }

    /// Writes some of the bytes, at least one.
    async fn write_some(&self, bytes: &[u8], more: MsgFlags) -> io::Result<usize> {
        let mut written = self.write_now(bytes, more);
        loop {
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            self.writable().await?;
            // tokio's own, which remembers for the event loop when the kernel takes no more.
            written = self.try_write(bytes);
        }
    }

    /// Has TCP send what was written with `MSG_MORE`. Source: Linux net/ipv4/tcp.c, `__tcp_sock_set_nodelay`.
    pub(super) fn push(&self) {
        if let Wire::Tcp(stream) = self {
            // Where that fails the kernel sends it a little later.
            let _ = stream.set_nodelay(true);
        }
    }

    /// Takes what has arrived into an empty pipe, up to so many bytes; 0 is the peer's FIN.
    pub(super) fn fill(&self, pipe: &mut Pipe, most: u64) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => stream.try_io(Interest::READABLE, || pipe.fill(stream, most)),
            Wire::Unix(stream) => stream.try_io(Interest::READABLE, || pipe.fill(stream, most)),
            Wire::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Writes all that is in a pipe.
    ///
    /// # Cancel safety
    /// What was not written is still in the pipe.
    pub(super) async fn write_pipe(&self, pipe: &mut Pipe) -> io::Result<()> {
        while pipe.held() > 0 {
            let drained = match self {
                Wire::Tcp(stream) => stream.try_io(Interest::WRITABLE, || pipe.drain(stream)),
                Wire::Unix(stream) => stream.try_io(Interest::WRITABLE, || pipe.drain(stream)),
                Wire::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
            };
            match drained {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                drained => drained?,
            }
        }
        Ok(())
    }

    /// Sends our FIN: nothing more comes from here. Over TLS it waits for room in the socket, as every write does.
    pub(crate) async fn finish(&self) {
        if let Wire::Tls(stream) = self {
            return stream.finish().await;
        }
        // Only a peer that is already gone makes this fail, and that shows in the next read.
        let _ = self.plain().map(|socket| shutdown(socket.as_raw_fd(), Shutdown::Write));
    }

    /// Makes the close of a TCP stream a reset, so that a cut stream does not look like an ended one.
    pub(crate) fn reset_on_close(&self) {
        let stream = match self {
            Wire::Tcp(stream) => stream,
            Wire::Tls(stream) => stream.socket(),
            Wire::Unix(_) => return,
        };
        // A socket that cannot do it closes with a FIN.
        let _ = stream.set_zero_linger();
    }

    /// Waits until the peer, which has already sent its FIN, is gone altogether.
    pub(crate) async fn hung_up(&self) {
        match self {
            // A reset or unanswered probes are an error of the socket; a FIN is none.
            Wire::Tcp(stream) => {
                let _ = stream.ready(Interest::ERROR).await;
            }
            Wire::Tls(stream) => {
                let _ = stream.socket().ready(Interest::ERROR).await;
            }
            Wire::Unix(stream) => loop {
                match clock::timeout(HANGUP_CHECK, stream.ready(Interest::WRITABLE)).await {
                    Ok(Ok(ready)) if !ready.is_write_closed() => clock::sleep(HANGUP_CHECK).await,
                    Err(_) => {}
                    Ok(_) => return,
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pair() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (UnixStream::from_std(near).unwrap(), far)
    }

    #[tokio::test]
    async fn a_connection_knows_who_listens_at_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let wire = Wire::connect(&Engine::Unix(path)).await.unwrap();
        assert_eq!(wire.listener(), Some(std::process::id().cast_signed()));
    }

    #[test]
    fn what_comes_while_another_thread_reads_is_not_forgotten() {
        let current_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The thread that hears of events, and says when it has heard of one.
        let hears = current_thread();
        let ((near, mut far), (heard, tell)) = hears.block_on(async { (pair(), pair()) });
        let (said, says) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let hearing = std::thread::spawn(move || {
            hears.block_on(async {
                heard.readable().await.unwrap();
                said.send(()).unwrap();
                let _ = stopped.await;
            });
        });
        let wire = Wire::Unix(near);
        far.write_all(b"a").unwrap();
        let read = current_thread().block_on(async {
            wire.readable().await.unwrap();
            let mut room = [0; 8];
            let count = wire.receive(&mut room, |socket, bytes| {
                let count = recv(socket, bytes, MsgFlags::MSG_DONTWAIT)?;
                (&far).write_all(b"b")?;
                (&tell).write_all(b"x")?;
                says.recv().unwrap();
                Ok(count)
            });
            assert_eq!((count.unwrap(), room[0]), (1, b'a'));
            let mut rest = BytesMut::new();
            let read = tokio::time::timeout(Duration::from_secs(20), wire.read(&mut rest)).await;
            read.map(|read| (read.unwrap(), rest[0]))
        });
        assert_eq!(read, Ok((1, b'b')), "nobody woke for what came during the read");
        drop(stop);
        hearing.join().unwrap();
    }
}
