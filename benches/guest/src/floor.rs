//! The raw floor: the messages that bring the kernel from one state to another, or that list it, in the best batches, and nothing else. All of
//! them are written before the clock starts, and of the answers only as much is read as tells that it went well.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kernel::Flavour;
use model::{DEVICE, Family, RealServer, RealServerKey, Set, SetKind, State, Via, VirtualServerKey};
use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use plan::Step;
use wire::ipset::{AdtList, Ipset, ListScope, get_protocol, parse_protocol, parse_type};
use wire::ipvs::{FAMILY, Ipvs};
use wire::rtnl::{self, LocalRoute, RouteFilter};
use wire::{Batch, Body, Malformed, Messages, genl};

use crate::namespace;

/// The most bytes in one `send`; more gains nothing measurable.
const BATCH: usize = 64 * 1024;
/// For answers and large dumps.
const BUFFER: usize = 64 * 1024;
/// For many small dumps: the kernel allocates and clears as much for each part as the socket has ever asked for.
const SMALL_BUFFER: usize = 8 * 1024;

/// Sockets of one namespace.
pub(crate) struct Floor {
    lanes: BTreeMap<Lane, Socket>,
    ipvs: Ipvs,
    ipset: Ipset,
    revisions: BTreeMap<(SetKind, Family), u8>,
    /// The index of the device that VIPs are on.
    link: u32,
    seq: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Ipvs,
    Dests,
    Sets,
    Routes,
}

struct Socket {
    inner: NlSocket,
    buffer: Vec<u8>,
}

/// One `send`, ready to go.
struct Sending {
    lane: Lane,
    batch: Batch,
    /// The sequence number of its last message, whose answer is the last.
    last: u32,
}

/// Messages that are written and not sent.
#[derive(Default)]
pub(crate) struct Prepared(Vec<Sending>);

impl Prepared {
    /// How many messages there are.
    pub(crate) fn messages(&self) -> usize {
        self.0.iter().map(|sending| sending.batch.messages()).sum()
    }
}

impl Floor {
    /// Opens sockets in the namespace of this thread, where the device for VIPs is made if it is not there.
    pub(crate) fn open() -> Result<Self> {
        let mut lanes = BTreeMap::from([
            (Lane::Ipvs, Socket::open(NlFamily::Generic, BUFFER)?),
            (Lane::Dests, Socket::open(NlFamily::Generic, SMALL_BUFFER)?),
            (Lane::Sets, Socket::open(NlFamily::Netfilter, BUFFER)?),
            (Lane::Routes, Socket::open(NlFamily::Route, BUFFER)?),
        ]);
        let mut ask = |lane: Lane, write: &dyn Fn(&mut Batch, u32) -> Result<(), Malformed>| -> Result<Option<Vec<u8>>> {
            let mut batch = Batch::default();
            write(&mut batch, 1)?;
            lanes.get_mut(&lane).context("no such socket")?.ask(&batch)
        };
        let family = ask(Lane::Ipvs, &|batch, seq| genl::get_family(batch, seq, FAMILY))?.context("the kernel has no IPVS")?;
        let ipvs = Ipvs::new(genl::parse_family(&family)?);
        let ipset = parse_protocol(&ask(Lane::Sets, &get_protocol)?.context("the kernel has no ipset")?)?;
        let mut revisions = BTreeMap::new();
        for set in Family::ALL.into_iter().flat_map(Set::of_family) {
            let (kind, family) = (set.kind(), set.family);
            let range =
                ask(Lane::Sets, &|batch, seq| ipset.get_type(batch, seq, kind, family))?.context("an ipset type is missing")?;
            revisions.insert((kind, family), parse_type(&range)?.1);
        }
        if ask(Lane::Routes, &|batch, seq| rtnl::get_link(batch, seq, DEVICE))?.is_none() {
            namespace::run("ip", &["link", "add", DEVICE, "type", "dummy"], None)?;
            namespace::run("ip", &["link", "set", DEVICE, "up"], None)?;
        }
        let link =
            ask(Lane::Routes, &|batch, seq| rtnl::get_link(batch, seq, DEVICE))?.context("the device for VIPs is missing")?;
        Ok(Self { lanes, ipvs, ipset, revisions, link: rtnl::parse_link(&link)?.index, seq: 1 })
    }

    /// Writes the messages of steps, but for packet rules, which no message makes.
    pub(crate) fn prepare<'a>(&mut self, steps: impl IntoIterator<Item = &'a Step>) -> Result<Prepared> {
        let mut composer = Composer { floor: self, prepared: Prepared::default(), lane: Lane::Sets, batch: Batch::default() };
        for step in steps {
            composer.step(step)?;
        }
        composer.flush();
        Ok(composer.prepared)
    }

    /// Sends it and waits for the answers; every one has to be good.
    pub(crate) fn send(&mut self, prepared: &Prepared) -> Result<Duration> {
        let begun = Instant::now();
        for sending in &prepared.0 {
            self.lanes.get_mut(&sending.lane).context("no such socket")?.execute(&sending.batch, sending.last)?;
        }
        Ok(begun.elapsed())
    }

    /// The real servers of `key` as they are now.
    pub(crate) fn real_servers(&mut self, key: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, RealServer>> {
        let mut batch = Batch::default();
        self.ipvs.get_dests(&mut batch, 1, key)?;
        let mut servers = BTreeMap::new();
        self.lanes.get_mut(&Lane::Dests).context("no such socket")?.dump_each(&batch, |payload| {
            servers.extend(wire::ipvs::parse_dest(payload, key.family())?.known().map(|dest| (dest.key, dest.server)));
            Ok(())
        })?;
        Ok(servers)
    }

    /// Lists what is there as an observation does: sets, virtual servers, real servers and VIPs; with the number of messages that came.
    pub(crate) fn dump(&mut self, state: &State, families: &[Family]) -> Result<(Duration, usize)> {
        let mut requests = Vec::new();
        let mut request = |lane: Lane, write: &dyn Fn(&mut Batch, u32) -> Result<(), Malformed>| -> Result<()> {
            let mut batch = Batch::default();
            write(&mut batch, 1)?;
            requests.push((lane, batch));
            Ok(())
        };
        let (ipvs, ipset) = (self.ipvs, self.ipset);
        for set in state.sets.keys() {
            request(Lane::Sets, &|batch, seq| ipset.list(batch, seq, set.name(), ListScope::Members))?;
        }
        request(Lane::Ipvs, &|batch, seq| ipvs.get_services(batch, seq))?;
        for key in state.virtual_servers.keys() {
            request(Lane::Dests, &|batch, seq| ipvs.get_dests(batch, seq, key))?;
        }
        for family in families {
            let filter = RouteFilter { family: *family, protocol: Some(rtnl::PROTOCOL), link: None };
            request(Lane::Routes, &|batch, seq| rtnl::get_routes(batch, seq, filter))?;
        }
        let begun = Instant::now();
        let mut messages = 0;
        for (lane, batch) in &requests {
            messages += self.lanes.get_mut(lane).context("no such socket")?.dump(batch)?;
        }
        Ok((begun.elapsed(), messages))
    }
}

/// Has the packet rules saved, as an observation does.
pub(crate) fn save_rules(flavour: Flavour, families: &[Family]) -> Result<(Duration, Vec<(Family, String)>)> {
    let begun = Instant::now();
    let saved = families
        .iter()
        .map(|family| Ok((*family, namespace::run(&program(flavour, *family, "save"), &[], None)?)))
        .collect::<Result<_>>()?;
    Ok((begun.elapsed(), saved))
}

/// Has saved packet rules restored.
pub(crate) fn restore_rules(flavour: Flavour, saved: &[(Family, String)]) -> Result<Duration> {
    let begun = Instant::now();
    for (family, rules) in saved {
        namespace::run(&program(flavour, *family, "restore"), &[], Some(rules))?;
    }
    Ok(begun.elapsed())
}

fn program(flavour: Flavour, family: Family, verb: &str) -> String {
    let name = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    match flavour {
        Flavour::Nft => format!("{name}-nft-{verb}"),
        Flavour::Legacy => format!("{name}-legacy-{verb}"),
        Flavour::Default => format!("{name}-{verb}"),
    }
}

impl Socket {
    fn open(family: NlFamily, buffer: usize) -> Result<Self> {
        let inner = NlSocket::connect(family, None, Groups::empty()).context("cannot open a netlink socket")?;
        Ok(Self { inner, buffer: vec![0; buffer] })
    }

    fn receive(&mut self) -> Result<&[u8]> {
        let (len, _) = self.inner.recv(self.buffer.as_mut_slice(), Msg::TRUNC).context("cannot read from a netlink socket")?;
        self.buffer.get(..len).with_context(|| format!("an answer has {len} bytes"))
    }

    /// The data that one request is answered with; `None` when there is no such object.
    fn ask(&mut self, batch: &Batch) -> Result<Option<Vec<u8>>> {
        const ENOENT: i32 = 2;
        const ENODEV: i32 = 19;
        self.inner.send(batch.as_bytes(), Msg::empty()).context("cannot send")?;
        loop {
            for message in Messages::new(self.receive()?) {
                match message?.body {
                    Body::Data(payload) => {
                        let payload = payload.to_vec();
                        self.inner.nonblock()?;
                        // What may follow says that this was all.
                        while self.inner.recv(self.buffer.as_mut_slice(), Msg::TRUNC).is_ok() {}
                        self.inner.block()?;
                        return Ok(Some(payload));
                    }
                    Body::Error { errno: ENOENT | ENODEV, .. } => return Ok(None),
                    Body::Error { errno, text, .. } => bail!("a question was refused: {errno} {text:?}"),
                    _ => {}
                }
            }
        }
    }

    fn execute(&mut self, batch: &Batch, last: u32) -> Result<()> {
        self.inner.send(batch.as_bytes(), Msg::empty()).context("cannot send")?;
        loop {
            for message in Messages::new(self.receive()?) {
                let message = message?;
                match message.body {
                    Body::Ack { .. } if message.seq == last => return Ok(()),
                    Body::Error { errno, text, .. } => bail!("message {} was refused: {errno} {text:?}", message.seq),
                    _ => {}
                }
            }
        }
    }

    fn dump(&mut self, batch: &Batch) -> Result<usize> {
        let mut messages = 0;
        self.dump_each(batch, |_| {
            messages += 1;
            Ok(())
        })?;
        Ok(messages)
    }

    fn dump_each(&mut self, batch: &Batch, mut read: impl FnMut(&[u8]) -> Result<(), Malformed>) -> Result<()> {
        self.inner.send(batch.as_bytes(), Msg::empty()).context("cannot send")?;
        loop {
            for message in Messages::new(self.receive()?) {
                match message?.body {
                    Body::Done { errno: 0, .. } => return Ok(()),
                    Body::Done { errno, text } | Body::Error { errno, text, .. } => bail!("a dump was refused: {errno} {text:?}"),
                    Body::Data(payload) => read(payload)?,
                    _ => {}
                }
            }
        }
    }
}

/// Cuts messages into batches.
struct Composer<'a> {
    floor: &'a mut Floor,
    prepared: Prepared,
    lane: Lane,
    batch: Batch,
}

impl Composer<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        let (ipvs, ipset, link) = (self.floor.ipvs, self.floor.ipset, self.floor.link);
        match step {
            Step::CreateSet { set, capacity, expected } => {
                // Twice as many buckets as members, so that nothing is rehashed on the way.
                let buckets = u32::try_from((expected * 2).max(1024).next_power_of_two())?;
                let revision = *self.floor.revisions.get(&(set.kind(), set.family)).context("a set of an unknown kind")?;
                self.message(Lane::Sets, |batch, seq| {
                    ipset.create(batch, seq, set.name(), set.kind(), set.family, revision, buckets, *capacity)
                })
            }
            Step::AddMembers(set, members) => {
                let mut list = AdtList::new(set.kind());
                for member in members {
                    if list.push(member).is_err() {
                        self.message(Lane::Sets, |batch, seq| ipset.add_list(batch, seq, set.name(), &list))?;
                        list.clear();
                        list.push(member)?;
                    }
                }
                self.message(Lane::Sets, |batch, seq| ipset.add_list(batch, seq, set.name(), &list))
            }
            Step::RemoveMembers(set, members) => {
                let mut list = AdtList::new(set.kind());
                members.iter().try_for_each(|member| list.push(member))?;
                self.message(Lane::Sets, |batch, seq| ipset.del_list(batch, seq, set.name(), &list))
            }
            Step::AddVirtualServer { key, config, real_servers } => {
                self.message(Lane::Ipvs, |batch, seq| ipvs.new_service(batch, seq, key, config))?;
                real_servers.iter().try_for_each(|(real, server)| {
                    self.message(Lane::Ipvs, |batch, seq| ipvs.new_dest(batch, seq, key, real, server))
                })
            }
            Step::AddRealServer { key, real, server } => {
                self.message(Lane::Ipvs, |batch, seq| ipvs.new_dest(batch, seq, key, real, server))
            }
            Step::SetRealServer { key, real, server } => {
                self.message(Lane::Ipvs, |batch, seq| ipvs.set_dest(batch, seq, key, real, server))
            }
            Step::RemoveRealServer { key, real } => self.message(Lane::Ipvs, |batch, seq| ipvs.del_dest(batch, seq, key, real)),
            Step::RemoveVirtualServer(key) => self.message(Lane::Ipvs, |batch, seq| ipvs.del_service(batch, seq, key)),
            Step::BindVip { vip, source } if vip.via == Via::Route => {
                let route = route(link, vip.address, *source);
                self.message(Lane::Routes, |batch, seq| rtnl::add_local_route(batch, seq, &route))
            }
            Step::UnbindVip(vip) if vip.via == Via::Route => {
                let route = route(link, vip.address, None);
                self.message(Lane::Routes, |batch, seq| rtnl::del_local_route(batch, seq, &route))
            }
            Step::ChangeRules(..) => Ok(()),
            other => bail!("a scenario has a step that the floor has no message for: {other}"),
        }
    }

    fn message(&mut self, lane: Lane, write: impl FnOnce(&mut Batch, u32) -> Result<(), Malformed>) -> Result<()> {
        if lane != self.lane || self.batch.len() >= BATCH {
            self.flush();
            self.lane = lane;
        }
        self.floor.seq += 1;
        Ok(write(&mut self.batch, self.floor.seq)?)
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.acknowledge_last();
        self.prepared.0.push(Sending { lane: self.lane, batch, last: self.floor.seq });
    }
}

fn route(link: u32, address: IpAddr, source: Option<IpAddr>) -> LocalRoute {
    LocalRoute { address, link, source }
}

/// The kernel's state has to be the desired one, or what was measured is not what it is called.
pub(crate) fn ensure_equal(desired: &State, observed: &State) -> Result<()> {
    ensure!(desired.virtual_servers == observed.virtual_servers, "the virtual servers differ from the agent's");
    ensure!(desired.vips == observed.vips, "the VIPs differ from the agent's");
    for (set, state) in &desired.sets {
        ensure!(
            observed.sets.get(set).is_some_and(|observed| observed.members == state.members),
            "the set {set} differs from the agent's"
        );
    }
    Ok(())
}
