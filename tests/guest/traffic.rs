//! Traffic through what the agent makes: who is called, and as whom the caller arrives.

use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Answer, Family, Netns, On, Pod, Protocol, Result, World, answers, shares};

use crate::support::{
    POD_PORT, ensure_shares, node, node_address, node_addresses, serving, slice, slices, synchronise, target, vip,
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

/// A Service in both families with one port for each protocol.
fn service(name: &str, number: u8) -> Service {
    let service =
        Family::ALL.into_iter().fold(Service::new(name), |service, family| service.cluster_ip(&vip(family, number).to_string()));
    Protocol::ALL.into_iter().fold(service, |service, protocol| service.port(&protocol.to_string(), protocol, PORT, POD_PORT))
}

/// The same, as a NodePort Service.
fn node_port_service(name: &str, number: u8) -> Service {
    let service =
        Family::ALL.into_iter().fold(Service::new(name), |service, family| service.cluster_ip(&vip(family, number).to_string()));
    Protocol::ALL
        .into_iter()
        .fold(service, |service, protocol| service.port(&protocol.to_string(), protocol, PORT, POD_PORT).node_port(NODE_PORT))
}

/// Goes through all protocols and families and names every cell that does not hold, not just the first.
fn in_each_cell(mut check: impl FnMut(Protocol, Family) -> Result) -> Result {
    let cells = Protocol::ALL.into_iter().flat_map(|protocol| Family::ALL.map(|family| (protocol, family)));
    let failures: Vec<String> = cells
        .filter_map(|(protocol, family)| {
            check(protocol, family).err().map(|error| format!("{protocol} over {family:?}: {error:#}"))
        })
        .collect();
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn call(caller: &Netns, protocol: Protocol, target: &str, count: u16) -> Result<Vec<Answer>> {
    answers(caller.call(protocol, target, count)?).with_context(|| format!("{} calls {target}", caller.name()))
}

fn ensure_source(answers: &[Answer], allowed: &[IpAddr]) -> Result {
    let wrong = answers.iter().find(|answer| !allowed.contains(&answer.peer.ip()));
    match wrong {
        Some(answer) => bail!("{} was called from {} instead of {allowed:?}", answer.name, answer.peer.ip()),
        None => Ok(()),
    }
}

/// Three pods, one of them on another node, behind a Service with node ports.
#[test]
fn each_protocol_and_family_is_spread_by_rr_over_cluster_ip_and_node_port() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node)?;
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), node_port_service("web", 10), slices("web", &[&a, &b, &c])))?;
        synchronise(world, &[])?;
        in_each_cell(|protocol, family| {
            let cluster_ip = target(vip(family, 10), PORT);
            let node_port = target(node_address(family), NODE_PORT);
            let pod = client.address(family);
            let table: [(&Netns, &str, &[IpAddr]); 3] = [
                // A pod is seen as itself, over a ClusterIP; whoever else calls is seen as the node, whose answer finds the way.
                (&client, &cluster_ip, &[pod]),
                (world.ext(), &node_port, &node_addresses(family)),
                (&client, &node_port, &node_addresses(family)),
            ];
            for (caller, target, sources) in table {
                let answers = call(caller, protocol, target, 12)?;
                let cell = || format!("{} calls {target}", caller.name());
                ensure_shares(&answers, [("a", 4), ("b", 4), ("c", 4)]).with_context(cell)?;
                ensure_source(&answers, sources).with_context(cell)?;
            }
            Ok(())
        })
    });
}

/// The endpoint on the other node tells most: an answer to a VIP or to an outside client would never come back from there.
#[test]
fn b2_host_processes_call_vips_with_the_nodes_address() {
    World::test(|world| {
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let far_only = format!("{}{}", service("far", 11), slices("far", &[&far]));
        let near_only = format!("{}{}", service("near", 12), slices("near", &[&near]));
        world.write("services.yaml", &format!("{}{far_only}{near_only}", node()))?;
        synchronise(world, &[])?;
        in_each_cell(|protocol, family| {
            let far = call(world.node(), protocol, &target(vip(family, 11), PORT), 2)?;
            ensure_source(&far, &[node_address(family)]).context("the endpoint on node2")?;
            let near = call(world.node(), protocol, &target(vip(family, 12), PORT), 2)?;
            ensure_source(&near, &node_addresses(family)).context("the endpoint on the node itself")?;
            // Callers from outside of the cluster are no pods either.
            let outside = call(world.ext(), protocol, &target(vip(family, 11), PORT), 2)?;
            ensure_source(&outside, &[node_address(family)]).context("ext through the ClusterIP")
        })
    });
}

#[test]
fn b1_a_pod_reaches_itself_through_its_own_service() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        world.write("web.yaml", &format!("{}{}{}", node(), node_port_service("web", 10), slices("web", &[&pod])))?;
        synchronise(world, &[])?;
        in_each_cell(|protocol, family| {
            for target in [target(vip(family, 10), PORT), target(node_address(family), NODE_PORT)] {
                let answers = call(&pod, protocol, &target, 2)?;
                ensure_shares(&answers, [("a", 2)])?;
                ensure_source(&answers, &node_addresses(family)).with_context(|| target.clone())?;
            }
            Ok(())
        })
    });
}

/// Ports by number and by name, two of the same number in different protocols, each with servers of its own.
#[test]
fn a_cluster_ip_with_several_ports_leads_each_to_its_own_target() {
    World::test(|world| {
        let pod = world.pod("pod", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let _servers = [(8080, "by-number"), (9090, "by-name"), (5353, "udp"), (5354, "tcp")]
            .into_iter()
            .map(|(port, name)| world.serve(&pod, name, port))
            .collect::<Result<Vec<_>>>()?;
        let service = Service::new("web")
            .cluster_ip("10.96.0.10")
            .port("http", Protocol::Tcp, 80, 8080)
            .port("metrics", Protocol::Tcp, 9100, "metrics-port")
            .port("dns", Protocol::Udp, 53, "dns")
            .port("dns-tcp", Protocol::Tcp, 53, "dns-tcp");
        let slice = EndpointSlice::ipv4("web")
            .port("http", Protocol::Tcp, 8080)
            .port("metrics", Protocol::Tcp, 9090)
            .port("dns", Protocol::Udp, 5353)
            .port("dns-tcp", Protocol::Tcp, 5354)
            .pod(&pod);
        world.write("web.yaml", &format!("{}{service}{slice}", node()))?;
        synchronise(world, &[])?;
        for (protocol, port, name) in [
            (Protocol::Tcp, 80, "by-number"),
            (Protocol::Tcp, 9100, "by-name"),
            (Protocol::Udp, 53, "udp"),
            (Protocol::Tcp, 53, "tcp"),
        ] {
            let answers = call(&client, protocol, &target(vip(Family::V4, 10), port), 1)?;
            ensure_shares(&answers, [(name, 1)]).with_context(|| format!("{protocol} port {port}"))?;
        }
        Ok(())
    });
}

#[test]
fn i2_sctp_node_ports_are_served_on_all_of_a_nodes_addresses() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node2)?;
        world.node().exec(&["ip", "address", "add", "172.18.0.20/16", "dev", "eth0"])?;
        world.node().exec(&["ip", "address", "add", "fd00:18::20/64", "dev", "eth0", "nodad"])?;
        let second = |family| match family {
            Family::V4 => IpAddr::from([172, 18, 0, 20]),
            Family::V6 => IpAddr::from([0xfd00, 0x18, 0, 0, 0, 0, 0, 0x20]),
        };
        world.write("web.yaml", &format!("{}{}{}", node(), node_port_service("web", 10), slices("web", &[&pod])))?;
        synchronise(world, &["--nodeport-addresses", "all"])?;
        let client = world.pod("client", On::Node)?;
        for family in Family::ALL {
            let [on_lan, on_bridge] = node_addresses(family);
            for (caller, address) in
                [(world.ext(), on_lan), (world.ext(), second(family)), (&client, on_bridge), (&client, second(family))]
            {
                let answers = call(caller, Protocol::Sctp, &target(address, NODE_PORT), 2)?;
                ensure_source(&answers, &[node_address(family), second(family)])
                    .with_context(|| format!("{} calls {address}", caller.name()))?;
            }
        }
        Ok(())
    });
}

/// kube-proxy matches node ports by number alone, and masquerades such callers of the ClusterIP.
#[test]
fn f5_a_service_port_equal_to_anothers_node_port_keeps_the_pods_source() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let port_of_number = Family::ALL
            .into_iter()
            .fold(Service::new("same-number"), |service, family| service.cluster_ip(&vip(family, 20).to_string()))
            .port("tcp", Protocol::Tcp, NODE_PORT, POD_PORT)
            .port("udp", Protocol::Udp, NODE_PORT, POD_PORT)
            .port("sctp", Protocol::Sctp, NODE_PORT, POD_PORT);
        let services =
            format!("{}{}{port_of_number}{}", node_port_service("web", 10), slices("web", &[&a]), slices("same-number", &[&b]));
        world.write("services.yaml", &format!("{}{services}", node()))?;
        synchronise(world, &["--nodeport-addresses", "all"])?;
        in_each_cell(|protocol, family| {
            let answers = call(&client, protocol, &target(vip(family, 20), NODE_PORT), 2)?;
            ensure_shares(&answers, [("b", 2)])?;
            ensure_source(&answers, &[client.address(family)])?;
            let answers = call(&client, protocol, &target(node_address(family), NODE_PORT), 1)?;
            ensure_shares(&answers, [("a", 1)]).context("the node port")
        })
    });
}

#[test]
fn session_affinity_keeps_a_client_with_its_pod() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let clients = [world.pod("one", On::Node)?, world.pod("other", On::Node)?];
        let sticky = service("web", 10).spec("sessionAffinity: ClientIP");
        world.write("web.yaml", &format!("{}{sticky}{}", node(), slices("web", &[&a, &b])))?;
        synchronise(world, &[])?;
        in_each_cell(|protocol, family| {
            let mut servers = Vec::new();
            for client in &clients {
                let answers = call(client, protocol, &target(vip(family, 10), PORT), 4)?;
                let shares = shares(&answers);
                ensure!(shares.len() == 1, "{} was answered by {shares:?}", client.name());
                servers.extend(shares.keys().map(|name| (*name).to_owned()));
            }
            ensure!(
                servers.iter().any(|name| name == "a") && servers.iter().any(|name| name == "b"),
                "both clients have {servers:?}"
            );
            Ok(())
        })
    });
}

#[test]
fn e1_a_client_with_affinity_leaves_a_pod_that_goes_at_once() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let sticky = service("web", 10).spec("sessionAffinity: ClientIP");
        let web = |pods: &[&Pod]| world.write("web.yaml", &format!("{}{sticky}{}", node(), slices("web", pods)));
        web(&[&a, &b])?;
        synchronise(world, &[])?;
        let mut stays = Vec::new();
        in_each_cell(|protocol, family| {
            let answers = call(&client, protocol, &target(vip(family, 10), PORT), 1)?;
            stays.push((protocol, family, answers.first().context("no answer")?.name.clone()));
            Ok(())
        })?;
        for (gone, left) in [("a", &b), ("b", &a)] {
            web(&[left])?;
            synchronise(world, &[])?;
            for (protocol, family, _) in stays.iter().filter(|(.., first)| first == gone) {
                ensure_shares(&call(&client, *protocol, &target(vip(*family, 10), PORT), 2)?, [(left.name(), 2)])?;
            }
        }
        Ok(())
    });
}

/// A VIP is local to the node, so without a rule whatever listens on all of its addresses would answer on it: sshd, the kubelet.
#[test]
fn g1_other_ports_of_a_vip_are_refused_even_where_the_node_listens() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let _daemon = world.serve(world.node(), "daemon", 10250)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service("web", 10), slices("web", &[&pod])))?;
        synchronise(world, &[])?;
        for family in Family::ALL {
            let on_node = call(world.ext(), Protocol::Tcp, &target(node_address(family), 10250), 1)?;
            ensure_shares(&on_node, [("daemon", 1)])?;
            for caller in [&*client, world.ext(), world.node()] {
                for (protocol, port) in [(Protocol::Tcp, 10250), (Protocol::Udp, 10250), (Protocol::Tcp, 10251)] {
                    let replies = caller.call(protocol, &target(vip(family, 10), port), 1)?;
                    let outcomes: Vec<_> = replies.iter().map(|reply| reply.outcome.clone().map(|answer| answer.name)).collect();
                    ensure!(
                        outcomes == [Err("refused".to_owned())],
                        "{} calls {} over {protocol}: {outcomes:?}",
                        caller.name(),
                        target(vip(family, 10), port)
                    );
                }
            }
            call(world.ext(), Protocol::Tcp, &target(vip(family, 10), PORT), 1).context("the Service's own port")?;
        }
        Ok(())
    });
}

#[test]
fn g2_a_vip_answers_ping_until_its_service_is_gone() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        world.write("node.yaml", &node().to_string())?;
        world.write("web.yaml", &format!("{}{}", service("web", 10), slices("web", &[&pod])))?;
        synchronise(world, &[])?;
        let ping = |caller: &Netns, family, seconds: &str| {
            let family_option = if family == Family::V4 { "-4" } else { "-6" };
            caller.try_exec(&["ping", family_option, "-c", "1", "-W", seconds, &vip(family, 10).to_string()])
        };
        for family in Family::ALL {
            for caller in [&*client, world.ext(), world.node()] {
                let output = ping(caller, family, "5")?;
                ensure!(output.status.success(), "{} over {family:?}: {}", caller.name(), String::from_utf8_lossy(&output.stdout));
            }
        }
        world.remove("web.yaml")?;
        synchronise(world, &[])?;
        for family in Family::ALL {
            ensure!(!ping(&client, family, "1")?.status.success(), "the VIP of a Service that is gone answers over {family:?}");
        }
        Ok(())
    });
}

/// One endpoint not ready, one terminating while it serves: only ready ones are called, as long as there is one.
#[test]
fn only_ready_endpoints_are_called_and_terminating_ones_only_when_none_is_ready() {
    World::test(|world| {
        let (ready, _serve_ready) = serving(world, "ready", On::Node)?;
        let (unready, _serve_unready) = serving(world, "unready", On::Node)?;
        let (terminating, _serve_terminating) = serving(world, "terminating", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let with = |ready_pods: &[&Pod]| {
            slice("web", Family::V4, ready_pods.iter().copied()).pod(&unready).unready().pod(&terminating).terminating().to_string()
        };
        let service = Service::new("web").cluster_ip("10.96.0.10").port("tcp", Protocol::Tcp, PORT, POD_PORT);
        let target = target(vip(Family::V4, 10), PORT);
        world.write("web.yaml", &format!("{}{service}{}", node(), with(&[&ready])))?;
        synchronise(world, &[])?;
        ensure_shares(&call(&client, Protocol::Tcp, &target, 4)?, [("ready", 4)])?;
        world.write("web.yaml", &format!("{}{service}{}", node(), with(&[])))?;
        synchronise(world, &[])?;
        ensure_shares(&call(&client, Protocol::Tcp, &target, 4)?, [("terminating", 4)])
    });
}

/// The first way to tell pods from others is what all other tests use.
#[test]
fn b2_each_way_to_detect_local_traffic_leaves_pods_their_address_and_masquerades_others() {
    World::test(|world| {
        let (server, _serve) = serving(world, "server", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let networks = "spec:\n  podCIDRs: [\"10.244.1.0/24\", \"fd00:244:0:1::/64\"]\n";
        world.write("node.yaml", &format!("{}{networks}", node()))?;
        world.write("web.yaml", &format!("{}{}", service("web", 10), slices("web", &[&server])))?;
        let modes: [(&[&str], bool); 5] = [
            (&["--detect-local-mode", "NodeCIDR"], true),
            (&["--detect-local-mode", "BridgeInterface", "--bridge-interface", "cni0"], true),
            (&["--detect-local-mode", "InterfaceNamePrefix", "--interface-name-prefix", "cni"], true),
            (&["--masquerade-all"], false),
            (&["--masquerade-bit", "20"], true),
        ];
        for (arguments, keeps) in modes {
            synchronise(world, arguments)?;
            for family in Family::ALL {
                let target = target(vip(family, 10), PORT);
                let of_pod = if keeps { vec![client.address(family)] } else { node_addresses(family).to_vec() };
                for (caller, sources) in [
                    (&*client, of_pod),
                    (world.node(), node_addresses(family).to_vec()),
                    (world.ext(), node_addresses(family).to_vec()),
                ] {
                    ensure_source(&call(caller, Protocol::Tcp, &target, 1)?, &sources)
                        .with_context(|| format!("{} with {}", caller.name(), arguments.join(" ")))?;
                }
            }
        }
        Ok(())
    });
}
