//! What the operator decides.

use std::collections::BTreeSet;
use std::fmt;

use ipnetwork::IpNetwork;
use model::{Family, Scheduler, Via};

use crate::interface::InterfacePattern;
use crate::ports::PortRange;

/// The operator's decisions that shape desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this node's Node object. An EndpointSlice names it where an endpoint is local.
    pub node_name: Box<str>,
    /// The families to serve; the other family's half of a dual-stack Service is left out.
    pub families: BTreeSet<Family>,
    /// The scheduler of every virtual server whose Service asks for none.
    pub scheduler: Scheduler,
    /// Whose source address is replaced by the node's.
    pub masquerade: Masquerade,
    /// On which of the node's addresses node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// How VIPs are made local.
    pub via: Via,
    /// Whether source ranges of one family leave a load balancer address of the other open, as kube-proxy reads them. By default
    /// ranges are all there is: a family without one is closed.
    pub ranges_per_family: bool,
    /// Whether frontends are accepted ahead of the rest of the INPUT chain: where the host's firewall drops what it does not know.
    pub open_input: bool,
    /// Whether `spec.externalIPs` is served at all.
    pub external_ips: bool,
    /// Networks whose addresses a Service may have as external IPs or load balancer addresses although another machine has them.
    pub allowed_externals: Vec<IpNetwork>,
    /// The name of this proxy: Services that name it in the label `service.kubernetes.io/service-proxy-name` are served. By default it
    /// has none, and Services without the label are.
    pub proxy_name: Option<Box<str>>,
    /// Networks whose load balancer addresses are left to the load balancer.
    pub excluded_load_balancers: Vec<IpNetwork>,
    /// Who has a node port on which a process of the node listens.
    pub occupied_node_ports: OccupiedNodePorts,
    /// Whether a VIP that is bound answers pings.
    pub answer_pings: bool,
}

impl Config {
    /// The networks that pods have their addresses from, as far as that is a decision.
    pub(crate) fn pod_networks(&self) -> &[IpNetwork] {
        match &self.masquerade.detect_local {
            DetectLocal::ClusterCidr(networks) => networks,
            _ => &[],
        }
    }

    /// The defaults for the node called `node_name`: both families, round robin, no detection of local traffic, node ports on the
    /// node's primary addresses, VIPs as routes.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            families: Family::ALL.into(),
            scheduler: Scheduler::RR,
            masquerade: Masquerade::default(),
            node_port_addresses: NodePortAddresses::Primary,
            via: Via::Route,
            ranges_per_family: false,
            open_input: false,
            external_ips: true,
            allowed_externals: Vec::new(),
            proxy_name: None,
            excluded_load_balancers: Vec::new(),
            occupied_node_ports: OccupiedNodePorts::Service,
            answer_pings: true,
        }
    }
}

/// Whose source address is replaced by the node's on the way to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Every caller of a ClusterIP, pods included. Wins over [`Self::detect_local`].
    pub all: bool,
    /// The bit of the packet mark that says so between chains.
    pub mark: MarkBit,
    /// How a pod of this node is told from other callers of a ClusterIP. Pods keep their address, others do not.
    pub detect_local: DetectLocal,
    /// The source ports that take the place of the callers' own. None of them may be a node port: an answer to it would be taken for
    /// a call of that node port.
    pub ports: PortRange,
}

/// One bit of the packet mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkBit(u8);

impl MarkBit {
    /// Bit number `bit`, counted from the least significant one, 0 to 31.
    #[must_use]
    pub const fn new(bit: u8) -> Option<Self> {
        if bit < 32 { Some(Self(bit)) } else { None }
    }

    /// The mark with just this bit set.
    #[must_use]
    pub const fn mask(self) -> u32 {
        1 << self.0
    }
}

impl Default for MarkBit {
    /// Bit 14, the default of kube-proxy and, for the same meaning, of the kubelet before it.
    fn default() -> Self {
        Self(14)
    }
}

/// How packets from this node's pods are recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// By a source address in one of these networks, each for its own family.
    ClusterCidr(Vec<IpNetwork>),
    /// By a source address in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// By the bridge they come in through. What the node itself sends comes in through none, and so is not a pod's.
    BridgeInterface(InterfaceName),
    /// By the first characters of the interface they come in through.
    InterfaceNamePrefix(InterfaceName),
    /// Not at all: only packets whose source is itself a service address lose it.
    #[default]
    None,
}

/// The addresses of the node that serve node ports. Never loopback and never an address of `kube-ipvs0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// For each family the first of the Node's `InternalIP`, then `ExternalIP` addresses that an interface has. A family in which
    /// there is none serves no node port. (kube-proxy then serves all addresses of the family, which nobody who asks for
    /// one address wants.)
    Primary,
    /// Every address of every interface, IPv6 link-local ones left out.
    All,
    /// What is in these networks or on these interfaces, as addresses come and go. IPv6 link-local ones only if a network covers
    /// them. A network of prefix length 0 is all addresses of its family. So is, in a list without interfaces, no network at all of
    /// a family, as with kube-proxy: lists written for one family stay valid when a cluster becomes dual-stack.
    Listed {
        /// The networks, of either family.
        networks: Vec<IpNetwork>,
        /// The interfaces, by name.
        interfaces: Vec<InterfacePattern>,
    },
}

/// Who has a node port on which a process of this node listens already. It is a [`Problem`](crate::Problem) of the Service either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OccupiedNodePorts {
    /// The Service, as with kube-proxy: IPVS takes packets before they come to a socket.
    Service,
    /// The process: the node port is not served on addresses where it listens.
    Process,
}

/// The name of a network interface, or the beginning of one, fit for a packet rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// `IFNAMSIZ` (include/uapi/linux/if.h) is 16 with the terminating NUL; one byte is kept for the `+` of a prefix.
    const MAX: usize = 14;

    /// The interface called `name`.
    ///
    /// # Errors
    /// When no interface can be called that, or iptables would not read it as a name: empty, longer than 14 bytes, or with
    /// characters beyond ASCII letters, digits and `.`, `_`, `-`, `:`, `@` (and no `-` in front).
    pub fn new(name: &str) -> Result<Self, InvalidInterfaceName> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte);
        if name.is_empty() || name.len() > Self::MAX || name.starts_with('-') || !name.bytes().all(valid) {
            return Err(InvalidInterfaceName { name: name.into() });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that cannot name an interface in a packet rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidInterfaceName {
    name: Box<str>,
}

impl fmt::Display for InvalidInterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} cannot name an interface here: 1 to {} ASCII letters, digits, '.', '_', '-', ':' or '@', without '-' in front",
            self.name,
            InterfaceName::MAX
        )
    }
}

impl std::error::Error for InvalidInterfaceName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_cannot_smuggle_a_rule() {
        for name in ["", "-j", "a b", "eth0 -j ACCEPT", "a\nCOMMIT", "eth+", "!eth0", "a/b", "fifteen-letters"] {
            assert!(InterfaceName::new(name).is_err(), "{name:?}");
        }
        assert_eq!(InterfaceName::new("eth0.100").unwrap().as_str(), "eth0.100");
    }

    #[test]
    fn a_mark_has_32_bits() {
        assert_eq!(MarkBit::default().mask(), 0x4000);
        assert_eq!(MarkBit::new(31).unwrap().mask(), 0x8000_0000);
        assert_eq!(MarkBit::new(32), None);
    }
}
