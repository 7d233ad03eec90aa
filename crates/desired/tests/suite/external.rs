//! Addresses and ports that are not the Services' to take, and what of the node's surroundings decides about them.

use std::collections::BTreeSet;

use desired::{Config, DetectLocal, Kind, Listener, NodePortAddresses, OccupiedNodePorts, PortRange};
use model::{Family, Protocol};
use serde_json::{Value, json};

use crate::support::{Node, interfaces, object, service};

/// A Service with these external IPs, one load balancer address and a node port.
fn web(external_ips: &[&str], load_balancer: &str) -> Value {
    let mut object = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "externalIPs": external_ips, "ports": [{"port": 80, "nodePort": 30080}],
        }),
    );
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": load_balancer}]}});
    object
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({"kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses}})
}

/// The addresses other than ClusterIPs on which port 80 is served.
fn served(node: &Node) -> Vec<String> {
    let keys = node.ledger.keys().map(|key| key.to_string());
    let on_port_80 = keys.filter_map(|key| key.strip_prefix("TCP ")?.strip_suffix(":80").map(str::to_owned));
    on_port_80.filter(|address| !address.contains("96")).collect()
}

#[test]
fn d5_an_address_of_another_node_is_served_only_while_it_is_nobodys() {
    let mut node_1 = Node::new(Config::new("node-1"));
    node_1.apply(&[web(&["198.51.100.1", "172.18.0.12", "fd00:18::12"], "172.18.0.13")]);
    assert_eq!(served(&node_1), ["172.18.0.12", "172.18.0.13", "198.51.100.1", "[fd00:18::12]"]);
    assert!(node_1.problems().is_empty());

    node_1.apply(&[node("node-2", &["172.18.0.12", "fd00:18::12"], &[]), node("node-3", &["172.18.0.13"], &[])]);
    assert_eq!(served(&node_1), ["198.51.100.1"]);
    assert!(!node_1.text().contains("172.18.0.12") && !node_1.text().contains("172.18.0.13"), "neither bound nor in a set");
    insta::assert_snapshot!(node_1.problems().join("\n"), @"
    Service shop/web: spec.externalIPs has 172.18.0.12, an address of Node node-2, and is not served there: this node could not reach it any more; choose another address, or allow this one with --allow-external-cidrs
    Service shop/web: spec.externalIPs has fd00:18::12, an address of Node node-2, and is not served there: this node could not reach it any more; choose another address, or allow this one with --allow-external-cidrs
    Service shop/web: status.loadBalancer.ingress has 172.18.0.13, an address of Node node-3, and is not served there: this node could not reach it any more; choose another address, or allow this one with --allow-external-cidrs
    ");

    // A Node that goes, and one that a list does not name any more.
    node_1.index.delete_node(&object(json!({"name": "node-3"})));
    node_1.sync();
    assert_eq!(served(&node_1), ["172.18.0.13", "198.51.100.1"]);
    node_1.index.begin_listing(Kind::Node);
    node_1.index.end_listing(Kind::Node);
    node_1.sync();
    assert_eq!(served(&node_1), ["172.18.0.12", "172.18.0.13", "198.51.100.1", "[fd00:18::12]"]);
    assert!(node_1.problems().is_empty());

    // An address that this node has as well is not taken from anybody.
    node_1.apply(&[node("node-2", &["172.18.0.12"], &[])]);
    assert!(!served(&node_1).contains(&"172.18.0.12".to_owned()));
    node_1.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth0", "172.18.0.12")]));
    node_1.sync();
    assert!(served(&node_1).contains(&"172.18.0.12".to_owned()));
}

#[test]
fn d5_a_change_of_another_node_touches_just_the_services_that_claim_its_addresses() {
    let mut node_1 = Node::new(Config::new("node-1"));
    let other = service("other", json!({"clusterIP": "10.96.0.11", "externalIPs": ["198.51.100.2"], "ports": [{"port": 80}]}));
    node_1.apply(&[web(&["172.18.0.12"], "10.245.2.9"), other]);
    let touched = |node_1: &mut Node, value: Value| {
        let before = node_1.index.is_dirty();
        node_1.index.apply_node(&object::<desired::object::Node>(value));
        assert!(!before);
        node_1.index.take_dirty().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(touched(&mut node_1, node("node-2", &["172.18.0.99"], &["10.245.1.0/24"])), [""; 0]);
    assert_eq!(touched(&mut node_1, node("node-2", &["172.18.0.12"], &["10.245.1.0/24"])), ["shop/web"]);
    assert_eq!(touched(&mut node_1, node("node-2", &["172.18.0.12"], &["10.245.1.0/24"])), [""; 0], "a heartbeat");
    assert_eq!(touched(&mut node_1, node("node-2", &["172.18.0.12"], &["10.245.2.0/24"])), ["shop/web"]);
}

#[test]
fn d5_neither_api_server_nor_gateway_nor_pods_lose_their_addresses() {
    let mut config = Config::new("node-1");
    config.masquerade.detect_local =
        DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()]);
    let mut node_1 = Node::new(config.clone());
    let claims = ["172.18.0.9", "172.18.0.1", "10.244.7.7", "10.245.3.3"];
    let api = json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["172.18.0.9"]}],
    });
    let surroundings = |node_1: &mut Node| {
        node_1.index.set_gateways(BTreeSet::from(["172.18.0.1".parse().unwrap()]));
        node_1.apply(&[node("node-2", &[], &["10.245.3.0/24"]), api.clone()]);
    };
    node_1.apply(&[web(&claims, "198.51.100.1")]);
    assert_eq!(served(&node_1), ["10.245.3.3", "172.18.0.1", "172.18.0.9", "198.51.100.1"], "what is not known yet is served");
    surroundings(&mut node_1);
    assert_eq!(served(&node_1), ["198.51.100.1"]);
    let problems = node_1.problems().join("\n");
    for holder in ["the API server", "a default gateway", "the pod network 10.244.0.0/16", "the pod network 10.245.3.0/24"] {
        assert!(problems.contains(holder), "{holder}: {problems}");
    }

    config.allowed_externals = vec!["172.18.0.0/24".parse().unwrap(), "10.244.7.7/32".parse().unwrap()];
    let mut allowing = Node::new(config);
    surroundings(&mut allowing);
    allowing.apply(&[web(&claims, "198.51.100.1")]);
    assert_eq!(served(&allowing), ["10.244.7.7", "172.18.0.1", "172.18.0.9", "198.51.100.1"]);
    assert_eq!(allowing.problems().len(), 1);
}

#[test]
fn d4_load_balancer_addresses_are_left_alone_by_network() {
    let excluded_load_balancers = vec!["198.51.100.0/24".parse().unwrap()];
    let mut node_1 = Node::new(Config { excluded_load_balancers, ..Config::new("node-1") });
    node_1.apply(&[web(&["198.51.100.1"], "198.51.100.2")]);
    assert_eq!(served(&node_1), ["198.51.100.1"], "an external IP is nobody's but the Service's");
    assert!(node_1.problems().is_empty(), "it is as the operator wants it");
    node_1.apply(&[web(&[], "203.0.113.1")]);
    assert_eq!(served(&node_1), ["203.0.113.1"]);
}

#[test]
fn f3_node_ports_follow_the_addresses_of_interfaces_by_name() {
    let listed = |networks: &[&str], interfaces: &[&str]| NodePortAddresses::Listed {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        interfaces: interfaces.iter().map(|name| name.parse().unwrap()).collect(),
    };
    let node_ports = |node: &Node| -> Vec<String> {
        node.ledger
            .keys()
            .filter_map(|key| key.to_string().strip_prefix("TCP ")?.strip_suffix(":30080").map(str::to_owned))
            .collect()
    };
    let with = |node_port_addresses| {
        let mut node = Node::new(Config { node_port_addresses, ..Config::new("node-1") });
        node.apply(&[web(&[], "198.51.100.1")]);
        node
    };
    assert_eq!(node_ports(&with(listed(&[], &["eth0"]))), ["172.18.0.11", "[fd00:18::11]"], "both families, no link-local one");
    assert_eq!(node_ports(&with(listed(&["172.17.0.0/16"], &["eth9"]))), ["172.17.0.1"], "a name makes the list complete");
    assert_eq!(
        node_ports(&with(listed(&["172.17.0.0/16", "fe80::/10"], &["eth+"]))),
        ["172.17.0.1", "172.18.0.11", "[fd00:18::11]", "[fe80::11]"]
    );

    let mut node_1 = with(listed(&[], &["eth1"]));
    assert_eq!(node_ports(&node_1), [""; 0]);
    node_1.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth1", "192.0.2.1")]));
    node_1.sync();
    assert_eq!(node_ports(&node_1), ["192.0.2.1"]);
    node_1.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11")]));
    node_1.sync();
    assert_eq!(node_ports(&node_1), [""; 0]);
}

#[test]
fn f4_a_node_port_that_is_occupied_is_said_and_goes_to_whom_the_operator_wants() {
    let listening = |address: &str| -> BTreeSet<Listener> {
        let listener = |port, address: &str| Listener { protocol: Protocol::Tcp, port, address: address.parse().unwrap() };
        [listener(30080, address), listener(22, "::")].into()
    };
    let node_ports = |node: &Node| node.ledger.keys().filter(|key| key.to_string().ends_with(":30080")).count();
    for (occupied_node_ports, left) in [(OccupiedNodePorts::Service, [2, 2, 2]), (OccupiedNodePorts::Process, [0, 1, 2])] {
        let mut node_1 = Node::new(Config { occupied_node_ports, ..Config::new("node-1") });
        node_1.apply(&[web(&[], "198.51.100.1")]);
        assert!(node_1.index.take_new_node_ports() && !node_1.index.take_new_node_ports());
        for (address, left) in ["::", "172.18.0.11", "127.0.0.1"].into_iter().zip(left) {
            node_1.index.set_listeners(listening(address));
            node_1.sync();
            assert_eq!(node_ports(&node_1), left, "{occupied_node_ports:?} {address}");
            let is_said = node_1.problems().iter().any(|problem| problem.contains("spec.ports[].nodePort is 30080"));
            assert_eq!(is_said, address != "127.0.0.1", "{:?}", node_1.problems());
        }
        node_1.index.set_listeners(listening("127.0.0.1"));
        assert!(!node_1.index.is_dirty(), "nothing has changed");
        node_1.index.set_listeners(BTreeSet::new());
        node_1.sync();
        assert!(node_1.problems().is_empty() && node_ports(&node_1) == 2);
    }
}

#[test]
fn b3_masquerading_never_chooses_a_node_port() {
    let ports: PortRange = "1024-29999".parse().unwrap();
    let mut config = Config::new("node-1");
    for (set, words) in [(None, "32768-65535"), (Some(ports), "1024-29999")] {
        config.masquerade.ports = set.unwrap_or(config.masquerade.ports);
        for family in Family::ALL {
            let rules = Node::new(config.clone()).rules(family);
            let masquerade: Vec<_> = rules.lines().filter(|line| line.contains("-j MASQUERADE")).collect();
            assert_eq!(masquerade.len(), 6, "three protocols, for pods that reach themselves and for all others");
            assert!(masquerade.iter().all(|line| line.contains(&format!(" --to-ports {words}"))), "{masquerade:?}");
        }
    }
}

#[test]
fn g2_pings_are_answered_or_refused_as_the_operator_wants() {
    let echo = |answer_pings, family| {
        let rules = Node::new(Config { answer_pings, ..Config::new("node-1") }).rules(family);
        (
            rules.matches("-type 8 -j RETURN").count() + rules.matches("-type 128 -j RETURN").count(),
            rules.matches("-type 3 -j RETURN").count(),
        )
    };
    for family in Family::ALL {
        assert_eq!(echo(true, family), (1, 1));
        assert_eq!(echo(false, family), (0, 1), "errors still come through");
    }
}
