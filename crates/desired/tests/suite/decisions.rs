//! The operator's decisions may change while Services are served.

use desired::{Config, DetectLocal, Masquerade, NodePortAddresses, OccupiedNodePorts, PortRange};
use model::{Family, Scheduler, Via};
use serde_json::{Value, json};

use crate::support::{Node, service, slice};

fn objects() -> Vec<Value> {
    let mut web = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.10"], "externalTrafficPolicy": "Local",
            "externalIPs": ["198.51.100.1", "10.9.0.1"], "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": [{"port": 80, "nodePort": 30080}],
        }),
    );
    web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}});
    let endpoints =
        json!([{"addresses": ["10.244.1.2"], "nodeName": "node-1"}, {"addresses": ["10.244.2.2"], "nodeName": "node-2"}]);
    let node = json!({"kind": "Node", "metadata": {"name": "node-2"}, "status": {"addresses": [{"type": "InternalIP", "address": "198.51.100.1"}]}});
    vec![web, slice("web-1", "web", 8080, endpoints), node]
}

/// Everything that can change, one way and the other.
fn decisions() -> Vec<Config> {
    let changed = |change: fn(&mut Config)| {
        let mut config = Config::new("node-1");
        change(&mut config);
        config
    };
    vec![
        changed(|_| {}),
        changed(|config| config.scheduler = Scheduler::new("mh").unwrap()),
        changed(|config| config.node_port_addresses = NodePortAddresses::All),
        changed(|config| config.masquerade.all = true),
        changed(|config| config.masquerade.detect_local = DetectLocal::NodeCidr),
        // The pods' networks are nobody's to take.
        changed(|config| config.masquerade.detect_local = DetectLocal::ClusterCidr(vec!["10.9.0.0/16".parse().unwrap()])),
        changed(|config| config.allowed_externals = vec!["198.51.100.0/24".parse().unwrap()]),
        changed(|config| config.excluded_load_balancers = vec!["192.0.2.0/24".parse().unwrap()]),
        changed(|config| config.external_ips = false),
        changed(|config| config.ranges_per_family = true),
        changed(|config| config.open_input = true),
        changed(|config| config.answer_pings = false),
        changed(|config| config.occupied_node_ports = OccupiedNodePorts::Process),
        changed(|config| config.masquerade = Masquerade { ports: PortRange::NODE_PORTS, ..Masquerade::default() }),
    ]
}

fn all(node: &Node) -> (String, Vec<String>, Vec<String>) {
    (node.text(), node.problems(), Family::ALL.map(|family| node.rules(family)).into())
}

#[test]
fn a_change_of_mind_leads_to_what_a_new_start_would() {
    let decisions = decisions();
    for before in &decisions {
        let mut node = Node::new(before.clone());
        node.apply(&objects());
        for after in &decisions {
            node.index.set_config(after.clone());
            node.sync();
            let mut started = Node::new(after.clone());
            started.apply(&objects());
            assert_eq!(all(&node), all(&started), "from {before:?} to {after:?}");
        }
    }
    let texts: std::collections::BTreeSet<_> = decisions
        .iter()
        .map(|config| {
            let mut node = Node::new(config.clone());
            node.apply(&objects());
            all(&node)
        })
        .collect();
    // Nothing listens on node ports here, and the one range there is leaves no other family open.
    assert!(texts.len() >= decisions.len() - 2, "{} of {} make a difference", texts.len(), decisions.len());
}

#[test]
fn what_the_kernel_holds_by_stays() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&objects());
    let before = all(&node);
    let mut other = Config::new("node-2");
    other.via = Via::Address;
    other.families = [Family::V6].into();
    other.proxy_name = Some("blue".into());
    other.masquerade.mark = desired::MarkBit::new(15).unwrap();
    node.index.set_config(other);
    node.sync();
    assert_eq!(all(&node), before);
}

#[test]
fn without_the_gate_external_ips_are_nobodys() {
    let mut node = Node::new(Config { external_ips: false, ..Config::new("node-1") });
    node.apply(&objects());
    assert!(!node.text().contains("198.51.100.1") && !node.text().contains("10.9.0.1"), "{}", node.text());
    assert!(node.text().contains("192.0.2.7"), "load balancers are another matter");
    assert!(node.problems().is_empty());
}
