//! Parts of the kernel's state that others have changed, until they are read again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kernel::Part;

/// The least time between two readings: changes come in bursts, and who changes things all the time is not to keep this node busy.
const PAUSE: Duration = Duration::from_millis(500);

/// The least time between a change of packet rules by this process and a reading of them, which takes other programs: the first notices
/// that come are about that change. It doubles with each change until a reading finds the rules as they should be, so that two who want
/// different rules do not keep each other busy.
const PAUSE_OF_RULES: Duration = Duration::from_secs(1);
const LONGEST_PAUSE_OF_RULES: Duration = Duration::from_secs(32);

/// What is to be read again, and when.
#[derive(Debug)]
pub(crate) struct Disturbances {
    parts: BTreeSet<Part>,
    not_before: Instant,
    rules_not_before: Instant,
    pause_of_rules: Duration,
}

impl Disturbances {
    /// None; the first is to be read at once.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { parts: BTreeSet::new(), not_before: now, rules_not_before: now, pause_of_rules: PAUSE_OF_RULES }
    }

    /// Notes that something of these `parts` may have changed.
    pub(crate) fn note(&mut self, parts: impl IntoIterator<Item = Part>) {
        self.parts.extend(parts);
    }

    /// Notes that this process has changed packet rules.
    pub(crate) fn note_own_rules(&mut self, now: Instant) {
        self.rules_not_before = now + self.pause_of_rules;
        self.pause_of_rules = (self.pause_of_rules * 2).min(LONGEST_PAUSE_OF_RULES);
    }

    /// Notes that packet rules were read, and are as they should be.
    pub(crate) fn note_good_rules(&mut self) {
        self.pause_of_rules = PAUSE_OF_RULES;
    }

    /// When it is time to read; `None` when there is nothing to.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.parts.iter().map(|part| self.time_of(*part)).min()
    }

    /// What to read `now`; nothing while it is not time.
    pub(crate) fn take(&mut self, now: Instant) -> BTreeSet<Part> {
        let due: BTreeSet<_> = self.parts.iter().copied().filter(|part| self.time_of(*part) <= now).collect();
        if !due.is_empty() {
            self.parts.retain(|part| !due.contains(part));
            self.not_before = now + PAUSE;
        }
        due
    }

    fn time_of(&self, part: Part) -> Instant {
        match part {
            Part::Rules => self.not_before.max(self.rules_not_before),
            Part::Sets | Part::VirtualServers | Part::Vips => self.not_before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_read_at_once_and_the_next_after_a_pause() {
        let now = Instant::now();
        let mut disturbances = Disturbances::new(now);
        assert_eq!((disturbances.due(), disturbances.take(now)), (None, [].into()));
        disturbances.note([Part::Vips]);
        assert_eq!((disturbances.due(), disturbances.take(now)), (Some(now), [Part::Vips].into()));
        disturbances.note([Part::Vips]);
        disturbances.note([Part::Rules]);
        assert_eq!((disturbances.due(), disturbances.take(now)), (Some(now + PAUSE), [].into()));
        assert_eq!(disturbances.take(now + PAUSE), [Part::Vips, Part::Rules].into());
        assert_eq!(disturbances.due(), None);
    }

    #[test]
    fn packet_rules_that_were_just_changed_are_read_later_and_later_until_they_are_good() {
        let now = Instant::now();
        let mut disturbances = Disturbances::new(now);
        for pause in [1, 2, 4, 8, 16, 32, 32] {
            disturbances.note_own_rules(now);
            disturbances.note([Part::Rules, Part::Sets]);
            let due = now + Duration::from_secs(pause);
            assert_eq!(disturbances.take(due - PAUSE / 2), [Part::Sets].into());
            assert_eq!(disturbances.take(due + PAUSE), [Part::Rules].into(), "after {pause} s");
            disturbances.not_before = now;
        }
        disturbances.note_good_rules();
        disturbances.note_own_rules(now);
        disturbances.note([Part::Rules]);
        assert_eq!(disturbances.due(), Some(now + PAUSE_OF_RULES));
    }
}
