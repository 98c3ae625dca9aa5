//! Upstream: the one connection to dockerd that belongs to a client's connection.
//!
//! It is opened with the first request and closed with the client. So `Connection: close`, half-close, pipelining and
//! the cancelling of calls mean for dockerd what they mean for the client, and no request is ever sent twice.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::framing::Framing;
use super::head::{self, Reply};
use crate::edge::wire::{Engine, LITTLE_BYTES, READ_BYTES, SocketIdentity, Wire};
use crate::model::fault::Fault;
use crate::part::under_way::or_never;

/// Where dockerd is, and a connection to it that is ready for the next client: dockerd needs longer to take a
/// connection than to answer on it. Nothing was said on it, so it is as good as a new one, as long as a new one would come to
/// the same daemon.
#[derive(Debug)]
pub(crate) struct Dialer {
    engine: Arc<Engine>,
    spare: Mutex<Option<Spare>>,
}

#[derive(Debug)]
struct Spare {
    wire: Wire,
    /// The socket that it was made at: a daemon that is about to end takes its own away, and another makes a new one.
    socket: SocketIdentity,
    since: Instant,
}

/// How long a spare connection is kept: newer engines close one on which nothing is said for five minutes (moby cmd/dockerd,
/// `ReadHeaderTimeout`), and might while it is being used.
const SPARE_TIME: Duration = Duration::from_mins(1);

impl Dialer {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Dialer { engine, spare: Mutex::default() }
    }

    fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_spare(&self) -> Option<Wire> {
        let spare = self.spare().take().filter(|spare| {
            spare.wire.is_open()
                && spare.since.elapsed() < SPARE_TIME
                && self.engine.socket().is_some_and(|socket| socket == spare.socket)
        });
        spare.map(|spare| spare.wire)
    }

    async fn dial(&self) -> io::Result<Wire> {
        match self.take_spare() {
            Some(wire) => Ok(wire),
            None => Wire::connect(&self.engine).await,
        }
    }

    /// Makes a connection for the next client, where there is none and one is to be had at once: nobody is to wait for it.
    fn prepare(&self) {
        if self.spare().is_none()
            && let Some(socket) = self.engine.socket()
            && let Some(wire) = Wire::connect_at_once(&self.engine)
        {
            *self.spare() = Some(Spare { wire, socket, since: Instant::now() });
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Upstream {
    dialer: Arc<Dialer>,
    wire: Option<Wire>,
    /// What dockerd has sent and nobody has taken yet.
    outbound: BytesMut,
    /// Says when the client has said all it had to say, where dockerd has not been told so.
    client_ended: Option<CancellationToken>,
}

/// A reply that was gathered whole.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) status: u16,
    pub(crate) is_json: bool,
    /// Every byte as it came.
    pub(crate) raw: Bytes,
    head_length: usize,
    /// The content, without any framing.
    pub(crate) body: Vec<u8>,
    /// How the stream goes on behind it.
    pub(crate) then: Behind,
}

/// What follows a gathered reply on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    /// The next reply.
    Next,
    /// Nothing: dockerd ended the connection, or it broke before the reply was whole.
    Nothing,
    /// Bytes of another protocol.
    Stream,
    /// There is no reply yet: the request is to flow as it is.
    Pass,
}

impl Gathered {
    /// The reply with another body.
    pub(crate) fn with_body(&self, body: &[u8]) -> Bytes {
        let mut text = head::reframed(&self.raw[..self.head_length], body.len());
        text.extend_from_slice(body);
        text.into()
    }
}

impl Upstream {
    pub(crate) fn new(dialer: Arc<Dialer>) -> Self {
        Upstream { dialer, wire: None, outbound: BytesMut::new(), client_ended: None }
    }

    /// Makes a connection for the next client. Not where systemd listens, which is process 1, or somebody who cannot be seen
    /// from here: there the socket stays the same when the daemon behind it ends.
    pub(crate) fn prepare_next(&self) {
        if self.wire.as_ref().and_then(Wire::listener).is_some_and(|process| process > 1) {
            self.dialer.prepare();
        }
    }

    /// The connection, out of the hands of its owner, who is left with none.
    pub(crate) fn take(&mut self) -> Upstream {
        let dialer = Arc::clone(&self.dialer);
        Upstream { dialer, wire: self.wire.take(), outbound: std::mem::take(&mut self.outbound), client_ended: None }
    }

    /// The same, for a client whose FIN goes on to dockerd while it is listened to: there are calls that it gives up then.
    #[must_use]
    pub(crate) fn for_client(self, ended: CancellationToken) -> Upstream {
        Upstream { client_ended: Some(ended), ..self }
    }

    /// Listens on; 0 is dockerd's FIN.
    async fn hear(&mut self, most: usize) -> io::Result<usize> {
        let Upstream { wire: Some(wire), outbound, client_ended, .. } = self else { return Ok(0) };
        let ended = or_never(client_ended.as_ref().map(CancellationToken::cancelled));
        tokio::select! {
            biased;
            heard = wire.read_up_to(outbound, most) => return heard,
            () = ended => {}
        }
        *client_ended = None;
        wire.finish().await;
        wire.read_up_to(outbound, most).await
    }

    /// Connects where that has not been done.
    ///
    /// # Errors
    /// `DockerAway`.
    pub(crate) async fn connect(&mut self) -> Result<(), Fault> {
        if self.wire.is_none() {
            let away = |error| Fault::DockerAway(format!("connect to dockerd at {}: {error}", self.dialer.engine));
            self.wire = Some(self.dialer.dial().await.map_err(away)?);
        }
        Ok(())
    }

    /// Connects where that has not been done and takes no time. The events of a connection come to the thread that makes it:
    /// that is to be the one that carries the client, whoever calls dockerd on it first.
    pub(crate) fn connect_at_once(&mut self) {
        if self.wire.is_none() {
            self.wire = self.dialer.take_spare().or_else(|| Wire::connect_at_once(&self.dialer.engine));
        }
    }

    /// The connection, if there is one, and the bytes that came over it.
    pub(crate) fn parts(&mut self) -> (Option<&Wire>, &mut BytesMut) {
        (self.wire.as_ref(), &mut self.outbound)
    }

    fn away(&self, doing: &str, cause: &str) -> Fault {
        Fault::DockerAway(format!("{doing} dockerd at {}: {cause}", self.dialer.engine))
    }

    /// Sends a request and gathers the reply. Its size is dockerd's own bound: it holds such replies in memory too.
    ///
    /// # Errors
    /// `DockerAway`: no byte of a reply came.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Gathered, Fault> {
        self.connect().await?;
        let Some(wire) = self.wire.as_ref() else { return Err(self.away("call", "not connected")) };
        // dockerd may answer before it has read all and close: its answer counts, not our failure to write on.
        let written = wire.write_all(request).await;
        let reply = loop {
            match head::parse_reply(&self.outbound, false) {
                // Ours to answer: the body was gathered before it was asked for.
                Some(Ok(reply)) if reply.is_interim() => drop(self.outbound.split_to(reply.length)),
                Some(Ok(reply)) => break reply,
                Some(Err(())) => return Err(self.away("read the reply of", "it is not HTTP")),
                None => match self.hear(LITTLE_BYTES).await {
                    Ok(0) => {
                        let cause = written.err().map_or_else(|| "it closed".to_owned(), |error| error.to_string());
                        return Err(self.away("await the reply of", &cause));
                    }
                    Err(error) => return Err(self.away("await the reply of", &error.to_string())),
                    Ok(_) => {}
                },
            }
        };
        Ok(self.gather(reply).await)
    }

    /// Gathers the body of a reply whose head is in `outbound`.
    async fn gather(&mut self, reply: Reply) -> Gathered {
        let (mut framing, mut body, mut end) = (reply.body.clone(), Vec::new(), reply.length);
        let then = loop {
            end += framing.scan(&self.outbound[end..], |content| body.extend_from_slice(content));
            if reply.status == 101 {
                break Behind::Stream;
            }
            if framing.is_done() {
                break if reply.closes { Behind::Nothing } else { Behind::Next };
            }
            if framing == Framing::Malformed {
                break Behind::Nothing;
            }
            match self.hear(READ_BYTES).await {
                Ok(0) | Err(_) => break Behind::Nothing,
                Ok(_) => {}
            }
        };
        let raw = self.outbound.split_to(end).freeze();
        let (status, is_json, head_length) = (reply.status, reply.is_json, reply.length);
        // A body that is cut is nobody's to edit.
        let is_whole = then == Behind::Stream || framing.is_done() || framing == Framing::UntilClose;
        Gathered { status, is_json: is_json && is_whole, raw, head_length, body, then }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// What is gathered from a dockerd that answers a request with some bytes and then closes, or not.
    async fn gathered(reply: &str, closes: bool) -> Result<Gathered, Fault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let engine = UnixListener::bind(&path).unwrap();
        let reply = reply.to_owned();
        let dockerd = tokio::spawn(async move {
            let mut stream = engine.accept().await.unwrap().0;
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            for byte in reply.bytes() {
                stream.write_all(&[byte]).await.unwrap();
            }
            if !closes {
                let _ = stream.read(&mut request).await;
            }
        });
        let mut upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Unix(path.clone())))));
        let gathered = upstream.exchange(b"call").await;
        drop(upstream);
        dockerd.await.unwrap();
        gathered
    }

    #[tokio::test]
    async fn a_spare_connection_is_used_only_where_a_new_one_would_come_to_the_same_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let dialer = Dialer::new(Arc::new(Engine::Unix(path.clone())));
        dialer.prepare();
        assert!(dialer.spare().is_none(), "dockerd is away");
        let first = UnixListener::bind(&path).unwrap();
        dialer.prepare();
        let _kept = first.accept().await.unwrap();
        let used = dialer.dial().await.unwrap();
        assert!(dialer.spare().is_none() && used.is_open());
        // The daemon is about to end: it keeps its connections, and takes its socket away.
        dialer.prepare();
        let _kept = first.accept().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(dialer.dial().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        // Another one has made a new socket at the same path.
        dialer.prepare();
        let second = UnixListener::bind(&path).unwrap();
        dialer.prepare();
        let _kept = second.accept().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let third = UnixListener::bind(&path).unwrap();
        let (dialled, accepted) = tokio::join!(dialer.dial(), third.accept());
        assert!(dialled.unwrap().is_open() && accepted.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_spare_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let engine = tokio::net::UnixSocket::new_stream().unwrap();
        engine.bind(&path).unwrap();
        let _engine = engine.listen(0).unwrap();
        let mut queued = Vec::new();
        let engine = Engine::Unix(path);
        while let Some(wire) = Wire::connect_at_once(&engine) {
            queued.push(wire);
        }
        let dialer = Dialer::new(Arc::new(engine));
        dialer.prepare();
        assert!(dialer.spare().is_none() && !queued.is_empty());
    }

    #[tokio::test]
    async fn a_reply_is_gathered_however_it_is_framed() {
        for (reply, closes, then) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false, Behind::Next),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", false, Behind::Next),
            ("HTTP/1.0 200 OK\r\n\r\n{}", true, Behind::Nothing),
        ] {
            let found =
                gathered(&reply.replace("OK\r\n", "OK\r\nContent-Type: application/json\r\n"), closes).await.unwrap();
            assert_eq!(
                (found.status, found.is_json, found.body.as_slice()),
                (200, true, b"{}".as_slice()),
                "{reply:?}"
            );
            assert_eq!(found.then, then, "{reply:?}");
            let edited = String::from_utf8(found.with_body(b"[1]").to_vec()).unwrap();
            assert!(
                edited.ends_with("OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]"),
                "{edited:?}"
            );
        }
        let found =
            gathered("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nA: b\r\n\r\n", false).await.unwrap();
        assert_eq!((found.status, &found.raw[..]), (204, b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n".as_slice()));
    }

    #[tokio::test]
    async fn a_reply_that_is_cut_is_passed_as_it_is_and_one_that_never_came_is_a_fault() {
        let cut = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{}";
        let found = gathered(cut, true).await.unwrap();
        assert_eq!((found.then, found.is_json, &found.raw[..]), (Behind::Nothing, false, cut.as_bytes()));
        for reply in ["", "HTTP/1.1 2", "junk\r\n\r\n"] {
            assert!(matches!(gathered(reply, true).await, Err(Fault::DockerAway(_))), "{reply:?}");
        }
    }
}
