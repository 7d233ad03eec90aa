//! `kube-ipvs status` beside ipvsadm.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{On, Protocol, Result, World, answers};

use crate::support::{POD_PORT, lines, node, serving, slices, started, synchronise};

const NAMES: [(&str, &str); 6] = [
    ("TCP  10.96.0.10:80", "default/web:tcp"),
    ("TCP  172.18.0.2:30080", "default/web:tcp"),
    ("TCP  [fd00:96::10]:80", "default/web:tcp"),
    ("TCP  [fd00:18::2]:30080", "default/web:tcp"),
    ("SCTP 10.96.0.10:80", "default/web:sctp"),
    ("UDP  [fd00:96::10]:80", "default/web:udp"),
];

fn write_services(world: &World, pods: [&testkit::Pod; 2]) -> Result {
    let service = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080)
        .port("udp", Protocol::Udp, 80, POD_PORT)
        .port("sctp", Protocol::Sctp, 80, POD_PORT)
        .spec("sessionAffinity: ClientIP");
    let plain = Service::new("plain").cluster_ip("10.96.0.20").port("tcp", Protocol::Tcp, 80, POD_PORT);
    let empty = Service::new("empty").cluster_ip("10.96.0.30").port("tcp", Protocol::Tcp, 80, POD_PORT);
    world.write(
        "services.yaml",
        &format!("{}{service}{}{plain}{}{empty}", node(), slices("web", &pods), slices("plain", &[pods[0]])),
    )
}

/// What another program put there: status prints the kernel's table, not what the agent thinks of it.
const FOREIGN: &str = "\
-A -f 7 -s rr -p 60 -M 255.255.255.0
-a -f 7 -r 192.0.2.14:0 -g -w 5
-A -f 8 -6 -s lc
-A -t 192.0.2.1:443 -s mh -b mh-fallback,mh-port
-a -t 192.0.2.1:443 -r 192.0.2.10:443 -i -w 1000
-A -u 192.0.2.1:53 -s sh -o -b sh-port
-A -t [2001:db8::1]:443 -s wrr -p 10800 -M 64
-a -t [2001:db8::1]:443 -r [2001:db8:0:1:2:3:4:5]:8443 -m -w 65535
";

/// The table as blocks of a virtual server with its real servers: the kernel tells virtual servers in the order of its hash table.
fn blocks(table: &str) -> Result<(Vec<String>, BTreeSet<Vec<String>>)> {
    let all: Vec<_> = lines(table).map(str::to_owned).collect();
    let (head, rest) = all.split_at_checked(3).with_context(|| format!("no table: {table}"))?;
    let mut blocks: Vec<Vec<String>> = Vec::new();
    for line in rest {
        match blocks.last_mut() {
            Some(block) if line.starts_with("  ->") => block.push(line.clone()),
            _ => blocks.push(vec![line.clone()]),
        }
    }
    // Real servers are told in the order of their addition, or of its reverse.
    blocks.iter_mut().for_each(|block| block.sort_unstable_by_key(|line| (line.starts_with("  ->"), line.clone())));
    Ok((head.to_vec(), blocks.into_iter().collect()))
}

fn without_names(table: &str) -> String {
    let strip = |line: &str| match line.rsplit_once(" (") {
        Some((rest, name)) if name.ends_with(')') && name.contains('/') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    table.lines().map(strip).collect()
}

fn same_as_ipvsadm(world: &World) -> Result<String> {
    let status = world.kube_ipvs(&["status"])?;
    let (head, ours) = blocks(&without_names(&status))?;
    let (wanted_head, theirs) = blocks(&world.node().exec(&["ipvsadm", "-Ln"])?)?;
    ensure!(head == wanted_head, "the head is {head:?} instead of {wanted_head:?}");
    let more: Vec<_> = ours.difference(&theirs).collect();
    let less: Vec<_> = theirs.difference(&ours).collect();
    ensure!(more.is_empty() && less.is_empty(), "status says {more:#?} where ipvsadm says {less:#?}");
    Ok(status)
}

#[test]
fn status_reads_like_ipvsadm_and_names_the_services() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        write_services(world, [&a, &b])?;
        world.node().exec_with_input(&["ipvsadm", "-R"], FOREIGN)?;
        let agent = started(world, &[])?;
        answers(client.call(Protocol::Tcp, "10.96.0.10:80", 3)?)?;
        let status = same_as_ipvsadm(world)?;
        for (start, name) in NAMES {
            let wanted = format!("{start} rr persistent 10800 ({name})");
            ensure!(lines(&status).any(|line| line == wanted), "no line {wanted:?} in\n{status}");
        }
        ensure!(lines(&status).any(|line| line == "TCP  10.96.0.20:80 rr (default/plain:tcp)"), "{status}");
        ensure!(lines(&status).any(|line| line == "TCP  192.0.2.1:443 mh (mh-fallback,mh-port)"), "{status}");

        let mode = world.node().exec(&["stat", "-c", "%a %F", "/run/kube-ipvs/kube-ipvs.sock"])?;
        ensure!(mode.trim() == "600 socket", "the control socket is {mode}");
        let mode = world.node().exec(&["stat", "-c", "%a", "/run/kube-ipvs"])?;
        ensure!(mode.trim() == "700", "its directory is {mode}");

        // Without an agent, even without the socket that one left, there are no names, and everything else.
        agent.kill()?;
        let nameless = same_as_ipvsadm(world)?;
        ensure!(!nameless.contains("default/"), "{nameless}");
        Ok(())
    });
}

#[test]
fn status_as_json_holds_the_same() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        write_services(world, [&a, &b])?;
        synchronise(world, &[])?;
        world.node().exec_with_input(&["ipvsadm", "-R"], FOREIGN)?;
        let table: serde_json::Value = serde_json::from_str(&world.kube_ipvs(&["status", "-o", "json"])?)?;
        let servers = table["virtualServers"].as_array().context("no virtualServers")?;
        let mut lines = Vec::new();
        for server in servers {
            let text = |field: &str| server[field].as_str().map(str::to_owned).unwrap_or_default();
            let address = text("address").parse::<std::net::IpAddr>();
            let key = match (address, server["port"].as_u64(), server["firewallMark"].as_u64()) {
                (Ok(address), Some(port), _) => {
                    let option = match text("protocol").as_str() {
                        "TCP" => "-t",
                        "UDP" => "-u",
                        _ => "--sctp-service",
                    };
                    format!("{option} {}", std::net::SocketAddr::new(address, u16::try_from(port)?))
                }
                (_, _, Some(mark)) => format!("-f {mark}"),
                _ => anyhow::bail!("a virtual server without a key: {server}"),
            };
            lines.push(format!("-A {key} -s {}", text("scheduler")));
            for real in server["realServers"].as_array().context("no realServers")? {
                let address: std::net::IpAddr = real["address"].as_str().unwrap_or_default().parse()?;
                let real_address = std::net::SocketAddr::new(address, u16::try_from(real["port"].as_u64().unwrap_or_default())?);
                let method = match real["forwardingMethod"].as_str() {
                    Some("Masq") => "-m",
                    Some("Route") => "-g",
                    Some("Tunnel") => "-i",
                    other => anyhow::bail!("forwarding method {other:?}"),
                };
                lines.push(format!("-a {key} -r {real_address} {method} -w {}", real["weight"]));
            }
        }
        lines.sort_unstable();
        // ipvsadm says more of virtual servers than their key and scheduler, and which kind of tunnel there is.
        let mut wanted: Vec<_> = crate::support::virtual_servers(world.node())?
            .into_iter()
            .map(|line| {
                if line.starts_with("-A ") {
                    line.replacen(" -6", "", 1).split(' ').take(5).collect::<Vec<_>>().join(" ")
                } else {
                    line.replace(" --tun-type ipip", "")
                }
            })
            .collect();
        wanted.sort_unstable();
        ensure!(lines == wanted, "JSON holds {lines:#?}, ipvsadm {wanted:#?}");
        let persistent = servers.iter().find(|server| server["address"] == "10.96.0.10" && server["protocol"] == "TCP");
        ensure!(persistent.context("10.96.0.10")?["persistenceSeconds"] == 10_800);
        Ok(())
    });
}
