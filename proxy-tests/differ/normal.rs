//! Replies taken apart, and what of them may differ from one time to the next: dates, ids, times and counters.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// The replies in some bytes.
pub(crate) struct Split<'a> {
    pub(crate) replies: Vec<Reply<'a>>,
    /// So many of them are final ones and complete.
    pub(crate) whole: usize,
    /// The last one has no end but the connection's.
    pub(crate) open_ended: bool,
    /// It says that HTTP has ended.
    pub(crate) switched: bool,
    /// What follows them, or is no reply.
    rest: &'a [u8],
}

pub(crate) struct Reply<'a> {
    pub(crate) head: &'a str,
    pub(crate) body: Vec<u8>,
    /// The sizes of its chunks; `None`: it is not chunked.
    chunks: Option<Vec<usize>>,
}

/// Takes bytes apart into replies. `heads` tells which have no body whatever they say; `ended`: no more bytes will come.
pub(crate) fn split<'a>(bytes: &'a [u8], heads: &[bool], ended: bool) -> Split<'a> {
    let mut split = Split { replies: Vec::new(), whole: 0, open_ended: false, switched: false, rest: bytes };
    while let Some((reply, rest)) = next(split.rest, heads.get(split.whole).copied().unwrap_or(false), ended) {
        let status = reply.status();
        split.switched = status == 101;
        split.open_ended = reply.chunks.is_none() && rest.is_none();
        split.rest = rest.unwrap_or_default();
        split.replies.push(reply);
        if status == 101 || !(100..200).contains(&status) {
            split.whole += 1;
        }
        if split.open_ended {
            break;
        }
    }
    split
}

/// The first reply, and what follows it; no rest if nothing can follow.
fn next(bytes: &[u8], is_head: bool, ended: bool) -> Option<(Reply<'_>, Option<&[u8]>)> {
    if !bytes.starts_with(b"HTTP/1.") {
        return None;
    }
    let length = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..length]).ok()?;
    let mut reply = Reply { head, body: Vec::new(), chunks: None };
    let rest = &bytes[length..];
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let status = reply.status();
    if status == 101 {
        reply.body = rest.to_vec();
        return Some((reply, None));
    }
    if is_head || matches!(status, 100..200 | 204 | 304) {
        return Some((reply, Some(rest)));
    }
    if field("transfer-encoding") == Some("chunked") {
        let (body, sizes, end) = chunks(rest, ended)?;
        (reply.body, reply.chunks) = (body, Some(sizes));
        return Some((reply, Some(&rest[end..])));
    }
    let Some(length) = field("content-length").and_then(|value| value.parse::<usize>().ok()) else {
        reply.body = rest.to_vec();
        return Some((reply, None));
    };
    if rest.len() < length {
        return None;
    }
    reply.body = rest[..length].to_vec();
    Some((reply, Some(&rest[length..])))
}

/// A chunked body, the sizes of its chunks and where it ends. A body that breaks off has a last size that is not 0.
fn chunks(bytes: &[u8], ended: bool) -> Option<(Vec<u8>, Vec<usize>, usize)> {
    let (mut body, mut sizes, mut at) = (Vec::new(), Vec::new(), 0);
    loop {
        let one = || {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
            let content = bytes.get(at + line + 2..at + line + 2 + size)?;
            bytes[at + line + 2 + size..].starts_with(b"\r\n").then_some((content, at + line + 2 + size + 2))
        };
        match one() {
            Some((content, end)) => {
                body.extend_from_slice(content);
                sizes.push(content.len());
                at = end;
                if content.is_empty() {
                    return Some((body, sizes, at));
                }
            }
            None => return ended.then_some((body, sizes, at)),
        }
    }
}

impl Reply<'_> {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }
}

impl Split<'_> {
    /// The replies as they are compared: all lines of the heads in order, the bodies, and the bounds of their chunks
    /// where they do not depend on what was normalised. `sorts`: the lists in them have no order.
    pub(crate) fn text(&self, sorts: bool) -> String {
        let mut text = String::new();
        for reply in &self.replies {
            let (body, is_same) = if sorts { (sorted(&reply.body), false) } else { content(&reply.body) };
            for line in reply.head.split_inclusive("\r\n") {
                let line = line.strip_suffix("\r\n").unwrap_or(line);
                if line.starts_with("Date: ") {
                    text.push_str("Date: <date>\n");
                } else if line.starts_with("Content-Length: ") && !is_same {
                    // It was true, or there would be no body here.
                    text.push_str("Content-Length: <true>\n");
                } else {
                    text.push_str(&normalised(line));
                    text.push('\n');
                }
            }
            if let Some(sizes) = &reply.chunks {
                if is_same {
                    writeln!(text, "chunks: {sizes:?}").unwrap();
                } else {
                    writeln!(text, "chunks: ended by {:?}", sizes.last().filter(|last| **last == 0)).unwrap();
                }
            }
            text.push_str(&body);
            text.push('\n');
        }
        write!(text, "rest: {}", self.rest.escape_ascii()).unwrap();
        text
    }
}

pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// A body as it is compared, and whether that is every byte of it.
fn content(body: &[u8]) -> (String, bool) {
    match std::str::from_utf8(body) {
        Ok(text) if body.len() < 1 << 20 => {
            let normal = normalised(text);
            let is_same = normal == text;
            (normal, is_same)
        }
        _ => (format!("{} bytes, digest {:x}", body.len(), digest(body)), true),
    }
}

/// JSON with every list in an order of its own. Go's maps have none.
fn sorted(body: &[u8]) -> String {
    fn sort(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Array(list) => {
                list.iter_mut().for_each(sort);
                list.sort_by_key(serde_json::Value::to_string);
            }
            serde_json::Value::Object(members) => members.values_mut().for_each(sort),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_slice(body) else { return content(body).0 };
    sort(&mut value);
    normalised(&value.to_string())
}

/// A text without what differs each time.
pub(crate) fn normalised(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let at_word = !before.is_ascii_alphanumeric();
        let found = at_word.then(|| changing(rest)).flatten();
        let (length, shown) = found.unwrap_or((first.len_utf8(), ""));
        if shown.is_empty() {
            normal.push(first);
        } else {
            normal.push_str(shown);
        }
        before = rest[..length].chars().next_back().unwrap_or(' ');
        rest = &rest[length..];
    }
    normal
}

/// What at the start of a text differs each time: its length, and what stands for it.
fn changing(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes();
    let run = |from: usize, is: fn(&u8) -> bool| bytes[from..].iter().take_while(|byte| is(byte)).count();
    let is_at = |pattern: &[u8]| {
        let fits = |(byte, want): (&u8, &u8)| if *want == b'0' { byte.is_ascii_digit() } else { byte == want };
        bytes.len() >= pattern.len() && bytes.iter().zip(pattern).all(fits)
    };
    if is_at(b"0000-00-00T00:00:00") || is_at(b"0000-00-00 00:00:00") {
        let zone = 19 + run(19, |byte| byte.is_ascii_digit() || *byte == b'.');
        let end = zone + run(zone, |byte| matches!(byte, b'Z' | b'+' | b'-' | b':' | b'0'..=b'9'));
        return Some((end, "<time>"));
    }
    let word = run(0, u8::is_ascii_alphanumeric);
    let hex = run(0, |byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
    if hex == word && matches!(word, 64 | 12) {
        return Some((word, "<id>"));
    }
    let digits = run(0, u8::is_ascii_digit);
    if digits == word && matches!(digits, 10 | 19) && matches!(bytes[0], b'1') {
        return Some((word, "<when>"));
    }
    // The share of the time that a process has had: C before STIME, as ps -ef has them.
    if is_at(b"0\",\"00:00\",") || is_at(b"00\",\"00:00\",") {
        return Some((digits, "<share>"));
    }
    for age in [" seconds ago", " minutes ago", " second ago", "About a minute ago", "Less than a second ago"] {
        let number = if age.starts_with(' ') { digits } else { 0 };
        if digits == number && text[number..].starts_with(age) {
            return Some((number + age.len(), "<ago>"));
        }
    }
    for (begin, shown) in [
        ("Up ", "<up>"),
        ("Exited (0) ", "Exited (0) <ago>"),
        ("Pid\":", "Pid\":<pid>"),
        ("NFd\":", "NFd\":<count>"),
        ("NGoroutines\":", "NGoroutines\":<count>"),
        ("NEventsListener\":", "NEventsListener\":<count>"),
        ("ContainersRunning\":", "ContainersRunning\":<count>"),
    ] {
        if text.starts_with(begin) {
            let length = begin.len() + run(begin.len(), |byte| !matches!(byte, b',' | b'"' | b'\n' | b'}'));
            return Some((length, shown));
        }
    }
    None
}
