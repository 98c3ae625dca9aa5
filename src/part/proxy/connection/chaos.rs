//! Chaos: scripts that a client and a fake dockerd play with each other, once straight and once through a connection, and
//! that must look the same to both. TCP on both sides, where a reset is not a FIN.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::service_fn;

use super::super::upstream::{Behind, Dialer};
use super::*;
use crate::edge::wire::Engine;

/// How a stream looks behind its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Fin,
    Reset,
    Open,
}

/// What a side has received.
#[derive(PartialEq, Eq)]
struct Got(Vec<u8>, Last);

impl std::fmt::Debug for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} then {:?}", self.0.escape_ascii(), self.1)
    }
}

/// What the fake dockerd does once it has said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Stay,
    HalfClose,
    Close,
    Reset,
}

#[derive(Clone)]
struct Script {
    request: Vec<u8>,
    /// Where the request is cut in two.
    request_cut: usize,
    client_ends: bool,
    /// How much of the request dockerd reads before it answers.
    reads: usize,
    reply: Vec<u8>,
    reply_cut: usize,
    then: After,
}

impl Script {
    fn new(request: &[u8], reply: &[u8], then: After) -> Self {
        Script {
            request: request.to_vec(),
            request_cut: request.len(),
            client_ends: false,
            reads: request.len(),
            reply: reply.to_vec(),
            reply_cut: reply.len(),
            then,
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("no answer within 10 s")
}

/// Lets everybody else do what can be done now: each turn polls the sockets too.
async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// Reads until the end, or until so many bytes have come and nothing follows.
async fn receive(stream: &mut TcpStream, expected: usize) -> Got {
    let mut got = Vec::new();
    loop {
        if got.len() >= expected {
            settle().await;
            let mut more = [0; 1024];
            match stream.try_read(&mut more) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Got(got, Last::Open),
                Ok(0) => return Got(got, Last::Fin),
                Ok(count) => got.extend_from_slice(&more[..count]),
                Err(_) => return Got(got, Last::Reset),
            }
            continue;
        }
        match within(stream.read_buf(&mut got)).await {
            Ok(0) => return Got(got, Last::Fin),
            Ok(_) => {}
            Err(_) => return Got(got, Last::Reset),
        }
    }
}

async fn send(stream: &mut TcpStream, bytes: &[u8], cut: usize) {
    // A peer that is gone shows when the other direction is read.
    let _ = stream.write_all(&bytes[..cut]).await;
    settle().await;
    let _ = stream.write_all(&bytes[cut..]).await;
}

/// Calls of ours go to dockerd as they came, with a mark at the end of the reply's body.
async fn marked(mut asked: Asked) -> Result<Answered, Infallible> {
    assert!(!asked.raw.windows(5).any(|part| part == b"panic"), "told to");
    let (reply, then) = match asked.upstream.exchange(&asked.raw).await {
        Ok(reply) => (reply.with_body(&[reply.body.as_slice(), b" marked"].concat()), reply.then),
        Err(fault) => (Manner::of(&asked.request).closing().fault(&fault).into(), Behind::Nothing),
    };
    Ok(Answered { reply, then, upstream: asked.upstream })
}

/// A client of a fake dockerd, and the connection between them if there is one.
struct Stage {
    client: TcpStream,
    engine: TcpListener,
    running: Option<JoinHandle<()>>,
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl Stage {
    async fn straight() -> Self {
        let (engine, address) = listen().await;
        let client = TcpStream::connect(address).await.unwrap();
        client.set_nodelay(true).unwrap();
        Stage { client, engine, running: None }
    }

    async fn proxied() -> Self {
        let ((engine, address), (front, front_address)) = (listen().await, listen().await);
        let client = TcpStream::connect(front_address).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (near, _) = front.accept().await.unwrap();
        near.set_nodelay(true).unwrap();
        let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Tcp(address.to_string())))));
        let connection = Connection::new(
            Wire::Tcp(near),
            upstream,
            service_fn(marked),
            CancellationToken::new(),
            TaskTracker::new(),
        );
        Stage { client, engine, running: Some(tokio::spawn(connection.run(()))) }
    }

    async fn accept(&self) -> TcpStream {
        let (stream, _) = within(self.engine.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// Plays a script. Answers what dockerd read before it answered, and what the client received.
async fn play(mut stage: Stage, script: &Script) -> (Vec<u8>, Got) {
    let engine = async {
        let mut stream = stage.engine.accept().await.unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut read = vec![0; script.reads];
        within(stream.read_exact(&mut read)).await.unwrap();
        send(&mut stream, &script.reply, script.reply_cut).await;
        match script.then {
            After::Stay => {}
            After::HalfClose => stream.shutdown().await.unwrap(),
            After::Close => return (read, None),
            After::Reset => {
                settle().await;
                stream.set_zero_linger().unwrap();
                return (read, None);
            }
        }
        (read, Some(stream))
    };
    let client = async {
        send(&mut stage.client, &script.request, script.request_cut).await;
        if script.client_ends {
            stage.client.shutdown().await.unwrap();
        }
        let expected = if script.then == After::Stay { script.reply.len() } else { usize::MAX };
        receive(&mut stage.client, expected).await
    };
    let ((read, stream), got) = within(async { tokio::join!(engine, client) }).await;
    // Thousands of connections that linger in the kernel would take its ports.
    for stream in stream.iter().chain([&stage.client]) {
        stream.set_zero_linger().unwrap();
    }
    (read, got)
}

async fn looks_the_same(what: &str, script: &Script) {
    let straight = play(Stage::straight().await, script).await;
    let proxied = play(Stage::proxied().await, script).await;
    assert_eq!(
        proxied,
        straight,
        "{what}: request {} cut at {}, {} bytes read, reply {} cut at {}, then {:?}",
        script.request.escape_ascii(),
        script.request_cut,
        script.reads,
        script.reply.escape_ascii(),
        script.reply_cut,
        script.then
    );
}

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
const UPGRADE: &[u8] =
    b"POST /exec/x/start HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}";

/// Replies of every shape, with the requests that they answer and what dockerd does behind them.
const SHAPES: &[(&str, &[u8], &[u8], After)] = &[
    ("a length", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", After::Stay),
    ("an empty body", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", After::Stay),
    (
        "chunks",
        GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;e=f\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: u\r\n\r\n",
        After::Stay,
    ),
    ("no content", GET, b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n", After::Stay),
    ("not modified", GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", After::Stay),
    (
        "a reply to HEAD",
        b"HEAD /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
        After::Stay,
    ),
    (
        "a 100 and more",
        b"PUT /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        After::Stay,
    ),
    (
        "an upgrade with bytes glued to it",
        UPGRADE,
        b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        After::Stay,
    ),
    (
        "a hijack",
        UPGRADE,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n\x01\0\0\0\0\0\0\x02ab",
        After::HalfClose,
    ),
    ("a body until the close", GET, b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nno such thing", After::Close),
    ("HTTP/1.0", b"GET /x HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nold", After::Close),
    (
        "a close with a length",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        After::Close,
    ),
    ("no HTTP", GET, b"SSH-2.0-x\r\n\r\nanything", After::Close),
    ("broken chunks", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", After::Close),
];

/// Requests of every shape.
const REQUESTS: &[&[u8]] = &[
    GET,
    b"GET /x HTTP/1.1\nHost: localhost\nA: b\n c\n: d\n\n",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3;e=f\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: u\r\n\r\n",
    b"POST /x HTTP/1.2\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n\r\n\r\n",
    b"POST /x?\"<\xff HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
];

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn replies_of_every_shape_arrive_as_they_are_however_they_are_cut_in_two() {
    for (what, request, reply, then) in SHAPES {
        for cut in 0..=reply.len() {
            looks_the_same(what, &Script { reply_cut: cut, ..Script::new(request, reply, *then) }).await;
        }
    }
}

#[tokio::test]
async fn replies_that_end_at_any_byte_end_as_they_do_for_a_direct_client() {
    for (what, request, reply, _) in SHAPES {
        for length in 0..=reply.len() {
            looks_the_same(what, &Script::new(request, &reply[..length], After::Close)).await;
        }
    }
}

#[tokio::test]
async fn replies_that_are_reset_at_any_byte_never_look_whole() {
    for (what, request, reply, _) in SHAPES {
        for length in 0..=reply.len() {
            let script = Script::new(request, &reply[..length], After::Reset);
            let (_, straight) = play(Stage::straight().await, &script).await;
            let (_, proxied) = play(Stage::proxied().await, &script).await;
            assert_eq!(proxied.0, straight.0, "{what} up to {length}");
            // A FIN leaves a slow client what it has not read yet; it is right where the framing tells that more was to
            // come, or nothing was.
            let is_stream = match head::parse_reply(&reply[..length], request.starts_with(b"HEAD")) {
                None => false,
                Some(Ok(head)) => head.status == 101 || head.body == Framing::UntilClose,
                Some(Err(())) => true,
            };
            assert!(proxied.1 == straight.1 || !is_stream, "{what} up to {length}: {proxied:?}");
        }
    }
}

#[tokio::test]
async fn replies_behind_which_dockerd_half_closes_end_as_they_do_for_a_direct_client() {
    for (what, request, reply, _) in SHAPES {
        for length in [0, 9, reply.len() - 1, reply.len()] {
            looks_the_same(what, &Script::new(request, &reply[..length], After::HalfClose)).await;
        }
    }
}

#[tokio::test]
async fn requests_of_every_shape_arrive_as_they_are_however_they_are_cut_in_two() {
    for request in REQUESTS {
        for cut in 0..=request.len() {
            looks_the_same("a request", &Script { request_cut: cut, ..Script::new(request, OK, After::Stay) }).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_half_closes_gets_its_reply() {
    for request in REQUESTS {
        // Go's server closes once the client has ended and all is answered.
        for then in [After::HalfClose, After::Close] {
            looks_the_same("a half-close", &Script { client_ends: true, ..Script::new(request, OK, then) }).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_ends_at_any_byte_ends_there_for_dockerd() {
    for request in REQUESTS {
        for length in 1..=request.len() {
            let mut seen = Vec::new();
            for mut stage in [Stage::straight().await, Stage::proxied().await] {
                send(&mut stage.client, &request[..length], length / 2).await;
                stage.client.shutdown().await.unwrap();
                let mut engine = stage.accept().await;
                let got = receive(&mut engine, usize::MAX).await;
                engine.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400").await.unwrap();
                drop(engine);
                seen.push((got, receive(&mut stage.client, usize::MAX).await));
            }
            assert_eq!(seen[1], seen[0], "{} up to {length}", request.escape_ascii());
        }
    }
}

#[tokio::test]
async fn a_client_that_resets_at_any_byte_ends_its_call_at_dockerd() {
    for request in REQUESTS {
        let is_end = |end: &usize| [b"\r\n\r\n".as_slice(), b"\n\n"].iter().any(|mark| request[..*end].ends_with(mark));
        let head = (1..=request.len()).find(is_end).unwrap();
        for length in 1..=request.len() {
            let mut stage = Stage::proxied().await;
            stage.client.write_all(&request[..length]).await.unwrap();
            // dockerd has been called once it has the head.
            let mut engine = None;
            if length >= head {
                let mut called = stage.accept().await;
                let mut read = vec![0; head];
                within(called.read_exact(&mut read)).await.unwrap();
                assert_eq!(read, request[..head]);
                engine = Some(called);
            } else {
                settle().await;
            }
            stage.client.set_zero_linger().unwrap();
            drop(stage.client);
            within(stage.running.unwrap()).await.unwrap();
            if let Some(mut engine) = engine {
                // Until it ends.
                let Got(rest, _) = receive(&mut engine, usize::MAX).await;
                assert!(request[head..length].starts_with(&rest), "{}", rest.escape_ascii());
            }
        }
    }
}

/// Behind such a reply the connection was a tunnel, and dockerd, which goes on to read requests, got what nobody had looked at.
#[tokio::test]
async fn behind_a_reply_that_cannot_be_read_nothing_goes_to_dockerd_any_more() {
    let long =
        format!("HTTP/1.1 301 Moved Permanently\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", "%ff".repeat(400_000));
    let replies =
        [long.as_bytes(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", b"HTTP/9\r\n\r\n"];
    for reply in replies {
        let mut stage = Stage::proxied().await;
        stage.client.write_all(GET).await.unwrap();
        let mut engine = stage.accept().await;
        let mut read = vec![0; GET.len()];
        within(engine.read_exact(&mut read)).await.unwrap();
        let (mut says, mut hears) = (engine, Vec::new());
        let mut got = vec![0; reply.len()];
        let client = &mut stage.client;
        let (written, read) = within(async { tokio::join!(says.write_all(reply), client.read_exact(&mut got)) }).await;
        written.and(read.map(drop)).unwrap();
        assert!(got == reply);
        stage
            .client
            .write_all(b"POST /containers/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .unwrap();
        // Its end, and nothing before that.
        within(says.read_to_end(&mut hears)).await.unwrap();
        assert_eq!(hears, b"");
        says.write_all(b"more").await.unwrap();
        drop(says);
        let Got(rest, last) = receive(&mut stage.client, usize::MAX).await;
        assert_eq!((rest.as_slice(), last == Last::Open), (b"more".as_slice(), false));
    }
}

/// dockerd may take its time, and nobody waits for it any more.
#[tokio::test]
async fn a_client_that_leaves_behind_a_reply_that_cannot_be_read_is_not_waited_for() {
    let mut stage = Stage::proxied().await;
    stage.client.write_all(GET).await.unwrap();
    let mut engine = stage.accept().await;
    let mut read = vec![0; GET.len()];
    within(engine.read_exact(&mut read)).await.unwrap();
    engine.write_all(b"HTTP/9\r\n\r\n").await.unwrap();
    within(stage.client.read_exact(&mut read[..10])).await.unwrap();
    stage.client.set_zero_linger().unwrap();
    drop(stage.client);
    within(stage.running.unwrap()).await.unwrap();
}

#[tokio::test]
async fn early_answers_arrive_wherever_dockerd_stops_to_read() {
    let request =
        b"PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n";
    let head = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    for reads in 0..=request.len() {
        for reply in [OK, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"] {
            let script = Script { reads, ..Script::new(request, reply, After::Stay) };
            if reply == OK {
                looks_the_same("an early answer", &script).await;
            }
            // The rest of the request stays with the client until dockerd has closed.
            let part = Script { request: request[..reads].to_vec(), request_cut: reads, ..script };
            for then in [After::HalfClose, After::Close] {
                if reads >= head {
                    looks_the_same("an early answer", &Script { then, ..part.clone() }).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn the_reset_of_a_request_that_was_not_read_does_not_eat_the_answer() {
    let request =
        [b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n".as_slice(), &vec![b'a'; 100_000]]
            .concat();
    for reads in [1, 64, 70, 1000] {
        // Closed with bytes unread, a TCP socket resets.
        let script = Script { reads, ..Script::new(&request, OK, After::Close) };
        let (_, got) = play(Stage::proxied().await, &script).await;
        assert_eq!(got.0, OK, "{reads} bytes read");
        assert_ne!(got.1, Last::Open);
    }
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_answered() {
    for request in REQUESTS {
        let mut stage = Stage::proxied().await;
        for byte in *request {
            stage.client.write_all(&[*byte]).await.unwrap();
            settle().await;
        }
        let mut engine = stage.accept().await;
        let mut read = vec![0; request.len()];
        within(engine.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, *request);
        for byte in OK {
            engine.write_all(&[*byte]).await.unwrap();
            settle().await;
        }
        assert_eq!(receive(&mut stage.client, OK.len()).await, Got(OK.to_vec(), Last::Open));
    }
}

#[tokio::test]
async fn calls_of_ours_and_others_in_one_stream_are_answered_in_order_however_they_are_cut_in_two() {
    let create = b"POST /containers/create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let list = b"GET /containers/json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let put = b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nabcd";
    let calls: [&[u8]; 6] = [GET, create, b"\r\n".as_slice(), list, put, GET];
    let stream = calls.concat();
    // The line end behind the POST is overlooked, as dockerd would overlook it.
    let calls: [&[u8]; 5] = [GET, create, list, put, GET];
    let marked = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok marked";
    let want = [OK, marked, marked, OK, OK].concat();
    for cut in 0..=stream.len() {
        let Stage { mut client, engine, running } = Stage::proxied().await;
        let dockerd = async {
            let mut stream = engine.accept().await.unwrap().0;
            for call in calls {
                let mut read = vec![0; call.len()];
                stream.read_exact(&mut read).await.unwrap();
                assert_eq!(read, call, "cut at {cut}");
                stream.write_all(OK).await.unwrap();
            }
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the FIN comes last");
        };
        let sender = async {
            send(&mut client, &stream, cut).await;
            client.shutdown().await.unwrap();
            receive(&mut client, usize::MAX).await
        };
        let ((), got) = within(async { tokio::join!(dockerd, sender) }).await;
        assert_eq!(got, Got(want.clone(), Last::Fin), "cut at {cut}");
        within(running.unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn streams_end_by_halves_in_both_orders() {
    for request in [UPGRADE, GET] {
        let head: &[u8] = if request == UPGRADE {
            b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\n\r\n"
        };
        for client_first in [true, false] {
            let mut stage = Stage::proxied().await;
            stage.client.write_all(request).await.unwrap();
            let mut engine = stage.accept().await;
            let mut read = vec![0; request.len()];
            within(engine.read_exact(&mut read)).await.unwrap();
            engine.write_all(head).await.unwrap();
            assert_eq!(receive(&mut stage.client, head.len()).await, Got(head.to_vec(), Last::Open));
            let (first, second) =
                if client_first { (&mut stage.client, &mut engine) } else { (&mut engine, &mut stage.client) };
            first.write_all(b"one").await.unwrap();
            first.shutdown().await.unwrap();
            assert_eq!(receive(second, usize::MAX).await, Got(b"one".to_vec(), Last::Fin));
            second.write_all(b"two").await.unwrap();
            assert_eq!(receive(first, 3).await, Got(b"two".to_vec(), Last::Open));
            second.shutdown().await.unwrap();
            assert_eq!(receive(first, usize::MAX).await, Got(Vec::new(), Last::Fin));
            drop((stage.client, engine));
            within(stage.running.unwrap()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_panic_in_a_call_ends_its_connection_alone() {
    let mut other = Stage::proxied().await;
    let mut stage = Stage::proxied().await;
    stage.client.write_all(b"POST /containers/panic/start HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(receive(&mut stage.client, usize::MAX).await.0.is_empty());
    assert!(within(stage.running.unwrap()).await.unwrap_err().is_panic());
    other.client.write_all(GET).await.unwrap();
    let mut engine = other.accept().await;
    engine.write_all(OK).await.unwrap();
    assert_eq!(receive(&mut other.client, OK.len()).await, Got(OK.to_vec(), Last::Open));
}

mod bulk;
