//! A network namespace that is the node of a case, and the agent on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::agent::program;
use crate::conformance::case::{Case, Interfaces, Kind, NodeFacts, Object, ObjectName, Pre, Step, VirtualServer, family_of};
use crate::conformance::flows::Flows;
use crate::conformance::observed::{FLOWS_SCRIPT, Observed, RULES_SCRIPT, SCRIPT};
use crate::netns::Netns;
use crate::{Family, Process, Protocol, Result, eventually};

/// An agent that starts needs about a second in an emulated guest, some with others beside it.
const START: Duration = Duration::from_secs(120);

/// Long enough for an agent that looks at its files twice a second, and wants to see the same twice, to have read a change.
const READ: Duration = Duration::from_millis(2500);

/// The device over which connections are told to IPVS. It has no address, and so is none of the agent's business.
pub(super) const SYNCHRONISATION: &str = "synchronise";

/// No duplicate address detection and no addresses but those that a case names.
const SYSCTLS: &str = "cd /proc/sys/net/ipv6/conf && for c in all default; do echo 0 >$c/accept_dad; echo 0 >$c/dad_transmits; echo 0 >$c/accept_ra; \
                       echo 1 >$c/addr_gen_mode; done";

/// A node, gone when this value is dropped.
pub(super) struct Node {
    netns: Netns,
    directory: PathBuf,
    facts: Value,
    only: Option<Family>,
    interfaces: Interfaces,
    /// The manifest of each object, by number: a name may be longer than a file's.
    manifests: BTreeMap<ObjectName, PathBuf>,
    next_file: u32,
    flags: Vec<String>,
    pub(super) flows: Flows,
    agent: Option<Process>,
}

impl Node {
    /// Makes the node as it is before the agent's start.
    pub(super) fn new(case: &Case) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kc{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        let single_stack = if case.config.only == Some(Family::V4) { "; echo 1 >all/disable_ipv6" } else { "" };
        let mut netns = Netns::new(&name, directory.clone(), &format!("{SYSCTLS}{single_stack}"))?;
        netns.made()?;
        let mut node = Self {
            netns,
            facts: node_object(&case.node, &case.config.pod_cidrs),
            only: case.config.only,
            interfaces: Interfaces::new(),
            manifests: BTreeMap::new(),
            next_file: 0,
            flags: [&["--node-name".to_owned(), case.node.name.clone()], case.config.flags.as_slice()].concat(),
            flows: Flows::default(),
            agent: None,
            directory,
        };
        fs::create_dir_all(node.directory.join("manifests")).context("cannot create the directory of the manifests")?;
        node.netns.ip("link set lo up\n")?;
        node.set_interfaces(&case.node.interfaces)?;
        node.put_before(&case.pre).context("what the kernel is to hold before")?;
        node.write(&(Kind::Node, String::new(), case.node.name.clone()), &node.facts.clone())?;
        Ok(node)
    }

    fn put_before(&self, pre: &Pre) -> Result {
        let mut script = String::from("set -e\n");
        for server in &pre.virtual_servers {
            script.push_str(&ipvsadm_lines(server));
        }
        if !pre.bound_addresses.is_empty() {
            script.push_str("ip link add kube-ipvs0 type dummy\n");
            for address in &pre.bound_addresses {
                let _ = writeln!(script, "ip address add {} dev kube-ipvs0 {}", with_length(*address), nodad(*address));
            }
        }
        for (name, members) in &pre.sets {
            let family = if name.starts_with("KUBE-6-") { " family inet6" } else { "" };
            let kind = set_kind(name, members);
            let family = if kind.starts_with("bitmap") { "" } else { family };
            let _ = writeln!(script, "ipset create {name} {kind}{family}");
            members.iter().for_each(|member| script.push_str(&format!("ipset add {name} '{}'\n", member.replace('\'', ""))));
        }
        self.netns.exec(&["sh", "-c", &script]).map(drop)
    }

    /// Makes the interfaces those of `wanted`. What the kernel itself gives to `lo` stays.
    fn set_interfaces(&mut self, wanted: &Interfaces) -> Result {
        let mut batch = String::new();
        for name in self.interfaces.keys().filter(|name| !wanted.contains_key(*name) && *name != "lo") {
            let _ = writeln!(batch, "link delete {name}");
        }
        let nothing = Vec::new();
        for (name, addresses) in wanted {
            ensure!(
                name.len() < 16 && name.chars().all(|c| c.is_ascii_graphic() && c != '/'),
                "{name:?} is no name of an interface"
            );
            let held = self.interfaces.get(name);
            if held.is_none() && name != "lo" {
                let _ = writeln!(batch, "link add {name} type dummy\nlink set {name} up");
            }
            let held = held.unwrap_or(&nothing);
            let is_ours = |address: &&IpAddr| {
                let works = self.only != Some(Family::V4) || address.is_ipv4();
                works && !(name == "lo" && address.is_loopback())
            };
            for address in held.iter().filter(is_ours).filter(|address| !addresses.contains(address)) {
                let _ = writeln!(batch, "address delete {} dev {name}", with_length(*address));
            }
            for address in addresses.iter().filter(is_ours).filter(|address| !held.contains(address)) {
                let _ = writeln!(batch, "address add {} dev {name} {}", with_length(*address), nodad(*address));
            }
        }
        self.interfaces.clone_from(wanted);
        self.netns.ip(&batch)
    }

    /// Makes the changes of a step: connections and flows first, since they are there when the agent learns of the rest.
    pub(super) fn change(&mut self, step: &Step) -> Result {
        self.flows.add(&self.netns, &step.flows).context("conntrack")?;
        self.flows.connect(&self.netns, &step.connections).context("set_connections")?;
        if let Some(interfaces) = &step.interfaces {
            self.set_interfaces(interfaces).context("interfaces")?;
        }
        if let Some(zone) = &step.zone {
            if let Some(metadata) = self.facts.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("labels".to_owned(), labels(zone));
            }
            let name = self.facts.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.write(&(Kind::Node, String::new(), name), &self.facts.clone())?;
        }
        for Object { name, value } in &step.upserts {
            self.write(name, value)?;
        }
        for name in &step.deletions {
            let path = self.manifests.remove(name).with_context(|| format!("there is no {name:?} to delete"))?;
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Connections that the real servers of `pre` have already.
    pub(super) fn connect_before(&mut self, pre: &Pre) -> Result {
        let connections: Vec<_> = pre.virtual_servers.iter().flat_map(VirtualServer::connections).collect();
        self.flows.connect(&self.netns, &connections)
    }

    /// Puts a manifest in place in one step.
    fn write(&mut self, name: &ObjectName, object: &Value) -> Result {
        let (next, directory) = (self.next_file, &self.directory);
        let path = self.manifests.entry(name.clone()).or_insert_with(|| directory.join(format!("manifests/{next}.json"))).clone();
        self.next_file += 1;
        let mut object = object.clone();
        if let Some(object) = object.as_object_mut() {
            let (version, kind) = match name.0 {
                Kind::Service => ("v1", "Service"),
                Kind::Node => ("v1", "Node"),
                Kind::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
            };
            object.entry("apiVersion").or_insert_with(|| version.into());
            object.entry("kind").or_insert_with(|| kind.into());
        }
        let unfinished = self.directory.join("unfinished");
        fs::write(&unfinished, object.to_string()).context("cannot write a manifest")?;
        fs::rename(&unfinished, &path).with_context(|| format!("cannot put {} in place", path.display()))
    }

    fn start(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.netns.command(program());
        command.arg("run").arg("--manifests").arg(self.directory.join("manifests")).args(&self.flags).args(arguments);
        Process::start(&mut command, self.directory.join("agent.log"))
    }

    /// Runs the agent until the kernel is as the manifests say.
    pub(super) fn synchronise(&self) -> Result {
        let mut agent = self.start(&["--once"])?;
        let status = agent.wait(START).with_context(|| format!("the agent says:\n{}", last_lines(&agent)))?;
        // 5: an object could not be served as it is written, of which cases have some.
        ensure!(matches!(status.code(), Some(0 | 5)), "{}", ended(status, &agent));
        Ok(())
    }

    /// Starts the agent and waits for its first synchronisation.
    pub(super) fn start_agent(&mut self) -> Result {
        let agent = self.agent.insert(self.start(&["--audit-period", "1h"])?);
        let netns = &self.netns;
        eventually(START, || {
            if let Some(status) = agent.ended()? {
                return Ok(Err(ended(status, agent)));
            }
            let answer = fetch(netns, &[("127.0.0.1:10256".to_owned(), "/healthz")])?.concat();
            ensure!(
                answer.contains("\"lastUpdated\":\"") || answer.contains("503"),
                "the agent has not synchronised; it says:\n{}",
                last_lines(agent)
            );
            Ok(Ok(()))
        })?
        .map_err(anyhow::Error::msg)
    }

    /// Waits until the agent must have read the changes of its files.
    pub(super) fn let_read(&self) {
        std::thread::sleep(READ);
    }

    /// Looks again until `differences` finds none, at most until `patience` is over; the last differences.
    pub(super) fn settle(
        &self,
        rules: bool,
        patience: Duration,
        differences: impl Fn(&Observed) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let found = differences(&self.observe(rules)?)?;
            if found.is_empty() || Instant::now() >= deadline || self.agent.is_none() {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn observe(&self, rules: bool) -> Result<Observed> {
        let flows = if self.flows.is_empty() { "" } else { FLOWS_SCRIPT };
        let script = format!("{SCRIPT}{}{flows}", if rules { RULES_SCRIPT } else { "" });
        Observed::read(&self.netns.exec(&["sh", "-c", &script])?)
    }

    /// The answers to requests for `(address and port, path)`, made from the node.
    pub(super) fn fetch(&self, requests: &[(String, &str)]) -> Result<Vec<String>> {
        fetch(&self.netns, requests)
    }

    /// An address at which the node is asked in a family: its own if it has one, else the loopback address.
    pub(super) fn address(&self, family: Family) -> IpAddr {
        let is_plain = |address: &&IpAddr| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        };
        let mut addresses = self.interfaces.values().flatten().filter(|address| family_of(**address) == family);
        addresses.find(is_plain).copied().unwrap_or(match family {
            Family::V4 => [127, 0, 0, 1].into(),
            Family::V6 => [0, 0, 0, 0, 0, 0, 0, 1].into(),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // First the agent, which holds the namespace.
        self.agent = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn fetch(netns: &Netns, requests: &[(String, &str)]) -> Result<Vec<String>> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let own = own.to_str().context("this program's path is no text")?;
    let mut command = vec![own, "fetch"];
    requests.iter().for_each(|(place, path)| command.extend([place.as_str(), path]));
    let output = netns.exec(&command)?;
    Ok(output.split("@@answer\n").skip(1).map(str::to_owned).collect())
}

fn ended(status: ExitStatus, agent: &Process) -> String {
    format!("the agent ended ({status}): {}", last_lines(agent))
}

/// What the agent said last, as one line.
fn last_lines(agent: &Process) -> String {
    let output = agent.output().unwrap_or_default();
    let lines: Vec<&str> = output.lines().filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" | ")
}

fn node_object(facts: &NodeFacts, pod_cidrs: &[String]) -> Value {
    let addresses: Vec<_> = facts.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "metadata": {"name": facts.name, "labels": labels(&facts.zone)},
        "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": addresses},
    })
}

fn labels(zone: &str) -> Value {
    if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) }
}

/// An address of its own network, so that none is secondary to another and goes with it.
fn with_length(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { "nodad" }
}

pub(super) fn place(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

pub(super) fn ipvsadm_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    }
}

fn ipvsadm_lines(server: &VirtualServer) -> String {
    let key = format!("{} {}", ipvsadm_protocol(server.protocol), place(server.address, server.port));
    let mut lines = format!("ipvsadm -A {key} -s '{}'", server.scheduler.replace('\'', ""));
    if server.persistence > 0 {
        let _ = write!(lines, " -p {}", server.persistence);
    }
    let flags: Vec<_> =
        [(0x8, "flag-1"), (0x10, "flag-2")].into_iter().filter(|(bit, _)| server.flags & bit != 0).map(|(_, name)| name).collect();
    if !flags.is_empty() {
        let _ = write!(lines, " -b {}", flags.join(","));
    }
    lines.push('\n');
    for real in &server.real_servers {
        let _ = writeln!(lines, "ipvsadm -a {key} -r {} -m -w {}", place(real.address, real.port), real.weight);
    }
    lines
}

/// The layout that kube-proxy gives its sets; another's follows from its members.
fn set_kind(name: &str, members: &[String]) -> &'static str {
    let name = name.trim_start_matches("KUBE-").trim_start_matches("6-");
    let parts = members.first().map_or(2, |member| member.split(',').count());
    match name {
        "IPVS-IPS" => "hash:ip",
        "LOOP-BACK" | "LOAD-BALANCER-SOURCE-IP" => "hash:ip,port,ip",
        "LOAD-BALANCER-SOURCE-CIDR" | "LOAD-BALANCER-SOURCE-CID" => "hash:ip,port,net",
        "NODE-PORT-TCP" | "NODE-PORT-UDP" | "NODE-PORT-LOCAL-TCP" | "NODE-PORT-LOCAL-UDP" | "HEALTH-CHECK-NODE-PORT" => {
            "bitmap:port range 0-65535"
        }
        _ if parts == 1 => "hash:ip",
        _ if parts == 3 => "hash:ip,port,ip",
        _ => "hash:ip,port",
    }
}
