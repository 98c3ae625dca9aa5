//! Replies that the node edits: all of them but what it shows of its own is dockerd's, byte by byte.

use std::ops::Range;

use super::normal;
use super::wire::{Exchange, Then, Way, exchange};
use crate::lab::host::Host;

const PING: &str = "GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The lines of a head that may not differ, and the body.
type Reply = (Vec<String>, String);

/// The reply to a request with a ping right behind it, and all replies after it.
fn replies(exchange: &Exchange) -> (Reply, Vec<Reply>) {
    let taken = |reply: &normal::Reply<'_>, may_differ: &[&str]| {
        let lines = reply.head.lines().filter(|line| !may_differ.iter().any(|name| line.starts_with(name)));
        (lines.map(str::to_owned).collect(), String::from_utf8(reply.body.clone()).unwrap())
    };
    let split = exchange.replies();
    assert_eq!(split.replies.len(), 3, "a reply, the ping's and that of the last ping: {exchange}");
    let first = taken(&split.replies[0], &["Date: ", "Content-Length: ", "Transfer-Encoding: "]);
    (first, split.replies[1..].iter().map(|reply| taken(reply, &["Date: "])).collect())
}

fn ask(host: &Host, way: Way, request: &str) -> (Reply, Vec<Reply>) {
    replies(&exchange(host, way, format!("{request}{PING}").as_bytes(), &[false, false], Then::Ping(2)))
}

/// Where behind some text the object or the list stands that a key has.
fn value(body: &str, behind: &str, key: &str) -> Range<usize> {
    let from = body.find(behind).unwrap_or_else(|| panic!("no {behind} in {body}"));
    let key = format!("\"{key}\":");
    let start = from + body[from..].find(&key).unwrap_or_else(|| panic!("no {key} in {body}")) + key.len();
    let (mut depth, mut in_text, mut is_escaped) = (0, false, false);
    for (at, byte) in body.bytes().enumerate().skip(start) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return start..at + 1;
        }
    }
    panic!("{key} does not end in {body}")
}

fn without(body: &str, range: Range<usize>) -> String {
    [&body[..range.start], &body[range.end..]].concat()
}

/// Compares an inspect or a list in which a container of ours stands.
pub(crate) fn compare_look(host: &Host, target: &str, id: &str) {
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let behind = format!("\"Id\":\"{id}\"");
    for way in [Way::Unix, Way::Tcp] {
        // Between two looks "Up 2 seconds" becomes 3.
        let (raw, through) = loop {
            let before = ask(host, Way::Raw, &request);
            let through = ask(host, way, &request);
            if ask(host, Way::Raw, &request) == before {
                break (before, through);
            }
        };
        let ((raw_head, raw_body), (head, body)) = (&raw.0, &through.0);
        assert_eq!(head, raw_head, "{target}, {way:?}");
        let [raw_rest, rest] = [raw_body, body].map(|body| without(body, value(body, &behind, "NetworkSettings")));
        assert_eq!(rest, raw_rest, "{target}, {way:?}");
        assert_ne!(body, raw_body, "{target}, {way:?}: the address is not shown");
        assert_eq!(through.1, raw.1, "behind {target}, {way:?}");
    }
}

/// Compares the reply to a create with that to one without a wish.
pub(crate) fn compare_create(host: &Host, version: &str) {
    let create = |way: Way, env: &str| {
        let body = format!(r#"{{"Image":"busybox","Env":["{env}=auto"]}}"#);
        let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let request = format!("POST {version}/containers/create HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}");
        ask(host, way, &request)
    };
    let (raw, pings) = create(Way::Raw, "NO_WISH");
    for way in [Way::Unix, Way::Tcp] {
        let (through, after) = create(way, "CALICO_IP");
        assert_eq!(through.0, raw.0, "{version}, {way:?}");
        let [raw_rest, rest] = [&raw.1, &through.1].map(|body| {
            let body = without(body, value(body, "{", "Warnings"));
            normal::normalised(&body)
        });
        assert_eq!(rest, raw_rest, "{version}, {way:?}");
        assert!(through.1.contains("calico: no profile"), "{version}, {way:?}: {}", through.1);
        assert_eq!(after, pings, "behind the create, {version}, {way:?}");
    }
}
