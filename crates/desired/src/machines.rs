//! Addresses by which other machines are reached, which no Service may take.
//!
//! An external address is made local to the node as a whole: not just the Service's ports of it, but everything that is sent to it
//! stays here. Where the address is another machine's, that machine is out of reach from this node from then on, and whoever may
//! write Services could cut off a node, the API server or the way out of the network. So such an address is not served, unless the
//! operator allows it.
//!
//! What would otherwise have to be known of the network follows from objects: addresses of Nodes, the endpoints of
//! `default/kubernetes`, pod networks. The subnets of the node's own interfaces are no substitute for a list of the Nodes: an
//! address in the same subnet as the nodes is just what a load balancer on layer 2 hands out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use model::Family;

/// What is known of them.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    nodes: BTreeMap<Arc<str>, Footprint>,
    /// With the Nodes that have them: mostly one, but nothing keeps two from saying the same.
    addresses: BTreeSet<(IpAddr, Arc<str>)>,
    /// How many say so.
    pod_networks: BTreeMap<IpNetwork, u32>,
    /// The lengths that pod networks have or have had: to look an address up takes one look for each.
    prefixes: BTreeSet<u8>,
    api_endpoints: BTreeSet<IpAddr>,
    gateways: BTreeSet<IpAddr>,
}

/// What a Node takes up of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) pod_networks: Box<[IpNetwork]>,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder<'a> {
    Node(&'a str),
    ApiServer,
    Gateway,
    Pods(IpNetwork),
}

/// The networks in which addresses may have got another holder; a single address is one of full length.
pub(crate) type Touched = Vec<IpNetwork>;

impl Machines {
    /// Nothing but pods in `pod_networks`.
    pub(crate) fn new<'a>(pod_networks: impl IntoIterator<Item = &'a IpNetwork>) -> Self {
        let mut machines = Self::default();
        pod_networks.into_iter().for_each(|network| machines.acquire(network));
        machines
    }

    /// Takes in which networks the pods have that no Node says. Who depends on them is for the caller to know.
    pub(crate) fn replace_pod_networks(&mut self, before: &[IpNetwork], after: &[IpNetwork]) {
        after.iter().for_each(|network| self.acquire(network));
        before.iter().for_each(|network| self.release(network));
    }

    /// Takes in what the Node called `name` takes up; nothing for one that is gone.
    pub(crate) fn set_node(&mut self, name: &str, footprint: Footprint) -> Touched {
        let (name, before) = match self.nodes.remove_entry(name) {
            Some((name, before)) => (name, before),
            None => (name.into(), Footprint::default()),
        };
        let mut touched = Vec::new();
        if before != footprint {
            for address in &before.addresses {
                self.addresses.remove(&(*address, Arc::clone(&name)));
            }
            self.addresses.extend(footprint.addresses.iter().map(|address| (*address, Arc::clone(&name))));
            footprint.pod_networks.iter().for_each(|network| self.acquire(network));
            before.pod_networks.iter().for_each(|network| self.release(network));
            for Footprint { addresses, pod_networks } in [&before, &footprint] {
                touched.extend(addresses.iter().copied().map(IpNetwork::from));
                touched.extend(pod_networks);
            }
        }
        if footprint != Footprint::default() {
            self.nodes.insert(name, footprint);
        }
        touched
    }

    /// The Nodes that take up anything.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// Takes in where the API server answers.
    pub(crate) fn set_api_endpoints(&mut self, addresses: BTreeSet<IpAddr>) -> Touched {
        let before = std::mem::replace(&mut self.api_endpoints, addresses);
        difference(&before, &self.api_endpoints)
    }

    /// Takes in the node's default gateways.
    pub(crate) fn set_gateways(&mut self, addresses: BTreeSet<IpAddr>) -> Touched {
        let before = std::mem::replace(&mut self.gateways, addresses);
        difference(&before, &self.gateways)
    }

    /// Whose `address` is, if it is another machine's.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<Holder<'_>> {
        let node = || {
            let first = (address, Arc::from(""));
            self.addresses.range(first..).next().filter(|(of, _)| *of == address).map(|(_, name)| Holder::Node(name))
        };
        let pods = || self.prefixes.iter().find_map(|prefix| self.pod_network(address, *prefix)).map(Holder::Pods);
        if self.api_endpoints.contains(&address) {
            Some(Holder::ApiServer)
        } else if self.gateways.contains(&address) {
            Some(Holder::Gateway)
        } else {
            node().or_else(pods)
        }
    }

    fn pod_network(&self, address: IpAddr, prefix: u8) -> Option<IpNetwork> {
        let network = whole(IpNetwork::new(address, prefix).ok()?)?;
        self.pod_networks.contains_key(&network).then_some(network)
    }

    fn acquire(&mut self, network: &IpNetwork) {
        // A network of everything says nothing of where pods are.
        let Some(network) = whole(*network).filter(|network| network.prefix() > 0) else { return };
        self.prefixes.insert(network.prefix());
        *self.pod_networks.entry(network).or_default() += 1;
    }

    fn release(&mut self, network: &IpNetwork) {
        let Some(network) = whole(*network) else { return };
        if let Some(count) = self.pod_networks.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.pod_networks.remove(&network);
            }
        }
    }
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "an address of Node {name}"),
            Self::ApiServer => f.write_str("an address of the API server"),
            Self::Gateway => f.write_str("a default gateway of this node"),
            Self::Pods(network) => write!(f, "in the pod network {network}"),
        }
    }
}

/// `network` without host bits.
fn whole(network: IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(network.network(), network.prefix()).ok()
}

fn difference(before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>) -> Touched {
    before.symmetric_difference(after).copied().map(IpNetwork::from).collect()
}

/// The first and the last address of `network`.
pub(crate) fn bounds(network: &IpNetwork) -> (IpAddr, IpAddr) {
    let last = match (network, Family::of(network.ip())) {
        (IpNetwork::V6(network), _) if network.prefix() == 0 => IpAddr::from([0xff; 16]),
        _ => network.broadcast(),
    };
    (network.network(), last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint(addresses: &[&str], pod_networks: &[&str]) -> Footprint {
        Footprint {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_networks: pod_networks.iter().map(|network| network.parse().unwrap()).collect(),
        }
    }

    fn holder(machines: &Machines, address: &str) -> String {
        machines.holder(address.parse().unwrap()).map(|holder| holder.to_string()).unwrap_or_default()
    }

    #[test]
    fn d5_an_address_belongs_to_whoever_still_says_so() {
        let mut machines = Machines::new(&["10.244.7.7/16".parse().unwrap(), "::/0".parse().unwrap()]);
        let touched = machines.set_node("b", footprint(&["192.0.2.1", "2001:db8::1"], &["10.245.1.0/24", "fd00:1::/64"]));
        assert_eq!(touched.len(), 4);
        machines.set_node("a", footprint(&["192.0.2.1"], &["10.245.1.0/24"]));
        assert_eq!(holder(&machines, "192.0.2.1"), "an address of Node a");
        assert_eq!(holder(&machines, "10.245.1.200"), "in the pod network 10.245.1.0/24");
        assert_eq!(holder(&machines, "10.244.255.255"), "in the pod network 10.244.0.0/16");
        assert_eq!(holder(&machines, "fd00:1::abcd"), "in the pod network fd00:1::/64");
        assert_eq!(holder(&machines, "2001:db8::2"), "");

        assert!(machines.set_node("a", footprint(&["192.0.2.1"], &["10.245.1.0/24"])).is_empty(), "nothing new");
        machines.set_node("a", Footprint::default());
        assert_eq!(holder(&machines, "192.0.2.1"), "an address of Node b");
        machines.set_node("b", Footprint::default());
        assert_eq!(holder(&machines, "192.0.2.1"), "");
        assert_eq!(holder(&machines, "10.245.1.200"), "");
        assert_eq!(machines.nodes().count(), 0);

        let api = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(machines.set_api_endpoints(api(&["192.0.2.9", "192.0.2.8"])).len(), 2);
        assert_eq!(machines.set_gateways(api(&["192.0.2.254"])), ["192.0.2.254/32".parse().unwrap()]);
        assert_eq!(holder(&machines, "192.0.2.9"), "an address of the API server");
        assert_eq!(holder(&machines, "192.0.2.254"), "a default gateway of this node");
        assert_eq!(machines.set_api_endpoints(api(&["192.0.2.8"])), ["192.0.2.9/32".parse().unwrap()]);
    }
}
