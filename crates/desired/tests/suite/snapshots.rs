//! Desired state and packet rules as text, to be read by a person.

use desired::{Config, DetectLocal, InterfaceName, MarkBit, NodePortAddresses};
use insta::assert_snapshot;
use model::{Family, Via};
use serde_json::{Value, json};

use crate::support::{Node, service, slice};

fn web() -> Vec<Value> {
    vec![
        service("web", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]})),
        slice(
            "web-1",
            "web",
            8080,
            json!([
                {"addresses": ["10.244.1.2"], "nodeName": "node-1"},
                {"addresses": ["10.244.1.3"], "nodeName": "node-1", "conditions": {"ready": false}},
                {"addresses": ["10.244.2.2"], "nodeName": "node-2"},
            ]),
        ),
    ]
}

#[test]
fn a_cluster_ip() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&web());
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2
    add KUBE-LOOP-BACK 10.244.1.3,tcp:8080,10.244.1.3
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-IPVS-IPS 10.96.0.10
    10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.11
    ");
}

#[test]
fn vips_as_addresses_have_no_source() {
    let mut node = Node::new(Config { via: Via::Address, ..Config::new("node-1") });
    node.apply(&web());
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2
    add KUBE-LOOP-BACK 10.244.1.3,tcp:8080,10.244.1.3
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-IPVS-IPS 10.96.0.10
    10.96.0.10/32 as an address on kube-ipvs0
    ");
}

#[test]
fn dual_stack_node_ports_of_every_protocol() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        service(
            "telecom",
            json!({
                "type": "NodePort",
                "clusterIP": "10.96.0.20",
                "clusterIPs": ["10.96.0.20", "fd00:10:96::20"],
                "ipFamilies": ["IPv4", "IPv6"],
                "sessionAffinity": "ClientIP",
                "ports": [
                    {"name": "api", "protocol": "TCP", "port": 443, "targetPort": "api", "nodePort": 30443},
                    {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
                    {"name": "m3ua", "protocol": "SCTP", "port": 2905, "nodePort": 30053},
                ],
            }),
        ),
        telecom_slice("telecom-4", "IPv4", &["10.244.1.4", "10.244.2.4"]),
        telecom_slice("telecom-6", "IPv6", &["fd00:10:244:1::4", "fd00:10:244:2::4"]),
    ]);
    assert_snapshot!(node.text(), @"
    UDP 10.96.0.20:53 rr persistent 10800
      -> 10.244.1.4:5353 Masq 1
      -> 10.244.2.4:5353 Masq 1
    TCP 10.96.0.20:443 rr persistent 10800
      -> 10.244.1.4:8443 Masq 1
      -> 10.244.2.4:8443 Masq 1
    SCTP 10.96.0.20:2905 rr persistent 10800
      -> 10.244.1.4:2905 Masq 1
      -> 10.244.2.4:2905 Masq 1
    UDP 172.18.0.11:30053 rr persistent 10800
      -> 10.244.1.4:5353 Masq 1
      -> 10.244.2.4:5353 Masq 1
    SCTP 172.18.0.11:30053 rr persistent 10800
      -> 10.244.1.4:2905 Masq 1
      -> 10.244.2.4:2905 Masq 1
    TCP 172.18.0.11:30443 rr persistent 10800
      -> 10.244.1.4:8443 Masq 1
      -> 10.244.2.4:8443 Masq 1
    UDP [fd00:10:96::20]:53 rr persistent 10800
      -> [fd00:10:244:1::4]:5353 Masq 1
      -> [fd00:10:244:2::4]:5353 Masq 1
    TCP [fd00:10:96::20]:443 rr persistent 10800
      -> [fd00:10:244:1::4]:8443 Masq 1
      -> [fd00:10:244:2::4]:8443 Masq 1
    SCTP [fd00:10:96::20]:2905 rr persistent 10800
      -> [fd00:10:244:1::4]:2905 Masq 1
      -> [fd00:10:244:2::4]:2905 Masq 1
    UDP [fd00:18::11]:30053 rr persistent 10800
      -> [fd00:10:244:1::4]:5353 Masq 1
      -> [fd00:10:244:2::4]:5353 Masq 1
    SCTP [fd00:18::11]:30053 rr persistent 10800
      -> [fd00:10:244:1::4]:2905 Masq 1
      -> [fd00:10:244:2::4]:2905 Masq 1
    TCP [fd00:18::11]:30443 rr persistent 10800
      -> [fd00:10:244:1::4]:8443 Masq 1
      -> [fd00:10:244:2::4]:8443 Masq 1
    add KUBE-LOOP-BACK 10.244.1.4,tcp:8443,10.244.1.4
    add KUBE-LOOP-BACK 10.244.1.4,udp:5353,10.244.1.4
    add KUBE-LOOP-BACK 10.244.1.4,sctp:2905,10.244.1.4
    add KUBE-6-LOOP-BACK fd00:10:244:1::4,tcp:8443,fd00:10:244:1::4
    add KUBE-6-LOOP-BACK fd00:10:244:1::4,udp:5353,fd00:10:244:1::4
    add KUBE-6-LOOP-BACK fd00:10:244:1::4,sctp:2905,fd00:10:244:1::4
    add KUBE-CLUSTER-IP 10.96.0.20,tcp:443
    add KUBE-CLUSTER-IP 10.96.0.20,udp:53
    add KUBE-CLUSTER-IP 10.96.0.20,sctp:2905
    add KUBE-6-CLUSTER-IP fd00:10:96::20,tcp:443
    add KUBE-6-CLUSTER-IP fd00:10:96::20,udp:53
    add KUBE-6-CLUSTER-IP fd00:10:96::20,sctp:2905
    add KUBE-NODE-PORT-ADDRESS 172.18.0.11,tcp:30443
    add KUBE-NODE-PORT-ADDRESS 172.18.0.11,udp:30053
    add KUBE-NODE-PORT-ADDRESS 172.18.0.11,sctp:30053
    add KUBE-6-NODE-PORT-ADDRESS fd00:18::11,tcp:30443
    add KUBE-6-NODE-PORT-ADDRESS fd00:18::11,udp:30053
    add KUBE-6-NODE-PORT-ADDRESS fd00:18::11,sctp:30053
    add KUBE-IPVS-IPS 10.96.0.20
    add KUBE-6-IPVS-IPS fd00:10:96::20
    10.96.0.20/32 as a route on kube-ipvs0 src 172.18.0.11
    fd00:10:96::20/128 as a route on kube-ipvs0 src fd00:18::11
    ");
}

fn telecom_slice(name: &str, address_type: &str, addresses: &[&str]) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "telecom"}},
        "addressType": address_type,
        "ports": [
            {"name": "api", "protocol": "TCP", "port": 8443},
            {"name": "dns", "protocol": "UDP", "port": 5353},
            {"name": "m3ua", "protocol": "SCTP", "port": 2905},
        ],
        "endpoints": [
            {"addresses": [addresses[0]], "nodeName": "node-1"},
            {"addresses": [addresses[1]], "nodeName": "node-2"},
        ],
    })
}

/// A Service that can be called from outside by every kind of frontend, and `spec` on top of that.
fn outside(spec: Value) -> Vec<Value> {
    let mut object = service(
        "web",
        json!({
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["198.51.100.22", "2001:db8:100::22"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
    );
    let (Some(whole), Value::Object(spec)) = (object["spec"].as_object_mut(), spec) else { panic!("no objects") };
    whole.extend(spec);
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.21"}, {"ip": "2001:db8:100::21"}]}});
    let endpoints = |first: &str, second: &str| json!([{"addresses": [first], "nodeName": "node-1"}, {"addresses": [second], "nodeName": "node-2"}]);
    // In IPv6 no endpoint is on this node.
    let mut v6 = slice("web-6", "web", 8080, json!([{"addresses": ["fd00:10:244:2::2"], "nodeName": "node-2"}]));
    v6["addressType"] = "IPv6".into();
    vec![object, slice("web-4", "web", 8080, endpoints("10.244.1.2", "10.244.2.2")), v6]
}

#[test]
fn every_frontend_with_policy_cluster() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&outside(json!({})));
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP 172.18.0.11:30080 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP 198.51.100.21:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP 198.51.100.22:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP [2001:db8:100::21]:80 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    TCP [2001:db8:100::22]:80 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    TCP [fd00:10:96::10]:80 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    TCP [fd00:18::11]:30080 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-6-CLUSTER-IP fd00:10:96::10,tcp:80
    add KUBE-EXTERNAL-IP 198.51.100.22,tcp:80
    add KUBE-6-EXTERNAL-IP 2001:db8:100::22,tcp:80
    add KUBE-LOAD-BALANCER 198.51.100.21,tcp:80
    add KUBE-6-LOAD-BALANCER 2001:db8:100::21,tcp:80
    add KUBE-NODE-PORT-ADDRESS 172.18.0.11,tcp:30080
    add KUBE-6-NODE-PORT-ADDRESS fd00:18::11,tcp:30080
    add KUBE-IPVS-IPS 10.96.0.10
    add KUBE-IPVS-IPS 198.51.100.21
    add KUBE-IPVS-IPS 198.51.100.22
    add KUBE-6-IPVS-IPS 2001:db8:100::21
    add KUBE-6-IPVS-IPS 2001:db8:100::22
    add KUBE-6-IPVS-IPS fd00:10:96::10
    10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.11
    198.51.100.21/32 as a route on kube-ipvs0 src 172.18.0.11
    198.51.100.22/32 as a route on kube-ipvs0 src 172.18.0.11
    2001:db8:100::21/128 as a route on kube-ipvs0 src fd00:18::11
    2001:db8:100::22/128 as a route on kube-ipvs0 src fd00:18::11
    fd00:10:96::10/128 as a route on kube-ipvs0 src fd00:18::11
    ");
}

#[test]
fn every_frontend_with_policy_local() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&outside(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP"})));
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP 172.18.0.11:30080 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
    TCP 198.51.100.21:80 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
    TCP 198.51.100.22:80 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
    TCP [2001:db8:100::21]:80 rr persistent 10800
    TCP [2001:db8:100::22]:80 rr persistent 10800
    TCP [fd00:10:96::10]:80 rr persistent 10800
      -> [fd00:10:244:2::2]:8080 Masq 1
    TCP [fd00:18::11]:30080 rr persistent 10800
    FWM 20313 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    FWM 21170 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    FWM 28578 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    FWM 16633 IPv6 rr persistent 10800
      -> [fd00:10:244:2::2]:8080 Masq 1
    FWM 24451 IPv6 rr persistent 10800
      -> [fd00:10:244:2::2]:8080 Masq 1
    FWM 26835 IPv6 rr persistent 10800
      -> [fd00:10:244:2::2]:8080 Masq 1
    add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-6-CLUSTER-IP fd00:10:96::10,tcp:80
    add KUBE-EXTERNAL-IP-LOCAL 198.51.100.22,tcp:80
    add KUBE-6-EXTERNAL-IP-LOCAL 2001:db8:100::22,tcp:80
    add KUBE-LOAD-BALANCER 198.51.100.21,tcp:80
    add KUBE-6-LOAD-BALANCER 2001:db8:100::21,tcp:80
    add KUBE-LOAD-BALANCER-LOCAL 198.51.100.21,tcp:80
    add KUBE-6-LOAD-BALANCER-LOCAL 2001:db8:100::21,tcp:80
    add KUBE-NODE-PORT-ADDRESS 172.18.0.11,tcp:30080
    add KUBE-6-NODE-PORT-ADDRESS fd00:18::11,tcp:30080
    add KUBE-NODE-PORT-LOCAL-ADDRESS 172.18.0.11,tcp:30080
    add KUBE-6-NODE-PORT-LOCAL-ADDRESS fd00:18::11,tcp:30080
    add KUBE-IN-CLUSTER-MARK 172.18.0.11,tcp:30080 skbmark 0x6fa2
    add KUBE-IN-CLUSTER-MARK 198.51.100.21,tcp:80 skbmark 0x4f59
    add KUBE-IN-CLUSTER-MARK 198.51.100.22,tcp:80 skbmark 0x52b2
    add KUBE-6-IN-CLUSTER-MARK 2001:db8:100::21,tcp:80 skbmark 0x68d3
    add KUBE-6-IN-CLUSTER-MARK 2001:db8:100::22,tcp:80 skbmark 0x5f83
    add KUBE-6-IN-CLUSTER-MARK fd00:18::11,tcp:30080 skbmark 0x40f9
    add KUBE-6-NO-LOCAL-ENDPOINT 2001:db8:100::21,tcp:80
    add KUBE-6-NO-LOCAL-ENDPOINT 2001:db8:100::22,tcp:80
    add KUBE-6-NO-LOCAL-ENDPOINT fd00:18::11,tcp:30080
    add KUBE-HEALTH-CHECK-ADDRESS 10.96.0.10,tcp:32000
    add KUBE-HEALTH-CHECK-ADDRESS 198.51.100.21,tcp:32000
    add KUBE-HEALTH-CHECK-ADDRESS 198.51.100.22,tcp:32000
    add KUBE-6-HEALTH-CHECK-ADDRESS 2001:db8:100::21,tcp:32000
    add KUBE-6-HEALTH-CHECK-ADDRESS 2001:db8:100::22,tcp:32000
    add KUBE-6-HEALTH-CHECK-ADDRESS fd00:10:96::10,tcp:32000
    add KUBE-IPVS-IPS 10.96.0.10
    add KUBE-IPVS-IPS 198.51.100.21
    add KUBE-IPVS-IPS 198.51.100.22
    add KUBE-6-IPVS-IPS 2001:db8:100::21
    add KUBE-6-IPVS-IPS 2001:db8:100::22
    add KUBE-6-IPVS-IPS fd00:10:96::10
    10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.11
    198.51.100.21/32 as a route on kube-ipvs0 src 172.18.0.11
    198.51.100.22/32 as a route on kube-ipvs0 src 172.18.0.11
    2001:db8:100::21/128 as a route on kube-ipvs0 src fd00:18::11
    2001:db8:100::22/128 as a route on kube-ipvs0 src fd00:18::11
    fd00:10:96::10/128 as a route on kube-ipvs0 src fd00:18::11
    ");
}

#[test]
fn source_ranges_of_one_family() {
    let mut node = Node::new(Config::new("node-1"));
    let ranges = json!([" 203.0.113.77/24", "172.18.0.11/32", "203.0.113.0/24"]);
    node.apply(&outside(json!({"loadBalancerSourceRanges": ranges, "externalIPs": [], "ports": [{"port": 80}]})));
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP 198.51.100.21:80 rr
      -> 10.244.1.2:8080 Masq 1
      -> 10.244.2.2:8080 Masq 1
    TCP [2001:db8:100::21]:80 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    TCP [fd00:10:96::10]:80 rr
      -> [fd00:10:244:2::2]:8080 Masq 1
    add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-6-CLUSTER-IP fd00:10:96::10,tcp:80
    add KUBE-LOAD-BALANCER 198.51.100.21,tcp:80
    add KUBE-6-LOAD-BALANCER 2001:db8:100::21,tcp:80
    add KUBE-LOAD-BALANCER-FW 198.51.100.21,tcp:80
    add KUBE-6-LOAD-BALANCER-FW 2001:db8:100::21,tcp:80
    add KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.21,tcp:80,172.18.0.11/32
    add KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.21,tcp:80,203.0.113.0/24
    add KUBE-LOAD-BALANCER-SOURCE-NODE 198.51.100.21,tcp:80
    add KUBE-IPVS-IPS 10.96.0.10
    add KUBE-IPVS-IPS 198.51.100.21
    add KUBE-6-IPVS-IPS 2001:db8:100::21
    add KUBE-6-IPVS-IPS fd00:10:96::10
    10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.11
    198.51.100.21/32 as a route on kube-ipvs0 src 172.18.0.11
    2001:db8:100::21/128 as a route on kube-ipvs0 src fd00:18::11
    fd00:10:96::10/128 as a route on kube-ipvs0 src fd00:18::11
    ");
}

#[test]
fn what_is_wrong_with_what_is_said_of_the_outside() {
    let mut node = Node::new(Config::new("node-1"));
    let mut objects = outside(json!({
        "externalTrafficPolicy": "Local",
        "externalIPs": ["", "web.example.org", "198.51.100.22", "198.051.100.022", "127.0.0.1", "fe80::1", "::ffff:198.51.100.23"],
        "healthCheckNodePort": 70000,
        "loadBalancerSourceRanges": ["203.0.113.0", "203.0.113.0/33", "office", "2001:db8::/129", ""],
    }));
    objects[0]["status"]["loadBalancer"]["ingress"] = json!([{"ip": "0.0.0.0"}, {"ip": "198.51.100.999"}, {"hostname": "lb"}, {}]);
    node.apply(&objects);
    assert_snapshot!(node.problems().join("\n"), @r#"
    Service shop/web: spec.externalIPs[1] is "web.example.org", which is no IP address, and is not served; name one that clients can call
    Service shop/web: spec.externalIPs[4] is 127.0.0.1, a loopback address, and is not served; name one that clients can call
    Service shop/web: spec.externalIPs[5] is fe80::1, a link-local or broadcast address, and is not served; name one that clients can call
    Service shop/web: status.loadBalancer.ingress[0].ip is 0.0.0.0, an unspecified address, and is not served; look to the controller that set it
    Service shop/web: status.loadBalancer.ingress[1].ip is "198.51.100.999", which is no IP address, and is not served; look to the controller that set it
    Service shop/web: spec.loadBalancerSourceRanges[0] is "203.0.113.0", which is no network such as 192.0.2.0/24, and lets nobody in
    Service shop/web: spec.loadBalancerSourceRanges[1] is "203.0.113.0/33", which is no network such as 192.0.2.0/24, and lets nobody in
    Service shop/web: spec.loadBalancerSourceRanges[2] is "office", which is no network such as 192.0.2.0/24, and lets nobody in
    Service shop/web: spec.loadBalancerSourceRanges[3] is "2001:db8::/129", which is no network such as 192.0.2.0/24, and lets nobody in
    Service shop/web: spec.healthCheckNodePort is 70000; a port is a number from 1 to 65535, and no health check is served
    "#);
    let external: Vec<_> = node.ledger.complete().vips.keys().map(|vip| vip.address.to_string()).collect();
    assert_eq!(external, ["10.96.0.10", "198.51.100.22", "198.51.100.23", "fd00:10:96::10"]);
}

/// What the controllers of a real cluster made, with a Service of every kind.
#[test]
fn the_recorded_namespace() {
    let list = |text: &str, kind: &str| -> Vec<Value> {
        let mut list: Value = serde_json::from_str(text).unwrap();
        let items = list["items"].as_array_mut().unwrap();
        items.iter_mut().for_each(|item| item["kind"] = kind.into());
        items.clone()
    };
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&list(include_str!("../../../../tests/recorded/nodes.json"), "Node"));
    node.apply(&list(include_str!("../../../../tests/recorded/services.json"), "Service"));
    node.apply(&list(include_str!("../../../../tests/recorded/endpointslices.json"), "EndpointSlice"));
    assert_eq!(node.problems(), Vec::<String>::new());
    assert_snapshot!("the_recorded_namespace", node.text());
}

#[test]
fn what_is_wrong_with_an_object_is_said_and_the_rest_is_served() {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[
        service(
            "web",
            json!({
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "10.96.0.11"],
                "ipFamilies": ["IPv4", "IPv6"],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -1}},
                "internalTrafficPolicy": "Nearby",
                "ports": [
                    {"name": "", "port": 80},
                    {"name": "zero", "port": 0},
                    {"name": "again", "port": 80},
                    {"name": "icmp", "protocol": "ICMP", "port": 8},
                    {"name": "high", "port": 81, "nodePort": 70000},
                ],
            }),
        ),
        slice(
            "web-1",
            "web",
            8080,
            json!([
                {"addresses": ["10.244.1.2"]},
                {"addresses": ["fd00:10:244:1::2"]},
                {"addresses": ["127.0.0.1"]},
                {"addresses": ["web.example\norg"]},
                {"addresses": []},
            ]),
        ),
        service("nowhere", json!({"clusterIP": "224.0.0.1", "ports": [{"port": 80}]})),
    ]);
    assert_snapshot!(node.problems().join("\n"), @r#"
    Service shop/nowhere: spec.clusterIP is 224.0.0.1, a multicast address, and is not served; recreate the Service
    Service shop/web: spec.clusterIPs[1] is 10.96.0.11, which is not of the family "IPv6" in spec.ipFamilies, and is not served
    Service shop/web: spec.ports[1].port is 0; a port is a number from 1 to 65535, and this one is not served
    Service shop/web: spec.ports[2].port is 80/TCP again; the first of them is served, remove the other
    Service shop/web: spec.ports[3].protocol is "ICMP"; the protocols are TCP, UDP and SCTP, and this port is not served
    Service shop/web: spec.ports[4].nodePort is 70000; a node port is a number from 1 to 65535, and the port is served without one
    Service shop/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds is -1; it can be 1 to 86400, and the default of 10800 is served
    Service shop/web: spec.internalTrafficPolicy is "Nearby"; it can be Cluster or Local, and Cluster is served
    EndpointSlice shop/web-1: endpoints[1].addresses[0] is fd00:10:244:1::2 in a slice of addressType IPv4, and is not served
    EndpointSlice shop/web-1: endpoints[2].addresses[0] is 127.0.0.1, a loopback address, and is not served; name the pod's own address
    EndpointSlice shop/web-1: endpoints[3].addresses[0] is "web.example\norg", which is no IP address, and is not served
    "#);
    assert_snapshot!(node.text(), @"
    TCP 10.96.0.10:80 rr persistent 10800
      -> 10.244.1.2:8080 Masq 1
    TCP 10.96.0.10:81 rr persistent 10800
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:80
    add KUBE-CLUSTER-IP 10.96.0.10,tcp:81
    add KUBE-IPVS-IPS 10.96.0.10
    10.96.0.10/32 as a route on kube-ipvs0 src 172.18.0.11
    ");
}

fn with(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::new("node-1");
    change(&mut config);
    Node::new(config)
}

#[test]
fn rules_without_a_detector() {
    let node = with(|_| {});
    assert_snapshot!(node.rules(Family::V4), @"
    -t filter -A FORWARD -j KUBE-IPVS-FORWARD
    -t filter -A INPUT -j KUBE-IPVS-INPUT
    -t mangle -A OUTPUT -j KUBE-IPVS-OUTPUT
    -t nat -A OUTPUT -j KUBE-IPVS-SERVICES
    -t nat -A POSTROUTING -j KUBE-IPVS-POSTROUTING
    -t mangle -A PREROUTING -j KUBE-IPVS-PODS
    -t nat -A PREROUTING -j KUBE-IPVS-SERVICES
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    -t nat -A KUBE-IPVS-POSTROUTING -j MARK --set-xmark 0x0/0x4000
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-SERVICES -s 127.0.0.0/8 -j RETURN
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP src,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-LOCAL-ADDRESS dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-ADDRESS dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-ADDRESS dst,dst -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-IPVS-SOURCE-RANGES
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-NO-LOCAL-ENDPOINT dst,dst -m mark ! --mark 0x4000/0x4000 -j DROP
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-HEALTH-CHECK-ADDRESS dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 8 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 3 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 11 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 12 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT --reject-with icmp-port-unreachable
    -t filter -A KUBE-IPVS-SOURCE-RANGES -m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN
    -t filter -A KUBE-IPVS-SOURCE-RANGES -j DROP
    ");
    assert_snapshot!(node.rules(Family::V6), @"
    -t filter -A FORWARD -j KUBE-IPVS-FORWARD
    -t filter -A INPUT -j KUBE-IPVS-INPUT
    -t mangle -A OUTPUT -j KUBE-IPVS-OUTPUT
    -t nat -A OUTPUT -j KUBE-IPVS-SERVICES
    -t nat -A POSTROUTING -j KUBE-IPVS-POSTROUTING
    -t mangle -A PREROUTING -j KUBE-IPVS-PODS
    -t nat -A PREROUTING -j KUBE-IPVS-SERVICES
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -m set --match-set KUBE-6-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -m set --match-set KUBE-6-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -m set --match-set KUBE-6-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    -t nat -A KUBE-IPVS-POSTROUTING -j MARK --set-xmark 0x0/0x4000
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-SERVICES -s ::1/128 -j RETURN
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP src,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-LOAD-BALANCER-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-LOAD-BALANCER dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-LOAD-BALANCER dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-EXTERNAL-IP-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-EXTERNAL-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-EXTERNAL-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-NODE-PORT-LOCAL-ADDRESS dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-NODE-PORT-ADDRESS dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-NODE-PORT-ADDRESS dst,dst -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -j KUBE-IPVS-SOURCE-RANGES
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-6-NO-LOCAL-ENDPOINT dst,dst -m mark ! --mark 0x4000/0x4000 -j DROP
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-LOAD-BALANCER dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-EXTERNAL-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-EXTERNAL-IP-LOCAL dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-6-HEALTH-CHECK-ADDRESS dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 1 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 2 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 3 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 4 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-6-IPVS-IPS dst -j REJECT --reject-with icmp6-port-unreachable
    -t filter -A KUBE-IPVS-SOURCE-RANGES -m set --match-set KUBE-6-LOAD-BALANCER-SOURCE-CID dst,dst,src -j RETURN
    -t filter -A KUBE-IPVS-SOURCE-RANGES -j DROP
    ");
}

/// The rules that mark callers of ClusterIPs: all that the configuration changes in the chain.
fn marking(node: &Node, family: Family) -> String {
    let rules = node.rules(family);
    rules.lines().filter(|rule| rule.contains("CLUSTER-IP") && rule.contains("SERVICES")).collect::<Vec<_>>().join("\n")
}

/// The rules that lead callers inside the cluster past policy `Local`, and those about the node itself.
fn inside(node: &Node, family: Family) -> String {
    let rules = node.rules(family);
    rules.lines().filter(|rule| rule.starts_with("-t mangle -A KUBE-IPVS")).collect::<Vec<_>>().join("\n")
}

#[test]
fn rules_for_callers_inside_the_cluster() {
    let name = |name| InterfaceName::new(name).unwrap();
    let cidrs = |list: &[&str]| list.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let by = |detector: DetectLocal| {
        let node = with(|config| config.masquerade.detect_local = detector);
        Family::ALL.map(|family| inside(&node, family)).join("\n")
    };
    assert_snapshot!(by(DetectLocal::None), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
    assert_snapshot!(by(DetectLocal::ClusterCidr(cidrs(&["10.244.3.1/16", "fd00:10:244::/48", "10.245.0.0/16"]))), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s 10.244.0.0/16 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s 10.245.0.0/16 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s fd00:10:244::/48 -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
    assert_snapshot!(by(DetectLocal::ClusterCidr(cidrs(&["0.0.0.0/0"]))), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
    assert_snapshot!(by(DetectLocal::NodeCidr), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s 10.244.1.0/24 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s fd00:10:244:1::/64 -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
    assert_snapshot!(by(DetectLocal::BridgeInterface(name("cni0"))), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -i cni0 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -i cni0 -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
    assert_snapshot!(by(DetectLocal::InterfaceNamePrefix(name("cali"))), @"
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -i cali+ -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-6-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-6-LOAD-BALANCER-SOURCE-NOD dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -i cali+ -j SET --map-set KUBE-6-IN-CLUSTER-MARK dst,dst --map-mark
    ");
}

#[test]
fn rules_by_cluster_cidr() {
    let one = with(|config| config.masquerade.detect_local = DetectLocal::ClusterCidr(vec!["10.244.3.1/16".parse().unwrap()]));
    assert_snapshot!(marking(&one, Family::V4), @"
    -t nat -A KUBE-IPVS-SERVICES ! -s 10.244.0.0/16 -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    ");
    assert_snapshot!(marking(&one, Family::V6), @"
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP src,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT
    ");

    let cidrs = ["10.244.0.0/16", "fd00:10:244::/48", "10.245.0.0/16"].map(|cidr| cidr.parse().unwrap()).into();
    let several = with(|config| config.masquerade.detect_local = DetectLocal::ClusterCidr(cidrs));
    assert_snapshot!(marking(&several, Family::V4), @"
    -t nat -A KUBE-IPVS-SERVICES -s 10.244.0.0/16 -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES ! -s 10.245.0.0/16 -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    ");
    assert_snapshot!(marking(&several, Family::V6), @"
    -t nat -A KUBE-IPVS-SERVICES ! -s fd00:10:244::/48 -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT
    ");

    let everybody = with(|config| config.masquerade.detect_local = DetectLocal::ClusterCidr(vec!["0.0.0.0/0".parse().unwrap()]));
    assert_snapshot!(marking(&everybody, Family::V4), @"-t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT");
}

#[test]
fn rules_by_the_nodes_pod_cidrs() {
    let node = with(|config| config.masquerade.detect_local = DetectLocal::NodeCidr);
    assert_snapshot!(marking(&node, Family::V4), @"
    -t nat -A KUBE-IPVS-SERVICES ! -s 10.244.1.0/24 -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    ");
    assert_snapshot!(marking(&node, Family::V6), @"
    -t nat -A KUBE-IPVS-SERVICES ! -s fd00:10:244:1::/64 -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT
    ");
}

#[test]
fn rules_by_interface() {
    let name = |name| InterfaceName::new(name).unwrap();
    let bridge = with(|config| config.masquerade.detect_local = DetectLocal::BridgeInterface(name("cni0")));
    assert_snapshot!(marking(&bridge, Family::V4), @"
    -t nat -A KUBE-IPVS-SERVICES ! -i cni0 -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    ");
    let prefix = with(|config| config.masquerade.detect_local = DetectLocal::InterfaceNamePrefix(name("cali")));
    assert_snapshot!(marking(&prefix, Family::V6), @"
    -t nat -A KUBE-IPVS-SERVICES ! -i cali+ -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j MARK --set-xmark 0x4000/0x4000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-6-CLUSTER-IP dst,dst -j ACCEPT
    ");
}

#[test]
fn rules_that_masquerade_all_whatever_the_detector() {
    let node = with(|config| {
        config.masquerade.all = true;
        config.masquerade.mark = MarkBit::new(31).unwrap();
        config.masquerade.detect_local = DetectLocal::NodeCidr;
    });
    assert_snapshot!(node.rules(Family::V4), @"
    -t filter -A FORWARD -j KUBE-IPVS-FORWARD
    -t filter -A INPUT -j KUBE-IPVS-INPUT
    -t mangle -A OUTPUT -j KUBE-IPVS-OUTPUT
    -t nat -A OUTPUT -j KUBE-IPVS-SERVICES
    -t nat -A POSTROUTING -j KUBE-IPVS-POSTROUTING
    -t mangle -A PREROUTING -j KUBE-IPVS-PODS
    -t nat -A PREROUTING -j KUBE-IPVS-SERVICES
    -t mangle -A KUBE-IPVS-OUTPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -m set ! --match-set KUBE-LOAD-BALANCER-SOURCE-NODE dst,dst -j DROP
    -t mangle -A KUBE-IPVS-OUTPUT -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t mangle -A KUBE-IPVS-PODS -s 10.244.1.0/24 -j SET --map-set KUBE-IN-CLUSTER-MARK dst,dst --map-mark
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE --to-ports 32768-65535
    -t nat -A KUBE-IPVS-POSTROUTING -m mark ! --mark 0x80000000/0x80000000 -j RETURN
    -t nat -A KUBE-IPVS-POSTROUTING -j MARK --set-xmark 0x0/0x80000000
    -t nat -A KUBE-IPVS-POSTROUTING -p tcp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p udp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-POSTROUTING -p sctp -j MASQUERADE --to-ports 32768-65535 --random-fully
    -t nat -A KUBE-IPVS-SERVICES -s 127.0.0.0/8 -j RETURN
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j MARK --set-xmark 0x80000000/0x80000000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j MARK --set-xmark 0x80000000/0x80000000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j MARK --set-xmark 0x80000000/0x80000000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-EXTERNAL-IP dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-LOCAL-ADDRESS dst,dst -j ACCEPT
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-ADDRESS dst,dst -j MARK --set-xmark 0x80000000/0x80000000
    -t nat -A KUBE-IPVS-SERVICES -m set --match-set KUBE-NODE-PORT-ADDRESS dst,dst -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m mark --mark 0x80000000/0x80000000 -j ACCEPT
    -t filter -A KUBE-IPVS-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-IPVS-SOURCE-RANGES
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-NO-LOCAL-ENDPOINT dst,dst -m mark ! --mark 0x80000000/0x80000000 -j DROP
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m set --match-set KUBE-HEALTH-CHECK-ADDRESS dst,dst -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 8 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 3 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 11 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -p icmp -m icmp --icmp-type 12 -j RETURN
    -t filter -A KUBE-IPVS-INPUT -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT --reject-with icmp-port-unreachable
    -t filter -A KUBE-IPVS-SOURCE-RANGES -m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN
    -t filter -A KUBE-IPVS-SOURCE-RANGES -j DROP
    ");
}

#[test]
fn node_port_addresses_by_choice() {
    let addresses = |choice| {
        let node = with(|config| config.node_port_addresses = choice);
        let of = |family| node.index.facts().node_port_addresses(family, &node.index.config().node_port_addresses);
        Family::ALL.into_iter().flat_map(of).map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
    };
    let cidrs = |list: &[&str]| NodePortAddresses::Listed {
        networks: list.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        interfaces: Vec::new(),
    };
    assert_snapshot!(addresses(NodePortAddresses::Primary), @"172.18.0.11 fd00:18::11");
    assert_snapshot!(addresses(NodePortAddresses::All), @"172.17.0.1 172.18.0.11 fd00:18::11");
    assert_snapshot!(addresses(cidrs(&["172.17.0.0/16"])), @"172.17.0.1 fd00:18::11");
    assert_snapshot!(addresses(cidrs(&["172.17.0.0/16", "fe80::/10"])), @"172.17.0.1 fe80::11");
    assert_snapshot!(addresses(cidrs(&["127.0.0.0/8", "::/0"])), @"fd00:18::11");
    assert_snapshot!(addresses(cidrs(&["10.0.0.0/8", "fd00:99::/64"])), @"");
}
