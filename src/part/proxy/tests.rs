//! The accept loop, with connections whose service panics when it is asked.

use std::convert::Infallible;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tower::service_fn;

use super::connection::ours::{Answered, Asked};
use tokio::time::timeout;

use super::*;

async fn ask(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = timeout(Duration::from_secs(5), client.read(&mut answer)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_a_stop_ends_the_idle_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let engine = UnixListener::bind(&path).unwrap();
    let socket = listen::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let listener = Listener::tcp(socket, None).unwrap();
    let stop = CancellationToken::new();
    let ends = Ends { stop: stop.clone(), cut: CancellationToken::new() };
    let serving = tokio::spawn(async move {
        let dialer = Arc::new(Dialer::new(Arc::new(Engine::Unix(path))));
        let room = Arc::new(Semaphore::new(8));
        let service = service_fn(|asked: Asked| async move {
            assert!(!asked.body.is_empty(), "asked for it");
            Ok::<Answered, Infallible>(Answered {
                reply: asked.raw,
                then: upstream::Behind::Next,
                upstream: asked.upstream,
            })
        });
        let connect = |client: Wire, place| {
            Connection::new(client, Upstream::new(Arc::clone(&dialer)), service, ends.stop.clone(), TaskTracker::new())
                .run(place)
        };
        let at = Post { thread: 0, turns: Arc::new(Turns::new(1)), room, ends: &ends };
        let open = accept_from(&listener, connect, &at).await;
        drain(open, &ends).await;
    });
    let dockerd = tokio::spawn(async move {
        let mut stream = engine.accept().await.unwrap().0;
        let mut request = [0; 256];
        while stream.read(&mut request).await.unwrap() > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    });
    let mut good = TcpStream::connect(address).await.unwrap();
    let ping = "GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(ask(&mut good, ping).await.ends_with("ok"));
    let mut bad = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut bad, "POST /containers/x/start HTTP/1.1\r\nHost: localhost\r\n\r\n").await, "");
    assert!(ask(&mut good, ping).await.ends_with("ok"));
    let mut foreign = TcpStream::connect(address).await.unwrap();
    let answer = ask(&mut foreign, "POST /containers/x/start HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n"), "{answer}");
    drop(foreign);
    stop.cancel();
    timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
    assert_eq!(good.read(&mut [0; 8]).await.unwrap(), 0);
    dockerd.await.unwrap();
}

#[tokio::test]
async fn a_client_over_tcp_is_written_to_at_once_and_asked_whether_it_lives() {
    let socket = listen::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let door = Listener::tcp(socket, None).unwrap().door().unwrap();
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), door.accept());
    let Ok(Wire::Tcp(accepted)) = accepted else { panic!("{accepted:?}") };
    assert!(getsockopt(&accepted, sockopt::TcpNoDelay).unwrap());
    assert!(getsockopt(&accepted, sockopt::KeepAlive).unwrap());
    let times = [getsockopt(&accepted, sockopt::TcpKeepIdle), getsockopt(&accepted, sockopt::TcpKeepInterval)];
    let silence = times.map(Result::unwrap).iter().sum::<u32>();
    let asked = getsockopt(&accepted, sockopt::TcpKeepCount).unwrap();
    assert!(silence <= 10 && asked <= 3, "asked {asked} times, {times:?}");
}
