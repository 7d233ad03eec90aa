//! What the tests of the agent share: the node as a manifest, an agent that has come up, and the kernel's state in the words of other people's tools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use testkit::manifest::{EndpointSlice, Node};
use testkit::{
    Agent, Answer, Calls, Family, NODE_V4, NODE_V6, Netns, On, Pod, Process, Protocol, Reply, Result, World, eventually, shares,
};

/// What happens within a fraction of a second on a node may take many in an emulated guest that runs several tests on a busy machine. Only failures
/// wait so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Between calls that go on while something else happens: often enough to meet what lasts for a moment, and not so often that an emulated guest does
/// nothing else.
pub(crate) const BETWEEN_CALLS: Duration = Duration::from_millis(40);

/// The port on which pods serve.
pub(crate) const POD_PORT: u16 = 8080;

/// Where an agent says whether the kernel is as it should be; it does not before it has been once.
const HEALTH: &str = "http://127.0.0.1:10256/healthz";

/// `10.96.0.10:80` or `[fd00:96::10]:80`.
pub(crate) fn target(address: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(address.into(), port).to_string()
}

/// The address of a test's Service in a family; `number` tells the Services of a test apart.
pub(crate) fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, number]),
        // Read as hexadecimal, so that the number looks the same in both families.
        Family::V6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number / 10) * 16 + u16::from(number % 10)]),
    }
}

/// The node's address on the lan.
pub(crate) fn node_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => NODE_V4.into(),
        Family::V6 => NODE_V6.into(),
    }
}

/// The node's addresses: on the lan, and on the bridge of its pods.
pub(crate) fn node_addresses(family: Family) -> [IpAddr; 2] {
    let on_bridge = match family {
        Family::V4 => IpAddr::from([10, 244, 1, 1]),
        Family::V6 => IpAddr::from([0xfd00, 0x244, 0, 1, 0, 0, 0, 1]),
    };
    [node_address(family), on_bridge]
}

/// The Node with the agent.
pub(crate) fn node() -> Node {
    Node::new("node").internal_ip(NODE_V4).internal_ip(NODE_V6)
}

/// A pod on a node, which serves all protocols on [`POD_PORT`].
pub(crate) fn serving(world: &World, name: &str, on: On) -> Result<(Pod, Process)> {
    let pod = world.pod(name, on)?;
    let server = pod.serve(POD_PORT)?;
    Ok((pod, server))
}

/// A slice with these pods for a Service whose ports are named after their protocols.
pub(crate) fn slice<'a>(service: &str, family: Family, pods: impl IntoIterator<Item = &'a Pod>) -> EndpointSlice {
    let slice = Protocol::ALL
        .into_iter()
        .fold(EndpointSlice::of(service, family), |slice, protocol| slice.port(&protocol.to_string(), protocol, POD_PORT));
    pods.into_iter().fold(slice, EndpointSlice::pod)
}

/// Slices with these pods in both families.
pub(crate) fn slices(service: &str, pods: &[&Pod]) -> String {
    Family::ALL.map(|family| slice(service, family, pods.iter().copied()).to_string()).concat()
}

/// Brings the kernel into the state of the manifests with `--once`; the agent's log.
pub(crate) fn synchronise(world: &World, arguments: &[&str]) -> Result<String> {
    let output = world.run_once(&[&["--log-level", "debug"], arguments].concat())?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "kube-ipvs run --once ended with {}:\n{log}", output.status);
    Ok(log)
}

/// Starts an agent and waits until it has brought the kernel into the state of the manifests.
pub(crate) fn started(world: &World, arguments: &[&str]) -> Result<Agent> {
    let mut agent = world.agent(&[&["--log-level", "debug"], arguments].concat())?;
    eventually(PATIENCE, || {
        if let Some(status) = agent.process().ended()? {
            return Ok(Err(anyhow!("the agent ended ({status}):\n{}", agent.log()?)));
        }
        world.node().exec(&["wget", "-q", "-O", "-", HEALTH]).map(|_| Ok(()))
    })??;
    Ok(agent)
}

/// What a node's kernel holds, as other people's tools print it, without what differs from time to time: the order of virtual servers and
/// members, the seeds of hashes, how long ago something was, counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelState {
    pub(crate) virtual_servers: Vec<String>,
    pub(crate) sets: Vec<String>,
    pub(crate) routes: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) rules: Vec<String>,
}

impl KernelState {
    /// Of a node with the iptables that the agent takes by default.
    pub(crate) fn of(node: &Netns) -> Result<Self> {
        Ok(Self {
            virtual_servers: sorted(virtual_servers(node)?),
            sets: sorted(lines(&node.exec(&["ipset", "save"])?).map(without_seed).collect()),
            routes: routes(node)?,
            addresses: addresses(node)?,
            rules: rules(node)?,
        })
    }

    /// The same with each packet mark called by the frontend that it stands for: which number a frontend has depends on those that were there before
    /// it, where two come to the same one.
    pub(crate) fn with_named_marks(mut self) -> Self {
        let mut names = BTreeMap::new();
        for line in &mut self.sets {
            let marked =
                line.split_once(" skbmark 0x").and_then(|(member, mark)| Some((member, u32::from_str_radix(mark, 16).ok()?)));
            if let Some((member, mark)) = marked {
                let member = format!("{member} skbmark");
                names.insert(mark.to_string(), std::mem::replace(line, member));
            }
        }
        for line in &mut self.virtual_servers {
            let mut words: Vec<_> = line.split(' ').collect();
            let mark = words.iter().position(|word| *word == "-f").and_then(|at| words.get_mut(at + 1));
            let named = mark.and_then(|mark| Some((names.get(*mark)?.split(' ').nth(2)?, mark)));
            if let Some((name, mark)) = named {
                *mark = name;
                *line = words.join(" ");
            }
        }
        self.virtual_servers.sort_unstable();
        self
    }

    /// How it differs from another, in lines with `-` (only in this) and `+` (only in the other).
    pub(crate) fn difference(&self, other: &Self) -> String {
        let mut text = String::new();
        let fields = [
            (&self.virtual_servers, &other.virtual_servers),
            (&self.sets, &other.sets),
            (&self.routes, &other.routes),
            (&self.addresses, &other.addresses),
            (&self.rules, &other.rules),
        ];
        for (ours, theirs) in fields {
            let more = |lines: &[String], than: &[String], sign: char| {
                let times = |lines: &[String], line: &String| lines.iter().filter(|other| *other == line).count();
                let more: BTreeSet<_> = lines.iter().filter(|line| times(lines, line) > times(than, line)).collect();
                more.into_iter().map(|line| format!("{sign} {line}\n")).collect::<String>()
            };
            let difference = more(ours, theirs, '-') + &more(theirs, ours, '+');
            text += &difference;
            if difference.is_empty() && ours != theirs {
                text += &format!("in another order:\n- {}\n+ {}\n", ours.join("\n- "), theirs.join("\n+ "));
            }
        }
        text
    }
}

/// Fails unless the two are the same, and says how they differ.
pub(crate) fn ensure_same(before: &KernelState, after: &KernelState, what: &str) -> Result {
    ensure!(before == after, "{what}:\n{}", before.difference(after));
    Ok(())
}

/// All addresses but those the kernel gives links by itself: it does so up to a second after a link came up, and
/// looks for duplicates for some seconds more, which has nothing to do with what anybody did meanwhile. Without the number of their link,
/// which is another one whenever it is made again.
fn addresses(node: &Netns) -> Result<Vec<String>> {
    let shown = node.exec(&["ip", "-o", "address", "show"])?;
    let given = lines(&shown).filter(|line| !line.contains(" inet6 fe80:"));
    let numberless = given.map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest));
    Ok(sorted(numberless.map(|line| line.replace(" tentative", "")).collect()))
}

/// The lines of `ipvsadm -Sn`.
pub(crate) fn virtual_servers(node: &Netns) -> Result<Vec<String>> {
    Ok(lines(&node.ipvsadm(&["-Sn"])?).map(str::to_owned).collect())
}

/// The counters of all virtual and real servers: a server that was removed and added again starts at zero.
pub(crate) fn counters(node: &Netns) -> Result<Vec<String>> {
    Ok(sorted(lines(&node.ipvsadm(&["-Ln", "--stats", "--exact"])?).map(str::to_owned).collect()))
}

/// The routes that bind VIPs, of both families. 71 is the protocol number of this project's routes.
pub(crate) fn routes(node: &Netns) -> Result<Vec<String>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let table = node.exec(&["ip", family, "route", "show", "table", "local", "proto", "71"])?;
        routes.extend(lines(&table).map(str::to_owned));
    }
    Ok(routes)
}

/// Whether a VIP is bound by a route.
pub(crate) fn is_bound(node: &Netns, vip: IpAddr) -> Result<bool> {
    let start = format!("local {vip} ");
    Ok(routes(node)?.iter().any(|route| route.starts_with(&start)))
}

/// The members of a set that `ipset save` prints.
pub(crate) fn members(node: &Netns, set: &str) -> Result<Vec<String>> {
    let start = format!("add {set} ");
    Ok(sorted(
        lines(&node.exec(&["ipset", "save", set])?).filter_map(|line| line.strip_prefix(&start)).map(str::to_owned).collect(),
    ))
}

/// The real servers of a virtual server, as `ipvsadm -Sn` prints them.
pub(crate) fn real_servers(node: &Netns, option: &str, virtual_server: &str) -> Result<Vec<String>> {
    let start = format!("-a {option} {virtual_server} -r ");
    Ok(sorted(virtual_servers(node)?.iter().filter_map(|line| line.strip_prefix(&start)).map(str::to_owned).collect()))
}

/// The packet rules of both families.
pub(crate) fn rules(node: &Netns) -> Result<Vec<String>> {
    let mut rules = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = node.exec(&[program])?;
        // Comments hold the time, and what follows `[` counts packets.
        let kept = lines(&saved).filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap_or(line));
        rules.extend(kept.map(|line| format!("{program}: {line}")));
    }
    Ok(rules)
}

/// Waits until the last call in the background was answered: what happens afterwards happens to calls that work.
pub(crate) fn answered(calls: &Calls) -> Result {
    eventually(PATIENCE, || {
        let replies = calls.so_far()?;
        let last = replies.last().context("no call was made yet")?;
        ensure!(last.outcome.is_ok(), "the last call ended with {:?}", last.outcome);
        Ok(())
    })
}

/// Waits until the last call was answered by `server`.
pub(crate) fn answered_by(calls: &Calls, server: &str) -> Result {
    eventually(PATIENCE, || {
        let replies = calls.so_far()?;
        let last = replies.last().context("no call was made yet")?;
        ensure!(last.outcome.as_ref().is_ok_and(|answer| answer.name == server), "the last call ended with {:?}", last.outcome);
        Ok(())
    })
}

/// Waits until `more` further calls were made: what was done before has had its effect on some.
pub(crate) fn made(calls: &Calls, more: usize) -> Result {
    let before = calls.so_far()?.len();
    eventually(PATIENCE, || {
        let made = calls.so_far()?.len() - before;
        ensure!(made >= more, "{made} calls were made instead of {more}");
        Ok(())
    })
}

/// How many calls ended in which other way than with an answer.
pub(crate) fn failures(replies: &[Reply]) -> BTreeMap<String, usize> {
    let mut failures = BTreeMap::new();
    for error in replies.iter().filter_map(|reply| reply.outcome.as_ref().err()) {
        *failures.entry(error.clone()).or_default() += 1;
    }
    failures
}

/// Fails unless all calls were answered; says which were not, by their place among all.
pub(crate) fn ensure_all_answered(replies: &[Reply]) -> Result {
    let failed: Vec<_> = replies
        .iter()
        .enumerate()
        .filter_map(|(at, reply)| reply.outcome.as_ref().err().map(|error| format!("call {}: {error}", at + 1)))
        .collect();
    ensure!(failed.is_empty(), "of {} calls some failed: {}", replies.len(), failed.join(", "));
    Ok(())
}

/// Fails unless the calls were spread over these servers as given.
pub(crate) fn ensure_shares<const N: usize>(answers: &[Answer], wanted: [(&str, usize); N]) -> Result {
    let shares = shares(answers);
    ensure!(shares == BTreeMap::from(wanted), "the calls were answered by {shares:?} instead of {wanted:?}");
    Ok(())
}

pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty())
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

/// Newer ipset programs print the seed of a set's hash, and all the number of buckets, which grows by itself.
fn without_seed(line: &str) -> String {
    let mut words = line.split(' ').collect::<Vec<_>>();
    for name in ["initval", "hashsize"] {
        if let Some(at) = words.iter().position(|word| *word == name) {
            words.drain(at..(at + 2).min(words.len()));
        }
    }
    words.join(" ")
}
