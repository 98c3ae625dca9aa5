//! Replies that the node edits: all of them but what it shows of its own is dockerd's, byte by byte.

use std::ops::Range;

use super::normal;
use super::wire::{Exchange, Then, Way, exchange, first_difference};
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
        // Nor is our runtime, which stands in front of the one that was asked for.
        let raw_rest = raw_rest.replace(r#""Runtime":"calico""#, r#""Runtime":"runc""#);
        assert!(rest == raw_rest, "{target}, {way:?}\n{}", first_difference(&raw_rest, &rest));
        assert!(body != raw_body, "{target}, {way:?}: the address is not shown");
        assert_eq!(through.1, raw.1, "behind {target}, {way:?}");
    }
}

/// What stands in environments, labels and credentials, and is nobody's to read.
pub(crate) const SECRET: &str = "not-to-be-told";

/// Creates with a wish, framed in every way in which dockerd takes a body: each makes a container of ours.
pub(crate) fn create_in_every_framing(host: &Host) {
    let body =
        format!(r#"{{"Image":"busybox","Env":["CALICO_IP=auto","SECRET={SECRET}"],"Labels":{{"secret":"{SECRET}"}}}}"#);
    let length = format!("Content-Length: {}\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n";
    let whole = format!("{:x}\r\n{body}\r\n", body.len());
    let letters: String = body.chars().map(|letter| format!("1;a=b\r\n{letter}\r\n")).collect();
    let framings = [
        ("with a length", "HTTP/1.1", length.clone(), body.clone()),
        ("chunked", "HTTP/1.1", chunked.to_owned(), format!("{whole}0\r\n\r\n")),
        ("letter by letter", "HTTP/1.1", chunked.to_owned(), format!("{letters}0\r\n\r\n")),
        ("with trailers", "HTTP/1.1", format!("Trailer: X\r\n{chunked}"), format!("{whole}0\r\nX: y\r\nZ:\r\n\r\n")),
        ("asking first", "HTTP/1.1", format!("Expect: 100-continue\r\n{length}"), body.clone()),
        (
            "asking first, chunked",
            "HTTP/1.1",
            format!("Expect: 100-continue\r\n{chunked}"),
            format!("{whole}0\r\n\r\n"),
        ),
        ("chunked, with a length", "HTTP/1.1", format!("Content-Length: 3\r\n{chunked}"), format!("{whole}0\r\n\r\n")),
        ("in 1.0", "HTTP/1.0", length.clone(), body.clone()),
        ("in 1.0, kept alive", "HTTP/1.0", format!("Connection: keep-alive\r\n{length}"), body.clone()),
        ("with a digest", "HTTP/1.1", format!("Content-MD5: banana\r\n{length}"), body.clone()),
    ];
    for (name, version, fields, sent) in framings {
        for way in [Way::Unix, Way::Tcp] {
            let fields = format!("Content-Type: application/json\r\nX-Registry-Auth: {SECRET}\r\n{fields}");
            let request =
                format!("POST /containers/create?name=framed {version}\r\nHost: localhost\r\n{fields}\r\n{sent}");
            let exchange = exchange(host, way, request.as_bytes(), &[false], Then::Ping(1));
            let replies = exchange.replies();
            let made = replies.replies.iter().any(|reply| reply.head.contains(" 201 Created\r\n"));
            assert!(made, "{name}, {way:?}: {exchange}");
            let container = host.container("framed");
            assert_eq!(container.raw_inspect()["Config"]["Labels"]["secret"], SECRET, "{name}, {way:?}");
            assert_eq!(container.record()["state"], "inactive", "{name}, {way:?}");
            container.remove();
        }
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
