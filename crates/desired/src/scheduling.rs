//! What annotations say about how a Service's connections are spread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Flags, Protocol, Scheduler, VirtualServerConfig};

use crate::address;
use crate::annotation::{Annotation, first_of};
use crate::object;
use crate::problem::{Problems, Reason, quoted};

const SCHEDULER: Annotation = Annotation("kube-ipvs.io/scheduler");
const FLAGS: Annotation = Annotation("kube-ipvs.io/scheduler-flags");
const ONE_PACKET: Annotation = Annotation("kube-ipvs.io/one-packet");
const WEIGHTS: Annotation = Annotation("kube-ipvs.io/weights");

/// kube-router's, for Services that were written for it. Our own come first.
const THEIR_SCHEDULER: Annotation = Annotation("kube-router.io/service.scheduler");
const THEIR_FLAGS: Annotation = Annotation("kube-router.io/service.schedflags");

/// How a Service is scheduled where it does not leave that to the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    /// The scheduler and the annotation that asks for it; `None` for the operator's choice.
    scheduler: Option<(Annotation, Scheduler)>,
    /// The scheduler's own flags; `None` for its defaults.
    flags: Option<Flags>,
    /// Whether every UDP datagram is scheduled by itself.
    one_packet: bool,
    pub(crate) weights: Weights,
}

/// The weights that real servers have, by what names them. Who is not named has weight 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weights {
    addresses: BTreeMap<IpAddr, u16>,
    pods: BTreeMap<Box<str>, u16>,
    nodes: BTreeMap<Box<str>, u16>,
}

impl Scheduling {
    /// What the annotations of `object` say; `None` when that is nothing. `has_datagrams` tells whether it has a UDP port, and
    /// `has_affinity` whether clients stay with their endpoint.
    pub(crate) fn parse(
        object: &object::Service,
        has_datagrams: bool,
        has_affinity: bool,
        problems: &mut Problems,
    ) -> Option<Box<Self>> {
        let scheduling = Self {
            scheduler: scheduler(object, problems),
            flags: flags(object, problems),
            one_packet: one_packet(object, has_datagrams, has_affinity, problems),
            weights: Weights::parse(object, problems),
        };
        (scheduling != Self::default()).then(|| Box::new(scheduling))
    }

    /// Sets up `config`, which is that of the defaults, for a port of `protocol`.
    pub(crate) fn apply_to(&self, config: &mut VirtualServerConfig, protocol: Protocol) {
        if let Some(scheduler) = self.scheduler() {
            config.scheduler = scheduler;
            config.flags = scheduler.default_flags();
        }
        if let Some(flags) = self.flags.filter(|_| config.scheduler.has_flags()) {
            config.flags = flags;
        }
        if self.one_packet && protocol == Protocol::Udp {
            config.flags = config.flags.with(Flags::ONE_PACKET);
        }
    }

    /// The scheduler it asks for, if it does.
    pub(crate) fn scheduler(&self) -> Option<Scheduler> {
        self.scheduler.map(|(_, scheduler)| scheduler)
    }

    /// Says so if the scheduler it asks for is among those the node's kernel lacks.
    pub(crate) fn note_lacking(&self, lacking: &BTreeSet<Scheduler>, problems: &mut Problems) {
        if let Some((annotation, scheduler)) = self.scheduler.filter(|(_, scheduler)| lacking.contains(scheduler)) {
            problems.add_for(
                Reason::UnknownScheduler,
                annotation.to_string(),
                format!(
                    "is {scheduler}, which this node's kernel does not have: load the module ip_vs_{scheduler}, or name another; until \
                     then the default serves"
                ),
            );
        }
    }
}

fn scheduler(object: &object::Service, problems: &mut Problems) -> Option<(Annotation, Scheduler)> {
    let (annotation, name) = first_of(object, [SCHEDULER, THEIR_SCHEDULER])?;
    match Scheduler::new(name) {
        Ok(scheduler) if scheduler.is_none() => {
            problems.add(
                annotation.to_string(),
                "is none, with which nobody is served; name a scheduler such as rr, wrr or mh, until then the default serves",
            );
            None
        }
        Ok(scheduler) => Some((annotation, scheduler)),
        Err(_) => {
            problems.add(
                annotation.to_string(),
                format!(
                    "is {}, which cannot be an IPVS scheduler: a name has 1 to 15 ASCII letters, digits, '_' or '-', such as rr, wrr \
                     or mh; the default serves",
                    quoted(name)
                ),
            );
            None
        }
    }
}

/// The flags in the words of ipvsadm and of kube-router. Those that cannot be read are left out; when none is left, the defaults hold.
fn flags(object: &object::Service, problems: &mut Problems) -> Option<Flags> {
    let (annotation, text) = first_of(object, [FLAGS, THEIR_FLAGS])?;
    let mut flags = None;
    for word in words(text) {
        let flag = match word {
            "none" => Flags::NONE,
            "fallback" | "flag-1" | "sh-fallback" | "mh-fallback" => Flags::SCHED_1,
            "port" | "flag-2" | "sh-port" | "mh-port" => Flags::SCHED_2,
            "flag-3" => Flags::SCHED_3,
            _ => {
                problems.add(
                    annotation.to_string(),
                    format!(
                        "has {}; the flags are fallback (flag-1), port (flag-2), flag-3 or none, and it is ignored",
                        quoted(word)
                    ),
                );
                continue;
            }
        };
        flags = Some(flags.unwrap_or(Flags::NONE).with(flag));
    }
    flags
}

fn one_packet(object: &object::Service, has_datagrams: bool, has_affinity: bool, problems: &mut Problems) -> bool {
    let problem = match ONE_PACKET.of(object) {
        None | Some("" | "false") => return false,
        Some("true") if !has_datagrams => {
            "is true, but the Service has no UDP port, and only datagrams can be scheduled one by one; remove it".to_owned()
        }
        Some("true") if has_affinity => {
            "is true, but sessionAffinity ClientIP keeps a client's datagrams together, and that is served; remove one of them"
                .to_owned()
        }
        Some("true") => return true,
        Some(other) => format!("is {}; it can be true or false, and false is served", quoted(other)),
    };
    problems.add(ONE_PACKET.to_string(), problem);
    false
}

impl Weights {
    /// Reads `node-a=3, node/10.0.0.5=1, pod/db-0=2, 10.244.1.7=0`. Entries that cannot be read are left out.
    fn parse(object: &object::Service, problems: &mut Problems) -> Self {
        let mut weights = Self::default();
        for entry in words(WEIGHTS.of(object).unwrap_or_default()) {
            if let Err(problem) = weights.read(entry) {
                problems.add(WEIGHTS.to_string(), problem);
            }
        }
        weights
    }

    fn read(&mut self, entry: &str) -> Result<(), String> {
        let who_and_weight = entry.split_once('=').map(|(who, weight)| (who.trim(), weight.trim()));
        let Some((who, weight)) = who_and_weight else {
            return Err(format!(
                "has {}, which is no NODE=WEIGHT, pod/NAME=WEIGHT or ADDRESS=WEIGHT, and is ignored",
                quoted(entry)
            ));
        };
        // `parse` takes a plus sign, which is no part of a number here.
        let weight: u16 = Some(weight)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("has {}, whose weight is no number from 0 to {}, and is ignored", quoted(entry), u16::MAX))?;
        let name = who.strip_prefix("pod/").or_else(|| who.strip_prefix("node/")).unwrap_or(who);
        if name.is_empty() || name.contains('/') {
            return Err(format!("has {}, which names nobody, and is ignored", quoted(entry)));
        }
        let set_before = if who.starts_with("pod/") {
            set(&mut self.pods, name.into(), weight)
        } else if let Some(address) = address::parse(who) {
            set(&mut self.addresses, address, weight)
        } else {
            set(&mut self.nodes, name.into(), weight)
        };
        if set_before { Err(format!("has {} beside another weight for the same; the first counts", quoted(entry))) } else { Ok(()) }
    }

    /// The weight of the endpoint at `address`. Who is named more than one way has the weight of the narrowest: its address, then its
    /// pod, then its node.
    pub(crate) fn of(&self, address: IpAddr, pod: Option<&str>, node: Option<&str>) -> u16 {
        let by_address = || self.addresses.get(&address);
        let by_pod = || self.pods.get(pod?);
        let by_node = || self.nodes.get(node?);
        by_address().or_else(by_pod).or_else(by_node).copied().unwrap_or(1)
    }
}

/// Whether `key` had a value already, which it then keeps.
fn set<K: Ord>(map: &mut BTreeMap<K, u16>, key: K, weight: u16) -> bool {
    let mut vacant = false;
    map.entry(key).or_insert_with(|| {
        vacant = true;
        weight
    });
    !vacant
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}
