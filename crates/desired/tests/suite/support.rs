//! A node to feed with objects, and its desired state as text.

use std::fmt::Write as _;

use desired::{Config, Index, InterfaceAddress, Ledger, Problem, RuleOptions, ServiceName, rules};
use model::{Family, State};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) struct Node {
    pub(crate) index: Index,
    pub(crate) ledger: Ledger,
}

impl Node {
    /// `node-1` in `zone-a`, with an address of each family and those that every node has.
    pub(crate) fn new(config: Config) -> Self {
        let mut index = Index::new(config);
        let ledger = Ledger::new(index.config());
        index.apply_node(&object(json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "172.18.0.11"},
                {"type": "InternalIP", "address": "fd00:18::11"},
                {"type": "Hostname", "address": "node-1"},
            ]},
        })));
        index.set_interfaces(interfaces(&[
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "172.18.0.11"),
            ("eth0", "fd00:18::11"),
            ("eth0", "fe80::11"),
            ("docker0", "172.17.0.1"),
        ]));
        let mut node = Self { index, ledger };
        node.sync();
        node
    }

    pub(crate) fn apply(&mut self, objects: &[Value]) {
        for value in objects {
            match value["kind"].as_str() {
                Some("Service") => self.index.apply_service(&object(value.clone())).unwrap(),
                Some("EndpointSlice") => self.index.apply_slice(&object(value.clone())).unwrap(),
                Some("Node") => self.index.apply_node(&object(value.clone())),
                other => panic!("an object of kind {other:?}"),
            }
        }
        self.sync();
    }

    pub(crate) fn delete_service(&mut self, name: &str) {
        self.index.delete_service(&object(json!({"namespace": "shop", "name": name})));
        self.sync();
    }

    pub(crate) fn sync(&mut self) {
        for family in Family::ALL {
            let source = self.index.facts().source(family);
            self.ledger.set_source(family, source);
        }
        for name in self.index.take_dirty() {
            self.ledger.set(&name, self.index.fragment(&name));
        }
    }

    pub(crate) fn text(&self) -> String {
        text(&self.ledger.complete())
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let fragments = self.ledger.fragments();
        fragments.flat_map(|(_, fragment)| fragment.problems()).map(Problem::to_string).collect()
    }

    /// The real servers behind `key`, written `address:port`; none is not the same as no virtual server.
    pub(crate) fn real_servers(&self, key: &str) -> Vec<String> {
        let state = self.ledger.complete();
        let (_, server) = state.virtual_servers.iter().find(|(other, _)| other.to_string() == key).unwrap();
        server.real_servers.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn rules(&self, family: Family) -> String {
        let rules = rules(family, self.index.config(), self.index.facts(), RuleOptions { random_fully: true });
        let mut out = String::new();
        for jump in rules.jumps.keys() {
            writeln!(out, "-t {} -A {} -j {}", jump.to.table, jump.from, jump.to.name).unwrap();
        }
        for (chain, rules) in &rules.chains {
            for rule in rules {
                writeln!(out, "-t {} -A {} {rule}", chain.table, chain.name).unwrap();
            }
        }
        out
    }
}

/// A state in the words of ipvsadm, ipset and ip.
pub(crate) fn text(state: &State) -> String {
    let mut out = String::new();
    for (key, server) in &state.virtual_servers {
        let config = server.config;
        write!(out, "{key} {}", config.scheduler).unwrap();
        if let Some(seconds) = config.persistence {
            write!(out, " persistent {seconds}").unwrap();
        }
        if config.flags != model::Flags::NONE {
            write!(out, " flags {:#x}", config.flags.bits()).unwrap();
        }
        writeln!(out).unwrap();
        for (key, server) in &server.real_servers {
            writeln!(out, "  -> {key} {} {}", server.forwarding, server.weight).unwrap();
        }
    }
    for (set, state) in &state.sets {
        for member in &state.members {
            writeln!(out, "add {set} {member}").unwrap();
        }
    }
    for (vip, source) in &state.vips {
        let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
        writeln!(out, "{vip}{source}").unwrap();
    }
    out
}

pub(crate) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn interfaces(addresses: &[(&str, &str)]) -> Vec<InterfaceAddress> {
    addresses.iter().map(|(name, address)| InterfaceAddress::new(name, address.parse().unwrap())).collect()
}

/// A Service in namespace `shop`.
pub(crate) fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name}});
    object["spec"] = spec;
    object
}

/// A slice of the IPv4 endpoints of Service `service`, for its unnamed TCP port.
pub(crate) fn slice(name: &str, service: &str, port: u16, endpoints: Value) -> Value {
    let mut object = json!({
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": port}],
    });
    object["endpoints"] = endpoints;
    object
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}
