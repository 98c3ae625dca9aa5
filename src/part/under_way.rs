//! Waits: for work that is under way in a task of its own, and goes on whatever becomes of who waits, and for what may never be.

use tokio::task::JoinError;

/// What a future comes to; where there is none, nothing for ever.
pub(crate) async fn or_never<F: Future>(some: Option<F>) -> F::Output {
    match some {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// What a task has come to. A panic goes on in who waits; a task that was cut is cut by the end of the process, which ends who
/// waits too.
pub(crate) async fn outcome<T>(task: impl Future<Output = Result<T, JoinError>>) -> T {
    match task.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}
