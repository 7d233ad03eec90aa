//! Looks now and then whether a few things are still there that must be, for changes that the kernel tells nobody of.
//!
//! Who empties the IPVS table or a set is found out by asking for a handful of their entries: that costs the same on a node with ten
//! virtual servers as on one with ten thousand. A single one that goes missing is met by chance, by a change, or by the audit.

use std::ops::Bound;
use std::time::{Duration, Instant};

use model::{Scope, State, VirtualServerKey};

/// Virtual servers asked for at a time. One would do for a table that was emptied.
const VIRTUAL_SERVERS: usize = 2;

/// When to look next, and for what.
#[derive(Debug)]
pub(crate) struct Patrol {
    /// Zero for never.
    period: Duration,
    next: Option<Instant>,
    /// The virtual server that was asked for last: the next time it is the turn of those after it.
    last: Option<VirtualServerKey>,
}

impl Patrol {
    /// Looks every `period`, counted from `now`; never if that is zero.
    pub(crate) fn new(period: Duration, now: Instant) -> Self {
        let mut patrol = Self { period, next: None, last: None };
        patrol.put_off(now);
        patrol
    }

    /// When it is time; `None` for never.
    pub(crate) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Counts the period from `now`.
    pub(crate) fn put_off(&mut self, now: Instant) {
        self.next = (!self.period.is_zero()).then(|| now + self.period);
    }

    /// What to ask for: some of the virtual servers in `observed` that are ours, each time others, and a member of every set that has any.
    pub(crate) fn sample(&mut self, observed: &State, is_ours: impl Fn(&VirtualServerKey) -> bool) -> Scope {
        let servers = &observed.virtual_servers;
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let up_to = self.last.map_or(Bound::Unbounded, Bound::Included);
        let turn = servers.range((after, Bound::Unbounded)).chain(servers.range((Bound::Unbounded, up_to)));
        let chosen: Vec<_> = turn.map(|(key, _)| *key).filter(is_ours).take(VIRTUAL_SERVERS).collect();
        self.last = chosen.last().copied();
        let member = |members: &std::collections::BTreeSet<_>| members.first().map(|member| [*member].into());
        Scope {
            virtual_servers: chosen.into_iter().collect(),
            members: observed.sets.iter().filter_map(|(set, state)| Some((*set, member(&state.members)?))).collect(),
            ..Scope::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::{Family, Member, Protocol, Role, Scheduler, Set, SetState, VirtualServer};

    use super::*;

    fn observed(virtual_servers: u16) -> State {
        let key = |port| VirtualServerKey::address([10, 96, 0, 1].into(), Protocol::Tcp, port);
        let set = |members: &[Member]| SetState { capacity: SetState::MIN_CAPACITY, members: members.iter().copied().collect() };
        let vips = [Member::Ip([10, 96, 0, 1].into()), Member::Ip([10, 96, 0, 2].into())];
        State {
            virtual_servers: (1..=virtual_servers).map(|port| (key(port), VirtualServer::new(Scheduler::RR, Family::V4))).collect(),
            sets: [(Set::new(Role::Vips, Family::V4), set(&vips)), (Set::new(Role::NodePort, Family::V4), set(&[]))].into(),
            ..State::default()
        }
    }

    #[test]
    fn every_virtual_server_gets_its_turn() {
        let state = observed(10);
        let mut patrol = Patrol::new(Duration::from_secs(1), Instant::now());
        let turns: Vec<_> = (0..5).map(|_| patrol.sample(&state, |_| true).virtual_servers).collect();
        assert!(turns.iter().all(|turn| turn.len() == VIRTUAL_SERVERS), "{turns:?}");
        let met: BTreeSet<_> = turns.iter().flatten().collect();
        assert_eq!(met.len(), 10);
        assert_ne!(turns[0], turns[1]);
    }

    #[test]
    fn what_is_not_ours_or_not_there_is_not_asked_for() {
        let mut patrol = Patrol::new(Duration::from_secs(1), Instant::now());
        assert_eq!(patrol.sample(&observed(2), |_| true).virtual_servers.len(), 2, "each once");
        assert!(patrol.sample(&observed(2), |_| false).virtual_servers.is_empty());
        assert!(patrol.sample(&State::default(), |_| true).is_empty());
        let members = patrol.sample(&observed(0), |_| true).members;
        assert_eq!(members, [(Set::new(Role::Vips, Family::V4), [Member::Ip([10, 96, 0, 1].into())].into())].into());
    }

    #[test]
    fn a_period_of_zero_is_never() {
        let now = Instant::now();
        assert_eq!(Patrol::new(Duration::ZERO, now).next(), None);
        assert_eq!(Patrol::new(Duration::from_secs(1), now).next(), Some(now + Duration::from_secs(1)));
    }
}
