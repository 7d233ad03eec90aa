//! Waiting longer and longer after errors, and never in step with other nodes.

use std::hash::{BuildHasher as _, RandomState};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Doubles the wait with each error, between a first and a longest one.
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
    last: Option<Instant>,
    hastened: bool,
}

/// How finely waits are spread.
const STEPS: u32 = 1_000_000;

/// After this long without an error the next one is the first again, even if nothing was heard in between: a quiet watch is a good watch.
const QUIET: Duration = Duration::from_secs(120);

impl Backoff {
    pub(super) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, attempts: 0, last: None, hastened: false }
    }

    /// How long to wait now: between half and all of the present step.
    pub(super) fn next(&mut self) -> Duration {
        if self.last.is_some_and(|last| last.elapsed() > QUIET) {
            self.attempts = 0;
        }
        let step = self.first.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        let delay = jittered(step);
        self.last = Some(Instant::now() + delay);
        delay
    }

    /// How long to wait before what all nodes may have to do at the same moment: any time up to `spread`. Counted as an error.
    pub(super) fn next_apart(&mut self, spread: Duration) -> Duration {
        self.next();
        let delay = spread.mul_f64(f64::from(random_in(&(0..=STEPS))) / f64::from(STEPS));
        self.last = Some(Instant::now() + delay);
        delay
    }

    /// How many errors there were since the last success.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
        self.last = None;
        self.hastened = false;
    }

    /// Starts over with the first wait, because the last error is of another kind than those before it. Once until the next success: errors of that kind
    /// are waited after as others are. Says whether it did.
    pub(super) fn hasten(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.hastened, true);
        if first {
            self.attempts = 0;
        }
        first
    }
}

/// Between half of `step` and all of it.
fn jittered(step: Duration) -> Duration {
    let half = step / 2;
    half + half.mul_f64(f64::from(random_in(&(0..=1_000))) / 1_000.0)
}

/// Some number of the range. The standard library seeds its hashers at random, which is as much randomness as pacing needs.
pub(super) fn random_in(range: &RangeInclusive<u32>) -> u32 {
    let (first, last) = (*range.start(), *range.end());
    let count = u64::from(last.saturating_sub(first)) + 1;
    first + u32::try_from(RandomState::new().hash_one(range) % count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_a_success() {
        let (first, longest) = (Duration::from_millis(800), Duration::from_secs(30));
        let mut backoff = Backoff::new((first, longest));
        for step in [800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000] {
            let (step, delay) = (Duration::from_millis(step), backoff.next());
            assert!(delay >= step / 2 && delay <= step, "{delay:?} for a step of {step:?}");
        }
        backoff.attempts = 1_000;
        assert!(backoff.next() <= longest);
        backoff.reset();
        assert!(backoff.next() <= first);
    }

    #[test]
    fn waits_start_over_once_for_another_kind_of_error() {
        let mut backoff = Backoff::new((Duration::from_secs(1), Duration::from_secs(30)));
        for _ in 0..10 {
            backoff.next();
        }
        assert!(backoff.hasten());
        assert_eq!(backoff.attempts(), 0);
        for attempts in 1..5 {
            assert!(backoff.next() <= Duration::from_secs(1) * (1 << (attempts - 1)));
            assert!(!backoff.hasten());
            assert_eq!(backoff.attempts(), attempts);
        }
        backoff.reset();
        backoff.next();
        assert!(backoff.hasten(), "after a success it counts again");
        assert_eq!(backoff.attempts(), 0);
    }

    #[test]
    fn j10_nodes_that_are_told_the_same_at_the_same_moment_do_not_act_at_the_same_moment() {
        const NODES: usize = 5_000;
        let (spread, part) = (Duration::from_secs(5), Duration::from_millis(100));
        let backoff = || Backoff::new((Duration::from_millis(800), Duration::from_secs(30)));
        let mut starts = vec![0; 50];
        for _ in 0..NODES {
            let delay = backoff().next_apart(spread);
            assert!(delay <= spread, "{delay:?}");
            let at = usize::try_from(delay.as_millis() / part.as_millis()).unwrap();
            starts[at.min(49)] += 1;
        }
        // 2 % each, if they were spread without any chance in it.
        assert!(starts.iter().all(|nodes| (NODES / 100..=NODES * 3 / 100).contains(nodes)), "{starts:?}");
    }

    #[test]
    fn a_wait_apart_is_the_first_of_those_that_grow() {
        let mut backoff = Backoff::new((Duration::from_secs(1), Duration::from_secs(30)));
        backoff.next_apart(Duration::ZERO);
        assert_eq!(backoff.attempts(), 1);
        assert!(backoff.next() >= Duration::from_secs(1), "the second step is of two seconds");
    }

    #[test]
    fn nodes_do_not_wait_in_step() {
        let delays: std::collections::BTreeSet<Duration> = (0..50).map(|_| jittered(Duration::from_secs(1))).collect();
        assert!(delays.len() > 10, "{delays:?}");
    }
}
