//! Runs the cases of `tests/conformance/cases.json` through [`Index`] and [`Ledger`], without a kernel.
//!
//! The cases say what kube-proxy makes of its objects. They are compared by meaning, where this project says a thing in other words:
//!
//! | in the file | here |
//! |---|---|
//! | bound addresses | VIPs, however they are bound |
//! | `KUBE-NODE-PORT-TCP` and `-UDP`: ports | members of the node port set with these ports |
//! | `KUBE-NODE-PORT-SCTP-HASH`: addresses and ports | members of the node port set |
//! | `KUBE-NODE-PORT-LOCAL-…` | the same of the node port set for policy `Local` |
//! | `KUBE-LOAD-BALANCER-SOURCE-CIDR`: a network of one address, without prefix length | that network |
//! | `KUBE-LOAD-BALANCER-SOURCE-IP`: what the node may call, by the VIP as its source | members of the source node set, which is about the node whatever its source |
//! | rules that drop what the node sends to a VIP | restricted frontends that are not in the source node set |
//! | `KUBE-HEALTH-CHECK-NODE-PORT`: ports, open on every VIP | ports of health checks, open on the VIPs of their own Service |
//! | health check servers | what the fragments say of health checks |
//! | `no_local_endpoints` | Services whose fragments say so, counted by family and policy |
//! | virtual server flag `persistent` | persistence is set |
//! | no `nodePortAddresses` | `All`, which is kube-proxy's default and not ours |
//! | rules that exist while a set is not empty | rules that always exist |
//! | chains that rules jump to, to mark or to let be | the rules of that chain, in the same order, in ours |
//! | marked, then `ACCEPT` depending on where a packet is from or goes to | marked, then `ACCEPT`: a member of these sets is ours wherever it is |
//! | one rule a VIP for what the node sends | one rule for all of them |
//! | `KUBE-MARK-MASQ` and the clearing of a mark by xor | the mark is set, and cleared, directly |
//!
//! What has no counterpart in the file is held to laws of its own: each frontend with policy `Local` has one mark, and behind it the
//! virtual server that the same objects give it under policy `Cluster`; it is among those without local endpoints if and only if
//! outside callers find no real server.
//!
//! What a case checks beyond that is a disagreement, so no case agrees by being looked at too briefly. `pending.json` lists the cases
//! whose time has not come, `intended.json` those in which kube-proxy is wrong. Both are held to what they say.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at what it does not understand")]

use std::collections::{BTreeMap, BTreeSet};

use desired::{
    Config, DetectLocal, Index, InterfaceAddress, Ledger, MarkBit, NodePortAddresses, RuleOptions, ServiceName, TrafficPolicy,
    rules,
};
use model::{Chain, Family, Member, Protocol, Role, Rules, Scheduler, Set, State, Table, VirtualServerKey};
use serde_json::{Value, json};

const CASES: &str = include_str!("../../../tests/conformance/cases.json");
const PENDING: &str = include_str!("../../../tests/conformance/pending.json");
const INTENDED: &str = include_str!("../../../tests/conformance/intended.json");

/// What a case may say that this test takes in or compares.
const CASE_KEYS: [&str; 8] = ["id", "area", "what", "services", "endpointslices", "node", "config", "expect"];
const STEP_KEYS: [&str; 7] =
    ["services", "endpointslices", "delete_services", "delete_endpointslices", "interfaces", "zone", "expect"];
const EXPECT_KEYS: [&str; 7] = [
    "virtual_servers",
    "ipsets",
    "bound_addresses",
    "iptables",
    "health_check_node_ports",
    "no_local_endpoints",
    "node_access_drop",
];
const CONFIG_KEYS: [&str; 9] = [
    "families",
    "scheduler",
    "masqueradeAll",
    "masqueradeBit",
    "nodePortAddresses",
    "detectLocalMode",
    "clusterCIDR",
    "podCIDRs",
    "randomFully",
];

#[test]
fn every_case_agrees_or_is_listed_with_the_reason() {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    let pending: BTreeMap<String, String> = serde_json::from_str(PENDING).unwrap();
    let intended: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(INTENDED).unwrap();

    let mut agree = 0;
    let mut wrong = Vec::new();
    let mut ids = BTreeSet::new();
    for case in list(&cases["cases"]) {
        let id = text(&case["id"]);
        ids.insert(id);
        let differences = run(case);
        let listed = pending.contains_key(id) || intended.contains_key(id);
        match (differences.is_empty(), listed) {
            (true, false) => agree += 1,
            (false, true) => {}
            (true, true) => wrong.push(format!("{id}: agrees, and is still listed as one that does not")),
            (false, false) => wrong.push(format!("{id}: {}\n  {}", text(&case["what"]), differences.join("\n  "))),
        }
    }
    for id in pending.keys().chain(intended.keys()).filter(|id| !ids.contains(id.as_str())) {
        wrong.push(format!("{id}: is listed, and there is no such case"));
    }
    for id in pending.keys().filter(|id| intended.contains_key(*id)) {
        wrong.push(format!("{id}: is listed as pending and as intended"));
    }
    for (id, entry) in &intended {
        if entry.get("defect").is_none_or(String::is_empty) || entry.get("reason").is_none_or(String::is_empty) {
            wrong.push(format!("{id}: an intended difference needs a defect and a reason"));
        }
    }

    println!(
        "conformance: {agree} agree, {} intended differences, {} pending, {} wrong",
        intended.len(),
        pending.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How `case` comes out differently from what it says.
fn run(case: &Value) -> Vec<String> {
    let mut differences = unknown_keys("case", case, &[&CASE_KEYS[..], &["then"]].concat());
    differences.extend(unknown_keys("config", &case["config"], &CONFIG_KEYS));

    let mut node = Node::new(config(case));
    // The same, but nobody's external policy is Local.
    let mut open = Node::new(config(case));
    let mut facts = case["node"].clone();
    for (number, step) in std::iter::once(case).chain(list(&case["then"])).enumerate() {
        if number > 0 {
            differences.extend(unknown_keys(&format!("then[{number}]"), step, &STEP_KEYS));
        }
        for key in ["interfaces", "zone"] {
            if let Some(value) = step.get(key) {
                facts[key] = value.clone();
            }
        }
        node.follow(step, &facts, &case["config"]);
        open.follow(&with_policy_cluster(step), &facts, &case["config"]);
        let local = local_frontends(&node.ledger.complete(), &open.ledger.complete());
        for difference in node.differences(&step["expect"], &case["config"]).into_iter().chain(local) {
            differences.push(format!("step {number}: {difference}"));
        }
    }
    differences
}

/// A node that follows the objects of a case change by change, as the agent does.
struct Node {
    index: Index,
    ledger: Ledger,
}

impl Node {
    fn new(config: Config) -> Self {
        let index = Index::new(config);
        let ledger = Ledger::new(index.config());
        Self { index, ledger }
    }

    fn follow(&mut self, step: &Value, facts: &Value, config: &Value) {
        let object = |value: &Value| value.clone();
        self.index.apply_node(&serde_json::from_value(node_object(facts, config)).unwrap());
        self.index.set_interfaces(interfaces(&facts["interfaces"]));
        for service in list(&step["services"]) {
            self.index.apply_service(&serde_json::from_value(object(service)).unwrap()).unwrap();
        }
        for slice in list(&step["endpointslices"]) {
            self.index.apply_slice(&serde_json::from_value(object(slice)).unwrap()).unwrap();
        }
        for name in list(&step["delete_services"]) {
            self.index.delete_service(&metadata(name));
        }
        for name in list(&step["delete_endpointslices"]) {
            self.index.delete_slice(&metadata(name));
        }
        let dirty: BTreeSet<ServiceName> = self.index.take_dirty();
        for name in dirty {
            self.ledger.set(&name, self.index.fragment(&name));
        }
    }

    fn differences(&self, expect: &Value, config: &Value) -> Vec<String> {
        let state = self.ledger.complete();
        let mut differences = unknown_keys("expect", expect, &EXPECT_KEYS);
        differences.extend(compare("virtual servers", &wanted_virtual_servers(expect), &virtual_servers(&state)));
        differences.extend(compare("sets", &wanted_members(expect), &members(&state)));
        let vips = state.vips.keys().map(|vip| vip.address.to_string()).collect();
        differences.extend(compare("bound addresses", &texts(&expect["bound_addresses"]), &vips));
        differences.extend(node_ports_without_virtual_server(&state));
        differences.extend(compare("health checks", &wanted_health_checks(expect), &self.health_checks()));
        differences.extend(compare("open for health checks", &self.vips_with_health_check(), &open_for_health_checks(&state)));
        differences.extend(compare("without local endpoints", &wanted_without_local(expect), &self.without_local()));
        differences.extend(compare("closed to the node", &wanted_node_access_drop(expect), &closed_to_the_node(&state)));
        for (family, wanted) in expect["iptables"].as_object().into_iter().flatten() {
            let family = self::family(family);
            let options = RuleOptions { random_fully: config["randomFully"].as_bool().unwrap_or(true) };
            let rules = rules(family, self.index.config(), self.index.facts(), options);
            differences.extend(compare_rules(family, wanted, &rules));
        }
        differences
    }

    fn health_checks(&self) -> BTreeSet<String> {
        let fragments = self.ledger.fragments();
        let each = fragments.flat_map(|(name, fragment)| {
            let of = move |family| Some(health_check(&name.to_string(), family, fragment.health_check_of(family)?));
            Family::ALL.into_iter().filter_map(of)
        });
        each.collect()
    }

    /// The VIPs of every Service with a health check, by what its fragment says.
    fn vips_with_health_check(&self) -> BTreeSet<String> {
        let fragments = self.ledger.fragments();
        let each = fragments.flat_map(|(_, fragment)| {
            let vips = fragment.frontends().iter().filter_map(desired::Frontend::vip);
            vips.filter_map(|vip| Some(format!("{vip},tcp:{}", fragment.health_check_of(Family::of(vip))?.port)))
        });
        each.collect()
    }

    fn without_local(&self) -> BTreeSet<String> {
        let mut counts = BTreeMap::new();
        for (_, fragment) in self.ledger.fragments() {
            for of in fragment.without_local_endpoints() {
                *counts.entry(of).or_insert(0_u64) += 1;
            }
        }
        let name = |policy| if policy == TrafficPolicy::Internal { "internal" } else { "external" };
        counts.into_iter().map(|((family, policy), count)| format!("{family} {} {count}", name(policy))).collect()
    }
}

fn health_check(service: &str, family: Family, check: desired::HealthCheck) -> String {
    format!("{service} {family} on {} with {}", check.port, check.local_endpoints)
}

fn wanted_health_checks(expect: &Value) -> BTreeSet<String> {
    let each = list(&expect["health_check_node_ports"]).iter().map(|entry| {
        let local_endpoints = number(&entry["local_ready_endpoints"]).into();
        let check = desired::HealthCheck { port: number(&entry["port"]), local_endpoints };
        health_check(text(&entry["service"]), family(text(&entry["family"])), check)
    });
    each.collect()
}

fn open_for_health_checks(state: &State) -> BTreeSet<String> {
    of_role(state, Role::HealthCheck).map(|member| member.to_string()).collect()
}

fn wanted_without_local(expect: &Value) -> BTreeSet<String> {
    let families = expect["no_local_endpoints"].as_object().into_iter().flatten();
    let counts = families.flat_map(|(family, counts)| {
        let counts = counts.as_object().unwrap().iter().filter(|(_, count)| **count != 0);
        counts.map(move |(policy, count)| format!("{family} {policy} {count}"))
    });
    counts.collect()
}

fn wanted_node_access_drop(expect: &Value) -> BTreeSet<String> {
    let each = list(&expect["node_access_drop"]).iter();
    each.map(|drop| format!("{},{}:{}", text(&drop["vip"]), text(&drop["proto"]), drop["port"])).collect()
}

fn closed_to_the_node(state: &State) -> BTreeSet<String> {
    let open: BTreeSet<_> = of_role(state, Role::SourceNode).collect();
    of_role(state, Role::Restricted).filter(|member| !open.contains(member)).map(|member| member.to_string()).collect()
}

/// The members of the sets of both families with this role.
fn of_role(state: &State, role: Role) -> impl Iterator<Item = Member> {
    let sets = Family::ALL.into_iter().filter_map(move |family| state.sets.get(&Set::new(role, family)));
    sets.flat_map(|set| set.members.iter().copied())
}

fn with_policy_cluster(step: &Value) -> Value {
    let mut step = step.clone();
    for service in step["services"].as_array_mut().into_iter().flatten() {
        service["spec"]["externalTrafficPolicy"] = "Cluster".into();
    }
    step
}

/// What policy `Local` is to have here and has no counterpart in the file, against the `open` state of the same node without it.
fn local_frontends(state: &State, open: &State) -> BTreeSet<String> {
    let key = |member: &Member| match *member {
        Member::IpPort(address, protocol, port) | Member::IpPortMark(address, protocol, port, _) => {
            VirtualServerKey::address(address, protocol, port)
        }
        _ => panic!("{member} names no frontend"),
    };
    let keys = |role| -> BTreeSet<_> { of_role(state, role).map(|member| key(&member)).collect() };
    let locals = [Role::ExternalIpLocal, Role::LoadBalancerLocal, Role::NodePortLocal];
    let local: BTreeSet<_> = locals.into_iter().flat_map(keys).collect();
    let unserved = local.iter().filter(|key| state.virtual_servers[key].real_servers.is_empty()).copied().collect();
    let mut wrong = BTreeSet::new();
    if keys(Role::InCluster) != local {
        wrong.insert(format!("{local:?} have policy Local, and {:?} have a mark", keys(Role::InCluster)));
    }
    if keys(Role::NoLocal) != unserved {
        wrong.insert(format!("{unserved:?} have no local endpoint, and {:?} are said to", keys(Role::NoLocal)));
    }
    let mut marks = BTreeSet::new();
    for member in of_role(state, Role::InCluster) {
        let Member::IpPortMark(_, _, _, mark) = member else { panic!("{member} has no mark") };
        let frontend = key(&member);
        let behind = VirtualServerKey::Mark { family: frontend.family(), mark };
        if !marks.insert(behind) {
            wrong.insert(format!("{behind} is there for {frontend} and for another"));
        }
        if state.virtual_servers.get(&behind) != open.virtual_servers.get(&frontend) {
            wrong.insert(format!("callers of {frontend} inside the cluster do not find what they find without policy Local"));
        }
    }
    let of_marks = state.virtual_servers.keys().filter(|key| matches!(key, VirtualServerKey::Mark { .. })).copied().collect();
    if marks != of_marks {
        wrong.insert(format!("{marks:?} are given, and {of_marks:?} are served"));
    }
    wrong
}

fn config(case: &Value) -> Config {
    let value = &case["config"];
    let cidrs = |value: &Value| list(value).iter().map(|cidr| text(cidr).parse().unwrap()).collect::<Vec<_>>();
    let mut config = Config::new(text(&case["node"]["name"]));
    if let Some(families) = value["families"].as_array() {
        config.families = families.iter().map(|name| family(text(name))).collect();
    }
    if let Some(name) = value["scheduler"].as_str().filter(|name| !name.is_empty()) {
        config.scheduler = Scheduler::new(name).unwrap();
    }
    config.node_port_addresses = match value.get("nodePortAddresses") {
        None => NodePortAddresses::All,
        Some(list) => NodePortAddresses::Listed { networks: cidrs(list), interfaces: Vec::new() },
    };
    config.masquerade.all = value["masqueradeAll"].as_bool().unwrap_or(false);
    if let Some(bit) = value["masqueradeBit"].as_u64() {
        config.masquerade.mark = MarkBit::new(bit.try_into().unwrap()).unwrap();
    }
    let cluster = value["clusterCIDR"].as_str().map(|list| list.split(',').map(|cidr| cidr.parse().unwrap()).collect());
    config.masquerade.detect_local = match value["detectLocalMode"].as_str().unwrap_or("ClusterCIDR") {
        "ClusterCIDR" => DetectLocal::ClusterCidr(cluster.unwrap_or_default()),
        "NodeCIDR" => DetectLocal::NodeCidr,
        other => panic!("the case has a detectLocalMode that this test does not know: {other}"),
    };
    config
}

fn node_object(facts: &Value, config: &Value) -> Value {
    let addresses: Vec<_> = list(&facts["ips"]).iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    let zone = text(&facts["zone"]);
    let labels = if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
    json!({
        "metadata": {"name": facts["name"], "labels": labels},
        "spec": {"podCIDRs": config.get("podCIDRs").unwrap_or(&json!([]))},
        "status": {"addresses": addresses},
    })
}

fn interfaces(value: &Value) -> Vec<InterfaceAddress> {
    let address = |name: &str, address: &Value| InterfaceAddress::new(name, text(address).parse().unwrap());
    let interfaces = value.as_object().unwrap().iter();
    interfaces.flat_map(|(name, addresses)| list(addresses).iter().map(move |entry| address(name, entry))).collect()
}

fn metadata(name: &Value) -> desired::object::ObjectMeta {
    let (namespace, name) = text(name).split_once('/').unwrap();
    serde_json::from_value(json!({"namespace": namespace, "name": name})).unwrap()
}

fn wanted_virtual_servers(expect: &Value) -> BTreeSet<String> {
    let line = |server: &Value| {
        let protocol = Protocol::from_name(text(&server["proto"])).unwrap();
        let key = VirtualServerKey::address(text(&server["addr"]).parse().unwrap(), protocol, number(&server["port"]));
        let flags = texts(&server["flags"]);
        let persistent = flags.contains("persistent");
        assert_eq!(persistent, server["persist"] != 0, "the case contradicts itself");
        let bits = if flags.contains("mh-port") { 0x10 } else { 0 };
        let dests: BTreeSet<_> = list(&server["dests"])
            .iter()
            .map(|dest| format!("{}#{} weight {}", text(&dest["addr"]), dest["port"], dest["weight"]))
            .collect();
        format!("{key} {} flags {bits:#x} persistence {} {dests:?}", text(&server["sched"]), server["persist"])
    };
    list(&expect["virtual_servers"]).iter().map(line).collect()
}

fn virtual_servers(state: &State) -> BTreeSet<String> {
    let line = |(key, server): (&VirtualServerKey, &model::VirtualServer)| {
        let config = server.config;
        let dests: BTreeSet<_> = server
            .real_servers
            .iter()
            .map(|(key, server)| {
                assert_eq!(*server, model::RealServer { weight: server.weight, ..model::RealServer::default() });
                format!("{}#{} weight {}", key.address, key.port, server.weight)
            })
            .collect();
        assert_eq!(config.granularity, key.family().bits());
        let persistence = config.persistence.map_or(0, u32::from);
        format!("{key} {} flags {:#x} persistence {persistence} {dests:?}", config.scheduler, config.flags.bits())
    };
    let by_address = state.virtual_servers.iter().filter(|(key, _)| matches!(key, VirtualServerKey::Address { .. }));
    by_address.map(line).collect()
}

/// The members a case wants, those of the node port sets by what our one set for them can be asked.
fn wanted_members(expect: &Value) -> BTreeSet<String> {
    let sets = expect["ipsets"].as_object().unwrap().iter();
    sets.flat_map(|(name, members)| {
        let (prefix, rest) = name.strip_prefix("KUBE-6-").map_or(("", &name[5..]), |rest| ("6-", rest));
        let as_ours = move |member: &Value| match (rest, text(member)) {
            ("NODE-PORT-TCP", port) => format!("{prefix}node port tcp:{port}"),
            ("NODE-PORT-UDP", port) => format!("{prefix}node port udp:{port}"),
            ("NODE-PORT-SCTP-HASH", member) => format!("{prefix}node port {member}"),
            ("NODE-PORT-LOCAL-TCP", port) => format!("{prefix}local node port tcp:{port}"),
            ("NODE-PORT-LOCAL-UDP", port) => format!("{prefix}local node port udp:{port}"),
            // The name in IPv6 is cut.
            ("NODE-PORT-LOCAL-SCTP-HASH" | "NODE-PORT-LOCAL-SCTP-HAS", member) => format!("{prefix}local node port {member}"),
            ("LOAD-BALANCER-SOURCE-CIDR" | "LOAD-BALANCER-SOURCE-CID", member) if !member.contains('/') => {
                format!("{prefix}LOAD-BALANCER-SOURCE-CIDR {member}/{}", if prefix.is_empty() { 32 } else { 128 })
            }
            ("LOAD-BALANCER-SOURCE-CIDR" | "LOAD-BALANCER-SOURCE-CID", member) => {
                format!("{prefix}LOAD-BALANCER-SOURCE-CIDR {member}")
            }
            ("LOAD-BALANCER-SOURCE-IP", member) => {
                let (frontend, source) = member.rsplit_once(',').unwrap();
                assert!(frontend.starts_with(&format!("{source},")), "the source is the VIP");
                format!("{prefix}open to the node {frontend}")
            }
            (_, member) => format!("{prefix}{rest} {member}"),
        };
        list(members).iter().map(as_ours).collect::<Vec<_>>()
    })
    .collect()
}

fn members(state: &State) -> BTreeSet<String> {
    let each = state.sets.iter().flat_map(|(set, state)| state.members.iter().map(move |member| (set, member)));
    each.filter_map(|(set, member)| {
        let prefix = if set.family == Family::V6 { "6-" } else { "" };
        let node_port = |what| match member {
            Member::IpPort(_, protocol @ (Protocol::Tcp | Protocol::Udp), port) => {
                format!("{prefix}{what} {}:{port}", protocol.lower_name())
            }
            member => format!("{prefix}{what} {member}"),
        };
        let named = |name| format!("{prefix}{name} {member}");
        Some(match set.role {
            Role::LoopBack => named("LOOP-BACK"),
            Role::ClusterIp => named("CLUSTER-IP"),
            Role::ExternalIp => named("EXTERNAL-IP"),
            Role::ExternalIpLocal => named("EXTERNAL-IP-LOCAL"),
            Role::LoadBalancer => named("LOAD-BALANCER"),
            Role::LoadBalancerLocal => named("LOAD-BALANCER-LOCAL"),
            Role::Restricted => named("LOAD-BALANCER-FW"),
            Role::SourceRange => named("LOAD-BALANCER-SOURCE-CIDR"),
            Role::SourceNode => named("open to the node"),
            Role::NodePort => node_port("node port"),
            Role::NodePortLocal => node_port("local node port"),
            Role::Vips => named("IPVS-IPS"),
            Role::HealthCheck => match member {
                Member::IpPort(_, _, port) => format!("{prefix}HEALTH-CHECK-NODE-PORT {port}"),
                member => panic!("{member} names no port"),
            },
            // Held to laws of their own.
            Role::InCluster | Role::NoLocal => return None,
        })
    })
    .collect()
}

/// The file does not say on which address a node port's set member is; ours says it, and so must be right about it.
fn node_ports_without_virtual_server(state: &State) -> Vec<String> {
    of_role(state, Role::NodePort)
        .chain(of_role(state, Role::NodePortLocal))
        .map(|member| match member {
            Member::IpPort(address, protocol, port) => (member, VirtualServerKey::address(address, protocol, port)),
            member => panic!("{member} names no port"),
        })
        .filter(|(_, key)| !state.virtual_servers.contains_key(key))
        .map(|(member, _)| format!("node port {member} has no virtual server"))
        .collect()
}

/// Compares the rules: who is masqueraded, how, what is let through and what is refused.
fn compare_rules(family: Family, wanted: &Value, rules: &Rules) -> Vec<String> {
    let ours = |table, name: &str| &rules.chains[&Chain { table, name: name.to_owned() }];
    let wanted_in = |chain: &str| -> Vec<&Value> { list(wanted).iter().filter(|rule| rule["chain"] == chain).collect() };
    let mark = wanted_in("KUBE-MARK-MASQ")[0]["or_mark"].as_str().unwrap();
    let mut differences = Vec::new();

    let mut places = BTreeMap::new();
    for rule in list(wanted) {
        // No frontend is of two kinds, so what is said of one set comes in order, and what is said of several in any.
        let about = if rule["chain"] == "KUBE-NODE-PORT" { &rule["proto"] } else { &rule["set"] }.as_str();
        for (table, chain, line) in in_our_words(rule, mark) {
            let ours = ours(table, chain);
            let Some(place) = ours.iter().position(|ours| *ours == line) else {
                differences.push(format!("{family}: no rule {line:?} in {ours:#?}"));
                continue;
            };
            let before = places.insert((text(&rule["chain"]), about, chain), place);
            let is_last = place + 1 == ours.len();
            if before.is_some_and(|before| before > place) || (chain != "KUBE-IPVS-OUTPUT" && is_refusal(&line) && !is_last) {
                differences.push(format!("{family}: {line:?} is in the wrong place in {ours:#?}"));
            }
        }
    }

    // B3: a rule for each protocol, since only such a one can keep the ports apart from node ports.
    let masquerade = |matches: &str, random: &str| {
        let line = |protocol| format!("-p {protocol}{matches} -j MASQUERADE --to-ports 32768-65535{random}");
        ["tcp", "udp", "sctp"].map(line).to_vec()
    };
    let postrouting = wanted_in("KUBE-POSTROUTING").into_iter().flat_map(|rule| match text(&rule["target"]) {
        "MASQUERADE" => match rule["set"].as_str() {
            Some(set) => masquerade(&format!(" -m set --match-set {set} {}", text(&rule["set_dirs"])), ""),
            None => masquerade("", if rule["random_fully"] == true { " --random-fully" } else { "" }),
        },
        "RETURN" => vec![format!("-m mark ! --mark {} -j RETURN", text(&rule["not_mark"]))],
        "MARK" => vec![format!("-j MARK --set-xmark 0x0/{}", text(&rule["xor_mark"]))],
        _ => vec![format!("a rule for {rule}")],
    });
    let forward = wanted_in("KUBE-FORWARD").into_iter().map(|rule| match rule["mark"].as_str() {
        Some(mark) => format!("-m mark --mark {mark} -j ACCEPT"),
        None => format!("-m conntrack --ctstate {} -j ACCEPT", text(&rule["ctstate"])),
    });
    // The loop-back rule always exists here.
    let without_loop_back = |rules: Vec<String>| rules.into_iter().filter(|rule| !rule.contains("LOOP-BACK")).collect::<Vec<_>>();
    let chains = [
        ("POSTROUTING", postrouting.collect::<Vec<_>>(), ours(Table::Nat, "KUBE-IPVS-POSTROUTING").clone()),
        ("FORWARD", forward.collect(), ours(Table::Filter, "KUBE-IPVS-FORWARD").clone()),
    ];
    for (name, wanted, ours) in chains {
        if wanted.iter().any(|rule| !ours.contains(rule)) || without_loop_back(wanted.clone()) != without_loop_back(ours.clone()) {
            differences.push(format!("{family}: {name} wants {wanted:#?} and has {ours:#?}"));
        }
    }
    differences
}

/// The rules by which ours do what `rule` does. Those that are compared in another way are none.
fn in_our_words(rule: &Value, mark: &str) -> Vec<(Table, &'static str, String)> {
    let set_mark = format!("-j MARK --set-xmark {mark}/{mark}");
    let set = rule["set"].as_str().unwrap_or_default();
    let of = |kind: &str| set.ends_with(kind);
    let prefix = if set.starts_with("KUBE-6-") { "KUBE-6-" } else { "KUBE-" };
    let matches = |name: &str| format!("-m set --match-set {name} dst,dst");
    let services = |line: String| vec![(Table::Nat, "KUBE-IPVS-SERVICES", line)];
    let input = |line: String| vec![(Table::Filter, "KUBE-IPVS-INPUT", line)];
    let node_port = || {
        let name = if set.contains("-LOCAL-") { "NODE-PORT-LOCAL-ADDRESS" } else { "NODE-PORT-ADDRESS" };
        matches(&format!("{prefix}{name}"))
    };
    match (text(&rule["chain"]), text(&rule["target"])) {
        ("KUBE-SERVICES", "RETURN") => services(format!("-s {} -j RETURN", text(&rule["src"]))),
        ("KUBE-SERVICES", "KUBE-MARK-MASQ") if of("-CLUSTER-IP") => {
            let source = rule["not_src"].as_str().map(|source| format!("! -s {source} ")).unwrap_or_default();
            services(format!("{source}-m set --match-set {set} {} {set_mark}", text(&rule["set_dirs"])))
        }
        ("KUBE-SERVICES", "KUBE-MARK-MASQ") if of("-EXTERNAL-IP") => services(format!("{} {set_mark}", matches(set))),
        ("KUBE-SERVICES", "ACCEPT") => services(format!("{} -j ACCEPT", matches(set))),
        ("KUBE-SERVICES", "KUBE-LOAD-BALANCER") => {
            let all = matches(set);
            let line = |line: String| (Table::Nat, "KUBE-IPVS-SERVICES", line);
            let local = line(format!("{} -j ACCEPT", matches(&format!("{prefix}LOAD-BALANCER-LOCAL"))));
            vec![local, line(format!("{all} {set_mark}")), line(format!("{all} -j ACCEPT"))]
        }
        ("KUBE-LOAD-BALANCER", "RETURN") => services(format!("{} -j ACCEPT", matches(set))),
        ("KUBE-NODE-PORT", "RETURN") => services(format!("{} -j ACCEPT", node_port())),
        ("KUBE-NODE-PORT", "KUBE-MARK-MASQ") => services(format!("{} {set_mark}", node_port())),
        ("KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL") => input(format!("{} -j KUBE-IPVS-SOURCE-RANGES", matches(set))),
        ("KUBE-SOURCE-RANGES-FIREWALL", "RETURN") if of("-SOURCE-CIDR") || of("-SOURCE-CID") => {
            vec![(Table::Filter, "KUBE-IPVS-SOURCE-RANGES", format!("-m set --match-set {set} dst,dst,src -j RETURN"))]
        }
        ("KUBE-SOURCE-RANGES-FIREWALL", "DROP") => vec![(Table::Filter, "KUBE-IPVS-SOURCE-RANGES", "-j DROP".to_owned())],
        ("KUBE-SOURCE-RANGES-FIREWALL", "RETURN") if of("-SOURCE-IP") => from_the_node(prefix),
        ("KUBE-IPVS-OUT-FILTER", "DROP") if text(&rule["src"]).contains(':') => from_the_node("KUBE-6-"),
        ("KUBE-IPVS-OUT-FILTER", "DROP") => from_the_node("KUBE-"),
        ("KUBE-IPVS-FILTER", "RETURN") if of("-HEALTH-CHECK-NODE-PORT") => {
            input(format!("{} -j RETURN", matches(&format!("{prefix}HEALTH-CHECK-ADDRESS"))))
        }
        ("KUBE-IPVS-FILTER", "RETURN") => input(format!("{} -j RETURN", matches(set))),
        ("KUBE-IPVS-FILTER", "REJECT") => {
            let unreachable = if prefix == "KUBE-6-" { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
            input(format!("-m conntrack --ctstate NEW -m set --match-set {set} dst -j REJECT --reject-with {unreachable}"))
        }
        // A host firewall that drops is another matter, and health checks are refused by nothing of ours on the node's own addresses.
        ("KUBE-NODE-PORT", "ACCEPT") if of("-HEALTH-CHECK-NODE-PORT") => Vec::new(),
        // What is local is a VIP as well; the sets tell. The marks of this chain are asked for with its own rules.
        ("KUBE-SERVICES", "KUBE-NODE-PORT") | ("KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ") | ("KUBE-MARK-MASQ", "MARK") => Vec::new(),
        ("KUBE-POSTROUTING" | "KUBE-FORWARD", _) => Vec::new(),
        _ => vec![(Table::Nat, "KUBE-IPVS-SERVICES", format!("a rule for {rule}"))],
    }
}

fn is_refusal(rule: &str) -> bool {
    rule.contains("-j DROP") || rule.contains("-j REJECT")
}

/// The rule about what the node itself sends to restricted frontends.
fn from_the_node(prefix: &str) -> Vec<(Table, &'static str, String)> {
    let line = format!(
        "-m set --match-set {prefix}LOAD-BALANCER-FW dst,dst -m set ! --match-set {} dst,dst -j DROP",
        if prefix == "KUBE-" { "KUBE-LOAD-BALANCER-SOURCE-NODE" } else { "KUBE-6-LOAD-BALANCER-SOURCE-NOD" }
    );
    vec![(Table::Mangle, "KUBE-IPVS-OUTPUT", line)]
}

fn compare(what: &str, wanted: &BTreeSet<String>, desired: &BTreeSet<String>) -> Vec<String> {
    let missing = wanted.difference(desired).map(|entry| format!("{what}: missing {entry}"));
    let surplus = desired.difference(wanted).map(|entry| format!("{what}: surplus {entry}"));
    missing.chain(surplus).collect()
}

fn unknown_keys(what: &str, value: &Value, known: &[&str]) -> Vec<String> {
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.filter(|key| !known.contains(key)).map(|key| format!("{what}: {key} is not compared")).collect()
}

fn family(name: &str) -> Family {
    Family::ALL.into_iter().find(|family| family.to_string() == name).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> BTreeSet<String> {
    list(value).iter().map(|entry| text(entry).to_owned()).collect()
}

fn number(value: &Value) -> u16 {
    value.as_u64().unwrap().try_into().unwrap()
}
