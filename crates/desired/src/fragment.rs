//! One Service's part of the desired state.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{
    Family, Member, Protocol, RealServerKey, RealServers, Role, Set, VirtualServer, VirtualServerConfig, VirtualServerKey,
};

use crate::config::{Config, OccupiedNodePorts};
use crate::endpoints::{Candidates, Reach};
use crate::facts::{NodeFacts, is_ipv6_link_local};
use crate::listeners::Listeners;
use crate::machines::Machines;
use crate::name::{Name, ServiceName};
use crate::problem::{Problem, Problems, Reason};
use crate::service::{Externals, Service, ServicePort};
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
    /// Nothing where there is nothing in it.
    extras: Option<Box<Extras>>,
}

/// What most Services have nothing of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Extras {
    /// By port, those that have such endpoints.
    apart: Box<[(Port, Apart)]>,
    drain_timeout: Option<Duration>,
    /// The networks that may call guarded frontends.
    ranges: Box<[IpNetwork]>,
    health_checks: Box<[(Family, HealthCheck)]>,
    /// What it claims and others have.
    taken: Box<[Taken]>,
    problems: Box<[Problem]>,
}

/// A port of a Service in one family: their number in a fragment.
type Port = u32;

/// An address, protocol and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What makes it a frontend of the Service.
    pub kind: FrontendKind,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    /// The real servers of the virtual server for its address.
    pool: u32,
    /// Under policy `Local`: the real servers that callers inside the cluster are spread over.
    in_cluster: Option<u32>,
    /// Whether the node has the address anyway.
    own: bool,
    guard: Guard,
}

/// What makes an address a frontend of a Service.
///
/// In order of precedence, should a Service name the same address and port twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// An address of `spec.clusterIPs`.
    ClusterIp,
    /// An address of `spec.externalIPs`.
    ExternalIp,
    /// An address of `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
}

/// What a Service claims and does not get, because somebody outside of the cluster's Services has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Taken {
    /// By another machine: an address with all of its ports.
    Address(IpAddr),
    /// By a process of this node: a node port on one of its addresses.
    NodePort(VirtualServerKey),
}

/// Who may call a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Everybody.
    Open,
    /// The networks in the fragment's list for the family, and the node itself if any of its addresses is in one.
    Ranges { node: bool },
}

/// What a health check node port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port to listen on, on the node's addresses.
    pub port: u16,
    /// How many ready endpoints are on this node; a load balancer sends nothing where there are none.
    pub local_endpoints: usize,
}

/// Which of a Service's two traffic policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// `spec.internalTrafficPolicy`, for callers of the ClusterIP.
    Internal,
    /// `spec.externalTrafficPolicy`, for callers of all other frontends.
    External,
}

/// How an endpoint stands that is, or was, a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there and is not about to go: ready or not, chosen for this node or not.
    Present,
    /// It has been told to end.
    Terminating,
    /// It is there, and its node is not ready: whether it still is anything is not known, nor will it be told to end.
    Stranded,
    /// No slice of its Service has it any more.
    Gone,
}

/// What there is to know of a desired virtual server for when its real servers leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parting<'a> {
    /// How long their connections of TCP and SCTP are kept, where the Service says so.
    pub drain_timeout: Option<Duration>,
    /// Those that still serve while they terminate, as the last ones of a port do; in order.
    pub terminating: &'a [RealServerKey],
}

/// The endpoints of a port that are in none of its pools, because they are not ready, or terminate, or others are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Apart {
    /// In order.
    present: Box<[IpAddr]>,
    /// In order.
    terminating: Box<[IpAddr]>,
    /// Those of either that are on a node that is not ready, in order.
    stranded: Box<[IpAddr]>,
}

/// The real servers behind a port, shared by all of its frontends of one family that spread over the same endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    port_name: Name,
    config: VirtualServerConfig,
    /// In order. What there is to say of each beyond its key is the same for all, but for its weight.
    real_servers: Arc<[RealServerKey]>,
    /// Those of another weight than 1, in order.
    weights: Box<[(RealServerKey, u16)]>,
    /// Those that still serve while they terminate, in order.
    terminating: Box<[RealServerKey]>,
    /// Which port of which family it is of.
    port: Port,
    /// Whether policy `Local` leaves it empty although there are endpoints on other nodes.
    only_elsewhere: bool,
}

/// What a fragment is made from, beside the Service and its slices.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a Config,
    pub(crate) facts: &'a NodeFacts,
    /// The addresses of both families on which node ports are served.
    pub(crate) node_port_addresses: &'a [IpAddr],
    pub(crate) machines: &'a Machines,
    /// Other nodes that are not ready.
    pub(crate) unready: &'a BTreeSet<Box<str>>,
    pub(crate) listeners: &'a Listeners,
}

impl Surroundings<'_> {
    /// Those of `addresses`, from `field`, that this node may take without cutting another machine off.
    /// The others are added to `taken`.
    fn takeable(&self, addresses: &[IpAddr], field: &str, problems: &mut Problems, taken: &mut Vec<Taken>) -> Vec<IpAddr> {
        let Self { config, facts, machines, .. } = self;
        let served = |address: &IpAddr| config.families.contains(&Family::of(*address));
        let allowed = |address: IpAddr| {
            // What the node has itself is not taken from anybody.
            facts.has(address) || config.allowed_externals.iter().any(|network| network.contains(address))
        };
        let mut takeable = Vec::with_capacity(addresses.len());
        for address in addresses.iter().copied().filter(served) {
            match machines.holder(address).filter(|_| !allowed(address)) {
                None => takeable.push(address),
                Some(holder) => {
                    taken.push(Taken::Address(address));
                    problems.add_for(
                        Reason::AddressRefused,
                        field,
                        format!(
                            "has {address}, {holder}, and is not served there: this node could not reach it any more; \
                             choose another address, or allow this one with --allow-external-cidrs"
                        ),
                    );
                }
            }
        }
        takeable
    }

    /// Those of `addresses` on which the node port of `port` is to be served. What a process has instead is added to `taken`.
    fn node_port_addresses_of(&self, port: &ServicePort, problems: &mut Problems, taken: &mut Vec<Taken>) -> Vec<IpAddr> {
        let Some(number) = port.node_port.map(NonZeroU16::get) else { return Vec::new() };
        let Self { config, listeners, node_port_addresses, .. } = self;
        let is_free = |address: &&IpAddr| !listeners.take(port.protocol, **address, number);
        let free: Vec<_> = node_port_addresses.iter().filter(is_free).copied().collect();
        if free.len() == node_port_addresses.len() {
            return free;
        }
        let (outcome, addresses) = match config.occupied_node_ports {
            OccupiedNodePorts::Service => {
                ("the Service has it, and the process gets no calls from outside", node_port_addresses.to_vec())
            }
            OccupiedNodePorts::Process => {
                let occupied = node_port_addresses.iter().filter(|address| !is_free(address));
                let key = |address: &IpAddr| VirtualServerKey::address(*address, port.protocol, number);
                taken.extend(occupied.map(|address| Taken::NodePort(key(address))));
                ("the process keeps it, and the Service is not served there", free)
            }
        };
        problems.add_for(
            Reason::PortInUse,
            "spec.ports[].nodePort",
            format!(
                "is {number}, where a process of this node listens for {} (see `ss -lnp`): {outcome}; give one of them another port",
                port.protocol
            ),
        );
        addresses
    }
}

impl FrontendKind {
    /// The field that makes it one.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::ExternalIp => "spec.externalIPs",
            Self::LoadBalancer => "status.loadBalancer.ingress",
            Self::NodePort => "spec.ports[].nodePort",
        }
    }
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
            FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::LoadBalancer if !self.own => Some(self.address),
            _ => None,
        }
    }

    /// Whether callers inside the cluster have a virtual server of their own, because policy `Local` is for those outside.
    pub(crate) const fn has_in_cluster(&self) -> bool {
        self.in_cluster.is_some()
    }

    /// The member by which packets of callers inside the cluster get `mark`.
    pub(crate) fn marked(&self, mark: NonZeroU32) -> (Set, Member) {
        let set = Set::new(Role::InCluster, Family::of(self.address));
        (set, Member::IpPortMark(self.address, self.protocol, self.port, mark))
    }

    /// The sets in which packet rules look this frontend up.
    fn roles(&self) -> impl Iterator<Item = Role> + use<> {
        let local = self.has_in_cluster();
        let roles = match self.kind {
            FrontendKind::ClusterIp => [Some(Role::ClusterIp), None],
            FrontendKind::ExternalIp if local => [Some(Role::ExternalIpLocal), None],
            FrontendKind::ExternalIp => [Some(Role::ExternalIp), None],
            FrontendKind::LoadBalancer => [Some(Role::LoadBalancer), local.then_some(Role::LoadBalancerLocal)],
            FrontendKind::NodePort => [Some(Role::NodePort), local.then_some(Role::NodePortLocal)],
        };
        let guard = match self.guard {
            Guard::Open => [None, None],
            Guard::Ranges { node } => [Some(Role::Restricted), node.then_some(Role::SourceNode)],
        };
        roles.into_iter().chain(guard).flatten()
    }
}

impl Fragment {
    /// `slices` may be of both families.
    pub(crate) fn build(
        name: &ServiceName,
        service: &Service,
        slices: &[&Slice],
        around: Surroundings<'_>,
        mut problems: Vec<Problem>,
    ) -> Self {
        let Surroundings { config, facts, .. } = around;
        let nothing = Externals::default();
        let externals = service.externals.as_deref().unwrap_or(&nothing);
        let mut builder = Builder { ranges: externals.ranges.clone().unwrap_or_default(), ..Builder::default() };
        let mut not_here = Problems::of("Service", name);
        let external_ips = if config.external_ips { &*externals.ips } else { &[] };
        let external_ips = around.takeable(external_ips, "spec.externalIPs", &mut not_here, &mut builder.taken);
        let excluded = |address: &IpAddr| config.excluded_load_balancers.iter().any(|network| network.contains(*address));
        let load_balancer: Vec<_> = externals.load_balancer.iter().copied().filter(|address| !excluded(address)).collect();
        let load_balancer = around.takeable(&load_balancer, "status.loadBalancer.ingress", &mut not_here, &mut builder.taken);
        let node_ports: Vec<_> =
            service.ports.iter().map(|port| around.node_port_addresses_of(port, &mut not_here, &mut builder.taken)).collect();
        for family in config.families.iter().copied() {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            let guard = guard(externals.ranges.as_deref(), family, config, facts);
            let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
                addresses.iter().copied().filter(|address| Family::of(*address) == family).collect()
            };
            let external_ips = of_family(&external_ips);
            let load_balancer = of_family(&load_balancer);
            let mut ready_here = BTreeSet::new();
            for (port, node_addresses) in service.ports.iter().zip(&node_ports) {
                let candidates = Candidates::of(
                    slices.iter().copied(),
                    family,
                    port,
                    facts.zone.as_deref(),
                    service.scheduling.as_deref().map(|scheduling| &scheduling.weights),
                    around.unready,
                );
                builder
                    .local
                    .extend(candidates.iter().filter(|(_, candidate)| candidate.local).map(|(key, _)| (*key, port.protocol)));
                ready_here.extend(candidates.iter().filter(|(_, candidate)| candidate.is_ready_here()).map(|(key, _)| key.address));

                let mut pools =
                    Pools { builder: &mut builder, service, port, family, config, candidates: &candidates, made: [None; 2] };
                let internal = pools.reaching(service.internal);
                let is_external = port.node_port.is_some() || !external_ips.is_empty() || !load_balancer.is_empty();
                let external = is_external.then(|| match service.external {
                    Reach::Cluster => (pools.reaching(Reach::Cluster), None),
                    Reach::Node => (pools.reaching(Reach::Node), Some(pools.reaching(Reach::Cluster))),
                });
                builder.set_apart(&candidates);
                let mut add = |kind, address, port_number, (pool, in_cluster), guard| {
                    let own = kind != FrontendKind::ClusterIp && facts.has(address);
                    let protocol = port.protocol;
                    builder.frontends.push(Frontend { kind, address, protocol, port: port_number, pool, in_cluster, own, guard });
                };
                add(FrontendKind::ClusterIp, cluster_ip, port.port, (internal, None), Guard::Open);
                let Some(external) = external else { continue };
                for address in &external_ips {
                    add(FrontendKind::ExternalIp, *address, port.port, external, Guard::Open);
                }
                for address in &load_balancer {
                    add(FrontendKind::LoadBalancer, *address, port.port, external, guard);
                }
                let node_port = port.node_port.map(NonZeroU16::get);
                for (address, number) in of_family(node_addresses).into_iter().zip(node_port.iter().cycle()) {
                    add(FrontendKind::NodePort, address, *number, external, Guard::Open);
                }
            }
            let check = externals.health_check.map(|port| HealthCheck { port: port.get(), local_endpoints: ready_here.len() });
            builder.health_checks.extend(check.map(|check| (family, check)));
        }
        problems.extend(not_here.finish());
        builder.drain_timeout = service.drain_timeout;
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
        self.pool(key).map(Pool::virtual_server)
    }

    /// The virtual server for callers inside the cluster of the frontend `key`, where policy `Local` sets them apart.
    pub(crate) fn in_cluster_server(&self, key: &VirtualServerKey) -> Option<VirtualServer> {
        self.pool_at(self.frontend(key)?.in_cluster?).map(Pool::virtual_server)
    }

    /// The members of sets by which packet rules know the frontend `key`, all but its mark.
    pub(crate) fn members_of(&self, frontend: &Frontend) -> Vec<(Set, Member)> {
        let Frontend { address, protocol, port, .. } = *frontend;
        let family = Family::of(address);
        let by_port = |role| (Set::new(role, family), Member::IpPort(address, protocol, port));
        let mut members: Vec<_> = frontend.roles().map(by_port).collect();
        members.extend(frontend.vip().map(|vip| (Set::new(Role::Vips, family), Member::Ip(vip))));
        let unserved = frontend.has_in_cluster() && self.pool_at(frontend.pool).is_some_and(|pool| pool.real_servers.is_empty());
        members.extend(unserved.then(|| by_port(Role::NoLocal)));
        if let Guard::Ranges { .. } = frontend.guard {
            let ranges = self.extras(|extras| &extras.ranges).iter().filter(|range| Family::of(range.network()) == family);
            let member = |range: &IpNetwork| Member::IpPortNet(address, protocol, port, *range);
            members.extend(ranges.map(|range| (Set::new(Role::SourceRange, family), member(range))));
        }
        if let (Some(vip), Some(check)) = (frontend.vip(), self.health_check_of(family)) {
            members.push((Set::new(Role::HealthCheck, family), Member::IpPort(vip, Protocol::Tcp, check.port)));
        }
        members
    }

    /// The Service's health check node port.
    #[must_use]
    pub fn health_check_port(&self) -> Option<u16> {
        self.extras(|extras| &extras.health_checks).first().map(|(_, check)| check.port)
    }

    /// What the Service's health check node port is to answer on the node's addresses of `family`.
    #[must_use]
    pub fn health_check_of(&self, family: Family) -> Option<HealthCheck> {
        self.extras(|extras| &extras.health_checks).iter().find(|(of, _)| *of == family).map(|(_, check)| *check)
    }

    /// The policies `Local` under which nobody is served in a family although there are endpoints, because none of them is on this node.
    #[must_use]
    pub fn without_local_endpoints(&self) -> BTreeSet<(Family, TrafficPolicy)> {
        let unserved = |frontend: &&Frontend| self.pool_at(frontend.pool).is_some_and(|pool| pool.only_elsewhere);
        let policy = |frontend: &Frontend| match frontend.kind {
            FrontendKind::ClusterIp => TrafficPolicy::Internal,
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort => TrafficPolicy::External,
        };
        self.frontends.iter().filter(unserved).map(|frontend| (Family::of(frontend.address), policy(frontend))).collect()
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

    /// How the endpoint at `address` of the port behind the frontend `key` stands, whatever its port number is.
    pub(crate) fn standing(&self, key: &VirtualServerKey, address: IpAddr) -> Option<Standing> {
        let port = self.pool(key)?.port;
        let mut pools = self.pools.iter().filter(|pool| pool.port == port);
        let apart = self.extras(|extras| &extras.apart).iter().find(|(of, _)| *of == port).map(|(_, apart)| apart);
        let has = |of: fn(&Apart) -> &[IpAddr]| apart.is_some_and(|apart| of(apart).binary_search(&address).is_ok());
        Some(if has(|apart| &apart.stranded) {
            Standing::Stranded
        } else if has(|apart| &apart.terminating) || pools.clone().any(|pool| has_address(&pool.terminating, address)) {
            Standing::Terminating
        } else if has(|apart| &apart.present) || pools.any(|pool| has_address(&pool.real_servers, address)) {
            Standing::Present
        } else {
            Standing::Gone
        })
    }

    /// What matters when real servers leave the virtual server for `key`.
    pub(crate) fn parting(&self, key: &VirtualServerKey) -> Option<Parting<'_>> {
        self.pool(key).map(|pool| self.parting_of(pool))
    }

    /// The same for callers inside the cluster, where policy `Local` sets them apart.
    pub(crate) fn in_cluster_parting(&self, key: &VirtualServerKey) -> Option<Parting<'_>> {
        self.in_cluster_pool(key).map(|pool| self.parting_of(pool))
    }

    fn parting_of<'a>(&self, pool: &'a Pool) -> Parting<'a> {
        Parting { drain_timeout: self.drain_timeout(), terminating: &pool.terminating }
    }

    fn drain_timeout(&self) -> Option<Duration> {
        self.extras.as_ref()?.drain_timeout
    }

    fn extras<'a, T>(&'a self, read: impl FnOnce(&'a Extras) -> &'a [T]) -> &'a [T] {
        self.extras.as_deref().map_or(&[], read)
    }

    /// What it claims and others have, without duplicates.
    pub(crate) fn taken(&self) -> &[Taken] {
        self.extras(|extras| &extras.taken)
    }

    /// What of the Service and its slices is not served, and why.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        self.extras(|extras| &extras.problems)
    }

    /// Whether `key` is served the same way here and in `other`, by both of its virtual servers, and will be when its real servers leave.
    pub(crate) fn serves_like(&self, other: &Self, key: &VirtualServerKey) -> bool {
        let alike = |one: Option<&Pool>, two: Option<&Pool>| match (one, two) {
            (Some(one), Some(two)) => {
                (one.config, &one.real_servers, &one.weights, &one.terminating)
                    == (two.config, &two.real_servers, &two.weights, &two.terminating)
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.drain_timeout() == other.drain_timeout()
            && alike(self.pool(key), other.pool(key))
            && alike(self.in_cluster_pool(key), other.in_cluster_pool(key))
    }

    fn pool(&self, key: &VirtualServerKey) -> Option<&Pool> {
        self.pool_at(self.frontend(key)?.pool)
    }

    fn in_cluster_pool(&self, key: &VirtualServerKey) -> Option<&Pool> {
        self.pool_at(self.frontend(key)?.in_cluster?)
    }

    fn pool_at(&self, index: u32) -> Option<&Pool> {
        self.pools.get(usize::try_from(index).ok()?)
    }
}

impl Pool {
    fn virtual_server(&self) -> VirtualServer {
        let mut real_servers = RealServers::alike(Arc::clone(&self.real_servers));
        for (key, weight) in &self.weights {
            if let Some(server) = real_servers.get_mut(key) {
                server.weight = u32::from(*weight);
            }
        }
        VirtualServer { config: self.config, real_servers }
    }
}

/// Whether any of `keys`, which are in order, has `address`.
fn has_address(keys: &[RealServerKey], address: IpAddr) -> bool {
    let first = keys.partition_point(|key| key.address < address);
    keys.get(first).is_some_and(|key| key.address == address)
}

/// Who may call a load balancer's addresses of `family`.
fn guard(ranges: Option<&[IpNetwork]>, family: Family, config: &Config, facts: &NodeFacts) -> Guard {
    let Some(ranges) = ranges else { return Guard::Open };
    let of_family: Vec<_> = ranges.iter().filter(|range| Family::of(range.network()) == family).collect();
    let everybody = of_family.iter().any(|range| range.prefix() == 0);
    let left_open = of_family.is_empty() && !ranges.is_empty() && config.ranges_per_family;
    if everybody || left_open {
        return Guard::Open;
    }
    // A link-local address is none by which anybody could mean the node.
    let mut own = facts.own(family).filter(|address| !is_ipv6_link_local(*address));
    Guard::Ranges { node: own.any(|own| of_family.iter().any(|range| range.contains(own))) }
}

#[derive(Default)]
struct Builder {
    frontends: Vec<Frontend>,
    pools: Vec<Pool>,
    /// The port whose pools are being made.
    port: Port,
    apart: Vec<(Port, Apart)>,
    drain_timeout: Option<Duration>,
    local: Vec<(RealServerKey, Protocol)>,
    ranges: Box<[IpNetwork]>,
    health_checks: Vec<(Family, HealthCheck)>,
    taken: Vec<Taken>,
}

/// The pools of one port in one family, each made when it is first asked for.
struct Pools<'a> {
    builder: &'a mut Builder,
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    config: &'a Config,
    candidates: &'a Candidates,
    made: [Option<u32>; 2],
}

impl Pools<'_> {
    fn reaching(&mut self, reach: Reach) -> u32 {
        let [cluster, node] = &mut self.made;
        let made = match reach {
            Reach::Cluster => cluster,
            Reach::Node => node,
        };
        if let Some(index) = made {
            return *index;
        }
        let Self { service, port, family, config, .. } = *self;
        let index = u32::try_from(self.builder.pools.len()).unwrap_or(u32::MAX);
        let (mut real_servers, mut weights, mut terminating) = (Vec::new(), Vec::new(), Vec::new());
        for (key, candidate) in self.candidates.select(reach) {
            real_servers.push(*key);
            if candidate.weight != 1 {
                weights.push((*key, candidate.weight));
            }
            if candidate.terminating {
                terminating.push(*key);
            }
        }
        let elsewhere = || self.candidates.select(Reach::Cluster).next().is_some();
        self.builder.pools.push(Pool {
            only_elsewhere: reach == Reach::Node && real_servers.is_empty() && elsewhere(),
            port_name: port.name.clone(),
            config: virtual_server_config(service, port, config, family),
            real_servers: real_servers.into(),
            weights: weights.into(),
            terminating: terminating.into(),
            port: self.builder.port,
        });
        *made = Some(index);
        index
    }
}

impl Builder {
    /// Goes on to the next port, when all pools of one with these endpoints are made.
    fn set_apart(&mut self, candidates: &Candidates) {
        let port = self.port;
        self.port += 1;
        let pools: Vec<_> = self.pools.iter().rev().take_while(|pool| pool.port == port).collect();
        // As with most Services.
        if pools.iter().any(|pool| pool.real_servers.len() == candidates.len()) {
            return;
        }
        // A pool has some of the candidates, in the same order.
        let mut pools: Vec<_> = pools.iter().map(|pool| pool.real_servers.iter().peekable()).collect();
        let (mut present, mut terminating, mut stranded) = (Vec::new(), Vec::new(), Vec::new());
        for (key, candidate) in candidates.iter() {
            let served = pools.iter_mut().filter_map(|pool| pool.next_if_eq(&key)).count() > 0;
            if served {
                continue;
            }
            let addresses = if candidate.terminating { &mut terminating } else { &mut present };
            addresses.push(key.address);
            if candidate.stranded {
                stranded.push(key.address);
            }
        }
        [&mut present, &mut terminating, &mut stranded].into_iter().for_each(Vec::dedup);
        let apart = Apart { present: present.into(), terminating: terminating.into(), stranded: stranded.into() };
        if apart != Apart::default() {
            self.apart.push((port, apart));
        }
    }

    fn finish(mut self, created: i64, problems: Vec<Problem>) -> Fragment {
        self.frontends.sort_by_key(|frontend| (frontend.key(), frontend.kind));
        self.frontends.dedup_by(|again, first| {
            let same = again.key() == first.key();
            // What another kind of frontend leaves open is not to open what this one guards.
            if same && first.guard == Guard::Open {
                first.guard = again.guard;
            }
            same
        });
        self.local.sort_unstable();
        self.local.dedup();
        self.taken.sort_unstable();
        self.taken.dedup();
        let extras = Extras {
            apart: self.apart.into(),
            drain_timeout: self.drain_timeout,
            ranges: self.ranges,
            health_checks: self.health_checks.into(),
            taken: self.taken.into(),
            problems: problems.into(),
        };
        Fragment {
            created,
            frontends: self.frontends.into(),
            pools: self.pools.into(),
            local: self.local.into(),
            extras: (extras != Extras::default()).then(|| Box::new(extras)),
        }
    }
}

fn virtual_server_config(service: &Service, port: &ServicePort, config: &Config, family: Family) -> VirtualServerConfig {
    let mut settings = VirtualServerConfig {
        flags: config.scheduler.default_flags(),
        persistence: service.affinity,
        ..VirtualServerConfig::new(config.scheduler, family)
    };
    if let Some(scheduling) = &service.scheduling {
        scheduling.apply_to(&mut settings, port.protocol);
    }
    settings
}
