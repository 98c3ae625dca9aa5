use super::*;
use crate::plan::call::Call;

fn parse_request(bytes: &[u8], guarded: bool) -> Option<Result<Request, Unreadable>> {
    Heads::default().next(bytes, guarded)
}

fn request(text: &str) -> Request {
    parse_request(text.as_bytes(), false).unwrap().unwrap()
}

#[test]
fn a_head_is_whole_at_its_blank_line_and_not_before() {
    for text in [
        "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /_ping HTTP/1.1\nHost: x\n\n",
        "GET /_ping HTTP/1.1\r\n\r\n",
        "GET /x?f={\"a\":[\"<b>\"]}|` HTTP/1.0\r\nA:\r\nA: b\r\n\r\n",
    ] {
        for split in 0..text.len() {
            assert_eq!(parse_request(&text.as_bytes()[..split], false), None, "{text:?} up to {split}");
        }
        assert_eq!(request(&format!("{text}GET")).length, text.len(), "{text:?}");
    }
}

#[test]
fn a_head_that_comes_again_says_the_same() {
    let said = [
        "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "POST /v1.41/containers/create?name=a HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n",
        "\r\nPOST /x HTTP/1.1\r\nHost: x\r\n\r\n",
        "\r\nGET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
    ];
    for guarded in [false, true] {
        for (first, second) in said.iter().flat_map(|first| said.map(|second| (first, second))) {
            // What is remembered of the first is the only difference between the two.
            let mut remembers = Heads::default();
            let one = remembers.next(first.as_bytes(), guarded);
            let fresh = || Heads { after_post: remembers.after_post, ..Heads::default() };
            let mut forgets = fresh();
            let mut split = Heads { last: remembers.last.clone(), said: remembers.said.clone(), ..fresh() };
            let two = remembers.next(second.as_bytes(), guarded);
            assert_eq!(two, forgets.next(second.as_bytes(), guarded), "{first:?} {second:?}");
            assert_eq!(remembers.after_post, forgets.after_post, "{first:?} {second:?}");
            assert!(*first != second || first.starts_with('\r') || two == one, "{first:?}");
            for end in 0..second.len() {
                let part = split.next(&second.as_bytes()[..end], guarded);
                assert!(matches!(part, None | Some(Err(Unreadable::Shown(_)))), "{first:?} {second:?} up to {end}");
            }
        }
    }
}

#[test]
fn bodies_are_framed_as_go_frames_them() {
    for (headers, want) in [
        ("", Framing::NONE),
        ("Content-Length: 5\r\n", Framing::Length(5)),
        ("content-length:5\r\nCONTENT-LENGTH: 5\r\n", Framing::Length(5)),
        ("Transfer-Encoding: Chunked\r\n", Framing::CHUNKED),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Framing::CHUNKED),
        ("Transfer-Encoding:\r\n chunked\r\n", Framing::CHUNKED),
        ("X: a\r\n\tTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", Framing::Length(3)),
    ] {
        let text = format!("POST /x HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        assert_eq!(request(&text).body, want, "{headers:?}");
    }
    assert_eq!(request("POST /x HTTP/1.2\r\n: x\r\n y\r\nContent-Length: 4\r\n\r\n").body, Framing::Length(4));
    assert_eq!(request("POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").body, Framing::NONE);
}

#[test]
fn what_dockerd_refuses_is_shown_to_it() {
    for text in [
        "POST /x HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n",
        "POST /x HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST /x HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /x HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
        "POST /x HTTP/1.1\r\n X: y\r\n\r\n",
        "POST /x HTTP/3.0\r\n\r\n",
        "POST /x HTTP/1.1\r\nExpect: 200-ok\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "junk\r\n\r\n",
    ] {
        assert_eq!(parse_request(text.as_bytes(), false), Some(Err(Unreadable::Shown(text.len()))), "{text:?}");
    }
    assert_eq!(parse_request(b"\r\nGET / HTTP/1.1\r\n\r\n", false), Some(Err(Unreadable::Shown(2))));
    let endless = vec![b'a'; LONGEST_HEAD + 1];
    assert_eq!(parse_request(&endless, false), Some(Err(Unreadable::Shown(endless.len()))));
    assert_eq!(parse_request(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false), Some(Err(Unreadable::Http2)));
}

#[test]
fn line_ends_behind_a_post_are_overlooked_as_go_overlooks_them() {
    let mut heads = Heads::default();
    let post = b"POST /containers/x/start HTTP/1.1\r\n\r\n";
    assert_eq!(heads.next(post, false).unwrap().unwrap().length, post.len());
    for length in 0..4 {
        assert_eq!(heads.next(&b"\r\n\r\n"[..length], false), None);
    }
    let next = b"\n\r\n\nPOST /containers/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(heads.next(next, false).unwrap().unwrap().length, next.len());
    assert_eq!(reframed(next, 7), b"POST /containers/create HTTP/1.1\r\nContent-Length: 7\r\n\r\n");
    assert_eq!(heads.next(b"\r\n\r\n\r\nGET", false), Some(Err(Unreadable::Shown(6))));
    let mut heads = Heads::default();
    assert!(heads.next(b"GET / HTTP/1.1\r\n\r\n", false).unwrap().is_ok());
    assert_eq!(heads.next(b"\r\n", false), Some(Err(Unreadable::Shown(2))));
}

#[test]
fn a_head_that_comes_byte_by_byte_is_searched_once() {
    let text = format!("GET /x HTTP/1.1\r\nA: {}\r\nB: c\n\r\n", "y".repeat(LONGEST_HEAD - 64));
    let mut heads = Heads::default();
    for length in 0..text.len() {
        assert_eq!(heads.next(&text.as_bytes()[..length], false), None);
        assert!(heads.searched + 3 >= length);
    }
    assert_eq!(heads.next(text.as_bytes(), false).unwrap().unwrap().length, text.len());
}

#[test]
fn many_and_long_headers_are_read() {
    let many: String = (0..5_000).map(|n| format!("X-{n}: {}\r\n", "y".repeat(100))).collect();
    let read = request(&format!("POST /containers/create HTTP/1.1\r\n{many}Expect: 100-Continue\r\n\r\n"));
    assert!(read.expects_continue);
    assert_eq!(read.classified.call, Call::Create { name: String::new() });
    assert!(!request("GET /x HTTP/1.1\r\n\r\n").closes);
    assert!(request("GET /x HTTP/1.1\r\nConnection: Upgrade, CLOSE\r\n\r\n").closes);
    assert!(request("GET /x HTTP/1.0\r\n\r\n").closes);
    assert!(!request("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").closes);
}

#[test]
fn replies_tell_how_they_end() {
    for (text, to_head, want) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Framing::Length(5)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Framing::NONE),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Framing::CHUNKED),
        ("HTTP/1.1 204 No Content\r\n\r\n", false, Framing::NONE),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Framing::NONE),
        ("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n", false, Framing::UntilClose),
        ("HTTP/1.0 404 \r\n\r\n", false, Framing::UntilClose),
        ("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", false, Framing::NONE),
    ] {
        let reply = parse_reply(text.as_bytes(), to_head).unwrap().unwrap();
        assert_eq!((reply.body, reply.length), (want, text.len()), "{text:?}");
    }
    let json = |kind: &str| {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n");
        parse_reply(text.as_bytes(), false).unwrap().unwrap().is_json
    };
    assert!(json("application/json") && json("Application/JSON; charset=utf-8") && !json("text/plain"));
    assert_eq!(parse_reply(b"junk\r\n\r\n", false), Some(Err(())));
}

#[test]
fn a_reframed_head_keeps_every_other_line() {
    let head = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\nX-Odd:  b \r\nEXPECT: 100-continue\r\nX: c\r\n d\r\n\r\n";
    let want = "POST /x HTTP/1.1\r\nHost: a\r\nX-Odd:  b \r\nX: c\r\n d\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(String::from_utf8(reframed(head, 7)).unwrap(), want);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), text in "[A-Z]{1,4} /[a-z/%]{0,9} HTTP/1.[01]\r?\n([A-Za-z-]{1,6}: ?[ -~]{0,6}\r?\n[ \t]?){0,4}\r?\n") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = (parse_request(bytes, true), parse_reply(bytes, false), reframed(bytes, 1));
        }
    }
}

#[test]
fn the_greeting_of_a_tls_client_is_shown_to_dockerd_at_its_first_line_feed() {
    let greeting = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 random \x00\x0a\x00\x16 more";
    let line = greeting.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert_eq!(parse_request(&greeting[..line - 1], true), None);
    assert_eq!(parse_request(greeting, true), Some(Err(Unreadable::Shown(line))));
}
