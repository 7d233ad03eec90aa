//! The schema of a file of cases. What a case says beyond it becomes a sentence, so that nothing agrees by not being looked at.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{Family, Protocol, Result};

const CASE: &[&str] = &["id", "area", "what", "services", "endpointslices", "node", "config", "pre", "conntrack", "expect", "then"];
const STEP: &[&str] = &[
    "services",
    "endpointslices",
    "delete_services",
    "delete_endpointslices",
    "interfaces",
    "zone",
    "set_connections",
    "graceful_tick",
    "conntrack",
    "expect",
];
const NODE: &[&str] = &["name", "zone", "ips", "interfaces"];
const PRE: &[&str] = &["virtual_servers", "bound_addresses", "ipsets"];
const EXPECT: &[&str] = &[
    "virtual_servers",
    "ipsets",
    "bound_addresses",
    "health_check_node_ports",
    "no_local_endpoints",
    "node_access_drop",
    "conntrack_deleted",
    "iptables",
];
const VIRTUAL_SERVER: &[&str] = &["proto", "addr", "port", "sched", "flags", "persist", "dests"];
const REAL_SERVER: &[&str] = &["addr", "port", "weight", "active_conns", "inactive_conns"];

/// One case.
pub(super) struct Case {
    pub(super) node: NodeFacts,
    pub(super) config: Config,
    pub(super) pre: Pre,
    /// The first is the case itself.
    pub(super) steps: Vec<Step>,
    /// What it says that is not known here.
    pub(super) unknown: Vec<String>,
}

pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) zone: String,
    pub(super) ips: Vec<IpAddr>,
    pub(super) interfaces: Interfaces,
}

pub(super) type Interfaces = BTreeMap<String, Vec<IpAddr>>;

/// What differs from the defaults.
#[derive(Default)]
pub(super) struct Config {
    /// The agent's flags.
    pub(super) flags: Vec<String>,
    pub(super) pod_cidrs: Vec<String>,
    /// The only family, where there is but one.
    pub(super) only: Option<Family>,
    /// Whether `MASQUERADE` is to choose ports at random.
    pub(super) random_fully: bool,
}

/// What the kernel holds before the agent starts.
#[derive(Default)]
pub(super) struct Pre {
    pub(super) virtual_servers: Vec<VirtualServer>,
    pub(super) bound_addresses: Vec<IpAddr>,
    pub(super) sets: BTreeMap<String, Vec<String>>,
}

/// Changes, and what must be so after them.
pub(super) struct Step {
    pub(super) upserts: Vec<Object>,
    pub(super) deletions: Vec<ObjectName>,
    pub(super) interfaces: Option<Interfaces>,
    pub(super) zone: Option<String>,
    pub(super) connections: Vec<Connections>,
    pub(super) flows: Vec<Flow>,
    pub(super) wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
}

/// Kind, namespace, name.
pub(super) type ObjectName = (Kind, String, String);

pub(super) struct Object {
    pub(super) name: ObjectName,
    pub(super) value: Value,
}

/// The connections that a real server is to have.
pub(super) struct Connections {
    pub(super) protocol: Protocol,
    pub(super) vip: IpAddr,
    pub(super) port: u16,
    pub(super) real: (IpAddr, u16),
    pub(super) active: u16,
    pub(super) inactive: u16,
}

/// A flow in the connection table: source and destination of the first packet, and of the answer to it.
pub(super) struct Flow {
    pub(super) id: String,
    pub(super) protocol: Protocol,
    pub(super) original: [(IpAddr, u16); 2],
    pub(super) reply: [(IpAddr, u16); 2],
}

pub(super) struct VirtualServer {
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) scheduler: String,
    /// Bits as in `IP_VS_SVC_F_*`, but for persistence, which has a field of its own.
    pub(super) flags: u32,
    /// Seconds; 0 without.
    pub(super) persistence: u64,
    pub(super) real_servers: Vec<RealServer>,
}

pub(super) struct RealServer {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) weight: u64,
    pub(super) active: u16,
    pub(super) inactive: u16,
}

/// What must be so.
pub(super) struct Wanted {
    pub(super) virtual_servers: Vec<VirtualServer>,
    /// By kube-proxy's names.
    pub(super) sets: BTreeMap<String, Vec<String>>,
    pub(super) bound_addresses: Vec<IpAddr>,
    pub(super) health_checks: Vec<HealthCheck>,
    /// Family, policy and number of Services.
    pub(super) no_local_endpoints: Vec<(Family, String, u64)>,
    /// Frontends that the node itself may not call, as members of a set: `ADDRESS,PROTOCOL:PORT`. Nothing is known without virtual servers.
    pub(super) node_access_drop: Vec<String>,
    pub(super) flows_deleted: Vec<String>,
    pub(super) rules: BTreeMap<Family, Vec<Value>>,
}

pub(super) struct HealthCheck {
    pub(super) service: String,
    pub(super) family: Family,
    pub(super) port: u16,
    pub(super) local_endpoints: u64,
}

impl Case {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut unknown = unknown_keys("the case", value, CASE);
        let facts = value.get("node").context("the case has no node")?;
        unknown.extend(unknown_keys("node", facts, NODE));
        let node = NodeFacts {
            name: text(facts, "name")?,
            zone: facts.get("zone").and_then(Value::as_str).unwrap_or_default().to_owned(),
            ips: addresses(facts, "ips")?,
            interfaces: interfaces(facts.get("interfaces").context("the node has no interfaces")?)?,
        };
        let config = Config::read(value.get("config"), &mut unknown).context("config")?;
        let pre = value.get("pre").map(|pre| Pre::read(pre, &mut unknown)).transpose().context("pre")?.unwrap_or_default();
        let mut steps = vec![Step::read(value, &mut unknown)?];
        for (number, step) in list(value, "then")?.iter().enumerate() {
            unknown.extend(unknown_keys(&format!("then[{number}]"), step, STEP));
            steps.push(Step::read(step, &mut unknown).with_context(|| format!("then[{number}]"))?);
        }
        text(value, "id")?;
        Ok(Self { node, config, pre, steps, unknown })
    }
}

impl Config {
    fn read(value: Option<&Value>, unknown: &mut Vec<String>) -> Result<Self> {
        let mut config = Self { random_fully: true, ..Self::default() };
        let mut all_node_addresses = true;
        for (key, value) in value.and_then(Value::as_object).into_iter().flatten() {
            let string = || value.as_str().context("is no text").with_context(|| key.clone());
            let joined = || texts(value).map(|list| list.join(",")).with_context(|| key.clone());
            let mut flag = |flag: &str, text: &str| config.flags.extend([flag.to_owned(), text.to_owned()]);
            match key.as_str() {
                "families" => match texts(value)?.iter().map(|name| family(name)).collect::<Result<Vec<_>>>()?.as_slice() {
                    [only] => config.only = Some(*only),
                    [_, _] => {}
                    _ => unknown.push(format!("config.families is {value}")),
                },
                "scheduler" if string()?.is_empty() => {}
                "scheduler" => flag("--scheduler", string()?),
                "masqueradeAll" if value == true => config.flags.push("--masquerade-all".to_owned()),
                "masqueradeAll" if value == false => {}
                "masqueradeBit" => flag("--masquerade-bit", &value.to_string()),
                "nodePortAddresses" if joined()?.is_empty() => {}
                "nodePortAddresses" => {
                    all_node_addresses = false;
                    flag("--nodeport-addresses", &joined()?);
                }
                "excludeCIDRs" if joined()?.is_empty() => {}
                "excludeCIDRs" => flag("--exclude-cidrs", &joined()?),
                "detectLocalMode" => flag("--detect-local-mode", string()?),
                "clusterCIDR" if string()?.is_empty() => {}
                "clusterCIDR" => flag("--cluster-cidr", string()?),
                "podCIDRs" => config.pod_cidrs = texts(value)?,
                "bridgeInterface" => flag("--bridge-interface", string()?),
                "interfaceNamePrefix" => flag("--interface-name-prefix", string()?),
                "randomFully" => config.random_fully = value.as_bool().context("randomFully is no boolean")?,
                _ => unknown.push(format!("config.{key} is {value}, and the agent has no flag for that")),
            }
        }
        if all_node_addresses {
            // kube-proxy's default.
            config.flags.extend(["--nodeport-addresses".to_owned(), "all".to_owned()]);
        }
        Ok(config)
    }
}

impl Pre {
    fn read(value: &Value, unknown: &mut Vec<String>) -> Result<Self> {
        unknown.extend(unknown_keys("pre", value, PRE));
        Ok(Self {
            virtual_servers: virtual_servers(value, unknown)?,
            bound_addresses: addresses(value, "bound_addresses")?,
            sets: sets(value)?,
        })
    }
}

impl Step {
    fn read(value: &Value, unknown: &mut Vec<String>) -> Result<Self> {
        let mut upserts = Vec::new();
        let mut deletions = Vec::new();
        for (kind, added, deleted) in
            [(Kind::Service, "services", "delete_services"), (Kind::EndpointSlice, "endpointslices", "delete_endpointslices")]
        {
            for object in list(value, added)? {
                upserts
                    .push(Object { name: (kind, metadata(object, "namespace"), metadata(object, "name")), value: object.clone() });
            }
            for name in list(value, deleted)? {
                let (namespace, name) =
                    name.as_str().and_then(|name| name.split_once('/')).context("a deletion is no NAMESPACE/NAME")?;
                deletions.push((kind, namespace.to_owned(), name.to_owned()));
            }
        }
        let wanted = value.get("expect").context("there is no expect")?;
        unknown.extend(unknown_keys("expect", wanted, EXPECT));
        Ok(Self {
            upserts,
            deletions,
            interfaces: value.get("interfaces").map(interfaces).transpose()?,
            zone: value.get("zone").map(|_| text(value, "zone")).transpose()?,
            connections: list(value, "set_connections")?
                .iter()
                .map(Connections::read)
                .collect::<Result<_>>()
                .context("set_connections")?,
            flows: list(value, "conntrack")?.iter().map(Flow::read).collect::<Result<_>>().context("conntrack")?,
            wanted: Wanted::read(wanted, unknown).context("expect")?,
        })
    }

    /// Whether it can only be looked at while the agent runs.
    pub(super) fn needs_running_agent(&self) -> bool {
        let has_health_check = |object: &Object| object.value.pointer("/spec/healthCheckNodePort").is_some();
        !self.wanted.health_checks.is_empty()
            || !self.wanted.no_local_endpoints.is_empty()
            || self.upserts.iter().any(has_health_check)
    }
}

impl Connections {
    /// `virtual_server` is `ADDRESS:PORT/PROTOCOL`.
    fn read(value: &Value) -> Result<Self> {
        let place = text(value, "virtual_server")?;
        let (virtual_server, protocol) = place.split_once('/').context("virtual_server is no ADDRESS:PORT/PROTOCOL")?;
        let (vip, port) = address_and_port(virtual_server)?;
        let count = |key| value.get(key).map_or(Ok(0), |_| number(value, key));
        Ok(Self {
            protocol: self::protocol(protocol)?,
            vip,
            port,
            real: address_and_port(&text(value, "dest")?)?,
            active: count("active")?,
            inactive: count("inactive")?,
        })
    }
}

impl Flow {
    fn read(value: &Value) -> Result<Self> {
        let side = |host: &str, port: &str| Ok::<_, anyhow::Error>((address(&text(value, host)?)?, number(value, port)?));
        Ok(Self {
            id: text(value, "id")?,
            protocol: protocol(&text(value, "proto")?)?,
            original: [side("orig_src", "orig_sport")?, side("orig_dst", "orig_dport")?],
            reply: [side("reply_src", "reply_sport")?, side("reply_dst", "reply_dport")?],
        })
    }
}

impl Wanted {
    fn read(value: &Value, unknown: &mut Vec<String>) -> Result<Self> {
        for key in ["virtual_servers", "ipsets", "bound_addresses"] {
            ensure!(value.get(key).is_some(), "there is no {key}");
        }
        let health_check = |value: &Value| {
            Ok::<_, anyhow::Error>(HealthCheck {
                service: text(value, "service")?,
                family: family(&text(value, "family")?)?,
                port: number(value, "port")?,
                local_endpoints: value
                    .get("local_ready_endpoints")
                    .and_then(Value::as_u64)
                    .context("local_ready_endpoints is no number")?,
            })
        };
        let mut no_local_endpoints = Vec::new();
        for (name, policies) in entries(value, "no_local_endpoints")? {
            for (policy, count) in policies.as_object().into_iter().flatten() {
                no_local_endpoints.push((
                    family(name)?,
                    policy.clone(),
                    count.as_u64().context("no_local_endpoints is no number")?,
                ));
            }
        }
        let node_access_drop = |value: &Value| {
            let port: u16 = number(value, "port")?;
            Ok::<_, anyhow::Error>(format!("{},{}:{port}", address(&text(value, "vip")?)?, protocol(&text(value, "proto")?)?))
        };
        let rules = |(name, rules): (&String, &Value)| {
            Ok::<_, anyhow::Error>((family(name)?, rules.as_array().context("rules are no list")?.clone()))
        };
        Ok(Self {
            virtual_servers: virtual_servers(value, unknown)?,
            sets: sets(value)?,
            bound_addresses: addresses(value, "bound_addresses")?,
            health_checks: list(value, "health_check_node_ports")?.iter().map(health_check).collect::<Result<_>>()?,
            no_local_endpoints,
            node_access_drop: list(value, "node_access_drop")?.iter().map(node_access_drop).collect::<Result<_>>()?,
            flows_deleted: value.get("conntrack_deleted").map_or_else(|| Ok(Vec::new()), texts)?,
            rules: entries(value, "iptables")?.map(rules).collect::<Result<_>>().context("iptables")?,
        })
    }
}

fn virtual_servers(value: &Value, unknown: &mut Vec<String>) -> Result<Vec<VirtualServer>> {
    list(value, "virtual_servers")?
        .iter()
        .map(|server| VirtualServer::read(server, unknown))
        .collect::<Result<_>>()
        .context("virtual_servers")
}

impl VirtualServer {
    fn read(value: &Value, unknown: &mut Vec<String>) -> Result<Self> {
        unknown.extend(unknown_keys("a virtual server", value, VIRTUAL_SERVER));
        let mut flags = 0;
        let mut is_persistent = false;
        for flag in list(value, "flags")? {
            match flag.as_str() {
                Some("persistent") => is_persistent = true,
                Some("mh-fallback" | "sh-fallback") => flags |= 0x8,
                Some("mh-port" | "sh-port") => flags |= 0x10,
                Some("ops") => flags |= 0x4,
                _ => unknown.push(format!("a virtual server has the flag {flag}")),
            }
        }
        let persistence = value.get("persist").and_then(Value::as_u64).unwrap_or_default();
        if is_persistent != (persistence > 0) {
            unknown.push("a virtual server's flags and its persistence contradict each other".to_owned());
        }
        let mut real_servers = Vec::new();
        for real in list(value, "dests")? {
            unknown.extend(unknown_keys("a real server", real, REAL_SERVER));
            let count = |key| real.get(key).map_or(Ok(0), |_| number(real, key));
            real_servers.push(RealServer {
                address: address(&text(real, "addr")?)?,
                port: number(real, "port")?,
                weight: real.get("weight").and_then(Value::as_u64).context("weight is no number")?,
                active: count("active_conns")?,
                inactive: count("inactive_conns")?,
            });
        }
        Ok(Self {
            protocol: protocol(&text(value, "proto")?)?,
            address: address(&text(value, "addr")?)?,
            port: number(value, "port")?,
            scheduler: text(value, "sched")?,
            flags,
            persistence,
            real_servers,
        })
    }
}

/// An address as in an object: IPv4 may have leading zeros, which mean nothing.
pub(super) fn address(text: &str) -> Result<IpAddr> {
    let plain = |part: &str| {
        part.trim_start_matches('0').parse::<u8>().or(if part.chars().all(|c| c == '0') { Ok(0) } else { part.parse() })
    };
    let octets: Vec<_> = text.split('.').map(plain).map_while(std::result::Result::ok).collect();
    match <[u8; 4]>::try_from(octets) {
        Ok(octets) if text.matches('.').count() == 3 => Ok(octets.into()),
        _ => text.parse().with_context(|| format!("{text:?} is no address")),
    }
}

pub(super) fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

pub(super) fn protocol(name: &str) -> Result<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.in_manifest().eq_ignore_ascii_case(name))
        .with_context(|| format!("{name:?} is no protocol"))
}

fn family(name: &str) -> Result<Family> {
    Family::ALL.into_iter().find(|family| family.to_string() == name).with_context(|| format!("{name:?} is no family"))
}

fn address_and_port(text: &str) -> Result<(IpAddr, u16)> {
    let (host, port) = text.rsplit_once(':').with_context(|| format!("{text:?} is no ADDRESS:PORT"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((address(host)?, port.parse().with_context(|| format!("{text:?} has no port"))?))
}

fn metadata(object: &Value, key: &str) -> String {
    object.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn interfaces(value: &Value) -> Result<Interfaces> {
    let of = |(name, value): (&String, &Value)| {
        Ok((name.clone(), texts(value)?.iter().map(|text| address(text)).collect::<Result<_>>()?))
    };
    value.as_object().context("interfaces are no object")?.iter().map(of).collect::<Result<_>>().context("interfaces")
}

fn sets(value: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    entries(value, "ipsets")?.map(|(name, members)| Ok((name.clone(), texts(members)?))).collect::<Result<_>>().context("ipsets")
}

fn unknown_keys(what: &str, value: &Value, known: &[&str]) -> Vec<String> {
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.filter(|key| !known.contains(key)).map(|key| format!("{what} says {key}, which is not compared here")).collect()
}

fn entries<'a>(value: &'a Value, key: &str) -> Result<impl Iterator<Item = (&'a String, &'a Value)>> {
    let object = value.get(key).map(|value| value.as_object().with_context(|| format!("{key} is no object"))).transpose()?;
    Ok(object.into_iter().flatten())
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => anyhow::bail!("{key} is no list"),
    }
}

fn addresses(value: &Value, key: &str) -> Result<Vec<IpAddr>> {
    list(value, key)?
        .iter()
        .map(|entry| address(entry.as_str().context("is no text")?))
        .collect::<Result<_>>()
        .with_context(|| key.to_owned())
}

fn text(value: &Value, key: &str) -> Result<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("{key} is missing or no text"))
}

fn texts(value: &Value) -> Result<Vec<String>> {
    let list = value.as_array().with_context(|| format!("{value} is no list"))?;
    list.iter().map(|entry| entry.as_str().map(str::to_owned).with_context(|| format!("{entry} is no text"))).collect()
}

fn number<N: TryFrom<u64>>(value: &Value, key: &str) -> Result<N> {
    let number = value.get(key).and_then(Value::as_u64).and_then(|number| N::try_from(number).ok());
    number.with_context(|| format!("{key} is missing or no such number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_mean_nothing() {
        assert_eq!(address("192.0.2.080").unwrap(), address("192.0.2.80").unwrap());
        assert_eq!(address("10.000.000.030").unwrap().to_string(), "10.0.0.30");
        assert_eq!(address("fd00::1").unwrap().to_string(), "fd00::1");
        for wrong in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "a.b.c.d", "1.2.3.4x"] {
            assert!(address(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let case = serde_json::json!({
            "id": "x", "surprise": 1, "node": {"name": "n", "ips": [], "interfaces": {"lo": ["::1"]}}, "config": {"colour": "red"},
            "expect": {"virtual_servers": [], "ipsets": {}, "bound_addresses": [], "weather": "fine"}
        });
        let case = Case::read(&case).unwrap();
        let unknown = case.unknown.join("; ");
        for word in ["surprise", "config.colour", "weather"] {
            assert!(unknown.contains(word), "{unknown}");
        }
        assert_eq!(case.config.flags, ["--nodeport-addresses", "all"]);
    }

    #[test]
    fn a_broken_case_is_a_sentence() {
        let error = |value: Value| Case::read(&value).map(|_| ()).unwrap_err();
        assert!(format!("{:#}", error(serde_json::json!(7))).contains("no node"));
        let case = serde_json::json!({
            "id": "x", "node": {"name": "n", "interfaces": {}}, "services": 3,
            "expect": {"virtual_servers": [], "ipsets": {}, "bound_addresses": []}
        });
        assert!(format!("{:#}", error(case)).contains("services is no list"));
    }
}
