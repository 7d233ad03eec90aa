//! UDP clients that keep their port while real servers come and go. UDP has no connection that ends, so the node has to forget theirs.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Calls, EXT_V4, EXT_V6, Family, NODE_V4, Netns, On, Pod, Process, Protocol, Reply, Result, World, eventually};

use crate::support::{
    PATIENCE, POD_PORT, answered, answered_by, ensure_all_answered, node, node_address, real_servers, serving, started,
    synchronise, target, vip,
};

const PORT: u16 = 53;
const NODE_PORT: u16 = 30053;
const METRICS: &str = "http://127.0.0.1:10249/metrics";

/// A Service over UDP in both families, with a node port.
fn service(name: &str, number: u8) -> Service {
    let service =
        Family::ALL.iter().fold(Service::new(name), |service, family| service.cluster_ip(&vip(*family, number).to_string()));
    service.port("dns", Protocol::Udp, PORT, POD_PORT).node_port(NODE_PORT)
}

fn slices(pods: &[&Pod]) -> String {
    let of = |family| {
        let slice = EndpointSlice::of("dns", family).port("dns", Protocol::Udp, POD_PORT);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    Family::ALL.map(of).concat()
}

/// Calls again and again from one port.
fn keep_calling_from(caller: &Netns, port: u16, target: &str) -> Result<Calls> {
    let options = ["--source-port", &port.to_string(), "--interval-ms", "50", "--timeout-ms", "300"];
    caller.keep_calling_with(Protocol::Udp, target, &options)
}

/// A client inside and one outside, in both families: each keeps its port.
fn clients(world: &World, inside: &Netns) -> Result<Vec<Calls>> {
    let mut clients = Vec::new();
    for family in Family::ALL {
        clients.push(keep_calling_from(inside, 40001, &target(vip(family, 10), PORT))?);
        clients.push(keep_calling_from(world.ext(), 40002, &target(node_address(family), NODE_PORT))?);
    }
    Ok(clients)
}

/// How long nobody answered, at the most, between the first answer and the last.
fn longest_silence(replies: &[Reply]) -> Duration {
    let silences = replies.split(|reply| reply.outcome.is_ok()).skip(1);
    silences.map(|silence| silence.iter().map(|reply| reply.took).sum()).max().unwrap_or_default()
}

fn serve_slowly(pod: &Pod, delay_ms: u64) -> Result<Process> {
    let (port, delay) = (POD_PORT.to_string(), delay_ms.to_string());
    let arguments = ["probe", "serve", "--name", pod.name(), "--port", &port, "--udp", "--delay-ms", &delay];
    let mut server = pod.start(&arguments)?;
    server.wait_for("ready\n", PATIENCE)?;
    Ok(server)
}

/// The client outside.
fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => EXT_V4.into(),
        Family::V6 => EXT_V6.into(),
    }
}

/// Makes an entry of connection tracking: from a client outside to `destination`, with answers from `answering`.
fn insert(world: &World, protocol: &str, client_port: u16, destination: (IpAddr, u16), answering: (IpAddr, u16)) -> Result {
    let [client_port, destination_port, answering_port] = [client_port, destination.1, answering.1].map(|port| port.to_string());
    let family = if destination.0.is_ipv4() { Family::V4 } else { Family::V6 };
    let [client, destination, answering] = [outside(family), destination.0, answering.0].map(|address| address.to_string());
    let mut command = vec!["conntrack", "-I", "-p", protocol, "-t", "600", "-s", &client, "-d", &destination, "-r", &answering];
    command.extend(["-q", &client, "--sport", &client_port, "--dport", &destination_port]);
    command.extend(["--reply-port-src", &answering_port, "--reply-port-dst", &client_port]);
    if protocol == "tcp" {
        command.extend(["--state", "ESTABLISHED"]);
    }
    world.node().exec(&command).map(drop)
}

/// Which of the entries from these ports of the client outside are there.
fn tracked(world: &World, family: Family, client_ports: &[u16]) -> Result<Vec<u16>> {
    let entries = world.node().exec(&["conntrack", "-L", "-f", &family.to_string().to_lowercase()])?;
    let client = format!(" src={} ", outside(family));
    let entries: Vec<_> = entries.lines().filter(|entry| entry.contains(&client)).collect();
    let is_there = |port: &u16| entries.iter().any(|entry| entry.contains(&format!(" sport={port} ")));
    Ok(client_ports.iter().copied().filter(is_there).collect())
}

/// How often the agent has searched the node's flows.
fn searches(world: &World) -> Result<u64> {
    let metrics = world.node().exec(&["wget", "-q", "-O", "-", METRICS])?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("kube_ipvs_flow_flushes_total{result=\"success\"} "));
    Ok(line.map_or(Ok(0), str::parse)?)
}

#[test]
fn i1_a_client_that_keeps_its_port_goes_over_to_the_pod_that_replaces_its_own() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let inside = world.pod("client", On::Node)?;
        world.write("dns.yaml", &format!("{}{}", node(), service("dns", 10)))?;
        world.write("endpoints.yaml", &slices(&[&a]))?;
        let _agent = started(world, &[])?;
        let clients = clients(world, &inside)?;
        clients.iter().try_for_each(answered)?;

        for (pods, server) in [([&b], "b"), ([&a], "a")] {
            world.write("endpoints.yaml", &slices(&pods))?;
            for client in &clients {
                answered_by(client, server)?;
            }
        }
        for client in clients {
            let replies = client.stop()?;
            let silence = longest_silence(&replies);
            ensure!(silence < Duration::from_secs(15), "of {} calls those of {silence:?} were not answered", replies.len());
        }
        Ok(())
    });
}

#[test]
fn i1_answers_on_their_way_while_a_pod_leaves_arrive() {
    World::test(|world| {
        let [a, b] = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let _servers = [serve_slowly(&a, 800)?, serve_slowly(&b, 800)?];
        let inside = world.pod("client", On::Node)?;
        world.write("dns.yaml", &format!("{}{}", node(), service("dns", 10)))?;
        world.write("endpoints.yaml", &slices(&[&a]))?;
        let _agent = started(world, &["--udp-drain-timeout", "4s"])?;
        // Each call is from a port of its own, and takes so long that one is always waiting for its answer.
        let call = |caller: &Netns, target: &str| caller.keep_calling_with(Protocol::Udp, target, &["--timeout-ms", "15000"]);
        let mut clients = Vec::new();
        for family in Family::ALL {
            clients.push(call(&inside, &target(vip(family, 10), PORT))?);
            clients.push(call(world.ext(), &target(node_address(family), NODE_PORT))?);
        }
        clients.iter().try_for_each(answered)?;
        world.write("endpoints.yaml", &slices(&[&b]))?;
        for client in &clients {
            answered_by(client, "b")?;
        }
        eventually(PATIENCE, || {
            let table = world.node().ipvsadm(&["-Sn"])?;
            ensure!(!table.contains("-w 0"), "a has not left: {table}");
            Ok(())
        })?;
        for client in clients {
            ensure_all_answered(&client.stop()?)?;
        }
        Ok(())
    });
}

#[test]
fn i1_a_client_that_sends_before_there_are_endpoints_is_served_once_there_are() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let inside = world.pod("client", On::Node)?;
        // The kernel begins to track when something asks for it, which on any real node something does.
        for iptables in ["iptables-legacy", "ip6tables-legacy"] {
            world.node().exec(&[iptables, "-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])?;
        }
        // Without a virtual server the node takes these for flows to whoever has the address, and remembers them so.
        let clients = clients(world, &inside)?;
        eventually(PATIENCE, || {
            let entries = world.node().exec(&["conntrack", "-L", "-f", "ipv4", "-p", "udp"])?;
            for unchanged in [format!("src={NODE_V4} dst={EXT_V4} sport={NODE_PORT}"), "src=10.96.0.10 dst=10.244.1.".to_owned()] {
                ensure!(entries.contains(&unchanged), "no {unchanged} in {entries}");
            }
            Ok(())
        })?;
        world.write("dns.yaml", &format!("{}{}", node(), service("dns", 10)))?;
        let _agent = started(world, &[])?;
        // Two ways to come by an endpoint: with an empty virtual server before it, and with none.
        world.write("endpoints.yaml", &slices(&[&a]))?;
        for client in &clients {
            answered_by(client, "a")?;
        }
        world.write("endpoints.yaml", &slices(&[]))?;
        for client in &clients {
            eventually(PATIENCE, || {
                let replies = client.so_far()?;
                ensure!(replies.last().is_some_and(|reply| reply.outcome.is_err()), "calls are still answered");
                Ok(())
            })?;
        }
        world.write("endpoints.yaml", &slices(&[&a]))?;
        for client in &clients {
            answered_by(client, "a")?;
        }
        Ok(())
    });
}

#[test]
fn i1_behind_policy_local_callers_inside_go_over_as_well() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node2)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let inside = world.pod("client", On::Node)?;
        world.write("dns.yaml", &format!("{}{}", node(), service("dns", 10).spec("externalTrafficPolicy: Local")))?;
        world.write("endpoints.yaml", &slices(&[&a]))?;
        let _agent = started(world, &[])?;
        let clients: Vec<_> = Family::ALL
            .iter()
            .map(|family| keep_calling_from(&inside, 40001, &target(node_address(*family), NODE_PORT)))
            .collect::<Result<_>>()?;
        for client in &clients {
            answered_by(client, "a")?;
        }
        world.write("endpoints.yaml", &slices(&[&b]))?;
        for client in &clients {
            answered_by(client, "b")?;
        }
        Ok(())
    });
}

#[test]
fn i1_flows_of_others_and_of_frontends_that_did_not_change_are_left_alone() {
    World::test(|world| {
        let [a, b] = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let of_both = |name, number| {
            Family::ALL.iter().fold(Service::new(name), |service, family| service.cluster_ip(&vip(*family, number).to_string()))
        };
        let other = of_both("other", 11).port("dns", Protocol::Udp, PORT, POD_PORT);
        let web = of_both("web", 12).port("dns", Protocol::Tcp, 80, POD_PORT);
        let of = |service, protocol, pod: &Pod| {
            Family::ALL
                .map(|family| EndpointSlice::of(service, family).port("dns", protocol, POD_PORT).pod(pod).to_string())
                .concat()
        };
        let others = format!("{}{}{other}{}{web}", node(), service("dns", 10), of("other", Protocol::Udp, &a));
        world.write("others.yaml", &others)?;
        world.write("web.yaml", &of("web", Protocol::Tcp, &a))?;
        world.write("endpoints.yaml", &slices(&[&a]))?;

        // At the start all frontends are looked at.
        let gone = |family: Family| match family {
            Family::V4 => (IpAddr::from([10, 244, 2, 250]), POD_PORT),
            Family::V6 => (IpAddr::from([0xfd00, 0x244, 0, 2, 0, 0, 0, 0x250]), POD_PORT),
        };
        for family in Family::ALL {
            let remote = match family {
                Family::V4 => (IpAddr::from([203, 0, 113, 7]), NODE_PORT),
                Family::V6 => (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]), NODE_PORT),
            };
            insert(world, "udp", 1000, (vip(family, 11), PORT), gone(family))?;
            insert(world, "udp", 1001, remote, remote)?;
        }
        synchronise(world, &[])?;
        for family in Family::ALL {
            let left = tracked(world, family, &[1000, 1001])?;
            ensure!(left == [1001], "{family}: of a stale flow and one of others the start has left {left:?}");
        }

        let _agent = started(world, &[])?;
        for family in Family::ALL {
            let (dns, node_port, gone) = ((vip(family, 10), PORT), (node_address(family), NODE_PORT), gone(family));
            insert(world, "udp", 1002, dns, gone)?;
            insert(world, "udp", 1003, node_port, gone)?;
            insert(world, "udp", 1004, node_port, node_port)?;
            insert(world, "udp", 2000, (vip(family, 11), PORT), gone)?;
            insert(world, "udp", 2001, (node_address(family), NODE_PORT + 1), gone)?;
            insert(world, "udp", 2002, dns, (b.address(family), POD_PORT))?;
            insert(world, "tcp", 2003, dns, gone)?;
        }

        // What changes nothing for UDP costs no look at flows.
        let before = searches(world)?;
        world.write("web.yaml", &of("web", Protocol::Tcp, &b))?;
        for family in Family::ALL {
            let server = format!("{} -m -w 1", target(b.address(family), POD_PORT));
            eventually(PATIENCE, || {
                let servers = real_servers(world.node(), "-t", &target(vip(family, 12), 80))?;
                ensure!(servers == [server.as_str()], "{servers:?}");
                Ok(())
            })?;
        }
        ensure!(searches(world)? == before, "flows were searched");
        for family in Family::ALL {
            ensure!(tracked(world, family, &[1002])? == [1002], "{family}: it is gone");
        }

        world.write("endpoints.yaml", &slices(&[&b]))?;
        for family in Family::ALL {
            eventually(PATIENCE, || {
                let left = tracked(world, family, &[1002, 1003, 1004])?;
                ensure!(left.is_empty(), "{family}: stale flows are left: {left:?}");
                Ok(())
            })?;
            let others = [1001, 2000, 2001, 2002, 2003];
            let left = tracked(world, family, &others)?;
            ensure!(left == others, "{family}: of the flows of others {others:?} only {left:?} are left");
        }
        ensure!(searches(world)? > before);
        Ok(())
    });
}
