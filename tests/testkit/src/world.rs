//! The cluster network of a test.
//!
//! ```text
//!   ext 172.18.0.100 ──┐
//!                      ├── lan 172.18.0.0/16, fd00:18::/64
//!  node 172.18.0.2  ───┤        node: cni0 10.244.1.1/24, fd00:244:0:1::1/64 ── pods .2, .3 …
//! node2 172.18.0.3  ───┘       node2: cni0 10.244.2.1/24, fd00:244:0:2::1/64 ── pods .2, .3 …
//! ```
//!
//! The nodes route each other's pods. ext routes the service networks (10.96.0.0/16, fd00:96::/112) to node, but knows no way to pods: an answer that
//! was not masqueraded never reaches it.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::agent::{self, Agent};
use crate::attempts::TESTS;
use crate::netns::{Netns, probe};
use crate::{Family, Process, Result, eventually, tell_panics};

/// The address of node on the lan.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The address of node on the lan.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2);
/// The address of node2 on the lan.
pub const NODE2_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 3);
/// The address of node2 on the lan.
pub const NODE2_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 3);
/// The address of the outside client.
pub const EXT_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 100);
/// The address of the outside client.
pub const EXT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0x100);

/// The pod networks of all nodes, for the agent.
const NODE_ARGUMENTS: [&str; 6] = [
    "--node-name",
    "node",
    "--cluster-cidr",
    "10.244.0.0/16,fd00:244::/56",
    // What an emulated processor takes is no measure: audits come when tests ask for them.
    "--max-audit-cpu",
    "0",
];

/// A server listens some milliseconds after it was started; in an emulated guest with several tests at once, some hundred. Only failures wait so long.
const START: Duration = Duration::from_secs(120);

/// Of so many agents a failed test shows the log: who ended long before has nothing to do with it.
const LOGS: usize = 4;

/// What a failed test shows of the node's kernel.
const DIAGNOSES: &[&[&str]] = &[
    &["ipvsadm", "-Ln"],
    &["ipset", "save"],
    &["ip", "route", "show", "table", "local"],
    &["ip", "-br", "address"],
    &["ip", "neighbour"],
    &["conntrack", "-L"],
    &["iptables-nft-save"],
    &["ip6tables-nft-save"],
    &["iptables-legacy-save"],
];

/// Addresses appear at once and pods can be called at once: no duplicate address detection, whose seconds of waiting serve nothing here.
const SYSCTLS: &str = "cd /proc/sys/net/ipv6/conf && for c in all default; do echo 0 >$c/accept_dad; echo 0 >$c/dad_transmits; echo 0 >$c/accept_ra; done";
const FORWARDING: &str = "; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >all/forwarding";

/// Where a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The node with the agent.
    Node,
    /// The other node.
    Node2,
}

impl On {
    /// The node's name in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Node2 => "node2",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Node => 1,
            Self::Node2 => 2,
        }
    }
}

/// A pod: a namespace behind its node's bridge.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    name: String,
    on: On,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Pod {
    /// The pod's name, with which its servers answer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node where it runs.
    #[must_use]
    pub fn on(&self) -> On {
        self.on
    }

    /// Its address in a family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Starts a server for all protocols and both families; it answers with the pod's name.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn serve(&self, port: u16) -> Result<Process> {
        serve(&self.netns, &self.name, port)
    }
}

impl Deref for Pod {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

/// The network of one test. Worlds share nothing, so tests run side by side.
#[derive(Debug)]
pub struct World {
    directory: PathBuf,
    lan: Netns,
    node: Netns,
    node2: Netns,
    ext: Netns,
    last_host: [AtomicU32; 2],
    agent_logs: Mutex<Vec<PathBuf>>,
}

impl World {
    /// Makes the nodes, the lan and the outside client.
    ///
    /// # Errors
    /// When namespaces cannot be made: this needs root.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("kube-ipvs-world-{}-{number}", std::process::id()));
        let netns = |name: &str, settings: &str| Netns::new(name, directory.join(name), &format!("{SYSCTLS}{settings}"));
        let mut world = Self {
            lan: netns("lan", "")?,
            node: netns("node", FORWARDING)?,
            node2: netns("node2", FORWARDING)?,
            ext: netns("ext", "")?,
            directory,
            // Host 1 of each pod network is the bridge.
            last_host: [AtomicU32::new(1), AtomicU32::new(1)],
            agent_logs: Mutex::default(),
        };
        fs::create_dir_all(world.manifests()).context("cannot create the directory of the manifests")?;
        [&mut world.lan, &mut world.node, &mut world.node2, &mut world.ext].into_iter().try_for_each(Netns::made)?;
        let hosts = [(&world.node, NODE_V4, NODE_V6), (&world.node2, NODE2_V4, NODE2_V6), (&world.ext, EXT_V4, EXT_V6)];
        let cables =
            hosts.map(|(host, v4, _)| format!("link add {} type veth peer name eth0 netns {}\n", lan_port(v4), host.holder()));
        let plugs = hosts.map(|(_, v4, _)| format!("link set {} master br0 up\n", lan_port(v4)));
        world.lan.ip(&format!(
            "link add br0 address 02:00:00:00:00:01 type bridge\nlink set br0 up\nlink set lo up\n{}{}",
            cables.concat(),
            plugs.concat()
        ))?;
        for (host, v4, v6) in hosts {
            let interfaces =
                format!("link set lo up\nlink set eth0 up\naddress add {v4}/16 dev eth0\naddress add {v6}/64 dev eth0 nodad\n");
            let more = match host.name() {
                "node" => pod_network(On::Node),
                "node2" => pod_network(On::Node2),
                _ => format!("route add 10.96.0.0/16 via {NODE_V4}\nroute add fd00:96::/112 via {NODE_V6}\n"),
            };
            host.ip(&format!("{interfaces}{more}"))?;
        }
        forward(&world.lan, &hosts.map(|(_, v4, _)| lan_port(v4)))?;
        Ok(world)
    }

    /// Runs a test in a world of its own, and once more, alone, if it failed beside others. When it fails, the agents' logs and the node's tables are
    /// shown with the failure.
    ///
    /// # Panics
    /// When the test fails.
    pub fn test(body: impl Fn(&Self) -> Result) {
        TESTS.beside(|| Self::run(&body));
    }

    /// As [`World::test`], while no other test of this program runs: for tests that keep the machine busy, beside which others would run out of time.
    ///
    /// # Panics
    /// When the test fails.
    pub fn test_alone(body: impl FnOnce(&Self) -> Result) {
        TESTS.alone(|| Self::run(body));
    }

    #[expect(clippy::panic, reason = "this is how a test fails")]
    fn run(body: impl FnOnce(&Self) -> Result) {
        tell_panics();
        let world = match Self::new() {
            Ok(world) => world,
            Err(error) => panic!("cannot make a world: {error:?}"),
        };
        if let Err(error) = body(&world) {
            panic!("{error:?}");
        }
    }

    /// The node with the agent.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// Another node, without agent.
    #[must_use]
    pub fn node2(&self) -> &Netns {
        &self.node2
    }

    /// The client outside of the cluster.
    #[must_use]
    pub fn ext(&self) -> &Netns {
        &self.ext
    }

    /// Makes a pod.
    ///
    /// # Errors
    /// When that fails, as for a second pod of this name.
    pub fn pod(&self, name: &str, on: On) -> Result<Pod> {
        let number = on.number();
        let (node, last_host) = match (on, &self.last_host) {
            (On::Node, [last, _]) => (&self.node, last),
            (On::Node2, [_, last]) => (&self.node2, last),
        };
        let host = u8::try_from(last_host.fetch_add(1, Ordering::Relaxed) + 1).context("a node has at most 254 pods")?;
        let v4 = Ipv4Addr::new(10, 244, number, host);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, number.into(), 0, 0, 0, host.into());
        let mut netns = Netns::new(name, self.directory.join(format!("pod-{name}")), SYSCTLS)?;
        netns.made()?;
        // Hairpin, as CNI's bridge plugin is set up for Kubernetes: with br_netfilter, the answer of a pod that called itself leaves by the port where
        // it came in.
        node.ip(&format!(
            "link add veth{host} type veth peer name eth0 netns {}\nlink set veth{host} master cni0 up\n\
             link set veth{host} type bridge_slave hairpin on\n",
            netns.holder()
        ))?;
        netns.ip(&format!(
            "link set lo up\nlink set eth0 up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
             route add default via 10.244.{number}.1\nroute add default via fd00:244:0:{number}::1\n"
        ))?;
        forward(node, &[format!("veth{host}")])?;
        Ok(Pod { netns, name: name.to_owned(), on, v4, v6 })
    }

    /// Starts a server on a node or outside, for all protocols and both families.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn serve(&self, netns: &Netns, name: &str, port: u16) -> Result<Process> {
        serve(netns, name, port)
    }

    /// The directory that the agent reads.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Puts a manifest in place in one step, as an editor or a ConfigMap does; it replaces one of the same name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result {
        let unfinished = self.directory.join(format!("unfinished-{name}"));
        fs::write(&unfinished, text).with_context(|| format!("cannot write {name}"))?;
        fs::rename(&unfinished, self.manifests().join(name)).with_context(|| format!("cannot put {name} in place"))
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, name: &str) -> Result {
        fs::remove_file(self.manifests().join(name)).with_context(|| format!("cannot remove {name}"))
    }

    /// Starts an API server on node, the double of one, which follows the manifests of this world; with further arguments of its own.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn api_server(&self, arguments: &[&str]) -> Result<Process> {
        self.api_server_on(&self.node, arguments)
    }

    /// The same on another host; `arguments` say where it listens so that node can reach it.
    ///
    /// # Errors
    /// As [`World::api_server`].
    pub fn api_server_on(&self, host: &Netns, arguments: &[&str]) -> Result<Process> {
        let (manifests, kubeconfig) = (self.manifests().display().to_string(), self.kubeconfig().display().to_string());
        let command = ["apiserver", "--manifests", &manifests, "--write-kubeconfig", &kubeconfig];
        let mut server = host.start(&[&command[..], arguments].concat())?;
        server.wait_for("listening on", START)?;
        Ok(server)
    }

    /// The file that says how the API server of this world is called.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Starts the agent on node with the manifests of this world, and further arguments.
    ///
    /// # Errors
    /// When it cannot be started. That it came up is for the test to see.
    pub fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        self.start_agent(&["--manifests", &self.manifests().display().to_string()], arguments)
    }

    /// Starts the agent on node with the API server of this world, and further arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent_of_cluster(&self, arguments: &[&str]) -> Result<Agent> {
        self.start_agent(&["--kubeconfig", &self.kubeconfig().display().to_string()], arguments)
    }

    fn start_agent(&self, source: &[&str], arguments: &[&str]) -> Result<Agent> {
        let log = self.node.log_file("agent");
        if let Ok(mut logs) = self.agent_logs.lock() {
            logs.push(log.clone());
        }
        let mut command = self.node.command(agent::program());
        command.arg("run").args(source).args(NODE_ARGUMENTS).args(arguments);
        Ok(Agent(Process::start(&mut command, log)?))
    }

    /// Runs the agent until the kernel is in the state of the manifests (`--once`), with further arguments; its exit status, output and log.
    ///
    /// # Errors
    /// When it cannot be run. That it failed is data.
    pub fn run_once(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.node.command(agent::program());
        command
            .arg("run")
            .arg("--manifests")
            .arg(self.manifests())
            .args(NODE_ARGUMENTS)
            .arg("--once")
            .args(arguments)
            .output()
            .context("cannot run the agent")
    }

    /// Runs another command of the agent's program on node, such as `status`; its output.
    ///
    /// # Errors
    /// When it cannot be run or fails.
    pub fn kube_ipvs(&self, arguments: &[&str]) -> Result<String> {
        let program = agent::program();
        let program = program.to_str().context("the agent's path is no text")?;
        self.node.exec(&[&[program], arguments].concat())
    }

    /// The same for a command whose exit status is part of what is tested.
    ///
    /// # Errors
    /// When it cannot be run. That it failed is data.
    pub fn try_kube_ipvs(&self, arguments: &[&str]) -> Result<Output> {
        self.node.command(agent::program()).args(arguments).output().context("cannot run kube-ipvs")
    }

    /// The flags by which a command knows the node, its pods' networks and the manifests.
    #[must_use]
    pub fn node_arguments(&self) -> Vec<String> {
        let manifests = ["--manifests".to_owned(), self.manifests().display().to_string()];
        manifests.into_iter().chain(NODE_ARGUMENTS.map(str::to_owned)).collect()
    }

    /// The node's tables and the agents' logs: what helps to see why something failed.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for command in DIAGNOSES {
            let result = self.node.exec(command).unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = writeln!(text, "--- node: {}\n{result}", command.join(" "));
        }
        let logs = self.agent_logs.lock().map(|logs| logs.clone()).unwrap_or_default();
        for log in logs.iter().skip(logs.len().saturating_sub(LOGS)) {
            let content = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
            let _ = writeln!(text, "--- {}\n{content}", Path::new(log).file_name().unwrap_or_default().display());
        }
        text
    }
}

impl Drop for World {
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.diagnosis());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The port of the lan's bridge behind which a host is.
fn lan_port(address: Ipv4Addr) -> String {
    let [.., host] = address.octets();
    format!("veth{host}")
}

/// The lines that give a node its pods' bridge and its routes.
fn pod_network(on: On) -> String {
    let (number, other, via4, via6) = match on {
        On::Node => (1, 2, NODE2_V4, NODE2_V6),
        On::Node2 => (2, 1, NODE_V4, NODE_V6),
    };
    // A bridge without an address of its own takes the lowest of its ports', so it would change with a pod that comes, and those who know the former one
    // would call in vain until they ask again.
    // A node has a default route, as real ones do: without any, packets from its own processes to a VIP would not even start.
    format!(
        "link add cni0 address 02:00:00:00:00:0{number} type bridge\nlink set cni0 up\naddress add 10.244.{number}.1/24 dev cni0\naddress add fd00:244:0:{number}::1/64 dev cni0 nodad\n\
         route add 10.244.{other}.0/24 via {via4}\nroute add fd00:244:0:{other}::/64 via {via6}\n\
         route add default via {EXT_V4}\nroute add default via {EXT_V6}\n"
    )
}

/// Waits until ports of a bridge forward: the kernel may look at carriers only once a second, and until then packets to the port are lost.
fn forward(netns: &Netns, ports: &[String]) -> Result {
    eventually(START, || {
        let links = netns.exec(&["ip", "-d", "-o", "link", "show"])?;
        for port in ports {
            let is_port = |line: &&str| line.split_whitespace().nth(1).is_some_and(|name| name.split('@').next() == Some(port));
            let link = links.lines().find(is_port).with_context(|| format!("{} has no {port}", netns.name()))?;
            ensure!(link.contains("state forwarding"), "the port {port} of {} does not forward: {link}", netns.name());
        }
        Ok(())
    })
}

fn serve(netns: &Netns, name: &str, port: u16) -> Result<Process> {
    let port = port.to_string();
    let log = netns.log_file("serve");
    let mut server = Process::start(netns.command(probe()).args(["serve", "--name", name, "--port", &port]), log)?;
    server.wait_for("ready\n", START).with_context(|| format!("the server {name} on port {port}"))?;
    Ok(server)
}
