//! The floor: what anything that stands between two sockets adds, even if it does nothing but carry bytes.

use std::path::PathBuf;

use tokio::net::{TcpListener, UnixStream};

use crate::{Arguments, Outcome};

/// `copy one|many ADDRESS:PORT PATH`: every connection to a TCP port is carried to a unix socket by tokio's own
/// `copy_bidirectional`, on a runtime of one thread or of one for each core.
pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let threads = arguments.value("copy")?;
    let (address, engine) = (arguments.value("copy")?, PathBuf::from(arguments.value("copy")?));
    let mut builder = match threads.as_str() {
        "one" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (mut client, _) = listener.accept().await?;
            let engine = engine.clone();
            tokio::spawn(async move {
                client.set_nodelay(true)?;
                let mut upstream = UnixStream::connect(engine).await?;
                tokio::io::copy_bidirectional(&mut client, &mut upstream).await
            });
        }
    })
}
