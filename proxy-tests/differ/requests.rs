//! Requests that no client of Docker's writes: odd heads, odd framings, several at once.

use super::wire::Then;

/// Some bytes that are sent at once.
pub(crate) struct Request {
    /// Says which one it is.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Of each request in it, whether its reply has no body.
    pub(crate) heads: Vec<bool>,
    pub(crate) then: Then,
    /// It is refused on TCP, where its Host is foreign.
    pub(crate) on_unix_alone: bool,
}

fn request(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Request {
    let bytes = bytes.into();
    let heads = vec![bytes.starts_with(b"HEAD ")];
    Request { name: name.into(), bytes, heads, then: Then::Ping(1), on_unix_alone: false }
}

fn cut(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Request {
    Request { then: Then::Fin, ..request(name, bytes) }
}

fn at_unix(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Request {
    Request { on_unix_alone: true, ..request(name, bytes) }
}

/// First lines, odd ones among them.
const FIRST_LINES: &[&str] = &[
    "GET /_ping HTTP/1.2",
    "GET /containers/json HTTP/1.9",
    "GET /_ping HTTP/1.0",
    "GET /_ping HTTP/1.1",
    "GET /_ping HTTP/1.10",
    "GET /_ping HTTP/0.9",
    "GET /_ping HTTP/2.0",
    "GET /_ping HTTP/3",
    "GET /_ping HTTP/x.y",
    "GET /_ping http/1.1",
    "GET /_ping HTTP/1.1 ",
    "GET /_ping  HTTP/1.1",
    "GET  /_ping HTTP/1.1",
    " GET /_ping HTTP/1.1",
    "GET\t/_ping\tHTTP/1.1",
    "GET /_ping",
    "GET",
    "GET  HTTP/1.1",
    "GET _ping HTTP/1.1",
    "GET containers/json HTTP/1.1",
    "GET ?a=b HTTP/1.1",
    "GET * HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "OPTIONS /containers/json HTTP/1.1",
    "CONNECT localhost:80 HTTP/1.1",
    "CONNECT /containers/json HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET http://localhost/_ping HTTP/1.1",
    "GET http://localhost/containers/nobody/json HTTP/1.1",
    "GET http://localhost HTTP/1.1",
    "GET http:///_ping HTTP/1.1",
    "GET http:/containers/nobody/json HTTP/1.1",
    "GET HTTP://localhost:2377/containers/json HTTP/1.1",
    "GET https://user:pass@localhost/containers/nobody/json HTTP/1.1",
    "GET x://y/containers/nobody/json?a=b HTTP/1.1",
    "GET //localhost/containers/json HTTP/1.1",
    "POST http://localhost/containers/nobody/start HTTP/1.1",
    "POST http://localhost/v1.41/containers/create HTTP/1.1",
    "POST http://localhost?/containers/create HTTP/1.1",
    "POST http://[::1]/containers/create HTTP/1.1",
    "POST http://%zz/containers/create HTTP/1.1",
    "POST mailto:x/containers/create HTTP/1.1",
    "HEAD /_ping HTTP/1.1",
    "HEAD /containers/json HTTP/1.1",
    "PATCH /containers/create HTTP/1.1",
    "PUT /containers/create HTTP/1.1",
    "post /containers/create HTTP/1.1",
    "Get /_ping HTTP/1.1",
    "M-SEARCH /_ping HTTP/1.1",
    "G@T /_ping HTTP/1.1",
    "GÉT /_ping HTTP/1.1",
    "GET /_pingé HTTP/1.1",
    "GET /containers/é/json HTTP/1.1",
    "GET /containers/%c3%a9/json HTTP/1.1",
    "GET /containers/%ff/json HTTP/1.1",
    "GET /_ping\u{1} HTTP/1.1",
    "GET /_ping\0 HTTP/1.1",
    "hello",
    "hello world",
    "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}",
    "SSH-2.0-OpenSSH_9.2",
    "PRI * HTTP/2.0x",
];

/// Fields that may stand in any head.
const FIELDS: &[&str] = &[
    ": a\r\n",
    ":\r\n",
    "Connection: close\r\n",
    "Connection: Close\r\n",
    "connection: keep-alive, close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: keep-alive\r\nConnection: close\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGVzdA==\r\n",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "X: a\r\n b\r\n\tc\r\n",
    "X:\r\n a\r\n",
    "X : a\r\n",
    "X\r\n",
    "X:\r\n",
    "X:a\r\n",
    "X:    a   \r\n",
    "X: a\rb\r\n",
    "X: a\0b\r\n",
    "X: a\u{1}b\r\n",
    "X: é\r\n",
    "É: x\r\n",
    "X Y: a\r\n",
    "X(Y): a\r\n",
    "X: a\nY: b\n",
    "X: a\n b\n",
    "X: a\r\r\n",
    "X: a\r\n\rY: b\r\n",
    "Content-Length: 0\r\n",
    "Content-Length:\r\n",
    "Accept-Encoding: gzip\r\n",
    "Accept: application/json, text/plain\r\n",
    "X-Registry-Auth: banana\r\n",
    "Expect: 100-continue\r\n",
    "Expect: banana\r\n",
    "Trailer: X\r\n",
    "TE: trailers\r\n",
    "Range: bytes=0-1\r\n",
    "If-None-Match: *\r\n",
];

/// First lines, and what may stand in a head.
pub(crate) fn heads() -> Vec<Request> {
    let with = |fields: &str| format!("GET /containers/nobody/json HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let line = |first: &str| format!("{first}\r\nHost: localhost\r\n\r\n");
    let many = |count: usize, length: usize| {
        let value = "v".repeat(length);
        (0..count).map(|number| format!("X-Head-{number}: {value}\r\n")).collect::<String>()
    };
    let mut all = Vec::new();
    for first in FIRST_LINES {
        all.push(request(format!("first line {first:?}"), line(first)));
    }
    for fields in FIELDS {
        all.push(request(format!("fields {fields:?}"), with(fields)));
        let ping = format!("GET /_ping HTTP/1.1\r\n{fields}Host: localhost\r\n\r\n");
        all.push(request(format!("fields before Host {fields:?}"), ping));
    }
    for host in ["", "Host:\r\n", "Host: \r\n", "Host: localhost\r\nHost: localhost\r\n", "host: localhost\r\n"] {
        all.push(request(format!("host {host:?}"), format!("GET /_ping HTTP/1.1\r\n{host}\r\n")));
        all.push(request(format!("host {host:?} in 1.0"), format!("GET /_ping HTTP/1.0\r\n{host}\r\n")));
        all.push(request(format!("host {host:?} of a list"), format!("GET /containers/json HTTP/1.1\r\n{host}\r\n")));
    }
    for host in ["/var/run/docker.sock", "a b", "évil", "evil.example", "docker", "%2Fvar%2Frun", "x:y:z", "@", "a/b?c"]
    {
        all.push(at_unix(format!("host {host}"), format!("GET /_ping HTTP/1.1\r\nHost: {host}\r\n\r\n")));
        all.push(at_unix(
            format!("host {host} of an inspect"),
            format!("GET /containers/nobody/json HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        ));
    }
    for fields in [" X: a\r\n", "\tX: a\r\n"] {
        all.push(at_unix(format!("fields {fields:?}, a part of the Host"), with(fields)));
    }
    for (name, bytes) in [
        ("bare line feeds", "GET /containers/json HTTP/1.1\nHost: localhost\n\n"),
        ("line feeds mixed", "GET /containers/json HTTP/1.1\r\nHost: localhost\n\r\n"),
        ("line feeds mixed otherwise", "GET /containers/json HTTP/1.1\nHost: localhost\r\n\n"),
        ("a blank line first", "\r\nGET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a line feed first", "\nGET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("blank lines first", "\r\n\r\nGET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a blank line before a create", "\r\nPOST /containers/create HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a carriage return first", "\rGET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (
            "a packed archive",
            "GET /containers/done/archive?path=/bin/sh HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n",
        ),
        ("1.0 kept alive", "GET /_ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        ("1.0 kept alive, a list", "GET /containers/json HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"),
        ("1.0 kept alive, an inspect", "GET /containers/nobody/json HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        ("1.0, an inspect", "GET /containers/box/json HTTP/1.0\r\n\r\n"),
        ("1.0, a list", "GET /containers/json?all=1 HTTP/1.0\r\n\r\n"),
        ("1.0, a start", "POST /containers/box/start HTTP/1.0\r\n\r\n"),
        ("1.0, logs", "GET /containers/done/logs?stdout=1 HTTP/1.0\r\n\r\n"),
        ("1.0, an export", "GET /containers/done/export HTTP/1.0\r\n\r\n"),
    ] {
        all.push(request(name, bytes));
    }
    for (name, bytes) in [
        ("nothing", ""),
        ("a blank line", "\r\n"),
        ("a word", "GET"),
        ("a first line", "GET /_ping HTTP/1.1\r\n"),
        ("half a head", "GET /_ping HTTP/1.1\r\nHost: loc"),
        ("half a create's head", "POST /containers/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"),
        ("a wait", "POST /containers/box/wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
        ("a whole ping", "GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a ping and half", "GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\nGET /_ping HTTP/1.1\r\nHo"),
        ("junk", "\u{0}\u{1}\u{2}"),
    ] {
        all.push(cut(format!("{name}, then the FIN"), bytes));
    }
    for (count, length) in [(100, 1), (101, 10), (300, 10), (50, 10_000), (1, 900_000), (1, 1_040_000)] {
        all.push(request(format!("{count} headers of {length}"), with(&many(count, length))));
    }
    for verb in ["start", "stop", "restart"] {
        let name = "a".repeat(70_000);
        let fields = "Host: localhost\r\nContent-Length: 0\r\n\r\n";
        all.push(request(
            format!("{verb} of a name of 70,000 bytes"),
            format!("POST /containers/{name}/{verb} HTTP/1.1\r\n{fields}"),
        ));
    }
    for length in [100_000, 1_000_000] {
        let query = "q".repeat(length);
        for path in ["/_ping", "/containers/json", "/containers/nobody/json"] {
            all.push(request(
                format!("{path} with a query of {length}"),
                line(&format!("GET {path}?{query} HTTP/1.1")),
            ));
        }
    }
    for (count, length) in [(1, 1_060_000), (30, 50_000)] {
        all.push(cut(format!("{count} headers of {length}: too long"), with(&many(count, length))));
    }
    all.push(cut("a first line that is too long", line(&format!("GET /{} HTTP/1.1", "x".repeat(1_200_000)))));
    all
}

/// Every way to frame a body, of calls of ours and of others.
pub(crate) fn framings() -> Vec<Request> {
    let calls = [
        ("create", "/containers/create?name=box", r#"{"Image":"busybox","Cmd":["true"]}"#),
        ("start", "/containers/box/start", ""),
        ("old start", "/v1.23/containers/box/start", "{}"),
        ("start of nobody", "/containers/nobody/start", ""),
        ("connect", "/networks/net1/connect", r#"{"Container":"nobody"}"#),
        ("volume", "/volumes/create", r#"{"Name":"a b"}"#),
        ("tag", "/images/nothing/tag?repo=x", "unread"),
        ("no call", "/nowhere", "unread"),
    ];
    let mut all = Vec::new();
    for (call, path, body) in calls {
        let length = body.len();
        let form = |name: &str, fields: &str, sent: &str| {
            let kind = "Content-Type: application/json\r\n";
            let bytes = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}{fields}\r\n{sent}");
            request(format!("{call}, {name}"), bytes)
        };
        let chunk = format!("{length:x}\r\n{body}\r\n");
        let chunk = if length == 0 { "" } else { &chunk };
        let single: String = body.chars().map(|letter| format!("1\r\n{letter}\r\n")).collect();
        let chunked = "Transfer-Encoding: chunked\r\n";
        all.extend([
            form("with a length", &format!("Content-Length: {length}\r\n"), body),
            form("with a length twice", &format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"), body),
            form("without a length", "", ""),
            form("chunked", chunked, &format!("{chunk}0\r\n\r\n")),
            form("chunked letter by letter", chunked, &format!("{single}0\r\n\r\n")),
            form("chunked in capitals", "TRANSFER-ENCODING: CHUNKED\r\n", &format!("{chunk}0\r\n\r\n")),
            form("chunked with trailers", chunked, &format!("{chunk}0\r\nX: y\r\nZ:\r\n\r\n")),
            form("chunked and empty", chunked, "0\r\n\r\n"),
            form("chunked with zeros", chunked, &format!("000{chunk}00000\r\n\r\n").replace("0000000", "00000")),
            form(
                "chunked in 1.1 with a length of 3",
                &format!("{chunked}Content-Length: 3\r\n"),
                &format!("{chunk}0\r\n\r\n"),
            ),
            form("a length, then chunked", &format!("Content-Length: 3\r\n{chunked}"), &format!("{chunk}0\r\n\r\n")),
            form("chunked twice", &format!("{chunked}{chunked}"), "0\r\n\r\n"),
            form("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
            form("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            form("identity", "Transfer-Encoding: identity\r\n", ""),
            form(
                "identity with a length",
                &format!("Transfer-Encoding: identity\r\nContent-Length: {length}\r\n"),
                body,
            ),
            form("an empty coding", "Transfer-Encoding:\r\n", ""),
            form("chunked with a tab", "Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"),
            form("xchunked", "Transfer-Encoding: xchunked\r\n", ""),
            form("chunked with a vertical tab", "Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
            form("coding with a space before the colon", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            form("a folded coding", "Transfer-Encoding:\r\n chunked\r\n", &format!("{chunk}0\r\n\r\n")),
            form("lengths that differ", &format!("Content-Length: {length}\r\nContent-Length: 1\r\n"), body),
            form("a list of lengths", &format!("Content-Length: {length}, {length}\r\n"), body),
            form("a negative length", "Content-Length: -1\r\n", ""),
            form("a length with a sign", "Content-Length: +5\r\n", "{   }"),
            form("a length in hex", "Content-Length: 0x5\r\n", "{   }"),
            form("a length that is no number", "Content-Length: five\r\n", "{   }"),
            form("a length beyond 64 bits", "Content-Length: 99999999999999999999\r\n", ""),
            form("a length with a space inside", "Content-Length: 1 0\r\n", "{   }"),
            form("an empty length", "Content-Length:\r\n", ""),
            form("expecting to go on, in 1.1", &format!("Expect: 100-continue\r\nContent-Length: {length}\r\n"), body),
            form("expecting something else", &format!("Expect: 200-ok\r\nContent-Length: {length}\r\n"), body),
            form("to be closed", &format!("Connection: close\r\nContent-Length: {length}\r\n"), body),
        ]);
        for (name, fields, sent) in [
            ("with less than its length", format!("Content-Length: {}\r\n", length + 5), body.to_owned()),
            ("chunked without an end", chunked.to_owned(), chunk.to_owned()),
            ("chunked without its last line", chunked.to_owned(), format!("{chunk}0\r\n")),
            ("chunked with a bad size", chunked.to_owned(), format!("{chunk}x\r\n\r\n")),
            ("chunked with a negative size", chunked.to_owned(), format!("{chunk}-1\r\n\r\n")),
            (
                "chunked with a size of 17 digits",
                chunked.to_owned(),
                format!("{chunk}00000000000000001\r\nx\r\n0\r\n\r\n"),
            ),
            ("chunked with more than a chunk's size", chunked.to_owned(), format!("{chunk}1\r\nxx\r\n0\r\n\r\n")),
            ("chunked and cut in a size", chunked.to_owned(), format!("{chunk}1")),
            ("chunked and cut in a chunk", chunked.to_owned(), format!("{chunk}ff\r\nx")),
        ] {
            // Of these two calls we read the body: what is not whole is refused.
            if matches!(call, "create" | "old start") {
                continue;
            }
            all.push(Request { then: Then::Fin, ..form(name, &fields, &sent) });
        }
        for (name, sent) in [
            ("an extension", format!("{chunk}0;a=b\r\n\r\n")),
            ("a quoted extension", format!("{chunk}0;a=\"b;c\"\r\n\r\n")),
            ("a space after the size", format!("{chunk}0 \r\n\r\n")),
            ("bare line feeds after sizes", format!("{}0\n\r\n", chunk.replacen("\r\n", "\n", 1))),
            ("a trailer that is a length", format!("{chunk}0\r\nContent-Length: 50\r\n\r\n")),
        ] {
            all.push(form(&format!("chunked with {name}"), chunked, &sent));
        }
        let old =
            format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        all.push(request(format!("{call}, in 1.0"), old));
    }
    all
}

/// Bodies of creates: what dockerd takes and what it does not.
const CREATE_BODIES: &[&[u8]] = &[
    b" ",
    b"null",
    b"nul",
    b"true",
    b"[]",
    b"[{}]",
    b"{",
    b"}",
    b"{}",
    b"{}{}",
    b"{},",
    b"{} trailing",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    br#"{"Image":"busybox"}"#,
    br#"{"IMAGE":"busybox"}"#,
    br#"{"image":"busybox","Image":null}"#,
    br#"{"Image":null,"Image":"busybox"}"#,
    br#"{"Image":"nothing","image":"busybox"}"#,
    "{\"Image\":\"busybox\",\"Ho\u{17f}tConfig\":{\"Networ\u{212a}Mode\":\"host\"}}".as_bytes(),
    br#"{"Image":"busybox","\u0048ostConfig":{"Memory":"x"}}"#,
    br#"{"Image":"busybox","HostConfig":[]}"#,
    br#"{"Image":"busybox","HostConfig":{"Memory":9007199254740993}}"#,
    br#"{"Image":"busybox","HostConfig":{"Memory":1e9}}"#,
    br#"{"Image":"busybox","HostConfig":{"Memory":1.5}}"#,
    br#"{"Image":"busybox","HostConfig":{"Memory":99999999999999999999}}"#,
    br#"{"Image":"busybox","HostConfig":{"Memory":-0}}"#,
    br#"{"Image":"busybox","HostConfig":{"NetworkMode":null}}"#,
    br#"{"Image":"busybox","HostConfig":{"NetworkMode":["host"]}}"#,
    br#"{"Image":"busybox","Env":[null,"A=b"]}"#,
    br#"{"Image":"busybox","Env":[7]}"#,
    br#"{"Image":"busybox","Env":{"CALICO_IP":"auto"}}"#,
    br#"{"Image":"busybox","Env":["CALICO_IP"]}"#,
    br#"{"Image":"busybox","Env":["CALICO_IP=auto"],"Env":[]}"#,
    br#"{"Image":"busybox","Env":["CALICO_IP=auto"],"Env":null}"#,
    br#"{"Image":"busybox","Labels":{"CALICO_IP":"auto"}}"#,
    b"{\"Image\":\"busybox\",\"Labels\":{\"a\":\"\xff\xfe\"}}",
    b"{\"Image\":\"busybox\",\"Labels\":{\"a\":\"\x00\"}}",
    b"{\"Image\":\"busybox\",\"Labels\":{\"a\":\"\t\"}}",
    br#"{"Image":"busybox","Labels":{"a":"\ud83d\ude00\ud800"}}"#,
    br#"{"Image":"busybox","Labels":{"a":"\x"}}"#,
    br#"{"Image":"busybox",}"#,
    br#"{"Image":'busybox'}"#,
    br#"{"Image":"busybox"/*comment*/}"#,
    b"{\"Image\" : \"busybox\" , \r\n\t\"Cmd\" : [ ] } \n\n ",
    br#"{"Image":"busybox","ExposedPorts":{"80/tcp":{}},"Volumes":null,"NetworkingConfig":{"EndpointsConfig":{}}}"#,
];

/// Types and forms of a create's body. The name is taken, so that none makes anything.
pub(crate) fn create_bodies() -> Vec<Request> {
    let create = br#"{"Image":"busybox","Cmd":["true"]}"#.as_slice();
    let form = |name: String, kind: &str, body: &[u8]| {
        let head = "POST /v1.41/containers/create?name=box HTTP/1.1\r\nHost: localhost\r\n";
        request(name, [format!("{head}{kind}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat())
    };
    let mut all = Vec::new();
    for kind in [
        "",
        "Content-Type:\r\n",
        "Content-Type: application/json; charset=utf-8\r\n",
        "Content-Type: APPLICATION/JSON\r\n",
        "Content-Type: application/json;\r\n",
        "Content-Type: application/json;;\r\n",
        "Content-Type: application/json,text/plain\r\n",
        "Content-Type: application/json x\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: text/json\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: application/tar\r\n",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        "Content-Type: text/plain\r\nContent-Type: application/json\r\n",
        "Content-Encoding: gzip\r\nContent-Type: application/json\r\n",
    ] {
        all.push(form(format!("create with {kind:?}"), kind, create));
        all.push(form(format!("empty create with {kind:?}"), kind, b""));
    }
    for body in CREATE_BODIES {
        all.push(form(format!("create {}", body.escape_ascii()), "Content-Type: application/json\r\n", body));
    }
    let deep = [b"{\"Labels\":".as_slice(), &b"[".repeat(20_000), &b"]".repeat(20_000), b"}"].concat();
    all.push(form("a create that is nested deeply".to_owned(), "Content-Type: application/json\r\n", &deep));
    let long = format!(r#"{{"Image":"busybox","Labels":{{"long":"{}"}}}}"#, "x".repeat(4 << 20));
    all.push(form("a create of 4 MiB".to_owned(), "Content-Type: application/json\r\n", long.as_bytes()));
    all
}

fn framed_create(path: &str, body: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Several requests at once, those of ours among others, and what looks like several.
pub(crate) fn pipelines() -> Vec<Request> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let create = framed_create;
    let sets: [(&str, Vec<String>); 16] = [
        ("two pings", vec![get("/_ping"), get("/_ping")]),
        ("five pings", vec![get("/_ping"); 5]),
        ("a list between pings", vec![get("/_ping"), get("/containers/json"), get("/_ping")]),
        ("inspects", vec![get("/containers/box/json"), get("/containers/nobody/json"), get("/v1.24/containers/done/json")]),
        ("starts", vec![post("/containers/box/start"), post("/containers/nobody/start"), post("/containers/box/start")]),
        ("a create in the middle", vec![get("/_ping"), create("/containers/create?name=box", "{\"Image\":\"busybox\"}"), get("/_ping")]),
        ("a create that is refused", vec![create("/containers/create", "{}"), get("/_ping")]),
        ("a delete and a kill", vec!["DELETE /containers/nobody HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), post("/containers/done/kill"), get("/version")]),
        ("networks", vec![get("/networks/net1"), create("/networks/net1/connect", "{\"Container\":\"nobody\"}"), get("/networks/net1")]),
        ("a chunked one first", vec!["POST /volumes/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n8\r\nName\":\"a\r\n4\r\n b\"}\r\n0\r\n\r\n".to_owned(), get("/containers/json")]),
        ("a body that is not read", vec![create("/images/nothing/tag?repo=x", "unread"), get("/_ping")]),
        ("no such route", vec![create("/nowhere", "unread"), get("/nowhere"), get("/_ping")]),
        ("redirects", vec![get("//containers/json"), get("/containers/x/../json"), get("/_ping")]),
        ("a body that is long and not read", vec![create("/nowhere", &"x".repeat(100_000)), get("/_ping")]),
        ("logs and a list", vec![get("/containers/done/logs?stdout=1"), get("/containers/json")]),
        ("bare and with a version", vec![get("/containers/json"), get("/v1.41/containers/json"), get("/v1.12/containers/json"), get("/images/json")]),
    ];
    let mut all: Vec<Request> = sets
        .into_iter()
        .map(|(name, set)| Request {
            heads: vec![false; set.len()],
            then: Then::Ping(set.len()),
            ..request(format!("at once: {name}"), set.concat())
        })
        .collect();
    all.push(Request {
        heads: vec![true, false, true],
        then: Then::Ping(3),
        ..request(
            "at once: heads",
            "HEAD /_ping HTTP/1.1\r\nHost: localhost\r\n\r\nGET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /containers/json HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
    });
    all
}

/// A request behind another: one of its own, or not to be heard of.
pub(crate) fn smuggled() -> Vec<Request> {
    let body = "{\"Image\":\"nothing\"}";
    let create = framed_create;
    let second = create("/containers/create?name=smuggled", body);
    let mut all = Vec::new();
    let smuggling = [
        ("behind a close", format!("GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n{second}"), 1),
        ("behind 1.0", format!("GET /_ping HTTP/1.0\r\n\r\n{second}"), 1),
        (
            "behind a length of 0 and chunks",
            format!(
                "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"
            ),
            2,
        ),
        ("inside a body", create("/images/nothing/tag?repo=x", &second), 1),
        (
            "inside a chunk",
            format!(
                "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
                second.len()
            ),
            1,
        ),
        (
            "behind a GET with a body",
            format!("GET /_ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello{second}"),
            2,
        ),
        ("behind a bad request", format!("BAD\r\n\r\n{second}"), 1),
        (
            "behind a bad coding",
            format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n{second}"),
            1,
        ),
        (
            "behind a bad length",
            format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n{second}"),
            1,
        ),
        (
            "behind a bad chunk",
            format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{second}"),
            1,
        ),
        (
            "behind an extension with a line feed",
            format!(
                "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n{second}"
            ),
            1,
        ),
        (
            "behind a trailer without a colon",
            format!(
                "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nhello\r\n\r\n{second}"
            ),
            1,
        ),
        (
            "behind chunks in 1.0",
            format!(
                "POST /nowhere HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"
            ),
            1,
        ),
        (
            "behind a folded length",
            format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n 0\r\n\r\n{second}"),
            2,
        ),
        (
            "behind a length after a bare carriage return",
            format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nX: a\rContent-Length: 500\r\n\r\n{second}"),
            1,
        ),
        ("behind a head of HTTP/2", format!("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n{second}"), 1),
        ("behind a blank line", format!("GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n{second}"), 1),
        (
            "behind a HEAD with a body",
            format!("HEAD /_ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi{second}"),
            2,
        ),
        (
            "behind an upgrade that is not taken",
            format!(
                "POST /containers/nobody/start HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n{second}"
            ),
            2,
        ),
    ];
    for (name, bytes, count) in smuggling {
        let is_head = bytes.starts_with("HEAD ");
        all.push(Request {
            heads: vec![is_head, false],
            then: Then::Ping(count),
            ..request(format!("a second request {name}"), bytes)
        });
    }
    all
}
