//! Back-off: what failed is tried again after a while, which doubles from one failure to the next.

use std::time::Duration;

/// How long to wait, from the first failure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    wait: Duration,
}

impl Backoff {
    pub(crate) const fn between(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, wait: first }
    }

    /// How long to wait after this failure.
    pub(crate) fn failed(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.longest);
        wait
    }

    /// How long the next failure is waited for.
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }

    pub(crate) fn well(&mut self) {
        self.wait = self.first;
    }

    /// Whether nothing has failed since all was well.
    pub(crate) fn is_well(&self) -> bool {
        self.wait == self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_the_longest_until_all_is_well() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::between(ms(100), ms(350));
        assert!(backoff.is_well());
        assert_eq!([(); 4].map(|()| backoff.failed()), [ms(100), ms(200), ms(350), ms(350)]);
        assert!(!backoff.is_well());
        backoff.well();
        assert_eq!((backoff.is_well(), backoff.wait()), (true, ms(100)));
    }
}
