//! What others change of ours is undone, and by what means it is noticed: the kernel's notices, a look at a few entries, a change that
//! runs into it, the audit. Each test leaves the agent only one of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use testkit::manifest::Service;
use testkit::{Agent, Family, Netns, On, Pod, Process, Protocol, Result, World, answers, eventually};

use crate::held::{Held, echoing, go_on};
use crate::support::{KernelState, PATIENCE, POD_PORT, ensure_same, node, real_servers, serving, slices, started, target, vip};
use crate::web::{CONNECTIONS, Is, Web};

/// What takes a fraction of a second on a node, in an emulated guest that runs several tests: still no audit.
const SOON: Duration = Duration::from_secs(20);

/// No audit, and no look at whether things are still there.
const NOTICES_ALONE: [&str; 4] = ["--audit-period", "1h", "--check-period", "0s"];

/// Takes all packet rules away, and then all sets.
const DESTROY: &str = "for iptables in iptables-nft ip6tables-nft; do for table in filter nat mangle; do $iptables -w -t $table -F; \
     done; done; ipset destroy";

fn service() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080)
        .port("udp", Protocol::Udp, 80, POD_PORT)
}

/// A node with a Service and an agent that serves it.
struct Served<'a> {
    node: &'a Netns,
    client: Pod,
    pods: [Pod; 2],
    agent: Agent,
    before: KernelState,
    _servers: [Process; 2],
}

impl<'a> Served<'a> {
    fn new(world: &'a World, arguments: &[&str]) -> Result<Self> {
        let (a, serve_a) = serving(world, "a", On::Node)?;
        let (b, serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&a, &b])))?;
        let agent = started(world, arguments)?;
        let before = KernelState::of(world.node())?;
        Ok(Self { node: world.node(), client, pods: [a, b], agent, before, _servers: [serve_a, serve_b] })
    }

    /// As [`repaired`].
    fn repairs(&self, damage: &str) -> Result<Duration> {
        repaired(self.node, damage, &self.before)
    }

    /// Fails unless all is served and the repairs of these stages were counted and logged.
    fn ensure_served_and_told(&self, stages: &[&str]) -> Result {
        for family in testkit::Family::ALL {
            answers(self.client.call(Protocol::Tcp, &target(vip(family, 10), 80), 2)?)?;
        }
        let log = self.agent.log()?;
        for stage in stages {
            ensure!(repairs(self.node, stage)? > 0, "no repair of {stage} was counted");
            let told = log.lines().any(|line| line.contains("WARN") && line.contains("repairing") && line.contains(stage));
            ensure!(told, "no repair of {stage} was logged");
        }
        Ok(())
    }
}

/// Does the damage and waits until it is undone; how long that took.
fn repaired(node: &Netns, damage: &str, before: &KernelState) -> Result<Duration> {
    node.exec(&["sh", "-c", damage]).context("the damage itself")?;
    let start = Instant::now();
    eventually(SOON, || ensure_same(before, &KernelState::of(node)?, "not repaired")).with_context(|| damage.to_owned())?;
    Ok(start.elapsed())
}

/// The value of a metric with these labels; 0 for one that is not there yet.
fn metric(node: &Netns, name: &str) -> Result<u64> {
    let text = node.exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:10249/metrics"])?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
    value.parse().with_context(|| format!("{name} is {value}"))
}

fn repairs(node: &Netns, stage: &str) -> Result<u64> {
    metric(node, &format!("kube_ipvs_repairs_total{{stage=\"{stage}\"}}"))
}

/// Programs read the packet rules, and may fail where netlink goes on, as on a node that can have no more processes.
#[test]
fn j7_packet_rules_that_cannot_be_read_hold_up_no_change() {
    World::test(|world| {
        let served = Served::new(world, &["--audit-period", "1s", "--max-audit-cpu", "0"])?;
        let (netns, [a, b]) = (served.node, &served.pods);
        let audits = |result: &str| metric(netns, &format!("kube_ipvs_syncs_total{{pass=\"audit\",result=\"{result}\"}}"));
        // In the mount namespace of the node alone: something that is no iptables.
        let program = netns.exec(&["sh", "-c", "readlink -f $(command -v iptables-nft-save)"])?;
        let program = program.trim();
        netns.exec(&["mount", "--bind", "/proc/version", program])?;
        eventually(PATIENCE, || {
            ensure!(audits("error")? > 1, "audits go on as if packet rules could be read");
            Ok(())
        })?;

        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[b])))?;
        let real = target(a.address(testkit::Family::V4), POD_PORT);
        eventually(SOON, || {
            let servers = real_servers(netns, "-t", "10.96.0.10:80")?;
            ensure!(servers.len() == 1 && !servers[0].starts_with(&real), "{servers:?}");
            Ok(())
        })?;
        ensure!(answers(served.client.call(Protocol::Tcp, "10.96.0.10:80", 2)?)?.iter().all(|answer| answer.name == b.name()));

        netns.exec(&["umount", program])?;
        let before = audits("success")?;
        eventually(PATIENCE, || {
            ensure!(audits("success")? > before, "audits do not go on");
            Ok(())
        })
    });
}

#[test]
fn k2_what_the_kernel_tells_of_is_repaired_at_once() {
    World::test(|world| {
        let served = Served::new(world, &NOTICES_ALONE)?;
        for damage in [
            "ip route del local 10.96.0.10 dev kube-ipvs0 table local",
            "ip -4 route flush table local proto 71",
            "ip -6 route flush table local proto 71",
            "ip link del kube-ipvs0",
            "ip link set kube-ipvs0 down",
            "iptables-nft -w -t nat -F",
            "ip6tables-nft -w -F KUBE-IPVS-INPUT",
            "iptables-nft -w -t nat -D POSTROUTING -j KUBE-IPVS-POSTROUTING",
            "nft flush ruleset",
        ] {
            println!("{damage}: undone within {:?}", served.repairs(damage)?);
        }
        served.ensure_served_and_told(&["VIPs", "packet rules"])?;
        // Nothing that the agent did itself has been taken for somebody else's doing.
        let passes = metric(served.node, "kube_ipvs_syncs_total{pass=\"repair\",result=\"success\"}")?;
        ensure!(passes < 40, "{passes} repairs for 9 damages");
        let before = served.agent.log()?.matches("pass=Repair").count();
        std::thread::sleep(Duration::from_secs(5));
        let after = served.agent.log()?.matches("pass=Repair").count();
        ensure!(after <= before + 2, "{before} repairs became {after} while nothing happened");
        Ok(())
    });
}

/// What others can do to what is ours without taking connections away themselves. While nothing leads to a VIP, or addresses are not translated,
/// what is sent goes to others, who may answer with resets.
#[test]
fn k2_damage_and_its_repair_cost_none_of_300_connections() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let _agent = started(world, &["--audit-period", "2s"])?;
        let (node, before) = (world.node(), KernelState::of(world.node())?);
        let mut held = web.hold(CONNECTIONS)?;
        for family in Family::ALL {
            held.push(Held::open(world.ext(), Protocol::Tcp, &Web::target(family), CONNECTIONS / 2, Duration::from_secs(1))?);
        }
        for damage in [
            "ipset flush",
            "ipset flush KUBE-6-CLUSTER-IP",
            "ipvsadm -E -t 10.96.0.10:80 -s wlc",
            "ipvsadm -E -t [fd00:96::10]:80 -s wlc -p 60",
            "ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 0",
            "ipvsadm -a -t [fd00:96::10]:80 -r [fd00:244:0:1::77]:8080 -m -w 1",
            "iptables -w -F; ip6tables -w -F",
            "iptables -w -t nat -F; ip6tables -w -t nat -F",
            "echo 0 >/proc/sys/net/ipv4/ip_forward",
        ] {
            repaired(node, damage, &before)?;
            go_on(&held, 1).context(damage)?;
        }
        Ok(())
    });
}

#[test]
fn k2_an_address_that_is_taken_away_is_bound_again_at_once() {
    World::test(|world| {
        let served = Served::new(world, &[&NOTICES_ALONE[..], &["--vip-binding", "address"]].concat())?;
        served.repairs("ip address del 10.96.0.10/32 dev kube-ipvs0")?;
        served.repairs("ip address del fd00:96::10/128 dev kube-ipvs0")?;
        served.ensure_served_and_told(&["VIPs"])?;
        // Those that it takes away itself are no damage, unless they are the last ones: with these Linux takes the IPv4 routes along.
        let [a, b] = &served.pods;
        let other = Service::new("other").cluster_ip("10.96.0.20").port("tcp", Protocol::Tcp, 80, POD_PORT);
        world.write("other.yaml", &format!("{other}{}", slices("other", &[a, b])))?;
        let bound = |address: &str| {
            Ok::<_, anyhow::Error>(served.node.exec(&["ip", "address", "show", "dev", "kube-ipvs0"])?.contains(address))
        };
        eventually(PATIENCE, || {
            ensure!(bound("10.96.0.20/32")?, "not bound");
            Ok(())
        })?;
        let log = served.agent.log()?;
        world.write("web.yaml", &node().to_string())?;
        eventually(PATIENCE, || {
            ensure!(!bound("10.96.0.10/32")?, "still bound");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(2));
        let repairs = |log: &str| log.matches("pass=Repair").count();
        ensure!(repairs(&served.agent.log()?) == repairs(&log), "a Service that went led to a repair");
        Ok(())
    });
}

/// The address stays, and nothing comes to it.
#[test]
fn k2_a_route_that_an_address_needs_is_made_again_at_once() {
    World::test(|world| {
        let arguments = [&NOTICES_ALONE[..], &["--vip-binding", "address"]].concat();
        let served = Served::new(world, &arguments)?;
        let local = |family| served.node.exec(&["ip", family, "route", "show", "table", "local"]);
        for (family, vip) in [("-4", "10.96.0.10"), ("-6", "fd00:96::10")] {
            let route = format!("local {vip} dev kube-ipvs0 ");
            ensure!(local(family)?.contains(&route), "there is no {route}");
            served.node.exec(&["ip", family, "route", "flush", "table", "local", "dev", "kube-ipvs0"])?;
            eventually(SOON, || {
                ensure!(local(family)?.contains(&route), "{route} is missing");
                Ok(())
            })?;
        }
        served.ensure_served_and_told(&["VIPs"])?;
        // One that nobody wants any more goes all the same.
        let Served { node: netns, agent, .. } = served;
        agent.terminate()?;
        netns.exec(&["ip", "route", "flush", "table", "local", "dev", "kube-ipvs0"])?;
        world.write("web.yaml", &node().to_string())?;
        let _agent = started(world, &arguments)?;
        eventually(PATIENCE, || {
            let bound = netns.exec(&["ip", "address", "show", "dev", "kube-ipvs0"])?;
            ensure!(!bound.contains("10.96.0.10"), "it is still bound:\n{bound}");
            Ok(())
        })
    });
}

#[test]
fn k2_what_is_emptied_is_missed_within_seconds() {
    World::test(|world| {
        let mut served = Served::new(world, &["--audit-period", "1h"])?;
        for damage in ["ipvsadm -C", "ipset flush", "ipset flush KUBE-6-CLUSTER-IP", "ipvsadm -D -t 10.96.0.10:80"] {
            served.repairs(damage)?;
        }
        served.ensure_served_and_told(&["virtual servers", "set members"])?;
        // Packet rules keep sets from being destroyed, so all has to go before any of it is repaired.
        served.agent.process().signal("STOP")?;
        served.node.exec(&["sh", "-c", DESTROY])?;
        ensure!(served.node.exec(&["ipset", "save"])?.is_empty(), "there are still sets");
        served.agent.process().signal("CONT")?;
        served.repairs("true")?;
        served.ensure_served_and_told(&["sets", "packet rules"])
    });
}

#[test]
fn k2_a_change_that_meets_damage_has_it_repaired() {
    World::test(|world| {
        let served = Served::new(world, &NOTICES_ALONE)?;
        served.node.exec(&["ipvsadm", "-C"])?;
        std::thread::sleep(Duration::from_secs(3));
        let servers = served.node.ipvsadm(&["-Sn"])?;
        ensure!(servers.trim().is_empty(), "nobody was to notice: {servers}");
        let [a, _] = &served.pods;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[a])))?;
        eventually(SOON, || {
            let servers = served.node.ipvsadm(&["-Sn"])?;
            let count = servers.lines().filter(|line| line.starts_with("-A")).count();
            // TCP and UDP on the VIP, TCP on the node port, in two families.
            if count != 6 {
                bail!("there are {count} virtual servers:\n{servers}");
            }
            Ok(())
        })?;
        served.ensure_served_and_told(&["virtual servers"])
    });
}

#[test]
fn k2_settings_that_others_change_are_set_again_with_the_audit() {
    World::test(|world| {
        let served = Served::new(world, &["--audit-period", "1s"])?;
        for (sysctl, needed) in [("vs/conntrack", "1"), ("vs/expire_nodest_conn", "1"), ("ip_forward", "1")] {
            let path = format!("/proc/sys/net/ipv4/{sysctl}");
            served.node.exec(&["sh", "-c", &format!("echo 0 >{path}")])?;
            eventually(SOON, || {
                let value = served.node.exec(&["cat", &path])?;
                ensure!(value.trim() == needed, "{sysctl} is {value}");
                Ok(())
            })?;
        }
        ensure!(repairs(served.node, "sysctls")? == 3, "not all were counted");
        ensure!(served.agent.log()?.contains("set net.ipv4.vs.conntrack again, from 0 to 1"), "it was not logged");
        Ok(())
    });
}
