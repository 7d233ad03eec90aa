//! A sign of life that costs next to nothing: when something last got on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When whoever works with a [`Kernel`](crate::Kernel) last got on. Cloning shares it.
///
/// It beats with each answer of the kernel and each program that has ended: what takes long because there is much to do goes on beating, what hangs in a
/// system call does not. Nobody waits for anybody: a beat is a look at the clock and a store.
#[derive(Clone, Debug)]
pub struct Pulse {
    begun: Instant,
    /// When it last beat, in milliseconds after `begun`.
    last: Arc<AtomicU64>,
}

/// One that has just beaten.
impl Default for Pulse {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// Says that something has got on.
    pub fn beat(&self) {
        self.beat_at(Instant::now());
    }

    /// The same for who has just looked at the clock.
    pub(crate) fn beat_at(&self, now: Instant) {
        let after = now.saturating_duration_since(self.begun).as_millis();
        self.last.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long nothing has got on by `now`.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(self.begun).saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j8_silence_lasts_from_the_last_beat_of_whoever_shares_it() {
        let pulse = Pulse::default();
        let (pause, minute) = (Duration::from_millis(20), Duration::from_secs(60));
        std::thread::sleep(pause);
        assert!(pulse.silence(Instant::now()) >= pause);
        pulse.clone().beat();
        let now = Instant::now();
        let silence = pulse.silence(now + minute);
        // Beats are kept in whole milliseconds.
        assert!(silence >= minute && silence < minute + pulse.begun.elapsed(), "{silence:?}");
        assert_eq!(pulse.silence(pulse.begun), Duration::ZERO, "a beat after `now` is no silence");
    }
}
