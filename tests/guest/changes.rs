//! What follows when objects, files or the node's addresses change, with calls going on meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{Node, Service};
use testkit::{Family, NODE_V4, NODE_V6, On, Pod, Protocol, Reply, Result, World, answers, eventually};

use crate::support::{
    BETWEEN_CALLS, KernelState, PATIENCE, POD_PORT, answered, counters, ensure_all_answered, ensure_same, failures, is_bound,
    lines, made, members, node, node_address, real_servers, routes, serving, slice, slices, started, synchronise, target, vip,
    virtual_servers,
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

/// What is due within a second on a node; a guest that is emulated beside other work is given more.
const SOON: Duration = Duration::from_secs(20);

fn service() -> Service {
    Service::new("web").cluster_ip("10.96.0.10").cluster_ip("fd00:96::10").port("tcp", Protocol::Tcp, PORT, POD_PORT)
}

fn vip4() -> String {
    target(vip(Family::V4, 10), PORT)
}

fn write_endpoints(world: &World, pods: &[&Pod]) -> Result {
    world.write("endpoints.yaml", &slices("web", pods))
}

/// Waits until the Service has real servers in this number.
fn has_real_servers(world: &World, number: usize) -> Result {
    eventually(SOON, || {
        let servers = real_servers(world.node(), "-t", &vip4())?;
        // One that leaves stays for a while, with weight 0.
        let live = servers.iter().filter(|server| !server.ends_with("-w 0")).count();
        ensure!(live == number, "the real servers are {servers:?}");
        Ok(())
    })
}

/// A call that was under way to an endpoint as it left may be cut; every other one is answered, and none is refused.
fn ensure_only_cut(replies: &[Reply], removals: usize) -> Result {
    let failures = failures(replies);
    let cut: usize = failures.values().sum();
    ensure!(
        cut <= removals && !failures.contains_key("refused") && !failures.contains_key("unreachable"),
        "of {} calls around {removals} removals some failed: {failures:?}",
        replies.len()
    );
    Ok(())
}

/// Who answers some calls. The calls in the background take their turns too, so it is left open how often.
fn ensure_answered_by<const N: usize>(client: &Pod, names: [&str; N]) -> Result {
    let answers = answers(client.call(Protocol::Tcp, &vip4(), u16::try_from(2 * N)?)?)?;
    let answering: BTreeSet<_> = answers.iter().map(|answer| answer.name.as_str()).collect();
    ensure!(answering.is_subset(&BTreeSet::from(names)), "{answering:?} answered instead of {names:?}");
    Ok(())
}

#[test]
fn endpoints_come_and_go_and_become_ready_again_without_a_refused_call() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node)?;
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}", node(), service()))?;
        write_endpoints(world, &[&a, &b])?;
        let _agent = started(world, &[])?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        answered(&calls)?;

        write_endpoints(world, &[&a, &b, &c])?;
        has_real_servers(world, 3)?;
        made(&calls, 3)?;
        write_endpoints(world, &[&a, &c])?;
        has_real_servers(world, 2)?;
        ensure_answered_by(&client, ["a", "c"])?;
        // c fails its readiness probe, and recovers.
        let unready = Family::ALL.map(|family| slice("web", family, [&a, &c]).unready().to_string()).concat();
        world.write("endpoints.yaml", &unready)?;
        has_real_servers(world, 1)?;
        ensure_answered_by(&client, ["a"])?;
        write_endpoints(world, &[&a, &c])?;
        has_real_servers(world, 2)?;
        made(&calls, 3)?;

        let replies = calls.stop()?;
        ensure_only_cut(&replies, 2)?;
        let named = |name: &str| replies.iter().any(|reply| reply.outcome.as_ref().is_ok_and(|answer| answer.name == name));
        ensure!(named("a") && named("b") && named("c"), "not all endpoints were called");
        Ok(())
    });
}

#[test]
fn a_service_port_moves_and_its_vip_stays() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let with_port = |port| {
            let service =
                Service::new("web").cluster_ip("10.96.0.10").cluster_ip("fd00:96::10").port("tcp", Protocol::Tcp, port, POD_PORT);
            world.write("web.yaml", &format!("{}{service}", node()))
        };
        with_port(PORT)?;
        write_endpoints(world, &[&a])?;
        let _agent = started(world, &[])?;
        let mut monitor = world.node().start(&["ip", "monitor", "route"])?;
        with_port(81)?;
        for family in Family::ALL {
            let (before, after) = (target(vip(family, 10), PORT), target(vip(family, 10), 81));
            eventually(SOON, || answers(client.call(Protocol::Tcp, &after, 1)?))?;
            let outcome = eventually(SOON, || {
                let reply = client.call(Protocol::Tcp, &before, 1)?.remove(0);
                reply.outcome.err().context("the port that is gone still answers")
            })?;
            ensure!(outcome == "refused", "the port that is gone: {outcome}");
        }
        ensure!(monitor.ended()?.is_none(), "ip monitor has ended");
        let seen = monitor.output()?;
        ensure!(!seen.contains("kube-ipvs0"), "the VIP was touched:\n{seen}");
        Ok(())
    });
}

#[test]
fn a_deleted_service_leaves_nothing_behind() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        world.write("node.yaml", &node().to_string())?;
        let _agent = started(world, &[])?;
        let empty = KernelState::of(world.node())?;
        ensure!(empty.virtual_servers.is_empty() && empty.routes.is_empty(), "{empty:?}");

        let node_port = Service::new("web")
            .cluster_ip("10.96.0.10")
            .cluster_ip("fd00:96::10")
            .port("tcp", Protocol::Tcp, PORT, POD_PORT)
            .node_port(NODE_PORT)
            .port("udp", Protocol::Udp, PORT, POD_PORT)
            .port("sctp", Protocol::Sctp, PORT, POD_PORT);
        world.write("web.yaml", &format!("{node_port}{}", slices("web", &[&a])))?;
        eventually(SOON, || {
            ensure!(virtual_servers(world.node())?.len() == 16, "eight virtual servers with a real server each");
            ensure!(routes(world.node())?.len() == 2, "two VIPs");
            ensure!(members(world.node(), "KUBE-CLUSTER-IP")? == ["10.96.0.10,sctp:80", "10.96.0.10,tcp:80", "10.96.0.10,udp:80"]);
            ensure!(members(world.node(), "KUBE-6-NODE-PORT-ADDRESS")? == ["fd00:18::2,tcp:30080"]);
            Ok(())
        })?;
        world.remove("web.yaml")?;
        eventually(SOON, || {
            let mut now = KernelState::of(world.node())?;
            // The device stays, and has got an address of its own from the kernel.
            now.addresses.retain(|address| !address.contains("kube-ipvs0"));
            ensure_same(&empty, &now, "after the Service is gone")
        })
    });
}

/// Which addresses a node port is on follows the node's interfaces without anything else happening.
#[test]
fn f3_node_ports_follow_the_nodes_addresses() {
    for choice in ["all", "172.18.0.0/16,fd00:18::/64"] {
        World::test(|world| {
            let (a, _serve_a) = serving(world, "a", On::Node)?;
            let service = service().node_port(NODE_PORT);
            world.write("web.yaml", &format!("{}{service}{}", node(), slices("web", &[&a])))?;
            let _agent = started(world, &["--nodeport-addresses", choice])?;
            for (family, address, on_link) in
                [(Family::V4, "172.18.0.20", "172.18.0.20/16"), (Family::V6, "fd00:18::20", "fd00:18::20/64")]
            {
                let node_port = target(address.parse::<std::net::IpAddr>()?, NODE_PORT);
                let first = target(node_address(family), NODE_PORT);
                answers(world.ext().call(Protocol::Tcp, &first, 1)?)?;
                let add = ["ip", "address", "add", on_link, "dev", "eth0"];
                let no_dad: &[&str] = if family == Family::V6 { &["nodad"] } else { &[] };
                world.node().exec(&[&add, no_dad].concat())?;
                eventually(SOON, || answers(world.ext().call_with(Protocol::Tcp, &node_port, &["--timeout-ms", "1000"])?))
                    .with_context(|| format!("{address} was added"))?;
                world.node().exec(&["ip", "address", "del", on_link, "dev", "eth0"])?;
                eventually(SOON, || {
                    let all = virtual_servers(world.node())?;
                    ensure!(!all.iter().any(|line| line.contains(&node_port)), "{all:?}");
                    ensure!(
                        !members(world.node(), set_of(family))?.iter().any(|member| member.starts_with(&format!("{address},")))
                    );
                    Ok(())
                })
                .with_context(|| format!("{address} was removed"))?;
                answers(world.ext().call(Protocol::Tcp, &first, 1)?).context("the address that stayed")?;
            }
            Ok(())
        });
    }
}

fn set_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "KUBE-NODE-PORT-ADDRESS",
        Family::V6 => "KUBE-6-NODE-PORT-ADDRESS",
    }
}

/// The Node object names another address, as after a change of its network: node ports move, and so does the source of the host's own calls,
/// without a call to a VIP failing.
#[test]
fn f6_a_node_that_changes_its_address_moves_its_node_ports_and_its_source() {
    World::test(|world| {
        let (far, _serve) = serving(world, "far", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let service = service().node_port(NODE_PORT);
        world.write("node.yaml", &node().to_string())?;
        world.write("web.yaml", &format!("{service}{}", slices("web", &[&far])))?;
        world.node().exec(&["ip", "address", "add", "172.18.0.20/16", "dev", "eth0"])?;
        let _agent = started(world, &[])?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        answered(&calls)?;
        let source = |wanted: &str| {
            eventually(SOON, || {
                let bound = routes(world.node())?;
                let wanted = format!("src {wanted} ");
                ensure!(
                    bound.iter().any(|route| route.starts_with("local 10.96.0.10 ") && format!("{route} ").contains(&wanted)),
                    "{bound:?}"
                );
                Ok(())
            })
        };
        source("172.18.0.2")?;

        world.write("node.yaml", &Node::new("node").internal_ip([172, 18, 0, 20]).internal_ip(NODE_V6).to_string())?;
        source("172.18.0.20")?;
        eventually(SOON, || answers(world.ext().call(Protocol::Tcp, "172.18.0.20:30080", 1)?))?;
        // It leaves with weight 0, and goes with the next count of its connections.
        eventually(SOON, || {
            let before = real_servers(world.node(), "-t", &target(NODE_V4, NODE_PORT))?;
            ensure!(before.is_empty(), "the address before still serves: {before:?}");
            Ok(())
        })?;
        // The address before goes, and with it, in Linux, every route in other tables that preferred it.
        world.node().exec(&["ip", "address", "del", "172.18.0.2/16", "dev", "eth0"])?;
        world.node().exec(&["ip", "address", "add", "172.18.0.20/16", "dev", "eth0"]).or_else(|error| {
            // Where secondary addresses are promoted, it is still there.
            if error.to_string().contains("File exists") || error.to_string().contains("already assigned") {
                Ok(String::new())
            } else {
                Err(error)
            }
        })?;
        world.node().exec(&["ip", "route", "replace", "10.244.2.0/24", "via", "172.18.0.3"])?;
        world.node2().exec(&["ip", "route", "replace", "10.244.1.0/24", "via", "172.18.0.20"])?;
        eventually(SOON, || {
            let answers = answers(world.node().call(Protocol::Tcp, &vip4(), 1)?)?;
            ensure!(answers[0].peer.ip().to_string() == "172.18.0.20", "the host called from {}", answers[0].peer.ip());
            Ok(())
        })?;
        source("172.18.0.20")?;
        answered(&calls)?;
        Ok(())
    });
}

/// Whatever makes an address go for a moment (a DHCP client that restarts): the VIPs come back with it.
#[test]
fn g4_vips_survive_the_loss_of_their_preferred_source() {
    World::test(|world| {
        let (near, _serve) = serving(world, "near", On::Node)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&near])))?;
        let _agent = started(world, &[])?;
        let bound = routes(world.node())?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        let calls6 = client.keep_calling(Protocol::Tcp, &target(vip(Family::V6, 10), PORT), BETWEEN_CALLS)?;
        answered(&calls)?;
        answered(&calls6)?;
        for (address, no_dad) in [("172.18.0.2/16", &[][..]), ("fd00:18::2/64", &["nodad"][..])] {
            world.node().exec(&["ip", "address", "del", address, "dev", "eth0"])?;
            made(&calls, 3)?;
            made(&calls6, 3)?;
            world.node().exec(&[&["ip", "address", "add", address, "dev", "eth0"], no_dad].concat())?;
        }
        eventually(SOON, || {
            let now = routes(world.node())?;
            ensure!(now == bound, "{now:?} instead of {bound:?}");
            Ok(())
        })?;
        // A pod's calls do not depend on what the host would prefer.
        ensure_all_answered(&calls.stop()?)?;
        ensure_all_answered(&calls6.stop()?)
    });
}

#[test]
fn a_second_synchronisation_changes_nothing() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let service = service().node_port(NODE_PORT).port("udp", Protocol::Udp, 53, POD_PORT).spec("sessionAffinity: ClientIP");
        world.write("web.yaml", &format!("{}{service}{}", node(), slices("web", &[&a, &c])))?;
        let first = synchronise(world, &[])?;
        ensure!(first.contains("changed the kernel's state"), "{first}");
        answers(client.call(Protocol::Tcp, &vip4(), 2)?)?;
        // The kernel adds its counters up every two seconds.
        eventually(PATIENCE, || {
            let made = connections(world)?;
            ensure!(made == 2, "{made} connections were counted");
            Ok(())
        })?;
        let state = KernelState::of(world.node())?;

        let second = synchronise(world, &[])?;
        ensure!(second.contains("nothing to do pass=Start"), "{second}");
        ensure!(!second.contains("changed the kernel's state"), "{second}");
        ensure_same(&state, &KernelState::of(world.node())?, "the second synchronisation changed something")?;
        ensure!(connections(world)? == 2, "counters were reset");
        Ok(())
    });
}

/// The oracles are those that would see a write even if it changed nothing: notifications of routes, links, addresses and rules.
#[test]
fn a_restart_adopts_what_is_there_with_zero_writes() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        // The kubelet's mark leads the agent to nft, whose changes can be watched.
        for program in ["iptables-nft", "ip6tables-nft"] {
            world.node().exec(&[program, "-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])?;
        }
        world.write("web.yaml", &format!("{}{}{}", node(), service().node_port(NODE_PORT), slices("web", &[&a, &c])))?;
        let agent = started(world, &[])?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        answered(&calls)?;
        let status = agent.terminate()?;
        ensure!(status.success(), "SIGTERM ended the agent with {status}");
        made(&calls, 3)?;

        let state = KernelState::of(world.node())?;
        let sets = world.node().exec(&["ipset", "save"])?;
        // The kernel adds its counters up every two seconds.
        let before = eventually(PATIENCE, || {
            let made = connections(world)?;
            ensure!(made > 0, "no connection was counted");
            Ok(made)
        })?;
        let monitors =
            [world.node().start(&["ip", "monitor", "link", "address", "route"])?, world.node().start(&["nft", "monitor"])?];
        let agent = started(world, &[])?;
        let log = agent.log()?;
        ensure!(log.contains("nothing to do pass=Start") && !log.contains("changed the kernel's state"), "{log}");
        made(&calls, 3)?;
        ensure_all_answered(&calls.stop()?)?;
        ensure_same(&state, &KernelState::of(world.node())?, "the restart changed something")?;
        ensure!(sets == world.node().exec(&["ipset", "save"])?, "a set was made anew");
        let after = connections(world)?;
        ensure!(after >= before, "counters were reset: {before} connections before, {after} after");

        // The monitors see what happens now: so they would have seen a write.
        world.node().exec(&["ip", "route", "add", "local", "192.0.2.1", "dev", "kube-ipvs0", "table", "local"])?;
        world.node().exec(&["iptables-nft", "-w", "-N", "SEEN-BY-MONITOR"])?;
        for (mut monitor, sign) in monitors.into_iter().zip(["192.0.2.1", "SEEN-BY-MONITOR"]) {
            monitor.wait_for(sign, PATIENCE)?;
            let seen = monitor.output()?;
            let ours: Vec<_> = lines(&seen).take_while(|line| !line.contains(sign)).filter(|line| is_ours(line)).collect();
            ensure!(ours.is_empty(), "the restart wrote: {ours:?}");
        }
        Ok(())
    });
}

fn is_ours(line: &str) -> bool {
    line.contains("kube-ipvs0") || line.contains("KUBE-") || line.contains("10.96.0.10") || line.contains("fd00:96::10")
}

/// How many connections the Service's virtual server has been given.
fn connections(world: &World) -> Result<u64> {
    let wanted = vip4();
    let table = counters(world.node())?;
    let line = table.iter().find(|line| line.starts_with("TCP") && line.contains(&wanted)).context("no virtual server")?;
    line.split_whitespace().nth(2).and_then(|count| count.parse().ok()).with_context(|| line.clone())
}

#[test]
fn a_broken_manifest_is_named_with_its_line_and_the_last_good_state_stays() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let good = |pods: &[&Pod]| format!("{}{}{}", node(), service(), slices("web", pods));
        world.write("web.yaml", &good(&[&a]))?;
        let mut agent = started(world, &[])?;
        let state = KernelState::of(world.node())?;

        // A line that says two things at once, in the middle of good ones.
        let broken = good(&[&a, &b]).replacen("  type: ClusterIP\n", "  type: ClusterIP: NodePort\n", 1);
        let line = broken.lines().position(|line| line.contains("ClusterIP: NodePort")).context("the line")? + 1;
        world.write("web.yaml", &broken)?;
        agent.process().wait_for(&format!("web.yaml, line {line}"), PATIENCE)?;
        ensure!(agent.log()?.contains("its last good objects stay"), "the log does not say what holds now");
        ensure_same(&state, &KernelState::of(world.node())?, "a broken manifest changed something")?;
        answers(client.call(Protocol::Tcp, &vip4(), 1)?)?;

        world.write("web.yaml", &good(&[&a, &b]))?;
        has_real_servers(world, 2)
    });
}

/// The kubelet replaces a volume's files by turning one symlink to another directory.
#[test]
fn a_configmap_volume_is_followed_through_its_symlinks() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let directory = world.manifests();
        let version = |name: &str, pods: &[&Pod]| -> Result {
            let version = directory.join(name);
            fs::create_dir(&version)?;
            fs::write(version.join("web.yaml"), format!("{}{}{}", node(), service(), slices("web", pods)))?;
            symlink(name, directory.join("..data_tmp"))?;
            Ok(fs::rename(directory.join("..data_tmp"), directory.join("..data"))?)
        };
        version("..2026_01_01", &[&a])?;
        symlink("..data/web.yaml", directory.join("web.yaml"))?;
        let _agent = started(world, &[])?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        answered(&calls)?;
        version("..2026_01_02", &[&a, &b])?;
        fs::remove_dir_all(directory.join("..2026_01_01"))?;
        has_real_servers(world, 2)?;
        made(&calls, 3)?;
        ensure_all_answered(&calls.stop()?)
    });
}

/// The control plane repacks slices as they fill and empty. An endpoint that is in another slice than before is still the same.
#[test]
fn endpoints_that_move_between_slices_are_left_alone() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let of = |suffix: &str, pods: &[&Pod]| slice("web", Family::V4, pods.iter().copied()).suffix(suffix).to_string();
        world.write("web.yaml", &format!("{}{}", node(), service()))?;
        world.write("slices.yaml", &format!("{}{}", of("1", &[&a, &b]), of("2", &[])))?;
        let mut agent = started(world, &[])?;
        let calls = client.keep_calling(Protocol::Tcp, &vip4(), BETWEEN_CALLS)?;
        answered(&calls)?;
        let log_before = agent.log()?.len();

        world.write("slices.yaml", &format!("{}{}", of("1", &[&a]), of("2", &[&b])))?;
        // A change that is to be seen shows when the moves have been taken in.
        world.write(
            "zz-mark-1.yaml",
            &Service::new("mark-1").cluster_ip("10.96.0.31").port("tcp", Protocol::Tcp, 1, 1).to_string(),
        )?;
        eventually(SOON, || is_bound(world.node(), vip(Family::V4, 31))?.then_some(()).context("10.96.0.31 is not bound"))?;
        // Through two files, one after the other: for a while it is in both.
        world.write("more.yaml", &of("3", &[&b]))?;
        world.write(
            "zz-mark-2.yaml",
            &Service::new("mark-2").cluster_ip("10.96.0.32").port("tcp", Protocol::Tcp, 1, 1).to_string(),
        )?;
        eventually(SOON, || is_bound(world.node(), vip(Family::V4, 32))?.then_some(()).context("10.96.0.32 is not bound"))?;
        world.write("slices.yaml", &format!("{}{}", of("1", &[&a]), of("2", &[])))?;
        world.write(
            "zz-mark-3.yaml",
            &Service::new("mark-3").cluster_ip("10.96.0.33").port("tcp", Protocol::Tcp, 1, 1).to_string(),
        )?;
        eventually(SOON, || is_bound(world.node(), vip(Family::V4, 33))?.then_some(()).context("10.96.0.33 is not bound"))?;

        ensure_all_answered(&calls.stop()?)?;
        has_real_servers(world, 2)?;
        // Of changes that follow each other closely, a line says how many they were.
        let batches = |log: &str| -> usize {
            let changes = lines(log).filter(|line| line.contains("changed the kernel's state"));
            changes.filter_map(|line| line.split(" batches=").nth(1)?.split(' ').next()?.parse::<usize>().ok()).sum()
        };
        eventually(SOON, || {
            let log = agent.process().output()?;
            let since = log.get(log_before..).unwrap_or_default();
            ensure!(batches(since) >= 3, "a change was not said:\n{since}");
            Ok(())
        })?;
        let log = agent.process().output()?;
        let since = log.get(log_before..).unwrap_or_default();
        ensure!(batches(since) == 3, "more than the marks:\n{since}");
        Ok(())
    });
}
