//! What the packet rules do to a caller: the rules in words, judged by what the kernel's sets hold.

use std::net::IpAddr;

use desired::{Config, DetectLocal, NodeFacts};
use ipnetwork::IpNetwork;
use model::{Family, Member, Role, Set, State, VirtualServerKey};

/// Who calls, as the packet rules tell callers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Pod(Option<IpAddr>),
    Node,
    Outside(Option<IpAddr>),
    /// From an address of the loopback device.
    Loopback,
}

/// What becomes of a caller.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Treatment {
    pub(super) sentences: Vec<String>,
    /// The virtual server that takes its connections; `None` where none does.
    pub(super) virtual_server: Option<VirtualServerKey>,
}

/// What is looked at.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) config: &'a Config,
    pub(super) facts: &'a NodeFacts,
    pub(super) observed: &'a State,
}

impl Caller {
    /// Whose address `ip` is, as far as addresses tell.
    pub(super) fn of(ip: IpAddr, config: &Config, facts: &NodeFacts) -> Self {
        let is_within = |networks: &[IpNetwork]| networks.iter().any(|network| network.contains(ip));
        let is_pod = match &config.masquerade.detect_local {
            DetectLocal::ClusterCidr(networks) => is_within(networks),
            // By interface no address tells; pods of this node are the most that is known.
            DetectLocal::NodeCidr | DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {
                is_within(&facts.pod_cidrs)
            }
            DetectLocal::None => false,
        };
        if ip.is_loopback() {
            Self::Loopback
        } else if facts.interfaces.iter().any(|entry| entry.address == ip) {
            Self::Node
        } else if is_pod {
            Self::Pod(Some(ip))
        } else {
            Self::Outside(Some(ip))
        }
    }

    /// Who it is, as the beginning of a line.
    pub(super) fn title(self) -> String {
        match self {
            Self::Pod(None) => "a pod".to_owned(),
            Self::Pod(Some(ip)) => format!("{ip}, a pod"),
            Self::Node => "this node itself".to_owned(),
            Self::Outside(None) => "a caller from outside".to_owned(),
            Self::Outside(Some(ip)) => format!("{ip}, from outside"),
            Self::Loopback => "this node, from a loopback address".to_owned(),
        }
    }

    const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Pod(ip) | Self::Outside(ip) => ip,
            Self::Node | Self::Loopback => None,
        }
    }
}

impl Rules<'_> {
    /// What becomes of `caller` at the frontend `key`.
    pub(super) fn treat(self, caller: Caller, key: &VirtualServerKey) -> Treatment {
        let mut treatment = Treatment { sentences: Vec::new(), virtual_server: Some(*key) };
        let mut say = |sentence: String| treatment.sentences.push(sentence);
        let dropped = |sentence: String| Treatment { sentences: vec![sentence], virtual_server: None };
        if caller == Caller::Loopback {
            return dropped(
                "it is not served: what comes from a loopback address cannot be answered from elsewhere (node ports on 127.0.0.1 are for --localhost-nodeports)".to_owned(),
            );
        }
        match self.admission(caller, key) {
            Admission::Open => {}
            Admission::Granted(sentence) => say(sentence),
            Admission::Refused(sentence) => return dropped(sentence),
        }
        let is_local =
            [Role::ExternalIpLocal, Role::LoadBalancerLocal, Role::NodePortLocal].into_iter().any(|role| self.lists(role, key));
        if is_local {
            match (caller, self.mark(key)) {
                (Caller::Pod(_) | Caller::Node, Some(mark)) => {
                    let virtual_server = VirtualServerKey::Mark { family: key.family(), mark };
                    let chain = if caller == Caller::Node { "KUBE-IPVS-OUTPUT" } else { "KUBE-IPVS-PODS" };
                    treatment.sentences.push(format!(
                        "gets the packet mark {mark:#x} ({chain}, mangle) and with it the virtual server {virtual_server}, which has all endpoints: externalTrafficPolicy Local is for callers from outside; it is masqueraded"
                    ));
                    treatment.virtual_server = Some(virtual_server);
                }
                _ if self.lists(Role::NoLocal, key) => {
                    return dropped(
                        "is dropped (KUBE-IPVS-INPUT, filter): externalTrafficPolicy is Local, and no endpoint is on this node"
                            .to_owned(),
                    );
                }
                _ => say("keeps its address, and is given endpoints on this node alone: externalTrafficPolicy is Local".to_owned()),
            }
        } else {
            say(self.masquerade(caller, key));
        }
        treatment
    }

    /// Whether source ranges let `caller` in.
    fn admission(self, caller: Caller, key: &VirtualServerKey) -> Admission {
        if !self.lists(Role::Restricted, key) {
            return Admission::Open;
        }
        let ranges = self.ranges(key);
        let listed = match ranges.as_slice() {
            [] => "which has no network of this family".to_owned(),
            ranges => format!("which has {}", ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        if caller == Caller::Node {
            return match self.lists(Role::SourceNode, key) {
                true => Admission::Granted("may call: an address of this node is in loadBalancerSourceRanges".to_owned()),
                false => Admission::Refused(format!(
                    "is dropped (KUBE-IPVS-OUTPUT, mangle): no address of this node is in loadBalancerSourceRanges, {listed}"
                )),
            };
        }
        match caller.ip() {
            None => Admission::Granted(format!(
                "may call if its address is in loadBalancerSourceRanges, {listed}; it is dropped if not (KUBE-IPVS-SOURCE-RANGES, filter)"
            )),
            Some(ip) => match ranges.iter().find(|range| range.contains(ip)) {
                Some(range) => Admission::Granted(format!("may call: it is in {range} of loadBalancerSourceRanges")),
                None => Admission::Refused(format!(
                    "is dropped (KUBE-IPVS-SOURCE-RANGES, filter): it is not in loadBalancerSourceRanges, {listed}"
                )),
            },
        }
    }

    fn masquerade(self, caller: Caller, key: &VirtualServerKey) -> String {
        let masquerade = &self.config.masquerade;
        let masqueraded = |why: &str| format!("is masqueraded with an address of this node (KUBE-IPVS-SERVICES, nat): {why}");
        if [Role::ExternalIp, Role::LoadBalancer, Role::NodePort].into_iter().any(|role| self.lists(role, key)) {
            return masqueraded(
                "callers of node ports, external IPs and load balancer addresses are, so that answers come back through this node",
            );
        }
        if !self.lists(Role::ClusterIp, key) {
            return "keeps its address: no set has the frontend, so that no rule is about it".to_owned();
        }
        match (caller, &masquerade.detect_local) {
            _ if masquerade.all => masqueraded("--masquerade-all says so of every caller of a ClusterIP"),
            (Caller::Pod(_), _) => "keeps its address: it is a pod of this cluster".to_owned(),
            (_, DetectLocal::None) => {
                "keeps its address, because nothing tells pods from others (--cluster-cidr); answers to callers from outside may get lost".to_owned()
            }
            // Of addresses nothing is asked: what the node sends comes in through no interface.
            (Caller::Node, _) => masqueraded("it is no pod"),
            (_, _) => masqueraded("it is no pod, and its answers have to come back through this node"),
        }
    }

    fn lists(self, role: Role, key: &VirtualServerKey) -> bool {
        let VirtualServerKey::Address { address, port, protocol } = *key else { return false };
        let set = self.observed.sets.get(&Set::new(role, Family::of(address)));
        set.is_some_and(|set| set.members.contains(&Member::IpPort(address, protocol, port)))
    }

    fn mark(self, key: &VirtualServerKey) -> Option<std::num::NonZeroU32> {
        let set = self.observed.sets.get(&Set::new(Role::InCluster, key.family()))?;
        set.of_frontend(key).find_map(|member| match member {
            Member::IpPortMark(.., mark) => Some(mark),
            _ => None,
        })
    }

    fn ranges(self, key: &VirtualServerKey) -> Vec<IpNetwork> {
        let set = self.observed.sets.get(&Set::new(Role::SourceRange, key.family()));
        let networks = set.into_iter().flat_map(|set| set.of_frontend(key));
        networks
            .filter_map(|member| match member {
                Member::IpPortNet(.., network) => Some(network),
                _ => None,
            })
            .collect()
    }
}

enum Admission {
    Open,
    Granted(String),
    Refused(String),
}
