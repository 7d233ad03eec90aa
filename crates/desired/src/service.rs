//! What a Service says, in a compact form.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{Family, Protocol};

use crate::address;
use crate::drain_timeout;
use crate::endpoints::Reach;
use crate::name::{Name, Names, ServiceName};
use crate::object;
use crate::problem::{Problem, Problems, quoted};
use crate::scheduling::Scheduling;

/// The API's default and the limits of `timeoutSeconds`.
const AFFINITY_SECONDS: NonZeroU32 = NonZeroU32::new(10_800).unwrap();
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// A Service that this node serves, reduced to what its desired state follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Seconds since 1970. The older of two Services that claim the same address and port has it.
    pub(crate) created: i64,
    /// Whether the cluster's names are resolved through it.
    pub(crate) dns: bool,
    /// At most one address per family.
    pub(crate) cluster_ips: Box<[IpAddr]>,
    pub(crate) ports: Box<[ServicePort]>,
    /// Seconds for which a client stays with its endpoint.
    pub(crate) affinity: Option<NonZeroU32>,
    /// From where callers of the ClusterIP are served.
    pub(crate) internal: Reach,
    /// From where callers of all other frontends are served.
    pub(crate) external: Reach,
    /// What most Services do not have.
    pub(crate) externals: Option<Box<Externals>>,
    /// What most Services leave to the defaults.
    pub(crate) scheduling: Option<Box<Scheduling>>,
    /// How long connections to endpoints that leave are kept; `None` for the operator's choice.
    pub(crate) drain_timeout: Option<Duration>,
}

/// Addresses of a Service outside of the cluster's own networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Externals {
    /// `spec.externalIPs`.
    pub(crate) ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress`, those that the load balancer hands packets on to unchanged.
    pub(crate) load_balancer: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`; `None` when there are none.
    pub(crate) ranges: Option<Box<[IpNetwork]>>,
    /// `spec.healthCheckNodePort`, where it is asked for.
    pub(crate) health_check: Option<NonZeroU16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: Name,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<NonZeroU16>,
}

impl Service {
    /// Reads `object`; `None` when nothing of it is for this proxy to serve, which is a problem only if problems come with it.
    pub(crate) fn parse(
        name: &ServiceName,
        object: &object::Service,
        proxy_name: Option<&str>,
        names: &mut Names,
    ) -> (Option<Self>, Box<[Problem]>) {
        let mut problems = Problems::of("Service", name);
        let service = Self::parse_into(object, proxy_name, names, &mut problems);
        (service, problems.finish())
    }

    fn parse_into(object: &object::Service, proxy_name: Option<&str>, names: &mut Names, problems: &mut Problems) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let label = |key| object.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let without_address = matches!(cluster_ip, "" | "None") || spec.type_.as_deref() == Some("ExternalName");
        if without_address || label(object::label::PROXY_NAME) != proxy_name {
            return None;
        }
        let cluster_ips = cluster_ips(spec, cluster_ip, problems);
        if cluster_ips.is_empty() {
            return None;
        }
        let ports = ports(spec, names, problems);
        let affinity = affinity(spec, problems);
        let has_datagrams = ports.iter().any(|port| port.protocol == Protocol::Udp);
        Some(Self {
            scheduling: Scheduling::parse(object, has_datagrams, affinity.is_some(), problems),
            // An object that does not say when it was made has no claim over one that does.
            created: object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            dns: matches!(label(object::label::APP), Some("kube-dns" | "coredns")),
            cluster_ips,
            ports,
            affinity,
            internal: reach(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", problems),
            external: external_reach(spec, problems),
            externals: externals(object, spec, problems),
            drain_timeout: drain_timeout::parse(object, problems),
        })
    }

    pub(crate) fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// The addresses outside of the cluster's own networks that it claims, some perhaps twice.
    pub(crate) fn claims(&self) -> impl Iterator<Item = IpAddr> {
        self.externals.iter().flat_map(|externals| externals.ips.iter().chain(&externals.load_balancer)).copied()
    }

    /// Its node ports.
    pub(crate) fn node_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.ports.iter().filter_map(|port| Some((port.protocol, port.node_port?.get())))
    }

    /// Whether what it wants depends on the addresses this node has.
    pub(crate) fn depends_on_addresses(&self) -> bool {
        self.externals.is_some() || self.ports.iter().any(|port| port.node_port.is_some())
    }
}

/// `spec.ipFamilies` says which family each of `spec.clusterIPs` is of; where it is silent, `spec.clusterIP` speaks for itself.
fn cluster_ips(spec: &object::ServiceSpec, first: &str, problems: &mut Problems) -> Box<[IpAddr]> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let texts = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    let mut add = |field: String, text: &str, family: Option<&str>| match cluster_ip(text, family) {
        Err(problem) => problems.add(field, problem),
        Ok(ip) if found.iter().any(|other| Family::of(*other) == Family::of(ip)) => {
            problems.add(field, format!("is {ip}, a second address of its family; a Service has one per family"));
        }
        Ok(ip) => found.push(ip),
    };
    if families.is_empty() {
        add("spec.clusterIP".into(), first, None);
    }
    for (index, family) in families.iter().enumerate() {
        match texts.get(index).map(String::as_str) {
            Some(text) => add(format!("spec.clusterIPs[{index}]"), text, Some(family)),
            None if index == 0 => add("spec.clusterIP".into(), first, Some(family)),
            None => {}
        }
    }
    found.into()
}

/// The address `text` stands for, or what is wrong with it and what can be done.
fn service_address(text: &str, remedy: &str) -> Result<IpAddr, String> {
    let ip =
        address::parse(text).ok_or_else(|| format!("is {}, which is no IP address, and is not served; {remedy}", quoted(text)))?;
    match address::unusable(ip) {
        Some(kind) => Err(format!("is {ip}, {kind} address, and is not served; {remedy}")),
        None => Ok(ip),
    }
}

fn cluster_ip(text: &str, family: Option<&str>) -> Result<IpAddr, String> {
    let ip = service_address(text, "recreate the Service")?;
    match family {
        Some(name) if address::family(name) != Some(Family::of(ip)) => {
            Err(format!("is {ip}, which is not of the family {} in spec.ipFamilies, and is not served", quoted(name)))
        }
        _ => Ok(ip),
    }
}

fn ports(spec: &object::ServiceSpec, names: &mut Names, problems: &mut Problems) -> Box<[ServicePort]> {
    let objects = spec.ports.as_deref().unwrap_or_default();
    let mut ports = Vec::with_capacity(objects.len());
    let mut taken = BTreeSet::new();
    for (index, object) in objects.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(protocol) = protocol(object.protocol.as_deref(), || field("protocol"), problems) else { continue };
        let Some(port) = u16::try_from(object.port).ok().filter(|port| *port != 0) else {
            problems
                .add(field("port"), format!("is {}; a port is a number from 1 to 65535, and this one is not served", object.port));
            continue;
        };
        if !taken.insert((protocol, port)) {
            problems.add(field("port"), format!("is {port}/{protocol} again; the first of them is served, remove the other"));
            continue;
        }
        let node_port = match object.node_port {
            None | Some(0) => None,
            Some(number) => {
                let parsed = u16::try_from(number).ok().and_then(NonZeroU16::new);
                if parsed.is_none() {
                    problems.add(
                        field("nodePort"),
                        format!("is {number}; a node port is a number from 1 to 65535, and the port is served without one"),
                    );
                }
                parsed
            }
        };
        ports.push(ServicePort { name: names.share(object.name.as_deref().unwrap_or_default()), protocol, port, node_port });
    }
    ports.into()
}

/// The protocol `name` names; the API's default is TCP.
pub(crate) fn protocol(name: Option<&str>, field: impl FnOnce() -> String, problems: &mut Problems) -> Option<Protocol> {
    let Some(name) = name else { return Some(Protocol::Tcp) };
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        problems.add(field(), format!("is {}; the protocols are TCP, UDP and SCTP, and this port is not served", quoted(name)));
    }
    protocol
}

fn affinity(spec: &object::ServiceSpec, problems: &mut Problems) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.add("spec.sessionAffinity", format!("is {}; it can be None or ClientIP, and None is served", quoted(other)));
            return None;
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else { return Some(AFFINITY_SECONDS) };
    let valid = u32::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_AFFINITY_SECONDS).and_then(NonZeroU32::new);
    if valid.is_none() {
        problems.add(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("is {seconds}; it can be 1 to {MAX_AFFINITY_SECONDS}, and the default of {AFFINITY_SECONDS} is served"),
        );
    }
    valid.or(Some(AFFINITY_SECONDS))
}

fn reach(policy: Option<&str>, field: &str, problems: &mut Problems) -> Reach {
    match policy {
        None | Some("" | "Cluster") => Reach::Cluster,
        Some("Local") => Reach::Node,
        Some(other) => {
            problems.add(field, format!("is {}; it can be Cluster or Local, and Cluster is served", quoted(other)));
            Reach::Cluster
        }
    }
}

/// `spec.externalTrafficPolicy` counts for Services that can be called from outside at all.
fn external_reach(spec: &object::ServiceSpec, problems: &mut Problems) -> Reach {
    let external = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        _ => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
    };
    if external { reach(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", problems) } else { Reach::Cluster }
}

/// These annotations leave the load balancer's addresses to the network: the second is kube-router's.
const SKIP_LOAD_BALANCER: [&str; 2] = ["kube-ipvs.io/skip-load-balancer-ips", "kube-router.io/service.skiplbips"];

fn externals(object: &object::Service, spec: &object::ServiceSpec, problems: &mut Problems) -> Option<Box<Externals>> {
    let annotated = |key: &&str| object.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(*key));
    let local = spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let externals = Externals {
        ips: external_ips(spec, problems),
        load_balancer: if SKIP_LOAD_BALANCER.iter().any(annotated) { Box::default() } else { ingress(object, problems) },
        ranges: ranges(spec, problems),
        health_check: spec.health_check_node_port.filter(|port| local && *port != 0).and_then(|port| {
            let port_number = u16::try_from(port).ok().and_then(NonZeroU16::new);
            if port_number.is_none() {
                problems.add(
                    "spec.healthCheckNodePort",
                    format!("is {port}; a port is a number from 1 to 65535, and no health check is served"),
                );
            }
            port_number
        }),
    };
    (externals != Externals::default()).then(|| Box::new(externals))
}

fn external_ips(spec: &object::ServiceSpec, problems: &mut Problems) -> Box<[IpAddr]> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let texts = texts.iter().enumerate().filter(|(_, text)| !text.trim().is_empty());
    let texts = texts.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.as_str()));
    addresses(texts, "name one that clients can call", problems)
}

fn ingress(object: &object::Service, problems: &mut Problems) -> Box<[IpAddr]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    for (index, entry) in ingress.iter().enumerate() {
        if let Some(mode) = entry.ip_mode.as_deref().filter(|mode| !matches!(*mode, "" | "VIP" | "Proxy")) {
            let said = quoted(mode);
            problems.add(
                format!("status.loadBalancer.ingress[{index}].ipMode"),
                format!("is {said}; it can be VIP or Proxy, and the address is left to the load balancer, as with Proxy"),
            );
        }
    }
    // A load balancer of mode Proxy ends connections itself: callers inside the cluster must go through it (KEP-1860).
    let handed_on = ingress.iter().enumerate().filter(|(_, entry)| matches!(entry.ip_mode.as_deref(), None | Some("" | "VIP")));
    let texts = handed_on.filter_map(|(index, entry)| Some((index, entry.ip.as_deref()?))).filter(|(_, text)| !text.is_empty());
    let texts = texts.map(|(index, text)| (format!("status.loadBalancer.ingress[{index}].ip"), text));
    addresses(texts, "look to the controller that set it", problems)
}

fn addresses<'a>(texts: impl Iterator<Item = (String, &'a str)>, remedy: &str, problems: &mut Problems) -> Box<[IpAddr]> {
    let mut found = Vec::new();
    for (field, text) in texts {
        match service_address(text, remedy) {
            Ok(ip) if !found.contains(&ip) => found.push(ip),
            Ok(_) => {}
            Err(problem) => problems.add(field, problem),
        }
    }
    found.into()
}

/// The networks that may call the load balancer's addresses. A range that cannot be read is left out; when none is left, nobody may.
fn ranges(spec: &object::ServiceSpec, problems: &mut Problems) -> Option<Box<[IpNetwork]>> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut ranges = Vec::new();
    let mut any = false;
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        any = true;
        match address::parse_network(text.trim()) {
            Some(range) => ranges.push(range),
            None => problems.add(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!("is {}, which is no network such as 192.0.2.0/24, and lets nobody in", quoted(text)),
            ),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    any.then(|| ranges.into())
}
