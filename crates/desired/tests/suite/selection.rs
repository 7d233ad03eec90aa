//! Which endpoints are served, beyond what the conformance cases have of it.

use desired::Config;
use serde_json::{Value, json};

use crate::support::{Node, service, slice};

fn serving(slices: &[Value]) -> Vec<String> {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))]);
    node.apply(slices);
    node.real_servers("TCP 10.96.0.10:80")
}

fn endpoint(address: &str, ready: bool, serving: bool, terminating: bool) -> Value {
    json!({"addresses": [address], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

/// Endpoints move between slices, and for a while are in both.
#[test]
fn of_two_descriptions_the_livelier_counts_in_either_order() {
    let lively = json!([endpoint("10.244.1.2", true, true, false)]);
    let other = json!([endpoint("10.244.1.4", true, true, false)]);
    for dying in [endpoint("10.244.1.2", false, true, true), endpoint("10.244.1.2", false, false, false)] {
        for (first, second) in [("a", "b"), ("b", "a")] {
            let slices = [
                slice(first, "web", 8080, json!([dying])),
                slice(second, "web", 8080, lively.clone()),
                slice("c", "web", 8080, other.clone()),
            ];
            assert_eq!(serving(&slices), ["10.244.1.2:8080", "10.244.1.4:8080"]);
        }
    }
}

/// A pod that publishes itself before it is ready is called ready while it terminates, too.
#[test]
fn what_still_lives_counts_before_what_claims_to_be_ready() {
    let dying = json!([endpoint("10.244.1.2", true, true, true)]);
    let starting = json!([endpoint("10.244.1.2", false, false, false)]);
    assert_eq!(serving(&[slice("a", "web", 80, dying.clone())]), ["10.244.1.2:80"]);
    assert_eq!(serving(&[slice("a", "web", 80, dying), slice("b", "web", 80, starting)]), Vec::<String>::new());
}

#[test]
fn terminating_endpoints_are_the_last_resort_and_dead_ones_none() {
    let ready = endpoint("10.244.1.1", true, true, false);
    let leaving = endpoint("10.244.1.2", false, true, true);
    let dead = endpoint("10.244.1.3", false, false, true);
    let starting = endpoint("10.244.1.4", false, true, false);
    assert_eq!(serving(&[slice("a", "web", 80, json!([ready, leaving, dead, starting]))]), ["10.244.1.1:80"]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([leaving, dead, starting]))]), ["10.244.1.2:80"]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([dead, starting]))]), Vec::<String>::new());
}

#[test]
fn hints_are_all_or_nothing() {
    let hinted = |address: &str, zones: &[&str], nodes: &[&str]| {
        let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        json!({"addresses": [address], "hints": {"forZones": named(zones), "forNodes": named(nodes)}})
    };
    let here = hinted("10.244.1.1", &["zone-a"], &[]);
    let there = hinted("10.244.1.2", &["zone-b"], &[]);
    let silent = hinted("10.244.1.3", &[], &[]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([here, there]))]), ["10.244.1.1:80"]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([here, there, silent]))]).len(), 3);
    assert_eq!(serving(&[slice("a", "web", 80, json!([there]))]), ["10.244.1.2:80"]);

    let near = hinted("10.244.1.4", &["zone-a"], &["node-1"]);
    let far = hinted("10.244.1.5", &["zone-a"], &["node-2"]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([near, far]))]), ["10.244.1.4:80"]);
    assert_eq!(serving(&[slice("a", "web", 80, json!([near, here]))]).len(), 2, "node hints are incomplete, zone hints name both");
}

#[test]
fn zero_padded_addresses_are_the_addresses_they_were_read_as() {
    let slices = [
        slice("a", "web", 80, json!([{"addresses": ["10.244.001.002"]}])),
        slice("b", "web", 80, json!([{"addresses": ["10.244.1.2"]}])),
    ];
    assert_eq!(serving(&slices), ["10.244.1.2:80"]);
}

#[test]
fn slices_of_headless_services_and_of_nobody_are_left_alone() {
    let endpoints = json!([{"addresses": ["10.244.1.2"]}]);
    let mut headless = slice("a", "web", 80, endpoints.clone());
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    let mut nobodys = slice("b", "web", 80, endpoints);
    nobodys["metadata"]["labels"] = json!({});
    assert_eq!(serving(&[headless, nobodys]), Vec::<String>::new());
}

/// A Service that this proxy is not to serve is not, even if a source without selectors hands it in; and it can come and go.
#[test]
fn services_of_other_proxies_are_left_alone() {
    let mut node = Node::new(Config::new("node-1"));
    let plain = service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
    let mut other = plain.clone();
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "mesh"});
    for (object, served) in [(&plain, 1), (&other, 0), (&plain, 1)] {
        node.apply(std::slice::from_ref(object));
        assert_eq!(node.ledger.complete().virtual_servers.len(), served);
    }
    let mut mesh = Node::new(Config { proxy_name: Some("mesh".into()), ..Config::new("node-1") });
    for (object, served) in [(&plain, 0), (&other, 1), (&plain, 0)] {
        mesh.apply(std::slice::from_ref(object));
        assert_eq!(mesh.ledger.complete().virtual_servers.len(), served);
    }
}
