//! Which rows to show.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use model::{RealServerKey, VirtualServerKey};

use super::view::VirtualRow;

/// What a row must be like. Where nothing is said, everything does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) key: Option<VirtualServerKey>,
    pub(crate) namespace: Option<String>,
    pub(crate) service: Option<ServicePattern>,
    pub(crate) vip: Option<IpAddr>,
    pub(crate) endpoint: Option<EndpointPattern>,
    pub(crate) no_servers: bool,
    pub(crate) draining: bool,
    pub(crate) drifted: bool,
}

/// A Service, of one namespace or any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePattern {
    namespace: Option<String>,
    name: String,
}

/// A real server, of one port or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndpointPattern {
    address: IpAddr,
    port: Option<u16>,
}

impl Filter {
    /// Whether only an agent can tell.
    pub(crate) const fn needs_agent(&self) -> bool {
        self.namespace.is_some() || self.service.is_some() || self.drifted
    }

    /// Whether to show `row`.
    pub(crate) fn keeps(&self, row: &VirtualRow) -> bool {
        self.keeps_frontend(row)
            && self.endpoint.is_none_or(|pattern| row.real_servers.iter().any(|real| pattern.matches(&real.key)))
            && (!self.no_servers || row.has_no_servers())
            && (!self.draining || row.drains())
            && (!self.drifted || row.has_drifted())
    }

    /// The same, whatever its real servers are.
    pub(crate) fn keeps_frontend(&self, row: &VirtualRow) -> bool {
        let service = row.service();
        let is_at = |vip| matches!(row.frontend(), VirtualServerKey::Address { address, .. } if address == vip);
        self.key.is_none_or(|key| key == row.key)
            && self.namespace.as_ref().is_none_or(|namespace| service.is_some_and(|service| service.namespace() == namespace))
            && self.service.as_ref().is_none_or(|pattern| service.is_some_and(|service| pattern.matches(&service.service)))
            && self.vip.is_none_or(is_at)
    }
}

impl ServicePattern {
    fn matches(&self, service: &str) -> bool {
        let Some((namespace, name)) = service.split_once('/') else { return false };
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
}

impl FromStr for ServicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err("expected NAME or NAMESPACE/NAME, such as web or shop/web".to_owned());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl EndpointPattern {
    pub(crate) fn matches(&self, real: &RealServerKey) -> bool {
        real.address == self.address && self.port.is_none_or(|port| port == real.port)
    }
}

impl FromStr for EndpointPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let end: Result<SocketAddr, _> = text.parse();
        end.map(|end| Self { address: end.ip(), port: Some(end.port()) })
            .map_err(|_| "expected ADDRESS or ADDRESS:PORT, such as 10.244.1.7, 10.244.1.7:8080 or [fd00:244::7]:8080".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{kernel_table, told};

    fn kept(filter: &Filter) -> Vec<String> {
        let view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        view.virtual_servers.iter().filter(|row| filter.keeps(row)).map(|row| row.key.to_string()).collect()
    }

    #[test]
    fn rows_are_kept_that_are_all_that_is_asked_for() {
        let everything = kept(&Filter::default());
        assert_eq!(everything.len(), kernel_table().virtual_servers.len());
        let web = ["TCP 10.96.0.10:80", "FWM 16384"];
        assert_eq!(kept(&Filter { service: Some("web".parse().unwrap()), ..Filter::default() }), web);
        assert_eq!(kept(&Filter { service: Some("shop/web".parse().unwrap()), ..Filter::default() }), web);
        assert!(kept(&Filter { service: Some("other/web".parse().unwrap()), ..Filter::default() }).is_empty());
        assert_eq!(kept(&Filter { namespace: Some("shop".to_owned()), ..Filter::default() }), web);
        // A mark is for an address.
        assert_eq!(kept(&Filter { vip: Some("203.0.113.7".parse().unwrap()), ..Filter::default() }), ["FWM 16384"]);
        assert_eq!(kept(&Filter { draining: true, ..Filter::default() }), ["TCP 10.96.0.10:80"]);
        assert_eq!(kept(&Filter { endpoint: Some("10.244.1.3".parse().unwrap()), ..Filter::default() }), ["TCP 10.96.0.10:80"]);
        assert!(kept(&Filter { endpoint: Some("10.244.1.3:1".parse().unwrap()), ..Filter::default() }).is_empty());
        let empty = kept(&Filter { no_servers: true, ..Filter::default() });
        assert!(empty.iter().all(|key| !key.contains("10.96.0.10")) && !empty.is_empty(), "{empty:?}");
        assert!(kept(&Filter { drifted: true, ..Filter::default() }).is_empty());
    }

    #[test]
    fn patterns_are_read_or_say_what_they_are_like() {
        for wrong in ["", "/", "a/", "/a", "a/b/c"] {
            assert!(wrong.parse::<ServicePattern>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "a", "10.0.0.1:", "10.0.0.1:70000", "fd00::1:80:"] {
            assert!(wrong.parse::<EndpointPattern>().is_err(), "{wrong:?}");
        }
    }
}
