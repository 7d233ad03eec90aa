//! When everything is compared with the kernel, and how.

use kernel::processor_time;

use super::*;

/// The shortest wait before the kernel is observed again after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Of so many audits one compares all that is desired with all that there is.
const WHOLE: u64 = 10;

/// How often the operator wants everything to be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// At most so often.
    pub(crate) period: Duration,
    /// The part of a core's time that may go into it, above which it is less often; zero for any.
    pub(crate) share: f64,
}

/// When the next audit is due.
#[derive(Debug)]
pub(super) struct Audits {
    pace: Pace,
    next: Instant,
    /// The processor time that the last one took which found nothing to do. What a repair takes is well spent, and says nothing of the next.
    cost: Duration,
    /// The wait after the next failure. Doubles up to the period.
    retry: Duration,
    number: u64,
    /// Whether what is remembered may be something else than what is desired, although nothing is known to be refused.
    doubtful: bool,
}

impl Audits {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, next: now + pace.period, cost: Duration::ZERO, retry: RETRY, number: 0, doubtful: false }
    }

    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// From one to the next: the period, or as long as it takes until the last one's cost is no more than its share of that time.
    pub(super) fn interval(&self) -> Duration {
        let Pace { period, share } = self.pace;
        let spread =
            if share > 0.0 { Duration::try_from_secs_f64(self.cost.as_secs_f64() / share).unwrap_or(period) } else { period };
        period.max(spread)
    }

    /// Counts the interval from `begun`.
    pub(super) fn put_off(&mut self, begun: Instant) {
        self.next = begun + self.interval();
    }

    /// Goes over to another pace.
    pub(super) fn set_pace(&mut self, pace: Pace, now: Instant) {
        self.pace = pace;
        self.next = self.next.min(now + self.interval());
    }

    /// Moves the next one up.
    pub(super) fn no_later_than(&mut self, due: Instant) {
        self.next = self.next.min(due);
    }

    /// Moves the next one up after a failure, each time with twice the patience.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.no_later_than(now + self.retry);
        self.retry = (self.retry * 2).min(self.pace.period.max(RETRY));
    }

    /// There was no failure.
    pub(super) const fn calm_down(&mut self) {
        self.retry = RETRY;
    }

    /// Has the next one compare everything with what is desired: something was left undone, or is to be otherwise.
    pub(super) const fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Everything has been compared with what is desired.
    pub(super) const fn trust(&mut self) {
        self.doubtful = false;
    }

    fn note_cost(&mut self, cost: Duration) {
        self.cost = cost;
    }

    /// Counts one more; whether nothing that is remembered is to be trusted in it.
    const fn is_whole(&mut self) -> bool {
        self.number += 1;
        self.doubtful || self.number.is_multiple_of(WHOLE)
    }
}

impl Reconciler {
    /// Observes everything and repairs what differs.
    pub(super) fn audit(&mut self) {
        self.stale_flows.try_again();
        if self.complete {
            self.keep_sysctls();
            self.compare();
        } else {
            self.audits.put_off(Instant::now());
        }
    }

    /// Compares the kernel with what is remembered of it. Where both are the same there is nothing to repair: what is remembered has been brought
    /// in line with what is desired by every change. Now and then the whole is compared all the same, lest a mistake of ours stays.
    fn compare(&mut self) {
        let (begun, used) = (Instant::now(), processor_time());
        if !self.begun {
            // The kernel could not be read when everything had been listed.
            return self.pass(Pass::Start);
        }
        let trusted = !self.audits.is_whole() && self.refused.is_empty() && self.schedulers.lacks_none();
        let Some(mut observed) = self.observed.take_if(|_| trusted) else { return self.pass(Pass::Audit) };
        let differing = self.kernel.differing(&observed).and_then(|differing| {
            differing.iter().try_for_each(|part| self.kernel.observe_part(*part, &mut observed))?;
            Ok(differing)
        });
        self.metrics.count_phase(Phase::Observe, begun.elapsed());
        match differing {
            Ok(differing) if differing.is_empty() => {
                self.audits.put_off(begun);
                self.observed = Some(observed);
                self.keep_timeouts(Pass::Audit);
                self.apply(&Plan::default(), Pass::Audit, begun);
                self.succeed();
                self.audits.note_cost(processor_time().saturating_sub(used));
                self.show_interval();
            }
            Ok(_) => self.pass_over(Pass::Audit, observed, begun),
            Err(error) => {
                // What was read until then is taken for what it is, and what is remembered of the rest serves changes until it can be read.
                self.observed = Some(observed);
                self.audits.doubt();
                self.audits.put_off(begun);
                self.failed(Pass::Audit, begun, &error);
            }
        }
    }

    pub(super) fn show_interval(&self) {
        self.metrics.audit_interval.set(self.audits.interval().as_secs_f64());
    }

    /// Sets again what others have set otherwise. What cannot be set was said at the start.
    fn keep_sysctls(&self) {
        for sysctl in &sysctl::NEEDED {
            if let Outcome::Set { from } = sysctl.ensure() {
                warn!("set {} again, from {from} to {}, which another tool has changed", sysctl.name, sysctl.value);
                self.metrics.repairs.with_label_values(&["sysctls"]).inc();
            }
        }
        // Some are there only since connections are tracked, which packet rules have begun.
        for sysctl in &self.settings.tuning.sysctls {
            if let outcome @ Outcome::Set { .. } = sysctl.ensure() {
                sysctls::report(sysctl, &outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { period: Duration::from_secs(30), share: 0.005 };

    #[test]
    fn audits_that_cost_more_than_their_share_come_less_often() {
        let start = Instant::now();
        let mut audits = Audits::new(PACE, start);
        assert_eq!(audits.next(), start + PACE.period);
        for (cost_ms, interval) in [(20, 30), (150, 30), (600, 120), (1, 30)] {
            audits.note_cost(Duration::from_millis(cost_ms));
            audits.put_off(start);
            assert_eq!(audits.next(), start + Duration::from_secs(interval), "{cost_ms} ms");
        }
        audits.note_cost(Duration::from_secs(600));
        audits.set_pace(Pace { share: 0.0, ..PACE }, start);
        assert_eq!(audits.interval(), PACE.period, "without a limit");
    }

    #[test]
    fn after_failures_the_next_audit_comes_soon_and_then_with_more_and_more_patience() {
        let start = Instant::now();
        let mut audits = Audits::new(PACE, start);
        audits.note_cost(Duration::from_secs(600));
        let mut waits = Vec::new();
        for _ in 0..8 {
            audits.put_off(start);
            audits.hasten(start);
            waits.push((audits.next() - start).as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        audits.calm_down();
        audits.hasten(start);
        assert_eq!(audits.next() - start, RETRY);
    }

    #[test]
    fn one_audit_in_ten_is_a_whole_one() {
        let mut audits = Audits::new(PACE, Instant::now());
        let whole: Vec<_> = (1..=30).filter(|_| audits.is_whole()).collect();
        assert_eq!(whole, [10, 20, 30]);
    }

    #[test]
    fn what_is_in_doubt_makes_audits_whole_until_one_has_compared_everything() {
        let mut audits = Audits::new(PACE, Instant::now());
        audits.doubt();
        assert!(audits.is_whole() && audits.is_whole(), "the first may have failed");
        audits.trust();
        assert!(!audits.is_whole());
    }
}
