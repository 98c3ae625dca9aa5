//! The relay: sockets as the proxy sees them, and the pump that carries bytes between two of them.
//!
//! All operations take `&self`, so that one task can carry both directions at once, and a buffer exists only while there
//! are bytes: an idle stream costs its two sockets and its task. tokio's own `copy_bidirectional` holds two buffers for
//! as long as the stream lives, and tells nothing of a client that is gone.
//!
//! A FIN is no goodbye: it is passed on as `shutdown(WR)` and the other direction stays open, as long as its sender is
//! there. That it is gone is told by the kernel: at once on a unix socket, by a reset or by keep-alive probes on TCP.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::edge::tls::{Certificates, TlsStream};
use crate::model::fault::Fault;

/// How much is read at once.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// How much of a TLS stream is read at once: the content of a record.
const RECORD_BYTES: usize = 16 * 1024;

/// A silent TCP peer is asked whether it lives after this long, and then as often again.
const KEEPALIVE_SECONDS: u32 = 5;

/// How many of these questions may stay without answer.
const KEEPALIVE_COUNT: u32 = 3;

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

/// One end of a stream.
#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, so that the others do not pay for its room.
    Tls(Box<TlsStream>),
}

impl Wire {
    /// A connection to an engine. A path is resolved anew each time: a daemon that starts again makes a new socket.
    pub(crate) async fn connect(engine: &Engine) -> io::Result<Wire> {
        match engine {
            Engine::Unix(path) => Ok(Wire::Unix(UnixStream::connect(path).await?)),
            Engine::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Wire::Tcp(stream))
            }
        }
    }

    /// An accepted TCP connection, set to send at once and to find out when its peer has died.
    pub(crate) fn accepted(stream: TcpStream) -> io::Result<Wire> {
        Wire::prepare(&stream)?;
        Ok(Wire::Tcp(stream))
    }

    /// The same with TLS over it. Nothing can be read or written before the [`handshake`](Self::handshake).
    pub(crate) fn accepted_tls(stream: TcpStream, certificates: &Certificates) -> io::Result<Wire> {
        Wire::prepare(&stream)?;
        Ok(Wire::Tls(Box::new(certificates.accept(stream)?)))
    }

    fn prepare(stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = stream.as_fd();
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
        setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
        setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
        Ok(())
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
            Wire::Tcp(stream) => stream.readable().await,
            Wire::Unix(stream) => stream.readable().await,
            Wire::Tls(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => stream.writable().await,
            Wire::Unix(stream) => stream.writable().await,
            Wire::Tls(stream) => stream.writable().await,
        }
    }

    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => stream.try_read_buf(buffer),
            Wire::Unix(stream) => stream.try_read_buf(buffer),
            Wire::Tls(stream) => {
                let held = buffer.len();
                buffer.resize(held + RECORD_BYTES, 0);
                let read = stream.try_read(&mut buffer[held..]);
                buffer.truncate(held + read.as_ref().map_or(0, |count| *count));
                read
            }
        }
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

    /// Appends what has arrived; 0 is the peer's FIN. An empty buffer gives up its memory while it waits.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped before it is ready.
    pub(crate) async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        if buffer.is_empty() {
            *buffer = BytesMut::new();
        }
        loop {
            self.readable().await?;
            let mut fresh = BytesMut::new();
            let target = if buffer.is_empty() { &mut fresh } else { &mut *buffer };
            target.reserve(READ_BYTES);
            match self.try_read(target) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    if buffer.is_empty() {
                        *buffer = fresh;
                    }
                    return Ok(count);
                }
            }
        }
    }

    /// Writes the first `count` bytes of a buffer and takes them out of it.
    ///
    /// # Cancel safety
    /// What was written is out of the buffer and of the count, what was not is still in them.
    pub(crate) async fn write_from(&self, buffer: &mut BytesMut, count: &mut usize) -> io::Result<()> {
        while *count > 0 {
            match self.try_write(&buffer[..*count]) {
                Ok(written) => {
                    buffer.advance(written);
                    *count -= written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    /// Writes all bytes.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    /// Sends our FIN: nothing more comes from here. Over TLS it waits for room in the socket, as every write does.
    pub(crate) async fn finish(&self) {
        let fd = match self {
            Wire::Tcp(stream) => stream.as_raw_fd(),
            Wire::Unix(stream) => stream.as_raw_fd(),
            Wire::Tls(stream) => return stream.finish().await,
        };
        // Only a peer that is already gone makes this fail, and that shows in the next read.
        let _ = shutdown(fd, Shutdown::Write);
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
                match tokio::time::timeout(HANGUP_CHECK, stream.ready(Interest::WRITABLE)).await {
                    Ok(Ok(ready)) if !ready.is_write_closed() => tokio::time::sleep(HANGUP_CHECK).await,
                    Err(_) => {}
                    Ok(_) => return,
                }
            },
        }
    }
}

/// How a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client is gone: nobody reads or writes any more.
    ClientGone,
    /// The upstream side has said all it had to say. The client has our FIN and may still have bytes to read.
    Finished,
    /// The upstream side broke: what the client has is not the whole.
    Broken,
}

/// Which end of a one-way pump failed.
enum Failed {
    Reading,
    Writing,
}

/// Carries bytes one way until the FIN, and passes that on. `left` are bytes that were read before.
async fn pump(from: &Wire, to: &Wire, left: &mut BytesMut) -> Result<(), Failed> {
    loop {
        let mut count = left.len();
        to.write_from(left, &mut count).await.map_err(|_| Failed::Writing)?;
        if from.read(left).await.map_err(|_| Failed::Reading)? == 0 {
            to.finish().await;
            return Ok(());
        }
    }
}

/// Reads and drops what a client sends, until its FIN. Answers whether there was one.
pub(crate) async fn read_out(client: &Wire) -> bool {
    let mut dropped = BytesMut::new();
    while let Ok(count) = client.read(&mut dropped).await {
        if count == 0 {
            return true;
        }
        dropped.clear();
    }
    false
}

/// Reads and drops what a client sends, until it is gone.
pub(crate) async fn drain(client: &Wire) {
    if read_out(client).await {
        client.hung_up().await;
    }
}

/// Carries bytes both ways until both sides have ended, or one is gone. Bytes that were read before go first.
pub(crate) async fn tunnel(client: &Wire, upstream: &Wire, mut inbound: BytesMut, mut outbound: BytesMut) -> End {
    let up = async {
        match pump(client, upstream, &mut inbound).await {
            Ok(()) => client.hung_up().await,
            // Upstream reads no more. Whether it still speaks, the other direction tells.
            Err(Failed::Writing) => drain(client).await,
            Err(Failed::Reading) => {}
        }
    };
    tokio::pin!(up);
    tokio::select! {
        () = &mut up => return End::ClientGone,
        ended = pump(upstream, client, &mut outbound) => match ended {
            Ok(()) => {}
            Err(Failed::Reading) => return End::Broken,
            Err(Failed::Writing) => return End::ClientGone,
        },
    }
    // dockerd ends most streams by half (moby httputils.CloseStreams); then the client is the one to close.
    tokio::select! {
        () = up => End::ClientGone,
        () = upstream.hung_up() => End::Finished,
    }
}

#[cfg(test)]
mod tests;
