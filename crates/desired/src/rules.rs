//! The packet rules: constant in number, whatever the Services are.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use model::{Chain, Family, Jump, Protocol, Role, Rules, Set, Table};

use crate::config::{Config, DetectLocal};
use crate::facts::NodeFacts;

/// What the packet filter of this node can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleOptions {
    /// Whether `MASQUERADE` knows `--random-fully`. Without it two connections that start at once may be given the same source port,
    /// and one of them is dropped.
    pub random_fully: bool,
}

const SERVICES: &str = "KUBE-IPVS-SERVICES";
const POSTROUTING: &str = "KUBE-IPVS-POSTROUTING";
const FORWARD: &str = "KUBE-IPVS-FORWARD";
const INPUT: &str = "KUBE-IPVS-INPUT";
const SOURCE_RANGES: &str = "KUBE-IPVS-SOURCE-RANGES";
const PODS: &str = "KUBE-IPVS-PODS";
const OUTPUT: &str = "KUBE-IPVS-OUTPUT";

/// The packet rules for `family`, in the words of `iptables-save` (1.8).
///
/// They do what IPVS itself does not:
/// - replace the source address where the answer would not find its way back through this node: callers that are not pods of this
///   cluster, callers of node ports, and pods that reach themselves;
/// - let through the packets that this makes cross the node;
/// - lead callers inside the cluster past policy `Local`, to the virtual server behind a mark;
/// - drop callers from outside where policy `Local` finds no endpoint on this node, and callers that source ranges leave out;
/// - refuse connections to a VIP on a port that is none of the Service's, since a VIP is local and everything that listens on all
///   addresses would answer on it.
#[must_use]
pub fn rules(family: Family, config: &Config, facts: &NodeFacts, options: RuleOptions) -> Rules {
    let mark = format!("{0:#x}/{0:#x}", config.masquerade.mark.mask());
    let chains = [
        (Table::Nat, SERVICES, services(family, config, facts, &mark)),
        (Table::Nat, POSTROUTING, postrouting(family, config, &mark, options)),
        (Table::Filter, FORWARD, forward(&mark)),
        (Table::Filter, INPUT, input(family, config, &mark)),
        (Table::Filter, SOURCE_RANGES, source_ranges(family)),
        (Table::Mangle, PODS, pods(family, config, facts)),
        (Table::Mangle, OUTPUT, output(family)),
    ];
    let jumps = [
        (Table::Nat, "PREROUTING", SERVICES),
        (Table::Nat, "OUTPUT", SERVICES),
        (Table::Nat, "POSTROUTING", POSTROUTING),
        (Table::Filter, "FORWARD", FORWARD),
        (Table::Filter, "INPUT", INPUT),
        (Table::Mangle, "PREROUTING", PODS),
        (Table::Mangle, "OUTPUT", OUTPUT),
    ];
    let chain = |table, name: &str| Chain { table, name: name.to_owned() };
    Rules {
        chains: chains.into_iter().map(|(table, name, rules)| (chain(table, name), rules)).collect::<BTreeMap<_, _>>(),
        jumps: jumps
            .into_iter()
            .map(|(table, from, to)| (Jump { from: from.to_owned(), to: chain(table, to) }, 1))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// Marks what is to be masqueraded. `ACCEPT` ends the nat table for what is ours, so that a rule of another tool which matches any
/// local address does not take a VIP for the node.
fn services(family: Family, config: &Config, facts: &NodeFacts, mark: &str) -> Vec<String> {
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    let cluster_ip = matches_set(Role::ClusterIp, family, "dst,dst");
    let set_mark = format!("-j MARK --set-xmark {mark}");

    // A loopback source is a socket of this node bound to it; it could not be answered from elsewhere under any address.
    let mut rules = vec![format!("-s {loopback} -j RETURN")];
    rules.extend(mark_callers(family, config, facts, &cluster_ip, &set_mark));
    rules.push(format!("{cluster_ip} -j ACCEPT"));
    // Under policy Local callers from outside keep their address, and those inside have their mark from the mangle table.
    for (local, all) in [
        (Role::LoadBalancerLocal, Role::LoadBalancer),
        (Role::ExternalIpLocal, Role::ExternalIp),
        (Role::NodePortLocal, Role::NodePort),
    ] {
        let all = matches_set(all, family, "dst,dst");
        rules.push(format!("{} -j ACCEPT", matches_set(local, family, "dst,dst")));
        rules.push(format!("{all} {set_mark}"));
        rules.push(format!("{all} -j ACCEPT"));
    }
    rules
}

/// Marks packets of this cluster's pods to frontends with policy `Local`. Where nothing tells pods from others, they are others.
fn pods(family: Family, config: &Config, facts: &NodeFacts) -> Vec<String> {
    let mark = mark_in_cluster(family);
    let by_source = |cidrs: &[IpNetwork]| -> Vec<String> {
        let cidrs = cidrs.iter().filter(|cidr| Family::of(cidr.ip()) == family).filter_map(network);
        cidrs.map(|cidr| if cidr.prefix() == 0 { mark.clone() } else { format!("-s {cidr} {mark}") }).collect()
    };
    match &config.masquerade.detect_local {
        DetectLocal::ClusterCidr(cidrs) => by_source(cidrs),
        DetectLocal::NodeCidr => by_source(&facts.pod_cidrs),
        DetectLocal::BridgeInterface(name) => vec![format!("-i {name} {mark}")],
        DetectLocal::InterfaceNamePrefix(name) => vec![format!("-i {name}+ {mark}")],
        DetectLocal::None => Vec::new(),
    }
}

/// What the node itself sends: it is inside the cluster, and restricted frontends know it by all of its addresses.
fn output(family: Family) -> Vec<String> {
    let restricted = matches_set(Role::Restricted, family, "dst,dst");
    let allowed = format!("-m set ! --match-set {} dst,dst", Set::new(Role::SourceNode, family));
    vec![format!("{restricted} {allowed} -j DROP"), mark_in_cluster(family)]
}

fn mark_in_cluster(family: Family) -> String {
    format!("-j SET --map-set {} dst,dst --map-mark", Set::new(Role::InCluster, family))
}

/// Who may call a restricted frontend goes on as for any other.
fn source_ranges(family: Family) -> Vec<String> {
    vec![format!("{} -j RETURN", matches_set(Role::SourceRange, family, "dst,dst,src")), "-j DROP".to_owned()]
}

/// The rules that mark callers of ClusterIPs that are not pods.
fn mark_callers(family: Family, config: &Config, facts: &NodeFacts, cluster_ip: &str, set_mark: &str) -> Vec<String> {
    let by_source = |cidrs: &[IpNetwork]| {
        let cidrs: Vec<_> = cidrs.iter().filter(|cidr| Family::of(cidr.ip()) == family).filter_map(network).collect();
        let (last, others) = cidrs.split_last()?;
        if cidrs.iter().any(|cidr| cidr.prefix() == 0) {
            return Some(Vec::new());
        }
        let mut rules: Vec<_> = others.iter().map(|cidr| format!("-s {cidr} {cluster_ip} -j ACCEPT")).collect();
        rules.push(format!("! -s {last} {cluster_ip} {set_mark}"));
        Some(rules)
    };
    let by_detector = || match &config.masquerade.detect_local {
        DetectLocal::ClusterCidr(cidrs) => by_source(cidrs),
        DetectLocal::NodeCidr => by_source(&facts.pod_cidrs),
        DetectLocal::BridgeInterface(name) => Some(vec![format!("! -i {name} {cluster_ip} {set_mark}")]),
        DetectLocal::InterfaceNamePrefix(name) => Some(vec![format!("! -i {name}+ {cluster_ip} {set_mark}")]),
        DetectLocal::None => None,
    };
    if config.masquerade.all {
        return vec![format!("{cluster_ip} {set_mark}")];
    }
    by_detector().unwrap_or_else(|| {
        // Nothing tells pods from others. Only a process of this node that speaks from the VIP itself is sure to be no pod: the
        // kernel picks that source for a VIP that is an address, or a route without a preferred source.
        vec![format!("{} {set_mark}", matches_set(Role::ClusterIp, family, "src,dst"))]
    })
}

fn postrouting(family: Family, config: &Config, mark: &str, options: RuleOptions) -> Vec<String> {
    let random_fully = if options.random_fully { " --random-fully" } else { "" };
    let loops = matches_set(Role::LoopBack, family, "dst,dst,src");
    // Only a rule for one protocol can choose ports.
    let by_protocol = |matches: &str, random: &str| -> Vec<String> {
        let ports = config.masquerade.ports;
        let rule = |protocol: Protocol| format!("-p {}{matches} -j MASQUERADE --to-ports {ports}{random}", protocol.lower_name());
        Protocol::ALL.into_iter().map(rule).collect()
    };
    // A pod that was given itself: without another source address it would answer itself, and not the Service.
    let mut rules = by_protocol(&format!(" {loops}"), "");
    rules.push(format!("-m mark ! --mark {mark} -j RETURN"));
    // Cleared, so that a packet which comes by again inside a tunnel's packet is not masqueraded twice.
    rules.push(format!("-j MARK --set-xmark 0x0/{:#x}", config.masquerade.mark.mask()));
    rules.extend(by_protocol("", random_fully));
    rules
}

fn forward(mark: &str) -> Vec<String> {
    vec![format!("-m mark --mark {mark} -j ACCEPT"), "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned()]
}

fn input(family: Family, config: &Config, mark: &str) -> Vec<String> {
    // Echo requests, and the errors that path MTU discovery and traceroute live on.
    let (icmp, echo, errors, port_unreachable) = match family {
        Family::V4 => ("-p icmp -m icmp --icmp-type", 8, &[3, 11, 12][..], "icmp-port-unreachable"),
        Family::V6 => ("-p ipv6-icmp -m icmp6 --icmpv6-type", 128, &[1, 2, 3, 4][..], "icmp6-port-unreachable"),
    };
    let mut rules = vec![
        format!("{} -j {SOURCE_RANGES}", matches_set(Role::Restricted, family, "dst,dst")),
        // Callers inside the cluster are marked, and served by endpoints on other nodes.
        format!("-m conntrack --ctstate NEW {} -m mark ! --mark {mark} -j DROP", matches_set(Role::NoLocal, family, "dst,dst")),
    ];
    let live = [Role::ClusterIp, Role::LoadBalancer, Role::ExternalIp, Role::ExternalIpLocal, Role::HealthCheck];
    if config.open_input {
        // IPVS takes packets behind this chain, so a policy of DROP would keep every frontend from being called.
        let frontends = live.into_iter().chain([Role::NodePort]);
        rules.extend(frontends.map(|role| format!("{} -j ACCEPT", matches_set(role, family, "dst,dst"))));
    } else {
        rules.extend(live.map(|role| format!("{} -j RETURN", matches_set(role, family, "dst,dst"))));
    }
    let kinds = config.answer_pings.then_some(&echo).into_iter().chain(errors);
    rules.extend(kinds.map(|kind| format!("{icmp} {kind} -j RETURN")));
    // Last and complete in itself, so that a chain of which rules went missing refuses nothing that is not for a VIP.
    rules.push(format!(
        "-m conntrack --ctstate NEW {} -j REJECT --reject-with {port_unreachable}",
        matches_set(Role::Vips, family, "dst")
    ));
    rules
}

fn matches_set(role: Role, family: Family, directions: &str) -> String {
    format!("-m set --match-set {} {directions}", Set::new(role, family))
}

/// `cidr` without host bits, as iptables prints it.
fn network(cidr: &IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(cidr.network(), cidr.prefix()).ok()
}
