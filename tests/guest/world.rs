//! The ground the other tests stand on: the world's network carries traffic as described, and the kernel and the tools do their part.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::{EXT_V4, EXT_V6, Family, NODE_V4, On, Protocol, Result, World, answers, shares};

fn target(address: impl Into<std::net::IpAddr>, port: u16) -> String {
    std::net::SocketAddr::new(address.into(), port).to_string()
}

#[test]
fn pods_call_each_other_directly_in_all_protocols_and_families() {
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let near = world.pod("near", On::Node)?;
        let far = world.pod("far", On::Node2)?;
        for server in [&near, &far] {
            let _server = server.serve(8080)?;
            for protocol in Protocol::ALL {
                for family in Family::ALL {
                    let replies = client.call(protocol, &target(server.address(family), 8080), 2)?;
                    let answers =
                        answers(replies).with_context(|| format!("{protocol} {family:?} from client to {}", server.name()))?;
                    for answer in answers {
                        assert_eq!(answer.name, server.name());
                        assert_eq!(answer.local, server.address(family));
                        assert_eq!(answer.peer.ip(), client.address(family), "no translation on the way");
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn the_outside_client_reaches_nodes_but_never_pods() {
    World::test(|world| {
        let pod = world.pod("pod", On::Node)?;
        let _in_pod = pod.serve(8080)?;
        let _on_node = world.serve(world.node(), "node", 8080)?;
        for family in Family::ALL {
            let replies = world.ext().call(Protocol::Tcp, &target(pod.address(family), 8080), 1)?;
            ensure!(matches!(&replies[..], [reply] if reply.outcome.is_err()), "ext reached a pod: {replies:?}");
        }
        let answers = answers(world.ext().call(Protocol::Tcp, &target(NODE_V4, 8080), 1)?)?;
        assert_eq!(answers[0].name, "node");
        assert_eq!(answers[0].peer.ip(), EXT_V4);
        Ok(())
    });
}

#[test]
fn what_became_of_a_call_is_told_apart() {
    World::test(|world| {
        let pod = world.pod("pod", On::Node)?;
        let address = target(pod.address(Family::V4), 9);
        let outcome = |protocol, target: &str| -> Result<_> {
            Ok(world.node().call_with(protocol, target, &["--timeout-ms", "300"])?.remove(0).outcome.map(|answer| answer.name))
        };
        assert_eq!(outcome(Protocol::Tcp, &address)?, Err("refused".to_owned()));
        assert_eq!(outcome(Protocol::Udp, &address)?, Err("refused".to_owned()));
        pod.exec(&["iptables-legacy", "-w", "-A", "INPUT", "-j", "DROP"])?;
        assert_eq!(outcome(Protocol::Tcp, &address)?, Err("timeout".to_owned()));
        assert_eq!(outcome(Protocol::Udp, &address)?, Err("timeout".to_owned()));
        Ok(())
    });
}

#[test]
fn calls_in_the_background_see_a_server_go_and_come() {
    World::test(|world| {
        let pod = world.pod("pod", On::Node)?;
        let server = pod.serve(8080)?;
        let calls = world.node().keep_calling(Protocol::Tcp, &target(pod.address(Family::V4), 8080), Duration::from_millis(10))?;
        let has = |wanted: fn(&testkit::Reply) -> bool| {
            testkit::eventually(Duration::from_secs(10), || {
                calls.so_far()?.last().is_some_and(wanted).then_some(()).context("the last call did not end as it should")
            })
        };
        has(|reply| reply.outcome.is_ok())?;
        drop(server);
        has(|reply| reply.outcome == Err("refused".to_owned()))?;
        let _server = pod.serve(8080)?;
        has(|reply| reply.outcome.is_ok())?;
        let replies = calls.stop()?;
        ensure!(replies.iter().any(|reply| reply.outcome.is_ok()) && replies.iter().any(|reply| reply.outcome.is_err()));
        Ok(())
    });
}

/// What the agent will do, done by hand: virtual servers over three pods, one of them on another node, masqueraded for a caller from outside.
#[test]
fn ipvs_by_hand_spreads_calls_over_three_pods() {
    World::test(|world| {
        let pods = [world.pod("a", On::Node)?, world.pod("b", On::Node)?, world.pod("c", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let _servers = pods.iter().map(|pod| pod.serve(8080)).collect::<Result<Vec<_>>>()?;
        let node = world.node();
        node.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/vs/conntrack"])?;
        node.exec(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"])?;
        node.exec(&["ip", "link", "set", "kube-ipvs0", "up"])?;
        for (family, vip, iptables) in
            [(Family::V4, "10.96.0.10", "iptables-legacy"), (Family::V6, "fd00:96::10", "ip6tables-legacy")]
        {
            node.exec(&["ip", "route", "add", "local", vip, "dev", "kube-ipvs0", "table", "local"])?;
            node.exec(&[iptables, "-w", "-t", "nat", "-A", "POSTROUTING", "-m", "ipvs", "--ipvs", "-j", "MASQUERADE"])?;
            let mut rules = String::new();
            for protocol in Protocol::ALL {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                let virtual_server = target(vip.parse::<std::net::IpAddr>()?, 80);
                rules.push_str(&format!("-A {option} {virtual_server} -s rr\n"));
                for pod in &pods {
                    rules.push_str(&format!("-a {option} {virtual_server} -r {} -m -w 1\n", target(pod.address(family), 8080)));
                }
            }
            node.exec_with_input(&["ipvsadm", "-R"], &rules)?;
            for protocol in Protocol::ALL {
                for caller in [&*client, world.ext()] {
                    let what = || format!("{protocol} {vip} from {}", caller.name());
                    let answers =
                        answers(caller.call(protocol, &target(vip.parse::<std::net::IpAddr>()?, 80), 6)?).with_context(what)?;
                    assert_eq!(shares(&answers), BTreeMap::from([("a", 2), ("b", 2), ("c", 2)]), "{}", what());
                    let outside = [EXT_V4.into(), EXT_V6.into(), client.address(family)];
                    ensure!(
                        answers.iter().all(|answer| !outside.contains(&answer.peer.ip())),
                        "{} arrived without masquerade: {answers:?}",
                        what()
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn ipset_holds_the_sets_that_the_agent_uses() {
    World::test(|world| {
        let node = world.node();
        for (set, family, member) in [
            ("KUBE-LOOP-BACK", "inet", "10.244.1.2,tcp:8080,10.244.1.2"),
            ("KUBE-6-LOOP-BACK", "inet6", "fd00:244:0:1::2,sctp:8080,fd00:244:0:1::2"),
        ] {
            node.exec(&["ipset", "create", set, "hash:ip,port,ip", "family", family])?;
            node.exec(&["ipset", "add", set, member])?;
            let saved = node.exec(&["ipset", "save", set])?;
            ensure!(saved.lines().any(|line| line == format!("add {set} {member}")), "{saved}");
        }
        let elsewhere = world.node2().exec(&["ipset", "list", "-n"])?;
        assert_eq!(elsewhere, "", "sets belong to their namespace");
        Ok(())
    });
}

#[test]
fn both_flavours_of_iptables_take_rules_with_sets_and_masquerade() {
    World::test(|world| {
        // A namespace each: the flavours see each other's tables and warn.
        for (netns, flavour) in [(world.node(), "legacy"), (world.node2(), "nft")] {
            for (command, family) in [("iptables", "inet"), ("ip6tables", "inet6")] {
                let set = format!("TEST-{family}");
                netns.exec(&["ipset", "create", &set, "hash:ip,port,ip", "family", family])?;
                let rules = format!(
                    "*nat\n:KUBE-TEST - [0:0]\n-A POSTROUTING -m comment --comment \"a test\" -j KUBE-TEST\n\
                     -A KUBE-TEST -m set --match-set {set} dst,dst,src -j MASQUERADE --random-fully\n\
                     -A KUBE-TEST -m mark --mark 0x4000/0x4000 -j MASQUERADE\nCOMMIT\n\
                     *filter\n:KUBE-TEST - [0:0]\n-A INPUT -m conntrack --ctstate NEW -j KUBE-TEST\n\
                     -A KUBE-TEST -m addrtype --dst-type LOCAL -j RETURN\nCOMMIT\n"
                );
                netns.exec_with_input(&[&format!("{command}-{flavour}-restore"), "--noflush", "-w"], &rules)?;
                let saved = netns.exec(&[&format!("{command}-{flavour}-save")])?;
                for rule in [
                    format!("-A KUBE-TEST -m set --match-set {set} dst,dst,src -j MASQUERADE --random-fully"),
                    "-A KUBE-TEST -m mark --mark 0x4000/0x4000 -j MASQUERADE".to_owned(),
                    "-A KUBE-TEST -m addrtype --dst-type LOCAL -j RETURN".to_owned(),
                ] {
                    ensure!(saved.lines().any(|line| line == rule), "{command}-{flavour} did not keep {rule:?}:\n{saved}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn conntrack_shows_a_masqueraded_call() {
    World::test(|world| {
        let pod = world.pod("pod", On::Node)?;
        let _server = pod.serve(8080)?;
        let node = world.node();
        node.exec(&["iptables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"])?;
        let address = target(pod.address(Family::V4), 8080);
        let client = world.pod("client", On::Node2)?;
        let answers = answers(client.call_with(Protocol::Tcp, &address, &["--source-port", "40001"])?)?;
        assert_eq!(answers[0].peer.ip().to_string(), "10.244.1.1", "the node's bridge speaks for the caller");
        let entries = node.exec(&["conntrack", "-L", "-p", "tcp"])?;
        ensure!(entries.contains("sport=40001") && entries.contains("dport=8080"), "{entries}");
        Ok(())
    });
}
