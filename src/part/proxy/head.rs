//! Heads: the first lines of requests and replies, read but never rewritten unless the message is ours.
//!
//! Read as Go reads them, which is dockerd's language. `httparse` tells the fields apart; where it is stricter (folded
//! lines, lines without a name) it is given a copy without these. What cannot be read, or what Go answers with an error of
//! its own, is [`Unreadable`]: the proxy shows it to dockerd and closes the direction behind it, so that dockerd's own
//! answer comes back and nothing slips by. What Go refuses otherwise is not told from the rest: it passes like all else.
//! hyper facing the client was measured and is not transparent (it refuses raw `"` in a query, more than 100 headers,
//! re-frames bodies and loses the order of headers).

use httparse::{EMPTY_HEADER, Header, Status};

use super::fields::Fields;
use super::framing::Framing;
use super::origin::{self, Foreign};
use crate::plan::call::Call;
use crate::plan::call::{Classified, classify};

/// How long a head may be. dockerd stops at 1 MiB and 4 KiB (Go `DefaultMaxHeaderBytes`) and says so itself.
pub(crate) const LONGEST_HEAD: usize = (1 << 20) + 64 * 1024;

/// How a request begins behind which Go overlooks line ends.
const POST: &[u8] = b"POST ";

/// How long a head may be to be remembered by its connection: more than most are.
const REMEMBERED_MOST: usize = 1024;

/// How many headers are read without asking for memory.
const FEW_HEADERS: usize = 16;

/// A head that is shown to dockerd though we cannot read it, with a target of the same length that nothing is at, if it speaks
/// of a call of ours. An engine that refuses it does so whatever it is about. Older ones take what newer ones refuse, such as
/// `HTTP/1.10` (Go before 1.18, net/http `ParseHTTPVersion`; dockerd 20.10.17 and before), and would carry it out unseen.
pub(crate) fn about_nothing(shown: &[u8]) -> Option<Vec<u8>> {
    let start = shown.iter().take_while(|byte| is_line_end(**byte)).count();
    let line = shown[start..].split(|byte| *byte == b'\n').next()?;
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    if classify(std::str::from_utf8(method).ok()?, target).call == Call::Pass {
        return None;
    }
    let mut shown = shown.to_vec();
    let target = start + method.len() + 1..start + method.len() + 1 + target.len();
    shown[target.clone()].fill(b'-');
    shown[target.start] = b'/';
    Some(shown)
}

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
    /// The head's bytes, blank line included, and the line ends before it.
    pub(crate) length: usize,
    /// So many line ends before it are overlooked; four at most.
    pub(crate) overlooked: u8,
    pub(crate) classified: Classified,
    pub(crate) is_head: bool,
    pub(crate) is_http_1_0: bool,
    /// Whether the client wants the connection closed after the reply.
    pub(crate) closes: bool,
    pub(crate) expects_continue: bool,
    pub(crate) body: Framing,
    /// Why a browser may be behind this request that its user does not know of.
    pub(crate) foreign: Option<Foreign>,
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
/// `searched` bytes were looked through before, so that a head that comes byte by byte costs no more than one at once.
fn head_end(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    while let Some(offset) = bytes.get(*searched..)?.iter().position(|byte| *byte == b'\n') {
        *searched += offset;
        match bytes.get(*searched + 1)? {
            b'\n' => return Some(*searched + 2),
            b'\r' if bytes.get(*searched + 2)? == &b'\n' => return Some(*searched + 3),
            _ => *searched += 1,
        }
    }
    *searched = bytes.len();
    None
}

/// The lines behind the first as Go takes them: folded ones joined with spaces, those without a name left out (source:
/// `textproto.ReadMIMEHeader`). Bytes that belong in no value become others that say as little: Go looks at the values last,
/// and no more at those of fields that it has used up or ignored by then, such as Transfer-Encoding in HTTP/1.0.
fn plain_fields(fields: &[u8]) -> Vec<u8> {
    let mut copy: Vec<u8> = Vec::with_capacity(fields.len());
    let mut is_left_out = false;
    for (index, line) in fields.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let content = line.strip_suffix(b"\n").unwrap_or(line);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        // The first line is no fold: Go refuses a space there.
        let is_fold = index > 0 && matches!(content.first(), Some(b' ' | b'\t'));
        if !is_fold {
            is_left_out = content.first() == Some(&b':');
        }
        if is_left_out {
            continue;
        }
        if is_fold {
            copy.pop();
        }
        let name = if is_fold { 0 } else { content.iter().position(|byte| *byte == b':').unwrap_or(content.len()) };
        copy.extend_from_slice(&content[..name]);
        copy.extend(content[name..].iter().map(|byte| match byte {
            b'\r' => b' ',
            byte if byte.is_ascii_control() && *byte != b'\t' => b'?',
            byte => *byte,
        }));
        copy.push(b'\n');
    }
    copy
}

/// Method, target and minor version of a request line; `None` where Go answers 400 or 505. Source: Go `net/http`
/// `parseRequestLine`, `ParseHTTPVersion`.
fn request_line(line: &[u8]) -> Option<(&str, &[u8], u8)> {
    let line = line.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let method =
        std::str::from_utf8(method).ok().filter(|method| !method.is_empty() && method.bytes().all(is_of_token))?;
    let [minor @ b'0'..=b'9'] = version.strip_prefix(b"HTTP/1.")? else { return None };
    let is_target = (!target.is_empty() || method == "CONNECT") && !target.iter().any(|byte| byte.is_ascii_control());
    is_target.then_some((method, target, minor - b'0'))
}

/// Parses some bytes with room for all headers in them, which mostly are few.
fn with_room<'h, T>(
    bytes: &'h [u8],
    parse: impl Fn(&'h [u8], &mut [Header<'h>]) -> Result<T, httparse::Error>,
) -> Result<T, httparse::Error> {
    match parse(bytes, &mut [EMPTY_HEADER; FEW_HEADERS]) {
        Err(httparse::Error::TooManyHeaders) => {
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            parse(bytes, &mut vec![EMPTY_HEADER; lines])
        }
        parsed => parsed,
    }
}

/// Whether a byte is one of a token, as a method is. Source: RFC 9110, 5.6.2; Go `httpguts.IsTokenRune`.
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The heads of the requests of one connection, in their order.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// So many bytes hold no end of the next head.
    searched: usize,
    /// Whether the last request was one of those behind which Go overlooks line ends.
    after_post: bool,
    /// The last head, and what it says: clients mostly say the same again, and to find that out costs a tenth of reading it.
    last: Vec<u8>,
    said: Option<Request>,
}

impl Heads {
    /// Reads the request at the start of some bytes; `None` while its head is not whole, and then the same bytes must come
    /// again with more behind them. `guarded`, which is the same for all requests of a connection, looks for what browsers
    /// are tricked into.
    pub(crate) fn next(&mut self, bytes: &[u8], guarded: bool) -> Option<Result<Request, Unreadable>> {
        if let Some(said) = &self.said
            && bytes.starts_with(&self.last)
        {
            // It began with a method, so it would be read from its first byte whatever came before.
            (self.searched, self.after_post) = (0, self.last.starts_with(POST));
            return Some(Ok(said.clone()));
        }
        // Source: Go net/http/server.go, readRequest: up to four line ends after a POST, and none otherwise.
        let most = if self.after_post { 4 } else { 0 };
        let overlooked =
            bytes.iter().take(most).take_while(|byte| is_line_end(**byte)).fold(0_u8, |count, _| count + 1);
        let ends = usize::from(overlooked);
        if ends < 4 && ends == bytes.len() {
            return None;
        }
        if bytes.get(ends).is_some_and(|first| !is_of_token(*first)) {
            // Go reads one line and says what it thinks of it: the greeting of a client that wants TLS has no blank line
            // behind it, but a line feed in it.
            let line = bytes[ends..].iter().position(|byte| *byte == b'\n')?;
            return Some(Err(Unreadable::Shown(ends + line + 1)));
        }
        self.searched = self.searched.max(ends);
        let Some(length) = head_end(bytes, &mut self.searched) else {
            return (bytes.len() > LONGEST_HEAD).then_some(Err(Unreadable::Shown(bytes.len())));
        };
        self.searched = 0;
        let head = &bytes[ends..length];
        if head.starts_with(b"PRI * HTTP/2.0\r\n") {
            return Some(Err(Unreadable::Http2));
        }
        let request = read_request(head, length, guarded).map(|read| Request { overlooked, ..read });
        self.after_post = request.is_some() && head.starts_with(POST);
        self.said = request.clone().filter(|_| ends == 0 && length <= REMEMBERED_MOST);
        self.last.clear();
        self.last.extend_from_slice(if self.said.is_some() { head } else { b"" });
        Some(request.ok_or(Unreadable::Shown(length)))
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Reads the lines behind the first of a head; `None` if they cannot be told apart.
fn read_fields<T>(fields: &[u8], read: impl Fn(Fields<'_>) -> T) -> Option<T> {
    let parsed = with_room(fields, |fields, room| {
        Ok(match httparse::parse_headers(fields, room)? {
            Status::Complete((count, headers)) if count == fields.len() => Some(read(Fields::of(headers))),
            _ => None,
        })
    });
    parsed.ok().flatten()
}

fn read_request(head: &[u8], length: usize, guarded: bool) -> Option<Request> {
    let (line, fields) = head.split_at(head.iter().position(|byte| *byte == b'\n')? + 1);
    let (method, target, minor) = request_line(line)?;
    let is_http_1_0 = minor == 0;
    let read = |fields: Fields<'_>| {
        let connection = |word| fields.has_token("connection", word);
        Some(Request {
            length,
            overlooked: 0,
            classified: classify(method, target),
            is_head: method == "HEAD",
            is_http_1_0,
            closes: connection("close") || is_http_1_0 && !connection("keep-alive"),
            expects_continue: expects_continue(fields)? && !is_http_1_0,
            body: request_framing(fields, is_http_1_0)?,
            foreign: if guarded { origin::foreign(fields) } else { None },
        })
    };
    match read_fields(fields, read) {
        Some(request) => request,
        None => read_fields(&plain_fields(fields), read)?,
    }
}

/// Whether a client waits for a 100 before it sends a body; `None` if it expects what Go does not know, and answers with a
/// 417. Source: Go `net/http` `Request.expectsContinue`.
fn expects_continue(fields: Fields<'_>) -> Option<bool> {
    let Some(first) = fields.values("expect").next().filter(|value| !value.is_empty()) else {
        return Some(false);
    };
    let mut words = first.split(|byte| matches!(byte, b' ' | b',' | b'\t'));
    words.any(|word| word.eq_ignore_ascii_case(b"100-continue")).then_some(true)
}

/// The length that the headers tell: `Some(None)` if none, `None` if they contradict each other or are no number.
fn content_length(fields: Fields<'_>) -> Option<Option<u64>> {
    let mut values = fields.values("content-length");
    let Some(first) = values.next() else { return Some(None) };
    if values.any(|value| value != first) {
        return None;
    }
    if first.is_empty() {
        return Some(None);
    }
    // Go reads 63 bits.
    let length = first
        .iter()
        .try_fold(0_i64, |length, byte| length.checked_mul(10)?.checked_add(char::from(*byte).to_digit(10)?.into()))?;
    u64::try_from(length).ok().map(Some)
}

/// How the body of a request is framed; `None` where dockerd answers 400 or 501. Source: Go `net/http/transfer.go`.
fn request_framing(fields: Fields<'_>, is_http_1_0: bool) -> Option<Framing> {
    if !is_http_1_0 {
        let mut codings = fields.values("transfer-encoding");
        if let Some(coding) = codings.next() {
            let is_chunked = coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            return is_chunked.then_some(Framing::CHUNKED);
        }
    }
    Some(Framing::Length(content_length(fields)?.unwrap_or(0)))
}

/// Reads the reply at the start of some bytes; `None` while its head is not whole, `Err` if it is none.
pub(crate) fn parse_reply(bytes: &[u8], to_head: bool) -> Option<Result<Reply, ()>> {
    let parsed = with_room(bytes, |bytes, room| {
        let mut parsed = httparse::Response::new(room);
        Ok(match parsed.parse(bytes)? {
            Status::Complete(length) => Some(read_reply(&parsed, length, to_head).ok_or(())),
            Status::Partial => (bytes.len() > LONGEST_HEAD).then_some(Err(())),
        })
    });
    parsed.unwrap_or(Some(Err(())))
}

fn read_reply(parsed: &httparse::Response<'_, '_>, length: usize, to_head: bool) -> Option<Reply> {
    let status = parsed.code?;
    let fields = Fields::of(parsed.headers);
    let body = if to_head || matches!(status, 100..200 | 204 | 304) {
        Framing::NONE
    } else if fields.has_token("transfer-encoding", "chunked") {
        Framing::CHUNKED
    } else {
        content_length(fields).flatten().map_or(Framing::UntilClose, Framing::Length)
    };
    let is_json = fields.values("content-type").any(|value| {
        let media = value.split(|byte| *byte == b';').next().unwrap_or_default();
        media.trim_ascii().eq_ignore_ascii_case(b"application/json")
    });
    let connection = |word| fields.has_token("connection", word);
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
    // Line ends that Go overlooks.
    let head = &head[head.iter().position(|byte| !is_line_end(*byte)).unwrap_or(0)..];
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
mod agreement;
#[cfg(test)]
mod tests;
