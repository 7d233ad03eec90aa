//! Services that claim what another has.

use desired::Config;
use model::{Family, Role, Set};
use serde_json::{Value, json};

use crate::support::{Node, name, service, slice};

fn claimant(name: &str, created: Value, spec: Value) -> Value {
    let mut object = service(name, spec);
    object["metadata"]["creationTimestamp"] = created;
    object
}

fn web(name: &str, created: Value) -> Value {
    claimant(name, created, json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]}))
}

fn owner(node: &Node) -> Option<String> {
    let key = *node.ledger.complete().virtual_servers.keys().next()?;
    let owner = node.ledger.owner(&key)?;
    Some(format!("{} {}", owner.service, owner.port))
}

#[test]
fn the_oldest_has_it_whatever_the_order_and_the_next_takes_over() {
    let (old, young) = (json!("2026-01-01T00:00:00Z"), json!("2026-02-01T00:00:00Z"));
    let objects = [web("a", young.clone()), web("b", old.clone()), web("c", json!(null)), web("d", young)];
    for rotation in 0..objects.len() {
        let mut objects = objects.clone();
        objects.rotate_left(rotation);
        let mut node = Node::new(Config::new("node-1"));
        for object in objects {
            node.apply(&[object]);
        }
        let conflicts: Vec<_> = node.ledger.conflicts().collect();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(conflicts[0].owner, name("b"));
        assert_eq!(conflicts[0].waiting, [name("a"), name("d"), name("c")]);

        for next in ["b", "a", "d"] {
            assert_eq!(owner(&node).unwrap(), format!("shop/{next} http"));
            node.delete_service(next);
        }
        assert_eq!(owner(&node).unwrap(), "shop/c http", "without a creation time it comes last");
        assert_eq!(node.ledger.conflicts().count(), 0);
        node.delete_service("c");
        assert_eq!(owner(&node), None);
        assert!(node.ledger.complete().vips.is_empty());
    }
}

#[test]
fn the_one_who_waits_changes_nothing() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[web("old", json!("2026-01-01T00:00:00Z")), slice("o", "old", 8080, json!([{"addresses": ["10.244.1.2"]}]))]);
    let before = node.ledger.complete();
    node.apply(&[web("young", json!("2026-02-01T00:00:00Z")), slice("y", "young", 9090, json!([{"addresses": ["10.244.1.3"]}]))]);
    assert_eq!(node.ledger.complete(), before);
    let touched = node.ledger.set(&name("young"), None);
    assert!(touched.is_empty(), "{touched:?}");
}

/// A node port that has the address first keeps it the node's: the ClusterIP that waits for it binds no VIP over it.
#[test]
fn who_waits_binds_no_vip_and_is_in_no_set() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        claimant(
            "port",
            json!("2026-01-01T00:00:00Z"),
            json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}),
        ),
        claimant("address", json!("2026-02-01T00:00:00Z"), json!({"clusterIP": "172.18.0.11", "ports": [{"port": 30080}]})),
    ]);
    let vips = |node: &Node| node.ledger.complete().vips.keys().map(|vip| vip.address.to_string()).collect::<Vec<_>>();
    assert_eq!(vips(&node), ["10.96.0.10"]);
    assert_eq!(node.ledger.complete().sets[&Set::new(Role::ClusterIp, Family::V4)].members.len(), 1);

    node.delete_service("port");
    assert_eq!(vips(&node), ["172.18.0.11"]);
}

#[test]
fn what_two_want_stays_until_both_are_gone() {
    let mut node = Node::new(Config::new("node-1"));
    let endpoint = json!([{"addresses": ["10.244.1.2"], "nodeName": "node-1"}]);
    node.apply(&[
        service("a", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]})),
        service("b", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 81}]})),
        slice("a-1", "a", 8080, endpoint.clone()),
        slice("b-1", "b", 8080, endpoint),
    ]);
    let shared = |node: &Node| {
        let state = node.ledger.complete();
        (state.vips.len(), state.sets[&Set::new(Role::LoopBack, Family::V4)].members.len())
    };
    assert_eq!(shared(&node), (1, 1));
    let touched = node.ledger.set(&name("a"), None);
    assert_eq!((touched.vips.len(), touched.members.len()), (0, 1), "just the ClusterIP's own set member");
    assert_eq!(shared(&node), (1, 1));
    node.delete_service("b");
    assert_eq!(shared(&node), (0, 0));
}
