//! Time on threads whose event loop keeps none.
//!
//! An event loop that keeps time asks for it around every wait, whether anybody sleeps or not. That is a good part of what
//! it costs to carry a message, and the connections of the proxy sleep almost never. So their threads borrow the clock of
//! the node's own runtime: what is made here is registered there, and wakes the task on its own thread.

use std::cell::RefCell;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, Timeout};

thread_local! {
    static LENDER: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// From now on this thread has its time from a runtime that keeps it.
pub(crate) fn borrow_from(lender: Handle) {
    LENDER.set(Some(lender));
}

/// Makes something that sleeps; on a thread that has borrowed no clock, by that of its own runtime.
fn with_clock<T>(make: impl FnOnce() -> T) -> T {
    LENDER.with_borrow(|lender| {
        let _inside = lender.as_ref().map(Handle::enter);
        make()
    })
}

/// [`tokio::time::sleep`].
pub(crate) fn sleep(duration: Duration) -> Sleep {
    with_clock(|| tokio::time::sleep(duration))
}

/// [`tokio::time::sleep_until`].
pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    with_clock(|| tokio::time::sleep_until(deadline))
}

/// [`tokio::time::timeout`].
pub(crate) fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    with_clock(|| tokio::time::timeout(duration, future))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_thread_without_a_clock_sleeps_by_another_ones() {
        let lender = Handle::current();
        let slept = std::thread::spawn(move || {
            borrow_from(lender);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let began = Instant::now();
                sleep(Duration::from_millis(20)).await;
                sleep_until(began + Duration::from_millis(40)).await;
                assert!(timeout(Duration::from_millis(20), std::future::pending::<()>()).await.is_err());
                began.elapsed()
            })
        });
        let slept = tokio::task::spawn_blocking(|| slept.join().unwrap()).await.unwrap();
        assert!(slept >= Duration::from_millis(60), "{slept:?}");
    }
}
