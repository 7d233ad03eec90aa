//! The ipsets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Family, Member, Set, SetKind, SetState};
use neli::consts::socket::NlFamily;
use plan::Step;
use wire::Batch;
use wire::ipset::{AdtList, Ipset as Codec, ListScope, get_protocol, parse_protocol, parse_set, parse_type};

use crate::observe::Compared;
use crate::pipeline::Pipeline;
use crate::socket::{Refusal, Socket};
use crate::{Error, Report};

/// The ipsets of this network namespace. A [`Kernel`](crate::Kernel) has one; by itself it does without IPVS.
pub struct Ipset {
    codec: Codec,
    socket: Socket,
    /// The revision of each type to make sets with: the highest that this kernel and this program know.
    revisions: BTreeMap<(SetKind, Family), u8>,
}

/// The highest revision of each type that the messages written here are valid for (net/netfilter/ipset/ip_set_hash_*.c). Later ones
/// have only added what sets may be made with, so there is nothing to gain from them.
const fn known_revision(kind: SetKind) -> u8 {
    match kind {
        SetKind::HashIp => 4,
        SetKind::HashIpPort | SetKind::HashIpPortMark | SetKind::HashIpPortIp => 5,
        SetKind::HashIpPortNet => 7,
    }
}

/// The most buckets a set is made with; the kernel doubles them as needed, at a cost that no longer matters at this size.
const MAX_BUCKETS: usize = 1 << 20;
/// ipset's own default, and enough for a small cluster.
const MIN_BUCKETS: usize = 1024;

/// A larger set is filled under this name, one at a time. It does not follow from the set's own name, which may be as long as the kernel
/// takes.
pub(crate) const TEMPORARY: &str = "KUBE-IPVS-GROWING";

const EINVAL: i32 = 22;
/// `IPSET_ERR_EXIST`, for the question whether a set has a member: it has not.
const NO_MEMBER: i32 = 4103;

impl Ipset {
    /// How long changes have been with the kernel since this was last asked.
    pub(crate) fn take_time_in_kernel(&mut self) -> Duration {
        self.socket.take_time_in_kernel()
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// When the kernel has no ipset.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::for_requests(NlFamily::Netfilter, "ipset")?;
        let missing = || {
            Error::missing_feature(
                "ipset",
                "this kernel does not have it: load the module with `modprobe ip_set`, or install a kernel built with CONFIG_IP_SET",
            )
        };
        let codec = match socket.ask("looking for ipset", get_protocol, |_, payload| parse_protocol(payload)) {
            Ok(codec) => codec.ok_or_else(missing)?,
            // What nfnetlink answers when it has no such subsystem.
            Err(error) if error.errno() == Some(EINVAL) => return Err(missing()),
            Err(error) => return Err(error),
        };
        Ok(Self { codec, socket, revisions: BTreeMap::new() })
    }

    pub(crate) const fn sockets(&mut self) -> [&mut Socket; 1] {
        [&mut self.socket]
    }

    /// Those of our sets that exist.
    ///
    /// # Errors
    /// When they cannot be read in full, or a set with one of our names has another layout: it cannot be used, and is not ours to destroy.
    pub fn observe(&mut self) -> Result<BTreeMap<Set, SetState>, Error> {
        let mut sets = BTreeMap::new();
        for set in Family::ALL.into_iter().flat_map(Set::of_family) {
            if let Some(state) = self.observe_set(set)? {
                sets.insert(set, state);
            }
        }
        Ok(sets)
    }

    fn observe_set(&mut self, set: Set) -> Result<Option<SetState>, Error> {
        #[derive(Default)]
        struct Found {
            state: SetState,
            other_layout: Option<String>,
        }
        let codec = self.codec;
        let found = self.socket.dump(
            "listing a set",
            |batch, seq| codec.list(batch, seq, set.name(), ListScope::Members),
            |found: &mut Found, _, payload| {
                let part = parse_set(payload)?;
                if let Some(header) = part.header {
                    if header.kind() != Some(set.kind()) || header.family != Some(set.family) {
                        let family = header.family.map_or_else(|| "of no family".to_owned(), |family| family.to_string());
                        let beyond = if header.is_extended { " with time-outs, counters or the like" } else { "" };
                        found.other_layout = Some(format!("{} {family}{beyond}", header.type_name));
                    }
                    found.state.capacity = header.maxelem.unwrap_or_default();
                }
                for member in part.members() {
                    // A member the model has no words for is not ours, and does no harm. That goes for one without a mark in a set with
                    // marks, too: a desired one with a mark takes its place, and removing it then would remove that.
                    found.state.members.extend(member?.known().filter(|member| member.kind() == set.kind()));
                }
                Ok(())
            },
        );
        match found {
            Ok(Found { other_layout: Some(layout), .. }) => Err(Error::missing_feature(
                format!("the set {set}"),
                format!(
                    "it exists as {layout} and has to be {} {}; stop what made it, then run `ipset destroy {set}`",
                    set.kind().name(),
                    set.family
                ),
            )),
            Ok(found) => Ok(Some(found.state)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the sets that are ours are exactly `sets`; those of other families than `families` are not looked at.
    pub fn holds(&mut self, sets: &BTreeMap<Set, SetState>, families: &BTreeSet<Family>) -> Result<bool, Error> {
        for set in families.iter().flat_map(|family| Set::of_family(*family)) {
            if !self.holds_set(set, sets.get(&set))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds_set(&mut self, set: Set, state: Option<&SetState>) -> Result<bool, Error> {
        let codec = self.codec;
        let found = self.socket.dump(
            "listing a set",
            |batch, seq| codec.list(batch, seq, set.name(), ListScope::Members),
            |found: &mut Compared, _, payload| {
                let part = parse_set(payload)?;
                let Some(state) = state else { return Ok(()) };
                if let Some(header) = &part.header {
                    // One that is laid out differently is for an observation to complain about.
                    let same = header.kind() == Some(set.kind()) && header.family == Some(set.family);
                    if !same || header.maxelem != Some(state.capacity) {
                        found.add(false);
                    }
                }
                for member in part.members() {
                    if let Some(member) = member?.known().filter(|member| member.kind() == set.kind()) {
                        found.add(state.members.contains(&member));
                    }
                }
                Ok(())
            },
        );
        Ok(match (absent_or(found)?, state) {
            (Some(found), Some(state)) => found.are_exactly(state.members.len()),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        })
    }

    /// Whether any of these members is not in its set, or a set is not there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn lacks_any(&mut self, members: &BTreeMap<Set, BTreeSet<Member>>) -> Result<bool, Error> {
        let codec = self.codec;
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for (set, member) in members.iter().flat_map(|(set, members)| members.iter().map(move |member| (set, member))) {
            pipeline.push((), |batch, seq| codec.test(batch, seq, set.name(), member));
        }
        pipeline.finish().lacks_any(|error| error.is_gone() || error.errno() == Some(NO_MEMBER))
    }

    /// Whether there is a set called `name`, whoever made it and whatever its layout.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn exists(&mut self, name: &str) -> Result<bool, Error> {
        let codec = self.codec;
        let found = self.socket.dump(
            "looking for a set",
            |batch, seq| codec.list(batch, seq, name, ListScope::Headers),
            |(): &mut (), _, payload| parse_set(payload).map(drop),
        );
        absent_or(found).map(|found| found.is_some())
    }

    /// The ports in the set called `name`, which is one of ports (`bitmap:port`); `None` without such a set.
    pub(crate) fn ports(&mut self, name: &str) -> Result<Option<BTreeSet<u16>>, Error> {
        #[derive(Default)]
        struct Found {
            ports: BTreeSet<u16>,
            is_other: bool,
        }
        let codec = self.codec;
        let found = self.socket.dump(
            "listing a set of ports",
            |batch, seq| codec.list(batch, seq, name, ListScope::Members),
            |found: &mut Found, _, payload| {
                let part = parse_set(payload)?;
                found.is_other |= part.header.is_some_and(|header| header.type_name != "bitmap:port");
                if !found.is_other {
                    part.ports().try_for_each(|port| {
                        found.ports.insert(port?);
                        Ok(())
                    })?;
                }
                Ok(())
            },
        );
        Ok(absent_or(found)?.filter(|found| !found.is_other).map(|found| found.ports))
    }

    /// The members of the set called `name`, as far as the model has words for them; `None` without such a set.
    pub(crate) fn members(&mut self, name: &str) -> Result<Option<BTreeSet<Member>>, Error> {
        let codec = self.codec;
        let found = self.socket.dump(
            "listing a set",
            |batch, seq| codec.list(batch, seq, name, ListScope::Members),
            |members: &mut BTreeSet<Member>, _, payload| {
                parse_set(payload)?.members().try_for_each(|member| {
                    members.extend(member?.known());
                    Ok(())
                })
            },
        );
        absent_or(found)
    }

    /// Carries out those of `steps` that are about sets; each comes with its place in the plan.
    pub fn apply(&mut self, steps: &[(usize, &Step)], report: &mut Report) {
        for (index, step) in steps {
            let done = match step {
                Step::CreateSet { set, capacity, expected } => self.create(set.name(), *set, *capacity, *expected),
                Step::GrowSet { set, capacity, members } => self.grow(*set, *capacity, members),
                Step::AddMembers(set, members) => self.change_members(Change::Add, set.name(), set.kind(), members),
                Step::RemoveMembers(set, members) => self.change_members(Change::Remove, set.name(), set.kind(), members),
                Step::DestroySet(set) => self.destroy(set.name()),
                _ => Ok(()),
            };
            if let Err(error) = done {
                report.fail(*index, (*step).clone(), error);
            }
        }
    }

    fn create(&mut self, name: &str, set: Set, capacity: u32, expected: usize) -> Result<(), Error> {
        let revision = self.revision(set)?;
        // Twice as many buckets as members, so that nothing is rehashed while they are added.
        let buckets = expected.saturating_mul(2).clamp(MIN_BUCKETS, MAX_BUCKETS).next_power_of_two();
        let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
        let codec = self.codec;
        self.execute("creating", name, |batch, seq| {
            codec.create(batch, seq, name, set.kind(), set.family, revision, buckets, capacity)
        })
    }

    /// Makes a larger set under another name, fills it, and swaps the two: packet rules see either the one or the other.
    fn grow(&mut self, set: Set, capacity: u32, members: &BTreeSet<Member>) -> Result<(), Error> {
        // What a process that was killed in the middle has left.
        self.destroy(TEMPORARY)?;
        self.create(TEMPORARY, set, capacity, members.len())?;
        let codec = self.codec;
        let filled = self
            .change_members(Change::Add, TEMPORARY, set.kind(), members)
            .and_then(|()| self.execute("swapping", set.name(), |batch, seq| codec.swap(batch, seq, set.name(), TEMPORARY)));
        let destroyed = self.destroy(TEMPORARY);
        filled.and(destroyed)
    }

    /// Destroys the set called `name`. That there is none is what was wanted.
    pub(crate) fn destroy(&mut self, name: &str) -> Result<(), Error> {
        let codec = self.codec;
        match self.execute("destroying", name, |batch, seq| codec.destroy(batch, seq, name)) {
            Err(error) if error.is_gone() => Ok(()),
            done => done,
        }
    }

    fn change_members(&mut self, change: Change, name: &str, kind: SetKind, members: &BTreeSet<Member>) -> Result<(), Error> {
        let mut list = AdtList::new(kind);
        for member in members {
            if list.push(member).is_err() {
                self.send_list(change, name, &list)?;
                list.clear();
                // An empty list takes any member.
                let _ = list.push(member);
            }
        }
        if list.is_empty() { Ok(()) } else { self.send_list(change, name, &list) }
    }

    fn send_list(&mut self, change: Change, name: &str, list: &AdtList) -> Result<(), Error> {
        let codec = self.codec;
        match change {
            Change::Add => self.execute("adding to", name, |batch, seq| codec.add_list(batch, seq, name, list)),
            Change::Remove => self.execute("removing from", name, |batch, seq| codec.del_list(batch, seq, name, list)),
        }
    }

    fn execute(
        &mut self,
        verb: &str,
        name: &str,
        write: impl FnOnce(&mut Batch, u32) -> Result<(), wire::Malformed>,
    ) -> Result<(), Error> {
        let context = || format!("{verb} the set {name}");
        let mut batch = Batch::default();
        let seq = self.socket.next_seq();
        write(&mut batch, seq).map_err(|error| Error::malformed(context(), error))?;
        match self.socket.execute(&mut batch, seq..=seq)?.first() {
            None => Ok(()),
            Some(refusal) => Err(Error::refused_by_ipset(context(), refusal.errno)),
        }
    }

    fn revision(&mut self, set: Set) -> Result<u8, Error> {
        let key = (set.kind(), set.family);
        if let Some(revision) = self.revisions.get(&key) {
            return Ok(*revision);
        }
        let codec = self.codec;
        let context = format!("looking for the set type {}", set.kind().name());
        let range = self.socket.ask(
            &context,
            |batch, seq| codec.get_type(batch, seq, set.kind(), set.family),
            |_, payload| parse_type(payload),
        );
        let (_, highest) = range?.ok_or_else(|| {
            Error::missing_feature(
                format!("the set type {}", set.kind().name()),
                format!(
                    "this kernel does not have it: load the module with `modprobe ip_set_{}`",
                    set.kind().name().replace(':', "_").replace(',', "")
                ),
            )
        })?;
        let revision = highest.min(known_revision(set.kind()));
        self.revisions.insert(key, revision);
        Ok(revision)
    }
}

fn refused(refusal: &Refusal) -> Error {
    Error::refused_by_ipset("looking for a member", refusal.errno)
}

/// What was found, or nothing where there is no such set.
fn absent_or<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Remove,
}
