//! Objects with missing, contradictory or absurd fields: the bad part is left out with a sentence that names it, and everything else is served.

use desired::Config;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Node, object, service, slice};

const GOOD: &str = "TCP 10.96.0.10:80";

/// A node with a Service that nothing is wrong with.
fn node() -> Node {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        service("good", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80, "targetPort": 8080}]})),
        slice("good-1", "good", 8080, json!([{"addresses": ["10.244.1.2"], "nodeName": "node-1"}])),
    ]);
    node
}

/// The good Service's virtual server, and the others'.
fn others(node: &Node) -> Vec<String> {
    let mut keys: Vec<_> = node.ledger.complete().virtual_servers.keys().map(ToString::to_string).collect();
    let all = keys.len();
    keys.retain(|key| key != GOOD);
    assert_eq!(keys.len() + 1, all, "the good Service is not served");
    keys
}

#[test]
fn of_a_bad_service_what_can_be_served_is() {
    let long = "a".repeat(253);
    let cases: [(Value, &[&str], &[&str]); 12] = [
        (
            json!({"ports": [{"name": "a", "port": 0}, {"name": "b", "port": 81}]}),
            &["TCP 10.96.0.11:81"],
            &["spec.ports[0].port is 0"],
        ),
        (
            json!({"ports": [{"name": "a", "port": 65536}, {"name": "b", "port": 81}]}),
            &["TCP 10.96.0.11:81"],
            &["spec.ports[0].port is 65536"],
        ),
        (
            json!({"ports": [{"name": "a", "port": -1}, {"name": "b", "port": 81}]}),
            &["TCP 10.96.0.11:81"],
            &["spec.ports[0].port is -1"],
        ),
        (
            json!({"ports": [{"name": "a", "port": 80, "protocol": "QUIC"}, {"name": "b", "port": 81}]}),
            &["TCP 10.96.0.11:81"],
            &["\"QUIC\"; the protocols are"],
        ),
        (
            json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}),
            &["TCP 10.96.0.11:80"],
            &["again; the first of them"],
        ),
        (json!({"ports": [{"port": 80, "nodePort": 99999}]}), &["TCP 10.96.0.11:80"], &["nodePort"]),
        (json!({"clusterIP": "10.96.0.300", "ports": [{"port": 80}]}), &[], &["10.96.0.300"]),
        (json!({"clusterIP": "127.0.0.1", "ports": [{"port": 80}]}), &[], &["127.0.0.1"]),
        (
            json!({"externalIPs": ["not an address", "198.51.100.1"], "ports": [{"port": 80}]}),
            &["TCP 10.96.0.11:80", "TCP 198.51.100.1:80"],
            &["not an address"],
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/33"], "ports": [{"port": 80}]}),
            &["TCP 10.96.0.11:80"],
            &["10.0.0.0/33"],
        ),
        (
            json!({"internalTrafficPolicy": "Near", "sessionAffinity": "Cookie", "ports": [{"port": 80}]}),
            &["TCP 10.96.0.11:80"],
            &["internalTrafficPolicy is \"Near\"", "sessionAffinity is \"Cookie\""],
        ),
        (json!({"ports": [{"name": long, "port": 80, "targetPort": long}]}), &["TCP 10.96.0.11:80"], &[]),
    ];
    for (mut spec, served, said) in cases {
        if spec.get("clusterIP").is_none() {
            spec["clusterIP"] = "10.96.0.11".into();
        }
        let mut node = node();
        node.apply(&[service("bad", spec.clone())]);
        assert_eq!(others(&node), served, "{spec}");
        let problems = node.problems();
        assert_eq!(problems.is_empty(), said.is_empty(), "{spec}: {problems:?}");
        for text in said {
            assert!(
                problems.iter().any(|problem| problem.starts_with("Service shop/bad: ") && problem.contains(text)),
                "{spec}: {problems:?}"
            );
        }
    }
}

#[test]
fn of_a_bad_slice_the_endpoints_that_make_sense_serve() {
    let endpoints = [
        ("fd00:244::1", "is fd00:244::1 in a slice of addressType IPv4"),
        ("10.244.1", "is \"10.244.1\", which is no IP address"),
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("0.0.0.0", "0.0.0.0"),
    ];
    for (address, said) in endpoints {
        let mut node = node();
        node.apply(&[slice(
            "good-2",
            "good",
            8080,
            json!([{"addresses": [address]}, {"addresses": ["10.244.2.3"]}, {"addresses": []}, {}]),
        )]);
        assert_eq!(node.real_servers(GOOD), ["10.244.1.2:8080", "10.244.2.3:8080"], "{address}");
        let problems = node.problems();
        assert!(problems.iter().any(|problem| problem.contains("good-2") && problem.contains(said)), "{address}: {problems:?}");
    }
    // A port of the slice.
    let mut node = node();
    let mut bad = slice("good-2", "good", 0, json!([{"addresses": ["10.244.2.3"]}]));
    node.apply(&[bad.clone()]);
    assert_eq!(node.real_servers(GOOD), ["10.244.1.2:8080"]);
    assert!(node.problems().iter().any(|problem| problem.contains("port is 0")), "{:?}", node.problems());
    bad["addressType"] = "FQDN".into();
    node.apply(&[bad]);
    assert_eq!(node.real_servers(GOOD), ["10.244.1.2:8080"]);
}

#[test]
fn ten_thousand_ports_are_served_and_ten_thousand_bad_ones_are_counted() {
    let mut node = node();
    let ports: Vec<_> = (1..=10_000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    node.apply(&[service("many", json!({"clusterIP": "10.96.0.11", "ports": ports}))]);
    assert_eq!(others(&node).len(), 10_000);
    let bad: Vec<_> = (0..10_000).map(|_| json!({"name": "", "port": 0})).collect();
    node.apply(&[service("many", json!({"clusterIP": "10.96.0.11", "ports": bad}))]);
    assert!(others(&node).is_empty());
    let problems = node.problems();
    assert!(problems.len() < 20 && problems.iter().any(|problem| problem.contains("9984 more such problems")), "{problems:?}");
}

#[test]
fn an_object_without_a_fitting_name_is_left_out_and_named() {
    let mut node = node();
    for metadata in
        [json!({}), json!({"name": ""}), json!({"name": "a/b"}), json!({"name": "x".repeat(300)}), json!({"name": "a\nb"})]
    {
        let bad = json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}});
        assert!(node.index.apply_service(&object(bad.clone())).is_err(), "{bad}");
        node.sync();
        assert!(others(&node).is_empty());
    }
}

/// What an API server would never let through, and a file may hold: any number and any text in any field.
fn absurd() -> impl Strategy<Value = Value> {
    let text = prop_oneof![any::<String>(), "[0-9a-f:./]{0,40}", Just("10.96.0.11".to_owned()), Just("fd00:96::1/64".to_owned())];
    let port = (text.clone(), any::<i32>(), any::<i32>(), text.clone()).prop_map(
        |(name, port, node_port, protocol)| json!({"name": name, "port": port, "nodePort": node_port, "protocol": protocol}),
    );
    let texts = proptest::collection::vec(text.clone(), 0..4);
    let annotations =
        proptest::collection::btree_map("kube-ipvs.io/(scheduler|weights|one-packet|scheduler-flags)", text.clone(), 0..4);
    (text.clone(), [texts.clone(), texts.clone(), texts.clone(), texts], text, proptest::collection::vec(port, 0..4), any::<i32>(), annotations).prop_map(
        |(one, [ips, externals, ranges, ingress], policy, ports, number, annotations)| {
            let ingress: Vec<_> = ingress.into_iter().map(|ip| json!({"ip": ip, "ipMode": policy})).collect();
            json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "absurd", "annotations": annotations},
                "spec": {"type": one, "clusterIP": ips.first(), "clusterIPs": ips, "externalIPs": externals, "loadBalancerSourceRanges": ranges,
                    "internalTrafficPolicy": policy, "externalTrafficPolicy": policy, "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": number}}, "healthCheckNodePort": number, "ports": ports},
                "status": {"loadBalancer": {"ingress": ingress}}})
        },
    )
}

proptest! {
    #[test]
    fn no_service_keeps_another_from_being_served(bad in absurd()) {
        let mut node = node();
        node.apply(&[bad]);
        prop_assert_eq!(node.real_servers(GOOD), ["10.244.1.2:8080"]);
    }
}
