//! Laws of following changes: whatever comes in whichever order, what is kept change by change is what the objects of the moment say.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use desired::{Config, Index, InterfaceAddress, Kind, Ledger, Listener, OccupiedNodePorts, Problem, ServiceName};
use model::{Family, Member, Protocol, Role, Scope, Set, State, Via, VirtualServerKey};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Objects are few and collide on purpose: addresses and ports that several Services claim, endpoints that are in several slices.
const SERVICES: usize = 3;
const SLICES: usize = 5;
const CLUSTER_IPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "10.96.000.002"];
const CLUSTER_IPS_V6: [&str; 2] = ["fd00:96::1", "fd00:96::2"];
/// Some of them are addresses that the node has or may get, one is a ClusterIP, and one is none at all.
const EXTERNAL_IPS: [&str; 7] =
    ["198.51.100.1", "198.51.100.2", "172.18.0.1", "172.18.0.2", "10.96.0.1", "2001:db8:100::1", "fd00:18::1"];
/// Ports that Services have as node ports, and one that none has.
const LISTENERS: [(u16, &str); 4] = [(30053, "0.0.0.0"), (30080, "172.18.0.1"), (30080, "::"), (22, "::")];
const RANGES: [&str; 7] =
    ["203.0.113.0/24", "172.18.0.0/31", "172.18.0.2/32", "0.0.0.0/0", "fd00:18::/64", "2001:db8::/32", "everywhere"];

#[derive(Clone, Debug)]
enum Op {
    ApplyService(usize, Value),
    DeleteService(usize),
    ApplySlice(usize, Value),
    DeleteSlice(usize),
    ApplyNode(Value),
    DeleteNode(&'static str),
    SetGateways(Vec<&'static str>),
    SetListeners(Vec<(u16, &'static str)>),
    SetInterfaces(Vec<(&'static str, &'static str)>),
    /// A list of what there is, less what the mask hides; begun twice if interrupted.
    Relist {
        kind: Kind,
        hidden: u8,
        interrupted: bool,
    },
    Sync,
}

/// What is out there.
#[derive(Clone, Debug, Default)]
struct Cluster {
    services: BTreeMap<usize, Value>,
    slices: BTreeMap<usize, Value>,
    node: Option<Value>,
    neighbour: Option<Value>,
    gateways: Vec<&'static str>,
    listeners: Vec<(u16, &'static str)>,
    interfaces: Vec<(&'static str, &'static str)>,
}

/// An index and a ledger that follow it, and a state and problems that are kept up only through what they say has changed.
struct Follower {
    index: Index,
    ledger: Ledger,
    state: State,
    problems: BTreeMap<ServiceName, Box<[Problem]>>,
}

fn config(via: Via) -> Config {
    // Both ways to see to an occupied port, each with one binding.
    let occupied_node_ports = match via {
        Via::Route => OccupiedNodePorts::Service,
        Via::Address => OccupiedNodePorts::Process,
    };
    Config { via, ranges_per_family: via == Via::Address, occupied_node_ports, ..Config::new("node-1") }
}

impl Follower {
    fn new(via: Via) -> Self {
        let index = Index::new(config(via));
        let ledger = Ledger::new(index.config());
        let state = ledger.complete();
        Self { index, ledger, state, problems: BTreeMap::new() }
    }

    fn sync(&mut self) {
        let mut scope = Scope::default();
        for family in Family::ALL {
            let source = self.index.facts().source(family);
            scope.extend(self.ledger.set_source(family, source));
        }
        for name in self.index.take_dirty() {
            let before = self.ledger.complete();
            let touched = self.ledger.set(&name, self.index.fragment(&name));
            check_touched(&touched, &before, &self.ledger.complete());
            scope.extend(touched);
        }
        let desired = self.ledger.desired(&scope);
        replace(&mut self.state, &scope, desired);
        self.problems.extend(self.ledger.take_problems());
        self.problems.retain(|_, problems| !problems.is_empty());
    }
}

/// What a change touches is what it changes: all of it, and no set member or VIP beyond it.
fn check_touched(touched: &Scope, before: &State, after: &State) {
    let members = |state: &State, set: &Set| state.sets[set].members.clone();
    for set in after.sets.keys() {
        let changed: BTreeSet<_> = members(before, set).symmetric_difference(&members(after, set)).copied().collect();
        assert_eq!(touched.members.get(set).cloned().unwrap_or_default(), changed, "{set}");
    }
    let keys = before.vips.keys().chain(after.vips.keys());
    let changed: BTreeSet<_> = keys.filter(|vip| before.vips.get(vip) != after.vips.get(vip)).copied().collect();
    assert_eq!(touched.vips, changed);
    for key in before.virtual_servers.keys().chain(after.virtual_servers.keys()) {
        let same = before.virtual_servers.get(key) == after.virtual_servers.get(key);
        assert!(same || touched.virtual_servers.contains(key), "{key} changed unseen");
    }
}

/// What an agent does to its node: in scope it becomes as desired, out of scope it stays.
fn replace(state: &mut State, scope: &Scope, desired: State) {
    state.virtual_servers.retain(|key, _| !scope.virtual_servers.contains(key));
    state.virtual_servers.extend(desired.virtual_servers);
    state.vips.retain(|vip, _| !scope.vips.contains(vip));
    state.vips.extend(desired.vips);
    for (set, members) in &scope.members {
        let held = state.sets.get_mut(set).unwrap();
        held.members.retain(|member| !members.contains(member));
        held.members.extend(&desired.sets[set].members);
        held.capacity = desired.sets[set].capacity;
    }
}

impl Cluster {
    fn run(&mut self, op: Op, follower: &mut Follower) {
        let index = &mut follower.index;
        match op {
            Op::ApplyService(id, object) => {
                index.apply_service(&parse(&object)).unwrap();
                self.services.insert(id, object);
            }
            Op::DeleteService(id) => {
                index.delete_service(&parse(&service_metadata(id)));
                self.services.remove(&id);
            }
            Op::ApplySlice(id, object) => {
                index.apply_slice(&parse(&object)).unwrap();
                self.slices.insert(id, object);
            }
            Op::DeleteSlice(id) => {
                index.delete_slice(&parse(&slice_metadata(id)));
                self.slices.remove(&id);
            }
            Op::ApplyNode(object) => {
                index.apply_node(&parse(&object));
                if object["metadata"]["name"] == "node-1" {
                    self.node = Some(object);
                } else {
                    self.neighbour = Some(object);
                }
            }
            Op::DeleteNode(name) => {
                index.delete_node(&parse(&json!({"name": name})));
                self.neighbour.take_if(|_| name == "node-2");
            }
            Op::SetGateways(gateways) => {
                index.set_gateways(gateways.iter().map(|address| address.parse().unwrap()).collect());
                self.gateways = gateways;
            }
            Op::SetListeners(listeners) => {
                index.set_listeners(sockets(&listeners));
                self.listeners = listeners;
            }
            Op::SetInterfaces(interfaces) => {
                index.set_interfaces(addresses(&interfaces));
                self.interfaces = interfaces;
            }
            Op::Relist { kind, hidden, interrupted } => {
                let shown = |id: &usize| hidden & (1 << id) == 0;
                if interrupted {
                    index.begin_listing(kind);
                    self.list(kind, index, |id| !shown(id));
                }
                index.begin_listing(kind);
                self.list(kind, index, shown);
                index.end_listing(kind);
                match kind {
                    Kind::Service => self.services.retain(|id, _| shown(id)),
                    Kind::EndpointSlice => self.slices.retain(|id, _| shown(id)),
                    Kind::Node => _ = self.neighbour.take_if(|_| !shown(&0)),
                }
            }
            Op::Sync => follower.sync(),
        }
    }

    fn list(&self, kind: Kind, index: &mut Index, shown: impl Fn(&usize) -> bool) {
        let listed = |objects: &BTreeMap<usize, Value>| -> Vec<_> {
            objects.iter().filter(|(id, _)| shown(id)).map(|(_, object)| object.clone()).collect()
        };
        match kind {
            Kind::Service => listed(&self.services).iter().for_each(|object| index.apply_service(&parse(object)).unwrap()),
            Kind::EndpointSlice => listed(&self.slices).iter().for_each(|object| index.apply_slice(&parse(object)).unwrap()),
            Kind::Node => {
                let neighbour = self.neighbour.iter().filter(|_| shown(&0));
                self.node.iter().chain(neighbour).for_each(|object| index.apply_node(&parse(object)));
            }
        }
    }

    /// The state of a node that sees all of this for the first time.
    fn seen_at_once(&self, via: Via) -> Follower {
        let mut follower = Follower::new(via);
        self.show(&mut follower);
        follower
    }

    fn show(&self, follower: &mut Follower) {
        follower.index.set_interfaces(addresses(&self.interfaces));
        follower.index.set_gateways(self.gateways.iter().map(|address| address.parse().unwrap()).collect());
        follower.index.set_listeners(sockets(&self.listeners));
        for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
            self.list(kind, &mut follower.index, |_| true);
        }
        follower.sync();
    }
}

/// `state` with marks in the order of their frontends: which of two that fall on the same number has it depends on who came first.
fn with_ranked_marks(state: &State) -> State {
    let mut ranked = state.clone();
    let mut rank = NonZeroU32::MIN;
    for (set, held) in ranked.sets.iter_mut().filter(|(set, _)| set.role == Role::InCluster) {
        for member in &state.sets[set].members {
            let Member::IpPortMark(address, protocol, port, mark) = *member else { panic!("{member} has no mark") };
            let key = |mark| VirtualServerKey::Mark { family: set.family, mark };
            let server = state.virtual_servers[&key(mark)].clone();
            assert!(ranked.virtual_servers.remove(&key(mark)).is_some(), "{mark:#x} is given twice");
            // Below the masquerade bit, and so none that is given.
            ranked.virtual_servers.insert(key(rank), server);
            held.add(Member::IpPortMark(address, protocol, port, rank));
            rank = rank.checked_add(1).unwrap();
        }
    }
    ranked
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn following_changes_ends_where_starting_over_does(
        ops in prop::collection::vec(op(), 1..40),
        via in prop::sample::select(vec![Via::Route, Via::Address]),
    ) {
        let mut cluster = Cluster::default();
        let mut follower = Follower::new(via);
        for op in ops.into_iter().chain([Op::Sync]) {
            let sync = matches!(op, Op::Sync);
            cluster.run(op, &mut follower);
            if sync {
                let scratch = cluster.seen_at_once(via);
                prop_assert_eq!(&follower.state, &follower.ledger.complete());
                prop_assert_eq!(with_ranked_marks(&follower.state), with_ranked_marks(&scratch.ledger.complete()));
                prop_assert_eq!(&follower.problems, &scratch.problems);
                let waiting: usize = follower.ledger.conflicts().map(|conflict| conflict.waiting.len()).sum();
                prop_assert_eq!(follower.problems.values().map(|problems| problems.len()).sum::<usize>(), waiting);
            }
        }

        // A process that starts anew gives everybody the mark they have.
        let mut restarted = Follower::new(via);
        restarted.ledger.adopt(&follower.state);
        cluster.show(&mut restarted);
        prop_assert_eq!(&restarted.ledger.complete(), &follower.state);

        // Seen again, nothing of it is news; and all of it gone, nothing of it is left.
        for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
            cluster.list(kind, &mut follower.index, |_| true);
        }
        prop_assert!(!follower.index.is_dirty());
        for kind in [Kind::Service, Kind::EndpointSlice] {
            follower.index.begin_listing(kind);
            follower.index.end_listing(kind);
        }
        follower.sync();
        let empty = Ledger::new(&config(via)).complete();
        prop_assert_eq!(&follower.state, &empty);
        prop_assert_eq!(&follower.problems, &BTreeMap::new());
    }
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop::sample::select(vec![Kind::Service, Kind::EndpointSlice, Kind::Node]);
    prop_oneof![
        5 => (0..SERVICES).prop_flat_map(|id| service(id).prop_map(move |object| Op::ApplyService(id, object))),
        2 => (0..SERVICES).prop_map(Op::DeleteService),
        6 => (0..SLICES).prop_flat_map(|id| slice(id).prop_map(move |object| Op::ApplySlice(id, object))),
        2 => (0..SLICES).prop_map(Op::DeleteSlice),
        4 => node().prop_map(Op::ApplyNode),
        1 => prop::sample::select(vec!["node-1", "node-2"]).prop_map(Op::DeleteNode),
        1 => prop::sample::subsequence(EXTERNAL_IPS.to_vec(), 0..2).prop_map(Op::SetGateways),
        2 => prop::sample::subsequence(LISTENERS.to_vec(), 0..=LISTENERS.len()).prop_map(Op::SetListeners),
        2 => interfaces().prop_map(Op::SetInterfaces),
        2 => (kind, any::<u8>(), any::<bool>()).prop_map(|(kind, hidden, interrupted)| Op::Relist { kind, hidden, interrupted }),
        5 => Just(Op::Sync),
    ]
}

fn service(id: usize) -> impl Strategy<Value = Value> {
    let port = (
        port_name(),
        prop_oneof![9 => protocol(), 1 => Just("ICMP")],
        prop_oneof![9 => prop::sample::select(vec![53, 80]), 1 => Just(0)],
        prop::sample::select(vec![0, 0, 30053, 30080]),
    )
        .prop_map(
            |(name, protocol, port, node_port)| json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port}),
        );
    let shape = (
        prop::option::weighted(0.9, prop::sample::select(CLUSTER_IPS.to_vec())),
        prop::option::of(prop::sample::select(CLUSTER_IPS_V6.to_vec())),
        prop::collection::vec(port, 0..3),
        prop::sample::select(vec!["None", "ClientIP"]),
        prop::sample::select(vec!["Cluster", "Cluster", "Cluster", "Local"]),
        prop::sample::select(vec![None, Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z")]),
        externals(),
        annotations(),
    );
    shape.prop_map(move |(v4, v6, ports, affinity, internal, created, (external, status), annotations)| {
        let cluster_ips: Vec<_> = v4.into_iter().chain(v6).collect();
        let families: Vec<_> = v4.map(|_| "IPv4").into_iter().chain(v6.map(|_| "IPv6")).collect();
        let mut metadata = service_metadata(id);
        metadata["creationTimestamp"] = json!(created);
        metadata["annotations"] = annotations;
        let mut spec = json!({
            "clusterIP": cluster_ips.first().unwrap_or(&"None"),
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ports": ports,
            "sessionAffinity": affinity,
            "internalTrafficPolicy": internal,
        });
        spec.as_object_mut().unwrap().extend(external.as_object().unwrap().clone());
        json!({"metadata": metadata, "spec": spec, "status": status})
    })
}

/// How connections are to be spread.
fn annotations() -> impl Strategy<Value = Value> {
    let all = vec![
        ("kube-ipvs.io/scheduler", "wrr"),
        ("kube-router.io/service.scheduler", "mh"),
        ("kube-ipvs.io/scheduler-flags", "fallback"),
        ("kube-ipvs.io/one-packet", "true"),
        ("kube-ipvs.io/weights", "node-1=2, pod/pod-1=0, 10.244.1.1=5"),
    ];
    let some = prop::sample::subsequence(all.clone(), 0..=all.len());
    prop_oneof![2 => Just(json!({})), 1 => some.prop_map(|some| json!(some.into_iter().collect::<BTreeMap<_, _>>()))]
}

/// What of a Service's spec and status is about callers from outside.
fn externals() -> impl Strategy<Value = (Value, Value)> {
    let some = |all: &[&'static str], most| prop::sample::subsequence(all.to_vec(), 0..=most);
    let ingress = some(&EXTERNAL_IPS, 2).prop_flat_map(|addresses| {
        prop::collection::vec(prop::sample::select(vec![None, Some("VIP"), Some("VIP"), Some("Proxy")]), addresses.len()).prop_map(
            move |modes| {
                let entry = |(ip, mode): (&&str, Option<&str>)| json!({"ip": ip, "ipMode": mode});
                json!({"loadBalancer": {"ingress": addresses.iter().zip(modes).map(entry).collect::<Vec<_>>()}})
            },
        )
    });
    let spec = (
        prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]),
        some(&EXTERNAL_IPS, 2),
        prop_oneof![2 => Just(Vec::new()), 1 => some(&RANGES, 2)],
        prop::sample::select(vec!["Cluster", "Local"]),
        prop::sample::select(vec![0, 32000]),
    )
        .prop_map(|(kind, external_ips, ranges, policy, health_check)| {
            json!({
                "type": kind,
                "externalIPs": external_ips,
                "loadBalancerSourceRanges": ranges,
                "externalTrafficPolicy": policy,
                "healthCheckNodePort": health_check,
            })
        });
    prop_oneof![1 => Just((json!({}), json!({}))), 2 => (spec, ingress)]
}

fn slice(id: usize) -> impl Strategy<Value = Value> {
    // All endpoints of a slice have zone hints or none has, or hints would hardly ever be followed.
    let endpoint = |address: &'static [&'static str], hinted: bool| {
        let condition = || prop::option::of(any::<bool>());
        (
            prop::sample::select(address),
            (condition(), condition(), condition()),
            (prop::sample::select(vec!["node-1", "node-2"]), prop::sample::select(vec!["pod-1", "pod-2"])),
            prop::collection::vec(prop::sample::select(vec!["zone-a", "zone-b"]), 1..3),
            prop::option::weighted(0.2, prop::sample::select(vec!["node-1", "node-2"])),
        )
            .prop_map(move |(address, (ready, serving, terminating), (node, pod), zones, nodes)| {
                let named = |names: Vec<&str>| names.into_iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
                json!({
                    "addresses": [address],
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                    "nodeName": node,
                    "targetRef": {"kind": "Pod", "name": pod},
                    "hints": {"forZones": named(if hinted { zones } else { Vec::new() }), "forNodes": named(nodes.into_iter().collect())},
                })
            })
    };
    let family = any::<bool>().prop_flat_map(move |hinted| {
        prop_oneof![
            6 => prop::collection::vec(endpoint(&["10.244.1.1", "10.244.1.2", "10.244.2.1", "nonsense"], hinted), 0..4)
                .prop_map(|endpoints| ("IPv4", endpoints)),
            2 => prop::collection::vec(endpoint(&["fd00:244::1", "fd00:244::2"], hinted), 0..3)
                .prop_map(|endpoints| ("IPv6", endpoints)),
            1 => Just(("FQDN", Vec::new())),
        ]
    });
    let port = (port_name(), protocol(), 8080..8082)
        .prop_map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}));
    (prop::option::weighted(0.9, 0..SERVICES), family, prop::collection::vec(port, 0..3)).prop_map(
        move |(service, (address_type, endpoints), ports)| {
            let mut metadata = slice_metadata(id);
            metadata["labels"] = service.map_or(json!({}), |id| json!({"kubernetes.io/service-name": format!("service-{id}")}));
            json!({"metadata": metadata, "addressType": address_type, "endpoints": endpoints, "ports": ports})
        },
    )
}

/// Skewed, so that the ports of Services and slices often match.
fn port_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![5 => Just("web"), 1 => Just("dns"), 1 => Just("")]
}

fn protocol() -> impl Strategy<Value = &'static str> {
    prop_oneof![5 => Just("TCP"), 1 => Just("UDP"), 1 => Just("SCTP")]
}

fn node() -> impl Strategy<Value = Value> {
    let zone = prop::sample::select(vec!["", "zone-a", "zone-b"]);
    let address = prop::sample::select(vec!["172.18.0.1", "172.18.0.2", "fd00:18::1"]);
    let name = prop::sample::select(vec!["node-1", "node-1", "node-2"]);
    let pod_cidrs = prop::sample::subsequence(vec!["198.51.100.2/31", "2001:db8:100::/64"], 0..=2);
    (name, zone, prop::collection::vec(address, 0..3), pod_cidrs).prop_map(|(name, zone, addresses, pod_cidrs)| {
        let addresses: Vec<_> = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": pod_cidrs},
            "status": {"addresses": addresses},
        })
    })
}

fn interfaces() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let all = vec![
        ("lo", "127.0.0.1"),
        ("eth0", "172.18.0.1"),
        ("eth1", "172.18.0.2"),
        ("eth0", "fd00:18::1"),
        ("kube-ipvs0", "10.96.0.1"),
    ];
    prop::sample::subsequence(all.clone(), 0..=all.len())
}

fn service_metadata(id: usize) -> Value {
    json!({"namespace": "shop", "name": format!("service-{id}")})
}

fn slice_metadata(id: usize) -> Value {
    json!({"namespace": "shop", "name": format!("slice-{id}")})
}

fn addresses(interfaces: &[(&str, &str)]) -> Vec<InterfaceAddress> {
    interfaces.iter().map(|(name, address)| InterfaceAddress::new(name, address.parse().unwrap())).collect()
}

fn sockets(listeners: &[(u16, &str)]) -> BTreeSet<Listener> {
    let socket =
        |(port, address): &(u16, &str)| Listener { protocol: Protocol::Tcp, port: *port, address: address.parse().unwrap() };
    listeners.iter().map(socket).collect()
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}
