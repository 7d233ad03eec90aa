//! Real servers that are leaving: weight 0 in place, so that they get no new connections and keep the ones they have, until those end or
//! a deadline passes.
//!
//! A drain is nothing the plan has to know: while it lasts, the real server is desired with weight 0. So a server that becomes desired
//! again gets its weight back in place, and nothing is ever deleted and added again. What is draining is in the kernel, not in here:
//! a process that starts anew finds the real servers that nobody desires, and begins their drain with a fresh deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::{Protocol, RealServer, RealServerCounters, RealServerKey, Scope, State, VirtualServer, VirtualServerKey};

/// How often the connections of draining real servers are counted.
const CHECK: Duration = Duration::from_secs(1);

/// How long real servers may take to leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Those with connections of TCP and SCTP, which end.
    pub(crate) connections: Duration,
    /// Those of UDP, where the kernel tells no end: for answers that are on their way.
    pub(crate) datagrams: Duration,
}

/// The real servers that are leaving.
#[derive(Debug)]
pub(crate) struct Drains {
    limits: Limits,
    /// When each has to be gone.
    leaving: BTreeMap<(VirtualServerKey, RealServerKey), Instant>,
    next_check: Option<Instant>,
}

impl Drains {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self { limits, leaving: BTreeMap::new(), next_check: None }
    }

    /// How many are leaving.
    pub(crate) fn len(&self) -> usize {
        self.leaving.len()
    }

    /// When their connections are to be counted again; `None` while there are none.
    pub(crate) const fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// The virtual servers that have real servers leaving.
    pub(crate) fn scope(&self) -> Scope {
        let virtual_servers = self.leaving.keys().map(|(key, _)| *key).collect();
        Scope { virtual_servers, ..Scope::default() }
    }

    /// Adds to `desired` the real servers that `held` has beyond it, with weight 0. Both are about the same virtual servers; one that is
    /// not desired itself goes with all it has. `frontend` names the one that a virtual server serves, which has a protocol even where the
    /// virtual server has a mark.
    pub(crate) fn keep_leaving(
        &mut self,
        desired: &mut State,
        held: &State,
        frontend: impl Fn(&VirtualServerKey) -> Option<VirtualServerKey>,
        now: Instant,
    ) {
        for (key, held) in &held.virtual_servers {
            match desired.virtual_servers.get_mut(key) {
                Some(desired) => {
                    let limit = match frontend(key).unwrap_or(*key) {
                        VirtualServerKey::Address { protocol: Protocol::Udp, .. } => self.limits.datagrams,
                        VirtualServerKey::Address { .. } | VirtualServerKey::Mark { .. } => self.limits.connections,
                    };
                    self.keep_leaving_of(*key, desired, held, now + limit);
                }
                None => self.forget(*key),
            }
        }
        self.next_check = (!self.leaving.is_empty()).then(|| self.next_check.unwrap_or(now + CHECK));
    }

    fn keep_leaving_of(&mut self, key: VirtualServerKey, desired: &mut VirtualServer, held: &VirtualServer, deadline: Instant) {
        for (real, server) in &held.real_servers {
            if desired.real_servers.contains_key(real) {
                self.leaving.remove(&(key, *real));
            } else {
                self.leaving.entry((key, *real)).or_insert(deadline);
                desired.real_servers.insert(*real, RealServer { weight: 0, ..*server });
            }
        }
    }

    /// Lets go of those real servers of `key` that have no connections left or no time, by what the kernel has counted. What is let go
    /// of is to be planned without [`Self::keep_leaving`] adding it again: it is returned, and the caller takes it out of `held`.
    pub(crate) fn let_go(
        &mut self,
        key: VirtualServerKey,
        counted: &BTreeMap<RealServerKey, RealServerCounters>,
        now: Instant,
    ) -> BTreeSet<RealServerKey> {
        let idle = |real: &RealServerKey| counted.get(real).is_none_or(|counters| counters.active == 0 && counters.inactive == 0);
        let of_key = self.leaving.iter().filter(|((of, _), _)| *of == key);
        let gone: BTreeSet<_> =
            of_key.filter(|((_, real), deadline)| idle(real) || **deadline <= now).map(|((_, real), _)| *real).collect();
        for real in &gone {
            self.leaving.remove(&(key, *real));
        }
        self.next_check = (!self.leaving.is_empty()).then(|| now + CHECK);
        gone
    }

    /// Puts the next count off after one that failed.
    pub(crate) fn check_later(&mut self, now: Instant) {
        self.next_check = (!self.leaving.is_empty()).then(|| now + CHECK);
    }

    fn forget(&mut self, key: VirtualServerKey) {
        self.leaving.retain(|(of, _), _| *of != key);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use model::{Family, Scheduler};

    const LIMITS: Limits = Limits { connections: Duration::from_secs(900), datagrams: Duration::from_secs(2) };

    fn key(protocol: Protocol) -> VirtualServerKey {
        VirtualServerKey::address("10.96.0.1".parse().unwrap(), protocol, 80)
    }

    fn real(host: u8) -> RealServerKey {
        RealServerKey::new(std::net::Ipv4Addr::new(10, 244, 0, host).into(), 8080)
    }

    fn state(protocol: Protocol, hosts: &[u8]) -> State {
        let mut server = VirtualServer::new(Scheduler::RR, Family::V4);
        server.real_servers.extend(hosts.iter().map(|host| (real(*host), RealServer::default())));
        State { virtual_servers: [(key(protocol), server)].into(), ..State::default() }
    }

    fn weights(state: &State, protocol: Protocol) -> Vec<(RealServerKey, u32)> {
        state.virtual_servers[&key(protocol)].real_servers.iter().map(|(real, server)| (*real, server.weight)).collect()
    }

    fn itself(key: &VirtualServerKey) -> Option<VirtualServerKey> {
        Some(*key)
    }

    fn counted(host: u8, active: u32) -> BTreeMap<RealServerKey, RealServerCounters> {
        [(real(host), RealServerCounters { active, ..RealServerCounters::default() })].into()
    }

    #[test]
    fn a2_who_leaves_stays_with_weight_0_until_its_connections_end_or_its_deadline_passes() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let mut desired = state(Protocol::Tcp, &[1]);
        drains.keep_leaving(&mut desired, &state(Protocol::Tcp, &[1, 2, 3]), itself, start);
        assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0), (real(3), 0)]);
        assert_eq!((drains.len(), drains.next_check()), (2, Some(start + CHECK)));

        let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), start + CHECK);
        assert_eq!(gone, [real(3)].into(), "3 has no connections");
        let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), start + LIMITS.connections);
        assert_eq!(gone, [real(2)].into(), "2 has no time left");
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn a3_who_is_desired_again_does_not_leave() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let held = state(Protocol::Tcp, &[1, 2]);
        drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, itself, start);
        let mut desired = state(Protocol::Tcp, &[1, 2]);
        drains.keep_leaving(&mut desired, &held, itself, start + CHECK);
        assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 1)]);
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn who_is_desired_with_weight_0_does_not_leave() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let held = state(Protocol::Tcp, &[1, 2]);
        let without_2 = || {
            let mut desired = state(Protocol::Tcp, &[1, 2]);
            desired.virtual_servers.get_mut(&key(Protocol::Tcp)).unwrap().real_servers.get_mut(&real(2)).unwrap().weight = 0;
            desired
        };
        drains.keep_leaving(&mut without_2(), &held, itself, start);
        assert_eq!((drains.len(), drains.next_check()), (0, None));

        // It left before it was given that weight: its drain ends, and it stays.
        drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, itself, start);
        let mut desired = without_2();
        drains.keep_leaving(&mut desired, &held, itself, start + CHECK);
        assert!(drains.let_go(key(Protocol::Tcp), &BTreeMap::new(), start + LIMITS.connections).is_empty());
        assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0)]);
    }

    #[test]
    fn a4_a_deadline_runs_from_the_first_time_and_not_anew_with_every_pass() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let held = state(Protocol::Udp, &[1, 2]);
        for seconds in 0..2 {
            drains.keep_leaving(&mut state(Protocol::Udp, &[1]), &held, itself, start + Duration::from_secs(seconds));
        }
        assert_eq!(drains.let_go(key(Protocol::Udp), &counted(2, 9), start + LIMITS.datagrams), [real(2)].into());
    }

    #[test]
    fn a_virtual_server_that_is_not_desired_takes_its_drains_along() {
        let mut drains = Drains::new(LIMITS);
        drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &state(Protocol::Tcp, &[1, 2]), itself, Instant::now());
        drains.keep_leaving(&mut State::default(), &state(Protocol::Tcp, &[1, 2]), itself, Instant::now());
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn i1_behind_a_mark_the_frontend_has_the_protocol() {
        let start = Instant::now();
        let mark = VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(7).unwrap() };
        for (protocol, goes) in [(Protocol::Udp, true), (Protocol::Tcp, false)] {
            let mut drains = Drains::new(LIMITS);
            let behind_mark = |hosts| {
                let mut state = state(protocol, hosts);
                state.virtual_servers = state.virtual_servers.into_values().map(|server| (mark, server)).collect();
                state
            };
            drains.keep_leaving(&mut behind_mark(&[1]), &behind_mark(&[1, 2]), |_| Some(key(protocol)), start);
            let gone = drains.let_go(mark, &counted(2, 9), start + LIMITS.datagrams);
            assert_eq!(gone.contains(&real(2)), goes, "{protocol}");
        }
    }
}
