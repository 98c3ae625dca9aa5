use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::super::wire::set_up_tcp;
use super::*;

fn pair() -> (UnixStream, Wire) {
    let (far, near) = UnixStream::pair().unwrap();
    (far, Wire::Unix(near))
}

async fn tcp_pair() -> (TcpStream, Wire) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    set_up_tcp(&listener).unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (far, Wire::Tcp(listener.accept().await.unwrap().0))
}

#[tokio::test]
async fn a_clients_fin_is_passed_on_and_the_reply_still_arrives() {
    let (mut client, client_wire) = pair();
    let (mut engine, engine_wire) = pair();
    let relay = tokio::spawn(async move { tunnel(&client_wire, &engine_wire, "glued".into(), "early".into()).await });
    client.write_all(b" in").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    engine.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"glued in");
    tokio::time::sleep(Duration::from_millis(50)).await;
    engine.write_all(b" late").await.unwrap();
    drop(engine);
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"early late");
    drop(client);
    relay.await.unwrap();
}

#[tokio::test]
async fn many_bytes_go_both_ways_at_once() {
    let (client, client_wire) = tcp_pair().await;
    let (engine, engine_wire) = pair();
    let relay = tokio::spawn(async move { tunnel(&client_wire, &engine_wire, BytesMut::new(), BytesMut::new()).await });
    const COUNT: usize = 8 << 20;
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut engine_reads, mut engine_writes) = engine.into_split();
    let send = |byte: u8| vec![byte; COUNT];
    let (up, down) = (send(1), send(2));
    let (mut seen_up, mut seen_down) = (Vec::new(), Vec::new());
    let (a, b, c, d) = tokio::join!(
        async { client_writes.write_all(&up).await.map(|()| drop(client_writes)) },
        async { engine_writes.write_all(&down).await.map(|()| drop(engine_writes)) },
        engine_reads.read_to_end(&mut seen_up),
        client_reads.read_to_end(&mut seen_down),
    );
    a.unwrap();
    b.unwrap();
    assert_eq!((c.unwrap(), d.unwrap()), (COUNT, COUNT));
    assert!(seen_up == up && seen_down == down);
    drop((client_reads, engine_reads));
    relay.await.unwrap();
}

#[tokio::test]
async fn a_client_that_is_gone_ends_an_idle_stream() {
    // Closed at once, closed after a half-close, and reset.
    for half_first in [false, true] {
        let (mut client, client_wire) = pair();
        let (_engine, engine_wire) = pair();
        let relay =
            tokio::spawn(async move { tunnel(&client_wire, &engine_wire, BytesMut::new(), BytesMut::new()).await });
        if half_first {
            client.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!relay.is_finished());
        }
        drop(client);
        assert_eq!(timeout(Duration::from_secs(4), relay).await.unwrap().unwrap(), End::ClientGone);
    }
    let (mut client, client_wire) = tcp_pair().await;
    let (_engine, engine_wire) = pair();
    let relay = tokio::spawn(async move { tunnel(&client_wire, &engine_wire, BytesMut::new(), BytesMut::new()).await });
    client.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!relay.is_finished(), "a FIN is no goodbye");
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(timeout(Duration::from_secs(4), relay).await.unwrap().unwrap(), End::ClientGone);
}

#[tokio::test]
async fn a_client_may_speak_on_after_the_other_side_has_ended_by_half() {
    let (mut client, client_wire) = pair();
    let (mut engine, engine_wire) = pair();
    let relay = tokio::spawn(async move { tunnel(&client_wire, &engine_wire, BytesMut::new(), BytesMut::new()).await });
    engine.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    client.write_all(b"more").await.unwrap();
    let mut more = [0; 4];
    engine.read_exact(&mut more).await.unwrap();
    drop(engine);
    assert_eq!(timeout(Duration::from_secs(4), relay).await.unwrap().unwrap(), End::Finished);
}

#[tokio::test]
async fn an_engine_that_breaks_off_while_much_comes_from_it_is_told_from_one_that_ends() {
    for breaks in [false, true] {
        let (mut client, client_wire) = tcp_pair().await;
        let (mut engine, engine_wire) = pair();
        let inbound = if breaks { BytesMut::from("never read") } else { BytesMut::new() };
        let relay = tokio::spawn(async move { tunnel(&client_wire, &engine_wire, inbound, BytesMut::new()).await });
        if breaks {
            engine.readable().await.unwrap();
        }
        let (mut all, much) = (Vec::new(), vec![7; 4 << 20]);
        let (written, read) = tokio::join!(
            async {
                let written = engine.write_all(&much).await;
                // To close with bytes unread is a reset.
                drop(engine);
                written
            },
            async {
                let read = client.read_to_end(&mut all).await;
                drop(client);
                read
            }
        );
        written.unwrap();
        read.unwrap();
        assert_eq!(all.len(), much.len());
        let end = relay.await.unwrap();
        assert_eq!(end == End::Broken, breaks, "{end:?}");
    }
}
