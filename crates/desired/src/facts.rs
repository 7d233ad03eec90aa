//! What is known of this node: its Node object and the addresses of its interfaces.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{DEVICE, Family};

use crate::address;
use crate::config::NodePortAddresses;
use crate::object::{Node, label};
use crate::problem::{Problem, Problems, quoted};

/// What is known of this node.
///
/// A Node object that is deleted takes nothing away from this: the machine still has its addresses and its zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's addresses: those of type `InternalIP` in order, then those of type `ExternalIP`.
    pub ips: Vec<IpAddr>,
    /// The zone it is in, by its label.
    pub zone: Option<Box<str>>,
    /// The networks its pods have their addresses from.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The addresses its interfaces have.
    pub interfaces: Vec<InterfaceAddress>,
}

/// An address and the interface that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: Box<str>,
    /// The address.
    pub address: IpAddr,
}

impl InterfaceAddress {
    /// `address` on `interface`.
    #[must_use]
    pub fn new(interface: &str, address: IpAddr) -> Self {
        Self { interface: interface.into(), address }
    }
}

impl NodeFacts {
    /// Takes in what `node` says, and returns what it says that makes no sense.
    pub(crate) fn read(&mut self, node: &Node) -> Box<[Problem]> {
        let mut problems = Problems::of("Node", node.metadata.name.as_deref().unwrap_or_default());
        self.ips = ips(node, &mut problems);
        self.pod_cidrs = pod_cidrs(node, &mut problems);
        self.zone = node
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(label::ZONE))
            .filter(|zone| !zone.is_empty())
            .map(|zone| zone.as_str().into());
        problems.finish()
    }

    /// The address that the node's own connections to VIPs of `family` should come from: the first of the Node's addresses that an
    /// interface has. The kernel refuses a route with a preferred source that no interface has.
    #[must_use]
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family && self.own(family).any(|own| own == *ip))
    }

    /// The addresses of `family` that serve node ports, in order.
    #[must_use]
    pub fn node_port_addresses(&self, family: Family, choice: &NodePortAddresses) -> Vec<IpAddr> {
        let (networks, interfaces) = match choice {
            NodePortAddresses::Primary => return self.source(family).into_iter().collect(),
            NodePortAddresses::All => (&[][..], &[][..]),
            NodePortAddresses::Listed { networks, interfaces } => (networks.as_slice(), interfaces.as_slice()),
        };
        let networks: Vec<_> = networks.iter().filter(|network| Family::of(network.ip()) == family).collect();
        let all = (networks.is_empty() && interfaces.is_empty()) || networks.iter().any(|network| network.prefix() == 0);
        let chosen = |entry: &&InterfaceAddress| {
            let named = || interfaces.iter().any(|pattern| pattern.matches(&entry.interface));
            let covered = || networks.iter().any(|network| network.contains(entry.address));
            if is_ipv6_link_local(entry.address) { !all && covered() } else { all || covered() || named() }
        };
        let mut addresses: Vec<_> = self.own_entries(family).filter(chosen).map(|entry| entry.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Whether the node has `address` itself, so that it need not be bound and must not be guarded as a VIP.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.own(Family::of(address)).any(|own| own == address)
    }

    /// The addresses by which the node itself is reached: not loopback, and not those that only stand for VIPs.
    pub(crate) fn own(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.own_entries(family).map(|entry| entry.address)
    }

    fn own_entries(&self, family: Family) -> impl Iterator<Item = &InterfaceAddress> {
        let usable = move |address: IpAddr| Family::of(address) == family && !address.is_loopback() && !address.is_unspecified();
        self.interfaces.iter().filter(move |entry| &*entry.interface != DEVICE && usable(entry.address))
    }
}

pub(crate) fn ips(node: &Node, problems: &mut Problems) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut ips = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (index, entry) in addresses.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            match address::parse(&entry.address) {
                Some(ip) => ips.push(ip),
                None => problems.add(
                    format!("status.addresses[{index}]"),
                    format!(
                        "is {}, which is no IP address, and is ignored; correct the kubelet's --node-ip",
                        quoted(&entry.address)
                    ),
                ),
            }
        }
    }
    ips
}

/// Whether a Node says that it is not ready, or it is said of it, as when nothing has been heard of it for a while. One of which nothing
/// is said is taken to be.
pub(crate) fn is_unready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && matches!(&*condition.status, "False" | "Unknown"))
}

pub(crate) fn pod_cidrs(node: &Node, problems: &mut Problems) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let texts = spec.pod_cidrs.as_deref().filter(|list| !list.is_empty()).unwrap_or(spec.pod_cidr.as_slice());
    let mut cidrs = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(cidr) => cidrs.push(cidr),
            Err(_) => problems.add(
                format!("spec.podCIDRs[{index}]"),
                format!("is {}, which is no network such as 10.244.1.0/24, and is ignored", quoted(text)),
            ),
        }
    }
    cidrs
}

pub(crate) fn is_ipv6_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
