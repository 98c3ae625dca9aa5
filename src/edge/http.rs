//! The HTTP that ends here: the control socket and the metrics address, served by hyper, and what is asked in one exchange.
//!
//! Not the proxy's: what passes to dockerd must not be parsed and written again (see `part::proxy`).

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::edge::files::if_there;
use crate::model::fault::Fault;

/// The longest body that is read.
const MOST_BODY_BYTES: usize = 1 << 20;

/// How long a client may take to send the head of a request, and how long to send its body.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what is under way may take when it is time to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Where requests come from.
#[derive(Debug)]
pub(crate) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A request, read in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
}

/// Who answers.
pub(crate) trait Service: Send + Sync + 'static {
    fn answer(&self, asked: Asked) -> impl Future<Output = Answer> + Send;
}

impl Answer {
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Answer { status, content_type: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }

    pub(crate) fn json(status: u16, value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Answer { status, content_type: "application/json", body },
            Err(error) => Answer::text(500, format!("write the answer as JSON: {error}")),
        }
    }
}

/// A unix socket that only root and the group may use. A socket file that an earlier run left is replaced; the caller has
/// made sure that there is no second node with this run folder.
pub(crate) fn open_unix(path: &Path, group: Option<u32>) -> Result<UnixListener, Fault> {
    use std::os::unix::fs::PermissionsExt as _;
    let fault = |cause: &dyn std::fmt::Display| Fault::World(format!("listen on {}: {cause}", path.display()));
    // Made aside with the right mode before anybody can reach it under its name.
    let aside = path.with_extension("new");
    for old in [&aside, &path.to_path_buf()] {
        if_there(std::fs::remove_file(old)).map_err(|error| fault(&error))?;
    }
    let listener = UnixListener::bind(&aside).map_err(|error| fault(&error))?;
    // Without a group of its own it is root's alone, and not of all who are in root's group.
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode)).map_err(|error| fault(&error))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(&aside, None, Some(group)).map_err(|error| fault(&error))?;
    }
    std::fs::rename(&aside, path).map_err(|error| fault(&error))?;
    Ok(listener)
}

/// Asks on a new connection, and reads an answer of up to so many bytes.
///
/// # Errors
/// What broke.
pub(crate) async fn ask(
    stream: impl Stream + 'static,
    request: Request<Full<Bytes>>,
    most_bytes: usize,
) -> Result<(u16, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), most_bytes).collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    };
    // The connection moves the bytes. Its end, good or bad, is not the answer's: what arrived is still to be read, and a
    // failure reaches the answer too.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => match never {},
    }
}

/// Answers until told to stop; then finishes what is under way, and cuts off who does not let it come to an end.
pub(crate) async fn serve<S: Service>(door: Door, service: Arc<S>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&door) => accepted,
        };
        match accepted {
            Ok(stream) => {
                connections.spawn(connection(stream, Arc::clone(&service), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Who comes now is to find nobody, instead of waiting for one who does not come.
    drop(door);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_TIMEOUT, finished).await.is_err() {
        connections.shutdown().await;
    }
}

/// A stream of either kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(door: &Door) -> std::io::Result<Box<dyn Stream>> {
    Ok(match door {
        Door::Tcp(listener) => Box::new(listener.accept().await?.0),
        Door::Unix(listener) => Box::new(listener.accept().await?.0),
    })
}

async fn connection<S: Service>(stream: Box<dyn Stream>, service: Arc<S>, stop: CancellationToken) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { respond(request, &*service).await }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(SEND_TIMEOUT);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn respond<S: Service>(
    request: Request<Incoming>,
    service: &S,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let (head, body) = request.into_parts();
    let answer = match timeout(SEND_TIMEOUT, Limited::new(body, MOST_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => {
            let asked =
                Asked { method: head.method.to_string(), path: head.uri.path().to_owned(), body: body.to_bytes() };
            service.answer(asked).await
        }
        Ok(Err(error)) => Answer::text(400, format!("read the request: {error}")),
        Err(_) => {
            Answer::text(408, format!("read the request: its body was not there within {} s", SEND_TIMEOUT.as_secs()))
        }
    };
    Response::builder()
        .status(answer.status)
        .header(hyper::header::CONTENT_TYPE, answer.content_type)
        .body(Full::new(Bytes::from(answer.body)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    struct Echo;

    impl Service for Echo {
        async fn answer(&self, asked: Asked) -> Answer {
            if asked.path == "/never" {
                std::future::pending::<()>().await;
            }
            Answer::text(200, String::from_utf8_lossy(&asked.body))
        }
    }

    /// A server, a client that has sent some bytes, and the server's end. The clock jumps whenever nothing is to be done.
    async fn served(sent: &str) -> (CancellationToken, TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(Door::Tcp(listener), Arc::new(Echo), stop.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        (stop, client, serving)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_keeps_nobody() {
        let (_stop, mut client, _serving) = served("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab").await;
        let mut answer = vec![0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 408");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_what_is_under_way_and_not_for_ever() {
        for (sent, limit) in [
            ("POST /never HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", STOP_TIMEOUT),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", SEND_TIMEOUT),
        ] {
            let (stop, client, serving) = served(sent).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let begun = Instant::now();
            stop.cancel();
            serving.await.unwrap();
            assert!((limit / 2..=limit * 2).contains(&begun.elapsed()), "{sent}: {:?}", begun.elapsed());
            drop(client);
        }
    }
}
