//! Bodies so long that most of them is spliced: every byte arrives though nothing follows it, and nothing that follows a
//! message is taken for a part of it. dockerd is at a unix socket, as it mostly is, or at TCP.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

use super::*;

/// The sizes of chunks. Of some nearly all is spliced, of some the end, of some nothing. Long ones come behind long ones and
/// behind short ones, and the first is of the size from which on a splice pays.
const CHUNKS: [usize; 9] = [16_384, 70_000, 200_000, 1, 4_096, 200_000, 15, 17, 40_000];

const LENGTH: usize = 300_000;

/// How far around each bound a message breaks off.
const AROUND: usize = 20;

/// How many connections are open at a time: no more than there are pipes for.
const AT_ONCE: usize = 16;

/// Bytes that are others at each place.
fn content(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

struct Message {
    bytes: Vec<u8>,
    /// Where the head, each chunk's content and the whole end, and where the contents begin.
    bounds: Vec<usize>,
}

impl Message {
    fn chunked(first_line: &str) -> Self {
        let mut bytes = format!("{first_line}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
        let mut bounds = vec![bytes.len()];
        let mut left = content(CHUNKS.iter().sum());
        for size in CHUNKS {
            bytes.extend(format!("{size:x};e=f\r\n").as_bytes());
            bounds.push(bytes.len());
            bytes.extend(left.drain(..size));
            bounds.push(bytes.len());
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\nT: u\r\n\r\n");
        bounds.push(bytes.len());
        Message { bytes, bounds }
    }

    fn with_length(first_line: &str) -> Self {
        let mut bytes = format!("{first_line}\r\nContent-Length: {LENGTH}\r\n\r\n").into_bytes();
        let head = bytes.len();
        bytes.extend(content(LENGTH));
        Message { bounds: vec![head, bytes.len()], bytes }
    }

    /// How long its parts are that end around its bounds, its head whole.
    fn lengths(&self) -> BTreeSet<usize> {
        let around = |bound: &usize| (bound - AROUND).max(self.bounds[0])..=(bound + AROUND).min(self.bytes.len());
        self.bounds.iter().flat_map(around).collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Where the fake dockerd listens.
enum Dockerd {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _folder: TempDir },
}

impl Dockerd {
    async fn accept(&self) -> Box<dyn Stream> {
        match self {
            Dockerd::Tcp(listener) => Box::new(listener.accept().await.unwrap().0),
            Dockerd::Unix { listener, .. } => Box::new(listener.accept().await.unwrap().0),
        }
    }
}

/// A client of a connection, and the dockerd that this will call.
async fn stage(over_unix: bool) -> (TcpStream, Dockerd) {
    let (dockerd, engine) = if over_unix {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        (Dockerd::Unix { listener: UnixListener::bind(&path).unwrap(), _folder: folder }, Engine::Unix(path))
    } else {
        let (listener, address) = listen().await;
        (Dockerd::Tcp(listener), Engine::Tcp(address.to_string()))
    };
    let (front, address) = listen().await;
    let client = TcpStream::connect(address).await.unwrap();
    let (near, _) = front.accept().await.unwrap();
    near.set_nodelay(true).unwrap();
    let upstream = Upstream::new(Arc::new(Dialer::new(Arc::new(engine))));
    let (stop, arrivals) = (CancellationToken::new(), TaskTracker::new());
    let connection = Connection::new(Wire::Tcp(near), upstream, service_fn(marked), stop, arrivals);
    tokio::spawn(connection.run(()));
    (client, dockerd)
}

/// Plays once for each length and each kind of socket.
async fn play_all<F: Future<Output = ()>>(lengths: impl IntoIterator<Item = usize>, play: impl Fn(usize, bool) -> F) {
    let plays = lengths.into_iter().flat_map(|length| [(length, false), (length, true)]);
    stream::iter(plays).for_each_concurrent(AT_ONCE, |(length, over_unix)| play(length, over_unix)).await;
}

/// What came is what was sent; of bytes that differ not all is told.
#[track_caller]
fn arrived(got: &[u8], sent: &[u8]) {
    if got != sent {
        let same = got.iter().zip(sent).take_while(|(got, sent)| got == sent).count();
        panic!("of {} bytes {same} came as they are", sent.len());
    }
}

/// Sends bytes, and reads as many, behind which nothing comes that would bring them along.
async fn carry(from: &mut (impl AsyncWrite + Unpin), to: &mut (impl AsyncRead + Unpin), bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    let (sent, read) = within(async { tokio::join!(from.write_all(bytes), to.read_exact(&mut got)) }).await;
    sent.unwrap();
    read.unwrap();
    arrived(&got, bytes);
}

/// How a stream ends on which nothing comes any more.
async fn last(stream: &mut (impl AsyncRead + Unpin)) -> Last {
    let mut more = [0; 64];
    match within(stream.read(&mut more)).await {
        Ok(0) => Last::Fin,
        Ok(count) => panic!("nobody sent {}", more[..count].escape_ascii()),
        Err(_) => Last::Reset,
    }
}

/// It was kept back for the rest of its chunk, for 200 ms.
#[tokio::test]
async fn the_start_of_a_chunk_does_not_wait_for_the_rest_of_it() {
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let (mut client, dockerd) = stage(true).await;
        client.write_all(GET).await.unwrap();
        let mut engine = within(dockerd.accept()).await;
        let chunk = [format!("{:x}\r\n", CHUNKS[2]).into_bytes(), content(CHUNKS[2]), b"\r\n".to_vec()].concat();
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sent = [head.as_slice(), &chunk, &chunk].concat();
        // dockerd sends the end of a chunk with the start of the next one.
        let (sent, end) = sent.split_at(sent.len() - 2);
        carry(&mut engine, &mut client, sent).await;
        let began = Instant::now();
        carry(&mut engine, &mut client, &[end, b"20000\r\n", &[b'x'; 100]].concat()).await;
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
}

#[tokio::test]
async fn every_byte_of_a_long_reply_arrives_before_the_next_one_and_whatever_comes_behind_it() {
    for reply in [Message::chunked("HTTP/1.1 200 OK"), Message::with_length("HTTP/1.1 200 OK")] {
        let reply = &reply;
        for resets in [false, true] {
            play_all(reply.lengths(), |length, over_unix| async move {
                let (mut client, dockerd) = stage(over_unix).await;
                client.write_all(GET).await.unwrap();
                let mut engine = within(dockerd.accept()).await;
                // Closed with a byte unread, a socket resets.
                let read = GET.len() - usize::from(resets);
                within(engine.read_exact(&mut vec![0; read])).await.unwrap();
                carry(&mut engine, &mut client, &reply.bytes[..length]).await;
                drop(engine);
                let last = last(&mut client).await;
                assert!(last == Last::Fin || resets, "up to {length}: {last:?}");
            })
            .await;
        }
        // Nothing is behind it, and then the next reply, which comes with it.
        play_all([reply.bytes.len()], |_, over_unix| async move {
            let (mut client, dockerd) = stage(over_unix).await;
            client.write_all(&[GET, GET].concat()).await.unwrap();
            let mut engine = within(dockerd.accept()).await;
            within(engine.read_exact(&mut vec![0; GET.len()])).await.unwrap();
            carry(&mut engine, &mut client, &[&reply.bytes, OK, OK].concat()).await;
        })
        .await;
    }
}

#[tokio::test]
async fn every_byte_of_a_long_request_arrives_before_the_next_one_and_whatever_comes_behind_it() {
    let line = "PUT /x HTTP/1.1\r\nHost: localhost";
    for request in [Message::chunked(line), Message::with_length(line)] {
        let request = &request;
        for resets in [false, true] {
            play_all(request.lengths(), |length, over_unix| async move {
                let (mut client, dockerd) = stage(over_unix).await;
                let part = &request.bytes[..length];
                let mut got = vec![0; length];
                let engine = async {
                    let mut engine = dockerd.accept().await;
                    engine.read_exact(&mut got).await.unwrap();
                    engine
                };
                let (sent, mut engine) = within(async { tokio::join!(client.write_all(part), engine) }).await;
                sent.unwrap();
                arrived(&got, part);
                if resets {
                    client.set_zero_linger().unwrap();
                    drop(client);
                    assert_ne!(last(&mut engine).await, Last::Open);
                    return;
                }
                client.shutdown().await.unwrap();
                assert_eq!(last(&mut engine).await, Last::Fin, "up to {length}");
                engine.write_all(OK).await.unwrap();
                drop(engine);
                assert_eq!(receive(&mut client, usize::MAX).await, Got(OK.to_vec(), Last::Fin), "up to {length}");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_request_and_its_reply_go_on_in_turns_chunk_by_chunk() {
    play_all([20], |rounds, over_unix| async move {
        let (mut client, dockerd) = stage(over_unix).await;
        let request = b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut engine = within(dockerd.accept()).await;
        within(engine.read_exact(&mut vec![0; request.len()])).await.unwrap();
        carry(&mut engine, &mut client, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for round in 1..=rounds {
            let size = round * round * 100;
            let chunk = [format!("{size:x}\r\n").into_bytes(), content(size), b"\r\n".to_vec()].concat();
            carry(&mut client, &mut engine, &chunk).await;
            carry(&mut engine, &mut client, &chunk).await;
        }
        // The next call has them to itself.
        carry(&mut client, &mut engine, b"0\r\n\r\n").await;
        carry(&mut engine, &mut client, b"0\r\n\r\n").await;
        carry(&mut client, &mut engine, GET).await;
        carry(&mut engine, &mut client, OK).await;
    })
    .await;
}
