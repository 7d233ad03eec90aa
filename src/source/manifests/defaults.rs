//! What an API server would have filled in. Objects written by hand leave it out, and the rest of the agent reads objects as the API server gives them.
//!
//! Only what the agent reads is filled in, and only what the object itself implies: nothing is allocated, so a Service without a cluster IP has none.

use crate::source::Object;
use desired::object::{ClientIpConfig, EndpointPort, ServiceSpec, SessionAffinityConfig};

/// Three hours, the API server's default for `sessionAffinity: ClientIP`.
const AFFINITY_SECONDS: i32 = 10_800;

pub(super) fn fill(object: &mut Object) {
    match object {
        Object::Service(service) => {
            service.metadata.namespace.get_or_insert_with(default_namespace);
            if let Some(spec) = &mut service.spec {
                fill_service(spec);
            }
        }
        Object::EndpointSlice(slice) => {
            slice.metadata.namespace.get_or_insert_with(default_namespace);
            for port in slice.ports.iter_mut().flatten() {
                fill_port(port);
            }
        }
        Object::Node(_) => {}
    }
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn fill_service(spec: &mut ServiceSpec) {
    let service_type = spec.type_.get_or_insert_with(|| "ClusterIP".to_owned()).clone();
    // Either field may be given alone; the first of the list is the single one.
    let first = spec.cluster_ips.as_ref().and_then(|ips| ips.first()).cloned();
    match (&spec.cluster_ip, first) {
        (None, Some(first)) => spec.cluster_ip = Some(first),
        (Some(single), None) if !single.is_empty() => spec.cluster_ips = Some(vec![single.clone()]),
        _ => {}
    }
    if spec.ip_families.is_none()
        && let Some(ips) = spec.cluster_ips.as_ref().filter(|ips| ips.iter().all(|ip| ip != "None"))
    {
        // Text alone tells the family; whether it is an address is for those to say who use it.
        spec.ip_families = Some(ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned()).collect());
    }
    for port in spec.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(default_protocol);
    }
    if spec.session_affinity.get_or_insert_with(|| "None".to_owned()) == "ClientIP" {
        let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        config.client_ip.get_or_insert_with(ClientIpConfig::default).timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    if service_type != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if matches!(service_type.as_str(), "NodePort" | "LoadBalancer") {
        spec.external_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
}

fn fill_port(port: &mut EndpointPort) {
    port.name.get_or_insert_default();
    port.protocol.get_or_insert_with(default_protocol);
}

fn default_protocol() -> String {
    "TCP".to_owned()
}
