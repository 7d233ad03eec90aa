//! What belongs to others stays as it is, and what others do to what is ours is undone.

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{Family, Netns, On, Protocol, Result, World, answers, eventually};

use crate::support::{KernelState, PATIENCE, POD_PORT, ensure_same, node, serving, slices, started, target, vip, virtual_servers};

fn service() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080)
        .port("udp", Protocol::Udp, 80, POD_PORT)
}

/// What keepalived, an administrator or another agent may have: direct routing, persistence, IPv6, firewall marks, weights of zero; a virtual
/// server on the node's own address, beside the node ports; another one on the address of a Service, beside its ports.
const FOREIGN_SERVERS: &str = "\
-A -t 192.0.2.1:443 -s wlc -p 300
-a -t 192.0.2.1:443 -r 192.0.2.10:443 -g -w 3
-a -t 192.0.2.1:443 -r 192.0.2.11:443 -i -w 0
-A -t [2001:db8::1]:443 -s wrr
-a -t [2001:db8::1]:443 -r [2001:db8::10]:8443 -m -w 100
-A -u 172.18.0.2:5353 -s rr -o
-a -u 172.18.0.2:5353 -r 192.0.2.12:53 -m -w 1
-A -t 10.96.0.10:9443 -s rr
-a -t 10.96.0.10:9443 -r 192.0.2.13:443 -m -w 1
-A -f 7 -s rr -p 60 -M 255.255.255.0
-a -f 7 -r 192.0.2.14:0 -g -w 1
-A -f 8 -6 -s lc
-a -f 8 -6 -r [2001:db8::14]:0 -g -w 1
";

/// Makes them, and everything else that is not ours.
pub(crate) fn make_foreign(node: &Netns) -> Result {
    node.exec_with_input(&["ipvsadm", "-R"], FOREIGN_SERVERS)?;
    node.exec(&["ipset", "create", "FOREIGN", "hash:ip", "maxelem", "16"])?;
    node.exec(&["ipset", "add", "FOREIGN", "192.0.2.1"])?;
    // kube-proxy's, of a name and layout that is not ours.
    node.exec(&["ipset", "create", "KUBE-NODE-PORT-TCP", "bitmap:port", "range", "0-65535"])?;
    node.exec(&["ipset", "add", "KUBE-NODE-PORT-TCP", "30080"])?;
    for (restore, address) in [("iptables-restore", "192.0.2.1/32"), ("ip6tables-restore", "2001:db8::1/128")] {
        let rules = format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:FOREIGN - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -d {address} -j MASQUERADE\n\
             -A FOREIGN -d {address} -j RETURN\nCOMMIT\n*filter\n:FOREIGN - [0:0]\n-A INPUT -d {address} -j FOREIGN\nCOMMIT\n"
        );
        node.exec_with_input(&[restore, "--noflush", "-w"], &rules)?;
    }
    node.exec(&["ip", "link", "add", "foreign0", "type", "dummy"])?;
    node.exec(&["ip", "link", "set", "foreign0", "up"])?;
    node.exec(&["ip", "address", "add", "198.51.100.1/32", "dev", "foreign0"])?;
    for route in [
        &["-4", "route", "add", "local", "198.51.100.7", "dev", "foreign0", "table", "local"][..],
        // Our protocol's number on another device, and another number on ours, which is there when a node was served before.
        &["-4", "route", "add", "local", "198.51.100.8", "dev", "foreign0", "table", "local", "proto", "71"],
        &["-6", "route", "add", "local", "2001:db8::7", "dev", "foreign0", "table", "local", "proto", "static"],
    ] {
        node.exec(&[&["ip"], route].concat())?;
    }
    Ok(())
}

/// What is foreign of what a node's kernel holds, byte by byte.
pub(crate) fn foreign(node: &Netns) -> Result<String> {
    // Service ports, and the node port on whatever address the node has.
    let is_ours = |line: &str| {
        line.contains(":30080 ")
            || [" 10.96.0.10:80 ", " [fd00:96::10]:80 ", " 10.96.0.20:80 "].iter().any(|key| line.contains(key))
    };
    let servers: Vec<_> = virtual_servers(node)?.into_iter().filter(|line| !is_ours(line)).collect();
    let mut text = servers.join("\n") + "\n";
    for set in ["FOREIGN", "KUBE-NODE-PORT-TCP"] {
        text.push_str(&node.exec(&["ipset", "save", set])?);
    }
    for family in ["-4", "-6"] {
        let routes = node.exec(&["ip", family, "route", "show", "table", "local"])?;
        routes
            .lines()
            .filter(|line| line.contains("foreign0") || line.contains("203.0.113."))
            .for_each(|line| text.push_str(&format!("{line}\n")));
    }
    text.push_str(&node.exec(&["ip", "-o", "-4", "address", "show", "dev", "foreign0"])?);
    for save in ["iptables-save", "ip6tables-save"] {
        let rules = node.exec(&[save])?;
        // A built-in chain without a rule, and the table around it, is there or not as iptables likes.
        let is_said = |line: &&str| line.starts_with("-A ") || (line.starts_with(':') && !line.contains(" ACCEPT"));
        let kept = rules.lines().filter(is_said).filter(|line| !line.contains("KUBE-IPVS-"));
        kept.for_each(|line| text.push_str(&format!("{}\n", line.split(" [").next().unwrap_or(line))));
    }
    Ok(text)
}

pub(crate) fn ensure_foreign(node: &Netns, before: &str, when: &str) -> Result {
    let after = foreign(node)?;
    ensure!(before == after, "{when}, what belongs to others has changed. Before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn k1_what_belongs_to_others_survives_start_changes_audits_and_restart() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let (client, host) = (world.pod("client", On::Node)?, world.node());
        make_foreign(host)?;
        let before = foreign(host)?;
        ensure!(before.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-a ")).count() > 13, "{before}");
        let is_served = || {
            eventually(PATIENCE, || {
                answers(client.call(Protocol::Tcp, &target(vip(Family::V4, 10), 80), 1)?)?;
                answers(client.call(Protocol::Udp, &target(vip(Family::V6, 10), 80), 1)?)
            })
        };

        world.write("node.yaml", &node().to_string())?;
        world.write("web.yaml", &format!("{}{}", service(), slices("web", &[&a])))?;
        let agent = started(world, &["--nodeport-addresses", "all", "--audit-period", "1s"])?;
        is_served()?;
        ensure_foreign(host, &before, "after the start")?;

        // On our device by others' hands: not ours either.
        host.exec(&["ip", "route", "add", "local", "203.0.113.1", "dev", "kube-ipvs0", "table", "local", "proto", "static"])?;
        host.exec(&["ip", "route", "add", "203.0.113.128/25", "dev", "kube-ipvs0", "table", "local", "proto", "boot"])?;
        let before = foreign(host)?;
        world.write("web.yaml", &format!("{}{}", service(), slices("web", &[&a, &b])))?;
        let second = Service::new("second").cluster_ip("10.96.0.20").port("tcp", Protocol::Tcp, 80, POD_PORT);
        world.write("second.yaml", &format!("{second}{}", slices("second", &[&b])))?;
        eventually(PATIENCE, || answers(client.call(Protocol::Tcp, "10.96.0.20:80", 1)?))?;
        ensure_foreign(host, &before, "after changes")?;
        world.remove("second.yaml")?;
        eventually(PATIENCE, || {
            ensure!(!virtual_servers(host)?.iter().any(|line| line.contains("10.96.0.20")));
            Ok(())
        })?;
        ensure_foreign(host, &before, "after a Service was deleted")?;
        ensure!(agent.terminate()?.success());

        // The Service with the shared address is deleted while no agent runs. The virtual server of others on it would be out of reach without
        // its VIP, so it was taken down first.
        host.exec(&["ipvsadm", "-D", "-t", "10.96.0.10:9443"])?;
        let before = foreign(host)?;
        world.remove("web.yaml")?;
        let mut agent = started(world, &["--nodeport-addresses", "all", "--audit-period", "1s"])?;
        eventually(PATIENCE, || {
            let ours: Vec<_> =
                virtual_servers(host)?.into_iter().filter(|line| line.contains(":80 ") || line.contains(":30080 ")).collect();
            ensure!(ours.is_empty(), "{ours:?}");
            Ok(())
        })?;
        ensure_foreign(host, &before, "after a restart without the Service")?;
        agent.process().wait_for("pass=Audit", PATIENCE)?;
        ensure_foreign(host, &before, "after an audit")?;
        let log = agent.log()?;
        ensure!(!log.contains("repairing"), "the audit found something to do:\n{log}");
        Ok(())
    });
}

#[test]
fn k2_what_others_do_to_what_is_ours_is_repaired() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let (client, host) = (world.pod("client", On::Node)?, world.node());
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&a, &b])))?;
        let _agent = started(world, &["--audit-period", "1s"])?;
        let state = || {
            let mut state = KernelState::of(host)?;
            // The device's own address is a new one with each device.
            state.addresses.retain(|address| !address.contains("kube-ipvs0"));
            Ok::<_, anyhow::Error>(state)
        };
        let before = state()?;
        for damage in [
            "ipvsadm -D -t 10.96.0.10:80",
            "ipvsadm -e -t [fd00:96::10]:80 -r [fd00:244:0:1::2]:8080 -m -w 0",
            "ipvsadm -d -u 10.96.0.10:80 -r 10.244.2.2:8080",
            "ipvsadm -a -t 10.96.0.10:80 -r 192.0.2.1:80 -m -w 1",
            "ipvsadm -E -t 10.96.0.10:80 -s wlc -p 10",
            "ipvsadm -C",
            "ipset flush KUBE-CLUSTER-IP",
            "ipset add KUBE-6-IPVS-IPS fd00:96::99",
            "iptables -w -t nat -F",
            "ip6tables -w -F KUBE-IPVS-INPUT",
            "ip6tables -w -t nat -D POSTROUTING -j KUBE-IPVS-POSTROUTING",
            "ip6tables -w -t nat -I POSTROUTING -j KUBE-IPVS-POSTROUTING",
            "ip route del local 10.96.0.10 dev kube-ipvs0 table local",
            "ip -6 route flush table local proto 71",
            "ip address add 192.0.2.1/32 dev kube-ipvs0",
            "ip link set kube-ipvs0 down",
            "ip link del kube-ipvs0",
        ] {
            host.exec(&damage.split(' ').collect::<Vec<_>>()).context("the damage itself")?;
            eventually(PATIENCE, || ensure_same(&before, &state()?, "not repaired")).with_context(|| damage.to_owned())?;
        }
        for family in Family::ALL {
            for caller in [&*client, world.ext()] {
                answers(caller.call(Protocol::Tcp, &target(vip(family, 10), 80), 2)?)?;
            }
        }
        Ok(())
    });
}

/// The device tells when it goes, so nobody has to wait for the audit. With its last IPv4 address go, in Linux, all of its IPv4 routes.
#[test]
fn g4_a_lost_device_is_made_again_without_waiting_for_the_audit() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices("web", &[&a])))?;
        let _agent = started(world, &["--audit-period", "1h"])?;
        for damage in [
            "ip link del kube-ipvs0",
            "ip link set kube-ipvs0 down",
            "ip address add 192.0.2.1/24 dev kube-ipvs0 && ip address flush dev kube-ipvs0",
        ] {
            world.node().exec(&["sh", "-c", damage])?;
            for family in Family::ALL {
                eventually(PATIENCE, || {
                    answers(client.call_with(Protocol::Tcp, &target(vip(family, 10), 80), &["--timeout-ms", "1000"])?)
                })
                .with_context(|| format!("{damage}, {family:?}"))?;
            }
        }
        Ok(())
    });
}
