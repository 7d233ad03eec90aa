//! What an agent leaves is removed on request: all of it, and nothing else.

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{EXT_V4, EXT_V6, Family, Netns, On, Protocol, Result, World, answers};

use crate::foreign::{ensure_foreign, foreign, make_foreign};
use crate::support::{
    BETWEEN_CALLS, POD_PORT, answered, lines, made, node, serving, slices, started, target, vip, virtual_servers,
};

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

/// What is left of ours, in the words of other people's tools.
fn ours(node: &Netns) -> Result<Vec<String>> {
    let mut ours: Vec<_> =
        virtual_servers(node)?.into_iter().filter(|line| line.contains(":80 ") || line.contains(":30080 ")).collect();
    let sets = node.exec(&["ipset", "list", "-n"])?;
    ours.extend(lines(&sets).filter(|set| !["FOREIGN", "KUBE-NODE-PORT-TCP"].contains(set)).map(str::to_owned));
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

/// Counts, on node2, the packets that come to a pod with the source of the client outside.
fn count_unmasqueraded(world: &World) -> Result {
    for (restore, source) in [("iptables-legacy-restore", EXT_V4.to_string()), ("ip6tables-legacy-restore", EXT_V6.to_string())] {
        let rules = format!("*raw\n:COUNT - [0:0]\n-A PREROUTING -s {source} -p tcp --dport {POD_PORT} -j COUNT\nCOMMIT\n");
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

#[test]
fn k1_k2_cleanup_removes_what_is_ours_and_nothing_leaves_unmasqueraded_meanwhile() {
    World::test(|world| {
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let host = world.node();
        make_foreign(host)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&far])))?;
        let agent = started(world, &["--nodeport-addresses", "all"])?;
        // On our device by others' hands: the device stays for it.
        host.exec(&["ip", "route", "add", "local", "203.0.113.1", "dev", "kube-ipvs0", "table", "local", "proto", "static"])?;
        let before = foreign(host)?;
        count_unmasqueraded(world)?;
        let callers =
            Family::ALL.map(|family| world.ext().keep_calling(Protocol::Tcp, &target(vip(family, 10), 80), BETWEEN_CALLS));
        let callers = callers.into_iter().collect::<Result<Vec<_>>>()?;
        callers.iter().try_for_each(answered)?;

        let refused = world.kube_ipvs(&["cleanup"]).expect_err("an agent runs").to_string();
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
        ensure!(said.starts_with("removed ") && said.contains("2 VIPs") && said.contains("packet rules"), "{said}");
        ensure!(!said.contains("the device"), "{said}");
        callers.iter().try_for_each(|calls| made(calls, 3))?;
        for calls in callers {
            let replies = calls.stop()?;
            ensure!(replies.last().is_some_and(|reply| reply.outcome.is_err()), "somebody still answers: {:?}", replies.last());
            let sources = replies.iter().filter_map(|reply| Some(reply.outcome.as_ref().ok()?.peer.ip()));
            ensure!(sources.into_iter().all(|source| source != EXT_V4 && source != EXT_V6));
        }
        ensure_none_unmasqueraded(world)?;
        ensure_foreign(host, &before, "after the cleanup")?;
        let left = ours(host)?;
        ensure!(left.len() == 1 && left[0].contains("kube-ipvs0"), "{left:?}");

        host.exec(&["ip", "route", "del", "local", "203.0.113.1", "dev", "kube-ipvs0", "table", "local"])?;
        let said = world.kube_ipvs(&["cleanup"])?;
        ensure!(said == "removed the device kube-ipvs0\n", "{said}");
        let said = world.kube_ipvs(&["cleanup"])?;
        ensure!(said == "there is nothing to remove\n", "{said}");
        ensure!(ours(host)?.is_empty(), "{:?}", ours(host)?);

        // What was removed can be made again.
        let _agent = started(world, &[])?;
        answers(world.ext().call(Protocol::Tcp, "10.96.0.10:80", 2)?).map(drop)
    });
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
