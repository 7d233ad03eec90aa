//! One test per known defect of kube-proxy's IPVS mode that desired state alone decides, by its id.

use desired::{Config, DetectLocal, NodePortAddresses, Priority, ServiceName};
use model::{Family, Member, Protocol, Role, Scheduler, Scope, Set, SetState};
use serde_json::json;

use crate::support::{Node, interfaces, name, object, service, slice, text};

fn node_port_service(name: &str, cluster_ip: &str, node_port: u16) -> serde_json::Value {
    service(name, json!({"type": "NodePort", "clusterIP": cluster_ip, "ports": [{"port": 80, "nodePort": node_port}]}))
}

fn node_ports(node: &Node) -> Vec<String> {
    let sets = node.ledger.complete().sets;
    let of = |family| sets[&Set::new(Role::NodePort, family)].members.iter().map(ToString::to_string).collect::<Vec<_>>();
    Family::ALL.into_iter().flat_map(of).collect()
}

/// A pod that is given itself needs another source address, whichever frontend it came through and whether it is ready by then.
#[test]
fn b1_every_local_endpoint_can_reach_itself_through_every_frontend() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        node_port_service("web", "10.96.0.10", 30080),
        slice(
            "web-1",
            "web",
            8080,
            json!([
                {"addresses": ["10.244.1.2"], "nodeName": "node-1"},
                {"addresses": ["10.244.1.3"], "nodeName": "node-1", "conditions": {"ready": false, "serving": false}},
                {"addresses": ["10.244.2.2"], "nodeName": "node-2"},
            ]),
        ),
    ]);
    let state = node.ledger.complete();
    let members: Vec<_> = state.sets[&Set::new(Role::LoopBack, Family::V4)].members.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["10.244.1.2,tcp:8080,10.244.1.2", "10.244.1.3,tcp:8080,10.244.1.3"]);
    assert!(
        node.rules(Family::V4).contains("-m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE"),
        "the rule looks at the endpoint alone"
    );
}

/// The node speaks to VIPs from its own address; where none is known, what it sends from the VIP itself is masqueraded.
#[test]
fn b2_the_node_does_not_speak_from_a_vip() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))]);
    let sources: Vec<_> = node.ledger.complete().vips.into_values().collect();
    assert_eq!(sources, [Some("172.18.0.11".parse().unwrap())]);

    let touched = node.ledger.set_source(Family::V4, None);
    assert_eq!(touched.vips.len(), 1);
    assert_eq!(node.ledger.complete().vips.into_values().collect::<Vec<_>>(), [None]);
    let backstop = "--match-set KUBE-CLUSTER-IP src,dst -j MARK";
    assert!(node.rules(Family::V4).contains(backstop));
}

#[test]
fn c3_internal_policy_local_never_leaves_the_node() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        service(
            "web",
            json!({
                "type": "NodePort",
                "clusterIP": "10.96.0.10",
                "internalTrafficPolicy": "Local",
                "ports": [{"port": 80, "nodePort": 30080}],
            }),
        ),
        slice(
            "web-1",
            "web",
            8080,
            json!([
                {"addresses": ["10.244.2.2"], "nodeName": "node-2"},
                {"addresses": ["10.244.2.3"], "nodeName": "node-2", "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]),
        ),
    ]);
    assert_eq!(node.real_servers("TCP 10.96.0.10:80"), Vec::<String>::new());
    assert_eq!(node.real_servers("TCP 172.18.0.11:30080"), ["10.244.2.2:8080"]);
}

#[test]
fn e2_hashing_schedulers_may_fall_back() {
    for (scheduler, flags) in [("rr", 0), ("wlc", 0), ("sh", 0x8), ("mh", 0x18)] {
        let mut node = Node::new(Config { scheduler: Scheduler::new(scheduler).unwrap(), ..Config::new("node-1") });
        node.apply(&[service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))]);
        let state = node.ledger.complete();
        let bits: Vec<_> = state.virtual_servers.values().map(|server| server.config.flags.bits()).collect();
        assert_eq!(bits, [flags], "{scheduler}");
    }
}

/// An address that appears serves node ports, and nothing but node ports is looked at for it.
#[test]
fn f3_node_addresses_are_followed() {
    let mut node = Node::new(Config { node_port_addresses: NodePortAddresses::All, ..Config::new("node-1") });
    node.apply(&[
        node_port_service("web", "10.96.0.10", 30080),
        service("plain", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]})),
    ]);
    node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth1", "192.168.7.1")]));
    assert_eq!(node.index.take_dirty().into_iter().collect::<Vec<_>>(), [name("web")]);
    let touched = node.ledger.set(&name("web"), node.index.fragment(&name("web")));
    let keys: Vec<_> = touched.virtual_servers.iter().map(ToString::to_string).collect();
    assert_eq!(keys, ["TCP 172.17.0.1:30080", "TCP 192.168.7.1:30080"], "what stays is not touched");
    assert_eq!(node_ports(&node), ["172.18.0.11,tcp:30080", "192.168.7.1,tcp:30080"]);
}

/// Only addresses the operator means: not those of bridges, and never those that stand for VIPs.
#[test]
fn f4_node_ports_are_on_the_primary_addresses_unless_asked_otherwise() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[service(
        "web",
        json!({
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
    )]);
    assert_eq!(node_ports(&node), ["172.18.0.11,tcp:30080", "fd00:18::11,tcp:30080"]);

    node.index.set_interfaces(interfaces(&[("kube-ipvs0", "172.18.0.11"), ("docker0", "172.17.0.1")]));
    node.sync();
    assert_eq!(node_ports(&node), Vec::<String>::new(), "an address that only kube-ipvs0 has is a VIP");
}

/// A Service whose port has the number of another one's node port is no node port.
#[test]
fn f5_a_node_port_is_matched_with_its_address() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        node_port_service("web", "10.96.0.10", 31000),
        service("plain", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 31000}]})),
    ]);
    assert_eq!(node_ports(&node), ["172.18.0.11,tcp:31000"]);
    let rules = node.rules(Family::V4);
    let position = |text: &str| rules.find(text).unwrap();
    assert!(!rules.contains("addrtype"), "that an address is local does not make it the node's: every VIP is");
    assert!(
        position("KUBE-CLUSTER-IP dst,dst -j ACCEPT") < position("KUBE-NODE-PORT-ADDRESS dst,dst"),
        "VIPs are matched before node ports"
    );
}

#[test]
fn f6_the_nodes_own_address_and_networks_are_followed() {
    let mut config = Config::new("node-1");
    config.masquerade.detect_local = DetectLocal::NodeCidr;
    let mut node = Node::new(config);
    node.apply(&[node_port_service("web", "10.96.0.10", 30080)]);
    node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth0", "172.18.0.99")]));
    node.apply(&[json!({
        "kind": "Node",
        "metadata": {"name": "node-1"},
        "spec": {"podCIDRs": ["10.244.9.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.99"}]},
    })]);
    assert_eq!(node_ports(&node), ["172.18.0.99,tcp:30080"]);
    assert!(text(&node.ledger.complete()).contains("10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.99"));
    assert!(node.rules(Family::V4).contains("! -s 10.244.9.0/24 "));

    node.index.delete_node(&object(json!({"name": "node-1"})));
    node.sync();
    assert_eq!(node_ports(&node), ["172.18.0.99,tcp:30080"], "a Node object that is gone does not take the machine's address");
}

/// What listens on the node for itself is not reached through a VIP: live frontends pass, the rest of a VIP is refused.
#[test]
fn g1_other_ports_of_a_vip_are_refused() {
    for (family, prefix, unreachable) in
        [(Family::V4, "KUBE-", "icmp-port-unreachable"), (Family::V6, "KUBE-6-", "icmp6-port-unreachable")]
    {
        let node = Node::new(Config::new("node-1"));
        let rules = node.rules(family);
        let input: Vec<_> = rules.lines().filter_map(|rule| rule.strip_prefix("-t filter -A KUBE-IPVS-INPUT ")).collect();
        assert_eq!(input[0], format!("-m set --match-set {prefix}CLUSTER-IP dst,dst -j RETURN"));
        let refuse =
            format!("-m conntrack --ctstate NEW -m set --match-set {prefix}IPVS-IPS dst -j REJECT --reject-with {unreachable}");
        assert_eq!(input.last(), Some(&refuse.as_str()));
    }
}

#[test]
fn g2_a_vip_answers_ping() {
    let node = Node::new(Config::new("node-1"));
    assert!(node.rules(Family::V4).contains("-p icmp -m icmp --icmp-type 8 -j RETURN"));
    assert!(node.rules(Family::V6).contains("-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN"));
}

#[test]
fn g5_vips_are_on_no_interface_by_default() {
    assert_eq!(Config::new("node-1").via, model::Via::Route);
}

/// Each family has its own addresses, slices and sets; a family that is switched off takes nothing of the other with it.
#[test]
fn g8_families_do_not_mix() {
    let dual = service(
        "web",
        json!({
            "clusterIP": "fd00:10:96::10",
            "clusterIPs": ["fd00:10:96::10", "10.96.0.10"],
            "ipFamilies": ["IPv6", "IPv4"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
    );
    let mut v6 = slice("web-6", "web", 8080, json!([{"addresses": ["fd00:10:244:1::2"]}, {"addresses": ["10.244.1.9"]}]));
    v6["addressType"] = "IPv6".into();
    let objects =
        [dual, slice("web-4", "web", 8080, json!([{"addresses": ["10.244.1.2"]}, {"addresses": ["::ffff:10.244.1.3"]}])), v6];

    let mut node = Node::new(Config::new("node-1"));
    node.apply(&objects);
    assert_eq!(node.real_servers("TCP 10.96.0.10:80"), ["10.244.1.2:8080", "10.244.1.3:8080"]);
    assert_eq!(node.real_servers("TCP [fd00:10:96::10]:80"), ["[fd00:10:244:1::2]:8080"]);
    assert_eq!(node.real_servers("TCP [fd00:18::11]:30080"), ["[fd00:10:244:1::2]:8080"]);
    assert_eq!(
        node.problems(),
        ["EndpointSlice shop/web-6: endpoints[1].addresses[0] is 10.244.1.9 in a slice of addressType IPv6, and is not served"]
    );

    for only in Family::ALL {
        let mut node = Node::new(Config { families: [only].into(), ..Config::new("node-1") });
        node.apply(&objects);
        let state = node.ledger.complete();
        assert_eq!(state.virtual_servers.keys().map(|key| key.family()).collect::<Vec<_>>(), [only, only]);
        assert!(state.sets.keys().all(|set| set.family == only) && state.sets.len() == Role::ALL.len());
        assert!(state.vips.keys().all(|vip| vip.family() == only) && state.vips.len() == 1);
    }
}

/// The API and DNS come first, or the agents that wait for them crash.
#[test]
fn j1_the_api_then_dns_then_the_rest() {
    let mut node = Node::new(Config::new("node-1"));
    let mut dns = service("resolver", json!({"clusterIP": "10.96.0.53", "ports": [{"port": 53}]}));
    dns["metadata"]["labels"] = json!({"k8s-app": "kube-dns"});
    node.apply(&[dns, service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))]);
    let mut names = [
        name("web"),
        name("resolver"),
        ServiceName::new("default", "kubernetes"),
        ServiceName::new("kube-system", "kube-dns"),
        ServiceName::new("shop", "kubernetes"),
    ];
    names.sort_by_key(|name| (node.index.priority(name), name.clone()));
    assert_eq!(
        names.map(|name| name.to_string()),
        ["default/kubernetes", "kube-system/kube-dns", "shop/resolver", "shop/kubernetes", "shop/web"]
    );
    assert_eq!(node.index.priority(&name("gone")), Priority::Rest);
}

/// An EndpointSlice concerns its own Service, and of that what it changes.
#[test]
fn j2_a_change_touches_what_it_changes() {
    let mut node = Node::new(Config::new("node-1"));
    let services: Vec<_> =
        (0..100).map(|index| node_port_service(&format!("web-{index}"), &format!("10.96.1.{index}"), 30000 + index)).collect();
    node.apply(&services);

    node.index.apply_slice(&object(slice("s", "web-7", 8080, json!([{"addresses": ["10.244.2.2"]}])))).unwrap();
    assert_eq!(node.index.take_dirty().into_iter().collect::<Vec<_>>(), [name("web-7")]);
    let touched = node.ledger.set(&name("web-7"), node.index.fragment(&name("web-7")));
    let keys = ["10.96.1.7:80", "172.18.0.11:30007"].map(|key| {
        let socket: std::net::SocketAddr = key.parse().unwrap();
        model::VirtualServerKey::address(socket.ip(), Protocol::Tcp, socket.port())
    });
    assert_eq!(touched, Scope { virtual_servers: keys.into(), ..Scope::default() });
    assert_eq!(node.ledger.desired(&touched), node.ledger.complete().restricted_to(&touched));

    node.index.apply_slice(&object(slice("s", "web-7", 8080, json!([{"addresses": ["10.244.2.2"]}])))).unwrap();
    assert!(!node.index.is_dirty(), "the same again is no change");
    assert!(node.ledger.set(&name("web-7"), node.index.fragment(&name("web-7"))).is_empty());
}

/// Sets are made for what they must hold, and do not shrink under those who come back.
#[test]
fn j3_sets_have_no_ceiling() {
    let set = Set::new(Role::ClusterIp, Family::V4);
    let ports: Vec<_> = (1..=40_000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let mut node = Node::new(Config::new("node-1"));
    assert_eq!(node.ledger.complete().sets[&set].capacity, SetState::MIN_CAPACITY);
    let scope = {
        node.index.apply_service(&object(service("big", json!({"clusterIP": "10.96.0.10", "ports": ports})))).unwrap();
        node.ledger.set(&name("big"), node.index.fragment(&name("big")))
    };
    assert_eq!(node.ledger.desired(&scope).sets[&set].capacity, 131_072);
    assert_eq!(node.ledger.complete().sets[&set].members.len(), 40_000);

    node.delete_service("big");
    let one = Scope { members: [(set, [Member::Ip("10.96.0.10".parse().unwrap())].into())].into(), ..Scope::default() };
    let state = node.ledger.desired(&one);
    assert_eq!((state.sets[&set].capacity, state.sets[&set].members.len()), (131_072, 0));
}
