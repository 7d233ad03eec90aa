//! How connections are spread: schedulers, their flags, weights and one-packet scheduling, by annotation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{Answer, Family, Netns, On, Pod, Process, Protocol, Result, World, answers, eventually, shares};

use crate::held::{Held, echoing, go_on};
use crate::support::{
    PATIENCE, POD_PORT, ensure_shares, node, real_servers, serving, slices, started, target, vip, virtual_servers,
};

const PORT: u16 = 80;
const METRICS: &str = "http://127.0.0.1:10249/metrics";
const HEALTH: &str = "http://127.0.0.1:10256/healthz";
const SCHEDULER: &str = "kube-ipvs.io/scheduler";
const FLAGS: &str = "kube-ipvs.io/scheduler-flags";
const WEIGHTS: &str = "kube-ipvs.io/weights";

/// A Service in both families, with a port of TCP and one of UDP of the same number.
fn service(annotations: &[(&str, &str)]) -> Service {
    let service = Family::ALL.iter().fold(Service::new("web"), |service, family| service.cluster_ip(&vip(*family, 10).to_string()));
    let service = annotations.iter().fold(service, |service, (key, value)| service.annotation(key, value));
    service.port("tcp", Protocol::Tcp, PORT, POD_PORT).port("udp", Protocol::Udp, PORT, POD_PORT)
}

fn write(world: &World, annotations: &[(&str, &str)]) -> Result {
    world.write("web.yaml", &service(annotations).to_string())
}

/// Pods of these names, every second of them on the other node, behind the Service.
fn pods<const N: usize>(world: &World, names: [&str; N]) -> Result<Vec<(Pod, Process)>> {
    let on = [On::Node, On::Node2];
    let pods: Vec<_> =
        names.iter().zip(on.into_iter().cycle()).map(|(name, on)| serving(world, name, on)).collect::<Result<_>>()?;
    let endpoints: Vec<_> = pods.iter().map(|(pod, _)| pod).collect();
    world.write("endpoints.yaml", &format!("{}{}", node(), slices("web", &endpoints)))?;
    Ok(pods)
}

fn web(family: Family) -> String {
    target(vip(family, 10), PORT)
}

/// What `ipvsadm -Sn` says of the virtual servers of the Service, without its real servers: by option and address.
fn table(world: &World) -> Result<BTreeMap<String, String>> {
    let mut table = BTreeMap::new();
    for line in virtual_servers(world.node())?.iter().filter_map(|line| line.strip_prefix("-A ")) {
        let (key, rest) = line.split_once(" -s ").context(line.to_owned())?;
        table.insert(key.to_owned(), rest.to_owned());
    }
    Ok(table)
}

/// Waits until the virtual servers of TCP and of UDP are as given, in both families.
fn becomes(world: &World, tcp: &str, udp: &str) -> Result {
    eventually(PATIENCE, || {
        let table = table(world)?;
        for family in Family::ALL {
            for (option, wanted) in [("-t", tcp), ("-u", udp)] {
                let is = table.get(&format!("{option} {}", web(family))).map(String::as_str);
                ensure!(is == Some(wanted), "{option} {}: {is:?} instead of {wanted}: {table:?}", web(family));
            }
        }
        Ok(())
    })
}

/// The weight of each real server of TCP in IPv4.
fn weights(world: &World, pods: &[(Pod, Process)]) -> Result<Vec<String>> {
    let table = real_servers(world.node(), "-t", &web(Family::V4))?;
    let of = |pod: &Pod| {
        let real = target(pod.address(Family::V4), POD_PORT);
        let line = table.iter().find(|line| line.starts_with(&format!("{real} "))).context(format!("{real}: {table:?}"))?;
        Ok(line.rsplit_once("-w ").context(line.clone())?.1.trim().to_owned())
    };
    pods.iter().map(|(pod, _)| of(pod)).collect()
}

fn weights_become<const N: usize>(world: &World, pods: &[(Pod, Process)], wanted: [&str; N]) -> Result {
    eventually(PATIENCE, || {
        let weights = weights(world, pods)?;
        ensure!(weights == wanted, "{weights:?} instead of {wanted:?}");
        Ok(())
    })
}

fn call(from: &Netns, family: Family, count: u16) -> Result<Vec<Answer>> {
    answers(from.call(Protocol::Tcp, &web(family), count)?)
}

/// How many connections each real server of UDP has had; scheduled one by one, every datagram is one. (Packets would not tell: errors that a
/// client sends back are among them.) The kernel adds them up every two seconds (net/netfilter/ipvs/ip_vs_est.c).
fn connections(world: &World, pods: &[(Pod, Process)], family: Family) -> Result<Vec<u64>> {
    let table = world.node().exec(&["ipvsadm", "-Ln", "--stats", "--exact", "-u", &web(family)])?;
    let of = |pod: &Pod| {
        let real = target(pod.address(family), POD_PORT);
        let line = table.lines().find(|line| line.contains(&format!("-> {real} "))).context(table.clone())?;
        let connections = line.split_whitespace().nth(2).context(line.to_owned())?;
        Ok(connections.parse()?)
    };
    pods.iter().map(|(pod, _)| of(pod)).collect()
}

fn metrics(world: &World) -> Result<String> {
    world.node().exec(&["wget", "-q", "-O", "-", METRICS])
}

#[test]
fn e3_a_service_has_its_own_scheduler_and_a_change_of_it_keeps_connections() {
    World::test(|world| {
        let [(a, _echo_a), (b, _echo_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        world.write("endpoints.yaml", &format!("{}{}", node(), slices("web", &[&a, &b])))?;
        write(world, &[])?;
        let _agent = started(world, &["--scheduler", "wlc"])?;
        becomes(world, "wlc", "wlc")?;
        let open = |family| Held::open(&client, Protocol::Tcp, &web(family), 20, Duration::from_millis(300));
        let held = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let before = world.node().ipvsadm(&["-Ln", "--stats", "--exact"])?;
        ensure!(before.contains("10.244."), "{before}");

        for (annotations, tcp, udp) in [
            (vec![(SCHEDULER, "mh")], "mh -b mh-fallback,mh-port", "mh -b mh-fallback,mh-port"),
            (vec![(SCHEDULER, "mh"), (FLAGS, "fallback")], "mh -b mh-fallback", "mh -b mh-fallback"),
            (vec![("kube-router.io/service.scheduler", "sh")], "sh -b sh-fallback", "sh -b sh-fallback"),
            (vec![(SCHEDULER, "lc"), ("kube-ipvs.io/one-packet", "true")], "lc", "lc -o"),
            (vec![], "wlc", "wlc"),
        ] {
            write(world, &annotations)?;
            becomes(world, tcp, udp)?;
            go_on(&held, 3)?;
        }
        Ok(())
    });
}

#[test]
fn weights_share_connections_out_and_weight_0_is_no_drain_that_ends() {
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let pods = pods(world, ["a", "b"])?;
        write(world, &[(SCHEDULER, "wrr"), (WEIGHTS, "node=3")])?;
        let _agent = started(world, &[])?;
        weights_become(world, &pods, ["3", "1"])?;
        for family in Family::ALL {
            ensure_shares(&call(&client, family, 40)?, [("a", 30), ("b", 10)])?;
        }

        write(world, &[(SCHEDULER, "wrr"), (WEIGHTS, "node=3, pod/a=0")])?;
        weights_become(world, &pods, ["0", "1"])?;
        ensure_shares(&call(&client, Family::V4, 10)?, [("b", 10)])?;
        // Drains are looked at every second, and end at once where there are no connections. Those of `a` have ended by now, or do.
        for _ in 0..3 {
            world.node().exec(&["sleep", "1.5"])?;
            ensure!(weights(world, &pods)? == ["0", "1"], "a real server with weight 0 by annotation stays");
        }

        write(world, &[(SCHEDULER, "wrr"), (WEIGHTS, &format!("{}=2", pods[0].0.address(Family::V4)))])?;
        weights_become(world, &pods, ["2", "1"])?;
        ensure_shares(&call(&client, Family::V4, 30)?, [("a", 20), ("b", 10)])
    });
}

#[test]
fn e2_with_fallback_no_flow_fails_while_a_server_has_weight_0() {
    const FLOWS: u16 = 90;
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let pods = pods(world, ["a", "b", "c"])?;
        write(world, &[])?;
        let _agent = started(world, &[])?;
        for (scheduler, flags, shown, falls_back) in [
            ("mh", None, "mh -b mh-fallback,mh-port", true),
            ("sh", Some("fallback,port"), "sh -b sh-fallback,sh-port", true),
            ("mh", Some("port"), "mh -b mh-port", false),
        ] {
            let mut annotations = vec![(SCHEDULER, scheduler), (WEIGHTS, "pod/b=0")];
            annotations.extend(flags.map(|flags| (FLAGS, flags)));
            write(world, &annotations)?;
            becomes(world, shown, shown)?;
            weights_become(world, &pods, ["1", "0", "1"])?;
            let replies = client.call(Protocol::Tcp, &web(Family::V4), FLOWS)?;
            let answered: Vec<_> = replies.iter().filter_map(|reply| reply.outcome.as_ref().ok().cloned()).collect();
            let servers: BTreeSet<_> = shares(&answered).into_keys().collect();
            ensure!(servers == BTreeSet::from(["a", "c"]), "{shown}: {servers:?}");
            ensure!(
                (answered.len() == usize::from(FLOWS)) == falls_back,
                "{shown}: {} of {FLOWS} flows were answered",
                answered.len()
            );
        }
        Ok(())
    });
}

/// Answers are no part of it: without a connection the kernel has nothing by which to translate them, see `model::Flags::ONE_PACKET`.
#[test]
fn e4_datagrams_from_one_port_are_spread_one_by_one_and_have_no_answers() {
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let pods = pods(world, ["a", "b"])?;
        write(world, &[])?;
        let _agent = started(world, &[])?;
        becomes(world, "rr", "rr")?;
        // One socket, and so one port.
        let send = |family| {
            let commands =
                format!("exec 3<>/dev/udp/{}/{PORT}; for i in $(seq 20); do echo ping >&3 || exit 1; done", vip(family, 10));
            client.exec(&["bash", "-c", &commands])
        };
        let mut before = Vec::new();
        for family in Family::ALL {
            send(family)?;
            // The two calls come from ports of their own, and are shared out.
            answers(client.call(Protocol::Udp, &web(family), 2)?)?;
            before.push(eventually(PATIENCE, || {
                let connections = connections(world, &pods, family)?;
                ensure!(connections.iter().sum::<u64>() == 3, "a client that keeps its port has one connection: {connections:?}");
                Ok(connections)
            })?);
        }

        write(world, &[("kube-ipvs.io/one-packet", "true")])?;
        becomes(world, "rr", "rr -o")?;
        for (family, before) in Family::ALL.into_iter().zip(before) {
            send(family)?;
            eventually(PATIENCE, || {
                let connections = connections(world, &pods, family)?;
                let more: Vec<_> = connections.iter().zip(&before).map(|(after, before)| after - before).collect();
                ensure!(more == [10, 10], "{more:?}");
                Ok(())
            })?;
            let replies = client.call_with(Protocol::Udp, &web(family), &["--count", "4", "--timeout-ms", "1000"])?;
            let answered = replies.iter().filter(|reply| reply.outcome.is_ok()).count();
            ensure!(answered == 0, "{answered} answers of 4 came from the address that was called");
        }
        Ok(())
    });
}

#[test]
fn e3_the_first_connection_goes_to_the_server_that_this_node_puts_first() {
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let pods = pods(world, ["a", "b", "c", "d", "e"])?;
        write(world, &[])?;
        let _agent = started(world, &[])?;
        becomes(world, "rr", "rr")?;
        let order = |family| -> Result<Vec<String>> {
            let table = world.node().exec(&["ipvsadm", "-Ln", "--nosort", "-t", &web(family)])?;
            let names = |line: &str| {
                let real = line.trim().strip_prefix("-> ")?.split(' ').next()?.to_owned();
                pods.iter().find(|(pod, _)| target(pod.address(family), POD_PORT) == real).map(|(pod, _)| pod.name().to_owned())
            };
            Ok(table.lines().filter_map(names).collect())
        };
        for family in Family::ALL {
            let order = order(family)?;
            let answers = call(&client, family, 5)?;
            let served: Vec<_> = answers.into_iter().map(|answer| answer.name).collect();
            ensure!(served == order, "{served:?} instead of {order:?}");
        }
        // Schedulers that hash have the same list everywhere; who is added last comes first in it.
        world.remove("web.yaml")?;
        eventually(PATIENCE, || {
            ensure!(table(world)?.is_empty(), "the Service is still there");
            Ok(())
        })?;
        write(world, &[(SCHEDULER, "sh")])?;
        becomes(world, "sh -b sh-fallback", "sh -b sh-fallback")?;
        // Pods of the one node have lower addresses than those of the other.
        ensure!(order(Family::V4)? == ["d", "b", "e", "c", "a"], "{:?}", order(Family::V4)?);
        Ok(())
    });
}

#[test]
fn e3_where_the_kernel_lacks_a_scheduler_the_default_serves_and_it_is_reported() {
    World::test(|world| {
        let client = world.pod("client", On::Node)?;
        let _pods = pods(world, ["a", "b"])?;
        write(world, &[(SCHEDULER, "nosuch"), (FLAGS, "port")])?;
        let agent = started(world, &["--scheduler", "mh", "--audit-period", "2s"])?;
        becomes(world, "mh -b mh-fallback,mh-port", "mh -b mh-fallback,mh-port")?;
        for family in Family::ALL {
            call(&client, family, 4)?;
        }
        eventually(PATIENCE, || {
            let metrics = metrics(world)?;
            for line in [
                "kube_ipvs_lacking_schedulers{scheduler=\"nosuch\"} 1",
                "kube_ipvs_object_problems{reason=\"UnknownScheduler\"} 1",
                "kube_ipvs_refused_objects 0",
            ] {
                ensure!(metrics.lines().any(|other| other == line), "{line} is not among:\n{metrics}");
            }
            Ok(())
        })?;
        world.node().exec(&["wget", "-q", "-O", "-", HEALTH])?;

        // Also when it is asked for later, of a virtual server that is there: it stays as it is, through audits too.
        write(world, &[(SCHEDULER, "wlc")])?;
        becomes(world, "wlc", "wlc")?;
        eventually(PATIENCE, || {
            let metrics = metrics(world)?;
            ensure!(!metrics.contains("kube_ipvs_lacking_schedulers{"), "{metrics}");
            ensure!(metrics.contains("kube_ipvs_object_problems{reason=\"UnknownScheduler\"} 0\n"), "{metrics}");
            Ok(())
        })?;
        write(world, &[(SCHEDULER, "neverwas")])?;
        becomes(world, "mh -b mh-fallback,mh-port", "mh -b mh-fallback,mh-port")?;
        world.node().exec(&["sleep", "5"])?;
        becomes(world, "mh -b mh-fallback,mh-port", "mh -b mh-fallback,mh-port")?;
        call(&client, Family::V4, 4)?;
        let log = agent.log()?;
        for (scheduler, times) in [("nosuch", 1), ("neverwas", 1)] {
            let problem =
                format!("metadata.annotations[kube-ipvs.io/scheduler] is {scheduler}, which this node's kernel does not have");
            ensure!(log.matches(&problem).count() == times, "{problem}\n{log}");
        }
        ensure!(!log.contains("a step was refused"), "{log}");

        agent.terminate()?;
        let output = world.run_once(&[])?;
        ensure!(output.status.code() == Some(5), "{}", output.status);
        ensure!(table(world)?.values().all(|shown| shown == "rr"), "{:?}", table(world)?);
        Ok(())
    });
}
