//! The objects as last seen, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{Protocol, Scheduler};

use crate::config::{Config, Masquerade};
use crate::facts::{self, InterfaceAddress, NodeFacts, is_ipv6_link_local};
use crate::fragment::{Fragment, Surroundings};
use crate::listeners::{Listener, Listeners};
use crate::machines::{self, Footprint, Machines};
use crate::name::{Names, ServiceName};
use crate::object::{self, EndpointSlice, Node, ObjectMeta};
use crate::pods::PodName;
use crate::problem::{Problem, Problems};
use crate::service::Service;
use crate::slice::{Endpoint, Slice};

const SERVICE: &str = "Service";
const ENDPOINT_SLICE: &str = "EndpointSlice";

/// The Service of the API server itself: its endpoints are where the API server answers.
const API: (&str, &str) = ("default", "kubernetes");

/// The namespace and name of an EndpointSlice take the same form as a Service's.
type SliceName = ServiceName;

/// Follows Services, EndpointSlices, Nodes and the node's own network, and tells which Services each change touches.
///
/// It takes whole objects and keeps of them what desired state follows from. An object that changes in nothing else makes no Service
/// dirty. A change costs what it touches: an EndpointSlice its own Service, a node address the Services that can be called from
/// outside, the node's zone the Services with zone hints, another machine's address the Services that claim it, a process that
/// listens the Services with that node port.
#[derive(Debug)]
pub struct Index {
    config: Config,
    facts: NodeFacts,
    node_problems: Box<[Problem]>,
    node_port_addresses: Vec<IpAddr>,
    /// The node's own addresses, as far as Services can depend on them.
    own_addresses: BTreeSet<IpAddr>,
    machines: Machines,
    /// Other nodes that say, or of which it is said, that they are not ready.
    unready: BTreeSet<Box<str>>,
    listeners: Listeners,
    entries: BTreeMap<ServiceName, Box<Entry>>,
    /// The names of nodes and ports.
    names: Names,
    /// Which Service a slice was last seen to belong to.
    slices: BTreeMap<SliceName, ServiceName>,
    /// Services that depend on the node's addresses.
    on_addresses: BTreeSet<ServiceName>,
    with_zone_hints: BTreeSet<ServiceName>,
    /// Which Services have an address as an external IP or a load balancer's.
    claims: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
    node_ports: BTreeMap<(Protocol, u16), BTreeSet<ServiceName>>,
    /// Whether there is a node port that there was not when it was last asked for.
    has_new_node_ports: bool,
    /// The schedulers that Services ask for.
    schedulers: BTreeMap<ServiceName, Scheduler>,
    lacking: BTreeSet<Scheduler>,
    dirty: BTreeSet<ServiceName>,
    /// The Services that are listed just now, and those of the slices that are.
    arriving: Vec<ServiceName>,
    listed_services: Option<BTreeSet<ServiceName>>,
    listed_slices: Option<BTreeSet<SliceName>>,
    listed_nodes: Option<BTreeSet<Box<str>>>,
}

/// A kind of object that is listed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Node.
    Node,
}

/// In which order Services are to be served when many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// `default/kubernetes`: without it no other agent of the node gets anywhere.
    Api,
    /// Cluster DNS: what everything else asks first.
    Dns,
    /// All others.
    Rest,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The name of the pod that it is, in the namespace of its Service.
    pub pod: Option<String>,
    /// The name of the node that it is on.
    pub node: Option<&'a str>,
}

/// What is known of one Service: itself, its slices, or both.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    problems: Box<[Problem]>,
    /// By name. Most Services have one or two.
    slices: Vec<(SliceName, Slice)>,
}

impl<'a> Place<'a> {
    fn of((endpoint, pod): (&'a Endpoint, Option<PodName<'_>>)) -> Self {
        Self { address: endpoint.address, pod: pod.map(|pod| pod.to_string()), node: endpoint.node.as_deref() }
    }
}

impl Index {
    /// An index that knows of nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            machines: Machines::new(config.pod_networks()),
            unready: BTreeSet::new(),
            listeners: Listeners::default(),
            config,
            facts: NodeFacts::default(),
            node_problems: Box::default(),
            node_port_addresses: Vec::new(),
            own_addresses: BTreeSet::new(),
            entries: BTreeMap::new(),
            names: Names::default(),
            slices: BTreeMap::new(),
            on_addresses: BTreeSet::new(),
            with_zone_hints: BTreeSet::new(),
            claims: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            has_new_node_ports: false,
            schedulers: BTreeMap::new(),
            lacking: BTreeSet::new(),
            dirty: BTreeSet::new(),
            arriving: Vec::new(),
            listed_services: None,
            listed_slices: None,
            listed_nodes: None,
        }
    }

    /// Takes in what the operator has decided since. Who the node is, which families and whose Services it serves, how VIPs are bound and the bit
    /// of the packet mark stay: what has been read, and what the kernel holds, depends on them.
    pub fn set_config(&mut self, config: Config) {
        self.machines.replace_pod_networks(self.config.pod_networks(), config.pod_networks());
        let Config { node_name, families, proxy_name, via, masquerade, .. } = std::mem::replace(&mut self.config, config);
        let masquerade = Masquerade { mark: masquerade.mark, ..std::mem::take(&mut self.config.masquerade) };
        self.config = Config { node_name, families, proxy_name, via, masquerade, ..self.config.clone() };
        self.follow_addresses();
        self.dirty.extend(self.entries.keys().cloned());
    }

    /// Takes in a Service that is new or was changed.
    ///
    /// # Errors
    /// When the object has no name to know it by.
    pub fn apply_service(&mut self, object: &object::Service) -> Result<(), Problem> {
        let name = ServiceName::of(SERVICE, &object.metadata)?;
        let (service, problems) = Service::parse(&name, object, self.config.proxy_name.as_deref(), &mut self.names);
        let name = self.known(name);
        if let Some(listed) = &mut self.listed_services {
            listed.insert(name.clone());
            self.arriving.push(name.clone());
        }
        self.set_service(name, service, problems);
        Ok(())
    }

    /// Forgets a Service.
    pub fn delete_service(&mut self, metadata: &ObjectMeta) {
        if let Ok(name) = ServiceName::of(SERVICE, metadata) {
            self.set_service(name, None, Box::default());
        }
    }

    /// Takes in an EndpointSlice that is new or was changed.
    ///
    /// # Errors
    /// When the object has no name to know it by.
    pub fn apply_slice(&mut self, object: &EndpointSlice) -> Result<(), Problem> {
        self.apply_slice_and_tell(object).map(|_| ())
    }

    /// The same; returns whether that makes a difference to its Service.
    ///
    /// # Errors
    /// As [`Self::apply_slice`].
    pub fn apply_slice_and_tell(&mut self, object: &EndpointSlice) -> Result<bool, Problem> {
        let name = SliceName::of(ENDPOINT_SLICE, &object.metadata)?;
        let slice = Slice::service(object)
            .and_then(|service| Some((service, Slice::parse(&name, object, &self.config.node_name, &mut self.names)?)));
        let Some((service, slice)) = slice else {
            self.remove_slice(&name);
            return Ok(true);
        };
        let service = self.known(service);
        if self.slices.get(&name).is_some_and(|known| *known != service) {
            self.remove_slice(&name);
        }
        if let Some(listed) = &mut self.listed_slices {
            listed.insert(name.clone());
            self.arriving.push(service.clone());
        }
        self.slices.insert(name.clone(), service.clone());
        let changed = self.entries.entry(service.clone()).or_default().set_slice(name, slice);
        if changed {
            self.touched(service);
        }
        Ok(changed)
    }

    /// Forgets an EndpointSlice.
    pub fn delete_slice(&mut self, metadata: &ObjectMeta) {
        if let Ok(name) = SliceName::of(ENDPOINT_SLICE, metadata) {
            self.remove_slice(&name);
        }
    }

    /// Takes in what a Node says of itself. Of Nodes other than the own one it keeps what Services must not take from them.
    pub fn apply_node(&mut self, object: &Node) {
        let Some(name) = object.metadata.name.as_deref() else { return };
        if let Some(listed) = &mut self.listed_nodes {
            listed.insert(name.into());
        }
        let is_own = name == &*self.config.node_name;
        if is_own {
            let zone = self.facts.zone.clone();
            self.node_problems = self.facts.read(object);
            if self.facts.zone != zone {
                self.dirty.extend(self.with_zone_hints.iter().cloned());
            }
            self.follow_addresses();
        }
        // The own one is there, whatever the cluster has heard of it: what this runs on reaches its pods.
        self.set_unready(name, !is_own && facts::is_unready(object));
        // What is wrong with another Node is for the agent there to say.
        let mut unsaid = Problems::of("Node", name);
        let addresses = if is_own { Vec::new() } else { facts::ips(object, &mut unsaid) };
        let pod_networks = facts::pod_cidrs(object, &mut unsaid).into();
        let touched = self.machines.set_node(name, Footprint { addresses: addresses.into(), pod_networks });
        self.machines_touched(&touched);
    }

    /// Forgets a Node. The own one being gone changes nothing: an object is gone, and the machine still has its addresses, its zone
    /// and its pods.
    pub fn delete_node(&mut self, metadata: &ObjectMeta) {
        if let Some(name) = metadata.name.as_deref().filter(|name| **name != *self.config.node_name) {
            self.forget_node(name);
        }
    }

    /// Takes in the default gateways of the node, as they are now.
    pub fn set_gateways(&mut self, gateways: BTreeSet<IpAddr>) {
        let touched = self.machines.set_gateways(gateways);
        self.machines_touched(&touched);
    }

    fn forget_node(&mut self, name: &str) {
        self.set_unready(name, false);
        let touched = self.machines.set_node(name, Footprint::default());
        self.machines_touched(&touched);
    }

    /// Takes note of whether a node is ready. It seldom changes, and costs a look at all endpoints when it does.
    /// The Nodes of which it is known that they are not ready.
    pub(crate) const fn unready(&self) -> &BTreeSet<Box<str>> {
        &self.unready
    }

    fn set_unready(&mut self, name: &str, unready: bool) {
        let changed = if unready { self.unready.insert(name.into()) } else { self.unready.remove(name) };
        if changed {
            let is_there = |entry: &Entry| {
                let mut endpoints = entry.slices.iter().flat_map(|(_, slice)| &slice.endpoints);
                endpoints.any(|endpoint| endpoint.node.as_deref() == Some(name))
            };
            self.dirty.extend(self.entries.iter().filter(|(_, entry)| is_there(entry)).map(first));
        }
    }

    /// Takes in what processes of the node listen on, as it is now.
    pub fn set_listeners(&mut self, listeners: BTreeSet<Listener>) {
        let listeners = Listeners::new(listeners);
        for port in listeners.changed_ports(&self.listeners) {
            self.dirty.extend(self.node_ports.get(&port).into_iter().flatten().cloned());
        }
        self.listeners = listeners;
    }

    /// Whether there is a node port that there was not at the last call: what listens on it is not known yet.
    pub fn take_new_node_ports(&mut self) -> bool {
        std::mem::take(&mut self.has_new_node_ports)
    }

    /// Takes in the addresses of all interfaces of the node. Not to be called with the result of a listing that failed: an address
    /// that is missing from it stops serving node ports.
    pub fn set_interfaces(&mut self, mut interfaces: Vec<InterfaceAddress>) {
        interfaces.sort_unstable();
        interfaces.dedup();
        self.facts.interfaces = interfaces;
        self.follow_addresses();
    }

    /// Takes note of the schedulers that the node's kernel has been found to lack. Services that ask for one still want it, and have a
    /// problem.
    pub fn set_lacking_schedulers(&mut self, lacking: BTreeSet<Scheduler>) {
        let changed: BTreeSet<_> = self.lacking.symmetric_difference(&lacking).copied().collect();
        let asking = self.schedulers.iter().filter(|(_, scheduler)| changed.contains(scheduler));
        self.dirty.extend(asking.map(first));
        self.lacking = lacking;
    }

    /// Starts over with all objects of `kind`: what is not applied until [`Self::end_listing`] will be gone then. A listing that was
    /// begun and not ended is void.
    pub fn begin_listing(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.listed_services = Some(BTreeSet::new()),
            Kind::EndpointSlice => self.listed_slices = Some(BTreeSet::new()),
            Kind::Node => self.listed_nodes = Some(BTreeSet::new()),
        }
    }

    /// Ends a listing: forgets what was not applied since [`Self::begin_listing`].
    pub fn end_listing(&mut self, kind: Kind) {
        match kind {
            Kind::Service => {
                let Some(listed) = self.listed_services.take() else { return };
                let gone: Vec<_> =
                    self.entries.iter().filter(|(name, entry)| entry.has_service() && !listed.contains(*name)).map(first).collect();
                gone.into_iter().for_each(|name| self.set_service(name, None, Box::default()));
            }
            Kind::EndpointSlice => {
                let Some(listed) = self.listed_slices.take() else { return };
                let gone: Vec<_> = self.slices.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.remove_slice(name));
            }
            Kind::Node => {
                let Some(listed) = self.listed_nodes.take() else { return };
                let own = &*self.config.node_name;
                let is_gone = |name: &&str| *name != own && !listed.contains(*name);
                let known = self.machines.nodes().map(|name| &**name).chain(self.unready.iter().map(|name| &**name));
                let gone: BTreeSet<Box<str>> = known.filter(is_gone).map(Box::from).collect();
                gone.iter().for_each(|name| self.forget_node(name));
            }
        }
    }

    /// The Services whose [`Self::fragment`] may have changed since the last call, gone ones included.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceName> {
        self.arriving = Vec::new();
        std::mem::take(&mut self.dirty)
    }

    /// Those of them that have come in the listings that are under way, with a slice at least: most are complete with that. What others wait for
    /// (all but [`Priority::Rest`]) stays for [`Self::take_dirty`], and so does a Service without slices.
    pub fn take_arriving(&mut self) -> Vec<ServiceName> {
        let mut arriving = std::mem::take(&mut self.arriving);
        arriving.retain(|name| {
            let is_whole = self.entries.get(name).is_some_and(|entry| entry.has_service() && !entry.slices.is_empty());
            is_whole && self.priority(name) == Priority::Rest && self.dirty.remove(name)
        });
        arriving
    }

    /// Whether [`Self::take_dirty`] would return any.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What the Service called `name` wants of the node; `None` when there is nothing to serve and nothing to say about it.
    #[must_use]
    pub fn fragment(&self, name: &ServiceName) -> Option<Fragment> {
        let entry = self.entries.get(name)?;
        let mut problems = entry.problems.to_vec();
        let Some(service) = &entry.service else {
            return (!problems.is_empty()).then(|| Fragment::of_problems(problems));
        };
        if let Some(scheduling) = &service.scheduling {
            let mut of_node = Problems::of(SERVICE, name);
            scheduling.note_lacking(&self.lacking, &mut of_node);
            problems.extend(of_node.finish());
        }
        problems.extend(entry.slices.iter().flat_map(|(_, slice)| slice.problems.iter().cloned()));
        let slices: Vec<_> = entry.slices.iter().map(|(_, slice)| slice).collect();
        let around = Surroundings {
            config: &self.config,
            facts: &self.facts,
            node_port_addresses: &self.node_port_addresses,
            machines: &self.machines,
            unready: &self.unready,
            listeners: &self.listeners,
        };
        Some(Fragment::build(name, service, &slices, around, problems))
    }

    /// The Service called `name`, with its slices.
    pub(crate) fn known_of(&self, name: &ServiceName) -> Option<(&Service, Vec<&Slice>)> {
        let entry = self.entries.get(name)?;
        Some((entry.service.as_ref()?, entry.slices.iter().map(|(_, slice)| slice).collect()))
    }

    /// When the Service called `name` is to be served, relative to others.
    #[must_use]
    pub fn priority(&self, name: &ServiceName) -> Priority {
        match (name.namespace(), name.name()) {
            API => Priority::Api,
            ("kube-system", "kube-dns") => Priority::Dns,
            _ => {
                let service = self.entries.get(name).and_then(|entry| entry.service.as_ref());
                if service.is_some_and(|service| service.dns) { Priority::Dns } else { Priority::Rest }
            }
        }
    }

    /// The Services there are to serve.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| name)
    }

    /// Where the endpoints of the Service called `name` are, whatever their conditions.
    pub fn places(&self, name: &ServiceName) -> impl Iterator<Item = Place<'_>> {
        let slices = self.entries.get(name).into_iter().flat_map(|entry| &entry.slices);
        slices.flat_map(|(_, slice)| slice.iter().map(Place::of))
    }

    /// What is known of the node.
    #[must_use]
    pub const fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// What the Node object says that makes no sense.
    #[must_use]
    pub fn node_problems(&self) -> &[Problem] {
        &self.node_problems
    }

    /// The configuration it was made with.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    fn set_service(&mut self, name: ServiceName, service: Option<Service>, problems: Box<[Problem]>) {
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service != service || entry.problems != problems {
            let before = std::mem::replace(&mut entry.service, service);
            entry.problems = problems;
            self.follow_claims(&name, before.as_ref());
            self.touched(name);
        } else {
            self.drop_if_empty(&name);
        }
    }

    fn remove_slice(&mut self, name: &SliceName) {
        let Some(service) = self.slices.remove(name) else { return };
        if self.entries.get_mut(&service).is_some_and(|entry| entry.remove_slice(name)) {
            self.touched(service);
        }
    }

    /// Brings what is derived from the entry of `name` up to date.
    fn touched(&mut self, name: ServiceName) {
        let entry = self.entries.get(&name);
        let on_addresses = entry.is_some_and(|entry| entry.service.as_ref().is_some_and(Service::depends_on_addresses));
        let has_zone_hints = entry.is_some_and(|entry| entry.slices.iter().any(|(_, slice)| slice.has_zone_hints()));
        set_membership(&mut self.on_addresses, &name, on_addresses);
        let scheduler = entry.and_then(|entry| entry.service.as_ref()?.scheduling.as_ref()?.scheduler());
        set_membership(&mut self.with_zone_hints, &name, has_zone_hints);
        match scheduler {
            Some(scheduler) => self.schedulers.insert(name.clone(), scheduler),
            None => self.schedulers.remove(&name),
        };
        if (name.namespace(), name.name()) == API {
            let slices = entry.into_iter().flat_map(|entry| &entry.slices);
            let endpoints = slices.flat_map(|(_, slice)| &slice.endpoints).map(|endpoint| endpoint.address).collect();
            let touched = self.machines.set_api_endpoints(endpoints);
            self.machines_touched(&touched);
        }
        self.drop_if_empty(&name);
        self.dirty.insert(name);
    }

    /// Brings up to date who claims the addresses and node ports of the Service called `name`, which was `before`.
    fn follow_claims(&mut self, name: &ServiceName, before: Option<&Service>) {
        for address in before.into_iter().flat_map(Service::claims) {
            remove_from(&mut self.claims, &address, name);
        }
        let ports_before: BTreeSet<_> = before.into_iter().flat_map(Service::node_ports).collect();
        for port in &ports_before {
            remove_from(&mut self.node_ports, port, name);
        }
        let after = self.entries.get(name).and_then(|entry| entry.service.as_ref());
        for address in after.into_iter().flat_map(Service::claims) {
            self.claims.entry(address).or_default().insert(name.clone());
        }
        for port in after.into_iter().flat_map(Service::node_ports) {
            self.has_new_node_ports |= !ports_before.contains(&port);
            self.node_ports.entry(port).or_default().insert(name.clone());
        }
    }

    /// Makes the Services dirty that claim addresses in these networks.
    fn machines_touched(&mut self, networks: &[IpNetwork]) {
        for network in networks {
            let (first, last) = machines::bounds(network);
            self.dirty.extend(self.claims.range(first..=last).flat_map(|(_, names)| names).cloned());
        }
    }

    fn drop_if_empty(&mut self, name: &ServiceName) {
        if self.entries.get(name).is_some_and(|entry| !entry.has_service() && entry.slices.is_empty()) {
            self.entries.remove(name);
        }
    }

    fn follow_addresses(&mut self) {
        let families = || self.config.families.iter().copied();
        let node_port = families().flat_map(|family| self.facts.node_port_addresses(family, &self.config.node_port_addresses));
        let node_port: Vec<_> = node_port.collect();
        // Every pod that starts brings a link-local address, which no Service can depend on.
        let own = families().flat_map(|family| self.facts.own(family)).filter(|address| !is_ipv6_link_local(*address));
        let own: BTreeSet<_> = own.collect();
        if node_port != self.node_port_addresses || own != self.own_addresses {
            self.node_port_addresses = node_port;
            self.own_addresses = own;
            self.dirty.extend(self.on_addresses.iter().cloned());
        }
    }

    /// `name`, sharing the text of the one that is known already.
    fn known(&self, name: ServiceName) -> ServiceName {
        self.entries.get_key_value(&name).map_or(name, first)
    }
}

impl Entry {
    /// Whether there is a Service object, of which perhaps nothing can be served.
    const fn has_service(&self) -> bool {
        self.service.is_some() || !self.problems.is_empty()
    }

    /// Whether that is a change.
    fn set_slice(&mut self, name: SliceName, slice: Slice) -> bool {
        match self.slices.binary_search_by(|(other, _)| other.cmp(&name)) {
            Ok(index) => match self.slices.get_mut(index) {
                Some((_, known)) if *known != slice => {
                    *known = slice;
                    true
                }
                _ => false,
            },
            Err(index) => {
                // Most Services have one slice, and an exact allocation is what keeps fifty thousand of them small.
                self.slices.reserve_exact(1);
                self.slices.insert(index, (name, slice));
                true
            }
        }
    }

    /// Whether that is a change.
    fn remove_slice(&mut self, name: &SliceName) -> bool {
        let before = self.slices.len();
        self.slices.retain(|(other, _)| other != name);
        self.slices.len() != before
    }
}

fn first<V>((name, _): (&ServiceName, V)) -> ServiceName {
    name.clone()
}

fn set_membership(set: &mut BTreeSet<ServiceName>, name: &ServiceName, member: bool) {
    if !member {
        set.remove(name);
    } else if !set.contains(name) {
        set.insert(name.clone());
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<ServiceName>>, key: &K, name: &ServiceName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
