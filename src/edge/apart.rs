//! Apart from the event loop: what the kernel does while it is being told to.
//!
//! netlink answers within the very call that asks. To remove an interface, or to show all flows of a large table, takes the
//! kernel tens of milliseconds, and a thread of the event loop that waits for it would keep others waiting who only want to
//! be woken. So it hands them to another thread for that time. An event loop of one thread has none to hand them to: there it is
//! waited for.

use std::future::poll_fn;
use std::pin::pin;

use tokio::runtime::{Handle, RuntimeFlavor};

/// Polls a future, each time apart. Whatever is joined with it in one task waits.
///
/// # Cancel safety
/// That of the future.
#[expect(clippy::disallowed_methods, reason = "the one place that asks first on what kind of event loop it is")]
pub(super) async fn apart<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let mut poll = || future.as_mut().poll(context);
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(poll),
            _ => poll(),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_waits_for_the_only_thread_does_not_wait_for_the_kernel() {
        let (tell, told) = std::sync::mpsc::channel();
        let heard = apart(async move {
            // It would be woken by this very thread.
            tokio::spawn(async move { tell.send(()) });
            told.recv_timeout(Duration::from_secs(20))
        });
        assert_eq!(tokio::spawn(heard).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn on_an_event_loop_of_one_thread_it_is_done_all_the_same() {
        assert_eq!(apart(async { 1 }).await, 1);
    }
}
