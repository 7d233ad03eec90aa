//! What is answered on the control socket. The names of fields are part of the interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use model::{
    Family, Flags, ForwardingMethod, Protocol, RealServer, RealServerKey, Scheduler, VirtualServer, VirtualServerConfig,
    VirtualServerKey,
};
use serde::{Deserialize, Serialize};

/// What makes a virtual server itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Key {
    Address {
        /// `TCP`, `UDP` or `SCTP`.
        protocol: String,
        address: IpAddr,
        port: u16,
    },
    #[serde(rename_all = "camelCase")]
    Mark {
        /// `IPv4` or `IPv6`.
        family: String,
        firewall_mark: NonZeroU32,
    },
}

/// All virtual servers that are desired of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DesiredTable {
    /// The version of the agent.
    pub(crate) agent: String,
    /// The node that it serves, as the cluster calls it.
    pub(crate) node: String,
    pub(crate) stage: Stage,
    pub(crate) virtual_servers: Vec<DesiredVirtualServer>,
}

/// How much an agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Stage {
    /// Not everything has been listed: what is not desired yet may be soon.
    Starting,
    /// The same, and until then what was saved is served.
    OnSavedState,
    /// All there is.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DesiredVirtualServer {
    pub(crate) key: Key,
    /// The address, protocol and port that clients call, where that is not the key: behind a firewall mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) frontend: Option<Key>,
    /// `namespace/name`.
    pub(crate) service: String,
    /// The name of the Service's port; empty where it has none.
    pub(crate) port: String,
    pub(crate) scheduler: String,
    /// The kernel's numbers.
    pub(crate) flags: u32,
    pub(crate) persistence_seconds: Option<NonZeroU32>,
    /// In bits.
    pub(crate) granularity: u8,
    pub(crate) real_servers: Vec<DesiredRealServer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DesiredRealServer {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    /// The kernel's number.
    pub(crate) forwarding_method: u32,
}

/// The real servers that are leaving.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drains {
    pub(crate) drains: Vec<Drain>,
}

/// A real server that is leaving: it has weight 0 until its connections end or its time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drain {
    pub(crate) virtual_server: Key,
    pub(crate) real_server: SocketAddr,
    /// How long it may stay, at most.
    pub(crate) milliseconds_left: u64,
    /// Whether its virtual server leaves as a whole.
    pub(crate) whole: bool,
}

/// The endpoints of Services, by `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) services: BTreeMap<String, Vec<Endpoint>>,
}

/// An endpoint, whatever its conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    /// The pod, which is in the namespace of its Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
}

impl Drains {
    /// Who is leaving, and how long it may stay at most; but for those that the model has no words for.
    pub(crate) fn parse(&self) -> impl Iterator<Item = ((VirtualServerKey, RealServerKey), Duration)> {
        self.drains.iter().filter_map(|drain| {
            let real = RealServerKey::new(drain.real_server.ip(), drain.real_server.port());
            Some(((drain.virtual_server.parse()?, real), Duration::from_millis(drain.milliseconds_left)))
        })
    }
}

impl From<VirtualServerKey> for Key {
    fn from(key: VirtualServerKey) -> Self {
        match key {
            VirtualServerKey::Address { address, port, protocol } => {
                Self::Address { protocol: protocol.name().to_owned(), address, port }
            }
            VirtualServerKey::Mark { family, mark } => Self::Mark { family: family.to_string(), firewall_mark: mark },
        }
    }
}

impl Key {
    /// The key; `None` for one that the model has no words for.
    pub(crate) fn parse(&self) -> Option<VirtualServerKey> {
        match self {
            Self::Address { protocol, address, port } => {
                let protocol = Protocol::ALL.into_iter().find(|known| known.name() == protocol)?;
                Some(VirtualServerKey::address(*address, protocol, *port))
            }
            Self::Mark { family, firewall_mark } => {
                let family = Family::ALL.into_iter().find(|known| known.to_string() == *family)?;
                Some(VirtualServerKey::Mark { family, mark: *firewall_mark })
            }
        }
    }
}

impl DesiredVirtualServer {
    /// The document of `server`, which serves the frontend `frontend` for the port `port` of `service`.
    pub(crate) fn new(
        key: VirtualServerKey,
        frontend: VirtualServerKey,
        service: &str,
        port: &str,
        server: &VirtualServer,
    ) -> Self {
        let VirtualServerConfig { scheduler, flags, persistence, granularity } = server.config;
        let real_servers = server.real_servers.iter().map(|(real, server)| DesiredRealServer {
            address: SocketAddr::new(real.address, real.port),
            weight: server.weight,
            forwarding_method: server.forwarding.number(),
        });
        Self {
            key: key.into(),
            frontend: (frontend != key).then(|| frontend.into()),
            service: service.to_owned(),
            port: port.to_owned(),
            scheduler: scheduler.as_str().to_owned(),
            flags: flags.bits(),
            persistence_seconds: persistence,
            granularity,
            real_servers: real_servers.collect(),
        }
    }

    /// The virtual server; `None` for one that the model has no words for.
    pub(crate) fn parse(&self) -> Option<VirtualServer> {
        let config = VirtualServerConfig {
            scheduler: Scheduler::new(&self.scheduler).ok()?,
            flags: Flags::from_bits_truncate(self.flags),
            persistence: self.persistence_seconds,
            granularity: self.granularity,
        };
        let real_servers = self.real_servers.iter().map(|real| {
            let forwarding = ForwardingMethod::from_number(real.forwarding_method)?;
            let server = RealServer { forwarding, weight: real.weight, ..RealServer::default() };
            Some((RealServerKey::new(real.address.ip(), real.address.port()), server))
        });
        Some(VirtualServer { config, real_servers: real_servers.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_desired_survives_the_way_through_json() {
        let web = VirtualServerKey::address("fd00:96::10".parse().unwrap(), Protocol::Sctp, 80);
        let mark = VirtualServerKey::Mark { family: Family::V6, mark: NonZeroU32::new(7).unwrap() };
        let mut server = VirtualServer::new(Scheduler::new("mh").unwrap(), Family::V6);
        server.config.flags = Flags::SCHED_1.with(Flags::ONE_PACKET);
        server.config.persistence = NonZeroU32::new(10_800);
        let real = RealServer { weight: 5, ..RealServer::default() };
        server.real_servers.insert(RealServerKey::new("fd00:244::2".parse().unwrap(), 8080), real);
        for (key, frontend) in [(web, None), (mark, Some(web))] {
            let document = DesiredVirtualServer::new(key, web, "shop/web", "http", &server);
            let text = serde_json::to_string(&document).unwrap();
            let read: DesiredVirtualServer = serde_json::from_str(&text).unwrap();
            assert_eq!(read, document, "{text}");
            assert_eq!((read.key.parse(), read.parse()), (Some(key), Some(server.clone())));
            assert_eq!(read.frontend.and_then(|frontend| frontend.parse()), frontend);
        }
    }

    #[test]
    fn what_a_later_agent_says_is_passed_over_and_what_has_no_words_is_nothing() {
        let later = r#"{"drains": [], "reasons": {"a": 1}}"#;
        assert_eq!(serde_json::from_str::<Drains>(later).unwrap(), Drains::default());
        let key: Key = serde_json::from_str(r#"{"protocol": "DCCP", "address": "10.96.0.10", "port": 80}"#).unwrap();
        assert_eq!(key.parse(), None);
        assert!(serde_json::from_str::<Key>(r#"{"family": "IPv4", "firewallMark": 0}"#).is_err(), "no mark is 0");
    }
}
