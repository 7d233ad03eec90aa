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

/// How long a virtual server that leaves outlives its last real server when clients of that were not done. They learn of its end when they
/// send next: the kernel throws away the connection with that packet, and answers the one after with a reset, which takes the VIP. A
/// client that has sent in vain since its server died waits twice as long before every attempt, and makes two within this time of
/// the deadline that such a server has by default.
const TOLD: Duration = Duration::from_secs(30);

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
    /// Those that the kernel has been told to let go of, until it is known whether it has.
    going: BTreeMap<(VirtualServerKey, RealServerKey), Leaving>,
    whole: BTreeMap<VirtualServerKey, Whole>,
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

/// A virtual server that leaves as a whole.
#[derive(Clone, Copy, Debug)]
struct Whole {
    /// What it served.
    frontend: VirtualServerKey,
    /// Until when it stays without real servers, if it does.
    told: Option<Instant>,
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
    /// All were seen closed by both sides, and when. Once is not enough: a list of connections may lack one where others come and go.
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
        Self {
            limits,
            leaving: BTreeMap::new(),
            going: BTreeMap::new(),
            whole: BTreeMap::new(),
            remembered: BTreeMap::new(),
            next_check: None,
        }
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

    /// The virtual servers of which real servers are leaving.
    pub(crate) fn virtual_servers(&self) -> BTreeSet<VirtualServerKey> {
        self.leaving.keys().map(|(key, _)| *key).collect()
    }

    /// The virtual servers that have real servers leaving or leave themselves, and what of `observed` goes along with those that leave as a whole.
    pub(crate) fn scope(&self, observed: &State) -> Scope {
        let mut scope = Scope { virtual_servers: self.virtual_servers(), ..Scope::default() };
        scope.virtual_servers.extend(self.whole.keys());
        for Whole { frontend, .. } in self.whole.values() {
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
        for (key, server) in &held.virtual_servers {
            let served = match desired.virtual_servers.contains_key(key) {
                true => Some(surroundings.frontend(key).unwrap_or(*key)),
                false => self.left_behind(key, server, held, surroundings, now),
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
                self.whole.entry(*key).or_insert(Whole { frontend, told: None });
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
        self.keep_reachable(desired, held, surroundings);
        self.next_check = self.goes_on().then(|| self.next_check.unwrap_or(now + CHECK));
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
        now: Instant,
    ) -> Option<VirtualServerKey> {
        let whole = self.whole.get(key);
        let frontend = whole.map(|whole| whole.frontend).or_else(|| frontend_of(key, held))?;
        let stays = !server.real_servers.is_empty() || whole.and_then(|whole| whole.told).is_some_and(|told| now < told);
        // What is known to leave is ours, whatever has become of the sets that told so.
        let is_ours = whole.is_some() || surroundings.is_ours(key);
        // The same frontend may go on with another virtual server, and its callers with that.
        let leaves = stays && is_ours && surroundings.frontend(&frontend).is_none();
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
        let wanted_again: Vec<_> =
            self.leaving_of(key).map(|(real, _)| real).filter(|real| desired.real_servers.contains_key(real)).collect();
        for real in wanted_again {
            self.leaving.remove(&(key, real));
        }
        let terminated = self.remembered.get(&key).map(|remembered| &remembered.terminating);
        let mut wanted = desired.real_servers.keys().peekable();
        let mut kept = Vec::new();
        for (real, server) in &held.real_servers {
            // Both are in order.
            while wanted.next_if(|wanted| *wanted < real).is_some() {}
            if wanted.next_if_eq(&real).is_some() {
                continue;
            }
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
            kept.push((*real, RealServer { weight: 0, ..*server }));
        }
        drop(wanted);
        desired.real_servers.extend(kept);
    }

    /// Keeps the VIPs of virtual servers that leave as a whole, and the set members by which they are known to be ours. A VIP is kept for all of
    /// those, be they in scope or not, but for those that somebody else has by now.
    fn keep_reachable(&self, desired: &mut State, held: &State, surroundings: &impl Surroundings) {
        let frontends = self.whole.values().map(|whole| whole.frontend);
        let frontends: BTreeSet<_> = frontends.filter(|frontend| !surroundings.is_taken(frontend)).collect();
        if frontends.is_empty() {
            return;
        }
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
                    let whole = self.whole.get(&VirtualServerKey::Mark { family: set.family, mark });
                    whole.map(|whole| whole.frontend) == member.frontend()
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
        let mut whole = self.whole.get_mut(&key);
        let frontend = whole.as_ref().map(|whole| whole.frontend);
        let mut gone = BTreeSet::new();
        for ((_, real), leaving) in self.leaving.range_mut(real_servers_of(key)) {
            let RealServerCounters { active, inactive, .. } = counted.get(real).copied().unwrap_or_default();
            let mut done = active == 0 && inactive == 0;
            if active > 0 {
                leaving.closing = Closing::Open { look: None };
            } else if let (Some(frontend), Some(half_closed)) = (frontend, half_closed)
                && leaving.is_due(now)
            {
                leaving.closing = match (half_closed.contains(&(frontend, *real)), leaving.closing) {
                    (true, _) => Closing::Open { look: Some(now + LOOK) },
                    (false, Closing::Open { .. }) => Closing::Closed(now),
                    (false, closed @ Closing::Closed(_)) => {
                        done = true;
                        closed
                    }
                };
            }
            if done || leaving.has_no_time(now) {
                gone.insert(*real);
                if let (Some(whole), Closing::Open { .. }, false) = (&mut whole, leaving.closing, done) {
                    whole.is_cut(now);
                }
            }
        }
        self.going.extend(gone.iter().filter_map(|real| self.leaving.remove_entry(&(key, *real))));
        self.check_later(now);
        gone
    }

    /// Goes on with what was [let go](Self::let_go) of and is in `observed` all the same: with the time that it had, which is over.
    pub(crate) fn keep_refused(&mut self, observed: &State) {
        let is_there = |(key, real): &(VirtualServerKey, RealServerKey)| {
            observed.virtual_servers.get(key).is_some_and(|server| server.real_servers.contains_key(real))
        };
        self.leaving.extend(std::mem::take(&mut self.going).into_iter().filter(|(of, _)| is_there(of)));
    }

    /// Has their connections counted in a while, where there are any.
    pub(crate) fn check_later(&mut self, now: Instant) {
        self.next_check = self.goes_on().then(|| now + CHECK);
    }

    /// Whether anything is leaving.
    fn goes_on(&self) -> bool {
        !self.leaving.is_empty() || !self.whole.is_empty()
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

impl Whole {
    /// Loses a real server whose clients are not done. To those of UDP nobody can say so.
    fn is_cut(&mut self, now: Instant) {
        if !matches!(self.frontend, VirtualServerKey::Address { protocol: Protocol::Udp, .. }) {
            self.told = Some(now + TOLD);
        }
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
        match self.closing {
            Closing::Open { look } => look.is_none_or(|look| look <= now),
            Closing::Closed(since) => since + CLOSED <= now,
        }
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
mod tests;
