//! The ipsets of kube-ipvs, and what their members are.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{Family, Protocol, VirtualServerKey};

/// One of the ipsets this project keeps. Sets of other tools cannot be named with this type, and so cannot be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// What the set is for.
    pub role: Role,
    /// The family of its addresses.
    pub family: Family,
}

impl Set {
    /// The set for `role` in `family`.
    #[must_use]
    pub const fn new(role: Role, family: Family) -> Self {
        Self { role, family }
    }

    /// All sets of one family, in order.
    pub fn of_family(family: Family) -> impl Iterator<Item = Self> {
        Role::ALL.into_iter().map(move |role| Self { role, family })
    }

    /// The set with this name in the kernel, if it is one of ours.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Family::ALL.into_iter().flat_map(Self::of_family).find(|set| set.name() == name)
    }

    /// The name in the kernel, at most 31 bytes (`IPSET_MAXNAMELEN` with its NUL is 32).
    ///
    /// Where a set has kube-proxy's name, it has kube-proxy's layout too, so that one can take over from the other without a set
    /// changing its type in place. A set that kube-proxy lays out differently has a name of its own.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.role, self.family) {
            (Role::LoopBack, Family::V4) => "KUBE-LOOP-BACK",
            (Role::LoopBack, Family::V6) => "KUBE-6-LOOP-BACK",
            (Role::ClusterIp, Family::V4) => "KUBE-CLUSTER-IP",
            (Role::ClusterIp, Family::V6) => "KUBE-6-CLUSTER-IP",
            (Role::ExternalIp, Family::V4) => "KUBE-EXTERNAL-IP",
            (Role::ExternalIp, Family::V6) => "KUBE-6-EXTERNAL-IP",
            (Role::ExternalIpLocal, Family::V4) => "KUBE-EXTERNAL-IP-LOCAL",
            (Role::ExternalIpLocal, Family::V6) => "KUBE-6-EXTERNAL-IP-LOCAL",
            (Role::LoadBalancer, Family::V4) => "KUBE-LOAD-BALANCER",
            (Role::LoadBalancer, Family::V6) => "KUBE-6-LOAD-BALANCER",
            (Role::LoadBalancerLocal, Family::V4) => "KUBE-LOAD-BALANCER-LOCAL",
            (Role::LoadBalancerLocal, Family::V6) => "KUBE-6-LOAD-BALANCER-LOCAL",
            (Role::Restricted, Family::V4) => "KUBE-LOAD-BALANCER-FW",
            (Role::Restricted, Family::V6) => "KUBE-6-LOAD-BALANCER-FW",
            (Role::SourceRange, Family::V4) => "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            (Role::SourceRange, Family::V6) => "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            (Role::SourceNode, Family::V4) => "KUBE-LOAD-BALANCER-SOURCE-NODE",
            (Role::SourceNode, Family::V6) => "KUBE-6-LOAD-BALANCER-SOURCE-NOD",
            (Role::NodePort, Family::V4) => "KUBE-NODE-PORT-ADDRESS",
            (Role::NodePort, Family::V6) => "KUBE-6-NODE-PORT-ADDRESS",
            (Role::NodePortLocal, Family::V4) => "KUBE-NODE-PORT-LOCAL-ADDRESS",
            (Role::NodePortLocal, Family::V6) => "KUBE-6-NODE-PORT-LOCAL-ADDRESS",
            (Role::InCluster, Family::V4) => "KUBE-IN-CLUSTER-MARK",
            (Role::InCluster, Family::V6) => "KUBE-6-IN-CLUSTER-MARK",
            (Role::NoLocal, Family::V4) => "KUBE-NO-LOCAL-ENDPOINT",
            (Role::NoLocal, Family::V6) => "KUBE-6-NO-LOCAL-ENDPOINT",
            (Role::HealthCheck, Family::V4) => "KUBE-HEALTH-CHECK-ADDRESS",
            (Role::HealthCheck, Family::V6) => "KUBE-6-HEALTH-CHECK-ADDRESS",
            (Role::Vips, Family::V4) => "KUBE-IPVS-IPS",
            (Role::Vips, Family::V6) => "KUBE-6-IPVS-IPS",
        }
    }

    /// The layout of the set's members.
    #[must_use]
    pub const fn kind(self) -> SetKind {
        match self.role {
            Role::LoopBack => SetKind::HashIpPortIp,
            Role::ClusterIp
            | Role::ExternalIp
            | Role::ExternalIpLocal
            | Role::LoadBalancer
            | Role::LoadBalancerLocal
            | Role::Restricted
            | Role::SourceNode
            | Role::NodePort
            | Role::NodePortLocal
            | Role::NoLocal
            | Role::HealthCheck => SetKind::HashIpPort,
            Role::SourceRange => SetKind::HashIpPortNet,
            Role::InCluster => SetKind::HashIpPortMark,
            Role::Vips => SetKind::HashIp,
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a set is for. The packet rules refer to sets by role, and never grow with the number of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Endpoints on this node, each as `address,protocol:port,address`: a pod that reaches itself through its Service.
    LoopBack,
    /// ClusterIP frontends.
    ClusterIp,
    /// External IP frontends that any endpoint may answer (external policy `Cluster`).
    ExternalIp,
    /// External IP frontends that only endpoints on this node answer (external policy `Local`).
    ExternalIpLocal,
    /// Load balancer frontends, whatever their policy.
    LoadBalancer,
    /// Those among them with external policy `Local`.
    LoadBalancerLocal,
    /// Load balancer frontends that only some sources may call (`spec.loadBalancerSourceRanges`).
    Restricted,
    /// The sources that may call a restricted frontend, each as `address,protocol:port,network`.
    SourceRange,
    /// Restricted frontends that the node itself may call, by any of its addresses.
    SourceNode,
    /// Node port frontends with the node address they are on, so that a Service port of the same number is not taken for one.
    NodePort,
    /// Those among them with external policy `Local`.
    NodePortLocal,
    /// Frontends with external policy `Local`, each with the mark that leads callers inside the cluster to a virtual server of all
    /// endpoints.
    InCluster,
    /// Frontends with external policy `Local` that have no endpoint on this node: callers from outside are dropped, so that a load
    /// balancer looks elsewhere.
    NoLocal,
    /// Health check node ports on the VIPs of their own Service.
    HealthCheck,
    /// Every VIP that is bound.
    Vips,
}

impl Role {
    /// Every role, in the order of the type.
    pub const ALL: [Self; 15] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::Restricted,
        Self::SourceRange,
        Self::SourceNode,
        Self::NodePort,
        Self::NodePortLocal,
        Self::InCluster,
        Self::NoLocal,
        Self::HealthCheck,
        Self::Vips,
    ];

    /// Whether kube-proxy in IPVS mode has the set too, by the same name and with the same layout.
    #[must_use]
    pub const fn is_kube_proxys(self) -> bool {
        match self {
            Self::LoopBack
            | Self::ClusterIp
            | Self::ExternalIp
            | Self::ExternalIpLocal
            | Self::LoadBalancer
            | Self::LoadBalancerLocal
            | Self::Restricted
            | Self::SourceRange
            | Self::Vips => true,
            Self::SourceNode | Self::NodePort | Self::NodePortLocal | Self::InCluster | Self::NoLocal | Self::HealthCheck => false,
        }
    }

    /// Whether packets to its members are dropped unless another set lets them pass.
    #[must_use]
    pub const fn is_restriction(self) -> bool {
        matches!(self, Self::Restricted | Self::NoLocal)
    }
}

/// The layout of a set (the ipset type name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:ip`
    HashIp,
    /// `hash:ip,port`
    HashIpPort,
    /// `hash:ip,port,ip`
    HashIpPortIp,
    /// `hash:ip,port,net`
    HashIpPortNet,
    /// `hash:ip,port` whose members carry a packet mark (`skbinfo`)
    HashIpPortMark,
}

impl SetKind {
    /// The ipset type name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort | Self::HashIpPortMark => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
        }
    }
}

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// For [`SetKind::HashIp`].
    Ip(IpAddr),
    /// For [`SetKind::HashIpPort`].
    IpPort(IpAddr, Protocol, u16),
    /// For [`SetKind::HashIpPortIp`].
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// For [`SetKind::HashIpPortNet`]. The network is of the address's family, has no host bits, and is not of length 0, for which
    /// the kernel has no room.
    IpPortNet(IpAddr, Protocol, u16, IpNetwork),
    /// For [`SetKind::HashIpPortMark`]. The mark replaces the packet's as a whole.
    IpPortMark(IpAddr, Protocol, u16, NonZeroU32),
}

impl Member {
    /// The layout of set this can be a member of.
    #[must_use]
    pub const fn kind(self) -> SetKind {
        match self {
            Self::Ip(..) => SetKind::HashIp,
            Self::IpPort(..) => SetKind::HashIpPort,
            Self::IpPortIp(..) => SetKind::HashIpPortIp,
            Self::IpPortNet(..) => SetKind::HashIpPortNet,
            Self::IpPortMark(..) => SetKind::HashIpPortMark,
        }
    }

    /// The frontend that it is about: what has its address, protocol and port. For some roles that is an endpoint or a health check port.
    #[must_use]
    pub const fn frontend(self) -> Option<VirtualServerKey> {
        match self {
            Self::Ip(_) => None,
            Self::IpPort(address, protocol, port)
            | Self::IpPortIp(address, protocol, port, _)
            | Self::IpPortNet(address, protocol, port, _)
            | Self::IpPortMark(address, protocol, port, _) => Some(VirtualServerKey::address(address, protocol, port)),
        }
    }

    /// Every member that the kernel takes for this one. A mark is not what it knows a member by: to add the member with another mark
    /// replaces it, and to remove it with any mark removes it.
    #[must_use]
    pub const fn variants(self) -> RangeInclusive<Self> {
        match self {
            Self::IpPortMark(ip, protocol, port, _) => {
                Self::IpPortMark(ip, protocol, port, NonZeroU32::MIN)..=Self::IpPortMark(ip, protocol, port, NonZeroU32::MAX)
            }
            _ => self..=self,
        }
    }
}

impl fmt::Display for Member {
    /// As `ipset save` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.lower_name()),
            Self::IpPortIp(ip, protocol, port, ip2) => write!(f, "{ip},{}:{port},{ip2}", protocol.lower_name()),
            Self::IpPortNet(ip, protocol, port, net) => write!(f, "{ip},{}:{port},{net}", protocol.lower_name()),
            Self::IpPortMark(ip, protocol, port, mark) => {
                write!(f, "{ip},{}:{port} skbmark {mark:#x}", protocol.lower_name())
            }
        }
    }
}

/// A set that exists: how many members it has room for, and which it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetState {
    /// `maxelem`: the kernel refuses a member beyond this number.
    pub capacity: u32,
    /// The members.
    pub members: BTreeSet<Member>,
}

impl SetState {
    /// Whether it has `member`, be it with another mark.
    #[must_use]
    pub fn has(&self, member: Member) -> bool {
        self.members.range(member.variants()).next().is_some()
    }

    /// Takes `member` in as the kernel does, in the place of one with another mark.
    pub fn add(&mut self, member: Member) {
        self.remove(member);
        self.members.insert(member);
    }

    /// Takes `member` out as the kernel does, whatever its mark.
    pub fn remove(&mut self, member: Member) {
        while let Some(held) = self.members.range(member.variants()).next().copied() {
            self.members.remove(&held);
        }
    }

    /// The members that are about the frontend `key`, at a cost that follows their number and not the set's. Pods that reach themselves
    /// are not among them: they are endpoints.
    pub fn of_frontend(&self, key: &VirtualServerKey) -> impl Iterator<Item = Member> + '_ {
        let key = *key;
        let firsts = match key {
            VirtualServerKey::Address { address, port, protocol } => {
                // Networks are ordered as their addresses are, and then by their lengths.
                let least = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok().map(IpNetwork::V4);
                [
                    Some(Member::IpPort(address, protocol, port)),
                    least.map(|least| Member::IpPortNet(address, protocol, port, least)),
                    Some(Member::IpPortMark(address, protocol, port, NonZeroU32::MIN)),
                ]
            }
            VirtualServerKey::Mark { .. } => [None; 3],
        };
        firsts.into_iter().flatten().flat_map(move |first| {
            self.members
                .range(first..)
                .copied()
                .take_while(move |member| member.kind() == first.kind() && member.frontend() == Some(key))
        })
    }

    /// The smallest capacity ever asked for: ipset's own default.
    pub const MIN_CAPACITY: u32 = 65_536;

    /// The capacity to ask for when `members` are wanted: at least twice as many, in powers of two, so that growth is rare.
    #[must_use]
    pub fn capacity_for(members: usize) -> u32 {
        u32::try_from(members)
            .ok()
            .and_then(|members| members.checked_mul(2)?.checked_next_power_of_two())
            .unwrap_or(u32::MAX)
            .max(Self::MIN_CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_the_kernel_and_finds_its_set() {
        for set in Family::ALL.into_iter().flat_map(Set::of_family) {
            assert!(set.name().len() <= 31, "{set}");
            assert_eq!(Set::from_name(set.name()), Some(set));
        }
        assert_eq!(Set::from_name("KUBE-NODE-PORT-TCP"), None, "kube-proxy's bitmap is not ours to touch");
    }

    #[test]
    fn a_member_with_another_mark_is_the_same_member() {
        let member = |port, mark| Member::IpPortMark([192, 0, 2, 1].into(), Protocol::Tcp, port, NonZeroU32::new(mark).unwrap());
        let mut set = SetState::default();
        for added in [member(80, 1), member(81, 1), member(80, 2)] {
            set.add(added);
        }
        assert!(set.members.iter().eq(&[member(80, 2), member(81, 1)]));
        assert!(set.has(member(80, 7)) && !set.has(member(82, 2)));
        set.remove(member(80, u32::MAX));
        assert!(set.members.iter().eq(&[member(81, 1)]));
    }

    #[test]
    fn the_members_of_a_frontend_are_found_in_every_layout() {
        let member = |host, port| {
            let address = IpAddr::from([192, 0, 2, host]);
            [
                Member::Ip(address),
                Member::IpPort(address, Protocol::Tcp, port),
                Member::IpPortIp(address, Protocol::Tcp, port, address),
                Member::IpPortNet(address, Protocol::Tcp, port, "0.0.0.0/1".parse().unwrap()),
                Member::IpPortNet(address, Protocol::Tcp, port, "203.0.113.0/24".parse().unwrap()),
                Member::IpPortNet(address, Protocol::Udp, port, "203.0.113.0/24".parse().unwrap()),
                Member::IpPortMark(address, Protocol::Tcp, port, NonZeroU32::new(7).unwrap()),
            ]
        };
        let members = [(1, 80), (2, 79), (2, 80), (2, 81), (3, 80)].into_iter().flat_map(|(host, port)| member(host, port));
        let set = SetState { capacity: 0, members: members.collect() };
        let of_frontend: Vec<_> = set.of_frontend(&VirtualServerKey::address([192, 0, 2, 2].into(), Protocol::Tcp, 80)).collect();
        let [_, by_port, _, one, other, _, marked] = member(2, 80);
        assert_eq!(of_frontend, [by_port, one, other, marked]);
        assert_eq!(set.of_frontend(&VirtualServerKey::address([192, 0, 2, 9].into(), Protocol::Tcp, 80)).count(), 0);
    }

    #[test]
    fn capacity_leaves_room_to_double() {
        assert_eq!(SetState::capacity_for(0), 65_536);
        assert_eq!(SetState::capacity_for(32_768), 65_536);
        assert_eq!(SetState::capacity_for(32_769), 131_072);
        assert_eq!(SetState::capacity_for(usize::MAX), u32::MAX);
    }
}
