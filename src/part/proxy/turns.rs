//! Turns: which thread takes the next client.
//!
//! Were all threads to wait at a socket, the kernel would wake them all for every client, and all but one in vain. So one
//! of them waits, and gives its turn to the one with the fewest connections when it has clearly more itself: clients that
//! come one after the other stay with a thread that is awake already, and many at a time are shared out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, watch};

/// By how many connections more a thread gives its turn away.
const CLEARLY: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    /// How many connections each thread has.
    open: Vec<AtomicUsize>,
    /// Whose turn it is.
    turn: watch::Sender<usize>,
}

/// The place of a connection: among all that there may be, and on its thread.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    turns: Arc<Turns>,
    thread: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.open[self.thread].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    pub(crate) fn new(threads: usize) -> Self {
        Turns { open: (0..threads).map(|_| AtomicUsize::new(0)).collect(), turn: watch::Sender::new(0) }
    }

    /// Waits until it is a thread's turn.
    pub(crate) async fn begins(&self, thread: usize) {
        // The sender is here, so this only ends with the turn.
        let _ = self.turn.subscribe().wait_for(|turn| *turn == thread).await;
    }

    /// Waits until it is not.
    pub(crate) async fn ends(&self, thread: usize) {
        let _ = self.turn.subscribe().wait_for(|turn| *turn != thread).await;
    }

    /// The place of a connection that a thread has taken; the turn may be another's now.
    pub(crate) fn taken(self: &Arc<Self>, thread: usize, permit: OwnedSemaphorePermit) -> Place {
        let own = self.open[thread].fetch_add(1, Ordering::Relaxed) + 1;
        let open = self.open.iter().map(|open| open.load(Ordering::Relaxed)).enumerate();
        if let Some((idlest, fewest)) = open.min_by_key(|(_, open)| *open)
            && own > fewest + CLEARLY
        {
            self.turn.send_replace(idlest);
        }
        Place { _permit: permit, turns: Arc::clone(self), thread }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn clients_one_after_the_other_stay_with_a_thread_and_many_are_shared_out() {
        let (turns, room) = (Arc::new(Turns::new(3)), Arc::new(Semaphore::new(100)));
        let turn = || *turns.turn.borrow();
        let take = || turns.taken(turn(), Arc::clone(&room).try_acquire_owned().unwrap());
        for _ in 0..20 {
            drop(take());
            assert_eq!(turn(), 0);
        }
        let places: Vec<Place> = (0..60).map(|_| take()).collect();
        let open = || turns.open.iter().map(|open| open.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(open().iter().all(|open| (15..=25).contains(open)), "{:?}", open());
        turns.begins(turn()).await;
        turns.ends(turn() + 1).await;
        drop(places);
        assert_eq!((open(), room.available_permits()), (vec![0, 0, 0], 100));
    }
}
