//! The control socket of a node on this host, seen from a client: one HTTP/1.1 request with JSON per connection.
//!
//! A connection is not kept: a command asks once or twice, and a connection of its own for each question needs no task
//! beside the request.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::http;
use crate::model::control::{Failed, SOCKET};
use crate::model::fault::Fault;

/// How long one answer may take: above the sum of what a node waits for within one (etcd, dockerd, its agent).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an answer may be, far above any status.
const ANSWER_BYTES: usize = 8 << 20;

/// Why a question to the node has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// Nobody listens on the socket.
    #[error(
        "calico-node is not running on this host: nothing answers on {socket} ({cause}); start calico-node, or name its run folder in CALICO_RUN_DIR"
    )]
    NoNode { socket: String, cause: String },
    /// This user may not speak to it.
    #[error("ask calico-node on {0}: permission denied: be root or a member of the group docker")]
    Denied(String),
    /// The node answered that it cannot, or the exchange broke.
    #[error("{0}")]
    Said(Fault),
}

impl From<Unanswered> for Fault {
    fn from(unanswered: Unanswered) -> Fault {
        match unanswered {
            Unanswered::Said(fault) => fault,
            other => Fault::Away(other.to_string()),
        }
    }
}

/// A node's socket.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    socket: PathBuf,
    patience: Duration,
}

impl Control {
    pub(crate) fn in_run_dir(run_dir: &Path) -> Self {
        Control { socket: run_dir.join(SOCKET), patience: ANSWER_TIMEOUT }
    }

    /// The same, but no answer is waited for any longer than this.
    #[must_use]
    pub(crate) fn waiting_at_most(self, patience: Duration) -> Self {
        Control { patience, ..self }
    }

    pub(crate) async fn get<Answer: DeserializeOwned>(&self, target: &str) -> Result<Answer, Unanswered> {
        self.ask(Method::GET, target, Bytes::new()).await
    }

    pub(crate) async fn post<Answer: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Answer, Unanswered> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(target, &error))?;
        self.ask(Method::POST, target, body.into()).await
    }

    async fn ask<Answer: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Answer, Unanswered> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(target, &error))?;
        match timeout(self.patience, self.exchange(stream, method, target, body)).await {
            Ok(Ok((status, body))) => self.read(target, status, &body),
            Ok(Err(unanswered)) => Err(unanswered),
            Err(_) => Err(self.broken(target, &format!("no answer within {} s", self.patience.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), Unanswered> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "calico-node")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(target, &error))?;
        http::ask(stream, request, ANSWER_BYTES).await.map_err(|error| self.broken(target, &error))
    }

    fn read<Answer: DeserializeOwned>(&self, target: &str, status: u16, body: &[u8]) -> Result<Answer, Unanswered> {
        if (200..300).contains(&status) {
            return serde_json::from_slice(body).map_err(|error| self.broken(target, &error));
        }
        let message = match serde_json::from_slice::<Failed>(body) {
            Ok(failed) => failed.message,
            Err(_) => format!("ask calico-node on {} for {target}: it answered {status}", self.socket.display()),
        };
        Err(Unanswered::Said(match status {
            409 => Fault::Conflict(message),
            502 => Fault::DockerAway(message),
            503 => Fault::Away(message),
            400..=499 => Fault::Refusal(message),
            _ => Fault::World(message),
        }))
    }

    fn unreachable(&self, target: &str, error: &std::io::Error) -> Unanswered {
        let socket = self.socket.display().to_string();
        match error.kind() {
            // A socket file without a listener refuses; a run folder without a node has none.
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                Unanswered::NoNode { socket, cause: error.to_string() }
            }
            ErrorKind::PermissionDenied => Unanswered::Denied(socket),
            _ => self.broken(target, error),
        }
    }

    fn broken(&self, target: &str, cause: &impl std::fmt::Display) -> Unanswered {
        let socket = self.socket.display();
        Unanswered::Said(Fault::Away(format!("ask calico-node on {socket} for {target}: {cause}")))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::model::control::{ContainerCalled, ContainerNamed, REMOVE, STATUS};

    /// Answers one request with these bytes, closes, and gives back what was asked.
    async fn answer_once(listener: UnixListener, answer: String) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    }

    fn reply(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn remove(status: &str, body: &str) -> (Result<ContainerNamed, Unanswered>, String) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let control = Control::in_run_dir(folder.path());
        let body_sent = ContainerCalled { container: "web".to_owned() };
        tokio::join!(control.post(REMOVE, &body_sent), answer_once(listener, reply(status, body)))
    }

    #[tokio::test]
    async fn a_question_is_asked_and_its_answer_read() {
        let id = "a".repeat(64);
        let (answer, asked) = remove("200 OK", &format!(r#"{{"container":"{id}"}}"#)).await;
        assert_eq!(answer.unwrap().container.as_str(), id);
        assert!(asked.starts_with("POST /v1/containers/remove HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with(r#"{"container":"web"}"#), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_nodes_own_words() {
        let (answer, _) = remove("409 Conflict", r#"{"message":"taken"}"#).await;
        assert_eq!(answer, Err(Unanswered::Said(Fault::Conflict("taken".to_owned()))));
        let (answer, _) = remove("500 Internal Server Error", "oops").await;
        assert!(answer.unwrap_err().to_string().contains("500"));
        let (answer, _) = remove("200 OK", "no json").await;
        assert!(matches!(answer, Err(Unanswered::Said(Fault::Away(_)))));
    }

    #[tokio::test]
    async fn a_socket_without_a_node_says_that_the_node_is_not_running() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::in_run_dir(folder.path());
        for _ in 0..2 {
            let answer: Result<ContainerNamed, _> = control.get(STATUS).await;
            let error = answer.unwrap_err();
            assert!(matches!(error, Unanswered::NoNode { .. }), "{error}");
            assert!(error.to_string().starts_with("calico-node is not running"), "{error}");
            // The second time round: a file that a dead node left behind.
            drop(std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)));
        }
    }
}
