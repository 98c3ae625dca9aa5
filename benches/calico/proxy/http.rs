//! As much of HTTP as the measurements need: one reply, framed by a length or in chunks.

use serde_json::Value;

use super::contender::Stream;
use crate::Outcome;

pub(crate) struct Reply {
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A text member of the JSON object that the body is.
    pub(crate) fn text(&self, member: &str) -> Outcome<String> {
        let object: Value = serde_json::from_slice(&self.body)?;
        Ok(object[member].as_str().ok_or_else(|| format!("no {member} in {object}"))?.to_owned())
    }
}

pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends a request and reads the whole reply, which must be a success.
pub(crate) fn exchange(stream: &mut dyn Stream, request: &[u8]) -> Outcome<Reply> {
    stream.write_all(request)?;
    let mut seen = Vec::with_capacity(1024);
    read_reply(stream, &mut seen, |_| ())
}

/// Reads a reply of which a part may have been seen; bytes of its body are shown as they come and, where the body has
/// a length, kept only if it is short.
pub(crate) fn read_reply(stream: &mut dyn Stream, seen: &mut Vec<u8>, mut show: impl FnMut(usize)) -> Outcome<Reply> {
    let head = read_head(stream, seen)?;
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let mut body = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    if lower.contains("transfer-encoding: chunked") {
        // The last chunk is the only place where these bytes end what was read.
        show(seen.len());
        body.append(seen);
        while !body.ends_with(b"0\r\n\r\n") {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err("the reply broke off".into());
            }
            show(count);
            if body.len() > 1 << 20 {
                body.drain(..body.len() - 16);
            }
            body.extend_from_slice(&buffer[..count]);
        }
        let begin = body.windows(2).position(|two| two == b"\r\n").map_or(0, |at| at + 2);
        let end = body.len().saturating_sub(7).max(begin);
        body = body[begin..end].to_vec();
    } else {
        let length = length.unwrap_or(0);
        body.append(seen);
        while body.len() < length {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err("the reply broke off".into());
            }
            body.extend_from_slice(&buffer[..count]);
        }
    }
    if !status.starts_with('2') {
        return Err(format!("{status} {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(Reply { body })
}

/// The head of a reply; what came behind it stays in `seen`.
fn read_head(stream: &mut dyn Stream, seen: &mut Vec<u8>) -> Outcome<String> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = seen.split_off(end + 4);
            let head = String::from_utf8(std::mem::replace(seen, rest))?;
            return Ok(head);
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err("no reply".into());
        }
        seen.extend_from_slice(&buffer[..count]);
    }
}

/// Sends a request that asks for a stream, which must be granted.
pub(crate) fn upgrade(stream: &mut dyn Stream, path: &str, body: &str) -> Outcome<()> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let head = read_head(stream, &mut Vec::new())?;
    if head.contains(" 101 ") { Ok(()) } else { Err(head.lines().next().unwrap_or_default().to_owned().into()) }
}
