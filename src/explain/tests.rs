//! Explanations of a node that holds what is desired, and of one that does not quite.

use std::net::SocketAddr;
use std::time::Duration;

use desired::{Config, DetectLocal, Index, InterfaceAddress, Kind, Ledger};
use model::{Direction, Flow, Protocol, RealServerCounters, RealServerKey, State};
use plan::{Ownership, Plan, plan};
use serde_json::json;

use super::story::Story;
use super::target::Target;
use super::traffic::{Deadlines, Listed, Traffic};
use crate::drain::Limits;

struct Node {
    index: Index,
    ledger: Ledger,
    observed: State,
    plan: Plan,
    deadlines: Deadlines,
}

/// node-1 in zone a, with a Service of policy Local that only some may call, and endpoints of which few are for it.
fn node() -> Node {
    let mut config = Config::new("node-1");
    config.families = [model::Family::V4].into();
    config.masquerade.detect_local = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    let mut index = Index::new(config);
    index.set_interfaces(vec![InterfaceAddress::new("eth0", "192.0.2.1".parse().unwrap())]);
    let node = json!({
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    index.apply_node(&serde_json::from_value(node).unwrap());
    let web = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["198.51.100.0/24", "10.244.0.0/16"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
    });
    index.apply_service(&serde_json::from_value(web).unwrap()).unwrap();
    let endpoint = |address: &str, node: &str, conditions: [bool; 3], zone: &str| {
        let [ready, serving, terminating] = conditions;
        json!({
            "addresses": [address], "nodeName": node, "hints": {"forZones": [{"name": zone}]},
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": {"kind": "Pod", "name": format!("pod-{address}")},
        })
    };
    let slice = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            endpoint("10.244.1.2", "node-1", [true, true, false], "a"),
            endpoint("10.244.1.3", "node-1", [false, true, true], "a"),
            endpoint("10.244.2.2", "node-2", [true, true, false], "a"),
            endpoint("10.244.3.2", "node-3", [true, true, false], "b"),
            endpoint("10.244.3.3", "node-3", [false, false, false], "b"),
        ],
    });
    index.apply_slice(&serde_json::from_value(slice).unwrap()).unwrap();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        index.begin_listing(kind);
    }
    let mut ledger = Ledger::new(index.config());
    ledger.set_source(model::Family::V4, Some("192.0.2.1".parse().unwrap()));
    for service in index.take_dirty() {
        ledger.set(&service, index.fragment(&service));
    }
    let observed = ledger.complete();
    let deadlines = Err("no agent answers on /nowhere".to_owned());
    Node { index, ledger, observed, plan: Plan::default(), deadlines }
}

/// Of a client to 10.96.0.10:80.
fn connection(port: u16) -> kernel::Connection {
    kernel::Connection {
        protocol: "TCP".to_owned(),
        client: SocketAddr::new("10.244.1.9".parse().unwrap(), if port == 40_001 { 0 } else { port }),
        virtual_server: "10.96.0.10:80".parse().unwrap(),
        real_server: "10.244.1.2:8080".parse().unwrap(),
        state: "ESTABLISHED".to_owned(),
        expires: 899,
        engine: None,
    }
}

fn told(node: &Node, target: &str, from: Option<&str>) -> String {
    let found = Target::parse(target).unwrap().resolve(&node.index, &node.ledger, &node.observed);
    let story = Story {
        index: &node.index,
        ledger: &node.ledger,
        observed: &node.observed,
        plan: &node.plan,
        limits: Limits {
            connections: Duration::from_secs(900),
            datagrams: Duration::from_secs(2),
            vanished: Duration::from_secs(10),
        },
        deadlines: &node.deadlines,
    };
    let socket = |text: &str| text.parse().unwrap();
    let flow = Flow {
        protocol: Protocol::Tcp,
        original: Direction { source: socket("10.244.1.9:40000"), destination: socket("10.96.0.10:80") },
        reply: Direction { source: socket("10.244.1.2:8080"), destination: socket("192.0.2.1:50000") },
        zone: 0,
    };
    let counters = RealServerCounters { active: 3, inactive: 1, ..RealServerCounters::default() };
    let mut text = String::new();
    for key in &found.keys {
        let real = RealServerKey::new("10.244.1.2".parse().unwrap(), 8080);
        let (mut connections, mut flows) = (Listed::default(), Listed::default());
        (40_000..40_012).for_each(|port| connections.push(connection(port)));
        connections.named.truncate(2);
        flows.push(flow);
        let traffic = Traffic { counted: vec![(*key, real, counters)], connections: Ok(connections), flows: Ok(flows) };
        text.push_str(&story.tell(key, from.map(|from| from.parse().unwrap()), &traffic));
    }
    found.remarks.iter().for_each(|remark| text.push_str(&format!("{remark}\n")));
    text
}

#[test]
fn a_cluster_ip_is_followed_from_callers_to_endpoints() {
    insta::assert_snapshot!(told(&node(), "10.96.0.10:80", None));
}

#[test]
fn policy_local_and_source_ranges_are_told_caller_by_caller() {
    let node = node();
    insta::assert_snapshot!("load_balancer", told(&node, "203.0.113.7:80", None));
    let of = |from| told(&node, "203.0.113.7:80", Some(from));
    assert!(
        of("198.51.100.9").contains("198.51.100.9, from outside\n    may call: it is in 198.51.100.0/24"),
        "{}",
        of("198.51.100.9")
    );
    assert!(of("198.51.101.9").contains("is dropped (KUBE-IPVS-SOURCE-RANGES, filter)"), "{}", of("198.51.101.9"));
    assert!(of("10.244.7.7").contains("10.244.7.7, a pod\n    may call") && of("10.244.7.7").contains("gets the packet mark"));
    assert!(of("192.0.2.1").contains("is dropped (KUBE-IPVS-OUTPUT, mangle): no address of this node"), "{}", of("192.0.2.1"));
    assert!(of("127.0.0.1").contains("it is not served: what comes from a loopback address"));
    let node_port = told(&node, "192.0.2.1:30080", Some("198.51.101.9"));
    assert!(node_port.contains("keeps its address, and is given endpoints on this node alone"), "{node_port}");
}

#[test]
fn what_differs_from_what_is_desired_is_told_with_what_is_due() {
    let mut node = node();
    let desired = node.observed.clone();
    let web = *node.observed.virtual_servers.keys().next().unwrap();
    let server = node.observed.virtual_servers.get_mut(&web).unwrap();
    server.real_servers.remove(&RealServerKey::new("10.244.1.2".parse().unwrap(), 8080));
    for (address, weight) in [("10.244.1.3", 0), ("10.244.3.2", 1), ("10.244.9.9", 0)] {
        let real = model::RealServer { weight, ..model::RealServer::default() };
        server.real_servers.insert(RealServerKey::new(address.parse().unwrap(), 8080), real);
    }
    node.observed.vips.clear();
    node.plan = plan(&desired, &node.observed, &Ownership::Scope);
    insta::assert_snapshot!(told(&node, "10.96.0.10:80", Some("10.244.3.2")));
}

#[test]
fn a_drain_is_told_with_the_time_that_an_agent_gives_it() {
    let mut node = node();
    let web = *node.observed.virtual_servers.keys().next().unwrap();
    let leaves = RealServerKey::new("10.244.1.3".parse().unwrap(), 8080);
    let stays = RealServerKey::new("10.244.1.2".parse().unwrap(), 8080);
    let server = node.observed.virtual_servers.get_mut(&web).unwrap();
    for real in [leaves, stays] {
        server.real_servers.insert(real, model::RealServer { weight: 0, ..model::RealServer::default() });
    }
    let without = told(&node, "10.96.0.10:80", None);
    assert!(
        without.contains("10.244.1.3:8080: its endpoint is terminating; draining for at most 15m00s since it left\n"),
        "{without}"
    );
    assert!(without.contains("only a running agent knows, and no agent answers on /nowhere\n"), "{without}");
    assert!(without.contains("10.244.1.2:8080: it has weight 0 by its Service's annotation"), "{without}");

    node.deadlines = Ok([((web, leaves), Duration::from_secs(852))].into());
    let with = told(&node, "10.96.0.10:80", None);
    assert!(with.contains("its endpoint is terminating; draining, for 14m12s more at most\n"), "{with}");
    assert!(!with.contains("only a running agent knows"), "{with}");
}

#[test]
fn what_nobody_serves_says_who_is_near() {
    let node = node();
    assert_eq!(
        told(&node, "198.18.0.1:80", None),
        "no Service has 198.18.0.1:80, and the kernel has no virtual server for it: IPVS leaves it alone\n"
    );
    let refused = told(&node, "10.96.0.10:81", None);
    assert!(
        refused.starts_with("no Service has 10.96.0.10:81; the address has TCP 10.96.0.10:80 (shop/web): new connections"),
        "{refused}"
    );
    assert!(
        told(&node, "198.18.0.1:30080", None).contains("node ports of that number are served on TCP 192.0.2.1:30080 (shop/web)")
    );
    assert!(told(&node, "shop/gone", None).starts_with("Service shop/gone is not served here: there is none of that name"));
    assert_eq!(told(&node, "shop/web:ftp", None), "Service shop/web has no port ftp\n");
    assert_eq!(told(&node, "shop/web:http", None).matches(" is Service shop/web:http").count(), 3);
}
