//! Heads: the first lines of requests and replies, read but never rewritten unless the message is ours.
//!
//! `httparse` tells the words apart; where it is stricter than dockerd (folded lines) the words are taken from an
//! unfolded copy. What cannot be read, or what Go answers with an error of its own, is [`Unreadable`]: the proxy shows
//! it to dockerd and closes the direction behind it, so that dockerd's own answer comes back and nothing slips by.
//! hyper facing the client was measured and is not transparent (it refuses raw `"` in a query, more than 100 headers,
//! re-frames bodies and loses the order of headers).

use httparse::{EMPTY_HEADER, Header};

use super::fields::{has_token, header_values};
use super::framing::Framing;
use super::origin;
use crate::plan::call::{Classified, classify};

/// How long a head may be. dockerd stops at 1 MiB and 4 KiB (Go `DefaultMaxHeaderBytes`) and says so itself.
pub(crate) const LONGEST_HEAD: usize = (1 << 20) + 64 * 1024;

/// How many headers are read without asking for memory.
const FEW_HEADERS: usize = 32;

/// A head that we cannot read, or that dockerd refuses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// HTTP/2 with prior knowledge: calls in it could not be seen.
    Http2,
    /// So many bytes are for dockerd to judge.
    Shown(usize),
}

/// What the proxy needs to know of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The head's bytes, blank line included.
    pub(crate) length: usize,
    pub(crate) classified: Classified,
    pub(crate) is_head: bool,
    pub(crate) is_http_1_0: bool,
    /// Whether the client wants the connection closed after the reply.
    pub(crate) closes: bool,
    pub(crate) expects_continue: bool,
    pub(crate) body: Framing,
    /// Why a browser may be behind this request that its user does not know of.
    pub(crate) foreign: Option<String>,
}

/// What the proxy needs to know of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) length: usize,
    pub(crate) status: u16,
    pub(crate) is_json: bool,
    /// Whether dockerd closes the connection behind it.
    pub(crate) closes: bool,
    pub(crate) body: Framing,
}

impl Reply {
    /// Whether another head of the same reply follows.
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// Where the head at the start of some bytes ends: after its first blank line, with bare line feeds as Go allows them.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let line_end = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')? + 1;
        match bytes.get(line_end)? {
            b'\n' => return Some(line_end + 1),
            b'\r' if bytes.get(line_end + 1)? == &b'\n' => return Some(line_end + 2),
            _ => from = line_end,
        }
    }
}

/// The head with its folded lines unfolded; `None` if there are none. Source: Go `textproto.ReadMIMEHeader` joins them
/// with a space.
fn unfolded(head: &[u8]) -> Option<Vec<u8>> {
    let is_fold = |at: usize| head[at] == b'\n' && matches!(head.get(at + 1), Some(b' ' | b'\t'));
    let first_line = head.iter().position(|byte| *byte == b'\n')?;
    let folds: Vec<usize> = (first_line + 1..head.len()).filter(|at| is_fold(*at)).collect();
    if folds.is_empty() {
        return None;
    }
    let mut copy = head.to_vec();
    for at in folds {
        copy[at] = b' ';
        if copy[at - 1] == b'\r' {
            copy[at - 1] = b' ';
        }
    }
    Some(copy)
}

/// Room for all headers of a head: `few` where it does, without asking for memory.
fn room<'r, 'h>(
    head: &[u8],
    few: &'r mut [Header<'h>; FEW_HEADERS],
    many: &'r mut Vec<Header<'h>>,
) -> &'r mut [Header<'h>] {
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    if lines <= FEW_HEADERS {
        return few;
    }
    many.resize(lines, EMPTY_HEADER);
    many
}

/// Reads the request at the start of some bytes; `None` while its head is not whole. `guarded` looks for what browsers
/// are tricked into.
pub(crate) fn parse_request(bytes: &[u8], guarded: bool) -> Option<Result<Request, Unreadable>> {
    if let Some(b'\r' | b'\n') = bytes.first() {
        // Go does not skip blank lines before a request.
        let line = bytes.iter().position(|byte| *byte == b'\n')?;
        return Some(Err(Unreadable::Shown(line + 1)));
    }
    let Some(length) = head_end(bytes) else {
        return (bytes.len() > LONGEST_HEAD).then_some(Err(Unreadable::Shown(bytes.len())));
    };
    let head = &bytes[..length];
    if head.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Some(Err(Unreadable::Http2));
    }
    let copy = unfolded(head);
    let words = copy.as_deref().unwrap_or(head);
    let (mut few, mut many) = ([EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let mut parsed = httparse::Request::new(room(head, &mut few, &mut many));
    let request = match parsed.parse(words) {
        Ok(httparse::Status::Complete(count)) if count == length => read_request(&parsed, length, guarded),
        _ => None,
    };
    Some(request.ok_or(Unreadable::Shown(length)))
}

fn read_request(parsed: &httparse::Request<'_, '_>, length: usize, guarded: bool) -> Option<Request> {
    let method = parsed.method?;
    let is_http_1_0 = parsed.version? == 0;
    let headers = &*parsed.headers;
    let connection = |word| has_token(headers, "connection", word);
    Some(Request {
        length,
        classified: classify(method, parsed.path?.as_bytes()),
        is_head: method == "HEAD",
        is_http_1_0,
        closes: connection("close") || is_http_1_0 && !connection("keep-alive"),
        expects_continue: !is_http_1_0 && has_token(headers, "expect", "100-continue"),
        body: request_framing(headers, is_http_1_0)?,
        foreign: if guarded { origin::foreign(headers) } else { None },
    })
}

/// The length that the headers tell: `Some(None)` if none, `None` if they contradict each other or are no number.
fn content_length(headers: &[Header<'_>]) -> Option<Option<u64>> {
    let mut values = header_values(headers, "content-length");
    let Some(first) = values.next() else { return Some(None) };
    if values.any(|value| value != first) {
        return None;
    }
    if first.is_empty() {
        return Some(None);
    }
    let text = std::str::from_utf8(first).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    // Go reads 63 bits.
    text.parse().ok().filter(|length| i64::try_from(*length).is_ok()).map(Some)
}

/// How the body of a request is framed; `None` where dockerd answers 400 or 501. Source: Go `net/http/transfer.go`.
fn request_framing(headers: &[Header<'_>], is_http_1_0: bool) -> Option<Framing> {
    if !is_http_1_0 {
        let mut codings = header_values(headers, "transfer-encoding");
        if let Some(coding) = codings.next() {
            let is_chunked = coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            return is_chunked.then_some(Framing::CHUNKED);
        }
    }
    Some(Framing::Length(content_length(headers)?.unwrap_or(0)))
}

/// Reads the reply at the start of some bytes; `None` while its head is not whole, `Err` if it is none.
pub(crate) fn parse_reply(bytes: &[u8], to_head: bool) -> Option<Result<Reply, ()>> {
    let Some(length) = head_end(bytes) else {
        return (bytes.len() > LONGEST_HEAD).then_some(Err(()));
    };
    let head = &bytes[..length];
    let (mut few, mut many) = ([EMPTY_HEADER; FEW_HEADERS], Vec::new());
    let mut parsed = httparse::Response::new(room(head, &mut few, &mut many));
    let reply = match parsed.parse(head) {
        Ok(httparse::Status::Complete(count)) if count == length => read_reply(&parsed, length, to_head),
        _ => None,
    };
    Some(reply.ok_or(()))
}

fn read_reply(parsed: &httparse::Response<'_, '_>, length: usize, to_head: bool) -> Option<Reply> {
    let status = parsed.code?;
    let headers = &*parsed.headers;
    let body = if to_head || matches!(status, 100..200 | 204 | 304) {
        Framing::NONE
    } else if has_token(headers, "transfer-encoding", "chunked") {
        Framing::CHUNKED
    } else {
        content_length(headers).flatten().map_or(Framing::UntilClose, Framing::Length)
    };
    let is_json = header_values(headers, "content-type").any(|value| {
        let media = value.split(|byte| *byte == b';').next().unwrap_or_default();
        media.trim_ascii().eq_ignore_ascii_case(b"application/json")
    });
    let connection = |word| has_token(headers, "connection", word);
    let closes = connection("close") || parsed.version? == 0 && !connection("keep-alive");
    Some(Reply { length, status, is_json, closes, body })
}

/// What does not fit an edited message: its old framing, and digests of its old body.
const OF_THE_OLD_BODY: &[&str] =
    &["content-length", "transfer-encoding", "trailer", "expect", "digest", "content-digest", "content-md5"];

/// A head for another body of the same message: all other lines stay as they are.
pub(crate) fn reframed(head: &[u8], body_length: usize) -> Vec<u8> {
    let mut copy = Vec::with_capacity(head.len() + 32);
    let mut drops = false;
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        if matches!(line, b"\n" | b"\r\n") {
            copy.extend_from_slice(format!("Content-Length: {body_length}\r\n").as_bytes());
            copy.extend_from_slice(line);
            break;
        }
        // A folded line shares the fate of the one before.
        if !matches!(line.first(), Some(b' ' | b'\t')) {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            drops = OF_THE_OLD_BODY.iter().any(|old| old.as_bytes().eq_ignore_ascii_case(name));
        }
        if !drops {
            copy.extend_from_slice(line);
        }
    }
    copy
}

#[cfg(test)]
mod tests;
