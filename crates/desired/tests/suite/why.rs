//! What there is to say to people who want to know why.

use desired::{Callers, Config, Verdict};
use model::VirtualServerKey;
use serde_json::{Value, json};

use crate::support::{Node, name, service, slice};

fn key(text: &str) -> VirtualServerKey {
    let (address, port) = text.rsplit_once(':').unwrap();
    VirtualServerKey::address(address.parse().unwrap(), model::Protocol::Tcp, port.parse().unwrap())
}

fn endpoint(address: &str, node: &str, conditions: [bool; 3], zone: &str) -> Value {
    let [ready, serving, terminating] = conditions;
    json!({
        "addresses": [address], "nodeName": node, "targetRef": {"kind": "Pod", "name": format!("on-{node}")},
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "hints": {"forZones": [{"name": zone}]},
    })
}

const READY: [bool; 3] = [true, true, false];
const UNREADY: [bool; 3] = [false, false, false];
const LEAVING: [bool; 3] = [false, true, true];

fn node(endpoints: Value) -> Node {
    let mut node = Node::new(Config::new("node-1"));
    let spec = json!({
        "clusterIP": "10.96.0.10", "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    node.apply(&[service("web", spec), slice("a", "web", 8080, endpoints)]);
    node
}

/// The verdicts, in the order of the endpoints' addresses. Those that are served by them are those that are desired.
fn verdicts(node: &Node, frontend: &str, callers: Callers) -> Vec<Verdict> {
    let frontend = key(frontend);
    let endpoints = node.index.endpoints(&name("web"), &frontend, callers);
    let virtual_server = match callers {
        Callers::Others => frontend,
        Callers::InCluster => node.ledger.in_cluster(&frontend).unwrap(),
    };
    let serves = |verdict| matches!(verdict, Verdict::Chosen | Verdict::LastResort);
    let served: Vec<_> =
        endpoints.iter().filter(|endpoint| serves(endpoint.verdict)).map(|endpoint| endpoint.real.to_string()).collect();
    assert_eq!(served, node.real_servers(&virtual_server.to_string()));
    endpoints.iter().map(|endpoint| endpoint.verdict).collect()
}

#[test]
fn verdicts_say_who_is_served_and_why_the_others_are_not() {
    let node = node(json!([
        endpoint("10.244.1.2", "node-1", READY, "zone-a"),
        endpoint("10.244.1.3", "node-1", LEAVING, "zone-a"),
        endpoint("10.244.2.2", "node-2", READY, "zone-a"),
        endpoint("10.244.2.3", "node-2", UNREADY, "zone-a"),
        endpoint("10.244.3.2", "node-3", READY, "zone-b"),
    ]));
    use Verdict::{Chosen, ForOtherZones, NotReady, OnOtherNode, Terminating};
    assert_eq!(verdicts(&node, "10.96.0.10:80", Callers::Others), [Chosen, Terminating, Chosen, NotReady, ForOtherZones]);
    let node_port = "172.18.0.11:30080";
    assert_eq!(verdicts(&node, node_port, Callers::Others), [Chosen, Terminating, OnOtherNode, NotReady, OnOtherNode]);
    assert_eq!(verdicts(&node, node_port, Callers::InCluster), [Chosen, Terminating, Chosen, NotReady, ForOtherZones]);
    let endpoints = node.index.endpoints(&name("web"), &key(node_port), Callers::Others);
    let of = |at: usize| (endpoints[at].pod.as_deref(), endpoints[at].node.as_deref(), endpoints[at].local);
    assert_eq!(of(0), (Some("on-node-1"), Some("node-1"), true));
    assert_eq!(of(4), (Some("on-node-3"), Some("node-3"), false));
}

#[test]
fn the_last_resort_is_told_from_what_is_chosen() {
    let node = node(json!([
        endpoint("10.244.1.2", "node-1", LEAVING, "zone-a"),
        endpoint("10.244.2.2", "node-2", LEAVING, "zone-a"),
        endpoint("10.244.2.3", "node-2", [false, false, true], "zone-a"),
    ]));
    use Verdict::{LastResort, OnOtherNode, Terminating};
    assert_eq!(verdicts(&node, "10.96.0.10:80", Callers::Others), [LastResort, LastResort, Terminating]);
    assert_eq!(verdicts(&node, "172.18.0.11:30080", Callers::Others), [LastResort, OnOtherNode, Terminating]);
}

#[test]
fn what_is_not_there_has_no_endpoints() {
    let node = node(json!([]));
    for (service, frontend) in [("web", "10.96.0.10:81"), ("gone", "10.96.0.10:80")] {
        assert!(node.index.endpoints(&name(service), &key(frontend), Callers::Others).is_empty());
    }
}

#[test]
fn every_member_has_somebody_who_asks_for_it_and_those_who_wait_do_not() {
    let mut node = node(json!([endpoint("10.244.1.2", "node-1", READY, "zone-a")]));
    let mut younger =
        service("younger", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}, {"name": "other", "port": 81}]}));
    younger["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut web = service(
        "web",
        json!({
            "clusterIP": "10.96.0.10", "type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}],
        }),
    );
    web["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z".into();
    node.apply(&[web, younger]);
    let askers = node.ledger.askers();
    for (set, state) in node.ledger.complete().sets {
        for member in state.members {
            assert!(askers.get(&(set, member)).is_some_and(|services| !services.is_empty()), "{set} {member}");
        }
    }
    let of = |text: &str| {
        let asked = askers.iter().filter(|((set, member), _)| format!("{set} {member}") == text);
        asked.flat_map(|(_, services)| services.iter().map(ToString::to_string)).collect::<Vec<_>>()
    };
    assert_eq!(of("KUBE-CLUSTER-IP 10.96.0.10,tcp:80"), ["shop/web"], "the one that waits does not ask");
    assert_eq!(of("KUBE-CLUSTER-IP 10.96.0.10,tcp:81"), ["shop/younger"]);
    assert_eq!(of("KUBE-IPVS-IPS 10.96.0.10"), ["shop/web", "shop/younger"]);
    assert_eq!(of("KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2"), ["shop/web"]);
}
