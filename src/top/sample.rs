//! What one look shows: Services with their traffic since the look before.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use model::{RealServerKey, TrafficCounters, TrafficRates, VirtualServerKey};

use crate::status::view::{Behind, RealRow, View, VirtualRow, in_words};

/// One look at the node.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    /// The node and its agent's version; `None` where no agent answers.
    pub(crate) agent: Option<(String, String)>,
    pub(crate) services: Vec<Service>,
    pub(crate) totals: Totals,
    /// What was counted by then, of which the next look takes the difference.
    counted: BTreeMap<(VirtualServerKey, Option<RealServerKey>), TrafficCounters>,
}

/// The whole node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) virtual_servers: usize,
    pub(crate) foreign: usize,
    pub(crate) real_servers: usize,
    pub(crate) draining: usize,
    pub(crate) drifted: usize,
    pub(crate) load: Load,
}

/// A port of a Service with all of its virtual servers, or a virtual server that is of none.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `namespace/name:port`, else the virtual server's key.
    pub(crate) name: String,
    /// Whether it is another program's.
    pub(crate) foreign: bool,
    pub(crate) load: Load,
    /// Each with what is to be known of it: `TCP 10.96.0.10:80 rr`.
    pub(crate) virtual_servers: Vec<String>,
    /// By key.
    pub(crate) servers: Vec<Server>,
    /// In words.
    pub(crate) drift: Vec<String>,
}

/// A real server of a Service, in all of its virtual servers together.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) key: RealServerKey,
    pub(crate) pod: Option<String>,
    pub(crate) node: Option<String>,
    /// The largest, should virtual servers have it with several.
    pub(crate) weight: u32,
    pub(crate) load: Load,
    /// The longest that it may stay, if it is leaving.
    pub(crate) draining: Option<Duration>,
    /// In words.
    pub(crate) drift: Option<String>,
}

/// How busy something is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) active: u64,
    pub(crate) inactive: u64,
    /// New connections a second.
    pub(crate) connections: f64,
    /// Packets a second, from and to clients.
    pub(crate) packets_in: f64,
    pub(crate) packets_out: f64,
    /// Bytes a second, from and to clients.
    pub(crate) bytes_in: f64,
    pub(crate) bytes_out: f64,
}

/// The columns by which Services and their servers can be sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// By name
    Name,
    /// By active connections
    Active,
    /// By new connections a second
    Connections,
    /// By packets a second, both ways
    Packets,
    /// By bytes a second, both ways
    Bytes,
}

impl SortBy {
    /// From left to right.
    pub(crate) const ALL: [Self; 5] = [Self::Name, Self::Active, Self::Connections, Self::Packets, Self::Bytes];

    /// The next column to the right, or to the left.
    pub(crate) fn beside(self, right: bool) -> Self {
        let index = Self::ALL.iter().position(|column| *column == self).unwrap_or_default();
        let index = if right { index.saturating_add(1) } else { index.saturating_sub(1) };
        Self::ALL.get(index).copied().unwrap_or(self)
    }

    /// What comes first: names from A, of numbers the largest.
    fn compare(self, (name, one): (&str, &Load), (other_name, other): (&str, &Load)) -> Ordering {
        let by_number = match self {
            Self::Name => Ordering::Equal,
            Self::Active => other.active.cmp(&one.active),
            Self::Connections => other.connections.total_cmp(&one.connections),
            Self::Packets => other.packets().total_cmp(&one.packets()),
            Self::Bytes => other.bytes().total_cmp(&one.bytes()),
        };
        by_number.then_with(|| name.cmp(other_name))
    }

    /// Sorts Services.
    pub(crate) fn sort(self, reversed: bool, services: &mut [&Service]) {
        services.sort_by(|one, other| {
            let order = self.compare((&one.name, &one.load), (&other.name, &other.load));
            if reversed { order.reverse() } else { order }
        });
    }

    /// Sorts the servers of a Service, by address where names are asked for.
    pub(crate) fn sort_servers(self, reversed: bool, servers: &mut [&Server]) {
        servers.sort_by(|one, other| {
            let order = self.compare(("", &one.load), ("", &other.load)).then_with(|| one.key.cmp(&other.key));
            if reversed { order.reverse() } else { order }
        });
    }
}

impl Load {
    pub(crate) const fn packets(&self) -> f64 {
        self.packets_in + self.packets_out
    }

    pub(crate) const fn bytes(&self) -> f64 {
        self.bytes_in + self.bytes_out
    }

    fn add(&mut self, other: &Self) {
        self.active += other.active;
        self.inactive += other.inactive;
        self.connections += other.connections;
        self.packets_in += other.packets_in;
        self.packets_out += other.packets_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

impl Service {
    /// How much of the Service's connections `server` has, of 1. Where none is active, as with UDP, those that are not count.
    pub(crate) fn share(&self, server: &Server) -> f64 {
        let of = |load: &Load| if self.load.active > 0 { load.active } else { load.inactive };
        let whole = of(&self.load);
        if whole == 0 { 0.0 } else { as_float(of(&server.load)) / as_float(whole) }
    }

    /// How many of its servers take new connections.
    pub(crate) fn live(&self) -> usize {
        self.servers.iter().filter(|server| server.weight > 0).count()
    }

    pub(crate) fn draining(&self) -> usize {
        self.servers.iter().filter(|server| server.draining.is_some()).count()
    }

    /// What is out of the ordinary, in words.
    pub(crate) fn state(&self) -> String {
        let draining = self.draining();
        let states = [
            self.has_drifted().then(|| "drifted".to_owned()),
            (draining > 0).then(|| format!("{draining} draining")),
            (self.live() == 0).then(|| "no servers".to_owned()),
            self.foreign.then(|| "foreign".to_owned()),
        ];
        states.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn has_drifted(&self) -> bool {
        !self.drift.is_empty() || self.servers.iter().any(|server| server.drift.is_some())
    }
}

impl Server {
    /// What is out of the ordinary, in words.
    pub(crate) fn state(&self) -> String {
        let draining = self.draining.map(|left| format!("draining {}", in_words(left)));
        draining.into_iter().chain(self.drift.clone()).collect::<Vec<_>>().join(", ")
    }
}

impl Sample {
    /// What `view` shows `at` that time, with the traffic since `before`.
    pub(crate) fn new(view: &View, at: Instant, before: Option<&Self>) -> Self {
        let clock = Clock { before, elapsed: before.map(|before| at.saturating_duration_since(before.at)).unwrap_or_default() };
        let mut services: BTreeMap<String, Service> = BTreeMap::new();
        let mut totals = Totals::default();
        let mut counted = BTreeMap::new();
        for row in &view.virtual_servers {
            counted.insert((row.key, None), row.traffic);
            counted.extend(row.real_servers.iter().map(|real| ((row.key, Some(real.key)), real.traffic)));
            let load = load_of_row(row, clock);
            totals.virtual_servers += 1;
            totals.foreign += usize::from(row.behind == Behind::Foreign);
            totals.real_servers += row.real_servers.len();
            totals.draining += row.real_servers.iter().filter(|real| real.draining.is_some()).count();
            totals.drifted += usize::from(row.has_drifted());
            totals.load.add(&load);
            let name = row.service().map_or_else(|| row.key.to_string(), ToString::to_string);
            let service = services.entry(name.clone()).or_insert_with(|| Service {
                name,
                foreign: row.behind == Behind::Foreign,
                load: Load::default(),
                virtual_servers: Vec::new(),
                servers: Vec::new(),
                drift: Vec::new(),
            });
            service.add(row, &load, clock);
        }
        let agent = view.agent.as_ref().map(|agent| (agent.node.clone(), agent.version.clone()));
        Self { at, agent, services: services.into_values().collect(), totals, counted }
    }
}

impl Service {
    fn add(&mut self, row: &VirtualRow, load: &Load, clock: Clock<'_>) {
        self.load.add(load);
        let frontend = match row.frontend() {
            frontend if frontend == row.key => String::new(),
            frontend => format!(" for {frontend}"),
        };
        let drift = row.drift.as_ref().map(|drift| format!("{}: {drift}", row.key));
        self.virtual_servers.push(format!("{}{frontend} {}", row.key, row.config.scheduler));
        self.drift.extend(drift);
        for real in &row.real_servers {
            let load = load_of_real(row.key, real, clock);
            let index = self.servers.partition_point(|server| server.key < real.key);
            match self.servers.get_mut(index).filter(|server| server.key == real.key) {
                Some(server) => server.add(real, &load),
                None => self.servers.insert(index, Server::of(real, load)),
            }
        }
    }
}

impl Server {
    fn of(real: &RealRow, load: Load) -> Self {
        Self {
            key: real.key,
            pod: real.pod.clone(),
            node: real.node.clone(),
            weight: real.server.weight,
            load,
            draining: real.draining,
            drift: real.drift.as_ref().map(ToString::to_string),
        }
    }

    fn add(&mut self, real: &RealRow, load: &Load) {
        self.load.add(load);
        self.weight = self.weight.max(real.server.weight);
        self.draining = self.draining.max(real.draining);
        self.drift = self.drift.take().or_else(|| real.drift.as_ref().map(ToString::to_string));
    }
}

/// How long ago the look before was.
#[derive(Clone, Copy)]
struct Clock<'a> {
    before: Option<&'a Sample>,
    elapsed: Duration,
}

fn load_of_row(row: &VirtualRow, clock: Clock<'_>) -> Load {
    let connections = row.connections();
    let load = Load { active: connections.active.into(), inactive: connections.inactive.into(), ..Load::default() };
    load.with_traffic(clock, (row.key, None), row.traffic, row.rates)
}

fn load_of_real(of: VirtualServerKey, real: &RealRow, clock: Clock<'_>) -> Load {
    let load = Load { active: real.connections.active.into(), inactive: real.connections.inactive.into(), ..Load::default() };
    load.with_traffic(clock, (of, Some(real.key)), real.traffic, real.rates)
}

impl Load {
    /// The difference to what was counted before. Where that is not known, or the counters began anew, the kernel's own estimate has to do.
    fn with_traffic(
        self,
        clock: Clock<'_>,
        of: (VirtualServerKey, Option<RealServerKey>),
        traffic: TrafficCounters,
        estimate: TrafficRates,
    ) -> Self {
        let counted = || {
            let news = traffic.since(*clock.before?.counted.get(&of)?)?;
            let seconds = Some(clock.elapsed.as_secs_f64()).filter(|seconds| *seconds > 0.0)?;
            let rate = |counted: u64| as_float(counted) / seconds;
            Some(Self {
                connections: rate(news.connections),
                packets_in: rate(news.packets_in),
                packets_out: rate(news.packets_out),
                bytes_in: rate(news.bytes_in),
                bytes_out: rate(news.bytes_out),
                ..self
            })
        };
        counted().unwrap_or_else(|| Self {
            connections: as_float(estimate.connections),
            packets_in: as_float(estimate.packets_in),
            packets_out: as_float(estimate.packets_out),
            bytes_in: as_float(estimate.bytes_in),
            bytes_out: as_float(estimate.bytes_out),
            ..self
        })
    }
}

/// To the precision that a float has: nobody reads more digits.
pub(crate) fn as_float(number: u64) -> f64 {
    let (high, low) = (number >> 32, number & u64::from(u32::MAX));
    let part = |part: u64| f64::from(u32::try_from(part).unwrap_or(u32::MAX));
    part(high) * 4_294_967_296.0 + part(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{SHOP, kernel_table, told, web};

    fn view() -> View {
        join(kernel_table(), Some(&told()), Some(Sets::new()))
    }

    fn shop(sample: &Sample) -> &Service {
        sample.services.iter().find(|service| service.name == SHOP).unwrap()
    }

    #[test]
    fn virtual_servers_are_one_service_and_those_of_nobody_stand_alone() {
        let sample = Sample::new(&view(), Instant::now(), None);
        let names: Vec<_> = sample.services.iter().map(|service| (service.name.as_str(), service.foreign)).collect();
        assert_eq!(names, [("TCP 192.0.2.1:443", true), ("kube-system/kube-dns:dns", false), (SHOP, false)]);
        let shop = shop(&sample);
        assert_eq!(shop.virtual_servers, ["TCP 10.96.0.10:80 rr", "FWM 16384 for TCP 203.0.113.7:80 rr"]);
        assert_eq!((shop.live(), shop.draining(), shop.servers.len()), (1, 1, 2));
        assert_eq!((shop.share(&shop.servers[0]), shop.share(&shop.servers[1])), (0.6, 0.4));
        assert_eq!(shop.servers[1].state(), "draining 14m12s");
        assert_eq!((sample.totals.virtual_servers, sample.totals.foreign, sample.totals.draining), (4, 1, 1));
    }

    #[test]
    fn rates_are_the_difference_between_two_looks_and_else_the_kernels() {
        let at = Instant::now();
        let first = Sample::new(&view(), at, None);
        assert_eq!(shop(&first).load.connections, 3.0, "the kernel's estimate");
        let mut later = view();
        let row = later.virtual_servers.iter_mut().find(|row| row.key == web()).unwrap();
        row.traffic.connections += 50;
        row.traffic.bytes_in += 1_000_000;
        let second = Sample::new(&later, at + Duration::from_secs(2), Some(&first));
        assert_eq!((shop(&second).load.connections, shop(&second).load.bytes()), (25.0, 500_000.0));
        assert_eq!(shop(&second).load.packets(), 0.0, "none came");

        // Counters that were zeroed, and two looks in one moment.
        for row in &mut later.virtual_servers {
            row.traffic = TrafficCounters::default();
        }
        let zeroed = Sample::new(&later, at + Duration::from_secs(4), Some(&second));
        assert_eq!(shop(&zeroed).load.connections, 3.0);
        assert_eq!(shop(&Sample::new(&view(), at, Some(&first))).load.connections, 3.0);
    }

    #[test]
    fn columns_sort_and_have_neighbours() {
        let sample = Sample::new(&view(), Instant::now(), None);
        let first = |by: SortBy, reversed| {
            let mut services: Vec<_> = sample.services.iter().collect();
            by.sort(reversed, &mut services);
            services[0].name.clone()
        };
        assert_eq!(
            (first(SortBy::Active, false).as_str(), first(SortBy::Connections, false).as_str()),
            (SHOP, "kube-system/kube-dns:dns")
        );
        assert_eq!((first(SortBy::Bytes, false).as_str(), first(SortBy::Name, true).as_str()), ("TCP 192.0.2.1:443", SHOP));
        assert_eq!(
            (SortBy::Name.beside(false), SortBy::Name.beside(true), SortBy::Bytes.beside(true)),
            (SortBy::Name, SortBy::Active, SortBy::Bytes)
        );
    }

    #[test]
    fn large_numbers_keep_their_size() {
        assert_eq!((as_float(0), as_float(1 << 40), as_float(3_000_000_000)), (0.0, 1_099_511_627_776.0, 3e9));
    }
}
