//! UDP flows that lead to nobody: to a real server that is gone or, from before there was any, to the frontend itself.
//!
//! TCP and SCTP connections end, and who is left without a real server is told. UDP has nothing of the kind: connection tracking takes
//! each datagram for part of the flow it knows, to where that went, and a client that keeps sending from one port keeps the flow for ever.
//! So the kernel has to forget such flows, and the client's next datagram begins a new one.
//!
//! A real server that is leaving keeps its flows until it goes: answers may be on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{Family, Flow, ForwardingMethod, Protocol, State, VirtualServer, VirtualServerKey};
use plan::{Plan, Step};

/// The frontends whose flows have to be looked at.
#[derive(Debug, Default)]
pub(crate) struct StaleFlows {
    /// With the next look.
    due: BTreeSet<VirtualServerKey>,
    /// After the next audit, because the last look failed.
    later: BTreeSet<VirtualServerKey>,
    impossible: bool,
}

/// Which flows to some frontends lead somewhere.
#[derive(Debug, Default)]
pub(crate) struct Frontends {
    /// By the frontend's address and port, those whose answers may come back.
    answering: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
}

impl StaleFlows {
    /// Takes in `frontends` whose real servers have changed; only UDP's matter.
    pub(crate) fn extend(&mut self, frontends: impl IntoIterator<Item = VirtualServerKey>) {
        if !self.impossible {
            self.due.extend(frontends.into_iter().filter(|key| udp_address(key).is_some()));
        }
    }

    /// Those that are due and have a live real server, by family; without one, there is nothing that a new flow could lead to either.
    /// `in_cluster` names the virtual server for callers inside the cluster, where there is one: what leads to its real servers leads
    /// somewhere as well. All that were due no longer are.
    pub(crate) fn take(
        &mut self,
        observed: &State,
        in_cluster: impl Fn(&VirtualServerKey) -> Option<VirtualServerKey>,
    ) -> BTreeMap<Family, Frontends> {
        let mut families: BTreeMap<Family, Frontends> = BTreeMap::new();
        for key in std::mem::take(&mut self.due) {
            let Some(address) = udp_address(&key) else { continue };
            let servers: Vec<_> =
                [Some(key), in_cluster(&key)].into_iter().flatten().filter_map(|key| observed.virtual_servers.get(&key)).collect();
            if !servers.iter().any(|server| is_live(server)) {
                continue;
            }
            let of_family = families.entry(key.family()).or_default();
            let answering = of_family.answering.entry(address).or_default();
            for (real, settings) in servers.iter().flat_map(|server| &server.real_servers) {
                answering.insert(match settings.forwarding {
                    ForwardingMethod::Masquerade => SocketAddr::new(real.address, real.port),
                    // These get packets as they are, and answer from the frontend's address.
                    _ => address,
                });
            }
        }
        families
    }

    /// Has `frontends`, whose flows could not be looked at, wait for the next audit.
    pub(crate) fn put_off(&mut self, frontends: &Frontends) {
        let key = |address: &SocketAddr| VirtualServerKey::address(address.ip(), Protocol::Udp, address.port());
        self.later.extend(frontends.answering.keys().map(key));
    }

    /// Has those that wait be due again.
    pub(crate) fn try_again(&mut self) {
        self.due.append(&mut self.later);
    }

    /// There is no way to look at flows, and will not be.
    pub(crate) fn give_up(&mut self) {
        *self = Self { impossible: true, ..Self::default() };
    }
}

impl Frontends {
    /// Whether `flow` goes to one of the frontends and leads nowhere from there.
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        // IPVS knows no zone but 0 (net/netfilter/ipvs/ip_vs_nfct.c); elsewhere other datapaths see the same packets their own way.
        flow.protocol == Protocol::Udp
            && flow.zone == 0
            && self.answering.get(&flow.original.destination).is_some_and(|answering| !answering.contains(&flow.reply.source))
    }
}

/// The virtual servers of which `plan`, for a kernel that holds `observed`, lets flows go stale: those that lose a real server, and
/// those that get their first live one.
pub(crate) fn changed<'a>(plan: &'a Plan, observed: &'a State) -> impl Iterator<Item = VirtualServerKey> + 'a {
    let was_dead = |key: &VirtualServerKey| !observed.virtual_servers.get(key).is_some_and(is_live);
    plan.steps().filter_map(move |step| match step {
        Step::RemoveRealServer { key, .. } => Some(*key),
        Step::AddVirtualServer { key, real_servers, .. } => real_servers.iter().any(|(_, real)| real.weight > 0).then_some(*key),
        Step::AddRealServer { key, server, .. } | Step::SetRealServer { key, server, .. } => {
            (server.weight > 0 && was_dead(key)).then_some(*key)
        }
        _ => None,
    })
}

fn is_live(server: &VirtualServer) -> bool {
    server.real_servers.values().any(|real| real.weight > 0)
}

fn udp_address(key: &VirtualServerKey) -> Option<SocketAddr> {
    match *key {
        VirtualServerKey::Address { address, port, protocol: Protocol::Udp } => Some(SocketAddr::new(address, port)),
        VirtualServerKey::Address { .. } | VirtualServerKey::Mark { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use model::{Direction, RealServer, RealServerKey, Scheduler};
    use plan::{Ownership, plan};

    use super::*;

    const VIP: &str = "10.96.0.10:53";
    const NODE_PORT: &str = "172.18.0.2:30053";
    const A: &str = "10.244.1.2:8053";
    const B: &str = "10.244.2.2:8053";
    const MARK: VirtualServerKey =
        VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(0x4001).expect("it is not 0") };

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn key(protocol: Protocol, frontend: &str) -> VirtualServerKey {
        VirtualServerKey::address(end(frontend).ip(), protocol, end(frontend).port())
    }

    fn udp(frontend: &str) -> VirtualServerKey {
        key(Protocol::Udp, frontend)
    }

    fn state(servers: &[(VirtualServerKey, &[(&str, u32)])]) -> State {
        let server = |(key, reals): &(VirtualServerKey, &[(&str, u32)])| {
            let mut server = VirtualServer::new(Scheduler::RR, key.family());
            let real = |(address, weight): &(&str, u32)| {
                (
                    RealServerKey::new(end(address).ip(), end(address).port()),
                    RealServer { weight: *weight, ..RealServer::default() },
                )
            };
            server.real_servers.extend(reals.iter().map(real));
            (*key, server)
        };
        State { virtual_servers: servers.iter().map(server).collect(), ..State::default() }
    }

    /// A flow from some client to `destination`, whose answers come from `answering`.
    fn flow(destination: &str, answering: &str) -> Flow {
        let client = SocketAddr::new(std::net::Ipv4Addr::new(172, 18, 0, 100).into(), 4711);
        Flow {
            protocol: Protocol::Udp,
            original: Direction { source: client, destination: end(destination) },
            reply: Direction { source: end(answering), destination: client },
            zone: 0,
        }
    }

    fn look(observed: &State, due: &[VirtualServerKey]) -> Frontends {
        let mut flows = StaleFlows::default();
        flows.extend(due.iter().copied());
        let mut families = flows.take(observed, |_| None);
        assert!(flows.take(observed, |_| None).is_empty(), "nothing is due twice");
        families.remove(&Family::V4).unwrap_or_default()
    }

    #[test]
    fn i1_stale_is_what_leads_to_no_real_server_of_the_frontend() {
        let frontends = look(&state(&[(udp(VIP), &[(A, 1)])]), &[udp(VIP)]);
        assert!(frontends.is_stale(&flow(VIP, B)), "the real server is gone");
        assert!(frontends.is_stale(&flow(VIP, "10.244.1.2:9053")), "it is the same pod, but another port");
        assert!(frontends.is_stale(&flow(VIP, VIP)), "there was no real server when the flow began");
        assert!(!frontends.is_stale(&flow(VIP, A)), "it is in use");
    }

    #[test]
    fn i1_flows_of_others_are_never_stale() {
        let observed = state(&[(udp(VIP), &[(A, 1)]), (udp(NODE_PORT), &[(A, 1)])]);
        let frontends = look(&observed, &[udp(NODE_PORT)]);
        assert!(frontends.is_stale(&flow(NODE_PORT, B)));
        assert!(!frontends.is_stale(&flow("203.0.113.7:30053", "203.0.113.7:30053")), "a node port's number elsewhere");
        assert!(!frontends.is_stale(&flow("172.18.0.2:30054", B)), "another port of the node");
        assert!(!frontends.is_stale(&flow(VIP, B)), "a frontend that did not change");
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            assert!(!frontends.is_stale(&Flow { protocol, ..flow(NODE_PORT, B) }));
        }
        assert!(!frontends.is_stale(&Flow { zone: 7, ..flow(NODE_PORT, NODE_PORT) }), "another datapath's view");
    }

    #[test]
    fn i1_who_is_leaving_keeps_its_flows_until_it_goes() {
        let frontends = look(&state(&[(udp(VIP), &[(A, 0), (B, 1)])]), &[udp(VIP)]);
        assert!(!frontends.is_stale(&flow(VIP, A)));
        assert!(frontends.is_stale(&flow(VIP, VIP)));
    }

    #[test]
    fn without_a_live_real_server_nothing_is_looked_at() {
        let mut flows = StaleFlows::default();
        flows.extend([udp(VIP), udp(NODE_PORT), key(Protocol::Tcp, A)]);
        let observed = state(&[(udp(VIP), &[(A, 0)]), (key(Protocol::Tcp, A), &[(A, 1)])]);
        assert!(flows.take(&observed, |_| None).is_empty(), "there is no flow to list for them");
    }

    #[test]
    fn c1_callers_inside_the_cluster_keep_what_policy_local_has_for_them() {
        let mut flows = StaleFlows::default();
        flows.extend([udp(NODE_PORT)]);
        let observed = state(&[(udp(NODE_PORT), &[]), (MARK, &[(B, 1)])]);
        let families = flows.take(&observed, |key| (*key == udp(NODE_PORT)).then_some(MARK));
        let frontends = &families[&Family::V4];
        assert!(!frontends.is_stale(&flow(NODE_PORT, B)) && frontends.is_stale(&flow(NODE_PORT, A)));
    }

    #[test]
    fn a_real_server_that_is_not_masqueraded_answers_as_the_frontend() {
        let mut observed = state(&[(udp(VIP), &[(A, 1)])]);
        for real in observed.virtual_servers.get_mut(&udp(VIP)).unwrap().real_servers.values_mut() {
            real.forwarding = ForwardingMethod::Tunnel;
        }
        let frontends = look(&observed, &[udp(VIP)]);
        assert!(!frontends.is_stale(&flow(VIP, VIP)) && frontends.is_stale(&flow(VIP, B)));
    }

    #[test]
    fn after_a_failure_frontends_wait_until_they_are_to_be_tried_again() {
        let observed = state(&[(udp(VIP), &[(A, 1)])]);
        let mut flows = StaleFlows::default();
        flows.extend([udp(VIP)]);
        let taken = flows.take(&observed, |_| None);
        flows.put_off(&taken[&Family::V4]);
        assert!(flows.take(&observed, |_| None).is_empty());
        flows.try_again();
        assert!(flows.take(&observed, |_| None)[&Family::V4].is_stale(&flow(VIP, B)));
        flows.give_up();
        flows.extend([udp(VIP)]);
        assert!(flows.take(&observed, |_| None).is_empty());
    }

    #[test]
    fn i1_flows_go_stale_when_a_real_server_goes_and_when_the_first_comes() {
        let changed = |observed: &[(&str, u32)], desired: &[(&str, u32)]| {
            let [observed, desired] = [observed, desired].map(|reals| state(&[(udp(VIP), reals)]));
            changed(&plan(&desired, &observed, &Ownership::Scope), &observed).count() > 0
        };
        assert!(changed(&[(A, 0), (B, 1)], &[(B, 1)]), "the end of a drain");
        assert!(changed(&[], &[(A, 1)]), "the first");
        assert!(changed(&[(A, 0)], &[(A, 0), (B, 1)]), "the first besides one that leaves");
        assert!(changed(&[(A, 0)], &[(A, 1)]), "the only one is back");
        assert!(!changed(&[(A, 1)], &[(A, 1), (B, 1)]), "another one");
        assert!(!changed(&[(A, 1), (B, 1)], &[(A, 0), (B, 1)]), "the begin of a drain");
        assert!(!changed(&[(A, 1)], &[(A, 1)]), "nothing");
        let (none, one) = (State::default(), state(&[(udp(VIP), &[(A, 1)])]));
        let count = |desired, observed| super::changed(&plan(desired, observed, &Ownership::Scope), observed).count();
        assert_eq!((count(&one, &none), count(&none, &one)), (1, 0), "a virtual server comes, and goes");
    }
}
