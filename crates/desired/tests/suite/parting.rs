//! What is known of endpoints when their real servers leave.

use std::net::IpAddr;
use std::time::Duration;

use desired::{Config, Standing};
use model::{Protocol, VirtualServerKey};
use serde_json::{Value, json};

use crate::support::{Node, service, slice};

fn key() -> VirtualServerKey {
    VirtualServerKey::address(IpAddr::from([10, 96, 0, 10]), Protocol::Tcp, 80)
}

fn web(spec: Value) -> Value {
    let mut object = service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"name": "", "port": 80}]}));
    if let (Some(whole), Value::Object(spec)) = (object["spec"].as_object_mut(), spec) {
        whole.extend(spec);
    }
    object
}

fn endpoint(host: u8, node: &str, conditions: &Value) -> Value {
    json!({"addresses": [format!("10.244.1.{host}")], "nodeName": node, "conditions": conditions})
}

fn standings(node: &Node, key: &VirtualServerKey) -> Vec<Option<Standing>> {
    (1..=5).map(|host| node.ledger.standing(key, IpAddr::from([10, 244, 1, host]))).collect()
}

#[test]
fn e1_an_endpoint_that_is_not_chosen_is_told_from_one_that_is_gone() {
    let [ready, unready] = [json!({"ready": true}), json!({"ready": false})];
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let all = [
        Some(Standing::Present),
        Some(Standing::Present),
        Some(Standing::Terminating),
        Some(Standing::Present),
        Some(Standing::Gone),
    ];
    // Policy Local has a virtual server for others than those inside, and one for each of two policies.
    for spec in [
        json!({}),
        json!({"internalTrafficPolicy": "Local"}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]}),
    ] {
        let mut node = Node::new(Config::new("node-1"));
        let endpoints = json!([
            endpoint(1, "node-1", &ready),
            endpoint(2, "node-1", &unready),
            endpoint(3, "node-1", &terminating),
            endpoint(4, "node-2", &ready),
        ]);
        node.apply(&[web(spec.clone()), slice("web-1", "web", 8080, endpoints)]);
        let keys: Vec<_> = node.ledger.keys().collect();
        assert!(!keys.is_empty());
        for key in keys {
            assert_eq!(standings(&node, &key), all, "{key} with {spec}");
        }
    }
    let nothing = Node::new(Config::new("node-1"));
    assert_eq!(standings(&nothing, &key()), [None; 5]);
}

#[test]
fn e1_the_last_endpoints_are_known_to_terminate_while_they_serve() {
    let mut node = Node::new(Config::new("node-1"));
    let with = |ready: bool, terminating: bool| {
        let conditions = json!({"ready": ready, "serving": true, "terminating": terminating});
        slice("web-1", "web", 8080, json!([endpoint(1, "node-1", &conditions)]))
    };
    let last = |node: &Node| node.ledger.parting(&key()).unwrap().terminating.len();
    node.apply(&[web(json!({})), with(true, false)]);
    assert_eq!(last(&node), 0);
    // The same real server with the same weight, and yet news.
    node.index.apply_slice(&serde_json::from_value(with(false, true)).unwrap()).unwrap();
    let dirty = node.index.take_dirty();
    let scopes: Vec<_> = dirty.iter().map(|name| node.ledger.set(name, node.index.fragment(name))).collect();
    assert!(scopes.iter().any(|scope| scope.virtual_servers.contains(&key())));
    assert_eq!(last(&node), 1);
    assert_eq!(standings(&node, &key())[0], Some(Standing::Terminating));
}

#[test]
fn a2_an_annotation_says_how_long_connections_are_kept() {
    let asked = |text: &str| {
        let mut node = Node::new(Config::new("node-1"));
        let mut object = web(json!({}));
        object["metadata"]["annotations"] = json!({"kube-ipvs.io/drain-timeout": text});
        node.apply(&[object]);
        let parting = node.ledger.parting(&key()).unwrap();
        (parting.drain_timeout, node.problems().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(asked("1h30m"), (Some(Duration::from_secs(5400)), vec![]));
    assert_eq!(asked(" 90s "), (Some(Duration::from_secs(90)), vec![]));
    assert_eq!(asked(""), (None, vec![]));
    for wrong in ["0s", "30", "-1s", "forever"] {
        let problem = format!(
            "Service shop/web: metadata.annotations[kube-ipvs.io/drain-timeout] is \"{wrong}\", which is no duration above zero such as \
             30s, 90m or 1h30m; the default holds"
        );
        assert_eq!(asked(wrong), (None, vec![problem]));
    }
}
