//! Answers of our own: errors in the shape in which Docker's clients show them, and empty successes.

use super::head::Request;
use crate::model::fault::Fault;

/// How a client wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Errors as plain text, as they were before API 1.24.
    plain: bool,
    is_head: bool,
    is_http_1_0: bool,
    /// Whether the connection ends with the answer.
    pub(crate) closes: bool,
}

impl Manner {
    pub(crate) fn of(request: &Request) -> Self {
        Manner {
            plain: request.classified.is_before_1_24(),
            is_head: request.is_head,
            is_http_1_0: request.is_http_1_0,
            closes: request.closes,
        }
    }

    /// For bytes that are no request.
    pub(crate) fn unknown() -> Self {
        Manner { plain: false, is_head: false, is_http_1_0: false, closes: true }
    }

    #[must_use]
    pub(crate) fn closing(self) -> Self {
        Manner { closes: true, ..self }
    }

    fn head(self, status: u16, content: &str, length: usize) -> String {
        let version = if self.is_http_1_0 { "1.0" } else { "1.1" };
        let connection = match (self.closes, self.is_http_1_0) {
            (true, _) => "Connection: close\r\n",
            (false, true) => "Connection: keep-alive\r\n",
            (false, false) => "",
        };
        let reason = reason(status);
        format!("HTTP/{version} {status} {reason}\r\n{content}{connection}Content-Length: {length}\r\n\r\n")
    }

    /// An error. The text is prefixed, so that users know who spoke.
    pub(crate) fn error(self, status: u16, message: &str) -> Vec<u8> {
        let message = format!("calico: {}", message.strip_prefix("calico: ").unwrap_or(message));
        let (content, body) = if self.plain {
            ("Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n", format!("{message}\n"))
        } else {
            // Exactly this type: Go's client shows the raw text otherwise.
            ("Content-Type: application/json\r\n", format!("{}\n", serde_json::json!({ "message": message })))
        };
        let mut answer = self.head(status, content, body.len()).into_bytes();
        if !self.is_head {
            answer.extend_from_slice(body.as_bytes());
        }
        answer
    }

    /// A fault as an error.
    pub(crate) fn fault(self, fault: &Fault) -> Vec<u8> {
        self.error(fault.status(), &fault.to_string())
    }

    /// A success that says nothing.
    pub(crate) fn done(self) -> Vec<u8> {
        self.head(200, "", 0).into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        409 => "Conflict",
        413 => "Request Entity Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Heads;
    use super::*;

    fn answer(request: &str) -> String {
        let request = Heads::default().next(request.as_bytes(), false).unwrap().unwrap();
        String::from_utf8(Manner::of(&request).fault(&Fault::Conflict("claim \"x\": taken".to_owned()))).unwrap()
    }

    #[test]
    fn errors_are_shaped_as_dockers_of_the_same_version() {
        assert_eq!(
            answer("POST /v1.41/containers/create HTTP/1.1\r\n\r\n"),
            "HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\r\n{\"message\":\"calico: claim \\\"x\\\": taken\"}\n"
        );
        assert_eq!(
            answer("POST /v1.23/containers/create HTTP/1.0\r\n\r\n"),
            "HTTP/1.0 409 Conflict\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: 25\r\n\r\ncalico: claim \"x\": taken\n"
        );
        assert!(
            answer("HEAD /_ping HTTP/1.1\r\nConnection: close\r\n\r\n")
                .ends_with("Connection: close\r\nContent-Length: 41\r\n\r\n")
        );
    }
}
