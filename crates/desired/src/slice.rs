//! What an EndpointSlice says, in a compact form.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::{Family, Protocol};

use crate::address;
use crate::endpoints::Hint;
use crate::name::{Name, Names, ServiceName};
use crate::object::{self, EndpointSlice};
use crate::pods::{PodName, Pods};
use crate::problem::{Problem, Problems, quoted};
use crate::service::protocol;

/// An EndpointSlice of a Service, reduced to what desired state follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) family: Family,
    pub(crate) ports: Box<[SlicePort]>,
    pub(crate) endpoints: Box<[Endpoint]>,
    pods: Pods,
    pub(crate) problems: Box<[Problem]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub(crate) name: Name,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// An endpoint, with what its node and node hints mean on this node already worked out, since a node's name never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) local: bool,
    pub(crate) node_hint: Hint,
    /// The zones it is meant for. Endpoints of a slice that are meant for the same zones share the list.
    pub(crate) zones: Option<Arc<Box<[Box<str>]>>>,
    /// The node it is on.
    pub(crate) node: Option<Name>,
}

impl Endpoint {
    /// Whether it is on one of these nodes.
    pub(crate) fn is_on(&self, nodes: &BTreeSet<Box<str>>) -> bool {
        !nodes.is_empty() && self.node.as_deref().is_some_and(|node| nodes.contains(node))
    }
}

impl Slice {
    /// Which Service `object` belongs to, if any.
    pub(crate) fn service(object: &EndpointSlice) -> Option<ServiceName> {
        let labels = object.metadata.labels.as_ref()?;
        if labels.contains_key(object::label::HEADLESS) {
            return None;
        }
        let service = labels.get(object::label::SERVICE).filter(|name| !name.is_empty() && !name.contains('/'))?;
        Some(ServiceName::new(object.metadata.namespace.as_deref().unwrap_or_default(), service))
    }

    /// Reads `object`; `None` for addresses that are not IP addresses.
    pub(crate) fn parse(name: &ServiceName, object: &EndpointSlice, node_name: &str, names: &mut Names) -> Option<Self> {
        let family = address::family(&object.address_type)?;
        let mut problems = Problems::of("EndpointSlice", name);
        let ports = ports(object, names, &mut problems);
        let mut pods = Vec::new();
        let endpoints = endpoints(object, family, node_name, names, &mut pods, &mut problems);
        Some(Self { family, ports, endpoints, pods: Pods::new(&pods), problems: problems.finish() })
    }

    /// The endpoints, each with the name of the pod that it is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Endpoint, Option<PodName<'_>>)> {
        self.endpoints.iter().zip(self.pods.iter())
    }

    /// Whether what it means depends on the zone this node is in.
    pub(crate) fn has_zone_hints(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.zones.is_some())
    }
}

fn ports(object: &EndpointSlice, names: &mut Names, problems: &mut Problems) -> Box<[SlicePort]> {
    let objects = object.ports.as_deref().unwrap_or_default();
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        // The API server writes "" for a port without a name; a port without a number stands for all ports and serves none.
        let (Some(name), Some(number)) = (object.name.as_deref(), object.port) else { continue };
        let field = |name: &str| format!("ports[{index}].{name}");
        let Some(protocol) = protocol(object.protocol.as_deref(), || field("protocol"), problems) else { continue };
        match u16::try_from(number) {
            Ok(port @ 1..) => ports.push(SlicePort { name: names.share(name), protocol, port }),
            Ok(0) | Err(_) => {
                problems.add(field("port"), format!("is {number}; a port is a number from 1 to 65535, and this one is not served"));
            }
        }
    }
    ports.into()
}

fn endpoints<'a>(
    object: &'a EndpointSlice,
    family: Family,
    node_name: &str,
    names: &mut Names,
    pods: &mut Vec<Option<&'a str>>,
    problems: &mut Problems,
) -> Box<[Endpoint]> {
    let objects = object.endpoints.as_deref().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(objects.len());
    let mut zone_lists = BTreeMap::new();
    for (index, object) in objects.iter().enumerate() {
        // The API gives addresses beyond the first no meaning.
        let Some(text) = object.addresses.first() else { continue };
        let field = || format!("endpoints[{index}].addresses[0]");
        let address = match address::parse(text) {
            Some(address) if Family::of(address) != family => {
                problems.add(field(), format!("is {address} in a slice of addressType {family}, and is not served"));
                continue;
            }
            Some(address) => address,
            None => {
                problems.add(field(), format!("is {}, which is no IP address, and is not served", quoted(text)));
                continue;
            }
        };
        if let Some(kind) = address::unusable(address) {
            problems.add(field(), format!("is {address}, {kind} address, and is not served; name the pod's own address"));
            continue;
        }
        let conditions = object.conditions.as_ref();
        let hints = object.hints.as_ref();
        let for_nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        let mut zones: Vec<&str> =
            hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default().iter().map(|zone| zone.name.as_str()).collect();
        zones.sort_unstable();
        endpoints.push(Endpoint {
            address,
            // What a producer leaves out is to be read as ready, serving and not terminating (KEP-1672).
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            local: object.node_name.as_deref() == Some(node_name),
            node_hint: Hint::of(for_nodes.iter().map(|node| node.name.as_str()), Some(node_name)),
            zones: (!zones.is_empty()).then(|| {
                let shared = || Arc::new(zones.iter().map(|zone| Box::from(*zone)).collect::<Box<[Box<str>]>>());
                Arc::clone(zone_lists.entry(zones.clone()).or_insert_with(shared))
            }),
            node: object.node_name.as_deref().map(|name| names.share(name)),
        });
        pods.push(pod(object));
    }
    endpoints.into()
}

fn pod(object: &object::Endpoint) -> Option<&str> {
    let target = object.target_ref.as_ref()?;
    target.name.as_deref().filter(|_| target.kind.as_deref() == Some("Pod"))
}
