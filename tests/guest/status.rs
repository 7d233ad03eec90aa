//! `kube-ipvs status` beside ipvsadm.

use anyhow::{Context as _, bail, ensure};
use testkit::manifest::Service;
use testkit::{Family, On, Protocol, Result, World, answers, eventually};

use crate::held::{echoing, go_on};
use crate::support::{PATIENCE, POD_PORT, lines, node, serving, slices, started, synchronise, target};
use crate::web::{Is, Web};

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

/// What another program put there: status prints the kernel's table, not what the agent thinks of it. ipvsadm compares addresses in numbers that
/// are too small for them, so that the order of some of these goes in a circle.
const FOREIGN: &str = "\
-A -f 7 -s rr -p 60 -M 255.255.255.0
-a -f 7 -r 192.0.2.14:0 -g -w 5
-A -f 8 -6 -s lc
-A -t 192.0.2.1:443 -s mh -b mh-fallback,mh-port
-a -t 192.0.2.1:443 -r 192.0.2.10:443 -i -w 1000
-a -t 192.0.2.1:443 -r 10.0.0.10:443 -m -w 1 -x 100 -y 50
-a -t 192.0.2.1:443 -r 100.64.0.10:443 -m -w 1
-A -u 192.0.2.1:53 -s sh -o -b sh-port
-A -t 100.64.0.1:80 -s rr
-A -t 200.0.0.1:80 -s wlc
-A -t [2001:db8::1]:443 -s wrr -p 10800 -M 64
-a -t [2001:db8::1]:443 -r [2001:db8:0:1:2:3:4:5]:8443 -m -w 65535
";

/// What ipvsadm and `status --ipvsadm` can be asked for alike.
const FORMS: [&[&str]; 9] = [
    &[],
    &["--stats"],
    &["--rate"],
    &["--stats", "--exact"],
    &["--thresholds"],
    &["--persistent-conn"],
    &["--timeout"],
    &["-c"],
    &["-t", "10.96.0.10:80"],
];

/// Fails unless both print the same bytes. What is counted goes on, so that either may be ahead of the other once.
fn same_bytes_as_ipvsadm(world: &World, form: &[&str]) -> Result<String> {
    eventually(PATIENCE, || {
        let ours = world.kube_ipvs(&[&["status", "-Ln", "--ipvsadm"], form].concat())?;
        let theirs = world.node().exec(&[&["ipvsadm", "-Ln"], form].concat())?;
        ensure!(ours == theirs, "{form:?}: status says\n{ours}where ipvsadm says\n{theirs}");
        Ok(ours)
    })
}

/// Fails unless each line of the table is one of ipvsadm's, with what there is to say of it behind.
fn same_lines_as_ipvsadm(world: &World) -> Result<String> {
    let status = world.kube_ipvs(&["status"])?;
    let theirs = world.node().ipvsadm(&["-Ln"])?;
    let theirs: Vec<_> = lines(&theirs).map(str::trim_end).collect();
    for line in lines(&status) {
        ensure!(theirs.iter().any(|their| line.starts_with(their)), "status says {line:?}, ipvsadm {theirs:#?}");
    }
    ensure!(lines(&status).count() == theirs.len(), "{status} has not as many lines as {theirs:#?}");
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
        answers(client.call(Protocol::Udp, "[fd00:96::10]:80", 3)?)?;

        // The kernel adds up what it counts every two seconds.
        let counted = |line: &str| line.starts_with("TCP  10.96.0.10:80 ") && line.contains("        3 ");
        eventually(PATIENCE, || {
            let stats = world.kube_ipvs(&["status", "-Ln", "--stats", "--ipvsadm"])?;
            ensure!(stats.lines().any(counted), "the calls are not counted:\n{stats}");
            Ok(())
        })?;
        let bytes = FORMS.iter().map(|form| same_bytes_as_ipvsadm(world, form)).collect::<Result<Vec<_>>>()?;
        let [plain, stats, .., connections, one] = bytes.as_slice() else { bail!("other forms") };
        ensure!(plain.contains("TCP  200.0.0.1:80 wlc") && plain.contains("FWM  8 IPv6 lc"), "{plain}");
        ensure!(stats.lines().any(counted), "{stats}");
        ensure!(connections.contains("10.96.0.10:80") && connections.contains("[fd00:96::10]:80"), "{connections}");
        ensure!(one.starts_with("Prot LocalAddress:Port") && one.lines().count() == 5, "{one}");

        let status = same_lines_as_ipvsadm(world)?;
        for (start, name) in NAMES {
            let wanted = format!("{start} rr persistent 10800 ({name})");
            ensure!(lines(&status).any(|line| line == wanted), "no line {wanted:?} in\n{status}");
        }
        ensure!(lines(&status).any(|line| line == "TCP  10.96.0.20:80 rr (default/plain:tcp)"), "{status}");
        ensure!(lines(&status).any(|line| line == "TCP  192.0.2.1:443 mh (mh-fallback,mh-port) (foreign)"), "{status}");
        let real = format!("{}:{POD_PORT}", b.address(Family::V4));
        ensure!(lines(&status).any(|line| line.contains(&real) && line.ends_with(" b")), "{status}");
        let wide = world.kube_ipvs(&["status", "-o", "wide", "--service", "default/web", "-t", "10.96.0.10:80"])?;
        ensure!(lines(&wide).any(|line| line.contains(&real) && line.ends_with(" b on node2")), "{wide}");
        ensure!(!wide.contains("plain") && !wide.contains("foreign") && !wide.contains("UDP"), "{wide}");
        let empty = world.kube_ipvs(&["status", "--no-servers", "--vip", "10.96.0.30"])?;
        ensure!(empty.contains("(default/empty:tcp)") && lines(&empty).count() == 4, "{empty}");
        // Persistence has given all calls to one of them.
        let (name, called) = if connections.contains(&real) { ("b", &b) } else { ("a", &a) };
        let named = world.kube_ipvs(&["status", "-c", "--endpoint", &called.address(Family::V4).to_string()])?;
        let real = format!("{}:{POD_PORT}", called.address(Family::V4));
        ensure!(lines(&named).skip(2).all(|line| line.contains(&real)), "{named}");
        ensure!(named.contains(&format!("(default/web:tcp {name})")), "{named}");
        let numeric = world.kube_ipvs(&["status", "-n"])?;
        ensure!(!numeric.contains("default/") && numeric.contains("(foreign)"), "{numeric}");

        let mode = world.node().exec(&["stat", "-c", "%a %F", "/run/kube-ipvs/kube-ipvs.sock"])?;
        ensure!(mode.trim() == "600 socket", "the control socket is {mode}");
        let mode = world.node().exec(&["stat", "-c", "%a", "/run/kube-ipvs"])?;
        ensure!(mode.trim() == "700", "its directory is {mode}");

        // Without an agent, even without the socket that one left, there are no names, and everything else; what is foreign our sets tell.
        agent.kill()?;
        let nameless = same_lines_as_ipvsadm(world)?;
        ensure!(!nameless.contains("default/"), "{nameless}");
        ensure!(nameless.matches("(foreign)").count() == status.matches("(foreign)").count(), "{nameless}");
        let refused = world.node().try_exec(&["kube-ipvs", "status", "--namespace", "default"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && said.contains("only a running agent knows"), "{said}");
        Ok(())
    });
}

#[test]
fn status_shows_what_drains_and_what_has_drifted() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _agent = started(world, &["--audit-period", "1h", "--check-period", "0s"])?;
        let held = web.hold(1)?;
        let [real, other] = web.pods.each_ref().map(|pod| target(pod.address(Family::V4), POD_PORT));
        ensure!(lines(&world.kube_ipvs(&["status", "--draining"])?).count() == 3, "nothing drains yet");
        web.endpoints([Is::Gone, Is::Ready])?;
        let draining = eventually(PATIENCE, || {
            let draining = world.kube_ipvs(&["status", "--draining"])?;
            ensure!(lines(&draining).any(|line| line.contains(&real)), "{draining}");
            Ok(draining)
        })?;
        ensure!(lines(&draining).any(|line| line.contains(&real) && line.contains("draining ")), "{draining}");
        go_on(&held, 1)?;

        ensure!(lines(&world.kube_ipvs(&["status", "--drifted"])?).count() == 3, "nothing has drifted yet");
        world.node().exec(&["ipvsadm", "-e", "-t", "10.96.0.10:80", "-r", &other, "-m", "-w", "7"])?;
        let drifted = world.kube_ipvs(&["status", "--drifted", "-o", "wide"])?;
        ensure!(lines(&drifted).any(|line| line.contains(&other) && line.ends_with("drifted: desired: weight 1")), "{drifted}");
        world.node().exec(&["ipvsadm", "-D", "-t", "10.96.0.10:80"])?;
        let drifted = world.kube_ipvs(&["status", "--drifted"])?;
        ensure!(drifted.contains("TCP  10.96.0.10:80 rr (default/web:http, drifted: not in the kernel)"), "{drifted}");
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
