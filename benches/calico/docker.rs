//! The few calls of Docker's API that are measured: one connection each, as a command line client makes them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Outcome;

/// A name under which dockerd knows runc, and that our own runtime does not stand in front of.
pub(crate) const BY_NODE: &str = "plain";

/// A socket that speaks Docker's API: dockerd's own or the proxy's.
pub(crate) struct Engine {
    socket: PathBuf,
}

/// A reply and the time from before the connect to its last byte.
struct Reply {
    status: String,
    body: String,
    took: Duration,
}

impl Engine {
    pub(crate) fn new(socket: &Path) -> Engine {
        Engine { socket: socket.to_owned() }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Outcome<Reply> {
        let request = format!(
            "{method} /v1.41{path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let start = Instant::now();
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let took = start.elapsed();
        let (head, body) = text.split_once("\r\n\r\n").ok_or("a reply without an end of its head")?;
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if !status.starts_with('2') {
            return Err(format!("{method} {path}: {status} {body}").into());
        }
        Ok(Reply { status, body: body.to_owned(), took })
    }

    pub(crate) fn ping(&self) -> Outcome<()> {
        self.call("GET", "/_ping", "").map(|_| ())
    }

    pub(crate) fn get(&self, path: &str) -> Outcome<Duration> {
        Ok(self.call("GET", path, "")?.took)
    }

    /// Creates a container that waits for ever; its id and the time that it took.
    pub(crate) fn create(&self, network: &str, runtime: &str, env: &[&str]) -> Outcome<(String, Duration)> {
        let body = json!({
            "Image": "busybox",
            "Cmd": ["/bin/busybox", "tail", "-f", "/dev/null"],
            "Env": env,
            "HostConfig": { "NetworkMode": network, "Runtime": runtime },
        });
        let reply = self.call("POST", "/containers/create", &body.to_string())?;
        // From brace to brace: the reply may be chunked.
        let object = reply.body.find('{').zip(reply.body.rfind('}')).and_then(|(from, to)| reply.body.get(from..=to));
        let object: Value = serde_json::from_str(object.ok_or("a create reply without an object")?)?;
        let id = object["Id"].as_str().ok_or("a create reply without an id")?;
        Ok((id.to_owned(), reply.took))
    }

    pub(crate) fn start(&self, id: &str) -> Outcome<Duration> {
        let reply = self.call("POST", &format!("/containers/{id}/start"), "")?;
        if reply.status == "204" { Ok(reply.took) } else { Err(format!("start of {id}: {}", reply.status).into()) }
    }

    pub(crate) fn remove(&self, id: &str) -> Outcome<Duration> {
        Ok(self.call("DELETE", &format!("/containers/{id}?force=1"), "")?.took)
    }
}
