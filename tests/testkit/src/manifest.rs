//! Manifests as short expressions. Each displays itself as one YAML document, so several are joined by writing them one after the other.
//!
//! ```
//! use testkit::Protocol;
//! use testkit::manifest::{EndpointSlice, Service};
//!
//! let service = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080).node_port(30080);
//! let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).endpoint("10.244.1.2", "node");
//! assert!(format!("{service}{slice}").contains("nodePort: 30080"));
//! ```

use std::fmt;
use std::net::IpAddr;

use crate::{Family, Pod, Protocol};

/// A Service in the namespace `default`: ClusterIP, or NodePort once a node port is given, or LoadBalancer once it has the address of one.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    annotations: Vec<(String, String)>,
    cluster_ips: Vec<String>,
    ports: Vec<ServicePort>,
    load_balancer_ips: Vec<String>,
    created: Option<String>,
    /// Lines of the spec for what has no method here.
    spec: Vec<String>,
}

#[derive(Clone, Debug)]
struct ServicePort {
    name: String,
    protocol: Protocol,
    port: u16,
    target_port: TargetPort,
    node_port: Option<u16>,
}

/// The port of a pod that a Service's port leads to: a number, or the name of a container's port.
#[derive(Clone, Debug)]
pub struct TargetPort(String);

impl From<u16> for TargetPort {
    fn from(number: u16) -> Self {
        Self(number.to_string())
    }
}

impl From<&str> for TargetPort {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for TargetPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Service {
    /// A Service without addresses and ports yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            annotations: Vec::new(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            load_balancer_ips: Vec::new(),
            created: None,
            spec: Vec::new(),
        }
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a cluster IP; the first one's family is the primary one.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(address.to_owned());
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16, target: impl Into<TargetPort>) -> Self {
        self.ports.push(ServicePort { name: name.to_owned(), protocol, port, target_port: target.into(), node_port: None });
        self
    }

    /// Gives the port that was added last a node port.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(number);
        }
        self
    }

    /// Adds an address of a load balancer, in the status.
    #[must_use]
    pub fn load_balancer_ip(mut self, address: &str) -> Self {
        self.load_balancer_ips.push(address.to_owned());
        self
    }

    /// Says when it was made, such as `2026-01-01T00:00:00Z`.
    #[must_use]
    pub fn created(mut self, time: &str) -> Self {
        self.created = Some(time.to_owned());
        self
    }

    /// Adds a line to the spec, such as `sessionAffinity: ClientIP`.
    #[must_use]
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.to_owned());
        self
    }
}

impl fmt::Display for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if !self.load_balancer_ips.is_empty() {
            "LoadBalancer"
        } else if self.ports.iter().any(|port| port.node_port.is_some()) {
            "NodePort"
        } else {
            "ClusterIP"
        };
        let families: Vec<_> = self.cluster_ips.iter().map(|address| if address.contains(':') { "IPv6" } else { "IPv4" }).collect();
        writeln!(out, "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: default", self.name)?;
        if let Some(time) = &self.created {
            writeln!(out, "  creationTimestamp: \"{time}\"")?;
        }
        if !self.annotations.is_empty() {
            writeln!(out, "  annotations:")?;
            self.annotations.iter().try_for_each(|(key, value)| writeln!(out, "    {key}: \"{value}\""))?;
        }
        writeln!(out, "spec:\n  type: {kind}")?;
        if let Some(first) = self.cluster_ips.first() {
            writeln!(out, "  clusterIP: \"{first}\"\n  clusterIPs:")?;
            self.cluster_ips.iter().try_for_each(|address| writeln!(out, "  - \"{address}\""))?;
            writeln!(out, "  ipFamilies: [{}]", families.join(", "))?;
            writeln!(out, "  ipFamilyPolicy: {}", if families.len() > 1 { "RequireDualStack" } else { "SingleStack" })?;
        }
        self.spec.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        writeln!(out, "  ports:")?;
        for ServicePort { name, protocol, port, target_port, node_port } in &self.ports {
            writeln!(
                out,
                "  - name: {name}\n    protocol: {}\n    port: {port}\n    targetPort: {target_port}",
                protocol.in_manifest()
            )?;
            if let Some(number) = node_port {
                writeln!(out, "    nodePort: {number}")?;
            }
        }
        if !self.load_balancer_ips.is_empty() {
            writeln!(out, "status:\n  loadBalancer:\n    ingress:")?;
        }
        self.load_balancer_ips.iter().try_for_each(|address| writeln!(out, "    - ip: \"{address}\""))
    }
}

/// A slice of a Service's endpoints in one family.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    service: String,
    suffix: String,
    family: Family,
    ports: Vec<(String, Protocol, u16)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    address: String,
    node: String,
    pod: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl EndpointSlice {
    /// A slice of IPv4 endpoints, without any yet.
    #[must_use]
    pub fn ipv4(service: &str) -> Self {
        Self::of(service, Family::V4)
    }

    /// A slice of IPv6 endpoints, without any yet.
    #[must_use]
    pub fn ipv6(service: &str) -> Self {
        Self::of(service, Family::V6)
    }

    /// A slice of endpoints in a family, without any yet.
    #[must_use]
    pub fn of(service: &str, family: Family) -> Self {
        let suffix = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        Self { service: service.to_owned(), suffix: suffix.to_owned(), family, ports: Vec::new(), endpoints: Vec::new() }
    }

    /// Sets what follows the Service's name in the slice's own name: for several slices of one Service and family.
    #[must_use]
    pub fn suffix(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// Adds a port under the name that the Service's port has.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16) -> Self {
        self.ports.push((name.to_owned(), protocol, number));
        self
    }

    /// Adds a ready endpoint.
    #[must_use]
    pub fn endpoint(mut self, address: &str, node: &str) -> Self {
        self.endpoints.push(Endpoint {
            address: address.to_owned(),
            node: node.to_owned(),
            pod: None,
            ready: true,
            serving: true,
            terminating: false,
        });
        self
    }

    /// Adds a pod as a ready endpoint.
    #[must_use]
    pub fn pod(self, pod: &Pod) -> Self {
        let address = pod.address(self.family).to_string();
        let mut slice = self.endpoint(&address, pod.on().name());
        if let Some(endpoint) = slice.endpoints.last_mut() {
            endpoint.pod = Some(pod.name().to_owned());
        }
        slice
    }

    /// Makes the endpoint that was added last not ready and not serving.
    #[must_use]
    pub fn unready(self) -> Self {
        self.conditions(false, false, false)
    }

    /// Makes the endpoint that was added last terminating, while it still serves.
    #[must_use]
    pub fn terminating(self) -> Self {
        self.conditions(false, true, true)
    }

    /// Sets the conditions of the endpoint that was added last.
    #[must_use]
    pub fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
        }
        self
    }
}

impl fmt::Display for EndpointSlice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, suffix, family, ports, endpoints } = self;
        let address_type = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        writeln!(
            out,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{suffix}\n  namespace: default"
        )?;
        writeln!(
            out,
            "  labels:\n    kubernetes.io/service-name: {service}\naddressType: {address_type}\nports:{}",
            empty_list(ports)
        )?;
        for (name, protocol, number) in ports {
            writeln!(out, "- {{name: {name}, protocol: {}, port: {number}}}", protocol.in_manifest())?;
        }
        writeln!(out, "endpoints:{}", empty_list(endpoints))?;
        for Endpoint { address, node, pod, ready, serving, terminating } in endpoints {
            writeln!(out, "- addresses: [\"{address}\"]\n  nodeName: {node}")?;
            if let Some(pod) = pod {
                writeln!(out, "  targetRef: {{kind: Pod, name: {pod}, namespace: default}}")?;
            }
            writeln!(out, "  conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}")?;
        }
        Ok(())
    }
}

/// A Node with its addresses and pod networks.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    internal_ips: Vec<IpAddr>,
    ready: Option<bool>,
    labels: Vec<(String, String)>,
}

impl Node {
    /// A Node without addresses yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), internal_ips: Vec::new(), ready: None, labels: Vec::new() }
    }

    /// Adds an InternalIP.
    #[must_use]
    pub fn internal_ip(mut self, address: impl Into<IpAddr>) -> Self {
        self.internal_ips.push(address.into());
        self
    }

    /// Says whether it is ready.
    #[must_use]
    pub fn ready(mut self, ready: bool) -> Self {
        self.ready = Some(ready);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }
}

impl fmt::Display for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {0}\n  labels:\n    kubernetes.io/hostname: {0}",
            self.name
        )?;
        self.labels.iter().try_for_each(|(key, value)| writeln!(out, "    {key}: \"{value}\""))?;
        writeln!(out, "status:\n  addresses:\n  - {{type: Hostname, address: {}}}", self.name)?;
        self.internal_ips.iter().try_for_each(|address| writeln!(out, "  - {{type: InternalIP, address: \"{address}\"}}"))?;
        match self.ready {
            Some(ready) => {
                writeln!(out, "  conditions:\n  - {{type: Ready, status: \"{}\"}}", if ready { "True" } else { "Unknown" })
            }
            None => Ok(()),
        }
    }
}

/// YAML has no block form of an empty list, and a key without value is null.
fn empty_list<T>(list: &[T]) -> &'static str {
    if list.is_empty() { " []" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_service_names_both_families_in_order() {
        let text = Service::new("web")
            .cluster_ip("fd00:96::10")
            .cluster_ip("10.96.0.10")
            .port("dns", Protocol::Udp, 53, "dns")
            .to_string();
        assert_eq!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: default\nspec:\n  type: ClusterIP\n  clusterIP: \"fd00:96::10\"\n  \
             clusterIPs:\n  - \"fd00:96::10\"\n  - \"10.96.0.10\"\n  ipFamilies: [IPv6, IPv4]\n  ipFamilyPolicy: RequireDualStack\n  ports:\n  \
             - name: dns\n    protocol: UDP\n    port: 53\n    targetPort: dns\n"
        );
    }

    #[test]
    fn a_slice_without_endpoints_has_an_empty_list() {
        let text = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).to_string();
        assert!(text.ends_with("ports:\n- {name: http, protocol: TCP, port: 8080}\nendpoints: []\n"), "{text}");
    }

    #[test]
    fn conditions_belong_to_the_endpoint_added_last() {
        let text =
            EndpointSlice::ipv4("web").endpoint("10.244.1.2", "node").endpoint("10.244.1.3", "node").terminating().to_string();
        let conditions: Vec<_> = text.lines().filter(|line| line.contains("conditions")).collect();
        assert_eq!(
            conditions,
            [
                "  conditions: {ready: true, serving: true, terminating: false}",
                "  conditions: {ready: false, serving: true, terminating: true}"
            ]
        );
    }
}
