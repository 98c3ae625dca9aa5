//! A client, a connection and a fake dockerd over real sockets; the service answers without any network.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tower::service_fn;

use super::super::upstream::{Behind, Dialer};
use super::ours::{CONTINUE, LONGEST_BODY};
use super::*;
use crate::edge::wire::Engine;

/// A proxied client and the fake dockerd's listener.
struct Rig {
    client: UnixStream,
    engine: UnixListener,
    path: PathBuf,
    stop: CancellationToken,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// What the service does here: calls of ours go to dockerd as they came, with a mark at the end of the reply's body.
async fn marked(mut asked: Asked) -> Result<Answered, Infallible> {
    if !asked.is_whole {
        // What was read says whose it is: here it is somebody else's unless it says "ours".
        let (reply, then) = match asked.body.as_slice() {
            b"ours" => (Manner::of(&asked.request).closing().error(403, "ours").into(), Behind::Next),
            _ => (bytes::Bytes::new(), Behind::Pass),
        };
        return Ok(Answered { reply, then, upstream: asked.upstream });
    }
    let (reply, then) = match asked.upstream.exchange(&asked.raw).await {
        Ok(reply) => {
            let mut body = reply.body.clone();
            body.extend_from_slice(b" marked");
            (reply.with_body(&body), reply.then)
        }
        Err(fault) => (Manner::of(&asked.request).closing().fault(&fault).into(), Behind::Nothing),
    };
    Ok(Answered { reply, then, upstream: asked.upstream })
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let engine = UnixListener::bind(&path).unwrap();
    let (client, near) = UnixStream::pair().unwrap();
    let stop = CancellationToken::new();
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Unix(path.clone())))));
    let connection = Connection::new(Wire::Unix(near), upstream, service_fn(marked), stop.clone(), TaskTracker::new());
    Rig { client, engine, path, stop, running: tokio::spawn(connection.run(())), _folder: folder }
}

impl Rig {
    async fn accept(&self) -> UnixStream {
        within(self.engine.accept()).await.unwrap().0
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("no answer within 5 s")
}

async fn expect(stream: &mut UnixStream, want: &[u8]) {
    let mut got = vec![0; want.len()];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(want));
}

async fn expect_end(stream: &mut UnixStream) {
    assert_eq!(within(stream.read(&mut [0; 64])).await.unwrap_or(0), 0);
}

/// Sends some bytes in two parts.
async fn send_split(stream: &mut UnixStream, bytes: &[u8], split: usize) {
    stream.write_all(&bytes[..split]).await.unwrap();
    tokio::task::yield_now().await;
    stream.write_all(&bytes[split..]).await.unwrap();
}

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: d\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_and_replies_pass_unaltered_however_they_are_split() {
    let request = b"POST /x?\"<>` HTTP/1.1\r\nhOst: d\r\nX:\r\nTransfer-Encoding: chunked\r\n\r\n3;e=f\r\nabc\r\n0\r\nT: u\r\n\r\n";
    let reply = b"HTTP/1.1 200 Fine\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: u\r\n\r\n";
    let mut rig = rig();
    let mut engine: Option<UnixStream> = None;
    for split in 0..request.len().max(reply.len()) {
        send_split(&mut rig.client, request, split.min(request.len())).await;
        if engine.is_none() {
            engine = Some(rig.accept().await);
        }
        let engine = engine.as_mut().unwrap();
        expect(engine, request).await;
        send_split(engine, reply, split.min(reply.len())).await;
        expect(&mut rig.client, reply).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_the_fin_comes_last() {
    let mut rig = rig();
    rig.client.write_all(&[GET, GET].concat()).await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut engine = rig.accept().await;
    for _ in 0..2 {
        expect(&mut engine, GET).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        engine.write_all(OK).await.unwrap();
        expect(&mut rig.client, OK).await;
    }
    expect_end(&mut engine).await;
    drop(engine);
    expect_end(&mut rig.client).await;
    within(rig.running).await.unwrap();
}

#[tokio::test]
async fn what_is_pipelined_behind_the_last_reply_of_a_connection_is_not_answered() {
    let closing = b"GET /x HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".as_slice();
    let last = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".as_slice();
    let list = b"GET /containers/json HTTP/1.1\r\nHost: d\r\n\r\n".as_slice();
    let marked = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 7\r\n\r\n marked".as_slice();
    for (request, reply, heard) in [(closing, OK, OK), (GET, last, last), (list, last, marked)] {
        let mut rig = rig();
        rig.client.write_all(&[request, GET].concat()).await.unwrap();
        let mut engine = rig.accept().await;
        expect(&mut engine, request).await;
        engine.write_all(reply).await.unwrap();
        expect(&mut rig.client, heard).await;
        expect_end(&mut rig.client).await;
        drop(rig.client);
        expect_end(&mut engine).await;
    }
}

#[tokio::test]
async fn a_create_that_expects_to_go_on_is_told_so_though_its_body_is_there() {
    let mut rig = rig();
    let head = b"POST /containers/create HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    rig.client.write_all(&[head.as_slice(), b"{}"].concat()).await.unwrap();
    expect(&mut rig.client, CONTINUE).await;
}

#[tokio::test]
async fn a_fin_during_a_reply_reaches_dockerd_and_the_reply_the_client() {
    let mut rig = rig();
    rig.client.write_all(GET).await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut engine = rig.accept().await;
    let mut all = Vec::new();
    within(engine.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, GET);
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
}

#[tokio::test]
async fn bytes_glued_to_a_101_and_to_the_request_arrive() {
    let mut rig = rig();
    let request = b"POST /session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    rig.client.write_all(&[request, b"early".as_slice()].concat()).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, request).await;
    let switch = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\nPRI * HTTP/2.0";
    engine.write_all(switch).await.unwrap();
    expect(&mut rig.client, switch).await;
    expect(&mut engine, b"early").await;
    rig.client.write_all(b"POST /containers/create HTTP/1.1\r\n\r\n").await.unwrap();
    expect(&mut engine, b"POST /containers/create HTTP/1.1\r\n\r\n").await;
    rig.client.shutdown().await.unwrap();
    expect_end(&mut engine).await;
    engine.write_all(b"late").await.unwrap();
    drop(engine);
    expect(&mut rig.client, b"late").await;
    expect_end(&mut rig.client).await;
}

#[tokio::test]
async fn a_200_without_framing_is_a_stream_both_ways() {
    let mut rig = rig();
    rig.client.write_all(b"POST /containers/x/attach HTTP/1.1\r\n\r\n").await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, b"POST /containers/x/attach HTTP/1.1\r\n\r\n").await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";
    engine.write_all(head).await.unwrap();
    expect(&mut rig.client, head).await;
    rig.client.write_all(b"in").await.unwrap();
    expect(&mut engine, b"in").await;
    engine.write_all(b"out").await.unwrap();
    expect(&mut rig.client, b"out").await;
}

#[tokio::test]
async fn an_early_reply_reaches_a_client_that_still_sends() {
    let mut rig = rig();
    rig.client.write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n123").await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, b"PUT /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n123").await;
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
    // dockerd reads on, so the connection goes on.
    rig.client.write_all(&[b"4567890", GET].concat()).await.unwrap();
    expect(&mut engine, b"4567890").await;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
    // dockerd closes instead: the client has the answer and then the end.
    rig.client.write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n123").await.unwrap();
    expect(&mut engine, b"PUT /x HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n").await;
    engine.write_all(OK).await.unwrap();
    drop(engine);
    expect(&mut rig.client, OK).await;
    expect_end(&mut rig.client).await;
}

#[tokio::test]
async fn interim_heads_and_bodiless_replies_pass() {
    let mut rig = rig();
    rig.client.write_all(b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    engine.write_all(CONTINUE).await.unwrap();
    expect(&mut rig.client, CONTINUE).await;
    rig.client.write_all(b"ab").await.unwrap();
    expect(&mut engine, b"ab").await;
    let none = b"HTTP/1.1 204 No Content\r\n\r\n";
    engine.write_all(none).await.unwrap();
    expect(&mut rig.client, none).await;
    rig.client.write_all(b"HEAD /_ping HTTP/1.1\r\n\r\n").await.unwrap();
    expect(&mut engine, b"HEAD /_ping HTTP/1.1\r\n\r\n").await;
    engine.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n").await.unwrap();
    expect(&mut rig.client, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n").await;
    rig.client.write_all(GET).await.unwrap();
    expect(&mut engine, GET).await;
}

#[tokio::test]
async fn a_reply_that_is_cut_at_any_byte_never_looks_whole() {
    for reply in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    ] {
        for length in 0..reply.len() {
            let mut rig = rig();
            rig.client.write_all(GET).await.unwrap();
            let mut engine = rig.accept().await;
            expect(&mut engine, GET).await;
            engine.write_all(&reply.as_bytes()[..length]).await.unwrap();
            drop(engine);
            let mut all = Vec::new();
            within(rig.client.read_to_end(&mut all)).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&all), reply[..length]);
        }
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_call_at_dockerd() {
    let mut rig = rig();
    rig.client.write_all(GET).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, GET).await;
    engine.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    drop(rig.client);
    expect_end(&mut engine).await;
    within(rig.running).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_shown_to_dockerd_and_nothing_follows() {
    let mut rig = rig();
    let bad = b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
    rig.client.write_all(&[bad.as_slice(), b"POST /containers/create HTTP/1.1\r\n\r\n"].concat()).await.unwrap();
    let mut engine = rig.accept().await;
    let mut all = Vec::new();
    within(engine.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, bad);
    engine.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n400").await.unwrap();
    drop(engine);
    expect(&mut rig.client, b"HTTP/1.1 400 Bad Request\r\n\r\n400").await;
    expect_end(&mut rig.client).await;
}

#[tokio::test]
async fn calls_of_ours_are_gathered_and_answered_by_the_service() {
    let mut rig = rig();
    let head = "POST /v1.41/containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    rig.client.write_all(head.as_bytes()).await.unwrap();
    expect(&mut rig.client, CONTINUE).await;
    let body = "2\r\n{}\r\n0\r\n\r\n";
    send_split(&mut rig.client, format!("{body}GET /x HTTP/1.1\r\n\r\n").as_bytes(), 3).await;
    let mut engine = rig.accept().await;
    expect(&mut engine, format!("{head}{body}").as_bytes()).await;
    engine.write_all(CONTINUE).await.unwrap();
    send_split(
        &mut engine,
        b"HTTP/1.1 201 Created\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        9,
    )
    .await;
    expect(&mut rig.client, b"HTTP/1.1 201 Created\r\nA: b\r\nContent-Length: 9\r\n\r\n{} marked").await;
    expect(&mut engine, b"GET /x HTTP/1.1\r\n\r\n").await;
}

#[tokio::test]
async fn work_that_was_begun_is_finished_though_the_client_is_gone() {
    let mut rig = rig();
    let start = b"POST /containers/x/start HTTP/1.1\r\n\r\n";
    rig.client.write_all(start).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, start).await;
    drop(rig.client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!rig.running.is_finished());
    engine.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    within(rig.running).await.unwrap();
}

#[tokio::test]
async fn what_a_client_wanted_to_read_that_is_gone_is_read_no_more() {
    let mut rig = rig();
    let inspect = b"GET /containers/x/json HTTP/1.1\r\n\r\n";
    rig.client.write_all(inspect).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, inspect).await;
    drop(rig.client);
    expect_end(&mut engine).await;
    within(rig.running).await.unwrap();
}

#[tokio::test]
async fn a_clients_fin_goes_on_during_a_call_of_ours_and_what_dockerd_makes_of_it_comes_back() {
    let mut rig = rig();
    let prune = b"POST /containers/prune HTTP/1.1\r\n\r\n";
    rig.client.write_all(prune).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, prune).await;
    rig.client.shutdown().await.unwrap();
    expect_end(&mut engine).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok marked").await;
    expect_end(&mut rig.client).await;
}

#[tokio::test]
async fn a_request_behind_a_call_of_ours_waits_for_it() {
    let mut rig = rig();
    let start = b"POST /containers/x/start HTTP/1.1\r\n\r\n";
    rig.client.write_all(start).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, start).await;
    rig.client.write_all(GET).await.unwrap();
    rig.client.shutdown().await.unwrap();
    assert!(timeout(Duration::from_millis(20), engine.read(&mut [0; 8])).await.is_err());
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok marked").await;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
    expect_end(&mut engine).await;
}

#[tokio::test]
async fn line_ends_behind_a_post_that_was_answered_here_do_not_come_to_dockerd() {
    let Rig { engine, path, stop, _folder, .. } = rig();
    let (mut client, near) = UnixStream::pair().unwrap();
    let refuse = async |asked: Asked| {
        let reply = Manner::of(&asked.request).error(409, "taken").into();
        Ok::<_, Infallible>(Answered { reply, then: Behind::Next, upstream: asked.upstream })
    };
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Unix(path)))));
    let connection = Connection::new(Wire::Unix(near), upstream, service_fn(refuse), stop, TaskTracker::new());
    let running = tokio::spawn(connection.run(()));
    client.write_all(b"POST /containers/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    let mut answer = [0; 12];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 409");
    client.write_all(&[b"\r\n", GET].concat()).await.unwrap();
    let mut engine = within(engine.accept()).await.unwrap().0;
    expect(&mut engine, GET).await;
    drop(client);
    within(running).await.unwrap();
}

#[tokio::test]
async fn a_client_that_waits_in_dockerds_full_queue_may_leave_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let engine = tokio::net::UnixSocket::new_stream().unwrap();
    engine.bind(&path).unwrap();
    let _engine = engine.listen(0).unwrap();
    let engine = Engine::Unix(path);
    let queued: Vec<Wire> = std::iter::from_fn(|| Wire::connect_at_once(&engine)).collect();
    assert!(!queued.is_empty());
    let (mut client, near) = UnixStream::pair().unwrap();
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(engine))));
    let stop = CancellationToken::new();
    let connection = Connection::new(Wire::Unix(near), upstream, service_fn(marked), stop, TaskTracker::new());
    let running = tokio::spawn(connection.run(()));
    client.write_all(GET).await.unwrap();
    assert!(timeout(Duration::from_millis(50), client.read(&mut [0; 8])).await.is_err(), "it did not wait");
    drop(client);
    within(running).await.unwrap();
}

#[tokio::test]
async fn a_body_that_must_be_read_and_is_too_long_or_broken_goes_nowhere() {
    for (text, status) in [
        (format!("POST /containers/create HTTP/1.1\r\nContent-Length: {}\r\n\r\n", LONGEST_BODY + 1), "413"),
        ("POST /containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_owned(), "400"),
        ("POST /v1.18/containers/x/start HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_owned(), "400"),
        (format!("POST /networks/x/connect HTTP/1.1\r\nContent-Length: {}\r\n\r\n", LONGEST_BODY + 1), "413"),
    ] {
        let mut rig = rig();
        rig.client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(rig.client.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("calico: read the body"), "{answer}");
        assert!(timeout(Duration::from_millis(20), rig.engine.accept()).await.is_err());
    }
}

#[tokio::test]
async fn of_a_connect_that_breaks_off_what_dockerd_reads_decides_and_the_rest_is_its_own_to_judge() {
    let broken =
        |body: &str| format!("POST /networks/x/connect HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{body}\r\nz");
    let mut theirs = rig();
    theirs.client.write_all(broken("them").as_bytes()).await.unwrap();
    let mut engine = theirs.accept().await;
    expect(&mut engine, broken("them").strip_suffix('z').unwrap().as_bytes()).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut theirs.client, OK).await;
    let mut ours = rig();
    ours.client.write_all(broken("ours").as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(ours.client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(timeout(Duration::from_millis(20), ours.engine.accept()).await.is_err());
}

#[tokio::test]
async fn dockerd_away_is_told_and_the_connection_goes_on() {
    let mut rig = rig();
    let engine = std::mem::replace(&mut rig.engine, UnixListener::bind(rig.path.with_extension("other")).unwrap());
    drop(engine);
    for _ in 0..2 {
        rig.client.write_all(GET).await.unwrap();
        let mut answer = vec![0; 16 * 1024];
        let count = within(rig.client.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/json\r\n"), "{answer}");
        assert!(answer.contains("docker.sock"), "{answer}");
    }
    std::fs::remove_file(&rig.path).unwrap();
    rig.engine = UnixListener::bind(&rig.path).unwrap();
    rig.client.write_all(GET).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, GET).await;
}

#[tokio::test]
async fn http_2_is_refused() {
    let mut rig = rig();
    rig.client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(rig.client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn idle_connections_end_with_the_process_and_with_dockerd() {
    let mut one = rig();
    one.stop.cancel();
    expect_end(&mut one.client).await;
    let mut two = rig();
    two.client.write_all(GET).await.unwrap();
    let mut engine = two.accept().await;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut two.client, OK).await;
    drop(engine);
    expect_end(&mut two.client).await;
}

#[tokio::test]
async fn a_client_that_has_just_come_when_the_process_is_to_end_is_answered() {
    let mut one = rig();
    let running = one.running;
    // The connection waits for its request by then, and one that has been served does not wait for another.
    tokio::task::yield_now().await;
    one.stop.cancel();
    tokio::task::yield_now().await;
    one.client.write_all(GET).await.unwrap();
    let mut engine = within(one.engine.accept()).await.unwrap().0;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut one.client, OK).await;
    expect_end(&mut one.client).await;
    within(running).await.unwrap();
}

/// One letter of a head held an upgrade up for as long as streams are waited for, and its sender was served by a node whose
/// parts had ended.
#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_when_the_process_is_to_end_has_no_more_time_than_a_client_that_has_just_come() {
    let mut served = rig();
    served.client.write_all(GET).await.unwrap();
    let mut engine = served.accept().await;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut served.client, OK).await;
    for mut rig in [rig(), served] {
        rig.client.write_all(&GET[..1]).await.unwrap();
        tokio::task::yield_now().await;
        let began = Instant::now();
        rig.stop.cancel();
        expect_end(&mut rig.client).await;
        rig.running.await.unwrap();
        assert!(began.elapsed() <= FIRST_TIME, "{:?}", began.elapsed());
    }
}

/// Each of its bytes gave it the same time again.
#[tokio::test(start_paused = true)]
async fn a_head_that_drips_when_the_process_is_to_end_has_no_more_time_than_one_that_does_not() {
    let Rig { mut client, stop, running, _folder, .. } = rig();
    client.write_all(&GET[..1]).await.unwrap();
    tokio::task::yield_now().await;
    let began = Instant::now();
    stop.cancel();
    let drips = async {
        for byte in &GET[1..] {
            tokio::time::sleep(FIRST_TIME / 4).await;
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        // A head that is whole is served, after far too long.
        began.elapsed()
    };
    let ended = async {
        running.await.unwrap();
        began.elapsed()
    };
    let (dripped, ended) = within(async { tokio::join!(drips, ended) }).await;
    assert!(ended <= FIRST_TIME && dripped <= FIRST_TIME * 2, "{ended:?}, {dripped:?}");
}

#[tokio::test]
async fn a_call_of_ours_behind_another_is_not_begun_any_more_when_the_process_is_to_end() {
    let mut rig = rig();
    let start = b"POST /containers/a/start HTTP/1.1\r\nHost: d\r\n\r\n";
    rig.client.write_all(&[GET, start].concat()).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, GET).await;
    rig.stop.cancel();
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
    expect_end(&mut rig.client).await;
    drop(rig.client);
    assert_eq!(within(engine.read(&mut [0; 64])).await.unwrap_or(0), 0, "dockerd got it");
}

/// `HTTP/1.10` is HTTP to what Go before 1.18 has built, and the start was carried out without our seeing it.
#[tokio::test]
async fn what_only_older_engines_read_is_shown_to_them_about_nothing() {
    let call = "POST /v1.41/containers/web/start";
    for (head, shown) in [
        (format!("{call} HTTP/1.10\r\nHost: d\r\n\r\n"), call.replace("v1.41/containers/web/start", &"-".repeat(26))),
        (format!("{call} HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: identity\r\n\r\n"), "POST /---".to_owned()),
        ("GET /_ping HTTP/1.10\r\nHost: d\r\n\r\n".to_owned(), "GET /_ping HTTP/1.10\r\n".to_owned()),
    ] {
        let mut rig = rig();
        rig.client.write_all(head.as_bytes()).await.unwrap();
        let mut engine = rig.accept().await;
        let mut got = vec![0; head.len()];
        within(engine.read_exact(&mut got)).await.unwrap();
        let got = String::from_utf8(got).unwrap();
        assert!(got.starts_with(&shown) && got.len() == head.len(), "{got:?}");
        assert_eq!(got.split_once("HTTP/").unwrap().1, head.split_once("HTTP/").unwrap().1);
    }
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let rig = rig();
    let (_, near) = UnixStream::pair().unwrap();
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Unix(rig.path.clone())))));
    let connection =
        Connection::new(Wire::Unix(near), upstream, service_fn(marked), rig.stop.clone(), TaskTracker::new());
    let size = size_of_val(&connection.run(()));
    assert!(size < 3 * 1024, "{size} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_has_its_time_and_a_connection_without_one_has_no_limit() {
    let mut rig = rig();
    // The clock jumps to the next timer whenever nothing is to be done.
    tokio::time::sleep(100 * HEAD_TIME).await;
    rig.client.write_all(GET).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, GET).await;
    engine.write_all(OK).await.unwrap();
    expect(&mut rig.client, OK).await;
    let began = Instant::now();
    for byte in &GET[..GET.len() - 1] {
        // It ends while the client still drips.
        if rig.client.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(HEAD_TIME / 10).await;
    }
    rig.running.await.unwrap();
    let took = began.elapsed();
    assert!((HEAD_TIME..HEAD_TIME * 6 / 5).contains(&took), "it ended after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_and_connections_between_requests_have_no_limit() {
    const DAY: Duration = Duration::from_hours(24);
    for head in ["HTTP/1.1 101 UPGRADED\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let mut rig = rig();
        rig.client.write_all(GET).await.unwrap();
        let mut engine = rig.accept().await;
        expect(&mut engine, GET).await;
        engine.write_all(OK).await.unwrap();
        expect(&mut rig.client, OK).await;
        // Then a reply that takes its time, and a stream on which nothing is said.
        tokio::time::sleep(DAY).await;
        rig.client.write_all(GET).await.unwrap();
        expect(&mut engine, GET).await;
        tokio::time::sleep(DAY).await;
        engine.write_all(head.as_bytes()).await.unwrap();
        expect(&mut rig.client, head.as_bytes()).await;
        for word in [b"one", b"two"] {
            tokio::time::sleep(DAY).await;
            rig.client.write_all(word).await.unwrap();
            expect(&mut engine, word).await;
            tokio::time::sleep(DAY).await;
            engine.write_all(word).await.unwrap();
            expect(&mut rig.client, word).await;
        }
        // One direction has ended; the other one has all its time.
        rig.client.shutdown().await.unwrap();
        expect_end(&mut engine).await;
        tokio::time::sleep(DAY).await;
        engine.write_all(b"late").await.unwrap();
        expect(&mut rig.client, b"late").await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_by_the_end_of_the_process_is_reset() {
    let rig = rig();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let near = Wire::Tcp(listener.accept().await.unwrap().0);
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(Engine::Unix(rig.path.clone())))));
    let connection = Connection::new(near, upstream, service_fn(marked), rig.stop.clone(), TaskTracker::new());
    let running = tokio::spawn(connection.run(()));
    let request = b"POST /containers/x/attach HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut engine = rig.accept().await;
    expect(&mut engine, request).await;
    let switch = b"HTTP/1.1 101 UPGRADED\r\n\r\nhello";
    engine.write_all(switch).await.unwrap();
    let mut got = vec![0; switch.len()];
    within(client.read_exact(&mut got)).await.unwrap();
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let ended = within(client.read(&mut [0; 8])).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
