//! Packet rules compared by meaning: kube-proxy's, of which a case tells, against those of the agent, which are laid out otherwise.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::conformance::observed::{Observed, Rule};
use crate::{Family, Result};

const KEYS: &[&str] = &[
    "table",
    "chain",
    "target",
    "set",
    "set_dirs",
    "src",
    "not_src",
    "dst_type",
    "not_src_type",
    "not_physdev_is_in",
    "proto",
    "mark",
    "not_mark",
    "or_mark",
    "xor_mark",
    "random_fully",
    "ctstate",
    "ipvs_vaddr",
    "ipvs_vproto",
    "ipvs_vport",
];

/// Another way to tell pods from others, by the interface where packets come from.
const INTERFACE_KEYS: &[&str] = &["not_in_iface", "not_in_interface", "not_iface", "not_interface", "not_iif", "not_in"];

const SERVICES: &str = "KUBE-IPVS-SERVICES";
const POSTROUTING: &str = "KUBE-IPVS-POSTROUTING";
const FORWARD: &str = "KUBE-IPVS-FORWARD";
const INPUT: &str = "KUBE-IPVS-INPUT";
const SOURCE_RANGES: &str = "KUBE-IPVS-SOURCE-RANGES";
const OUTPUT: &str = "KUBE-IPVS-OUTPUT";

/// Where the agent's chains have to be entered for their rules to mean anything.
const JUMPS: &[(&str, &str, &str)] = &[
    ("nat", "PREROUTING", SERVICES),
    ("nat", "OUTPUT", SERVICES),
    ("nat", "POSTROUTING", POSTROUTING),
    ("filter", "FORWARD", FORWARD),
    ("filter", "INPUT", INPUT),
    ("mangle", "OUTPUT", OUTPUT),
];

/// Where each rule must have its reason in the case.
const JUSTIFIED: &[(&str, &str)] =
    &[("nat", SERVICES), ("nat", POSTROUTING), ("filter", FORWARD), ("filter", INPUT), ("filter", SOURCE_RANGES)];

/// A rule that must be there: table, chain and text.
type Counterpart = (&'static str, &'static str, String);

/// How the rules of a family differ.
pub(super) fn differences(family: Family, wanted: &[Value], observed: &Observed, knows_random_fully: bool) -> Vec<String> {
    let nothing = Vec::new();
    let rules = observed.rules.get(&family).unwrap_or(&nothing);
    let in_chain = |table: &str, chain: &str| -> Vec<&str> {
        rules.iter().filter(|rule| rule.table == table && rule.chain == chain).map(|rule| rule.text.as_str()).collect()
    };
    let mut differences = Vec::new();
    for (table, from, to) in JUMPS {
        if !in_chain(table, from).iter().any(|rule| rule.ends_with(&format!("-j {to}"))) {
            differences.push(format!("{family} rules: {table} {from} does not jump to {to}"));
        }
    }

    let mark = wanted.iter().find_map(|rule| rule.get("or_mark").and_then(Value::as_str)).unwrap_or_default();
    let mut counterparts: Vec<Counterpart> = Vec::new();
    let mut places: BTreeMap<(String, String, &str), usize> = BTreeMap::new();
    for rule in wanted {
        let found = match of_ours(rule, mark, knows_random_fully) {
            Ok(found) => found,
            Err(error) => {
                differences.push(format!("{family} rules: {rule}: {error:#}"));
                continue;
            }
        };
        for (table, chain, text) in found {
            match in_chain(table, chain).iter().position(|ours| *ours == text) {
                None => differences.push(format!("{family} rules: missing in {table} {chain}: {text}")),
                Some(place) => {
                    let before = places.insert((word(rule, "chain").to_owned(), about(rule), chain), place);
                    if before.is_some_and(|before| before > place) {
                        differences.push(format!("{family} rules: in the wrong place in {table} {chain}: {text}"));
                    }
                }
            }
            counterparts.push((table, chain, text));
        }
    }

    let has_reason = |rule: &Rule| {
        let is_wanted =
            counterparts.iter().any(|(table, chain, text)| rule.table == *table && rule.chain == *chain && rule.text == *text);
        is_wanted || is_without_effect(rule, observed) || is_ours_alone(rule)
    };
    let justified = rules.iter().filter(|rule| JUSTIFIED.contains(&(&rule.table, &rule.chain)));
    differences.extend(
        justified
            .filter(|rule| !has_reason(rule))
            .map(|rule| format!("{family} rules: surplus in {} {}: {}", rule.table, rule.chain, rule.text)),
    );
    differences
}

/// Rules that go together have to come in the same order. No frontend is in two kinds of sets, so what is said of different ones may come in
/// any.
fn about(rule: &Value) -> String {
    match word(rule, "chain") {
        "KUBE-NODE-PORT" => word(rule, "proto"),
        "KUBE-POSTROUTING" | "KUBE-FORWARD" => "",
        _ => word(rule, "set"),
    }
    .to_owned()
}

/// kube-proxy makes a rule when the first member comes into its set, the agent at its start.
fn is_without_effect(rule: &Rule, observed: &Observed) -> bool {
    let mut words = rule.text.split(' ');
    let mut sets = std::iter::from_fn(|| words.find(|word| *word == "--match-set").and_then(|_| words.next()));
    sets.any(|set| observed.members(set).next().is_none()) && !rule.text.contains("! --match-set")
}

/// What kube-proxy has no rule for.
fn is_ours_alone(rule: &Rule) -> bool {
    let text = rule.text.as_str();
    // The nat table ends for what is ours; ICMP to VIPs; policy Local without endpoints (C2), which the virtual servers tell as well.
    (text.contains("-NODE-PORT-ADDRESS dst,dst") && text.ends_with("-j ACCEPT"))
        || (rule.chain == INPUT
            && (text.starts_with("-p icmp ") || text.starts_with("-p ipv6-icmp "))
            && text.ends_with("-j RETURN"))
        || (rule.chain == INPUT && text.contains("NO-LOCAL-ENDPOINT") && text.ends_with("-j DROP"))
}

/// The agent's rules that do what `rule` does; none where it does so without one.
fn of_ours(rule: &Value, mark: &str, knows_random_fully: bool) -> Result<Vec<Counterpart>> {
    let mut interface = None;
    for (key, value) in rule.as_object().context("is no rule")? {
        if INTERFACE_KEYS.contains(&key.as_str()) {
            interface = Some(value.as_str().context("an interface that is no text")?);
        } else if !KEYS.contains(&key.as_str()) {
            bail!("says {key}, which is not compared here");
        }
    }
    let set = word(rule, "set");
    let prefix = if set.starts_with("KUBE-6-") { "KUBE-6-" } else { "KUBE-" };
    let role = set.strip_prefix(prefix).unwrap_or_default();
    let directions = word(rule, "set_dirs");
    let set_mark = format!("-j MARK --set-xmark {mark}/{mark}");
    let matches = |name: &str| format!("-m set --match-set {prefix}{name} dst,dst");
    let one = |table, chain, text: String| Ok(vec![(table, chain, text)]);
    let services = |text: String| one("nat", SERVICES, text);
    let node_port = if set.contains("-LOCAL-") { "NODE-PORT-LOCAL-ADDRESS" } else { "NODE-PORT-ADDRESS" };
    let from_the_node = |prefix: &str| {
        let node = if prefix == "KUBE-" { "KUBE-LOAD-BALANCER-SOURCE-NODE" } else { "KUBE-6-LOAD-BALANCER-SOURCE-NOD" };
        let text = format!("-m set --match-set {prefix}LOAD-BALANCER-FW dst,dst -m set ! --match-set {node} dst,dst -j DROP");
        one("mangle", OUTPUT, text)
    };
    match (word(rule, "chain"), word(rule, "target")) {
        ("KUBE-SERVICES", "RETURN") => services(format!("-s {} -j RETURN", word(rule, "src"))),
        ("KUBE-SERVICES", "KUBE-MARK-MASQ") => {
            let source = match (rule.get("not_src").and_then(Value::as_str), interface) {
                (Some(source), None) => format!("! -s {source} "),
                (None, Some(interface)) => format!("! -i {interface} "),
                (None, None) => String::new(),
                (Some(_), Some(_)) => bail!("has both a source and an interface"),
            };
            services(format!("{source}-m set --match-set {set} {directions} {set_mark}"))
        }
        ("KUBE-SERVICES", "KUBE-LOAD-BALANCER") => {
            let all = matches("LOAD-BALANCER");
            let texts =
                [format!("{} -j ACCEPT", matches("LOAD-BALANCER-LOCAL")), format!("{all} {set_mark}"), format!("{all} -j ACCEPT")];
            Ok(texts.into_iter().map(|text| ("nat", SERVICES, text)).collect())
        }
        // A member of these sets is ours wherever a packet is from.
        ("KUBE-SERVICES", "ACCEPT") | ("KUBE-LOAD-BALANCER", "RETURN") => {
            services(format!("-m set --match-set {set} {directions} -j ACCEPT"))
        }
        ("KUBE-NODE-PORT", "RETURN") => services(format!("{} -j ACCEPT", matches(node_port))),
        ("KUBE-NODE-PORT", "KUBE-MARK-MASQ") => services(format!("{} {set_mark}", matches(node_port))),
        // By address in the agent's sets, and so without asking whether it is local; the chains that are entered are asked for themselves.
        ("KUBE-SERVICES", "KUBE-NODE-PORT") | ("KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ") | ("KUBE-MARK-MASQ", "MARK") => {
            Ok(Vec::new())
        }
        ("KUBE-POSTROUTING", "MASQUERADE") if role == "LOOP-BACK" => {
            Ok(masquerade(&format!(" -m set --match-set {set} {directions}"), ""))
        }
        ("KUBE-POSTROUTING", "MASQUERADE") => {
            // What the guest's iptables knows cannot be taken from it.
            let random = rule.get("random_fully").and_then(Value::as_bool).unwrap_or(false) || !knows_random_fully;
            Ok(masquerade("", if random { " --random-fully" } else { "" }))
        }
        ("KUBE-POSTROUTING", "RETURN") => one("nat", POSTROUTING, format!("-m mark ! --mark {} -j RETURN", word(rule, "not_mark"))),
        ("KUBE-POSTROUTING", "MARK") => one("nat", POSTROUTING, format!("-j MARK --set-xmark 0x0/{}", word(rule, "xor_mark"))),
        ("KUBE-FORWARD", "ACCEPT") => match rule.get("mark").and_then(Value::as_str) {
            Some(mark) => one("filter", FORWARD, format!("-m mark --mark {mark} -j ACCEPT")),
            None => one("filter", FORWARD, format!("-m conntrack --ctstate {} -j ACCEPT", word(rule, "ctstate"))),
        },
        ("KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL") => {
            one("filter", INPUT, format!("{} -j {SOURCE_RANGES}", matches(role)))
        }
        ("KUBE-SOURCE-RANGES-FIREWALL", "RETURN") if role.starts_with("LOAD-BALANCER-SOURCE-CID") => {
            one("filter", SOURCE_RANGES, format!("-m set --match-set {set} {directions} -j RETURN"))
        }
        ("KUBE-SOURCE-RANGES-FIREWALL", "RETURN") if role == "LOAD-BALANCER-SOURCE-IP" => from_the_node(prefix),
        ("KUBE-SOURCE-RANGES-FIREWALL", "DROP") => one("filter", SOURCE_RANGES, "-j DROP".to_owned()),
        ("KUBE-IPVS-OUT-FILTER", "DROP") => from_the_node(if word(rule, "src").contains(':') { "KUBE-6-" } else { "KUBE-" }),
        // Nothing of the agent's refuses a health check on the node's own addresses.
        ("KUBE-NODE-PORT", "ACCEPT") if role == "HEALTH-CHECK-NODE-PORT" => Ok(Vec::new()),
        ("KUBE-IPVS-FILTER", "RETURN") if role == "HEALTH-CHECK-NODE-PORT" => {
            one("filter", INPUT, format!("{} -j RETURN", matches("HEALTH-CHECK-ADDRESS")))
        }
        ("KUBE-IPVS-FILTER", "RETURN") => one("filter", INPUT, format!("{} -j RETURN", matches(role))),
        ("KUBE-IPVS-FILTER", "REJECT") => {
            let unreachable = if prefix == "KUBE-6-" { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
            let text =
                format!("-m conntrack --ctstate NEW -m set --match-set {set} {directions} -j REJECT --reject-with {unreachable}");
            one("filter", INPUT, text)
        }
        (chain, target) => bail!("a rule of {chain} to {target} has no counterpart here"),
    }
}

/// A rule for each protocol: only such a one can keep the ports that it chooses apart from node ports.
fn masquerade(matches: &str, random: &str) -> Vec<Counterpart> {
    let rule = |protocol| format!("-p {protocol}{matches} -j MASQUERADE --to-ports 32768-65535{random}");
    ["tcp", "udp", "sctp"].map(|protocol| ("nat", POSTROUTING, rule(protocol))).to_vec()
}

fn word<'a>(rule: &'a Value, key: &str) -> &'a str {
    rule.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn observed(rules: &str) -> Observed {
        let jumps = "@@rules-IPv4\n*nat\n-A PREROUTING -j KUBE-IPVS-SERVICES\n-A OUTPUT -j KUBE-IPVS-SERVICES\n-A POSTROUTING -j KUBE-IPVS-POSTROUTING\n\
                     *filter\n-A FORWARD -j KUBE-IPVS-FORWARD\n-A INPUT -j KUBE-IPVS-INPUT\n*mangle\n-A OUTPUT -j KUBE-IPVS-OUTPUT\n*nat\n";
        Observed::read(&format!("@@sets\nadd KUBE-CLUSTER-IP 10.0.0.1,tcp:80\n{jumps}{rules}")).unwrap()
    }

    #[test]
    fn a_rule_that_is_missing_moved_or_unasked_for_is_a_difference() {
        let wanted = [
            json!({"table": "nat", "chain": "KUBE-SERVICES", "set": "KUBE-CLUSTER-IP", "set_dirs": "dst,dst", "not_src": "10.44.0.0/16", "target": "KUBE-MARK-MASQ"}),
            json!({"table": "nat", "chain": "KUBE-SERVICES", "set": "KUBE-CLUSTER-IP", "set_dirs": "dst,dst", "target": "ACCEPT"}),
            json!({"table": "nat", "chain": "KUBE-MARK-MASQ", "or_mark": "0x4000", "target": "MARK"}),
        ];
        let mark = "-A KUBE-IPVS-SERVICES ! -s 10.44.0.0/16 -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000\n";
        let accept = "-A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\n";
        let empty = "-A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j ACCEPT\n";
        let found = |rules: &str| differences(Family::V4, &wanted, &observed(rules), true);
        assert_eq!(found(&format!("{mark}{accept}{empty}")), Vec::<String>::new());
        assert!(found(accept).concat().contains("missing"));
        assert!(found(&format!("{accept}{mark}")).concat().contains("wrong place"));
        assert!(found(&format!("{mark}{accept}-A KUBE-IPVS-SERVICES -j RETURN\n")).concat().contains("surplus"));
    }
}
