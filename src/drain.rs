//! What is leaving: weight 0 in place, so that it gets no new connections and keeps the ones it has, until those end or a deadline
//! passes. That goes for a real server that leaves its virtual server, and for a virtual server that leaves as a whole, with its VIP.
//!
//! A drain is nothing the plan has to know: while it lasts, the real server is desired with weight 0. So a server that becomes desired
//! again gets its weight back in place, and nothing is ever deleted and added again. What is draining is in the kernel, not in here:
//! a process that starts anew finds the real servers that nobody desires, and begins their drain with a fresh deadline.
//!
//! A virtual server that has nobody else than such real servers refuses new connections: the kernel answers that the port is
//! unreachable (`ip_vs_leave`, net/netfilter/ipvs/ip_vs_core.c).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use desired::{Parting, Standing};
use kernel::HalfClosed;
use model::{
    Member, Protocol, RealServer, RealServerCounters, RealServerKey, RealServers, Role, Scope, Set, State, Via, Vip, VirtualServer,
    VirtualServerKey,
};

use crate::control;

/// How often the connections of draining real servers are counted.
const CHECK: Duration = Duration::from_secs(1);

/// How long a virtual server that leaves waits for connections that both sides have closed, of which the last packets may have to be
/// sent again. The kernel keeps them for two minutes.
const CLOSED: Duration = Duration::from_secs(5);

/// How often a virtual server that leaves has its connections looked at one by one, which costs what there are of them on the node.
const LOOK: Duration = Duration::from_secs(5);

/// How long real servers may take to leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Those with connections of TCP and SCTP, which end.
    pub(crate) connections: Duration,
    /// Those of UDP, where the kernel tells no end: for answers that are on their way.
    pub(crate) datagrams: Duration,
    /// Those whose endpoint is gone without having been terminating before, or on a node that is not ready, which are probably dead. No longer than the others in any case.
    pub(crate) vanished: Duration,
}

impl Limits {
    /// How long a real server of `frontend` may take to leave, whose Service has `asked` for that by annotation.
    fn of(self, frontend: &VirtualServerKey, asked: Option<Duration>) -> Duration {
        match frontend {
            VirtualServerKey::Address { protocol: Protocol::Udp, .. } => self.datagrams,
            VirtualServerKey::Address { .. } | VirtualServerKey::Mark { .. } => asked.unwrap_or(self.connections),
        }
    }

    /// The same, at most, of one that nobody has seen leave, by what its endpoint has come to. One that is gone may have been terminating before.
    pub(crate) fn at_most(self, frontend: &VirtualServerKey, asked: Option<Duration>, standing: Option<Standing>) -> Duration {
        let limit = self.of(frontend, asked);
        match standing {
            Some(Standing::Stranded) => limit.min(self.vanished),
            Some(Standing::Present | Standing::Terminating | Standing::Gone) | None => limit,
        }
    }
}

/// Real servers that are leaving, with those virtual servers that leave as a whole.
#[derive(Debug)]
pub(crate) struct Drains {
    limits: Limits,
    leaving: BTreeMap<(VirtualServerKey, RealServerKey), Leaving>,
    /// The virtual servers that leave as a whole, each with the frontend that it served.
    whole: BTreeMap<VirtualServerKey, VirtualServerKey>,
    /// What will matter of virtual servers, where that is anything, when their Service and its endpoints may be gone.
    remembered: BTreeMap<VirtualServerKey, Remembered>,
    next_check: Option<Instant>,
}

/// A [`Parting`] for later.
#[derive(Debug, Default)]
struct Remembered {
    drain_timeout: Option<Duration>,
    terminating: BTreeSet<RealServerKey>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// When it has to be gone, whatever becomes of its endpoint.
    deadline: Instant,
    endpoint: Endpoint,
    closing: Closing,
}

/// What was last seen of the endpoint of a real server that is leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    /// Nothing: it left while no agent was running, or somebody else made the real server.
    Unseen,
    Present,
    Terminating,
    /// Its end, which nothing had announced, or that its node is not ready. When the real server has to be gone.
    Vanished(Instant),
}

/// How far the last of its connections have come.
#[derive(Clone, Copy, Debug)]
enum Closing {
    /// Some are open, as far as is known. When it is worth a closer look.
    Open { look: Option<Instant> },
    /// All were seen closed by both sides, and when.
    Closed(Instant),
}

/// What the rest of the agent knows of the virtual servers that may be leaving.
pub(crate) trait Surroundings {
    /// The frontend that a desired virtual server serves, which has a protocol even where the virtual server has a mark.
    fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey>;

    /// Whether a virtual server that is not desired is ours.
    fn is_ours(&self, key: &VirtualServerKey) -> bool;

    /// Whether a frontend is to be given up at once, because a machine or a process has it that cannot be reached otherwise.
    fn is_taken(&self, frontend: &VirtualServerKey) -> bool;

    /// Whether real servers that nobody desires were desired until now. Not so at a start, of those that an earlier run has left.
    fn were_desired(&self) -> bool;

    /// How the endpoint of a real server stands; `None` where its virtual server is not desired.
    fn standing(&self, key: &VirtualServerKey, real: &RealServerKey) -> Option<Standing>;

    /// What matters when real servers leave a virtual server that is desired.
    fn parting(&self, key: &VirtualServerKey) -> Option<Parting<'_>>;
}

impl Drains {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self { limits, leaving: BTreeMap::new(), whole: BTreeMap::new(), remembered: BTreeMap::new(), next_check: None }
    }

    /// Takes in other limits, for what begins to leave from now on.
    pub(crate) const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How many real servers are leaving.
    pub(crate) fn len(&self) -> usize {
        self.leaving.len()
    }

    /// All that are leaving, for the control socket.
    pub(crate) fn document(&self, now: Instant) -> control::Drains {
        let drain = |((key, real), leaving): (&(VirtualServerKey, RealServerKey), &Leaving)| control::Drain {
            virtual_server: (*key).into(),
            real_server: SocketAddr::new(real.address, real.port),
            milliseconds_left: leaving.time_left(now).as_millis().try_into().unwrap_or(u64::MAX),
            whole: self.whole.contains_key(key),
        };
        control::Drains { drains: self.leaving.iter().map(drain).collect() }
    }

    /// When their connections are to be counted again; `None` while there are none.
    pub(crate) const fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// The virtual servers that have real servers leaving, and what of `observed` goes along with those that leave as a whole.
    pub(crate) fn scope(&self, observed: &State) -> Scope {
        let virtual_servers = self.leaving.keys().map(|(key, _)| *key).collect();
        let mut scope = Scope { virtual_servers, ..Scope::default() };
        for frontend in self.whole.values() {
            let VirtualServerKey::Address { address, .. } = frontend else { continue };
            scope.vips.extend([Via::Route, Via::Address].map(|via| Vip::new(*address, via)));
            for (set, state) in observed.sets.iter().filter(|(set, _)| set.family == frontend.family()) {
                let members = scope.members.entry(*set).or_default();
                members.extend(state.of_frontend(frontend).chain([Member::Ip(*address)]));
            }
        }
        scope
    }

    /// Adds to `desired` what `held` has beyond it and what is leaving: real servers with weight 0, and with them those of our virtual
    /// servers whose frontend is desired no more, with their VIPs and set members. Both states are about the same keys.
    pub(crate) fn keep_leaving(&mut self, desired: &mut State, held: &State, surroundings: &impl Surroundings, now: Instant) {
        // Before anything else: a VIP is kept for all that is leaving, be it in scope or not.
        self.whole.retain(|_, frontend| !surroundings.is_taken(frontend));
        for (key, server) in &held.virtual_servers {
            let served = match desired.virtual_servers.contains_key(key) {
                true => Some(surroundings.frontend(key).unwrap_or(*key)),
                false => self.left_behind(key, server, held, surroundings),
            };
            let Some(frontend) = served else {
                self.forget(*key);
                continue;
            };
            let asked = match surroundings.parting(key) {
                Some(parting) => parting.drain_timeout,
                None => self.remembered.get(key).and_then(|remembered| remembered.drain_timeout),
            };
            let limit = self.limits.of(&frontend, asked);
            if desired.virtual_servers.contains_key(key) {
                self.whole.remove(key);
            } else {
                self.whole.insert(*key, frontend);
            }
            let none = VirtualServer { config: server.config, real_servers: RealServers::new() };
            let desired = desired.virtual_servers.entry(*key).or_insert(none);
            self.keep_leaving_of(*key, desired, server, limit, surroundings, now);
        }
        for key in desired.virtual_servers.keys() {
            if let Some(parting) = surroundings.parting(key) {
                self.remember(*key, parting);
            }
        }
        self.keep_reachable(desired, held);
        self.next_check = (!self.leaving.is_empty()).then(|| self.next_check.unwrap_or(now + CHECK));
    }

    /// Forgets what is leaving and not in `observed`, which is the whole node's: somebody else has taken it away, and what was kept for it is
    /// kept for nothing.
    pub(crate) fn forget_missing(&mut self, observed: &State) {
        let leaving = self.whole.keys().chain(self.leaving.keys().map(|(key, _)| key));
        let missing: BTreeSet<_> = leaving.filter(|key| !observed.virtual_servers.contains_key(*key)).copied().collect();
        missing.into_iter().for_each(|key| self.forget(key));
    }

    /// The frontend of a virtual server that is to leave as a whole; `None` for one that goes at once, or is not for us to judge.
    fn left_behind(
        &self,
        key: &VirtualServerKey,
        server: &VirtualServer,
        held: &State,
        surroundings: &impl Surroundings,
    ) -> Option<VirtualServerKey> {
        let frontend = self.whole.get(key).copied().or_else(|| frontend_of(key, held))?;
        // The same frontend may go on with another virtual server, and its callers with that.
        let leaves = !server.real_servers.is_empty() && surroundings.frontend(&frontend).is_none() && surroundings.is_ours(key);
        (leaves && !surroundings.is_taken(&frontend)).then_some(frontend)
    }

    fn keep_leaving_of(
        &mut self,
        key: VirtualServerKey,
        desired: &mut VirtualServer,
        held: &VirtualServer,
        limit: Duration,
        surroundings: &impl Surroundings,
        now: Instant,
    ) {
        let terminated = self.remembered.get(&key).map(|remembered| &remembered.terminating);
        for (real, server) in &held.real_servers {
            if desired.real_servers.contains_key(real) {
                self.leaving.remove(&(key, *real));
            } else {
                let leaving = self.leaving.entry((key, *real)).or_insert_with(|| {
                    let endpoint = if terminated.is_some_and(|terminated| terminated.contains(real)) {
                        Endpoint::Terminating
                    } else if surroundings.were_desired() && server.weight > 0 {
                        Endpoint::Present
                    } else {
                        Endpoint::Unseen
                    };
                    Leaving { deadline: now + limit, endpoint, closing: Closing::Open { look: None } }
                });
                leaving.endpoint = leaving.endpoint.followed_by(surroundings.standing(&key, real), now + self.limits.vanished);
                desired.real_servers.insert(*real, RealServer { weight: 0, ..*server });
            }
        }
    }

    /// Keeps the VIPs of virtual servers that leave as a whole, and the set members by which they are known to be ours.
    fn keep_reachable(&self, desired: &mut State, held: &State) {
        if self.whole.is_empty() {
            return;
        }
        let frontends: BTreeSet<_> = self.whole.values().copied().collect();
        let address_of = |frontend: &VirtualServerKey| match *frontend {
            VirtualServerKey::Address { address, .. } => Some(address),
            VirtualServerKey::Mark { .. } => None,
        };
        let addresses: BTreeSet<IpAddr> = frontends.iter().filter_map(address_of).collect();
        for (vip, source) in held.vips.iter().filter(|(vip, _)| addresses.contains(&vip.address)) {
            if ![Via::Route, Via::Address].iter().any(|via| desired.vips.contains_key(&Vip::new(vip.address, *via))) {
                desired.vips.insert(*vip, *source);
            }
        }
        for (set, held) in &held.sets {
            let Some(desired) = desired.sets.get_mut(set) else { continue };
            let stays = |member: &&Member| match **member {
                Member::Ip(address) => addresses.contains(&address),
                // It says where those inside go, and is nothing to a mark that has been given to another frontend.
                Member::IpPortMark(.., mark) => {
                    self.whole.get(&VirtualServerKey::Mark { family: set.family, mark }).copied() == member.frontend()
                }
                _ => set.role != Role::LoopBack && member.frontend().is_some_and(|frontend| frontends.contains(&frontend)),
            };
            let staying: Vec<_> = held.members.iter().filter(stays).filter(|member| !desired.has(**member)).copied().collect();
            desired.members.extend(staying);
        }
    }

    /// Whether it takes [a closer look](kernel::Kernel::half_closed) to say what [`Self::let_go`] is to do with the real servers of `key`:
    /// those of a virtual server that leaves as a whole, whose connections all are closing.
    pub(crate) fn needs_look(
        &self,
        key: VirtualServerKey,
        counted: &BTreeMap<RealServerKey, RealServerCounters>,
        now: Instant,
    ) -> bool {
        let closing =
            |real: &RealServerKey| counted.get(real).is_some_and(|counters| counters.active == 0 && counters.inactive > 0);
        self.whole.contains_key(&key) && self.leaving_of(key).any(|(real, leaving)| closing(&real) && leaving.is_due(now))
    }

    /// Lets go of those real servers of `key` that have no connections left or no time, by what the kernel has counted. `half_closed` is
    /// what a closer look has found, if there was one. What is let go of is to be planned without [`Self::keep_leaving`] adding it again:
    /// it is returned, and the caller takes it out of `held`.
    pub(crate) fn let_go(
        &mut self,
        key: VirtualServerKey,
        counted: &BTreeMap<RealServerKey, RealServerCounters>,
        half_closed: Option<&HalfClosed>,
        now: Instant,
    ) -> BTreeSet<RealServerKey> {
        let frontend = self.whole.get(&key).copied();
        let mut gone = BTreeSet::new();
        for ((_, real), leaving) in self.leaving.range_mut(real_servers_of(key)) {
            let RealServerCounters { active, inactive, .. } = counted.get(real).copied().unwrap_or_default();
            if active > 0 {
                leaving.closing = Closing::Open { look: None };
            } else if let (Some(frontend), Some(half_closed)) = (frontend, half_closed)
                && leaving.is_due(now)
            {
                leaving.closing = match half_closed.contains(&(frontend, *real)) {
                    true => Closing::Open { look: Some(now + LOOK) },
                    false => Closing::Closed(now),
                };
            }
            let closed = matches!(leaving.closing, Closing::Closed(since) if now >= since + CLOSED);
            if (active == 0 && inactive == 0) || closed || leaving.has_no_time(now) {
                gone.insert(*real);
            }
        }
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

    fn remember(&mut self, key: VirtualServerKey, Parting { drain_timeout, terminating }: Parting<'_>) {
        if drain_timeout.is_none() && terminating.is_empty() {
            self.remembered.remove(&key);
        } else {
            self.remembered.insert(key, Remembered { drain_timeout, terminating: terminating.iter().copied().collect() });
        }
    }

    fn forget(&mut self, key: VirtualServerKey) {
        self.whole.remove(&key);
        self.remembered.remove(&key);
        let gone: Vec<_> = self.leaving.range(real_servers_of(key)).map(|(of, _)| *of).collect();
        for of in &gone {
            self.leaving.remove(of);
        }
    }

    fn leaving_of(&self, key: VirtualServerKey) -> impl Iterator<Item = (RealServerKey, &Leaving)> {
        self.leaving.range(real_servers_of(key)).map(|((_, real), leaving)| (*real, leaving))
    }
}

impl Endpoint {
    /// What has been seen of it when it stands like this now. One that vanishes has to be gone by `deadline`.
    const fn followed_by(self, standing: Option<Standing>, deadline: Instant) -> Self {
        match standing {
            None => self,
            Some(Standing::Present) => Self::Present,
            Some(Standing::Terminating) => Self::Terminating,
            Some(Standing::Gone) => match self {
                Self::Present => Self::Vanished(deadline),
                Self::Unseen | Self::Terminating | Self::Vanished(_) => self,
            },
            // Nobody there will tell its clients when it ends.
            Some(Standing::Stranded) => match self {
                Self::Vanished(_) => self,
                Self::Unseen | Self::Present | Self::Terminating => Self::Vanished(deadline),
            },
        }
    }
}

impl Leaving {
    fn has_no_time(&self, now: Instant) -> bool {
        self.time_left(now).is_zero()
    }

    fn time_left(&self, now: Instant) -> Duration {
        let deadline = match self.endpoint {
            Endpoint::Vanished(deadline) => deadline.min(self.deadline),
            Endpoint::Unseen | Endpoint::Present | Endpoint::Terminating => self.deadline,
        };
        deadline.saturating_duration_since(now)
    }

    /// Whether its connections are to be looked at, should they be closing.
    fn is_due(&self, now: Instant) -> bool {
        matches!(self.closing, Closing::Open { look } if look.is_none_or(|look| look <= now))
    }
}

/// All real servers that `key` can have: IPv4 comes before IPv6.
fn real_servers_of(key: VirtualServerKey) -> RangeInclusive<(VirtualServerKey, RealServerKey)> {
    let first = RealServerKey::new(Ipv4Addr::UNSPECIFIED.into(), u16::MIN);
    let last = RealServerKey::new(Ipv6Addr::from_bits(u128::MAX).into(), u16::MAX);
    (key, first)..=(key, last)
}

/// The frontend that a virtual server serves, as the sets in `held` tell.
fn frontend_of(key: &VirtualServerKey, held: &State) -> Option<VirtualServerKey> {
    match *key {
        VirtualServerKey::Address { .. } => Some(*key),
        VirtualServerKey::Mark { family, mark } => {
            let set = held.sets.get(&Set::new(Role::InCluster, family))?;
            let leads_here = |member: &&Member| matches!(member, Member::IpPortMark(.., of) if *of == mark);
            set.members.iter().find(leads_here).and_then(|member| member.frontend())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::slice::from_ref;

    use super::*;
    use model::{Family, Scheduler};

    const LIMITS: Limits =
        Limits { connections: Duration::from_secs(900), datagrams: Duration::from_secs(2), vanished: Duration::from_secs(10) };

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

    /// Frontends that are desired, by the virtual servers that serve them. Everything is ours, but for one address.
    struct Desired(Vec<(VirtualServerKey, VirtualServerKey)>);

    const FOREIGN: &str = "192.0.2.1";
    const TAKEN: &str = "192.0.2.2";

    impl Surroundings for Desired {
        fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
            self.0.iter().find(|(of, _)| of == key).map(|(_, frontend)| *frontend)
        }

        fn is_ours(&self, key: &VirtualServerKey) -> bool {
            !key.to_string().contains(FOREIGN)
        }

        fn is_taken(&self, frontend: &VirtualServerKey) -> bool {
            frontend.to_string().contains(TAKEN)
        }

        fn were_desired(&self) -> bool {
            true
        }

        fn standing(&self, _: &VirtualServerKey, _: &RealServerKey) -> Option<Standing> {
            None
        }

        fn parting(&self, _: &VirtualServerKey) -> Option<Parting<'_>> {
            None
        }
    }

    /// A Service over TCP that [`itself`] is.
    #[derive(Clone)]
    struct Followed {
        second: Standing,
        terminating: Vec<RealServerKey>,
        drain_timeout: Option<Duration>,
        were_desired: bool,
    }

    impl Followed {
        fn with(second: Standing) -> Self {
            Self { second, terminating: Vec::new(), drain_timeout: None, were_desired: true }
        }
    }

    impl Surroundings for Followed {
        fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
            itself().frontend(key)
        }

        fn is_ours(&self, _: &VirtualServerKey) -> bool {
            true
        }

        fn is_taken(&self, _: &VirtualServerKey) -> bool {
            false
        }

        fn were_desired(&self) -> bool {
            self.were_desired
        }

        fn standing(&self, _: &VirtualServerKey, asked: &RealServerKey) -> Option<Standing> {
            Some(if *asked == real(2) { self.second } else { Standing::Present })
        }

        fn parting(&self, _: &VirtualServerKey) -> Option<Parting<'_>> {
            Some(Parting { drain_timeout: self.drain_timeout, terminating: &self.terminating })
        }
    }

    /// When the second real server goes that has connections to its end, after these seconds in which `lives` are seen.
    fn lasts(lives: &[Followed]) -> Duration {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let held = state(Protocol::Tcp, &[1, 2]);
        for (seconds, life) in (0..).zip(lives) {
            let mut desired = state(Protocol::Tcp, if life.terminating.is_empty() { &[1] } else { &[1, 2] });
            drains.keep_leaving(&mut desired, &held, life, start + Duration::from_secs(seconds));
        }
        let goes = |seconds: &u64| {
            drains.let_go(key(Protocol::Tcp), &counted(2, 1), None, start + Duration::from_secs(*seconds)).contains(&real(2))
        };
        Duration::from_secs((0..2000).find(goes).unwrap())
    }

    #[test]
    fn e1_who_vanishes_has_less_time_than_who_ends_or_is_not_ready() {
        let [present, terminating, gone] = [Standing::Present, Standing::Terminating, Standing::Gone].map(Followed::with);
        let vanished = |seconds| LIMITS.vanished + Duration::from_secs(seconds);
        assert_eq!(lasts(from_ref(&gone)), vanished(0));
        assert_eq!(lasts(&[present.clone(), gone.clone(), gone.clone()]), vanished(1), "from when it vanished");
        assert_eq!(lasts(&[terminating.clone(), gone.clone()]), LIMITS.connections);
        assert_eq!(lasts(&[present.clone(), terminating.clone(), gone.clone()]), LIMITS.connections);
        assert_eq!(lasts(&[gone.clone(), present.clone()]), LIMITS.connections, "between two slices it is in neither");
        assert_eq!(lasts(from_ref(&present)), LIMITS.connections);
        let stranded = Followed::with(Standing::Stranded);
        assert_eq!(lasts(&[present.clone(), stranded.clone(), gone.clone()]), vanished(1), "from when its node was not ready");
        assert_eq!(lasts(&[terminating.clone(), stranded.clone()]), vanished(1), "it will not come to its end there");
        assert_eq!(lasts(&[stranded, present]), LIMITS.connections, "its node is back");

        let last_one = Followed { terminating: vec![real(2)], ..Followed::with(Standing::Terminating) };
        assert_eq!(lasts(&[last_one, gone.clone()]), LIMITS.connections + CHECK, "it served while it terminated");
        let at_start = Followed { were_desired: false, ..gone.clone() };
        assert_eq!(lasts(&[at_start, gone]), LIMITS.connections, "nobody knows how it went");
    }

    #[test]
    fn a2_a_service_says_how_long_its_connections_are_kept_and_is_remembered() {
        let asked = Duration::from_secs(60);
        let sixty = Followed { drain_timeout: Some(asked), ..Followed::with(Standing::Terminating) };
        assert_eq!(lasts(from_ref(&sixty)), asked);
        let vanished = Followed { second: Standing::Gone, ..sixty.clone() };
        assert_eq!(lasts(&[vanished]), LIMITS.vanished);

        // The Service is gone by the time that its connections are to be kept.
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (udp, datagrams_counted) = (key(Protocol::Udp), counted(2, 9));
        let (key, held) = frontend("10.96.0.9", 80);
        drains.keep_leaving(&mut held.clone(), &held, &sixty, start);
        kept(&mut drains, &held, &NOTHING, start);
        let counted = [1, 2].map(|host| (real(host), RealServerCounters { active: 1, ..RealServerCounters::default() })).into();
        assert!(drains.let_go(key, &counted, None, start + asked - CHECK).is_empty());
        assert_eq!(drains.let_go(key, &counted, None, start + asked).len(), 2);

        let datagrams = state(Protocol::Udp, &[1, 2]);
        drains.keep_leaving(&mut state(Protocol::Udp, &[1]), &datagrams, &sixty, start);
        let gone = drains.let_go(udp, &datagrams_counted, None, start + LIMITS.datagrams);
        assert_eq!(gone, [real(2)].into(), "datagrams are not connections");
    }

    /// All that a test wants.
    fn itself() -> Desired {
        Desired([Protocol::Tcp, Protocol::Udp].map(|protocol| (key(protocol), key(protocol))).into())
    }

    fn counted(host: u8, active: u32) -> BTreeMap<RealServerKey, RealServerCounters> {
        [(real(host), RealServerCounters { active, ..RealServerCounters::default() })].into()
    }

    #[test]
    fn a2_who_leaves_stays_with_weight_0_until_its_connections_end_or_its_deadline_passes() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let mut desired = state(Protocol::Tcp, &[1]);
        drains.keep_leaving(&mut desired, &state(Protocol::Tcp, &[1, 2, 3]), &itself(), start);
        assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0), (real(3), 0)]);
        assert_eq!((drains.len(), drains.next_check()), (2, Some(start + CHECK)));

        let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), None, start + CHECK);
        assert_eq!(gone, [real(3)].into(), "3 has no connections");
        let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), None, start + LIMITS.connections);
        assert_eq!(gone, [real(2)].into(), "2 has no time left");
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn a3_who_is_desired_again_does_not_leave() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let held = state(Protocol::Tcp, &[1, 2]);
        drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, &itself(), start);
        let mut desired = state(Protocol::Tcp, &[1, 2]);
        drains.keep_leaving(&mut desired, &held, &itself(), start + CHECK);
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
        drains.keep_leaving(&mut without_2(), &held, &itself(), start);
        assert_eq!((drains.len(), drains.next_check()), (0, None));

        // It left before it was given that weight: its drain ends, and it stays.
        drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, &itself(), start);
        let mut desired = without_2();
        drains.keep_leaving(&mut desired, &held, &itself(), start + CHECK);
        assert!(drains.let_go(key(Protocol::Tcp), &BTreeMap::new(), None, start + LIMITS.connections).is_empty());
        assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0)]);
    }

    #[test]
    fn a4_a_deadline_runs_from_the_first_time_and_not_anew_with_every_pass() {
        let start = Instant::now();
        let mut drains = Drains::new(LIMITS);
        let held = state(Protocol::Udp, &[1, 2]);
        for seconds in 0..2 {
            drains.keep_leaving(&mut state(Protocol::Udp, &[1]), &held, &itself(), start + Duration::from_secs(seconds));
        }
        assert_eq!(drains.let_go(key(Protocol::Udp), &counted(2, 9), None, start + LIMITS.datagrams), [real(2)].into());
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
            let surroundings = Desired(vec![(mark, key(protocol))]);
            drains.keep_leaving(&mut behind_mark(&[1]), &behind_mark(&[1, 2]), &surroundings, start);
            let gone = drains.let_go(mark, &counted(2, 9), None, start + LIMITS.datagrams);
            assert_eq!(gone.contains(&real(2)), goes, "{protocol}");
        }
    }

    const NOTHING: Desired = Desired(Vec::new());

    fn mark(number: u32) -> VirtualServerKey {
        VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(number).unwrap() }
    }

    /// A frontend at `address` with a VIP, its members in sets, and two real servers.
    fn frontend(address: &str, port: u16) -> (VirtualServerKey, State) {
        let address: IpAddr = address.parse().unwrap();
        let key = VirtualServerKey::address(address, Protocol::Tcp, port);
        let mut server = VirtualServer::new(Scheduler::RR, Family::V4);
        server.real_servers.extend([1, 2].map(|host| (real(host), RealServer::default())));
        let mut state = State { virtual_servers: [(key, server)].into(), ..State::default() };
        state.vips.insert(Vip::new(address, Via::Route), None);
        let everyone = "203.0.113.0/24".parse().unwrap();
        for (role, member) in [
            (Role::ClusterIp, Member::IpPort(address, Protocol::Tcp, port)),
            (Role::SourceRange, Member::IpPortNet(address, Protocol::Tcp, port, everyone)),
            (Role::Vips, Member::Ip(address)),
        ] {
            state.sets.entry(Set::new(role, Family::V4)).or_default().members.insert(member);
        }
        (key, state)
    }

    fn merged(mut one: State, other: State) -> State {
        one.virtual_servers.extend(other.virtual_servers);
        one.vips.extend(other.vips);
        for (set, state) in other.sets {
            one.sets.entry(set).or_default().members.extend(state.members);
        }
        one
    }

    /// The sets alone, and empty: what is desired of a frontend that is deleted.
    fn deleted(held: &State) -> State {
        State { sets: held.sets.keys().map(|set| (*set, Default::default())).collect(), ..State::default() }
    }

    fn kept(drains: &mut Drains, held: &State, surroundings: &Desired, now: Instant) -> State {
        let mut desired = deleted(held);
        drains.keep_leaving(&mut desired, held, surroundings, now);
        desired
    }

    #[test]
    fn a5_a_frontend_that_is_deleted_stays_reachable_with_weight_0_until_its_connections_end() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (key, held) = frontend("10.96.0.9", 80);
        let mut wanted = held.clone();
        wanted.virtual_servers.get_mut(&key).unwrap().real_servers.values_mut().for_each(|real| real.weight = 0);
        assert_eq!(kept(&mut drains, &held, &NOTHING, start), wanted);

        let counted = |first: u32, second: u32| -> BTreeMap<_, _> {
            let counters = |active| RealServerCounters { active, inactive: 1, ..RealServerCounters::default() };
            [(real(1), counters(first)), (real(2), counters(second))].into()
        };
        let mut look = |half_closed: &[u8], at: Duration| {
            assert!(drains.needs_look(key, &counted(1, 0), start + at));
            let half_closed = half_closed.iter().map(|host| (key, real(*host))).collect();
            drains.let_go(key, &counted(1, 0), Some(&half_closed), start + at)
        };
        assert!(look(&[1, 2], CHECK).is_empty(), "the second one's are half closed");
        assert!(look(&[1], CHECK + LOOK).is_empty(), "they were closed just now");
        let ended = start + CHECK + LOOK + CLOSED;
        assert!(!drains.needs_look(key, &counted(1, 0), ended));
        assert_eq!(drains.let_go(key, &counted(1, 0), None, ended), [real(2)].into());
        assert_eq!(drains.let_go(key, &counted(1, 0), None, start + LIMITS.connections), [real(1)].into());

        // All of it goes together, and is looked at for that.
        let scope = drains.scope(&held);
        let mut staying = held.restricted_to(&scope);
        assert_eq!(staying.sets, held.sets);
        assert_eq!(staying.vips, held.vips);
        staying.virtual_servers.insert(key, VirtualServer::new(Scheduler::RR, Family::V4));
        assert_eq!(kept(&mut drains, &staying, &NOTHING, start), deleted(&held));
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn a5_a_frontend_that_is_wanted_again_has_its_weights_back_and_does_not_leave() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (key, held) = frontend("10.96.0.9", 80);
        kept(&mut drains, &held, &NOTHING, start);
        let mut desired = held.clone();
        drains.keep_leaving(&mut desired, &held, &Desired(vec![(key, key)]), start + CHECK);
        assert_eq!(desired, held);
        assert_eq!((drains.len(), drains.next_check()), (0, None));
        assert!(drains.scope(&held).is_empty());
    }

    #[test]
    fn k2_what_others_take_away_while_it_leaves_takes_its_vip_and_members_along() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (_, held) = frontend("10.96.0.9", 80);
        kept(&mut drains, &held, &NOTHING, start);
        let flushed = State { virtual_servers: BTreeMap::new(), ..held.clone() };
        drains.forget_missing(&flushed);
        assert_eq!(kept(&mut drains, &flushed, &NOTHING, start + CHECK), deleted(&held));
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn a5_what_could_not_be_looked_at_counts_as_open() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (key, held) = frontend("10.96.0.9", 80);
        kept(&mut drains, &held, &NOTHING, start);
        let closing = RealServerCounters { inactive: 1, ..RealServerCounters::default() };
        let counted = [1, 2].map(|host| (real(host), closing)).into();
        for seconds in 1..100 {
            assert!(drains.let_go(key, &counted, None, start + Duration::from_secs(seconds)).is_empty());
        }
        assert_eq!(drains.let_go(key, &counted, None, start + LIMITS.connections).len(), 2);
    }

    #[test]
    fn d5_f4_what_others_have_is_given_up_at_once() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (_, held) = frontend(TAKEN, 80);
        assert_eq!(kept(&mut drains, &held, &NOTHING, start), deleted(&held));
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    #[test]
    fn a5_a_vip_stays_for_as_long_as_one_of_its_frontends_leaves() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (http, held) = frontend("10.96.0.9", 80);
        let (https, other) = frontend("10.96.0.9", 443);
        kept(&mut drains, &merged(held, other.clone()), &NOTHING, start);
        assert_eq!(drains.let_go(http, &BTreeMap::new(), None, start + CHECK).len(), 2);
        // A change that is about the VIP alone.
        let about_vip = State { vips: other.vips.clone(), ..State::default() };
        assert_eq!(kept(&mut drains, &about_vip, &NOTHING, start).vips, other.vips);
        assert_eq!(drains.let_go(https, &BTreeMap::new(), None, start + CHECK).len(), 2);
    }

    #[test]
    fn k1_what_is_not_ours_does_not_leave() {
        let mut drains = Drains::new(LIMITS);
        let (_, held) = frontend(FOREIGN, 80);
        assert_eq!(kept(&mut drains, &held, &NOTHING, Instant::now()), deleted(&held));
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }

    /// A frontend with a virtual server behind a mark beside its own.
    fn with_mark(number: u32) -> (VirtualServerKey, State) {
        let (key, mut held) = frontend("10.96.0.9", 80);
        let (VirtualServerKey::Address { address, .. }, VirtualServerKey::Mark { mark: of, .. }) = (key, mark(number)) else {
            panic!("other keys")
        };
        let behind = held.virtual_servers[&key].clone();
        held.virtual_servers.insert(mark(number), behind);
        let member = Member::IpPortMark(address, Protocol::Tcp, 80, of);
        held.sets.entry(Set::new(Role::InCluster, Family::V4)).or_default().members.insert(member);
        (key, held)
    }

    #[test]
    fn a5_behind_a_mark_a_frontend_leaves_alike_unless_it_goes_on_without() {
        let start = Instant::now();
        let (key, held) = with_mark(7);
        let mut drains = Drains::new(LIMITS);
        let desired = kept(&mut drains, &held, &NOTHING, start);
        assert!(desired.virtual_servers.contains_key(&mark(7)) && desired.sets == held.sets);

        let mut drains = Drains::new(LIMITS);
        let desired = kept(&mut drains, &held, &Desired(vec![(key, key)]), start);
        assert!(!desired.virtual_servers.contains_key(&mark(7)), "callers inside go to the frontend's own virtual server");
    }

    #[test]
    fn a5_a_mark_that_another_frontend_has_does_not_lead_there() {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (_, held) = with_mark(7);
        kept(&mut drains, &held, &NOTHING, start);
        let mut desired = deleted(&held);
        desired.virtual_servers.insert(mark(7), VirtualServer::new(Scheduler::RR, Family::V4));
        let (other, _) = frontend("10.96.0.8", 80);
        drains.keep_leaving(&mut desired, &held, &Desired(vec![(mark(7), other)]), start + CHECK);
        assert!(desired.sets[&Set::new(Role::InCluster, Family::V4)].members.is_empty());
        assert_eq!(desired.virtual_servers[&mark(7)].real_servers.len(), 2, "its connections go on");
    }
}
