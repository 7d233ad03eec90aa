//! The cluster that is measured: Services of one size, whose endpoints are spread over ten nodes, in objects as a controller writes them.

use std::net::Ipv4Addr;

use apiserver::Json;
use model::{Protocol, VirtualServerKey};
use serde_json::{Value, json};

/// The node that the agent runs on.
pub(crate) const NODE: &str = "node-0";
/// Its address, which the namespaces have on a device.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// All pods are in it.
pub(crate) const CLUSTER_CIDR: &str = "10.128.0.0/10";
pub(crate) const POD_PORT: u16 = 8080;

const NODES: u32 = 10;
const NAMESPACE: &str = "shop";
const SERVICES: u32 = u32::from_be_bytes([10, 96, 0, 1]);
const PODS: u32 = u32::from_be_bytes([10, 128, 0, 1]);
/// How many addresses lie between the first pods of two Services.
const STRIDE: u32 = 16;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster {
    pub(crate) services: u32,
    /// Of each Service.
    pub(crate) endpoints: u32,
}

impl Cluster {
    /// Every object it begins with.
    pub(crate) fn objects(self) -> impl Iterator<Item = Json> {
        let services = (0..self.services).flat_map(move |number| [self.service(number), self.slice(number, self.endpoints)]);
        (0..NODES).map(node).chain(services)
    }

    /// A Service with a ClusterIP and one port.
    #[expect(clippy::unused_self, reason = "a Service belongs to its cluster, as its slice does")]
    pub(crate) fn service(self, number: u32) -> Json {
        let name = name(number);
        json!({
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"},
                "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": NAMESPACE},
                "managedFields": managed(&["f:internalTrafficPolicy", "f:ports", "f:selector", "f:sessionAffinity", "f:type"]),
            },
            "spec": {
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
                "selector": {"app.kubernetes.io/name": name},
                "clusterIP": vip(number),
                "clusterIPs": [vip(number)],
                "type": "ClusterIP",
                "sessionAffinity": "None",
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
            },
            "status": {"loadBalancer": {}},
        })
        .into()
    }

    /// The slice of a Service with its first `endpoints` endpoints. One beyond the cluster's own number is on another node than the agent's, so
    /// that it is about its virtual server and nothing else.
    pub(crate) fn slice(self, number: u32, endpoints: u32) -> Json {
        let name = name(number);
        let endpoint = |place: u32| {
            let node = if place < self.endpoints { (number + place) % NODES } else { 1 };
            json!({
                "addresses": [pod(number, place)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {
                    "kind": "Pod",
                    "namespace": NAMESPACE,
                    "name": format!("{name}-6c8b4f7d9c-{place:05}"),
                    "uid": uid(number * STRIDE + place),
                },
                "nodeName": format!("node-{node}"),
                "zone": "zone-a",
            })
        };
        json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": slice_name(number),
                "generateName": format!("{name}-"),
                "namespace": NAMESPACE,
                "generation": 8,
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": name,
                },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid(number), "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": managed(&["f:addressType", "f:endpoints", "f:ports"]),
            },
            "addressType": "IPv4",
            "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "http", "protocol": "TCP", "port": POD_PORT}],
        })
        .into()
    }
}

/// The name of a Service, in [`namespace`].
pub(crate) fn name(number: u32) -> String {
    format!("web-{number}")
}

pub(crate) fn slice_name(number: u32) -> String {
    format!("web-{number}-x7k2p")
}

pub(crate) const fn namespace() -> &'static str {
    NAMESPACE
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(SERVICES + number)
}

fn pod(service: u32, place: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(PODS + service * STRIDE + place)
}

fn node(number: u32) -> Json {
    let name = format!("node-{number}");
    let address = Ipv4Addr::from_bits(NODE_ADDRESS.to_bits() + number);
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    })
    .into()
}

/// What servers note about who wrote what: a good part of every real object.
fn managed(fields: &[&str]) -> Value {
    let fields: serde_json::Map<_, _> = fields.iter().map(|field| ((*field).to_owned(), json!({}))).collect();
    json!([{
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": {".": {}}, "f:annotations": {".": {}}}, "f:spec": fields},
    }])
}

fn uid(number: u32) -> String {
    format!("{number:08x}-4285-4d16-b4f4-9e02f9e87235")
}

/// The large Service that is restarted.
pub(crate) const ROLLING: &str = "rolling";
pub(crate) const ROLLING_ENDPOINTS: u32 = ROLLING_SLICES * ROLLING_WAVE;
pub(crate) const ROLLING_SLICES: u32 = 10;
/// How many endpoints a slice has, which are replaced together: the endpoint slice controller's own limit.
pub(crate) const ROLLING_WAVE: u32 = 100;
/// Beyond what the pods of fifty thousand Services take.
const ROLLING_PODS: u32 = u32::from_be_bytes([10, 191, 0, 0]);
const ROLLING_VIP: Ipv4Addr = Ipv4Addr::new(10, 111, 255, 254);

/// Which pods an endpoint of the large Service are: a restart leads from one generation to the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    First,
    Second,
}

/// How far the replacement of a slice's pods has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The replacements are ready, and those they replace are about to end.
    Both,
    /// Just the replacements are there.
    After,
}

impl Generation {
    const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

pub(crate) fn rolling_key() -> VirtualServerKey {
    VirtualServerKey::address(ROLLING_VIP.into(), Protocol::Tcp, 80)
}

pub(crate) fn rolling_slice_name(number: u32) -> String {
    format!("{ROLLING}-{number:05}")
}

pub(crate) fn rolling_service() -> Json {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": ROLLING, "namespace": NAMESPACE},
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "clusterIP": ROLLING_VIP, "clusterIPs": [ROLLING_VIP], "type": "ClusterIP", "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
        },
    })
    .into()
}

/// The slices of the large Service before a restart of `generation`.
pub(crate) fn rolling_slices(generation: Generation) -> impl Iterator<Item = Json> {
    (0..ROLLING_SLICES).map(move |number| rolling_slice(number, &rolling_endpoints(number, generation, true)))
}

/// A slice whose pods of `generation` are being replaced.
pub(crate) fn rolling_wave(number: u32, generation: Generation, phase: Phase) -> Json {
    let mut endpoints = rolling_endpoints(number, generation.other(), true);
    if phase == Phase::Both {
        endpoints.extend(rolling_endpoints(number, generation, false));
    }
    rolling_slice(number, &endpoints)
}

fn rolling_endpoints(slice: u32, generation: Generation, ready: bool) -> Vec<Value> {
    let first = ROLLING_PODS + slice * ROLLING_WAVE + if generation == Generation::First { 0 } else { ROLLING_ENDPOINTS };
    let endpoint = |address: u32| {
        json!({
            "addresses": [Ipv4Addr::from_bits(address)],
            "conditions": {"ready": ready, "serving": true, "terminating": !ready},
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": format!("{ROLLING}-{address:010}"), "uid": uid(address)},
            // Not on the agent's node, so that it is about the virtual server and nothing else.
            "nodeName": format!("node-{}", 1 + address % (NODES - 1)),
            "zone": "zone-a",
        })
    };
    (first..first + ROLLING_WAVE).map(endpoint).collect()
}

fn rolling_slice(number: u32, endpoints: &[Value]) -> Json {
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": rolling_slice_name(number),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": ROLLING},
            "managedFields": managed(&["f:addressType", "f:endpoints", "f:ports"]),
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": POD_PORT}],
    })
    .into()
}
