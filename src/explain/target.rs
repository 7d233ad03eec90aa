//! What somebody wants explained, and which frontends that is.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use desired::{Fragment, Frontend, Index, Ledger, ServiceName};
use model::{Protocol, State, VirtualServerKey};

/// What was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Address { address: IpAddr, port: Option<u16> },
    Service { name: ServiceName, port: Option<String> },
}

/// The frontends that it is about.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) keys: Vec<VirtualServerKey>,
    /// What there is to say beside them.
    pub(super) remarks: Vec<String>,
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(called) = text.parse::<SocketAddr>() {
            return Ok(Self::Address { address: called.ip(), port: Some(called.port()) });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address { address, port: None });
        }
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => (service, Some(port.to_owned())),
            None => (text, None),
        };
        let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
        let is_name = |text: &str| {
            let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !text.is_empty() && text.len() <= 63 && text.bytes().all(valid)
        };
        // `10.96.0.300` is a slip of the pen, and no name: those of Services have no dots.
        if !is_name(namespace) || !is_name(name) {
            return Err("expected ADDRESS, ADDRESS:PORT such as 10.96.0.10:80 or [fd00:96::10]:80, or a Service such as shop/web or shop/web:http".to_owned());
        }
        Ok(Self::Service { name: ServiceName::new(namespace, name), port })
    }

    /// The frontends there are, in the kernel or by objects.
    pub(super) fn resolve(&self, index: &Index, ledger: &Ledger, observed: &State) -> Found {
        match self {
            Self::Address { address, port } => of_address(*address, *port, index, ledger, observed),
            Self::Service { name, port } => of_service(name, port.as_deref(), ledger),
        }
    }
}

/// The Services that an explanation was about.
pub(super) fn services_of(keys: &[VirtualServerKey], target: &Target, ledger: &Ledger) -> BTreeSet<ServiceName> {
    let mut services: BTreeSet<_> = keys.iter().filter_map(|key| ledger.owner(key)).map(|owner| owner.service.clone()).collect();
    if let Target::Service { name, .. } = target {
        services.insert(name.clone());
    }
    services
}

fn of_address(address: IpAddr, port: Option<u16>, index: &Index, ledger: &Ledger, observed: &State) -> Found {
    let is_called = |key: &VirtualServerKey| matches!(key, VirtualServerKey::Address { address: of, port: at, .. } if *of == address && port.is_none_or(|port| port == *at));
    let keys: BTreeSet<_> = ledger.keys().chain(observed.virtual_servers.keys().copied()).filter(is_called).collect();
    let mut found = Found { keys: keys.into_iter().collect(), remarks: Vec::new() };
    for conflict in ledger.conflicts().filter(|conflict| is_called(&conflict.key)) {
        let waiting: Vec<_> = conflict.waiting.iter().map(ToString::to_string).collect();
        found.remarks.push(format!("{} is claimed as well by {}, and {} has it", conflict.key, waiting.join(", "), conflict.owner));
    }
    if found.keys.is_empty() {
        found.remarks.extend(nobodys(address, port, index, ledger));
    }
    found
}

/// Why nothing is served where nothing is.
fn nobodys(address: IpAddr, port: Option<u16>, index: &Index, ledger: &Ledger) -> Vec<String> {
    let called = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let mut remarks = Vec::new();
    let key = |protocol| VirtualServerKey::address(address, protocol, port.unwrap_or_default());
    if Protocol::ALL.into_iter().any(|protocol| ledger.is_taken(&key(protocol))) {
        remarks.push(format!(
            "a Service claims {called} and is not served there, because another machine or a process of this node has it"
        ));
    }
    let mut on_other_ports = BTreeSet::new();
    let mut on_other_addresses = BTreeSet::new();
    for (name, fragment) in ledger.fragments() {
        for key in fragment.frontends().iter().map(Frontend::key) {
            let VirtualServerKey::Address { address: of, port: at, .. } = key else { continue };
            if of == address {
                on_other_ports.insert(format!("{key} ({name})"));
            } else if Some(at) == port && index.facts().interfaces.iter().any(|entry| entry.address == of) {
                on_other_addresses.insert(format!("{key} ({name})"));
            }
        }
    }
    let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
    if !on_other_ports.is_empty() {
        remarks.push(format!(
            "no Service has {called}; the address has {}: new connections to other ports are refused (KUBE-IPVS-INPUT, filter), or answered by the node where it is its own",
            list(&on_other_ports)
        ));
    } else if !on_other_addresses.is_empty() {
        remarks.push(format!(
            "no Service has {called}; node ports of that number are served on {} (see --nodeport-addresses)",
            list(&on_other_addresses)
        ));
    } else if remarks.is_empty() {
        remarks.push(format!("no Service has {called}, and the kernel has no virtual server for it: IPVS leaves it alone"));
    }
    remarks
}

fn of_service(name: &ServiceName, port: Option<&str>, ledger: &Ledger) -> Found {
    let mut found = Found::default();
    let Some(fragment) = ledger.fragment(name) else {
        found.remarks.push(format!(
            "Service {name} is not served here: there is none of that name, or it is headless, an ExternalName, or another proxy's by its label service.kubernetes.io/service-proxy-name"
        ));
        return found;
    };
    let wanted = |frontend: &&Frontend| port.is_none_or(|port| is_port(fragment, frontend, port));
    found.keys = fragment.frontends().iter().filter(wanted).map(Frontend::key).collect();
    for conflict in ledger.conflicts().filter(|conflict| found.keys.contains(&conflict.key)) {
        found.remarks.push(format!("{} is claimed by more than one Service, and {} has it", conflict.key, conflict.owner));
    }
    if found.keys.is_empty() {
        found.remarks.push(match port {
            Some(port) => format!("Service {name} has no port {port}"),
            None => format!("Service {name} has no address that is served here"),
        });
    }
    found
}

/// Whether `frontend` is of the port of that name or number.
fn is_port(fragment: &Fragment, frontend: &Frontend, port: &str) -> bool {
    let key = frontend.key();
    let number = match key {
        VirtualServerKey::Address { port, .. } => Some(port),
        VirtualServerKey::Mark { .. } => None,
    };
    fragment.port_name(&key) == Some(port) || port.parse().is_ok_and(|port: u16| Some(port) == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_or_services() {
        let address = |text: &str, port| Ok(Target::Address { address: text.parse().unwrap(), port });
        assert_eq!(Target::parse("10.96.0.10:80"), address("10.96.0.10", Some(80)));
        assert_eq!(Target::parse("[fd00:96::a]:80"), address("fd00:96::a", Some(80)));
        assert_eq!(Target::parse("fd00:96::a"), address("fd00:96::a", None));
        assert_eq!(Target::parse("[fd00:96::a]"), address("fd00:96::a", None));
        let service = |namespace, name, port: Option<&str>| {
            Ok(Target::Service { name: ServiceName::new(namespace, name), port: port.map(str::to_owned) })
        };
        assert_eq!(Target::parse("shop/web"), service("shop", "web", None));
        assert_eq!(Target::parse("web:http"), service("default", "web", Some("http")));
        for wrong in ["", "10.96.0.300:80", "10.96.0.10:99999", "a/b/c", "Web", "shop/"] {
            assert!(Target::parse(wrong).unwrap_err().contains("shop/web:http"), "{wrong:?}");
        }
    }
}
