//! The kernel's counters, added up so that they never go backwards.
//!
//! The kernel counts for a virtual server and a real server, and from nothing whenever one is made or somebody zeroes it. What is told is
//! about a Service's port, which has a virtual server for each of its addresses, some of them for a while.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use desired::ServiceName;
use kernel::RealServerTraffic;
use model::{RealServerCounters, RealServerKey, TrafficCounters, VirtualServerKey};

use super::Owned;

/// What the kernel said of a virtual server.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) key: VirtualServerKey,
    pub(super) traffic: TrafficCounters,
    /// Not read unless that is asked for.
    pub(super) real_servers: Vec<RealServerTraffic>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) service: ServiceName,
    /// Empty where it has none.
    pub(super) name: Box<str>,
}

/// A real server of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OfRealServer {
    pub(super) connections: RealServerCounters,
    pub(super) traffic: TrafficCounters,
}

/// What is told.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    ports: BTreeMap<Port, TrafficCounters>,
    real_servers: BTreeMap<(Port, RealServerKey), OfRealServer>,
    /// How many of those there may be.
    limit: usize,
    /// How many more there would be.
    left_out: usize,
    /// What the kernel said last.
    last: BTreeMap<VirtualServerKey, TrafficCounters>,
    last_of_real_servers: BTreeMap<(VirtualServerKey, RealServerKey), TrafficCounters>,
}

impl Accounts {
    pub(super) const fn keep_real_servers(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) const fn keeps_real_servers(&self) -> bool {
        self.limit > 0
    }

    pub(super) const fn ports(&self) -> &BTreeMap<Port, TrafficCounters> {
        &self.ports
    }

    pub(super) const fn real_servers(&self) -> &BTreeMap<(Port, RealServerKey), OfRealServer> {
        &self.real_servers
    }

    pub(super) const fn left_out(&self) -> usize {
        self.left_out
    }

    /// Adds what has been counted since the last time. Of virtual servers without an owner it takes note, so that who has one's address next
    /// does not get what came before. Ports that own nothing any more are left out from now on.
    pub(super) fn take_in(&mut self, owners: &[Owned], counted: &[Counted]) {
        let owners: BTreeMap<_, _> = owners.iter().map(|owned| (owned.key, owned)).collect();
        let port =
            |key: &VirtualServerKey| owners.get(key).map(|owned| Port { service: owned.service.clone(), name: owned.port.clone() });
        let ports: BTreeSet<_> = owners.keys().filter_map(port).collect();
        self.ports.retain(|known, _| ports.contains(known));
        self.ports.extend(
            ports
                .into_iter()
                .filter(|port| !self.ports.contains_key(port))
                .map(|port| (port, TrafficCounters::default()))
                .collect::<Vec<_>>(),
        );
        let (mut last, mut real_servers) = (BTreeMap::new(), BTreeMap::<_, OfRealServer>::new());
        for Counted { key, traffic, real_servers: reals } in counted {
            let news = since(self.last.get(key), *traffic);
            last.insert(*key, *traffic);
            let Some(port) = port(key) else { continue };
            for RealServerTraffic { key: real, connections, traffic } in reals {
                let news = since(self.last_of_real_servers.get(&(*key, *real)), *traffic);
                let of = real_servers.entry((port.clone(), *real)).or_default();
                add(&mut of.traffic, news);
                of.connections = sum(of.connections, *connections);
            }
            if let Some(account) = self.ports.get_mut(&port) {
                add(account, news);
            }
        }
        self.last = last;
        self.last_of_real_servers = counted
            .iter()
            .flat_map(|server| server.real_servers.iter().map(|real| ((server.key, real.key), real.traffic)))
            .collect();
        self.take_in_real_servers(real_servers);
    }

    /// Who is counted goes on being counted for as long as it is there; others are taken up while there is room.
    fn take_in_real_servers(&mut self, mut news: BTreeMap<(Port, RealServerKey), OfRealServer>) {
        self.real_servers.retain(|of, _| news.contains_key(of));
        for (of, account) in &mut self.real_servers {
            let Some(news) = news.remove(of) else { continue };
            add(&mut account.traffic, news.traffic);
            account.connections = news.connections;
        }
        self.left_out = 0;
        for (of, news) in news {
            if self.real_servers.len() >= self.limit {
                self.left_out += 1;
            } else if let Entry::Vacant(place) = self.real_servers.entry(of) {
                place.insert(news);
            }
        }
    }
}

/// What was counted between two readings. Counters that went back began anew in between.
fn since(last: Option<&TrafficCounters>, now: TrafficCounters) -> TrafficCounters {
    last.and_then(|last| now.since(*last)).unwrap_or(now)
}

fn add(account: &mut TrafficCounters, news: TrafficCounters) {
    account.connections = account.connections.saturating_add(news.connections);
    account.packets_in = account.packets_in.saturating_add(news.packets_in);
    account.packets_out = account.packets_out.saturating_add(news.packets_out);
    account.bytes_in = account.bytes_in.saturating_add(news.bytes_in);
    account.bytes_out = account.bytes_out.saturating_add(news.bytes_out);
}

const fn sum(one: RealServerCounters, other: RealServerCounters) -> RealServerCounters {
    RealServerCounters {
        active: one.active.saturating_add(other.active),
        inactive: one.inactive.saturating_add(other.inactive),
        persistent: one.persistent.saturating_add(other.persistent),
    }
}
