//! The Service that has clients all the time: its pods, two of which stay as they are, and what its clients see.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Calls, Family, Netns, On, Pod, Process, Protocol, Random, Result, World};

use super::damage::Harm;
use crate::held::{Held, echoing, go_on};
use crate::support::{POD_PORT, answered, ensure_all_answered, failures, node_address, target, vip};

/// What makes its addresses.
const NUMBER: u8 = 90;

/// Echoes, for those who hold connections.
const ECHO: u16 = 80;
/// Answers, for those who call.
const ANSWER: u16 = 81;
const NODE_PORT: u16 = 30490;

/// Connections that are held in each family.
const CONNECTIONS: u32 = 10;

const INTERVAL: Duration = Duration::from_millis(500);

/// A guest that is emulated on a busy machine loses a first packet now and then, which is sent again after 1, 3 and 7 s.
const CALL: [&str; 4] = ["--interval-ms", "200", "--timeout-ms", "15000"];

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Ready,
    Unready,
    Terminating,
}

/// The pods, each with its servers.
#[derive(Debug)]
pub(crate) struct Busy {
    steady: [Pod; 2],
    changing: [(Pod, Is); 2],
    _servers: Vec<Process>,
}

impl Busy {
    pub(crate) fn new(world: &World) -> Result<Self> {
        let mut servers = Vec::new();
        let mut pod = |name, on| -> Result<Pod> {
            let (pod, echo) = echoing(world, name, on)?;
            servers.extend([echo, pod.serve(POD_PORT + 1)?]);
            Ok(pod)
        };
        // In this order: damages name the address of the first.
        let steady = [pod("a", On::Node)?, pod("b", On::Node2)?];
        let changing = [(pod("c", On::Node)?, Is::Ready), (pod("d", On::Node2)?, Is::Ready)];
        Ok(Self { steady, changing, _servers: servers })
    }

    /// Gives one of those that change another readiness; which.
    pub(crate) fn change(&mut self, random: &mut Random) -> String {
        let chosen = random.below(2);
        let is = random.of(&[Is::Ready, Is::Ready, Is::Unready, Is::Terminating]);
        let mut text = String::new();
        for (_, (pod, state)) in (0..).zip(&mut self.changing).filter(|(number, _)| *number == chosen) {
            *state = is;
            text = format!("{} is {is:?}", pod.name());
        }
        text
    }

    /// The Service and its endpoints.
    pub(crate) fn manifest(&self) -> String {
        let service =
            Family::ALL.iter().fold(Service::new("busy"), |service, family| service.cluster_ip(&vip(*family, NUMBER).to_string()));
        let service = service.port("echo", Protocol::Tcp, ECHO, POD_PORT);
        let service = service.port("answer", Protocol::Tcp, ANSWER, POD_PORT + 1).node_port(NODE_PORT);
        let slice = |family| {
            let slice = EndpointSlice::of("busy", family).port("echo", Protocol::Tcp, POD_PORT);
            let slice = slice.port("answer", Protocol::Tcp, POD_PORT + 1);
            let slice = self.steady.iter().fold(slice, EndpointSlice::pod);
            let with = |slice: EndpointSlice, (pod, is): &(Pod, Is)| match is {
                Is::Ready => slice.pod(pod),
                Is::Unready => slice.pod(pod).unready(),
                Is::Terminating => slice.pod(pod).terminating(),
            };
            self.changing.iter().fold(slice, with).to_string()
        };
        format!("{service}{}", Family::ALL.map(slice).concat())
    }
}

/// The clients.
pub(crate) struct Traffic {
    held: Vec<Held>,
    calls: Vec<Calls>,
}

impl Traffic {
    /// Begins to hold connections from a pod, and to call from there and from outside.
    pub(crate) fn new(pod: &Pod, outside: &Netns) -> Result<Self> {
        Ok(Self { held: hold(pod)?, calls: call(pod, outside)? })
    }

    /// Fails when a connection is lost or stands still, or a call was not answered, beyond what harm was done. How many calls there were,
    /// and how many of them were not answered. All begins anew with the next.
    pub(crate) fn goes_on(&mut self, pod: &Pod, outside: &Netns, harm: Harm) -> Result<(usize, usize)> {
        self.calls.iter().try_for_each(answered).context("calls")?;
        let mut count = 0;
        let mut failed = 0;
        for calls in std::mem::replace(&mut self.calls, call(pod, outside)?) {
            let replies = calls.stop()?;
            if harm == Harm::None {
                ensure_all_answered(&replies)?;
            }
            count += replies.len();
            failed += failures(&replies).values().sum::<usize>();
        }
        if harm == Harm::Connections {
            self.held = hold(pod)?;
        }
        go_on(&self.held, 1).context("connections")?;
        ensure!(count > 0, "no call was made");
        Ok((count, failed))
    }
}

fn hold(pod: &Pod) -> Result<Vec<Held>> {
    let open = |family| Held::open(pod, Protocol::Tcp, &target(vip(family, NUMBER), ECHO), CONNECTIONS, INTERVAL);
    Family::ALL.into_iter().map(open).collect()
}

fn call(pod: &Pod, outside: &Netns) -> Result<Vec<Calls>> {
    let keep = |caller: &Netns, target: String| caller.keep_calling_with(Protocol::Tcp, &target, &CALL);
    let both = |family| [keep(pod, target(vip(family, NUMBER), ANSWER)), keep(outside, target(node_address(family), NODE_PORT))];
    Family::ALL.into_iter().flat_map(both).collect()
}
