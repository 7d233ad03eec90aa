//! One Service's part of the desired state.

use std::net::IpAddr;
use std::sync::Arc;

use model::{
    Family, Flags, Member, Protocol, RealServer, RealServerKey, Role, Scheduler, Set, VirtualServer, VirtualServerConfig,
    VirtualServerKey,
};

use crate::config::Config;
use crate::endpoints::{self, Reach};
use crate::problem::Problem;
use crate::service::Service;
use crate::slice::Slice;

/// What one Service wants of the node: a function of the Service, its slices, the facts of the node and the configuration, and of
/// nothing else.
///
/// It is kept for as long as the Service is, so it holds each list of real servers once and leaves to be worked out what can be:
/// virtual servers, VIPs and set members follow from its [`Frontend`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// When its Service was made, in seconds since 1970.
    pub(crate) created: i64,
    /// By key, without duplicates.
    frontends: Box<[Frontend]>,
    pools: Box<[Pool]>,
    /// Endpoints on this node, ready or not.
    local: Box<[(RealServerKey, Protocol)]>,
    problems: Box<[Problem]>,
}

/// An address, protocol and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What makes it a frontend of the Service.
    pub kind: FrontendKind,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    pool: usize,
}

/// What makes an address a frontend of a Service. External IPs and load balancer addresses are to become kinds of their own.
///
/// In order of precedence, should a Service name the same address and port twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// An address of `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
}

/// The real servers behind a port, shared by all of its frontends of one family that spread over the same endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    port_name: Arc<str>,
    config: VirtualServerConfig,
    /// In order. What there is to say of each beyond its key is the same for all.
    real_servers: Box<[RealServerKey]>,
}

impl Frontend {
    /// The virtual server that serves it.
    #[must_use]
    pub const fn key(&self) -> VirtualServerKey {
        VirtualServerKey::address(self.address, self.protocol, self.port)
    }

    /// The VIP that must be bound for packets to this frontend to come in, unless the node has the address anyway.
    #[must_use]
    pub const fn vip(&self) -> Option<IpAddr> {
        match self.kind {
            FrontendKind::ClusterIp => Some(self.address),
            FrontendKind::NodePort => None,
        }
    }

    /// The members of sets by which packet rules know this frontend.
    pub fn members(&self) -> impl Iterator<Item = (Set, Member)> + use<> {
        let family = Family::of(self.address);
        let role = match self.kind {
            FrontendKind::ClusterIp => Role::ClusterIp,
            FrontendKind::NodePort => Role::NodePort,
        };
        let frontend = (Set::new(role, family), Member::IpPort(self.address, self.protocol, self.port));
        let vip = self.vip().map(|vip| (Set::new(Role::Vips, family), Member::Ip(vip)));
        [frontend].into_iter().chain(vip)
    }
}

impl Fragment {
    /// `node_port_addresses` are those of both families; `slices` may be of both families too.
    pub(crate) fn build(
        service: &Service,
        slices: &[&Slice],
        zone: Option<&str>,
        node_port_addresses: &[IpAddr],
        config: &Config,
        problems: Vec<Problem>,
    ) -> Self {
        let mut builder = Builder::default();
        for family in config.families.iter().copied() {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            for port in &service.ports {
                let candidates = endpoints::of_port(slices.iter().copied(), family, port, zone);
                builder
                    .local
                    .extend(candidates.iter().filter(|(_, candidate)| candidate.local).map(|(key, _)| (*key, port.protocol)));

                let mut pool = |reach| {
                    builder.pools.push(Pool {
                        port_name: Arc::clone(&port.name),
                        config: VirtualServerConfig {
                            flags: flags(config.scheduler),
                            persistence: service.affinity,
                            ..VirtualServerConfig::new(config.scheduler, family)
                        },
                        real_servers: endpoints::select(&candidates, reach).into(),
                    });
                    builder.pools.len() - 1
                };
                let internal = pool(service.internal);
                // Callers from outside: `spec.externalTrafficPolicy` is to choose here, for node ports and what else they reach.
                let external = match port.node_port {
                    None => internal,
                    Some(_) if service.internal == Reach::Cluster => internal,
                    Some(_) => pool(Reach::Cluster),
                };
                builder.frontend(FrontendKind::ClusterIp, cluster_ip, port.protocol, port.port, internal);
                for node_port in port.node_port.iter().copied() {
                    for address in node_port_addresses.iter().copied().filter(|address| Family::of(*address) == family) {
                        builder.frontend(FrontendKind::NodePort, address, port.protocol, node_port.get(), external);
                    }
                }
            }
        }
        builder.finish(service.created, problems)
    }

    /// The fragment of a Service of which nothing can be served.
    pub(crate) fn of_problems(problems: Vec<Problem>) -> Self {
        Builder::default().finish(i64::MAX, problems)
    }

    /// The frontends, by key.
    #[must_use]
    pub fn frontends(&self) -> &[Frontend] {
        &self.frontends
    }

    /// The frontend that `key` serves.
    #[must_use]
    pub fn frontend(&self, key: &VirtualServerKey) -> Option<&Frontend> {
        let index = self.frontends.binary_search_by(|frontend| frontend.key().cmp(key)).ok()?;
        self.frontends.get(index)
    }

    /// The virtual server for `key`.
    #[must_use]
    pub fn virtual_server(&self, key: &VirtualServerKey) -> Option<VirtualServer> {
        let pool = self.pool(key)?;
        Some(VirtualServer {
            config: pool.config,
            real_servers: pool.real_servers.iter().map(|key| (*key, RealServer::default())).collect(),
        })
    }

    /// The name of the Service's port behind `key`; empty where the port has none.
    #[must_use]
    pub fn port_name(&self, key: &VirtualServerKey) -> Option<&str> {
        Some(&self.pool(key)?.port_name)
    }

    /// The members of sets that it wants whoever has its frontends: endpoints on this node, whatever their conditions, since a
    /// connection that is established outlives readiness.
    pub fn local_members(&self) -> impl Iterator<Item = (Set, Member)> {
        self.local.iter().map(|(key, protocol)| {
            let member = Member::IpPortIp(key.address, *protocol, key.port, key.address);
            (Set::new(Role::LoopBack, Family::of(key.address)), member)
        })
    }

    /// What of the Service and its slices is not served, and why.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether `key` is served the same way here and in `other`.
    pub(crate) fn serves_like(&self, other: &Self, key: &VirtualServerKey) -> bool {
        match (self.pool(key), other.pool(key)) {
            (Some(one), Some(two)) => one.config == two.config && one.real_servers == two.real_servers,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    fn pool(&self, key: &VirtualServerKey) -> Option<&Pool> {
        self.pools.get(self.frontend(key)?.pool)
    }
}

#[derive(Default)]
struct Builder {
    frontends: Vec<Frontend>,
    pools: Vec<Pool>,
    local: Vec<(RealServerKey, Protocol)>,
}

impl Builder {
    fn frontend(&mut self, kind: FrontendKind, address: IpAddr, protocol: Protocol, port: u16, pool: usize) {
        self.frontends.push(Frontend { kind, address, protocol, port, pool });
    }

    fn finish(mut self, created: i64, problems: Vec<Problem>) -> Fragment {
        self.frontends.sort_by_key(|frontend| (frontend.key(), frontend.kind));
        self.frontends.dedup_by_key(|frontend| frontend.key());
        self.local.sort_unstable();
        self.local.dedup();
        Fragment {
            created,
            frontends: self.frontends.into(),
            pools: self.pools.into(),
            local: self.local.into(),
            problems: problems.into(),
        }
    }
}

/// The schedulers that pick a server by a hash need two things said. `SCHED_1` lets them take another server when the picked one
/// drains; without it those clients are refused for as long as it does (`net/netfilter/ipvs/ip_vs_mh.c`, `ip_vs_sh.c`). `SCHED_2`
/// has `mh` hash the port as well, as kube-proxy has it, so that clients behind one address are spread too.
fn flags(scheduler: Scheduler) -> Flags {
    match scheduler.as_str() {
        "mh" => Flags::SCHED_1.with(Flags::SCHED_2),
        "sh" => Flags::SCHED_1,
        _ => Flags::NONE,
    }
}
