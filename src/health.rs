//! Whether the node is served as it should be: what the reconciler says of itself, and what `/healthz` makes of it.

use std::time::{Duration, Instant};

use kernel::Pulse;

/// What the reconciler last knew of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// When the kernel last held all that was desired; `None` until the first time.
    pub(crate) last_success: Option<Instant>,
    /// Since when it has not, and why.
    pub(crate) differing: Option<Differing>,
    /// Whether a complete pass has been made, successful or not.
    pub(crate) synced_once: bool,
    /// Whether what was saved has been put into the kernel, successfully or not, because the API server has not told everything.
    pub(crate) saved_once: bool,
    pub(crate) life: Life,
}

/// Whether the reconciler's thread gets on.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// Beats at least every [`HEARTBEAT`], and with each answer of the kernel while there is much to do.
    pub(crate) pulse: Pulse,
    /// The silence from which on the thread counts as stuck.
    pub(crate) patience: Duration,
}

impl Default for Life {
    fn default() -> Self {
        Self { pulse: Pulse::default(), patience: STUCK }
    }
}

/// Desired and kernel differ.
#[derive(Clone, Debug)]
pub(crate) struct Differing {
    pub(crate) since: Instant,
    pub(crate) reason: String,
}

/// How long desired and kernel may differ before the node counts as unhealthy: kube-proxy's limit, two of its sync periods.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long the reconciler's thread may sleep.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long the reconciler may get nowhere before it counts as stuck, as in a system call that does not return. Programs that change packet rules are
/// stopped after a minute, and what is worked out between two questions to the kernel takes seconds at ten thousand Services.
pub(crate) const STUCK: Duration = Duration::from_secs(120);

impl Health {
    /// `None` when healthy, else the reason in a sentence.
    pub(crate) fn unhealthy(&self, now: Instant) -> Option<String> {
        if !(self.synced_once || self.saved_once) {
            return Some("the first synchronisation has not finished".to_owned());
        }
        if let Some(reason) = self.stuck(now) {
            return Some(reason);
        }
        let differing = self.differing.as_ref()?;
        let elapsed = now.saturating_duration_since(differing.since);
        (elapsed >= LIMIT || self.last_success.is_none())
            .then(|| format!("the kernel differs from what is desired for {} s: {}", elapsed.as_secs(), differing.reason))
    }

    /// `None` while the reconciler gets on, else how long it has not.
    pub(crate) fn stuck(&self, now: Instant) -> Option<String> {
        let silence = self.life.pulse.silence(now);
        (silence >= self.life.patience).then(|| format!("the reconciler has been stuck for {} s", silence.as_secs()))
    }

    /// Notes how a pass went.
    pub(crate) fn note(&mut self, now: Instant, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.last_success = Some(now);
                self.differing = None;
            }
            Err(reason) => {
                let since = self.differing.as_ref().map_or(now, |differing| differing.since);
                self.differing = Some(Differing { since, reason });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j6_health_is_about_the_kernel_and_not_about_having_tried() {
        let life = Life { patience: LIMIT * 100, ..Life::default() };
        let (start, mut health) = (Instant::now(), Health { life, ..Health::default() });
        assert!(health.unhealthy(start).unwrap().contains("first synchronisation"));

        health.synced_once = true;
        health.note(start, Ok(()));
        assert_eq!(health.unhealthy(start + LIMIT * 10), None, "nothing to do for long is healthy");

        health.note(start, Err("TCP 10.96.0.1:80: no such scheduler".to_owned()));
        health.note(start + LIMIT / 2, Err("TCP 10.96.0.1:80: no such scheduler".to_owned()));
        assert_eq!(health.unhealthy(start + LIMIT / 2), None);
        assert!(health.unhealthy(start + LIMIT).unwrap().ends_with("for 60 s: TCP 10.96.0.1:80: no such scheduler"));

        health.note(start + LIMIT * 2, Ok(()));
        assert_eq!(health.unhealthy(start + LIMIT * 2), None);
    }

    #[test]
    fn j10_what_was_saved_counts_once_the_kernel_holds_it() {
        let start = Instant::now();
        let mut health = Health { saved_once: true, ..Health::default() };
        health.note(start, Ok(()));
        assert_eq!((health.unhealthy(start), health.synced_once), (None, false));
        health.note(start, Err("TCP 10.96.0.1:80: no such scheduler".to_owned()));
        assert!(health.unhealthy(start + LIMIT).unwrap().contains("no such scheduler"));
    }

    #[test]
    fn j8_a_reconciler_that_gets_nowhere_is_not_healthy() {
        let mut health = Health { synced_once: true, ..Health::default() };
        let start = Instant::now();
        health.note(start, Ok(()));
        assert_eq!(health.unhealthy(start + STUCK - HEARTBEAT), None);
        assert_eq!(health.unhealthy(start + STUCK).unwrap(), "the reconciler has been stuck for 120 s");
        std::thread::sleep(Duration::from_millis(20));
        health.life.pulse.beat();
        assert_eq!(health.unhealthy(start + STUCK), None, "it got on meanwhile");
    }
}
