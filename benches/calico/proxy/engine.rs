//! A Docker engine that is nothing but sockets: so many idle streams as are measured are more than a real one bears.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::{Arguments, Outcome};

/// `engine PATH`: answers an attach with an upgrade and then says nothing, and everything else with an empty list.
pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let path = arguments.value("engine")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = UnixListener::bind(path)?;
        loop {
            let (client, _) = listener.accept().await?;
            // A client that breaks off ends its connection and nothing else.
            tokio::spawn(async move { serve(client).await });
        }
    })
}

async fn serve(mut client: UnixStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            if client.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let is_stream = head.windows(8).any(|eight| eight == b"/attach?");
        head.clear();
        if is_stream {
            client
                .write_all(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                .await?;
            let mut one = [0; 1];
            while client.read(&mut one).await? > 0 {}
            return Ok(());
        }
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]").await?;
    }
}
