//! The kernel's table and what an agent tells, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use kernel::{Listing, RealListing, Table};
use model::{RealServer, RealServerKey, Set, SetState, State, VirtualServer, VirtualServerConfig, VirtualServerKey};
use plan::Ownership;

use super::view::{Agent, Behind, Drift, RealRow, ServicePort, View, VirtualRow};
use crate::control::{DesiredTable, Drains, Endpoint, Endpoints};

/// What an agent has told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    agent: Agent,
    desired: BTreeMap<VirtualServerKey, Desired>,
    drains: BTreeMap<(VirtualServerKey, RealServerKey), Duration>,
    /// The virtual servers that leave as a whole.
    leaving: BTreeSet<VirtualServerKey>,
    places: BTreeMap<String, BTreeMap<IpAddr, Endpoint>>,
}

#[derive(Clone, Debug)]
struct Desired {
    port: ServicePort,
    server: VirtualServer,
}

/// The sets by which virtual servers are known to be ours.
pub(crate) type Sets = BTreeMap<Set, SetState>;

impl Told {
    /// What there is to say in the words of the model; the rest is left out.
    pub(crate) fn new(table: DesiredTable, drains: &Drains, endpoints: Endpoints) -> Self {
        let desired = table.virtual_servers.into_iter().filter_map(|document| {
            let (key, server) = (document.key.parse()?, document.parse()?);
            let frontend = document.frontend.and_then(|frontend| frontend.parse());
            Some((key, Desired { port: ServicePort { service: document.service, port: document.port, frontend }, server }))
        });
        let by_address = |endpoints: Vec<Endpoint>| endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint)).collect();
        let mut told = Self {
            agent: Agent { version: table.agent, node: table.node, stage: table.stage },
            desired: desired.collect(),
            drains: BTreeMap::new(),
            leaving: BTreeSet::new(),
            places: endpoints.services.into_iter().map(|(service, endpoints)| (service, by_address(endpoints))).collect(),
        };
        told.set_drains(drains);
        told
    }

    /// Replaces what was told of real servers that are leaving.
    pub(crate) fn set_drains(&mut self, drains: &Drains) {
        self.drains = drains.parse().collect();
        let whole = drains.drains.iter().filter(|drain| drain.whole);
        self.leaving = whole.filter_map(|drain| drain.virtual_server.parse()).collect();
    }

    /// Whether it says something of the virtual server `key`.
    pub(crate) fn knows(&self, key: &VirtualServerKey) -> bool {
        self.desired.contains_key(key) || self.leaving.contains(key)
    }

    fn is_complete(&self) -> bool {
        self.agent.stage == crate::control::Stage::Complete
    }

    fn place(&self, service: Option<&ServicePort>, real: &RealServerKey) -> Option<&Endpoint> {
        self.places.get(&service?.service)?.get(&real.address)
    }
}

/// Puts the kernel's `table` together with what an agent has `told`, if there is one, and what our `sets` list, if they could be read.
pub(crate) fn join(table: Table, told: Option<&Told>, sets: Option<Sets>) -> View {
    let sets = sets.map(|sets| State { sets, ..State::default() });
    let mut virtual_servers: Vec<_> =
        table.virtual_servers.into_iter().map(|listing| virtual_row(listing, told, sets.as_ref())).collect();
    if let Some(told) = told {
        let there: BTreeSet<_> = virtual_servers.iter().map(|row| row.key).collect();
        let missing = told.desired.iter().filter(|(key, _)| !there.contains(key));
        virtual_servers.extend(missing.map(|(key, desired)| missing_virtual_row(*key, desired, told)));
    }
    virtual_servers.sort_unstable_by_key(|row| row.key);
    virtual_servers.iter_mut().for_each(|row| row.real_servers.sort_unstable_by_key(|real| real.key));
    View {
        version: table.version,
        connection_table_size: table.connection_table_size,
        agent: told.map(|told| told.agent.clone()),
        virtual_servers,
    }
}

/// The row of `listing` when nothing else is known, with real servers in the kernel's order.
pub(crate) fn bare_row(listing: Listing) -> VirtualRow {
    virtual_row(listing, None, None)
}

fn virtual_row(listing: Listing, told: Option<&Told>, sets: Option<&State>) -> VirtualRow {
    let Listing { key, config, traffic, rates, real_servers } = listing;
    let desired = told.and_then(|told| told.desired.get(&key));
    let leaves = told.is_some_and(|told| told.leaving.contains(&key));
    let listed = sets.map(|sets| Ownership::Listed { excluded: &[] }.covers(&key, &State::default(), sets));
    let behind = match (desired, leaves, listed) {
        (Some(desired), ..) => Behind::Service(desired.port.clone()),
        (None, true, _) => Behind::Leaving,
        (None, false, Some(true)) => Behind::Unnamed,
        (None, false, Some(false)) => Behind::Foreign,
        (None, false, None) => Behind::Unknown,
    };
    let drift = match desired {
        Some(desired) => otherwise(&desired.server.config, &config),
        // What is ours and in nobody's name any more is about to go, or should be gone.
        None => (behind == Behind::Unnamed && told.is_some_and(Told::is_complete)).then_some(Drift::Unwanted),
    };
    let mut rows: Vec<_> = real_servers.into_iter().map(|real| real_row(&key, real, desired, told)).collect();
    if let (Some(desired), Some(told)) = (desired, told) {
        let there: BTreeSet<_> = rows.iter().map(|row| row.key).collect();
        let missing = desired.server.real_servers.iter().filter(|(real, _)| !there.contains(real));
        rows.extend(missing.map(|(real, server)| missing_real_row(*real, *server, desired, told)));
    }
    VirtualRow { key, config, traffic, rates, behind, drift, real_servers: rows }
}

fn real_row(of: &VirtualServerKey, listing: RealListing, desired: Option<&Desired>, told: Option<&Told>) -> RealRow {
    let RealListing { key, server, connections, traffic, rates } = listing;
    let draining = told.and_then(|told| told.drains.get(&(*of, key)).copied());
    let drift = match desired {
        Some(desired) => match desired.server.real_servers.get(&key) {
            Some(wanted) => real_otherwise(wanted, &server),
            None => draining.is_none().then_some(Drift::Unwanted),
        },
        None => None,
    };
    let place = told.and_then(|told| told.place(desired.map(|desired| &desired.port), &key));
    RealRow {
        key,
        server,
        connections,
        traffic,
        rates,
        pod: place.and_then(|place| place.pod.clone()),
        node: place.and_then(|place| place.node.clone()),
        draining,
        drift,
    }
}

fn missing_virtual_row(key: VirtualServerKey, desired: &Desired, told: &Told) -> VirtualRow {
    let Listing { traffic, rates, .. } = Listing::of(key);
    let real_servers = desired.server.real_servers.iter().map(|(real, server)| missing_real_row(*real, *server, desired, told));
    VirtualRow {
        key,
        config: desired.server.config,
        traffic,
        rates,
        behind: Behind::Service(desired.port.clone()),
        drift: Some(Drift::Missing),
        real_servers: real_servers.collect(),
    }
}

fn missing_real_row(key: RealServerKey, server: RealServer, desired: &Desired, told: &Told) -> RealRow {
    let RealListing { connections, traffic, rates, .. } = RealListing::of(key);
    let place = told.place(Some(&desired.port), &key);
    RealRow {
        key,
        server,
        connections,
        traffic,
        rates,
        pod: place.and_then(|place| place.pod.clone()),
        node: place.and_then(|place| place.node.clone()),
        draining: None,
        drift: Some(Drift::Missing),
    }
}

fn otherwise(desired: &VirtualServerConfig, observed: &VirtualServerConfig) -> Option<Drift> {
    let VirtualServerConfig { scheduler, flags, persistence, granularity } = desired;
    differing([
        (*scheduler != observed.scheduler).then(|| format!("scheduler {scheduler}")),
        (*flags != observed.flags).then(|| format!("flags {:#x}", flags.bits())),
        (*persistence != observed.persistence)
            .then(|| persistence.map_or_else(|| "no persistence".to_owned(), |seconds| format!("persistent {seconds}"))),
        (*granularity != observed.granularity).then(|| format!("persistence by {granularity} bits")),
    ])
}

fn real_otherwise(desired: &RealServer, observed: &RealServer) -> Option<Drift> {
    let RealServer { forwarding, weight, upper_threshold, lower_threshold } = desired;
    let thresholds = (*upper_threshold, *lower_threshold) != (observed.upper_threshold, observed.lower_threshold);
    differing([
        (*weight != observed.weight).then(|| format!("weight {weight}")),
        (*forwarding != observed.forwarding).then(|| forwarding.to_string()),
        thresholds.then(|| format!("thresholds {upper_threshold} and {lower_threshold}")),
    ])
}

/// What would be right where something differs.
fn differing<const FIELDS: usize>(wanted: [Option<String>; FIELDS]) -> Option<Drift> {
    let wanted: Vec<_> = wanted.into_iter().flatten().collect();
    (!wanted.is_empty()).then(|| Drift::Otherwise(wanted.join(", ")))
}

impl View {
    /// Forgets the drift that `earlier` did not show: table and agent are not asked in the same moment, and what changes between the two looks
    /// like drift once.
    pub(crate) fn keep_lasting_drift(&mut self, earlier: &Self) {
        let drifted: BTreeSet<(VirtualServerKey, Option<RealServerKey>)> = earlier
            .virtual_servers
            .iter()
            .flat_map(|row| {
                let reals = row.real_servers.iter().filter(|real| real.drift.is_some());
                let own = row.drift.iter().map(|_| (row.key, None));
                own.chain(reals.map(|real| (row.key, Some(real.key))))
            })
            .collect();
        let lasts = |row: &VirtualRow, real: Option<RealServerKey>| {
            drifted.contains(&(row.key, real)) || drifted.contains(&(row.key, None))
        };
        // What is missing is a row only because it has drifted.
        self.virtual_servers.retain(|row| row.is_there() || lasts(row, None));
        for row in &mut self.virtual_servers {
            if !lasts(row, None) {
                row.drift = None;
            }
            let mut reals = std::mem::take(&mut row.real_servers);
            reals.retain(|real| real.is_there() || lasts(row, Some(real.key)));
            for real in &mut reals {
                if !lasts(row, Some(real.key)) {
                    real.drift = None;
                }
            }
            row.real_servers = reals;
        }
    }

    /// Whether anything is not as it should be.
    pub(crate) fn has_drifted(&self) -> bool {
        self.virtual_servers.iter().any(VirtualRow::has_drifted)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::control::{DesiredVirtualServer, Drain, Stage};
    use crate::status::tests::{SHOP, kernel_table, told, web};
    use model::{Family, Member, Protocol, Role};

    fn row<'a>(view: &'a View, key: &VirtualServerKey) -> &'a VirtualRow {
        view.virtual_servers.iter().find(|row| row.key == *key).unwrap()
    }

    #[test]
    fn who_is_behind_a_virtual_server_is_told_by_the_agent_and_without_one_by_our_sets() {
        let view = join(kernel_table(), Some(&told()), None);
        assert_eq!(row(&view, &web()).service().unwrap().to_string(), SHOP);
        assert_eq!(view.agent.as_ref().unwrap().node, "node-1");

        let VirtualServerKey::Address { address, protocol, port } = web() else { panic!("another key") };
        let state = SetState { members: [Member::IpPort(address, protocol, port)].into(), ..SetState::default() };
        let view = join(kernel_table(), None, Some([(Set::new(Role::ClusterIp, Family::V4), state)].into()));
        let behind: BTreeSet<_> = view.virtual_servers.iter().map(|row| format!("{} {:?}", row.key, row.behind)).collect();
        assert!(behind.contains("TCP 10.96.0.10:80 Unnamed"), "{behind:?}");
        assert!(behind.contains("TCP 192.0.2.1:443 Foreign"), "{behind:?}");
        assert!(!view.has_drifted(), "nobody knows what is desired");
        let view = join(kernel_table(), None, None);
        assert!(view.virtual_servers.iter().all(|row| row.behind == Behind::Unknown));
    }

    #[test]
    fn pods_and_time_left_stand_behind_real_servers() {
        let view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        let reals: Vec<_> = row(&view, &web())
            .real_servers
            .iter()
            .map(|real| (real.key.to_string(), real.pod.as_deref(), real.node.as_deref(), real.draining.map(|left| left.as_secs())))
            .collect();
        assert_eq!(reals[0], ("10.244.1.2:8080".to_owned(), Some("web-a"), Some("node-1"), None));
        assert_eq!(reals[1].3, Some(852));
        assert!(!row(&view, &web()).has_drifted(), "who is leaving has not drifted");
    }

    #[test]
    fn drift_is_what_is_missing_unwanted_or_otherwise() {
        let mut table = kernel_table();
        let gone = VirtualServerKey::address("10.96.0.77".parse().unwrap(), Protocol::Udp, 53);
        let mut desired = VirtualServer::new(model::Scheduler::RR, Family::V4);
        desired.real_servers.insert(RealServerKey::new("10.244.1.9".parse().unwrap(), 53), RealServer::default());
        let mut told = told();
        told.desired.insert(
            gone,
            Desired { port: ServicePort { service: "a/b".into(), port: String::new(), frontend: None }, server: desired },
        );
        let listing = table.virtual_servers.iter_mut().find(|listing| listing.key == web()).unwrap();
        listing.config.persistence = NonZeroU32::new(300);
        listing.real_servers[0].server.weight = 7;
        listing.real_servers.push(RealListing::of(RealServerKey::new("10.244.1.99".parse().unwrap(), 8080)));
        let view = join(table, Some(&told), Some(Sets::new()));
        let drift = |row: &VirtualRow| {
            let reals = row.real_servers.iter().map(|real| real.drift.as_ref().map(ToString::to_string).unwrap_or_default());
            (row.drift.as_ref().map(ToString::to_string).unwrap_or_default(), reals.collect::<Vec<_>>())
        };
        assert_eq!(drift(row(&view, &gone)), ("not in the kernel".to_owned(), vec!["not in the kernel".to_owned()]));
        let (own, reals) = drift(row(&view, &web()));
        assert_eq!(
            (own.as_str(), reals[0].as_str(), reals[2].as_str()),
            ("desired: no persistence", "desired: weight 1", "nobody asks for it")
        );

        let mut later = view.clone();
        later.keep_lasting_drift(&view);
        assert_eq!(later, view);
        later.keep_lasting_drift(&join(kernel_table(), None, None));
        assert!(!later.has_drifted() && later.virtual_servers.len() == view.virtual_servers.len() - 1, "it was there once only");
    }

    #[test]
    fn a_virtual_server_of_ours_that_nobody_asks_for_has_drifted_unless_it_leaves_or_not_all_is_known() {
        let VirtualServerKey::Address { address, protocol, port } = web() else { panic!("another key") };
        let member = Member::IpPort(address, protocol, port);
        let sets = || -> Sets {
            let state = SetState { members: [member].into(), ..SetState::default() };
            [(Set::new(Role::ClusterIp, Family::V4), state)].into()
        };
        let table = |stage, servers: Vec<DesiredVirtualServer>| DesiredTable {
            agent: "1".to_owned(),
            node: "node-1".to_owned(),
            stage,
            virtual_servers: servers,
        };
        let view = |stage, drains: Vec<Drain>| {
            let told = Told::new(table(stage, Vec::new()), &Drains { drains }, Endpoints::default());
            join(kernel_table(), Some(&told), Some(sets()))
        };
        assert_eq!(row(&view(Stage::Complete, Vec::new()), &web()).drift, Some(Drift::Unwanted));
        assert_eq!(row(&view(Stage::Starting, Vec::new()), &web()).drift, None);
        let drain = Drain {
            virtual_server: web().into(),
            real_server: "10.244.1.2:8080".parse().unwrap(),
            milliseconds_left: 1_000,
            whole: true,
        };
        let leaving = view(Stage::Complete, vec![drain]);
        assert_eq!((row(&leaving, &web()).drift.as_ref(), &row(&leaving, &web()).behind), (None, &Behind::Leaving));
    }
}
