//! The parts of a node: started under their names, and ended in an order that nobody notices.
//!
//! At the end nobody is let in any more, calls on networks that are under way get their time, since they need the other
//! parts, then those stop, and streams that are still open go on for as long as the operator gave them.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::edge::handover::Successor;
use crate::model::fault::Fault;
use crate::part::proxy::Ends;
use crate::part::under_way::or_never;

/// How long parts may take to end. No flag shortens it: BIRD and the embedded etcd end in their own way in that time, however
/// little patience there is with clients.
const PARTS_TIME: Duration = Duration::from_secs(10);

/// The parts that run, each under its name.
pub(super) struct Parts {
    tasks: JoinSet<(&'static str, Result<(), Fault>)>,
    stop: CancellationToken,
    /// How long they may take to end.
    time: Duration,
    /// The proxy outlasts the others.
    proxy: JoinSet<Result<(), Fault>>,
    ends: Ends,
    /// Those who may still ask for what other parts do.
    pub(super) arrivals: TaskTracker,
    /// The calls on networks that are under way.
    pub(super) calls: TaskTracker,
}

/// Why the parts end.
pub(super) enum Cause {
    Signal,
    /// Another node takes the place of this one.
    Successor(Successor),
    /// One of them could not go on.
    Fault(Fault),
}

impl Parts {
    pub(super) fn new() -> Self {
        Parts {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            time: PARTS_TIME,
            proxy: JoinSet::new(),
            ends: Ends { stop: CancellationToken::new(), cut: CancellationToken::new() },
            arrivals: TaskTracker::new(),
            calls: TaskTracker::new(),
        }
    }

    /// Starts a part, which is told when to stop.
    pub(super) fn start<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        let part = part(self.stop.clone());
        self.tasks.spawn(async move { (name, part.await) });
    }

    /// Starts a part that nothing can go wrong with.
    pub(super) fn keep<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, |stop| {
            let part = part(stop);
            async move {
                part.await;
                Ok(())
            }
        });
    }

    /// Starts the proxy.
    pub(super) fn serve<F>(&mut self, proxy: impl FnOnce(Ends) -> F)
    where
        F: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        self.proxy.spawn(proxy(self.ends.clone()));
    }

    /// Waits for a reason to end.
    pub(super) async fn cause(&mut self, signals: &mut Signals, successor: impl Future<Output = Successor>) -> Cause {
        tokio::select! {
            () = signals.next() => Cause::Signal,
            successor = successor => Cause::Successor(successor),
            Some(done) = self.tasks.join_next() => Cause::Fault(by_itself(done)),
            Some(done) = self.proxy.join_next() => {
                Cause::Fault(by_itself(done.map(|ended| ("the proxy", ended))))
            }
        }
    }

    /// Waits for a moment without calls on networks, for so long at most. Whoever comes meanwhile is served.
    pub(super) async fn quiet(&self, signals: &mut Signals, patience: Duration) {
        self.calls.close();
        tokio::select! {
            () = self.calls.wait() => {}
            () = sleep(patience) => {}
            () = signals.next() => {}
        }
    }

    /// Ends all parts but what is still open in the proxy: those first who need the others, for so long at most.
    pub(super) async fn stop(&mut self, signals: &mut Signals, patience: Duration) -> Vec<Fault> {
        self.ends.stop.cancel();
        self.arrivals.close();
        self.calls.close();
        let done = async {
            self.arrivals.wait().await;
            self.calls.wait().await;
        };
        tokio::select! {
            () = done => {}
            () = sleep(patience) => tracing::warn!(calls = self.calls.len(), "calls that are under way are given up"),
            () = signals.next() => self.ends.cut.cancel(),
        }
        self.stop.cancel();
        let mut faults = Vec::new();
        // One that waits for a dockerd that hangs would hold up the end for as long as that does.
        let late = sleep(self.time);
        tokio::pin!(late);
        loop {
            let done = tokio::select! {
                done = self.tasks.join_next() => done,
                // As after a kill: what is half done is finished by the next node.
                () = signals.next() => {
                    tracing::warn!("told to end once more: what is under way is cut off");
                    self.ends.cut.cancel();
                    self.tasks.abort_all();
                    continue;
                }
                () = &mut late, if !late.is_elapsed() => {
                    tracing::warn!(parts = self.tasks.len(), "what is under way takes too long and is cut off");
                    self.tasks.abort_all();
                    continue;
                }
            };
            match done {
                None => return faults,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(fault)))) => faults.push(fault.during(name)),
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => faults.push(Fault::World(format!("a part panicked: {error}"))),
            }
        }
    }

    /// Waits for the streams that are still open in the proxy; without patience for as long as they like.
    pub(super) async fn drain(mut self, signals: &mut Signals, patience: Option<Duration>) -> Option<Fault> {
        let late = or_never(patience.map(sleep));
        let mut ended = tokio::select! {
            ended = self.proxy.join_next() => ended,
            () = late => None,
            () = signals.next() => None,
        };
        if ended.is_none() {
            self.ends.cut.cancel();
            ended = self.proxy.join_next().await;
        }
        match ended? {
            Ok(ended) => ended.err(),
            Err(error) => Some(Fault::World(format!("a part panicked: {error}"))),
        }
    }
}

/// The signals that end the process.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Fault> {
        let fault = |error| Fault::World(format!("listen for the signals SIGTERM and SIGINT: {error}"));
        let (term, int) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        Ok(Signals { term: term.map_err(fault)?, int: int.map_err(fault)? })
    }

    /// # Cancel safety
    /// No signal is lost.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn by_itself(done: Result<(&'static str, Result<(), Fault>), tokio::task::JoinError>) -> Fault {
    match done {
        Ok((name, Ok(()))) => Fault::World(format!("{name} ended by itself")),
        Ok((name, Err(fault))) => fault.during(name),
        Err(error) => Fault::World(format!("a part panicked: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_does_not_end_is_cut_off_after_its_time_and_the_others_end_as_they_want() {
        let (mut parts, mut signals) = (Parts::new(), Signals::listen().unwrap());
        parts.keep("one that hangs", |_| std::future::pending());
        parts.start("one that ends with a fault", |stop| async move {
            stop.cancelled().await;
            Err(Fault::World("the reason".to_owned()))
        });
        parts.time = Duration::from_millis(50);
        let stopping = parts.stop(&mut signals, Duration::ZERO);
        let faults = tokio::time::timeout(Duration::from_mins(1), stopping).await.expect("it ends");
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults, ["one that ends with a fault: the reason"]);
    }
}
