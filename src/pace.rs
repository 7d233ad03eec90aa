//! How often something may be done to a server that others need as well.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and after that one per interval: a token bucket, kept as the time at which it would be full (the generic cell rate
/// algorithm).
pub(crate) struct Pace {
    interval: Duration,
    burst: u32,
    full: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full: Mutex::new(None) }
    }

    /// When the next one may be done, counted as done then; not before `now`.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let next = full.map_or(now, |full| full.max(now)) + self.interval;
        *full = Some(next);
        next.checked_sub(self.interval * self.burst).map_or(now, |allowed| allowed.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        const INTERVAL: Duration = Duration::from_secs(1);
        let (pace, now) = (Pace::new(INTERVAL, 10), Instant::now());
        for _ in 0..10 {
            assert_eq!(pace.next(now), now);
        }
        assert_eq!(pace.next(now), now + INTERVAL);
        assert_eq!(pace.next(now), now + INTERVAL * 2);
        let later = now + INTERVAL * 100;
        assert_eq!(pace.next(later), later);
    }
}
