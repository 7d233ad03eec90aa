//! Clusters of other versions: what they tell comes to the same desired state, through the real client and from a server's bytes.
//!
//! The oldest is 1.29. What the newest are that the client library knows is checked against its types; what comes after them is made up.

use super::tests::hasty;
use super::*;
use crate::source::indexing;
use apiserver::{ApiServer, Fault, Options, Resource, Verb};
use desired::{Config, Index, InterfaceAddress, Ledger};
use k8s_openapi::api::{core, discovery};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use tokio::sync::mpsc;

/// What all of them come to: `web` is called by its ClusterIP, its node port and its load balancer's address, `near` stays in this node's zone.
const SERVED: &str = "\
TCP 10.96.0.10:80: 10.244.1.2:8080 10.244.2.2:8080
TCP 10.96.0.20:443: 10.244.1.3:8443
TCP 172.18.0.11:30080: 10.244.1.2:8080 10.244.2.2:8080
TCP 198.51.100.7:80: 10.244.1.2:8080 10.244.2.2:8080
10.96.0.10/32 10.96.0.20/32 198.51.100.7/32
";

/// What became of what a server told.
struct Outcome {
    served: String,
    problems: BTreeSet<String>,
    troubles: Vec<String>,
}

/// What a node comes to that lists all there is and, once it has, is told of `changes`.
async fn outcome(server: &ApiServer, changes: &[Value]) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig()).unwrap();
    let freshness = Freshness::new();
    let client = connect(Some(&path), &[], &freshness).await.unwrap();
    let source = ApiSource::new(client, "node-1".to_owned(), hasty(), freshness);
    let (sender, mut events) = mpsc::channel(1);
    let running = tokio::spawn(async move { source.run(sender).await });

    let mut index = Index::new(Config::new("node-1"));
    let interfaces = [("lo", "127.0.0.1"), ("eth0", "172.18.0.11")];
    index.set_interfaces(interfaces.map(|(name, address)| InterfaceAddress::new(name, address.parse().unwrap())).into());
    let (mut listed, mut told, mut troubles) = (BTreeSet::new(), 0, Vec::new());
    while listed.len() < Kind::ALL.len() || told < changes.len() {
        let event = timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
        indexing::take(&mut index, &event).unwrap();
        match event {
            Event::Listed(kind) => {
                listed.insert(kind);
                if listed.len() == Kind::ALL.len() {
                    changes.iter().for_each(|change| server.apply(change.clone()).unwrap());
                }
            }
            Event::Applied(_) if listed.len() == Kind::ALL.len() => told += 1,
            Event::Trouble { message, .. } => troubles.push(message),
            _ => {}
        }
    }
    running.abort();
    let mut ledger = Ledger::new(index.config());
    for name in index.take_dirty() {
        ledger.set(&name, index.fragment(&name));
    }
    let problems = ledger.fragments().flat_map(|(_, fragment)| fragment.problems()).chain(index.node_problems());
    let problems = problems.map(ToString::to_string).collect();
    let state = ledger.complete();
    let mut served = String::new();
    for (key, server) in &state.virtual_servers {
        let real_servers: Vec<_> = server.real_servers.keys().map(ToString::to_string).collect();
        writeln!(served, "{key}: {}", real_servers.join(" ")).unwrap();
    }
    let vips: Vec<_> = state.vips.keys().map(|vip| format!("{}/32", vip.address)).collect();
    writeln!(served, "{}", vips.join(" ")).unwrap();
    Outcome { served, problems, troubles }
}

async fn server(options: Options, objects: &[Value]) -> ApiServer {
    let server = ApiServer::start(options).await.unwrap();
    objects.iter().for_each(|object| server.apply(object.clone()).unwrap());
    server
}

fn service(name: &str, spec: &Value, status: &Value) -> Value {
    let metadata = json!({"namespace": "shop", "name": name});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status})
}

fn slice(name: &str, service: &str, address_type: &str, endpoints: &Value, ports: &Value) -> Value {
    let metadata = json!({"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": address_type, "endpoints": endpoints, "ports": ports})
}

fn node(spec: &Value, status: &Value) -> Value {
    let metadata = json!({"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status})
}

/// As 1.29 writes them: no `ipMode`, no `trafficDistribution`, hints for zones alone, conditions where somebody has set them, `null` for empty lists.
fn of_1_29() -> Vec<Value> {
    let http = json!([{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let web = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": http, "selector": {"app": "web"},
        "allocateLoadBalancerNodePorts": true, "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"});
    let near = json!({"type": "ClusterIP", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": [{"port": 443, "targetPort": 8443}]});
    let pods = json!([{"addresses": ["10.244.1.2"], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "1"}, "zone": "zone-a"},
        {"addresses": ["10.244.2.2"], "conditions": {}, "nodeName": "node-2"},
        {"addresses": ["10.244.2.9"], "conditions": {"ready": false}}]);
    let hinted = |address: &str, zone: &str| json!({"addresses": [address], "conditions": {"ready": true}, "zone": zone, "hints": {"forZones": [{"name": zone}]}});
    vec![
        service("web", &web, &json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}})),
        service("near", &near, &json!({"loadBalancer": {}})),
        slice("web-1", "web", "IPv4", &pods, &json!([{"name": "http", "protocol": "TCP", "port": 8080}])),
        slice("web-2", "web", "IPv4", &Value::Null, &Value::Null),
        slice(
            "near-1",
            "near",
            "IPv4",
            &json!([hinted("10.244.1.3", "zone-a"), hinted("10.244.2.3", "zone-b")]),
            &json!([{"name": "", "protocol": "TCP", "port": 8443}]),
        ),
        node(
            &json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}),
            &json!({"addresses": [{"type": "InternalIP", "address": "172.18.0.11"}, {"type": "Hostname", "address": "node-1"}]}),
        ),
    ]
}

/// With the fields that have come since.
fn of_the_newest() -> Vec<Value> {
    let mut objects = of_1_29();
    let [web, near, web_1, _, near_1, node] = &mut objects[..] else { panic!("six objects") };
    web["spec"]["trafficDistribution"] = json!("PreferClose");
    web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
        {"ip": "198.51.100.8", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}, "conditions": [{"type": "Ready", "status": "True", "reason": "Ready",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    near["spec"]["trafficDistribution"] = json!("PreferSameZone");
    near["spec"]["ports"][0]["appProtocol"] = json!("kubernetes.io/h2c");
    web_1["ports"][0]["appProtocol"] = json!("http");
    for endpoint in near_1["endpoints"].as_array_mut().unwrap() {
        let node = if endpoint["zone"] == "zone-a" { "node-1" } else { "node-2" };
        endpoint["nodeName"] = json!(node);
        endpoint["hints"]["forNodes"] = json!([{"name": node}]);
    }
    node["status"]["runtimeHandlers"] =
        json!([{"name": "runc", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": true}}]);
    node["status"]["features"] = json!({"supplementalGroupsPolicy": true});
    node["status"]["declaredFeatures"] = json!(["GuaranteedQoSPodCPUResize"]);
    objects
}

/// With what none of today's versions has: a field at every level, and a value where today's are counted.
fn of_later_ones() -> Vec<Value> {
    fn add(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                // Names are free in labels and selectors; what is in them are texts.
                let free = |name: &str| matches!(name, "labels" | "selector");
                fields.iter_mut().filter(|(name, _)| !free(name)).for_each(|(_, field)| add(field));
                fields.insert("later".to_owned(), json!({"a": [1, null, {"b": "c"}]}));
            }
            Value::Array(items) => items.iter_mut().for_each(add),
            _ => {}
        }
    }
    let mut objects = of_the_newest();
    let [web, near, web_1, web_2, near_1, node] = &mut objects[..] else { panic!("six objects") };
    web["spec"]["trafficDistribution"] = json!("PreferSameRack");
    web["spec"]["ipFamilyPolicy"] = json!("PreferNone");
    web["spec"]["externalIPs"] = Value::Null;
    web["spec"]["loadBalancerSourceRanges"] = Value::Null;
    web["spec"]["sessionAffinity"] = json!("ClientSubnet");
    web["spec"]["ports"].as_array_mut().unwrap().push(json!({"name": "quic", "protocol": "QUIC", "port": 443}));
    web["status"]["loadBalancer"]["ingress"].as_array_mut().unwrap().push(json!({"ip": "198.51.100.9", "ipMode": "Tunnel"}));
    near["spec"]["internalTrafficPolicy"] = json!("PreferLocal");
    near["status"] = Value::Null;
    web_1["ports"].as_array_mut().unwrap().push(json!({"name": "quic", "protocol": "QUIC", "port": 8443}));
    for endpoint in web_1["endpoints"].as_array_mut().unwrap() {
        endpoint["conditions"]["overloaded"] = json!({"since": 1});
    }
    web_2["addressType"] = json!("DNS");
    web_2["endpoints"] = json!([{"addresses": ["web.example"]}]);
    for endpoint in near_1["endpoints"].as_array_mut().unwrap() {
        endpoint["hints"]["forRacks"] = json!([{"name": "rack-1"}]);
        endpoint["hints"]["forZones"][0]["weight"] = json!(3);
    }
    node["status"]["addresses"].as_array_mut().unwrap().push(json!({"type": "OverlayIP", "address": "another kind"}));
    node["status"]["conditions"] = json!([{"type": "Melting", "status": "Maybe"}]);
    node["spec"]["taints"] = Value::Null;
    objects.iter_mut().for_each(add);
    objects
}

#[tokio::test]
async fn the_oldest_servers_objects_are_served() {
    // Each watch may be the first to ask for a streaming list, which 1.29 refuses as a parameter that it does not take.
    let server = server(Options { streaming_lists: false, ..Options::default() }, &of_1_29()).await;
    for resource in [Resource::Services, Resource::EndpointSlices, Resource::Nodes] {
        server.fail_next(Verb::Watch, resource, 1, Fault::Status(422));
    }
    let Outcome { served, problems, troubles } = outcome(&server, &[]).await;
    assert_eq!((&*served, troubles), (SERVED, vec![]));
    assert_eq!(problems, BTreeSet::new());
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.asks == Some((Verb::List, Resource::Services))), "in pages");
}

#[tokio::test]
async fn the_newest_servers_objects_are_served() {
    let objects = of_the_newest();
    objects.iter().for_each(assert_known);
    let Outcome { served, problems, troubles } = outcome(&server(Options::default(), &objects).await, &[]).await;
    assert_eq!((&*served, troubles), (SERVED, vec![]));
    assert_eq!(problems, BTreeSet::new());
}

#[tokio::test]
async fn what_later_servers_may_add_breaks_nothing_and_what_it_cannot_mean_is_said() {
    let objects = of_later_ones();
    let said = BTreeSet::from(
        [
            "EndpointSlice shop/web-1: ports[1].protocol is \"QUIC\"; the protocols are TCP, UDP and SCTP, and this port is not served",
            "Service shop/near: spec.internalTrafficPolicy is \"PreferLocal\"; it can be Cluster or Local, and Cluster is served",
            "Service shop/web: spec.ports[1].protocol is \"QUIC\"; the protocols are TCP, UDP and SCTP, and this port is not served",
            "Service shop/web: spec.sessionAffinity is \"ClientSubnet\"; it can be None or ClientIP, and None is served",
            "Service shop/web: status.loadBalancer.ingress[3].ipMode is \"Tunnel\"; it can be VIP or Proxy, and the address is left to the load \
             balancer, as with Proxy",
        ]
        .map(str::to_owned),
    );
    let listed = outcome(&server(Options::default(), &objects).await, &[]).await;
    assert_eq!((&*listed.served, listed.troubles), (SERVED, vec![]));
    assert_eq!(listed.problems, said);
    // The same where a cluster is upgraded under the agent's watches.
    let changed = outcome(&server(Options::default(), &of_1_29()).await, &objects).await;
    assert_eq!((&*changed.served, changed.troubles), (SERVED, vec![]));
    assert_eq!(changed.problems, said);
}

/// Whether each field is one that the client library's newest version of the API has.
fn assert_known(object: &Value) {
    fn read<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
    }
    fn assert_within(part: &Value, whole: &Value, path: &str) {
        match part {
            Value::Object(fields) => {
                for (name, field) in fields.iter().filter(|(_, field)| !is_empty(field)) {
                    let path = format!("{path}.{name}");
                    assert_within(field, whole.get(name).unwrap_or_else(|| panic!("{path} is not known")), &path);
                }
            }
            Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| assert_within(item, &whole[index], path)),
            _ => assert_eq!(part, whole, "{path}"),
        }
    }
    fn is_empty(value: &Value) -> bool {
        value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
    }
    let whole = match object["kind"].as_str().unwrap() {
        "Service" => read::<core::v1::Service>(object),
        "EndpointSlice" => read::<discovery::v1::EndpointSlice>(object),
        _ => read::<core::v1::Node>(object),
    };
    assert_within(object, &whole, object["kind"].as_str().unwrap());
}
