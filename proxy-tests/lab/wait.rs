//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

/// Short enough to add nothing, long enough to leave the machine to what is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Lets time pass.
#[expect(clippy::disallowed_methods, reason = "a test has a thread to itself, and no runtime on it")]
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}

/// Waits until there is something, and gives it.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain until {what}");
        pause(PAUSE);
    }
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, limit, || holds().then_some(()));
}

/// Waits until nothing is wrong; what is still wrong at the end ends the test.
#[track_caller]
pub(crate) fn wait_until_right(what: &str, limit: Duration, mut wrong: impl FnMut() -> Vec<String>) {
    let began = Instant::now();
    loop {
        let found = wrong();
        if found.is_empty() {
            return;
        }
        assert!(began.elapsed() < limit, "{what}: still wrong after {limit:?}:\n  {}", found.join("\n  "));
        pause(PAUSE);
    }
}
