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
mod turns;
mod upstream;

use std::num::NonZero;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::calls::Calls;
use self::connection::Connection;
use self::listen::Listener;
use self::turns::{Place, Turns};
use self::upstream::{Dialer, Upstream};
use crate::edge::clock::{self, sleep};
use crate::edge::pipe;
use crate::edge::wire::{Engine, Wire};
use crate::model::fault::Fault;
use crate::part::network::Network;

/// How long accepting pauses when descriptors or memory have run out: the backlog holds the clients meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How many threads carry connections at most: dockerd is busy long before so many are.
const MOST_THREADS: usize = 8;

/// When a proxy ends.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    /// Nobody is accepted any more. Connections that wait for a further request end at once, those that wait for their first
    /// one soon, and the others when they are done.
    pub(crate) stop: CancellationToken,
    /// What is still open then ends now.
    pub(crate) cut: CancellationToken,
}

/// What the proxy serves, and by which means.
pub(crate) struct Served {
    pub(crate) listeners: Arc<[Listener]>,
    /// By which names clients may call us over TCP, besides addresses, localhost and a certificate's.
    pub(crate) names: Arc<[String]>,
    pub(crate) engine: Engine,
    pub(crate) network: Arc<Network>,
    /// Those who may still ask for what other parts do.
    pub(crate) arrivals: TaskTracker,
    /// The calls on networks that are under way.
    pub(crate) calls: TaskTracker,
    /// How many connections there may be at a time; the kernel's queue holds who comes then.
    pub(crate) most: usize,
}

/// Serves Docker's API at some sockets until told to end.
///
/// Each connection lives on one thread with an event loop of its own: waking another thread for every message would
/// cost more than all that is done with it.
///
/// # Errors
/// `World`: a thread could not be set up.
pub(crate) async fn serve(served: Served, ends: Ends) -> Result<(), Fault> {
    let Served { listeners, names, engine, network, arrivals, calls, most } = served;
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    let (engine, room) = (Arc::new(engine), Arc::new(Semaphore::new(most)));
    let turns = Arc::new(Turns::new(threads));
    let mut carrying: JoinSet<Result<(), Fault>> = JoinSet::new();
    for thread in 0..threads {
        let calls = Calls::new(Arc::clone(&network), calls.clone(), Handle::current());
        let (engine, listeners) = (Arc::clone(&engine), Arc::clone(&listeners));
        let (room, names, ends) = (Arc::clone(&room), Arc::clone(&names), ends.clone());
        let (turns, arrivals, clock) = (Arc::clone(&turns), arrivals.clone(), Handle::current());
        carrying.spawn_blocking(move || {
            clock::borrow_from(clock);
            let fault = |error: std::io::Error| Fault::World(format!("set up a thread of the proxy: {error}"));
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_io().on_thread_park(pipe::rest).build().map_err(fault)?;
            runtime.block_on(async {
                let dialer = Arc::new(Dialer::new(engine));
                let connect = |client: Wire, place: Place| {
                    let upstream = Upstream::new(Arc::clone(&dialer));
                    let (calls, stop, arrivals) = (calls.clone(), ends.stop.clone(), arrivals.clone());
                    let connection =
                        Connection::new(client, upstream, calls, stop, arrivals).known_as(Arc::clone(&names));
                    // Boxed, since it is moved a dozen times on its way into a task, and out of it at its end.
                    Box::pin(connection.run(place))
                };
                let at = Post { thread, turns, room, ends: &ends };
                let accepting = listeners.iter().map(|listener| accept_from(listener, connect, &at));
                let connections = futures_util::future::join_all(accepting).await;
                // A socket that nobody accepts from must not be open.
                drop(listeners);
                futures_util::future::join_all(connections.into_iter().map(|open| drain(open, &ends))).await;
            });
            Ok(())
        });
    }
    drop(listeners);
    while let Some(ended) = carrying.join_next().await {
        ended.map_err(|error| Fault::World(format!("a thread of the proxy panicked: {error}")))??;
    }
    Ok(())
}

/// Where a thread stands.
struct Post<'a> {
    thread: usize,
    turns: Arc<Turns>,
    room: Arc<Semaphore>,
    ends: &'a Ends,
}

/// Takes clients from one socket on this thread until told to stop; answers the connections that are still open.
async fn accept_from<F>(listener: &Listener, connect: impl Fn(Wire, Place) -> F, at: &Post<'_>) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let Post { thread, turns, room, ends } = at;
    let mut connections = JoinSet::new();
    let mut door = None;
    let mut exhausted = false;
    let mut stop = pin!(ends.stop.cancelled());
    loop {
        let accept = async {
            turns.begins(*thread).await;
            // The semaphore is never closed.
            let permit = Arc::clone(room).acquire_owned().await.map_err(std::io::Error::other)?;
            let door = match &mut door {
                Some(door) => door,
                none => none.insert(listener.door()?),
            };
            tokio::select! {
                accepted = door.accept() => accepted.map(|client| Some((client, permit))),
                () = turns.ends(*thread) => Ok(None),
            }
        };
        tokio::select! {
            accepted = accept => match accepted {
                Ok(Some((client, permit))) => {
                    exhausted = false;
                    connections.spawn(connect(client, turns.taken(*thread, permit)));
                    // It is served before the next one is looked for.
                    yield_now().await;
                }
                // Another thread's turn: this one is not to be woken for clients any more.
                Ok(None) => door = None,
                // A client that left before it was accepted is no reason to pause, but the error of a socket that
                // cannot be accepted from comes back at once, and would spin.
                Err(error) => {
                    if !std::mem::replace(&mut exhausted, true) {
                        tracing::warn!(%error, "a connection was not accepted; it waits until that is possible again");
                    }
                    sleep(EXHAUSTED_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => note_panic(ended),
            () = &mut stop => return connections,
        }
    }
}

/// Waits for connections to end; what is still open when it must be is cut.
async fn drain(mut connections: JoinSet<()>, ends: &Ends) {
    loop {
        tokio::select! {
            ended = connections.join_next() => match ended {
                Some(ended) => note_panic(ended),
                None => return,
            },
            () = ends.cut.cancelled() => break,
        }
    }
    tracing::info!(streams = connections.len(), "open streams are cut");
    connections.shutdown().await;
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
