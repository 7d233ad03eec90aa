//! What an agent leaves is removed on request: all of it, and nothing else.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{EXT_V4, EXT_V6, Family, Netns, On, Protocol, Result, World, answers};

use crate::everything::{ensure_everything, everything, make_strangers};
use crate::support::{
    BETWEEN_CALLS, POD_PORT, answered, lines, made, node, node_address, serving, slices, started, target, vip, virtual_servers,
};

/// A network outside of the cluster in each family, with the address of a load balancer in it and an external IP.
const OUTSIDE: [[&str; 3]; 2] =
    [["198.51.100.0/24", "198.51.100.21", "198.51.100.22"], ["2001:db8:c::/64", "2001:db8:c::21", "2001:db8:c::22"]];

/// All flavours of iptables, for both families.
const SAVES: [&str; 4] = ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"];

fn service() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080)
        .port("udp", Protocol::Udp, 80, POD_PORT)
}

/// A Service with all that one can have: every protocol, and frontends whose outside callers stay on the node, which are behind packet marks.
fn local() -> Service {
    let service = Service::new("local")
        .spec("externalTrafficPolicy: Local")
        .spec("healthCheckNodePort: 32100")
        .spec("loadBalancerSourceRanges: [\"172.18.0.0/16\", \"fd00:18::/64\"]");
    let [[_, ip4, external4], [_, ip6, external6]] = OUTSIDE;
    let service = service.spec(&format!("externalIPs: [\"{external4}\", \"{external6}\"]"));
    let service = service.load_balancer_ip(ip4).load_balancer_ip(ip6);
    let service = Family::ALL.iter().fold(service, |service, family| service.cluster_ip(&vip(*family, 20).to_string()));
    Protocol::ALL
        .into_iter()
        .fold(service, |service, protocol| service.port(&protocol.to_string(), protocol, 80, POD_PORT).node_port(30090))
}

/// Fails unless there is something of ours of every kind.
fn ensure_all_kinds(host: &Netns, binding: &str) -> Result {
    let (servers, sets) = (virtual_servers(host)?, host.exec(&["ipset", "save"])?);
    let has = |text: &str| servers.iter().any(|line| line.starts_with("-A ") && line.contains(text));
    for family in Family::ALL {
        let address = target(vip(family, 20), 80);
        for option in ["-t", "-u", "--sctp-service"] {
            ensure!(has(&format!("{option} {address} ")), "no {option} {address}: {servers:?}");
        }
        let begin = if family == Family::V4 { "KUBE-" } else { "KUBE-6-" };
        for set in ["LOAD-BALANCER-SOURCE-CID", "LOOP-BACK", "CLUSTER-IP"] {
            ensure!(sets.contains(&format!("\nadd {begin}{set}")), "{begin}{set} has no members");
        }
    }
    let by_mark = |six: bool| servers.iter().filter(|line| line.starts_with("-A -f ") && line.contains(" -6 ") == six).count();
    ensure!(by_mark(false) > 1 && by_mark(true) > 1, "none but those of others is by mark: {servers:?}");
    let addresses = host.exec(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?;
    ensure!(addresses.contains(" 198.51.100.21/32 ") == (binding == "address"), "{binding}: {addresses}");
    Ok(())
}

/// What is left of ours, in the words of other people's tools.
fn ours(node: &Netns) -> Result<Vec<String>> {
    let mut ours: Vec<_> =
        virtual_servers(node)?.into_iter().filter(|line| line.contains(":80 ") || line.contains(":30080 ")).collect();
    let sets = node.exec(&["ipset", "list", "-n"])?;
    ours.extend(lines(&sets).map(str::to_owned));
    for save in SAVES {
        ours.extend(lines(&node.exec(&[save])?).filter(|line| line.contains("KUBE-IPVS-")).map(str::to_owned));
    }
    for family in ["-4", "-6"] {
        let routes = node.exec(&["ip", family, "route", "show", "table", "all"])?;
        ours.extend(lines(&routes).filter(|line| line.contains("kube-ipvs0") && line.contains("proto 71")).map(str::to_owned));
    }
    let links = node.exec(&["ip", "-o", "link", "show"])?;
    ours.extend(lines(&links).filter(|line| line.contains("kube-ipvs0")).map(str::to_owned));
    Ok(ours)
}

/// Counts, on node2, the packets that come to a pod with the source of the client outside; but for resets, which a client that has waited for too long on a
/// busy machine may send when nothing remembers its connection any more.
fn count_unmasqueraded(world: &World) -> Result {
    for (restore, source) in [("iptables-legacy-restore", EXT_V4.to_string()), ("ip6tables-legacy-restore", EXT_V6.to_string())] {
        let rules = format!(
            "*raw\n:COUNT - [0:0]\n-A PREROUTING -s {source} -p tcp --tcp-flags RST NONE --dport {POD_PORT} -j COUNT\nCOMMIT\n"
        );
        world.node2().exec_with_input(&[restore, "-w"], &rules)?;
    }
    Ok(())
}

fn ensure_none_unmasqueraded(world: &World) -> Result {
    for save in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let saved = world.node2().exec(&[save, "-c", "-t", "raw"])?;
        ensure!(saved.lines().any(|line| line.starts_with("[0:0] -A PREROUTING") && line.ends_with("COUNT")), "{saved}");
    }
    Ok(())
}

/// Takes away all that an agent makes which binds VIPs by `binding`, beside what others have made in every place where it works.
fn cleans_up(world: &World, binding: &str) -> Result {
    let (far, _serve_far) = serving(world, "far", On::Node2)?;
    let (near, _serve_near) = serving(world, "near", On::Node)?;
    let (host, ext) = (world.node(), world.ext());
    make_strangers(host)?;
    let before = everything(host)?;
    let web = format!("{}{}", service(), slices("web", &[&far]));
    world.write("web.yaml", &format!("{}{web}{}{}", node(), local(), slices("local", &[&near, &far])))?;
    let flags = ["--nodeport-addresses", "all", "--vip-binding", binding];
    let agent = started(world, &flags)?;
    ensure_all_kinds(host, binding)?;
    for (family, [network, address, external]) in Family::ALL.into_iter().zip(OUTSIDE) {
        ext.exec(&["ip", "route", "add", network, "via", &node_address(family).to_string()])?;
        for address in [address, external] {
            answers(ext.call(Protocol::Tcp, &target(address.parse::<IpAddr>()?, 80), 2)?)?;
        }
    }
    // On our device by others' hands: the device stays for it. With its last IPv4 address a device loses all of its IPv4 routes, whosever they are.
    let route = "local 2001:db8:d::1 dev kube-ipvs0 table local proto static";
    let route = |verb: &'static str| [&["ip", "-6", "route", verb], &route.split(' ').collect::<Vec<_>>()[..]].concat();
    host.exec(&route("add"))?;
    count_unmasqueraded(world)?;
    let callers = Family::ALL.map(|family| ext.keep_calling(Protocol::Tcp, &target(vip(family, 10), 80), BETWEEN_CALLS));
    let callers = callers.into_iter().collect::<Result<Vec<_>>>()?;
    callers.iter().try_for_each(answered)?;

    let refused = world.kube_ipvs(&["cleanup"]).err().context("an agent runs, and it was cleaned up")?.to_string();
    ensure!(refused.contains("an agent is running") && refused.contains("--force"), "{refused}");
    ensure!(agent.terminate()?.success());
    callers.iter().try_for_each(|calls| made(calls, 3))?;
    callers.iter().try_for_each(answered).context("what the kernel holds keeps serving")?;

    // As an agent on an image with the other iptables has left them.
    for restore in ["iptables-legacy-restore", "iptables-nft-restore"] {
        let rules = "*nat\n:KUBE-IPVS-EARLIER - [0:0]\n-A PREROUTING -j KUBE-IPVS-EARLIER\n\
            -A KUBE-IPVS-EARLIER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN\nCOMMIT\n";
        host.exec_with_input(&[restore, "--noflush", "-w"], rules)?;
    }
    let said = world.kube_ipvs(&["cleanup"])?;
    ensure!(said.starts_with("removed ") && said.contains(" 8 VIPs") && said.contains("packet rules"), "{said}");
    ensure!(!said.contains("the device"), "{said}");
    callers.iter().try_for_each(|calls| made(calls, 3))?;
    for calls in callers {
        let replies = calls.stop()?;
        ensure!(replies.last().is_some_and(|reply| reply.outcome.is_err()), "somebody still answers: {:?}", replies.last());
        let sources = replies.iter().filter_map(|reply| Some(reply.outcome.as_ref().ok()?.peer.ip()));
        ensure!(sources.into_iter().all(|source| source != EXT_V4 && source != EXT_V6));
    }
    ensure_none_unmasqueraded(world)?;
    let left = everything(host)?;
    let (on_device, beside): (Vec<_>, Vec<_>) = left.lines().partition(|line| line.contains("kube-ipvs0"));
    ensure_everything(&before, &(beside.join("\n") + "\n"), "but for our device, after the cleanup")?;
    ensure!(on_device.len() == 2 && on_device.iter().any(|line| line.contains("local 2001:db8:d::1 ")), "{on_device:?}");

    host.exec(&route("del"))?;
    let said = world.kube_ipvs(&["cleanup"])?;
    ensure!(said == "removed the device kube-ipvs0\n", "{said}");
    ensure_everything(&before, &everything(host)?, "after the second cleanup")?;
    let said = world.kube_ipvs(&["cleanup"])?;
    ensure!(said == "there is nothing to remove\n", "{said}");
    ensure_everything(&before, &everything(host)?, "after the third cleanup")?;

    // What was removed can be made again.
    let _agent = started(world, &flags)?;
    ensure_all_kinds(host, binding)?;
    answers(ext.call(Protocol::Tcp, "10.96.0.10:80", 2)?).map(drop)
}

#[test]
fn k1_k2_cleanup_removes_what_is_ours_and_nothing_leaves_unmasqueraded_meanwhile() {
    World::test(|world| cleans_up(world, "route"));
}

#[test]
fn k1_k2_cleanup_removes_vips_that_are_addresses_as_well() {
    World::test(|world| cleans_up(world, "address"));
}

#[test]
fn k3_an_agent_that_is_told_to_cleans_up_when_it_ends() {
    World::test(|world| {
        let (near, _serve) = serving(world, "near", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&near])))?;
        let agent = started(world, &["--cleanup-on-exit"])?;
        ensure!(virtual_servers(world.node())?.len() > 4, "{:?}", virtual_servers(world.node())?);
        ensure!(agent.terminate()?.success());
        let left = ours(world.node())?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}
