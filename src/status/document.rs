//! The table for programs. The names of fields are part of the interface.

use std::net::IpAddr;

use model::{TrafficCounters, TrafficRates};
use serde::Serialize;

use super::view::{Behind, RealRow, View, VirtualRow};
use crate::control::{Key, Stage};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table<'a> {
    version: &'a str,
    connection_table_size: u32,
    /// `null` where no agent answers: then nothing is known of Services, pods and what is desired.
    agent: Option<Agent<'a>>,
    virtual_servers: Vec<VirtualServer<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Agent<'a> {
    version: &'a str,
    node: &'a str,
    stage: Stage,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VirtualServer<'a> {
    #[serde(flatten)]
    key: Key,
    scheduler: &'a str,
    /// The kernel's numbers: 4 for one-packet scheduling, 8, 16 and 32 for the scheduler's own.
    flags: u32,
    /// `null` without persistence.
    persistence_seconds: Option<u32>,
    /// `namespace/name:port`; `null` where no Service is known.
    service: Option<String>,
    /// `service`, `leaving`, `unnamed` (one of ours), `foreign` or `unknown`.
    behind: &'static str,
    /// What clients call, where that is not the key itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    frontend: Option<Key>,
    /// How the kernel is not as it should be; `null` where it is, or nobody knows.
    drift: Option<String>,
    /// Since it was made.
    traffic: Traffic,
    /// A second.
    rates: Traffic,
    real_servers: Vec<RealServer<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RealServer<'a> {
    address: IpAddr,
    port: u16,
    forwarding_method: String,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    active_connections: u32,
    inactive_connections: u32,
    persistence_templates: u32,
    pod: Option<&'a str>,
    node: Option<&'a str>,
    /// `null` where it is not leaving.
    drain_seconds_left: Option<u64>,
    drift: Option<String>,
    traffic: Traffic,
    rates: Traffic,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Traffic {
    connections: u64,
    packets_in: u64,
    packets_out: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl<'a> Table<'a> {
    pub(crate) fn of(view: &'a View) -> Self {
        let View { version, connection_table_size, agent, virtual_servers } = view;
        Self {
            version,
            connection_table_size: *connection_table_size,
            agent: agent.as_ref().map(|agent| Agent { version: &agent.version, node: &agent.node, stage: agent.stage }),
            virtual_servers: virtual_servers.iter().map(VirtualServer::of).collect(),
        }
    }
}

impl<'a> VirtualServer<'a> {
    fn of(row: &'a VirtualRow) -> Self {
        Self {
            key: row.key.into(),
            scheduler: row.config.scheduler.as_str(),
            flags: row.config.flags.bits(),
            persistence_seconds: row.config.persistence.map(Into::into),
            service: row.service().map(ToString::to_string),
            behind: match row.behind {
                Behind::Service(_) => "service",
                Behind::Leaving => "leaving",
                Behind::Unnamed => "unnamed",
                Behind::Foreign => "foreign",
                Behind::Unknown => "unknown",
            },
            frontend: row.service().and_then(|service| service.frontend).map(Into::into),
            drift: row.drift.as_ref().map(ToString::to_string),
            traffic: row.traffic.into(),
            rates: row.rates.into(),
            real_servers: row.real_servers.iter().map(RealServer::of).collect(),
        }
    }
}

impl<'a> RealServer<'a> {
    fn of(row: &'a RealRow) -> Self {
        let RealRow { key, server, connections, traffic, rates, pod, node, draining, drift } = row;
        Self {
            address: key.address,
            port: key.port,
            forwarding_method: server.forwarding.to_string(),
            weight: server.weight,
            upper_threshold: server.upper_threshold,
            lower_threshold: server.lower_threshold,
            active_connections: connections.active,
            inactive_connections: connections.inactive,
            persistence_templates: connections.persistent,
            pod: pod.as_deref(),
            node: node.as_deref(),
            drain_seconds_left: draining.map(|left| left.as_secs()),
            drift: drift.as_ref().map(ToString::to_string),
            traffic: (*traffic).into(),
            rates: (*rates).into(),
        }
    }
}

impl From<TrafficCounters> for Traffic {
    fn from(counters: TrafficCounters) -> Self {
        let TrafficCounters { connections, packets_in, packets_out, bytes_in, bytes_out } = counters;
        Self { connections, packets_in, packets_out, bytes_in, bytes_out }
    }
}

impl From<TrafficRates> for Traffic {
    fn from(rates: TrafficRates) -> Self {
        let TrafficRates { connections, packets_in, packets_out, bytes_in, bytes_out } = rates;
        Self { connections, packets_in, packets_out, bytes_in, bytes_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{SHOP, kernel_table, told};

    #[test]
    fn json_says_the_same() {
        let view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        let value = serde_json::to_value(Table::of(&view)).unwrap();
        let server = |address: &str| {
            let servers = value["virtualServers"].as_array().unwrap();
            servers.iter().find(|server| server["address"] == address).unwrap_or_else(|| panic!("no {address} in {value}"))
        };
        let web = server("10.96.0.10");
        assert_eq!((&web["service"], &web["behind"], &web["port"]), (&SHOP.into(), &"service".into(), &80.into()));
        assert_eq!(web["realServers"][0]["activeConnections"], 3);
        assert_eq!((&web["realServers"][0]["pod"], &web["realServers"][1]["drainSecondsLeft"]), (&"web-a".into(), &852.into()));
        assert_eq!(server("fd00:96::a")["persistenceSeconds"], 10_800);
        assert_eq!(
            (&server("192.0.2.1")["behind"], &server("192.0.2.1")["service"]),
            (&"foreign".into(), &serde_json::Value::Null)
        );
        let mark = value["virtualServers"].as_array().unwrap().iter().find(|server| server["firewallMark"] == 16_384).unwrap();
        assert_eq!(mark["frontend"]["address"], "203.0.113.7");
        assert_eq!(value["agent"]["node"], "node-1");
        assert!(serde_saphyr::to_string(&Table::of(&view)).unwrap().contains("service: shop/web:http"));
    }
}
