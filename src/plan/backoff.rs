//! Back-off: what failed is tried again after a while, which doubles from one failure to the next.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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

    /// How long to wait after the end of something that has run for so long: if that is longer than the longest wait, all
    /// was well until now.
    pub(crate) fn ended_after(&mut self, ran: Duration) -> Duration {
        if ran > self.longest {
            self.well();
        }
        self.failed()
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

/// What is tried again until it is well. Of one thing no more than one other try is due, whatever else led to tries of it
/// meanwhile.
#[derive(Debug)]
pub(crate) struct Retries<T> {
    pace: Backoff,
    /// Each with when it is due; `None`: it is being tried.
    known: BTreeMap<T, (Backoff, Option<Instant>)>,
}

impl<T: Ord + Clone> Retries<T> {
    pub(crate) fn at(pace: Backoff) -> Self {
        Retries { pace, known: BTreeMap::new() }
    }

    /// It is being tried.
    pub(crate) fn begun(&mut self, one: T) {
        self.known.entry(one).or_insert((self.pace, None)).1 = None;
    }

    /// A try of it has failed. Answers whether it was the first one since all was well.
    pub(crate) fn failed(&mut self, one: T, now: Instant) -> bool {
        let (backoff, due) = self.known.entry(one).or_insert((self.pace, None));
        let is_first = backoff.is_well();
        *due = Some(now + backoff.failed());
        is_first
    }

    pub(crate) fn well(&mut self, one: &T) {
        self.known.remove(one);
    }

    /// Whether it is being tried, or waits for the next try.
    pub(crate) fn has(&self, one: &T) -> bool {
        self.known.contains_key(one)
    }

    /// When the next try is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.known.values().filter_map(|(_, due)| *due).min()
    }

    /// What is to be tried now.
    pub(crate) fn due(&self, now: Instant) -> Vec<T> {
        let due = self.known.iter().filter(|(_, (_, due))| due.is_some_and(|due| due <= now));
        due.map(|(one, _)| one.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each event began tries of its own, and while etcd was away they multiplied.
    #[test]
    fn of_what_fails_again_and_again_one_try_is_due_however_many_there_were() {
        let (mut retries, ms) =
            (Retries::at(Backoff::between(Duration::from_millis(100), Duration::from_secs(1))), Duration::from_millis);
        let now = Instant::now();
        assert!(!retries.has(&"a") && retries.next().is_none());
        // Two at a time.
        retries.begun("a");
        retries.begun("a");
        assert!(retries.has(&"a") && retries.next().is_none());
        assert!(retries.failed("a", now));
        assert_eq!(retries.next(), Some(now + ms(100)));
        assert!(!retries.failed("a", now));
        assert_eq!(retries.next(), Some(now + ms(200)));
        assert_eq!((retries.due(now + ms(199)), retries.due(now + ms(200))), (vec![], vec!["a"]));
        // An event leads to one, so the other is not due any more.
        retries.begun("a");
        assert!(retries.has(&"a") && retries.next().is_none());
        assert!(!retries.failed("a", now));
        assert_eq!(retries.next(), Some(now + ms(400)));
        retries.well(&"a");
        assert!(!retries.has(&"a") && retries.failed("a", now), "all was well");
    }

    /// An etcd that had died twice in a year was waited for as one that dies at once.
    #[test]
    fn what_has_run_for_long_is_started_again_as_soon_as_at_first() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::between(s(1), s(10));
        assert_eq!([1, 1, 1].map(|ran| backoff.ended_after(s(ran))), [1, 2, 4].map(s));
        assert_eq!([11, 10].map(|ran| backoff.ended_after(s(ran))), [1, 2].map(s));
    }

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
