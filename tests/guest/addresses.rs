//! Addresses and ports that others have already: other machines' addresses, the node's own as they come and go, ports that processes
//! listen on, and the ports that masquerading chooses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::ensure;
use testkit::manifest::Node;
use testkit::{EXT_V4, Family, NODE2_V4, NODE2_V6, Netns, On, Protocol, Result, World, answers, eventually, shares};

use crate::support::{PATIENCE, is_bound, node, node_address, serving, slice, slices, started, target, vip, virtual_servers};

/// A dual-stack Service with one port, 80, whose name is what slices of [`slices`] call it.
fn web(spec: &str, node_port: u16, ingress: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.10\n  \
         clusterIPs: [10.96.0.10, \"fd00:96::10\"]\n  ipFamilies: [IPv4, IPv6]\n{spec}  ports:\n  \
         - {{name: tcp, port: 80, targetPort: 8080, nodePort: {node_port}}}\nstatus:\n  loadBalancer:\n    ingress: [{ingress}]\n"
    )
}

/// Who answers each of two calls; how many answers each has given.
fn callees(from: &Netns, target: &str) -> Result<BTreeMap<String, usize>> {
    let answers = answers(from.call(Protocol::Tcp, target, 2)?)?;
    Ok(shares(&answers).into_iter().map(|(name, count)| (name.to_owned(), count)).collect())
}

fn answers_alone(from: &Netns, target: &str, name: &str) -> Result {
    let callees = callees(from, target)?;
    ensure!(callees == BTreeMap::from([(name.to_owned(), 2)]), "{target} is answered by {callees:?}");
    Ok(())
}

/// The other node and the gateway stay what they are for the node, whatever a Service says; what nobody has is served.
#[test]
fn d5_a_service_does_not_take_the_addresses_of_other_machines() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let _echo = pod.start(&["busybox", "nc", "-ll", "-p", "8081", "-e", "cat"])?;
        let _daemon = world.serve(world.node2(), "daemon", 2222)?;
        let node2 = Node::new("node2").internal_ip(NODE2_V4).internal_ip(NODE2_V6);
        let spec = format!("  externalIPs: [{NODE2_V4}, \"{NODE2_V6}\", 198.51.100.22]\n");
        let load_balancers = format!("{{ip: {EXT_V4}}}, {{ip: 203.0.113.5}}");
        let service =
            web(&spec, 30080, &load_balancers).replace("  ports:\n", "  ports:\n  - {name: echo, port: 81, targetPort: 8081}\n");
        let slices = Family::ALL.map(|family| slice("web", family, [&pod]).port("echo", Protocol::Tcp, 8081).to_string());
        world.write("web.yaml", &format!("{}{service}{}", node(), slices.concat()))?;
        world.write("node2.yaml", &node2.to_string())?;

        let agent = started(world, &["--load-balancer-exclude-cidrs", "203.0.113.0/24"])?;
        let others: [IpAddr; 2] = [NODE2_V4.into(), NODE2_V6.into()];
        let reached =
            || -> Result { others.iter().try_for_each(|address| answers_alone(world.node(), &target(*address, 2222), "daemon")) };
        reached()?;
        answers_alone(world.node(), "198.51.100.22:80", "a")?;
        ensure!(!is_bound(world.node(), EXT_V4.into())?, "the gateway is cut off");
        // D4: left alone by its network.
        ensure!(
            !is_bound(world.node(), "203.0.113.5".parse()?)? && !virtual_servers(world.node())?.concat().contains("203.0.113.5")
        );
        let log = agent.log()?;
        for words in ["has 172.18.0.3, an address of Node node2", "has fd00:18::3, an address of Node node2", "a default gateway"] {
            ensure!(log.contains(words), "{words}: {log}");
        }

        // It is nobody's once the Node is gone, and the Node's again when it is back.
        world.remove("node2.yaml")?;
        eventually(PATIENCE, || {
            ensure!(is_bound(world.node(), NODE2_V4.into())? && is_bound(world.node(), NODE2_V6.into())?);
            Ok(())
        })?;
        let mut connections = Vec::new();
        for address in others {
            answers_alone(world.node(), &target(address, 80), "a")?;
            // The address is the Node's again at once, whoever has a connection to the Service there.
            let connect = format!("exec 3<>/dev/tcp/{address}/81 && echo connected && cat <&3");
            let mut connection = world.node().start(&["bash", "-c", &connect])?;
            connection.wait_for("connected", PATIENCE)?;
            connections.push(connection);
        }
        world.write("node2.yaml", &node2.to_string())?;
        eventually(PATIENCE, reached)?;
        ensure!(!virtual_servers(world.node())?.concat().contains("172.18.0.3"));

        ensure!(agent.terminate()?.success());
        let _agent = started(world, &["--allow-external-cidrs", "172.18.0.3/32"])?;
        answers_alone(world.node(), "172.18.0.3:80", "a")?;
        answers_alone(world.node(), &target(NODE2_V6, 2222), "daemon")
    });
}

#[test]
fn f3_f4_node_ports_follow_an_interface_and_give_way_to_processes_where_that_is_wanted() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let mut process = world.serve(world.node(), "process", 30080)?;
        world.write("web.yaml", &format!("{}{}{}", node(), web("", 30080, ""), slices("web", &[&pod])))?;

        // F4: by default the Service has the port, and it is said.
        let agent = started(world, &["--nodeport-addresses", "eth+,192.0.2.0/24", "--vip-ping", "refuse"])?;
        for family in Family::ALL {
            answers_alone(world.ext(), &target(node_address(family), 30080), "a")?;
        }
        eventually(PATIENCE, || {
            let log = agent.log()?;
            ensure!(log.contains("spec.ports[].nodePort is 30080, where a process of this node listens for TCP"), "{log}");
            Ok(())
        })?;
        ensure!(!virtual_servers(world.node())?.iter().any(|line| line.contains("10.244.1.1:30080")), "cni0 is not in the list");

        // F3: an address that comes is served, and one that goes is not.
        let comes_and_goes = |verb| world.node().exec(&["ip", "address", verb, "172.18.0.77/16", "dev", "eth0"]);
        comes_and_goes("add")?;
        eventually(PATIENCE, || answers_alone(world.ext(), "172.18.0.77:30080", "a"))?;
        comes_and_goes("del")?;
        eventually(PATIENCE, || {
            ensure!(!virtual_servers(world.node())?.iter().any(|line| line.contains("172.18.0.77")));
            Ok(())
        })?;

        // G2: this agent's VIPs do not answer pings; its Service does answer calls.
        for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let ping = world.ext().try_exec(&["ping", option, "-c", "1", "-W", "1", &vip(family, 10).to_string()])?;
            ensure!(!ping.status.success(), "a VIP answers over {family:?}");
            answers_alone(world.ext(), &target(vip(family, 10), 80), "a")?;
        }

        // F4: with the other choice the process has it, until it ends.
        ensure!(agent.terminate()?.success());
        let _agent = started(world, &["--occupied-node-ports", "process", "--audit-period", "2s"])?;
        for family in Family::ALL {
            answers_alone(world.ext(), &target(node_address(family), 30080), "process")?;
        }
        process.kill()?;
        for family in Family::ALL {
            eventually(PATIENCE, || answers_alone(world.ext(), &target(node_address(family), 30080), "a"))?;
        }
        Ok(())
    });
}

/// Callers speak from a port that is a node port, and the server must not see it.
#[test]
fn b3_c4_masquerading_never_chooses_a_node_port_and_health_is_told_by_family() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let only_v4 = slice("web", Family::V4, [&pod]).to_string();
        let local = "  externalTrafficPolicy: Local\n  healthCheckNodePort: 32100\n";
        world.write("web.yaml", &format!("{}{}{}", node(), web("", 30080, ""), slices("web", &[&pod])))?;
        let _agent = started(world, &["--node-port-range", "30000-40000"])?;
        let caller_ports = |from: &Netns, target: &str, port: &str| -> Result<Vec<u16>> {
            let options = ["--source-port", port, "--timeout-ms", "15000"];
            Ok(answers(from.call_with(Protocol::Tcp, target, &options)?)?.iter().map(|answer| answer.peer.port()).collect())
        };
        for family in Family::ALL {
            let vip = target(vip(family, 10), 80);
            for (from, port) in [(world.ext(), "30080"), (world.ext(), "35000"), (&*pod, "30080")] {
                let seen = caller_ports(from, &vip, port)?;
                let apart = |port: &u16| (1024..30_000).contains(port);
                ensure!(seen.len() == 1 && seen.iter().all(apart), "{} calls {vip} from {port}: {seen:?}", from.name());
            }
        }

        // C4: who asks over a family is told of the endpoints in it.
        world.write("web.yaml", &format!("{}{}{only_v4}", node(), web(local, 30080, "")))?;
        eventually(PATIENCE, || health(world, Family::V4, "200 OK", 1))?;
        health(world, Family::V6, "503", 0)
    });
}

/// The health check node port answers callers of the node in `family` with this.
fn health(world: &World, family: Family, status: &str, local_endpoints: usize) -> Result {
    let line = format!(
        "exec 3<>/dev/tcp/{}/32100; printf 'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3; timeout 5 cat <&3",
        node_address(family)
    );
    let answer = world.ext().exec(&["bash", "-c", &line])?;
    let count = format!("\"localEndpoints\": {local_endpoints}");
    ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(&count), "{family:?}: {answer}");
    Ok(())
}
