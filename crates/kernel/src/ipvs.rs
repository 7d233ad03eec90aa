//! The IPVS table.

mod buckets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use model::{
    Family, Protocol, RealServer, RealServerCounters, RealServerKey, RealServers, Scheduler, TrafficCounters, TrafficRates,
    VirtualServer, VirtualServerConfig, VirtualServerKey,
};
use neli::consts::socket::NlFamily;
use plan::Step;
use wire::ipvs::{Dest, FAMILY, Ipvs as Codec, Service, Timeouts, parse_dest, parse_info, parse_service, parse_timeouts};
use wire::{Malformed, genl};

use self::buckets::Buckets;
use crate::apply::step_at;
use crate::observe::Compared;
use crate::pipeline::{Outcome, Pipeline};
use crate::socket::{Refusal, Socket};
use crate::{Error, Report};

/// The kernel's IPVS table with its counters, as `ipvsadm -Ln` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The version of IPVS, such as `1.2.1`.
    pub version: String,
    /// Buckets of the connection hash table.
    pub connection_table_size: u32,
    /// All virtual servers, whoever made them, in the kernel's order.
    pub virtual_servers: Vec<Listing>,
}

/// One virtual server with its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// What makes it itself.
    pub key: VirtualServerKey,
    /// Its settings.
    pub config: VirtualServerConfig,
    /// What it has seen.
    pub traffic: TrafficCounters,
    /// What it sees.
    pub rates: TrafficRates,
    /// Its real servers, in the kernel's order.
    pub real_servers: Vec<RealListing>,
}

/// One real server with its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealListing {
    /// What makes it itself.
    pub key: RealServerKey,
    /// Its settings.
    pub server: RealServer,
    /// Its connections.
    pub connections: RealServerCounters,
    /// What it has seen.
    pub traffic: TrafficCounters,
    /// What it sees.
    pub rates: TrafficRates,
}

/// One real server of a virtual server, with what the kernel counts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServerTraffic {
    /// What makes it itself.
    pub key: RealServerKey,
    /// The connections that it has.
    pub connections: RealServerCounters,
    /// What it has seen.
    pub traffic: TrafficCounters,
}

/// Sockets to the IPVS of this network namespace.
pub(crate) struct Ipvs {
    codec: Codec,
    socket: Socket,
    /// For listing real servers, one virtual server at a time: the kernel sizes and clears its buffers by the largest read the socket has
    /// ever asked for.
    dests: Socket,
    /// In which order virtual servers are best made, once that is known.
    buckets: Option<Buckets>,
}

/// How often virtual servers are listed again, after the first two times, until two lists are alike.
const LISTS: usize = 8;

/// From so many virtual servers on, it matters in which order they are made.
const MANY: usize = 256;

const ENOENT: i32 = 2;

fn same_keys<T>(one: &[(VirtualServerKey, T)], other: &[(VirtualServerKey, T)]) -> bool {
    one.iter().map(|(key, _)| key).eq(other.iter().map(|(key, _)| key))
}

/// Each once, where it came first.
fn without_repetitions<T>(mut list: Vec<(VirtualServerKey, T)>) -> Vec<(VirtualServerKey, T)> {
    let mut known = BTreeSet::new();
    list.retain(|(key, _)| known.insert(*key));
    list
}

/// What a message to IPVS is for.
#[derive(Clone, Copy)]
struct Subject {
    /// The step, by its place in the plan.
    index: usize,
    /// The part of a step that makes a virtual server with its real servers.
    real: Option<RealServerKey>,
}

impl Ipvs {
    /// How long changes have been with the kernel since this was last asked.
    pub(crate) fn take_time_in_kernel(&mut self) -> Duration {
        self.socket.take_time_in_kernel()
    }

    /// Opens IPVS; loads its module when it is not there yet.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = Socket::for_requests(NlFamily::Generic, "IPVS")?;
        let family = match find_family(&mut socket)? {
            Some(family) => family,
            None => {
                load_module();
                find_family(&mut socket)?.ok_or_else(|| {
                    Error::missing_feature(
                        "IPVS",
                        "this kernel does not have it: load the module with `modprobe ip_vs`, or install a kernel built with CONFIG_IP_VS",
                    )
                })?
            }
        };
        let dests = Socket::for_small_dumps(NlFamily::Generic, "IPVS")?;
        Ok(Self { codec: Codec::new(family), socket, dests, buckets: None })
    }

    pub(crate) const fn sockets(&mut self) -> [&mut Socket; 2] {
        [&mut self.socket, &mut self.dests]
    }

    /// All virtual servers with their real servers. Those that the model has no words for are left out; they are not ours.
    pub(crate) fn observe(&mut self) -> Result<BTreeMap<VirtualServerKey, VirtualServer>, Error> {
        let virtual_servers = self.services(|service| Ok(service.config))?;
        self.buckets = Buckets::of_listing(virtual_servers.iter().map(|(key, _)| key)).or(self.buckets);
        let with_servers = virtual_servers.into_iter().map(|(key, config)| {
            let real_servers = self.dests(&key, |dest| Ok((dest.key, dest.server)))?;
            Ok((key, VirtualServer { config, real_servers: real_servers.into_iter().collect() }))
        });
        with_servers.collect()
    }

    /// Whether any of these virtual servers is not there. They should be few: each is answered with all that the kernel knows of it.
    pub(crate) fn lacks_any(&mut self, keys: &BTreeSet<VirtualServerKey>) -> Result<bool, Error> {
        let codec = self.codec;
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for key in keys {
            pipeline.push((), |batch, seq| codec.get_service(batch, seq, key));
        }
        pipeline.finish().lacks_any(Error::is_gone)
    }

    /// Whether the table is exactly `virtual_servers`.
    pub(crate) fn holds(&mut self, virtual_servers: &BTreeMap<VirtualServerKey, VirtualServer>) -> Result<bool, Error> {
        // One list is enough where it is just what is remembered.
        let held = self.list_services(|service| Ok(service.config))?;
        if held.len() != virtual_servers.len() {
            return Ok(false);
        }
        for (key, config) in held {
            let Some(server) = virtual_servers.get(&key).filter(|server| server.config == config) else { return Ok(false) };
            if !self.holds_dests(&key, &server.real_servers)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds_dests(&mut self, service: &VirtualServerKey, real_servers: &RealServers) -> Result<bool, Error> {
        let codec = self.codec;
        let found = self.dests.dump(
            "listing real servers",
            |batch, seq| codec.get_dests(batch, seq, service),
            |found: &mut Compared, _, payload| {
                if let Some(dest) = parse_dest(payload, service.family())?.known() {
                    found.add(real_servers.get(&dest.key) == Some(&dest.server));
                }
                Ok(())
            },
        )?;
        Ok(found.are_exactly(real_servers.len()))
    }

    /// The whole table with its counters.
    pub(crate) fn table(&mut self) -> Result<Table, Error> {
        let codec = self.codec;
        let info = self.socket.ask(
            "reading the IPVS version",
            |batch, seq| codec.get_info(batch, seq),
            |_, payload| parse_info(payload),
        )?;
        let info = info.ok_or_else(|| Error::malformed("reading the IPVS version", "nothing"))?;
        let (major, minor, patch) = info.version;
        let listing = |Service { key, config, statistics }: Service<'_>| {
            Ok(Listing { key, config, traffic: statistics.traffic()?, rates: statistics.rates()?, real_servers: Vec::new() })
        };
        let mut virtual_servers: Vec<_> = self.services(listing)?.into_iter().map(|(_, listing)| listing).collect();
        for Listing { key, real_servers, .. } in &mut virtual_servers {
            *real_servers = self.dests(key, |dest| {
                let Dest { key, server, connections, statistics } = dest;
                Ok(RealListing { key, server, connections, traffic: statistics.traffic()?, rates: statistics.rates()? })
            })?;
        }
        Ok(Table {
            version: format!("{major}.{minor}.{patch}"),
            connection_table_size: info.connection_table_size,
            virtual_servers,
        })
    }

    /// How long idle connections are kept.
    pub(crate) fn timeouts(&mut self) -> Result<Timeouts, Error> {
        const CONTEXT: &str = "reading the IPVS time-outs";
        let codec = self.codec;
        let timeouts =
            self.socket.ask(CONTEXT, |batch, seq| codec.get_timeouts(batch, seq), |_, payload| parse_timeouts(payload))?;
        timeouts.ok_or_else(|| Error::malformed(CONTEXT, "nothing"))
    }

    pub(crate) fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let codec = self.codec;
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        pipeline.push((), |batch, seq| codec.set_timeouts(batch, seq, timeouts));
        let Outcome { failures, broken } = pipeline.finish();
        broken.or_else(|| failures.into_iter().next().map(|((), error)| error)).map_or(Ok(()), Err)
    }

    /// The connections of each real server of `service`.
    pub(crate) fn connections(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, RealServerCounters>, Error> {
        Ok(self.dests(service, |dest| Ok((dest.key, dest.connections)))?.into_iter().collect())
    }

    /// What each virtual server has seen.
    pub(crate) fn traffic(&mut self) -> Result<Vec<(VirtualServerKey, TrafficCounters)>, Error> {
        self.services(|service| service.statistics.traffic())
    }

    /// What each real server of `service` has and has seen.
    pub(crate) fn real_server_traffic(&mut self, service: &VirtualServerKey) -> Result<Vec<RealServerTraffic>, Error> {
        self.dests(service, |dest| {
            Ok(RealServerTraffic { key: dest.key, connections: dest.connections, traffic: dest.statistics.traffic()? })
        })
    }

    /// What `read` takes of each virtual server, in the kernel's order.
    ///
    /// The kernel goes on with a list at the place where its last part has ended, and counts places over the virtual servers of all network
    /// namespaces (`ip_vs_genl_dump_services`, net/netfilter/ipvs/ip_vs_ctl.c). Where another one changes meanwhile, some of ours come twice or
    /// not at all, and nothing says so. So what two lists in a row have alike is taken for what there is.
    fn services<T>(&mut self, read: impl Fn(Service<'_>) -> Result<T, Malformed>) -> Result<Vec<(VirtualServerKey, T)>, Error> {
        let mut last = self.list_services(&read)?;
        for _ in 0..LISTS {
            let list = self.list_services(&read)?;
            if same_keys(&last, &list) {
                return Ok(without_repetitions(list));
            }
            last = list;
        }
        // It changes all the time. What one list lacked is there more likely than not.
        let list = self.list_services(&read)?;
        Ok(without_repetitions(list.into_iter().chain(last).collect()))
    }

    fn list_services<T>(
        &mut self,
        read: impl Fn(Service<'_>) -> Result<T, Malformed>,
    ) -> Result<Vec<(VirtualServerKey, T)>, Error> {
        let codec = self.codec;
        self.socket.dump(
            "listing virtual servers",
            |batch, seq| codec.get_services(batch, seq),
            |services: &mut Vec<(VirtualServerKey, T)>, _, payload| {
                let service = parse_service(payload)?.known();
                services.extend(service.map(|service| Ok((service.key, read(service)?))).transpose()?);
                Ok(())
            },
        )
    }

    /// What `read` takes of each real server of `service`, in the kernel's order.
    fn dests<T>(&mut self, service: &VirtualServerKey, read: impl Fn(Dest<'_>) -> Result<T, Malformed>) -> Result<Vec<T>, Error> {
        let codec = self.codec;
        self.dests.dump(
            "listing real servers",
            |batch, seq| codec.get_dests(batch, seq, service),
            |dests: &mut Vec<T>, _, payload| {
                dests.extend(parse_dest(payload, service.family())?.known().map(&read).transpose()?);
                Ok(())
            },
        )
    }

    /// Whether the kernel has `scheduler`; it loads the module `ip_vs_NAME` if there is one. Makes nothing.
    ///
    /// There is no list to read. What tells is a service that can never be: it is looked for its scheduler first (`ENOENT`), and only
    /// then found to have an IPv6 prefix of no bits (`EINVAL`; `ip_vs_add_service`, net/netfilter/ipvs/ip_vs_ctl.c). A kernel that
    /// refuses for other reasons, such as one without IPv6, gets the benefit of the doubt.
    pub(crate) fn offers(&mut self, scheduler: Scheduler) -> Result<bool, Error> {
        let (codec, key) = (self.codec, VirtualServerKey::address(Ipv6Addr::UNSPECIFIED.into(), Protocol::Tcp, 1));
        let config = VirtualServerConfig { granularity: 0, ..VirtualServerConfig::new(scheduler, Family::V6) };
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        pipeline.push((), |batch, seq| codec.new_service(batch, seq, &key, &config));
        let Outcome { failures, broken } = pipeline.finish();
        match (broken, failures.first()) {
            (Some(error), _) => Err(error),
            (None, Some(((), error))) => Ok(error.errno() != Some(ENOENT)),
            (None, None) => {
                // A kernel that takes it after all is not to keep it.
                let mut pipeline = Pipeline::new(&mut self.socket, refused);
                pipeline.push((), |batch, seq| codec.del_service(batch, seq, &key));
                pipeline.finish().broken.map_or(Ok(true), Err)
            }
        }
    }

    /// Carries out those of `steps` that are about virtual servers; each comes with its place in the plan.
    pub(crate) fn apply(&mut self, steps: &[(usize, &Step)], report: &mut Report) {
        let Outcome { mut failures, broken } = self.carry_out(steps);
        failures.sort_by_key(|(subject, _)| subject.index);
        let step_at = |index: usize| step_at(steps, index).cloned();
        let mut refused_wholes = BTreeSet::new();
        for (subject, error) in failures {
            let Some(step) = step_at(subject.index) else { continue };
            match (&step, subject.real) {
                // Without its virtual server no real server can be made; saying so for each would bury the cause.
                (_, Some(_)) if refused_wholes.contains(&subject.index) => {}
                (Step::AddVirtualServer { key, real_servers, .. }, Some(real)) => {
                    let server = real_servers.iter().find(|(key, _)| *key == real).map(|(_, server)| *server).unwrap_or_default();
                    report.fail_part(Step::AddRealServer { key: *key, real, server }, error);
                }
                // What was to be removed is gone: that is what was wanted.
                (Step::RemoveRealServer { .. } | Step::RemoveVirtualServer(_), _) if error.is_gone() => {}
                _ => {
                    refused_wholes.insert(subject.index);
                    let error = explained(&step, error);
                    report.fail(subject.index, step, error);
                }
            }
        }
        if let (Some(error), Some((index, step))) = (broken, steps.first()) {
            report.fail(*index, (*step).clone(), error);
        }
    }

    /// As they come, but many virtual servers are made in the order in which the kernel is fastest.
    fn carry_out(&mut self, steps: &[(usize, &Step)]) -> Outcome<Subject> {
        if steps.iter().filter(|(_, step)| matches!(step, Step::AddVirtualServer { .. })).count() < MANY {
            return self.write(steps);
        }
        let mut steps = steps.to_vec();
        if let Some(buckets) = self.buckets {
            buckets.sort(&mut steps, |(_, step)| step.virtual_server());
        }
        let outcome = self.write(&steps);
        if self.buckets.is_none() && outcome.broken.is_none() {
            // For the next time. What cannot be listed costs time and nothing else.
            let listed = self.list_services(|_| Ok(())).ok();
            self.buckets = listed.and_then(|listed| Buckets::of_listing(listed.iter().map(|(key, ())| key)));
        }
        outcome
    }

    fn write(&mut self, steps: &[(usize, &Step)]) -> Outcome<Subject> {
        let codec = self.codec;
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for (index, step) in steps {
            write_step(&mut pipeline, codec, *index, step);
        }
        pipeline.finish()
    }
}

fn write_step(pipeline: &mut Pipeline<'_, Subject>, codec: Codec, index: usize, step: &Step) {
    let whole = Subject { index, real: None };
    match step {
        Step::AddVirtualServer { key, config, real_servers } => {
            pipeline.push(whole, |batch, seq| codec.new_service(batch, seq, key, config));
            for (real, settings) in real_servers {
                let part = Subject { index, real: Some(*real) };
                pipeline.push(part, |batch, seq| codec.new_dest(batch, seq, key, real, settings));
            }
        }
        Step::SetVirtualServer { key, config } => pipeline.push(whole, |batch, seq| codec.set_service(batch, seq, key, config)),
        Step::AddRealServer { key, real, server } => {
            pipeline.push(whole, |batch, seq| codec.new_dest(batch, seq, key, real, server));
        }
        Step::SetRealServer { key, real, server } => {
            pipeline.push(whole, |batch, seq| codec.set_dest(batch, seq, key, real, server));
        }
        Step::RemoveRealServer { key, real } => pipeline.push(whole, |batch, seq| codec.del_dest(batch, seq, key, real)),
        Step::RemoveVirtualServer(key) => pipeline.push(whole, |batch, seq| codec.del_service(batch, seq, key)),
        Step::CreateSet { .. }
        | Step::GrowSet { .. }
        | Step::ChangeRules(..)
        | Step::AddMembers(..)
        | Step::BindVip { .. }
        | Step::RebindVip { .. }
        | Step::UnbindVip(_)
        | Step::RemoveMembers(..)
        | Step::DestroySet(_) => {}
    }
}

/// For a virtual server itself `ENOENT` has one meaning, which the kernel does not put into words: there is no such scheduler.
fn explained(step: &Step, error: Error) -> Error {
    let (Step::AddVirtualServer { config, .. } | Step::SetVirtualServer { config, .. }) = step else {
        return error;
    };
    if error.errno() == Some(ENOENT) { Error::missing_scheduler(config.scheduler) } else { error }
}

fn refused(refusal: &Refusal) -> Error {
    Error::refused("IPVS", refusal.errno, refusal.text.as_deref())
}

fn find_family(socket: &mut Socket) -> Result<Option<u16>, Error> {
    socket.ask("looking for IPVS", |batch, seq| genl::get_family(batch, seq, FAMILY), |_, payload| genl::parse_family(payload))
}

/// Asks for the module to be loaded. It may be built in, loaded by others, or not be there: only what the kernel answers afterwards counts.
fn load_module() {
    let modprobe = Command::new("modprobe").arg("ip_vs").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = modprobe {
        tracing::debug!(%error, "cannot run modprobe");
    }
}

impl Listing {
    /// A virtual server with default settings and without real servers or traffic, to build listings from.
    #[must_use]
    pub fn of(key: VirtualServerKey) -> Self {
        Self {
            key,
            config: VirtualServerConfig::new(Scheduler::RR, key.family()),
            traffic: TrafficCounters::default(),
            rates: TrafficRates::default(),
            real_servers: Vec::new(),
        }
    }
}

impl RealListing {
    /// A real server with default settings and without connections or traffic, to build listings from.
    #[must_use]
    pub fn of(key: RealServerKey) -> Self {
        Self {
            key,
            server: RealServer::default(),
            connections: RealServerCounters::default(),
            traffic: TrafficCounters::default(),
            rates: TrafficRates::default(),
        }
    }
}
