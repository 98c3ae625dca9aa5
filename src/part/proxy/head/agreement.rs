//! Laws of agreement: in any bytes of a client we see the requests that Go's own server sees, and none slips by.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::reference::{ask, hex};

/// What Go's server makes of some bytes that end with a FIN.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Served {
    requests: Option<Vec<Seen>>,
    answers: Option<Vec<u16>>,
}

/// A request, as Go sees it. Target and body are hex.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Seen {
    method: String,
    target: String,
    body: String,
    error: String,
    close: bool,
}

/// The requests that we see in some bytes with a FIN behind them, in the words of Go, and how many of the bytes dockerd
/// gets; `None` where we refuse them.
fn read_all(bytes: &[u8]) -> Option<(Vec<Seen>, usize)> {
    let (mut heads, mut seen, mut at) = (Heads::default(), Vec::new(), 0);
    loop {
        let request = match heads.next(&bytes[at..], false) {
            Some(Ok(request)) => request,
            Some(Err(Unreadable::Http2)) => return None,
            Some(Err(Unreadable::Shown(length))) => return Some((seen, at + length)),
            None => return Some((seen, bytes.len())),
        };
        let head = String::from_utf8_lossy(&bytes[at..at + request.length]).into_owned();
        let method = head.trim_start_matches(['\r', '\n']).split(' ').next().unwrap().to_owned();
        let target = bytes[at..at + request.length].split(|byte| *byte == b' ').nth(1).unwrap();
        let (mut body, mut content) = (request.body.clone(), Vec::new());
        let target = hex(target);
        at += request.length;
        at += body.scan(&bytes[at..], |bytes| content.extend_from_slice(bytes));
        let error = if body.is_done() { String::new() } else { "not whole".to_owned() };
        seen.push(Seen { method, target, body: hex(&content), error, close: request.closes });
        if !body.is_done() {
            return Some((seen, at));
        }
    }
}

/// Compares what we see in some bytes with what Go sees; the text tells how they differ.
fn stream_agrees(bytes: &[u8]) -> Result<(), String> {
    let Some((ours, length)) = read_all(bytes) else { return Ok(()) };
    let direct: Served = ask("stream", &[bytes]);
    let through: Served = ask("stream", &[&bytes[..length]]);
    // Invisible: dockerd does and answers the same.
    let told = |served: &Served| {
        let mut requests = served.requests.clone().unwrap_or_default();
        for seen in requests.iter_mut().filter(|seen| !seen.error.is_empty()) {
            // How far a broken body was read, and how it broke, is nobody's to see.
            "broken".clone_into(&mut seen.error);
            seen.body.clear();
        }
        (requests, served.answers.clone())
    };
    // Go ends a trailer at a line feed alone only if a blank line with carriage returns stands anywhere behind it, be it in
    // another request. What we hold back may be that one; then dockerd closes.
    let is_starved = through.requests.iter().flatten().any(|seen| seen.error.contains("suspiciously long trailer"));
    if !is_starved && told(&direct) != told(&through) {
        return Err(format!("direct {direct:?}\nthrough us {through:?}\nwe see {ours:?}"));
    }
    // Nothing slips by: what dockerd does we have seen, and as it is.
    // `OPTIONS *` is answered before dockerd is asked.
    let mut ours = ours.iter().filter(|seen| (seen.method.as_str(), seen.target.as_str()) != ("OPTIONS", "2a"));
    for go in through.requests.iter().flatten() {
        let Some(seen) = ours.next() else { return Err(format!("we do not see {go:?}")) };
        let is_same = (&seen.method, &seen.target, seen.close) == (&go.method, &go.target, go.close);
        let is_same_body = !go.error.is_empty() || seen.error.is_empty() && seen.body == go.body;
        if !is_same || !is_same_body {
            return Err(format!("{go:?}\nto us {seen:?}"));
        }
    }
    Ok(())
}

/// Gives the first request of some bytes another body and has Go read it; the text tells what else it finds changed.
fn edit_agrees(bytes: &[u8]) -> Result<(), String> {
    let Some(Ok(request)) = Heads::default().next(bytes, false) else { return Ok(()) };
    let Some(before) = ask::<Served>("stream", &[bytes]).requests.and_then(|seen| seen.into_iter().next()) else {
        return Ok(());
    };
    let edited = [reframed(&bytes[..request.length], 3).as_slice(), b"abc"].concat();
    let after = ask::<Served>("stream", &[&edited]).requests.unwrap_or_default();
    let wanted = Seen { body: hex(b"abc"), error: String::new(), ..before };
    if after == [wanted] { Ok(()) } else { Err(format!("edited {}: {after:?}", edited.escape_ascii())) }
}

#[test]
fn streams_that_were_once_read_otherwise_than_by_go_are_read_alike() {
    let next = "GET /next HTTP/1.1\r\nHost: d\r\n\r\n";
    for text in [
        // A newer version of HTTP/1.
        "POST /containers/x/start HTTP/1.2\r\nHost: d\r\n\r\n",
        "POST /x HTTP/1.9\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        // A field without a name, alone, folded and first.
        "POST /containers/x/start HTTP/1.1\r\nHost: d\r\n: x\r\n\r\n",
        "POST /containers/x/start HTTP/1.1\r\n:\r\n y\r\n\tz\r\nHost: d\r\nContent-Length: 1\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\n:Content-Length: 5\r\n Content-Length: 6\r\n\r\n",
        // Line ends behind a POST, and behind others.
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\n\r\na\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\n\r\n\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\n\r\n\r\n\r\n\r\n",
        "PUT /x HTTP/1.1\r\nHost: d\r\n\r\n\r\n",
        // Chunks without a size, and line feeds alone.
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n ;\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n;x\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\n\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\rA: b\r\n \r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
        // What Go expects, and what it does not.
        "POST /x HTTP/1.1\r\nHost: d\r\nExpect: a 100-Continue\r\nContent-Length: 1\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nExpect: 100-continued\r\nContent-Length: 1\r\n\r\na",
        "POST /x HTTP/1.0\r\nHost: d\r\nConnection: keep-alive\r\nExpect: x\r\n\r\n",
        // Lengths.
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length:\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 01\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: +1\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1 1\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1_0\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: \t1 \r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-\r\n Length: 1\r\n\r\na",
        "GET /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\n\r\na",
        "HEAD /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // Odd bytes in the values of fields that Go has used up before it looks.
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: \r1\r\r\n\r\na",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nContent-Length: \u{1}\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nTrailer: \u{1}\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: \r\r\n\r\n",
        "POST /x HTTP/1.0\r\nHost: d\r\nConnection: keep-alive\r\nTransfer-Encoding: \u{7f}\r\n\r\n",
        // Targets and methods.
        "POST /containers/x/start?\u{e9} HTTP/1.1\r\nHost: d\r\n\r\n",
        "CONNECT h:1 HTTP/1.1\r\nHost: d\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: d\r\n\r\n",
        "GET http:/x HTTP/1.1\r\nHost: d\r\n\r\n",
        "GET  /x HTTP/1.1\r\nHost: d\r\n\r\n",
        "GET /x HTTP/1.1 \r\nHost: d\r\n\r\n",
        "GET\t/x HTTP/1.1\r\nHost: d\r\n\r\n",
        // Odd bytes.
        "GET /x HTTP/1.1\r\nHost: d\r\nA: b\0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA\0: b\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA: b\rc\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA: b\r\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA b: c\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\n\u{e9}: b\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nA: \u{e9}\u{7f}\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nhOST: e\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.0\r\n\r\n",
        "GET /x HTTP/2.0\r\nHost: d\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: d\r\nConnection: x, close\r\n\r\n",
    ] {
        for text in [format!("{text}{next}"), text.to_owned(), format!("{next}{text}")] {
            stream_agrees(text.as_bytes()).unwrap_or_else(|why| panic!("{text:?}: {why}"));
        }
    }
    let raw = [b"POST /containers/\xff/start?\xfe HTTP/1.1\r\nHost: d\r\n\r\n", next.as_bytes()].concat();
    stream_agrees(&raw).unwrap();
}

#[test]
fn every_prefix_of_a_stream_is_read_as_go_reads_it() {
    let text = "POST /x HTTP/1.1\r\nHost: d\r\nA: b\r\n c\r\nContent-Length: 3\r\n\r\nabc\r\nPOST /y HTTP/1.1\nHost: d\n: e\nTransfer-Encoding: chunked\n\n2;f\r\nde\r\n0\r\nT: u\r\n\r\nGET /z HTTP/1.0\r\n\r\n";
    for length in 0..=text.len() {
        stream_agrees(&text.as_bytes()[..length]).unwrap_or_else(|why| panic!("{:?}: {why}", &text[..length]));
    }
}

fn pick(of: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(of)
}

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\r\n")]
}

fn first_line() -> impl Strategy<Value = String> {
    (
        pick(&["POST", "POST", "POST", "GET", "HEAD", "PUT", "CONNECT", "p@st", "", "A(B"]),
        pick(&[" ", " ", " ", " ", " ", " ", "  ", "\t"]),
        pick(&[
            "/x",
            "/x",
            "/x",
            "/containers/x/start",
            "*",
            "http://h/x",
            "h:80",
            "/%zz",
            "/\u{e9}?\"<",
            "/\u{1}",
            "",
            "http:/x",
            "//x",
        ]),
        pick(&[
            " HTTP/1.1",
            " HTTP/1.1",
            " HTTP/1.1",
            " HTTP/1.1",
            " HTTP/1.0",
            " HTTP/1.2",
            " HTTP/2.0",
            " HTTP/1.10",
            " http/1.1",
            "",
            " HTTP/1.1 ",
            " x HTTP/1.1",
        ]),
    )
        .prop_map(|(a, b, c, d)| format!("{a}{b}{c}{d}"))
}

fn fields() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        (
            pick(&[
                "Content-Length: 3",
                "Content-Length: 3",
                "content-length:3",
                "Content-Length: 0",
                "Content-Length: +3",
                "Content-Length: 3, 3",
                "Content-Length:",
                "Content-Length : 3",
                "Content-Length: 03\t",
                "Content-Length: 9223372036854775808",
                "Content-Length: 0x3",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: chunked",
                "transfer-ENCODING:chunked ",
                "Transfer-Encoding: identity",
                "Transfer-Encoding: gzip, chunked",
                "Transfer-Encoding:",
                "Transfer-Encoding: chunked, chunked",
                "Transfer-Encoding: \u{b}chunked",
                "Transfer-Encoding: chunked\r",
                "Content-Length: \u{1}",
                "Content-Length:\r3",
                "Trailer: \u{2}",
                "Connection: close",
                "Connection: keep-alive",
                "Connection: x ,CLOSE",
                "Expect: 100-continue",
                "Expect: 100-continue, x",
                "Expect: y",
                "Expect:",
                " chunked",
                "\t3",
                " ",
                ": x",
                ":",
                "A",
                "A: b",
                "A:\u{e9}",
                "\u{e9}: a",
                "A\t: b",
                "A: \u{0}",
                "Host: e",
                "Trailer: A",
                "Trailer: Content-Length",
                "Upgrade: h2c",
                "Content-Length: 3\r\nContent-Length: 3",
                "Content-Length: 3\r\nContent-Length: 4",
                "Transfer-Encoding:\r\n chunked",
                "A: b\r\n\tTransfer-Encoding: chunked",
            ]),
            line_end(),
        )
            .prop_map(|(field, end)| format!("{field}{end}")),
        0..4,
    )
    .prop_map(|fields| fields.concat())
}

fn body() -> impl Strategy<Value = &'static str> {
    pick(&[
        "",
        "",
        "abc",
        "abc",
        "3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "3;e=\"f\"\r\nabc\r\n0\r\nT: u\r\n\r\n",
        "3\nabc\r\n0\n\n",
        "0\r\n\r\n",
        "\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "03 \t\r\nabc\r\n;\r\n\r\n",
        "3 ;x\r\nabc\r\n0\r\n\r\n",
        "g\r\n",
        "10000000000000000\r\n",
        "fffffffffffffffff\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "0\r\nA\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\n\nX: c\r\n\r\n",
        "\r\n",
        "\r\n\r\n\n",
        "0\r\n\rx\r\n\r\n",
    ])
}

fn one_request() -> impl Strategy<Value = String> {
    let host = pick(&[
        "Host: d\r\n",
        "Host: d\r\n",
        "Host: d\r\n",
        "Host: d\r\n",
        "Host: d\r\n",
        "Host:\n",
        "",
        "host: a b\r\n",
    ]);
    (first_line(), line_end(), host, fields(), line_end(), body())
        .prop_map(|(line, first, host, fields, last, body)| format!("{line}{first}{host}{fields}{last}{body}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_slips_by_and_nothing_is_lost(
        requests in proptest::collection::vec(one_request(), 1..4),
        odd in proptest::option::weighted(0.2, (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b' '), Just(b':')])),
    ) {
        let mut bytes = requests.concat().into_bytes();
        bytes.extend_from_slice(b"GET /last HTTP/1.1\r\nHost: d\r\n\r\n");
        if let Some((at, byte)) = odd {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        stream_agrees(&bytes).map_err(|why| TestCaseError::fail(format!("{}\n{why}", bytes.escape_ascii())))?;
        edit_agrees(&bytes).map_err(|why| TestCaseError::fail(format!("{}\n{why}", bytes.escape_ascii())))?;
    }
}
