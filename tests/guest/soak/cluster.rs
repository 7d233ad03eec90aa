//! The cluster that the soak is about: its objects, the node with the agent, and beside it a node on which all is begun anew each time, by which
//! the first is judged.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use testkit::manifest::Node;
use testkit::{Agent, NODE2_V4, NODE2_V6, Netns, Pod, Process, Random, Result, World, eventually};

use super::SETTLING;
use super::busy::{Busy, Traffic};
use super::damage::{Damage, Harm};
use crate::life::{self, change};
use crate::support::{KernelState, ensure_same, lines, node};
use crate::trouble::FAULTS;

/// What belongs to neither, and has to survive: made again after damages, some of which are damage to it as well.
const FOREIGN: &str =
    "ipvsadm -A -t 192.0.2.1:443 -s wlc 2>/dev/null; ipvsadm -a -t 192.0.2.1:443 -r 192.0.2.10:443 -g -w 3 2>/dev/null
ipset create -exist FOREIGN hash:ip && ipset add -exist FOREIGN 192.0.2.1
for iptables in iptables ip6tables; do
    $iptables -w -N FOREIGN 2>/dev/null; $iptables -w -C INPUT -j FOREIGN 2>/dev/null || $iptables -w -A INPUT -j FOREIGN
done";
const FOREIGN_MARKS: [&str; 2] = ["FOREIGN", " 192.0.2."];

/// Takes all of ours from a node's kernel.
const FORGET: &str = "nft flush ruleset; ipvsadm -C; ip link delete kube-ipvs0; ipset destroy; true";

/// Addresses that the node has now and then.
const PASSING_ADDRESSES: [&str; 2] = ["172.18.0.77/16", "fd00:18::77/64"];

const SIGTERM: i32 = 15;

/// A restarted API server begins above all that it said before.
const VERSIONS: u64 = 100_000;

const ARGUMENTS: [&str; 2] = ["--nodeport-addresses", "all"];

/// What the API server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its process is gone.
    Down,
    /// It hears and says nothing any more.
    Hung,
    /// It answers, and mostly with something else than it should.
    Unwell,
}

impl Trouble {
    pub(crate) const ALL: [Self; 3] = [Self::Down, Self::Hung, Self::Unwell];
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Down => "is down",
            Self::Hung => "hangs",
            Self::Unwell => "is not well",
        })
    }
}

pub(crate) struct Cluster<'a> {
    world: &'a World,
    fresh: World,
    busy: Busy,
    client: Pod,
    traffic: Traffic,
    server: Process,
    trouble: Option<Trouble>,
    version: u64,
    agent: Agent,
    binding: &'static str,
    foreign: KernelState,
    has_passing_addresses: bool,
    has_node3: bool,
    /// What the kernel came to last.
    desired: KernelState,
    /// Whether nothing was done since.
    is_settled: bool,
}

impl<'a> Cluster<'a> {
    /// With the Service that is busy, whose clients have begun.
    pub(crate) fn new(world: &'a World) -> Result<Self> {
        let fresh = World::new()?;
        let busy = Busy::new(world)?;
        let client = world.pod("client", testkit::On::Node)?;
        for world in [world, &fresh] {
            world.write("nodes.yaml", &nodes(false))?;
            world.write("busy.yaml", &busy.manifest())?;
        }
        shell(world.node(), FOREIGN)?;
        let foreign = parts(life::state(world)?).1;
        let binding = "route";
        let server = world.api_server(&["--interval-ms", "100"])?;
        let mut agent = agent(world, binding)?;
        let desired = desired(&fresh, binding)?;
        settles(world, &mut agent, &desired, &foreign)?;
        let traffic = Traffic::new(&client, world.ext())?;
        Ok(Self {
            world,
            fresh,
            busy,
            client,
            traffic,
            server,
            trouble: None,
            version: 0,
            agent,
            binding,
            foreign,
            has_passing_addresses: false,
            has_node3: false,
            desired,
            is_settled: true,
        })
    }

    /// Of the process that runs now.
    pub(crate) fn agent_id(&mut self) -> u32 {
        self.agent.process().id()
    }

    /// Changes a Service or a slice; what was done.
    pub(crate) fn change(&mut self, random: &mut Random) -> Result<String> {
        self.is_settled = false;
        change(self.world, &self.fresh, random)
    }

    pub(crate) fn change_readiness(&mut self, random: &mut Random) -> Result<String> {
        self.is_settled = false;
        let text = self.busy.change(random);
        self.write("busy.yaml", &self.busy.manifest())?;
        Ok(text)
    }

    pub(crate) fn change_address(&mut self) -> Result<String> {
        self.is_settled = false;
        self.has_passing_addresses = !self.has_passing_addresses;
        let verb = if self.has_passing_addresses { "add" } else { "del" };
        for address in PASSING_ADDRESSES {
            let nodad: &[&str] = if self.has_passing_addresses && address.contains(':') { &["nodad"] } else { &[] };
            for world in [self.world, &self.fresh] {
                world.node().exec(&[&["ip", "address", verb, address, "dev", "eth0"], nodad].concat())?;
            }
        }
        Ok(format!("{verb} {}", PASSING_ADDRESSES.join(" ")))
    }

    pub(crate) fn change_nodes(&mut self) -> Result<String> {
        self.is_settled = false;
        self.has_node3 = !self.has_node3;
        self.write("nodes.yaml", &nodes(self.has_node3))?;
        Ok(format!("node3 is {}", if self.has_node3 { "there" } else { "gone" }))
    }

    /// Does damage, of which only what came before may be the reason that it cannot be done.
    pub(crate) fn damage(&mut self, damage: &Damage) -> Result {
        // The sets tell what is ours. An agent that runs makes good what is taken from them; one that starts without them, and is told of a
        // Service no more, leaves its virtual servers alone, since they could be anybody's.
        let takes_traces = damage.command.contains("ipset");
        if takes_traces && !self.is_settled {
            self.settles()?;
        }
        let output = self.world.node().try_exec(&["sh", "-c", damage.command])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() || !self.is_settled, "`{}` cannot be done: {said}", damage.command);
        self.is_settled = false;
        shell(self.world.node(), FOREIGN)?;
        if takes_traces { self.settles() } else { Ok(()) }
    }

    /// Asks the agent to end, and starts another, which may bind VIPs in another way; in which.
    pub(crate) fn restart(&mut self, random: &mut Random) -> Result<String> {
        self.is_settled = false;
        self.binding = random.of(&["route", "route", "address"]);
        self.agent.process().signal("TERM")?;
        let status = self.agent.process().wait(SETTLING)?;
        // One that was started a moment ago may not have come to listen to signals.
        ensure!(status.success() || status.signal() == Some(SIGTERM), "the agent ended with {status}");
        self.agent = agent(self.world, self.binding)?;
        Ok(format!("with VIPs by {}", self.binding))
    }

    pub(crate) fn kill(&mut self) -> Result {
        self.is_settled = false;
        self.agent.process().kill()?;
        self.agent = agent(self.world, self.binding)?;
        Ok(())
    }

    /// Something is the matter with the API server from now on.
    pub(crate) fn api_server_goes(&mut self, trouble: Trouble) -> Result {
        self.trouble = Some(trouble);
        match trouble {
            Trouble::Down => Ok(self.server.kill()?),
            Trouble::Hung => self.server.signal("STOP"),
            Trouble::Unwell => {
                let faults: Vec<_> = FAULTS.iter().flat_map(|fault| ["--fault", fault]).collect();
                self.start_api_server(&[&["--fault-interval-ms", "300"], &faults[..]].concat())
            }
        }
    }

    pub(crate) fn api_server_returns(&mut self) -> Result {
        match self.trouble.take() {
            Some(Trouble::Hung) => self.server.signal("CONT"),
            Some(Trouble::Down | Trouble::Unwell) | None => self.start_api_server(&[]),
        }
    }

    /// Starts it anew, in place of one that may run.
    fn start_api_server(&mut self, arguments: &[&str]) -> Result {
        self.server.kill()?;
        self.version += VERSIONS;
        let version = self.version.to_string();
        self.server = self.world.api_server(&[&["--interval-ms", "100", "--resource-version", &version], arguments].concat())?;
        Ok(())
    }

    /// Waits until what the kernel came to last is there, whatever else may be. Of an API server that is not well, something else may have been
    /// heard by now.
    pub(crate) fn stays_served(&mut self) -> Result {
        if self.trouble == Some(Trouble::Unwell) {
            return Ok(());
        }
        eventually(SETTLING, || {
            let (state, _) = parts(life::state(self.world)?);
            let lost: String = self.desired.difference(&state).lines().filter(|line| line.starts_with('-')).collect();
            ensure!(lost.is_empty(), "while the API server is away, this has gone: {lost}");
            Ok(())
        })
    }

    /// Waits until the kernel is as a start on an empty node leaves it.
    pub(crate) fn settles(&mut self) -> Result {
        self.desired = desired(&self.fresh, self.binding)?;
        settles(self.world, &mut self.agent, &self.desired, &self.foreign)
            .with_context(|| format!("the API server said: {}", self.server.output().unwrap_or_default()))?;
        self.is_settled = true;
        Ok(())
    }

    /// As [`Traffic::goes_on`].
    pub(crate) fn traffic_goes_on(&mut self, harm: Harm) -> Result<(usize, usize)> {
        self.traffic.goes_on(&self.client, self.world.ext(), harm)
    }

    fn write(&self, file: &str, text: &str) -> Result {
        [self.world, &self.fresh].into_iter().try_for_each(|world| world.write(file, text))
    }
}

fn agent(world: &World, binding: &str) -> Result<Agent> {
    let state: PathBuf = world.manifests().with_file_name("state");
    let arguments = ["--vip-binding", binding, "--audit-period", "2s", "--state-dir", &state.display().to_string()];
    world.agent_of_cluster(&[&ARGUMENTS[..], &arguments].concat())
}

/// The node with the agent, another one, and perhaps a third that has what a load balancer may have, too.
fn nodes(with_node3: bool) -> String {
    let node2 = Node::new("node2").internal_ip(NODE2_V4).internal_ip(NODE2_V6);
    let node3 = Node::new("node3").internal_ip([198, 51, 100, 100]);
    format!("{}{node2}{}", node(), if with_node3 { node3.to_string() } else { String::new() })
}

fn shell(netns: &Netns, script: &str) -> Result {
    netns.exec(&["sh", "-c", script]).map(drop)
}

/// What a start on an empty node makes of the objects.
fn desired(fresh: &World, binding: &str) -> Result<KernelState> {
    shell(fresh.node(), FORGET)?;
    life::pass(fresh, &[&ARGUMENTS[..], &["--vip-binding", binding]].concat())?;
    life::state(fresh)
}

/// What the agent is to keep, and what is foreign.
fn parts(state: KernelState) -> (KernelState, KernelState) {
    let split = |lines: Vec<String>| -> (Vec<String>, Vec<String>) {
        lines.into_iter().partition(|line| !FOREIGN_MARKS.iter().any(|mark| line.contains(mark)))
    };
    let KernelState { virtual_servers, sets, routes, addresses, rules } = state;
    let (virtual_servers, foreign_servers) = split(virtual_servers);
    let (sets, foreign_sets) = split(sets);
    let (rules, foreign_rules) = split(rules);
    let foreign = KernelState {
        virtual_servers: foreign_servers,
        sets: foreign_sets,
        routes: Vec::new(),
        addresses: Vec::new(),
        rules: foreign_rules,
    };
    (KernelState { virtual_servers, sets, routes, addresses, rules }, foreign)
}

fn settles(world: &World, agent: &mut Agent, desired: &KernelState, foreign: &KernelState) -> Result {
    eventually(SETTLING, || {
        if let Some(status) = agent.process().ended()? {
            return Ok(Err(anyhow::anyhow!("the agent ended by itself ({status})")));
        }
        let (mut state, others) = parts(life::state(world)?);
        let connections = connections(world.node())?;
        let is_draining =
            |line: &String| connections.get(line).is_some_and(|count| *count > 0) && !desired.virtual_servers.contains(line);
        state.virtual_servers.retain(|line| !is_draining(line));
        ensure_same(desired, &state, "the kernel differs from what a start on an empty node makes of it")?;
        ensure_same(foreign, &others, "what belongs to others has changed")?;
        Ok(Ok(()))
    })?
}

/// The real servers with weight 0, as `ipvsadm -Sn` prints them, and how many connections each has.
fn connections(node: &Netns) -> Result<BTreeMap<String, u64>> {
    let mut connections = BTreeMap::new();
    let mut virtual_server = String::new();
    for line in lines(&node.ipvsadm(&["-Ln"])?) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["->", real, _, "0", active, inactive] => {
                let count = active.parse::<u64>().context("no number")? + inactive.parse::<u64>().context("no number")?;
                connections.insert(format!("-a {virtual_server} -r {real} -m -w 0"), count);
            }
            ["TCP", address, ..] => virtual_server = format!("-t {address}"),
            _ => {}
        }
    }
    Ok(connections)
}
