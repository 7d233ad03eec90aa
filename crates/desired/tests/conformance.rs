//! Runs the cases of `tests/conformance/cases.json` through [`Index`] and [`Ledger`], without a kernel.
//!
//! The cases say what kube-proxy makes of its objects. They are compared by meaning, where this project says a thing in other words:
//!
//! | in the file | here |
//! |---|---|
//! | bound addresses | VIPs, however they are bound |
//! | `KUBE-NODE-PORT-TCP` and `-UDP`: ports | members of the node port set with these ports |
//! | `KUBE-NODE-PORT-SCTP-HASH`: addresses and ports | members of the node port set |
//! | virtual server flag `persistent` | persistence is set |
//! | no `nodePortAddresses` | `All`, which is kube-proxy's default and not ours |
//! | rules that exist while a set is not empty | rules that always exist |
//! | `KUBE-MARK-MASQ` and the clearing of a mark by xor | the mark is set, and cleared, directly |
//!
//! What a case checks beyond that is a disagreement, so no case agrees by being looked at too briefly. `pending.json` lists the cases
//! whose time has not come, `intended.json` those in which kube-proxy is wrong. Both are held to what they say.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at what it does not understand")]

use std::collections::{BTreeMap, BTreeSet};

use desired::{Config, DetectLocal, Index, InterfaceAddress, Ledger, MarkBit, NodePortAddresses, RuleOptions, ServiceName, rules};
use model::{Chain, Family, Member, Protocol, Role, Rules, Scheduler, Set, State, Table, VirtualServerKey};
use serde_json::{Value, json};

const CASES: &str = include_str!("../../../tests/conformance/cases.json");
const PENDING: &str = include_str!("../../../tests/conformance/pending.json");
const INTENDED: &str = include_str!("../../../tests/conformance/intended.json");

/// What a case may say that this test takes in or compares.
const CASE_KEYS: [&str; 8] = ["id", "area", "what", "services", "endpointslices", "node", "config", "expect"];
const STEP_KEYS: [&str; 7] =
    ["services", "endpointslices", "delete_services", "delete_endpointslices", "interfaces", "zone", "expect"];
const EXPECT_KEYS: [&str; 4] = ["virtual_servers", "ipsets", "bound_addresses", "iptables"];
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
        for difference in node.differences(&step["expect"], &case["config"]) {
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
        for (family, wanted) in expect["iptables"].as_object().into_iter().flatten() {
            let family = self::family(family);
            let options = RuleOptions { random_fully: config["randomFully"].as_bool().unwrap_or(true) };
            let rules = rules(family, self.index.config(), self.index.facts(), options);
            differences.extend(compare_rules(family, wanted, &rules));
        }
        differences
    }
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
        Some(list) => NodePortAddresses::Cidrs(cidrs(list)),
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

fn metadata(name: &Value) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
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
    state.virtual_servers.iter().map(line).collect()
}

/// The members a case wants, those of the node port sets by what our one set for them can be asked.
fn wanted_members(expect: &Value) -> BTreeSet<String> {
    let sets = expect["ipsets"].as_object().unwrap().iter();
    sets.flat_map(|(name, members)| {
        let (prefix, rest) = name.strip_prefix("KUBE-6-").map_or(("", &name[5..]), |rest| ("6-", rest));
        let as_ours = move |member: &Value| match rest {
            "NODE-PORT-TCP" => format!("{prefix}node port tcp:{}", text(member)),
            "NODE-PORT-UDP" => format!("{prefix}node port udp:{}", text(member)),
            "NODE-PORT-SCTP-HASH" => format!("{prefix}node port {}", text(member)),
            _ => format!("{prefix}{rest} {}", text(member)),
        };
        list(members).iter().map(as_ours).collect::<Vec<_>>()
    })
    .collect()
}

fn members(state: &State) -> BTreeSet<String> {
    let each = state.sets.iter().flat_map(|(set, state)| state.members.iter().map(move |member| (set, member)));
    each.map(|(set, member)| {
        let prefix = if set.family == Family::V6 { "6-" } else { "" };
        match (set.role, member) {
            (Role::NodePort, Member::IpPort(_, protocol @ (Protocol::Tcp | Protocol::Udp), port)) => {
                format!("{prefix}node port {}:{port}", protocol.lower_name())
            }
            (Role::NodePort, member) => format!("{prefix}node port {member}"),
            (Role::LoopBack, member) => format!("{prefix}LOOP-BACK {member}"),
            (Role::ClusterIp, member) => format!("{prefix}CLUSTER-IP {member}"),
            (Role::Vips, member) => format!("{prefix}IPVS-IPS {member}"),
        }
    })
    .collect()
}

/// The file does not say on which address a node port's set member is; ours says it, and so must be right about it.
fn node_ports_without_virtual_server(state: &State) -> Vec<String> {
    let sets = Family::ALL.map(|family| Set::new(Role::NodePort, family));
    let members = sets.iter().filter_map(|set| state.sets.get(set)).flat_map(|set| &set.members);
    members
        .filter_map(|member| match member {
            Member::IpPort(address, protocol, port) => Some((member, VirtualServerKey::address(*address, *protocol, *port))),
            Member::Ip(_) | Member::IpPortIp(..) => None,
        })
        .filter(|(_, key)| !state.virtual_servers.contains_key(key))
        .map(|(member, _)| format!("node port {member} has no virtual server"))
        .collect()
}

/// Compares the rules of the kinds that are covered: who is masqueraded, how, and what is let through.
fn compare_rules(family: Family, wanted: &Value, rules: &Rules) -> Vec<String> {
    let ours = |table, name: &str| &rules.chains[&Chain { table, name: name.to_owned() }];
    let wanted_in = |chain: &str| -> Vec<&Value> { list(wanted).iter().filter(|rule| rule["chain"] == chain).collect() };
    let mut differences = Vec::new();

    let services = ours(Table::Nat, "KUBE-IPVS-SERVICES");
    for rule in wanted_in("KUBE-SERVICES") {
        let line = match (rule["set"].as_str(), text(&rule["target"])) {
            (None, "RETURN") => format!("-s {} -j RETURN", text(&rule["src"])),
            (Some(set), "KUBE-MARK-MASQ") if set.ends_with("CLUSTER-IP") => {
                let source = rule["not_src"].as_str().map(|source| format!("! -s {source} ")).unwrap_or_default();
                let mark = wanted_in("KUBE-MARK-MASQ")[0]["or_mark"].as_str().unwrap();
                format!("{source}-m set --match-set {set} {} -j MARK --set-xmark {mark}/{mark}", text(&rule["set_dirs"]))
            }
            (Some(set), "ACCEPT") if set.ends_with("CLUSTER-IP") => format!("-m set --match-set {set} dst,dst -j ACCEPT"),
            // By address here, and so without asking whether the destination is local: compared by the set's members.
            (None, "KUBE-NODE-PORT") => continue,
            _ => format!("a rule for {rule}"),
        };
        if !services.contains(&line) {
            differences.push(format!("{family}: no rule {line:?} in {services:#?}"));
        }
    }

    let postrouting = wanted_in("KUBE-POSTROUTING").into_iter().map(|rule| match text(&rule["target"]) {
        "MASQUERADE" => match rule["set"].as_str() {
            Some(set) => format!("-m set --match-set {set} {} -j MASQUERADE", text(&rule["set_dirs"])),
            None if rule["random_fully"] == true => "-j MASQUERADE --random-fully".to_owned(),
            None => "-j MASQUERADE".to_owned(),
        },
        "RETURN" => format!("-m mark ! --mark {} -j RETURN", text(&rule["not_mark"])),
        "MARK" => format!("-j MARK --set-xmark 0x0/{}", text(&rule["xor_mark"])),
        _ => format!("a rule for {rule}"),
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
