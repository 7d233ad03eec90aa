//! Services that claim what another has.

use desired::{Config, Reason};
use model::{Family, Protocol, Role, Set, VirtualServerKey};
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

fn on(address: &str, name: &str, created: &str, port: u16, policy: &str) -> Value {
    let spec = json!({
        "clusterIP": format!("10.96.1.{port}"),
        "externalIPs": [address],
        "externalTrafficPolicy": policy,
        "ports": [{"port": port}],
    });
    claimant(name, json!(created), spec)
}

/// One address, different ports: the address is bound and guarded until both are gone, each port as its own Service says.
#[test]
fn two_services_share_an_address_by_ports() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        on("198.51.100.21", "a", "2026-01-01T00:00:00Z", 80, "Local"),
        on("198.51.100.21", "b", "2026-01-01T00:00:00Z", 81, "Cluster"),
    ]);
    let members = |node: &Node, role| {
        let members = node.ledger.complete().sets[&Set::new(role, Family::V4)].members.clone();
        members.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(node.ledger.conflicts().count(), 0);
    assert_eq!(members(&node, Role::ExternalIpLocal), ["198.51.100.21,tcp:80"]);
    assert_eq!(members(&node, Role::ExternalIp), ["198.51.100.21,tcp:81"]);
    let address: std::net::IpAddr = "198.51.100.21".parse().unwrap();
    for (gone, bound) in [("a", true), ("b", false)] {
        let touched = node.ledger.set(&name(gone), None);
        assert_eq!(touched.vips.iter().any(|vip| vip.address == address), !bound, "{gone}");
        assert_eq!(members(&node, Role::Vips).contains(&"198.51.100.21".to_owned()), bound);
    }
    assert_eq!(members(&node, Role::InCluster), Vec::<String>::new());
}

/// The mark is the frontend's, not the Service's: who takes over with policy `Local` has it, and without there is none.
#[test]
fn who_takes_over_has_the_virtual_server_behind_the_mark_or_there_is_none() {
    for (policy, marks) in [("Local", 1), ("Cluster", 0)] {
        let mut node = Node::new(Config::new("node-1"));
        node.apply(&[
            on("198.51.100.21", "old", "2026-01-01T00:00:00Z", 80, "Local"),
            on("198.51.100.21", "young", "2026-02-01T00:00:00Z", 80, policy),
            slice("y", "young", 9090, json!([{"addresses": ["10.244.2.3"]}])),
        ]);
        let behind = |node: &Node| {
            let servers = node.ledger.complete().virtual_servers;
            servers.into_iter().filter(|(key, _)| matches!(key, VirtualServerKey::Mark { .. })).collect::<Vec<_>>()
        };
        let before = behind(&node);
        assert_eq!(before.len(), 1);
        assert_eq!(node.ledger.owner(&before[0].0).unwrap().service, &name("old"));

        let touched = node.ledger.set(&name("old"), None);
        assert!(touched.virtual_servers.contains(&before[0].0), "{policy}");
        let after = behind(&node);
        assert_eq!(after.len(), marks, "{policy}");
        let frontend = VirtualServerKey::address("198.51.100.21".parse().unwrap(), Protocol::Tcp, 80);
        assert_eq!(node.ledger.frontend(&frontend), Some(frontend), "{policy}");
        assert_eq!(node.ledger.in_cluster(&frontend), (marks > 0).then_some(before[0].0), "{policy}");
        assert_eq!(node.ledger.frontend(&before[0].0), (marks > 0).then_some(frontend), "{policy}");
        for (key, server) in after {
            assert_eq!(key, before[0].0);
            assert_eq!(node.ledger.owner(&key).unwrap().service, &name("young"));
            assert_eq!(server.real_servers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.2.3:9090"]);
        }
    }
}

/// What has become of the problems that Services have with each other since the last call, by the Services' names.
fn news(node: &mut Node) -> Vec<(String, Vec<String>)> {
    let news = node.ledger.take_problems().into_iter();
    news.map(|(name, problems)| (name.name().to_owned(), problems.iter().map(ToString::to_string).collect())).collect()
}

#[test]
fn who_waits_is_told_once_and_again_when_another_has_it_or_itself() {
    let waits_for = |name: &str, owner: &str| {
        let text = format!(
            "Service shop/{name}: spec.clusterIPs claims TCP 10.96.0.10:80, which Service shop/{owner} had before, and is not served \
             there as long as that has it; give one of the two another address or port"
        );
        (name.to_owned(), vec![text])
    };
    let content = |name: &str| (name.to_owned(), Vec::new());
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[web("b", json!("2026-02-01T00:00:00Z"))]);
    assert_eq!(news(&mut node), []);
    node.apply(&[web("c", json!("2026-03-01T00:00:00Z")), web("d", json!("2026-03-01T00:00:00Z"))]);
    assert_eq!(news(&mut node), [waits_for("c", "b"), waits_for("d", "b")]);

    let spec = json!({"clusterIP": "10.96.0.10", "sessionAffinity": "ClientIP", "ports": [{"name": "http", "port": 80}]});
    node.apply(&[claimant("b", json!("2026-02-01T00:00:00Z"), spec)]);
    assert_eq!(news(&mut node), [content("b")], "of those who wait there is nothing new");

    node.apply(&[web("a", json!("2026-01-01T00:00:00Z"))]);
    assert_eq!(news(&mut node), [content("a"), waits_for("b", "a"), waits_for("c", "a"), waits_for("d", "a")]);
    node.delete_service("c");
    assert_eq!(news(&mut node), [content("c")]);
    node.delete_service("a");
    assert_eq!(news(&mut node), [content("a"), content("b"), waits_for("d", "b")]);
    node.delete_service("b");
    assert_eq!(news(&mut node), [content("b"), content("d")]);
}

#[test]
fn a_conflict_names_the_field_that_makes_the_claim() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        on("198.51.100.21", "old", "2026-01-01T00:00:00Z", 80, "Cluster"),
        on("198.51.100.21", "young", "2026-02-01T00:00:00Z", 80, "Cluster"),
    ]);
    let problems = node.ledger.take_problems().into_iter().find(|(service, _)| *service == name("young")).unwrap().1;
    let fields: Vec<_> = problems.iter().map(|problem| (problem.reason, &*problem.field)).collect();
    assert_eq!(fields, [(Reason::Conflict, "spec.clusterIPs"), (Reason::Conflict, "spec.externalIPs")]);
}

/// There are 16,383 marks; frontends beyond them are served without one, said so, and have one as soon as there is.
#[test]
fn who_has_no_mark_is_told_and_has_the_next_one_that_is_free() {
    let local = |name: &str, address: &str, ports: std::ops::Range<u16>| {
        let ports: Vec<_> = ports.map(|port| json!({"name": port.to_string(), "port": port})).collect();
        service(
            name,
            json!({
                "clusterIP": "10.96.0.10", "externalIPs": [address], "externalTrafficPolicy": "Local", "ports": ports,
            }),
        )
    };
    let marked = |node: &Node| node.ledger.complete().sets[&Set::new(Role::InCluster, Family::V4)].members.len();
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[local("many", "198.51.100.1", 1..16_384)]);
    assert_eq!((news(&mut node), marked(&node)), (vec![], 16_383));

    node.apply(&[local("few", "198.51.100.2", 20_001..20_003)]);
    let problems = news(&mut node);
    assert_eq!(problems.len(), 1);
    let (service, sentences) = &problems[0];
    assert_eq!((service.as_str(), sentences.len(), marked(&node)), ("few", 2, 16_383));
    assert_eq!(
        sentences[0],
        "Service shop/few: spec.externalTrafficPolicy is Local, and all 16383 packet marks of this node are given to other frontends: \
         callers inside the cluster reach TCP 198.51.100.2:20001 on this node's endpoints alone; set it to Cluster here or elsewhere, \
         or have fewer external addresses and node ports"
    );

    // One port less there is one frontend more here, with its virtual server.
    let before = node.ledger.complete();
    node.index.apply_service(&crate::support::object(local("many", "198.51.100.1", 1..16_383))).unwrap();
    node.index.take_dirty();
    let touched = node.ledger.set(&name("many"), node.index.fragment(&name("many")));
    assert_eq!(touched.members[&Set::new(Role::InCluster, Family::V4)].len(), 2, "{touched:?}");
    assert_eq!(
        (marked(&node), news(&mut node).iter().map(|(_, problems)| problems.len()).collect::<Vec<_>>()),
        (16_383, vec![1, 0])
    );
    let after = node.ledger.complete();
    let made = after.virtual_servers.keys().filter(|key| !before.virtual_servers.contains_key(key)).count();
    assert!(made <= 1 && touched.virtual_servers.iter().any(|key| matches!(key, VirtualServerKey::Mark { .. })), "{touched:?}");

    node.delete_service("many");
    assert_eq!((news(&mut node), marked(&node)), (vec![("few".into(), vec![]), ("many".into(), vec![])], 2));
    node.delete_service("few");
    assert_eq!(marked(&node), 0);
}
