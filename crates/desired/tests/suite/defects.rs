//! One test per known defect of kube-proxy's IPVS mode that desired state alone decides, by its id.

use desired::{Config, DetectLocal, NodePortAddresses, Priority, ServiceName, TrafficPolicy};
use model::{Family, Member, Protocol, Role, Scheduler, Scope, Set, SetState};
use serde_json::json;

use crate::support::{Node, interfaces, name, object, service, slice, text};

fn node_port_service(name: &str, cluster_ip: &str, node_port: u16) -> serde_json::Value {
    service(name, json!({"type": "NodePort", "clusterIP": cluster_ip, "ports": [{"port": 80, "nodePort": node_port}]}))
}

/// A Service with a ClusterIP, a load balancer address and a node port, and `spec` on top of that.
fn balanced(name: &str, spec: serde_json::Value) -> serde_json::Value {
    let mut object =
        service(name, json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]}));
    let (Some(whole), serde_json::Value::Object(spec)) = (object["spec"].as_object_mut(), spec) else { panic!("no objects") };
    whole.extend(spec);
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.21"}]}});
    object
}

/// One endpoint on this node, and one on another.
fn two_endpoints() -> serde_json::Value {
    let endpoints =
        json!([{"addresses": ["10.244.1.2"], "nodeName": "node-1"}, {"addresses": ["10.244.2.2"], "nodeName": "node-2"}]);
    slice("web-1", "web", 8080, endpoints)
}

/// The same without the one on this node.
fn an_endpoint_elsewhere() -> serde_json::Value {
    slice("web-1", "web", 8080, json!([{"addresses": ["10.244.2.2"], "nodeName": "node-2"}]))
}

fn members(node: &Node, role: Role, family: Family) -> Vec<String> {
    node.ledger.complete().sets[&Set::new(role, family)].members.iter().map(ToString::to_string).collect()
}

/// The virtual server behind the mark of a frontend, by what `ipset` calls the frontend.
fn behind_mark(node: &Node, frontend: &str) -> String {
    let marked = members(node, Role::InCluster, Family::V4);
    let of: Vec<_> = marked.iter().filter_map(|member| member.strip_prefix(&format!("{frontend} skbmark 0x"))).collect();
    assert_eq!(of.len(), 1, "{frontend} has one mark: {marked:?}");
    format!("FWM {}", u32::from_str_radix(of[0], 16).unwrap())
}

const OUTSIDE: [(&str, &str); 3] = [
    ("TCP 198.51.100.21:80", "198.51.100.21,tcp:80"),
    ("TCP 198.51.100.22:80", "198.51.100.22,tcp:80"),
    ("TCP 172.18.0.11:30080", "172.18.0.11,tcp:30080"),
];

fn node_ports(node: &Node) -> Vec<String> {
    let sets = node.ledger.complete().sets;
    let of = |family| sets[&Set::new(Role::NodePort, family)].members.iter().map(ToString::to_string).collect::<Vec<_>>();
    Family::ALL.into_iter().flat_map(of).collect()
}

/// A pod that is given itself needs another source address, whichever frontend it came through and whether it is ready by then.
#[test]
fn b1_every_local_endpoint_can_reach_itself_through_every_frontend() {
    for policy in ["Cluster", "Local"] {
        let mut node = Node::new(Config::new("node-1"));
        node.apply(&[balanced("web", json!({"externalTrafficPolicy": policy, "externalIPs": ["198.51.100.22"]})), two_endpoints()]);
        let state = node.ledger.complete();
        let loop_back = &state.sets[&Set::new(Role::LoopBack, Family::V4)].members;
        let servers = if policy == "Local" { 7 } else { 4 };
        assert_eq!(state.virtual_servers.len(), servers, "{policy}");
        for (key, server) in &state.virtual_servers {
            let local: Vec<_> = server.real_servers.keys().filter(|real| real.address.to_string() == "10.244.1.2").collect();
            assert_eq!(local.len(), 1, "{key}");
            for real in local {
                let member = Member::IpPortIp(real.address, Protocol::Tcp, real.port, real.address);
                assert!(loop_back.contains(&member), "{key}: {member}");
            }
        }
    }
}

#[test]
fn b1_an_endpoint_that_is_not_ready_yet_or_no_more_can_reach_itself() {
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
        node.rules(Family::V4).contains("-p tcp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE"),
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

/// Two server sets behind each frontend: callers from outside find the endpoints of this node, those inside the cluster find all.
#[test]
fn c1_callers_inside_the_cluster_reach_every_endpoint_under_policy_local() {
    for (slice, here) in [(two_endpoints(), vec!["10.244.1.2:8080"]), (an_endpoint_elsewhere(), Vec::new())] {
        let mut node = Node::new(Config::new("node-1"));
        node.apply(&[balanced("web", json!({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.22"]})), slice]);
        let all = node.real_servers("TCP 10.96.0.10:80");
        assert!(all.contains(&"10.244.2.2:8080".to_owned()));
        for (key, frontend) in OUTSIDE {
            assert_eq!(node.real_servers(key), here, "{key}");
            assert_eq!(node.real_servers(&behind_mark(&node, frontend)), all, "{key}");
        }
    }
}

/// The mark has the masquerade bit, so that answers of other nodes' endpoints come back here; and rules set it for each caller that is
/// inside the cluster, in a number that does not follow the Services'.
#[test]
fn c1_callers_inside_the_cluster_are_told_by_their_source_and_masqueraded() {
    let mut config = Config::new("node-1");
    config.masquerade.detect_local = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    let mut node = Node::new(config);
    let before = node.rules(Family::V4);
    let mark_pods = "-t mangle -A KUBE-IPVS-PODS -s 10.244.0.0/16 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark";
    assert!(before.contains(mark_pods));
    assert!(before.contains("-t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark"));

    let web = balanced("web", json!({"externalTrafficPolicy": "Local"}));
    node.apply(&[web, two_endpoints()]);
    assert_eq!(node.rules(Family::V4), before);
    for member in &node.ledger.complete().sets[&Set::new(Role::InCluster, Family::V4)].members {
        let Member::IpPortMark(.., mark) = member else { panic!("{member} has no mark") };
        assert_eq!(mark.get() & 0x4000, 0x4000);
    }
}

/// Those from outside have no virtual server with another node's endpoint; a set has them dropped before an empty one refuses them.
#[test]
fn c2_callers_from_outside_never_leave_the_node_under_policy_local() {
    let mut node = Node::new(Config::new("node-1"));
    let web = balanced("web", json!({"externalTrafficPolicy": "Local", "externalIPs": ["198.51.100.22"]}));
    node.apply(&[web, an_endpoint_elsewhere()]);
    for (key, _) in OUTSIDE {
        assert_eq!(node.real_servers(key), Vec::<String>::new());
    }
    assert_eq!(
        members(&node, Role::NoLocal, Family::V4),
        ["172.18.0.11,tcp:30080", "198.51.100.21,tcp:80", "198.51.100.22,tcp:80"]
    );
    let rules = node.rules(Family::V4);
    let drop =
        "-m conntrack --ctstate NEW -m set --match-set KUBE-NO-LOCAL-ENDPOINT dst,dst -m mark ! --mark 0x4000/0x4000 -j DROP";
    assert!(rules.find(drop).unwrap() < rules.find("KUBE-LOAD-BALANCER dst,dst -j RETURN").unwrap());
    let elsewhere = node.ledger.fragment(&name("web")).unwrap().without_local_endpoints();
    assert_eq!(elsewhere.into_iter().collect::<Vec<_>>(), [(Family::V4, TrafficPolicy::External)]);

    node.apply(&[two_endpoints()]);
    assert_eq!(members(&node, Role::NoLocal, Family::V4), Vec::<String>::new());
    assert!(node.ledger.fragment(&name("web")).unwrap().without_local_endpoints().is_empty());
}

/// No endpoint anywhere is no reason to look for it elsewhere.
#[test]
fn c2_without_any_endpoint_no_policy_is_to_blame() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[balanced("web", json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}))]);
    assert!(node.ledger.fragment(&name("web")).unwrap().without_local_endpoints().is_empty());
}

#[test]
fn c3_internal_policy_local_never_leaves_the_node() {
    let mut node = Node::new(Config::new("node-1"));
    let leaving = json!({"addresses": ["10.244.2.3"], "nodeName": "node-2", "conditions": {"ready": false, "serving": true, "terminating": true}});
    node.apply(&[
        balanced("web", json!({"internalTrafficPolicy": "Local", "externalIPs": ["198.51.100.22"]})),
        slice("web-1", "web", 8080, json!([{"addresses": ["10.244.2.2"], "nodeName": "node-2"}, leaving])),
    ]);
    assert_eq!(node.real_servers("TCP 10.96.0.10:80"), Vec::<String>::new());
    for (key, _) in OUTSIDE {
        assert_eq!(node.real_servers(key), ["10.244.2.2:8080"], "{key}");
    }
    let elsewhere = node.ledger.fragment(&name("web")).unwrap().without_local_endpoints();
    assert_eq!(elsewhere.into_iter().collect::<Vec<_>>(), [(Family::V4, TrafficPolicy::Internal)]);
    assert_eq!(members(&node, Role::InCluster, Family::V4), Vec::<String>::new());
}

/// A load balancer that probes its own address finds the health check, and only where it is of the same Service.
#[test]
fn c4_the_health_check_is_open_on_the_services_own_vips() {
    let mut node = Node::new(Config::new("node-1"));
    let local = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    let mut other = balanced("other", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 81}]}));
    other["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.99"}]}});
    node.apply(&[balanced("web", local.clone()), other, two_endpoints()]);
    assert_eq!(members(&node, Role::HealthCheck, Family::V4), ["10.96.0.10,tcp:32000", "198.51.100.21,tcp:32000"]);
    assert!(node.rules(Family::V4).contains("-m set --match-set KUBE-HEALTH-CHECK-ADDRESS dst,dst -j RETURN"));

    let local_endpoints =
        |node: &Node| node.ledger.fragment(&name("web")).unwrap().health_check_of(Family::V4).unwrap().local_endpoints;
    assert_eq!(local_endpoints(&node), 1);
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    node.apply(&[slice("web-1", "web", 8080, json!([{"addresses": ["10.244.1.2"], "nodeName": "node-1", "conditions": leaving}]))]);
    assert_eq!(local_endpoints(&node), 0, "who is leaving serves those who come, and asks for no more of them");
    assert_eq!(node.real_servers("TCP 198.51.100.21:80"), ["10.244.1.2:8080"]);

    node.apply(&[balanced("web", json!({"healthCheckNodePort": 32000}))]);
    assert_eq!(node.ledger.fragment(&name("web")).unwrap().health_check_of(Family::V4), None, "policy Cluster has none");
    assert_eq!(members(&node, Role::HealthCheck, Family::V4), Vec::<String>::new());
}

#[test]
fn c4_each_family_has_its_own_count() {
    let mut node = Node::new(Config::new("node-1"));
    let dual = json!({
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32000,
        "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
        "ipFamilies": ["IPv4", "IPv6"],
    });
    node.apply(&[balanced("web", dual), two_endpoints()]);
    let fragment = node.ledger.fragment(&name("web")).unwrap();
    let counts = Family::ALL.map(|family| fragment.health_check_of(family).unwrap().local_endpoints);
    assert_eq!(counts, [1, 0]);
    assert_eq!(fragment.health_check_of(Family::V4).unwrap().local_endpoints, 1);
}

/// The node is one caller, whichever of its addresses the kernel would have it speak from; pods are judged by theirs. All by one look-up.
#[test]
fn d1_the_node_is_judged_by_all_of_its_addresses() {
    for (ranges, allowed) in [
        (json!(["203.0.113.0/24"]), false),
        (json!(["172.18.0.0/16"]), true),
        (json!(["203.0.113.0/24", "172.17.0.0/16"]), true),
        (json!(["10.244.0.0/16"]), false),
    ] {
        let mut node = Node::new(Config::new("node-1"));
        node.apply(&[balanced("web", json!({"loadBalancerSourceRanges": ranges})), two_endpoints()]);
        assert_eq!(members(&node, Role::Restricted, Family::V4), ["198.51.100.21,tcp:80"], "just the load balancer's address");
        assert_eq!(!members(&node, Role::SourceNode, Family::V4).is_empty(), allowed, "{ranges}");
    }
}

#[test]
fn d1_rules_do_not_grow_with_restricted_services() {
    let mut node = Node::new(Config::new("node-1"));
    let before = Family::ALL.map(|family| node.rules(family));
    assert!(before[0].contains(
        "-t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP"
    ));
    let web = |number: u8| {
        let mut object = balanced(&format!("web-{number}"), json!({"loadBalancerSourceRanges": ["203.0.113.0/24"]}));
        object["spec"]["clusterIP"] = format!("10.96.1.{number}").into();
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": format!("198.51.100.{number}")}]);
        object
    };
    node.apply(&(1..=100).map(web).collect::<Vec<_>>());
    assert_eq!(members(&node, Role::SourceRange, Family::V4).len(), 100);
    assert_eq!(Family::ALL.map(|family| node.rules(family)), before);
}

/// The node's addresses come and go, and so does its leave to call.
#[test]
fn d1_the_nodes_leave_to_call_follows_its_addresses() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[balanced("web", json!({"loadBalancerSourceRanges": ["192.168.7.0/24"]})), two_endpoints()]);
    let allowed = |node: &Node| members(node, Role::SourceNode, Family::V4).len();
    assert_eq!(allowed(&node), 0);
    node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth1", "192.168.7.1")]));
    node.sync();
    assert_eq!(allowed(&node), 1);
    node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("kube-ipvs0", "192.168.7.1")]));
    node.sync();
    assert_eq!(allowed(&node), 0, "a VIP is no address of the node");
}

/// What closes a frontend is named together with its virtual server, so that a plan can have the one before the other.
#[test]
fn d2_a_restriction_comes_in_one_change_with_what_it_restricts() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[two_endpoints()]);
    let apply = |node: &mut Node, value: serde_json::Value| {
        node.index.apply_service(&object(value)).unwrap();
        let web = name("web");
        node.ledger.set(&web, node.index.fragment(&web))
    };
    let changed = |scope: &Scope, role| {
        let members = scope.members.get(&Set::new(role, Family::V4)).into_iter().flatten();
        members.map(ToString::to_string).collect::<Vec<_>>()
    };
    let made = apply(&mut node, balanced("web", json!({"loadBalancerSourceRanges": ["203.0.113.0/24"]})));
    assert!(made.virtual_servers.iter().any(|key| key.to_string() == "TCP 198.51.100.21:80"));
    assert_eq!(changed(&made, Role::Restricted), ["198.51.100.21,tcp:80"]);
    assert_eq!(changed(&made, Role::SourceRange), ["198.51.100.21,tcp:80,203.0.113.0/24"]);

    // An edit touches the ranges it changes, and nothing else: the frontend is restricted all the time.
    let ranges = json!({"loadBalancerSourceRanges": ["203.0.113.0/24", "192.0.2.0/24"]});
    let edited = apply(&mut node, balanced("web", ranges));
    let only = [(Set::new(Role::SourceRange, Family::V4), edited.members[&Set::new(Role::SourceRange, Family::V4)].clone())];
    assert_eq!(edited, Scope { members: only.into(), ..Scope::default() });
    assert_eq!(changed(&edited, Role::SourceRange), ["198.51.100.21,tcp:80,192.0.2.0/24"]);

    let opened = apply(&mut node, balanced("web", json!({})));
    assert_eq!(opened.virtual_servers.len(), 0);
    assert_eq!(changed(&opened, Role::Restricted), ["198.51.100.21,tcp:80"]);
    assert!(members(&node, Role::Restricted, Family::V4).is_empty());
}

/// The same address by two names: what one of them leaves open does not open what the other guards.
#[test]
fn d2_an_external_ip_does_not_open_a_restricted_address() {
    let mut node = Node::new(Config::new("node-1"));
    let spec = json!({"loadBalancerSourceRanges": ["203.0.113.0/24"], "externalIPs": ["198.51.100.21"]});
    node.apply(&[balanced("web", spec), two_endpoints()]);
    assert_eq!(members(&node, Role::Restricted, Family::V4), ["198.51.100.21,tcp:80"]);
    assert_eq!(members(&node, Role::SourceRange, Family::V4), ["198.51.100.21,tcp:80,203.0.113.0/24"]);
}

#[test]
fn d3_a_family_without_ranges_is_closed_when_the_other_has_some() {
    let dual = |ranges| {
        let mut object = balanced(
            "web",
            json!({
                "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
                "ipFamilies": ["IPv4", "IPv6"],
                "loadBalancerSourceRanges": ranges,
            }),
        );
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.21"}, {"ip": "2001:db8:100::21"}]);
        object
    };
    let restricted = |per_family, ranges| {
        let mut node = Node::new(Config { ranges_per_family: per_family, ..Config::new("node-1") });
        node.apply(&[dual(ranges)]);
        Family::ALL.map(|family| (members(&node, Role::Restricted, family).len(), members(&node, Role::SourceRange, family).len()))
    };
    assert_eq!(restricted(false, json!(["203.0.113.0/24"])), [(1, 1), (1, 0)]);
    assert_eq!(restricted(true, json!(["203.0.113.0/24"])), [(1, 1), (0, 0)], "as kube-proxy reads it");
    assert_eq!(restricted(false, json!(["203.0.113.0/24", "::/0"])), [(1, 1), (0, 0)], "said in so many words");
    for per_family in [false, true] {
        assert_eq!(restricted(per_family, json!(["10.0.0.0/33"])), [(1, 0), (1, 0)], "what cannot be read lets nobody in");
        assert_eq!(restricted(per_family, json!([])), [(0, 0), (0, 0)]);
        assert_eq!(restricted(per_family, json!([" "])), [(0, 0), (0, 0)]);
    }
}

/// A load balancer that ends connections itself is not bypassed, by its own word or by the owner's of the Service.
#[test]
fn d4_a_load_balancer_that_does_not_hand_packets_on_is_left_alone() {
    let frontends = |object: serde_json::Value| {
        let mut node = Node::new(Config::new("node-1"));
        node.apply(&[object]);
        let state = node.ledger.complete();
        (state.vips.len(), members(&node, Role::LoadBalancer, Family::V4))
    };
    let taken = (2, vec!["198.51.100.21,tcp:80".to_owned()]);
    let left = (1, Vec::new());
    for (mode, wanted) in [(json!(null), &taken), (json!("VIP"), &taken), (json!("Proxy"), &left)] {
        let mut object = balanced("web", json!({}));
        object["status"]["loadBalancer"]["ingress"][0]["ipMode"] = mode.clone();
        assert_eq!(&frontends(object), wanted, "{mode}");
    }
    for annotation in ["kube-ipvs.io/skip-load-balancer-ips", "kube-router.io/service.skiplbips"] {
        let mut object = balanced("web", json!({}));
        object["metadata"]["annotations"] = json!({annotation: ""});
        assert_eq!(frontends(object), left, "{annotation}");
    }
    let mut named = balanced("web", json!({}));
    named["status"]["loadBalancer"]["ingress"] = json!([{"hostname": "lb.example.org"}]);
    assert_eq!(frontends(named), left);
}

/// An address that the node has is not bound, and not guarded as a VIP: what else listens on it goes on being reached.
#[test]
fn d6_an_address_of_the_node_stays_the_nodes() {
    for spec in [json!({}), json!({"externalIPs": ["172.18.0.11"], "externalTrafficPolicy": "Local"})] {
        let mut node = Node::new(Config::new("node-1"));
        let mut object = balanced("web", spec.clone());
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": "172.18.0.11"}]);
        node.apply(&[object, two_endpoints()]);
        let own: std::net::IpAddr = "172.18.0.11".parse().unwrap();
        let bound = |node: &Node| node.ledger.complete().vips.keys().any(|vip| vip.address == own);
        let guarded = |node: &Node| members(node, Role::Vips, Family::V4).contains(&"172.18.0.11".to_owned());
        assert!(!bound(&node) && !guarded(&node), "{spec}");
        assert!(node.real_servers("TCP 172.18.0.11:80").contains(&"10.244.1.2:8080".to_owned()));
        assert_eq!(node_ports(&node), ["172.18.0.11,tcp:30080"]);

        // It goes to another machine, and comes back.
        let before = node.ledger.complete();
        node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.12")]));
        node.sync();
        assert!(bound(&node) && guarded(&node), "{spec}");
        node.index.set_interfaces(interfaces(&[("eth0", "172.18.0.11"), ("eth0", "fd00:18::11"), ("docker0", "172.17.0.1")]));
        node.sync();
        assert_eq!(node.ledger.complete(), before);
    }
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
        for live in ["CLUSTER-IP", "LOAD-BALANCER", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "HEALTH-CHECK-ADDRESS"] {
            let rule = format!("-m set --match-set {prefix}{live} dst,dst -j RETURN");
            assert!(input.contains(&rule.as_str()), "{rule}");
        }
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
