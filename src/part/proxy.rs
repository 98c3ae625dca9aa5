//! The proxy: Docker's API on a socket of ours, with a network from us for the containers that wish for one.
//!
//! To everybody else it must not be there. So it is a tunnel that reads heads: [`connection`] follows each message's
//! framing ([`head`], [`framing`]) and moves the bytes as they are; the calls of [`plan::call`](crate::plan::call) are
//! gathered and answered by [`calls`]. Every client has its own connection to dockerd ([`upstream`]).
//!
//! Limits: what is refused that dockerd would accept is told in `docs/transparency.md`. HTTP/2 is not spoken.

mod answer;
mod calls;
mod connection;
mod fields;
mod framing;
mod head;
pub(crate) mod listen;
mod origin;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::calls::Calls;
use self::connection::Connection;
use self::listen::Listener;
use self::upstream::Upstream;
use crate::edge::relay::{Engine, Wire};
use crate::part::network::Network;

/// How long streams may go on once the process was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How long accepting pauses when descriptors or memory have run out: the backlog holds the clients meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Serves Docker's API at some sockets until told to stop. Then nobody is accepted any more, connections without a
/// request end at once and the others when they are done, or with [`DRAIN`].
///
/// `names` are those by which clients may call us over TCP, besides addresses, localhost and a certificate's.
pub(crate) async fn serve(
    listeners: Vec<Listener>,
    names: Arc<[String]>,
    engine: Engine,
    network: Arc<Network>,
    stop: CancellationToken,
) {
    let engine = Arc::new(engine);
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (calls, engine, stop) = (Calls::new(Arc::clone(&network)), Arc::clone(&engine), stop.clone());
        let names = Arc::clone(&names);
        accepting.spawn(async move {
            let connect = |client: Wire| {
                let upstream = Upstream::new(Arc::clone(&engine));
                Connection::new(client, upstream, calls.clone(), stop.clone()).known_as(Arc::clone(&names)).run()
            };
            serve_one(&listener, connect, &stop).await;
        });
    }
    while let Some(ended) = accepting.join_next().await {
        note_panic(ended);
    }
}

/// Serves one socket.
async fn serve_one<F>(listener: &Listener, connect: impl Fn(Wire) -> F, stop: &CancellationToken)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(client) => {
                    connections.spawn(connect(client));
                }
                // A client that left before it was accepted is no reason to pause, but the error of a socket that
                // cannot be accepted from comes back at once, and would spin.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(EXHAUSTED_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => note_panic(ended),
            () = stop.cancelled() => break,
        }
    }
    let drained = timeout(DRAIN, async {
        while let Some(ended) = connections.join_next().await {
            note_panic(ended);
        }
    });
    if drained.await.is_err() {
        tracing::info!(streams = connections.len(), "streams are cut: the time to drain them is over");
        connections.shutdown().await;
    }
}

/// A panic ends its connection and nothing else: the client sees it break off, everybody else goes on.
fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection panicked");
    }
}

#[cfg(test)]
mod tests;
