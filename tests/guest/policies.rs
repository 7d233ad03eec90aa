//! Addresses outside of the cluster's networks, and who may call them: external IPs, load balancer addresses, traffic policies, source
//! ranges, health check node ports.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Node};
use testkit::{Answer, NODE_V4, Netns, On, Pod, Protocol, Result, World, answers, eventually, shares};

const PATIENCE: Duration = Duration::from_secs(120);
const LB: &str = "198.51.100.21:80";
const EXTERNAL: &str = "198.51.100.22:80";
const NODE_PORT: &str = "172.18.0.2:30080";
const LOCAL_FRONTENDS: [&str; 3] = [LB, EXTERNAL, NODE_PORT];

/// The Service `web` with every kind of frontend, and `spec`'s lines on top.
fn web(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.10\n  \
         externalIPs: [198.51.100.22]\n{spec}  ports:\n  - {{name: http, port: 80, targetPort: 8080, nodePort: 30080}}\nstatus:\n  loadBalancer:\n    \
         ingress: [{{ip: 198.51.100.21}}]\n"
    )
}

fn slice(pods: &[&Pod]) -> String {
    let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080);
    pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
}

/// Brings the outside client a way to the load balancer's network, and the Node object.
fn prepare(world: &World) -> Result {
    world.ext().exec(&["ip", "route", "add", "198.51.100.0/24", "via", &NODE_V4.to_string()])?;
    world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())
}

fn call(from: &Netns, target: &str, count: u16) -> Result<Vec<Answer>> {
    answers(from.call(Protocol::Tcp, target, count)?)
}

/// All calls fail, and for lack of an answer: a packet that is dropped, not refused.
fn is_dropped(from: &Netns, target: &str) -> Result {
    let replies = from.call_with(Protocol::Tcp, target, &["--count", "2", "--timeout-ms", "700"])?;
    for reply in replies {
        ensure!(reply.outcome == Err("timeout".to_owned()), "{target}: {:?}", reply.outcome);
    }
    Ok(())
}

fn even(answers: &[Answer], pods: &[&str]) -> Result {
    let share = answers.len() / pods.len();
    let wanted: BTreeMap<_, _> = pods.iter().map(|name| (*name, share)).collect();
    ensure!(shares(answers) == wanted, "{:?}", shares(answers));
    Ok(())
}

#[test]
fn every_frontend_of_policy_cluster_reaches_all_endpoints_masqueraded() {
    World::test(|world| {
        prepare(world)?;
        let pods = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let _servers = [pods[0].serve(8080)?, pods[1].serve(8080)?];
        world.write("web.yaml", &web(""))?;
        world.write("endpoints.yaml", &slice(&[&pods[0], &pods[1]]))?;
        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || call(world.ext(), LB, 1).map(drop))?;
        for target in LOCAL_FRONTENDS {
            for from in [world.ext(), world.node(), &client] {
                let answers = call(from, target, 4)?;
                even(&answers, &["a", "b"])?;
                let callers: Vec<_> = answers.iter().map(|answer| answer.peer.ip().to_string()).collect();
                ensure!(
                    callers.iter().all(|ip| ip == "10.244.1.1" || *ip == NODE_V4.to_string()),
                    "{target} from {}: {callers:?}",
                    from.name()
                );
            }
        }
        // B1: a pod that is given itself.
        for target in LOCAL_FRONTENDS {
            even(&call(&pods[0], target, 4)?, &["a", "b"])?;
        }
        Ok(())
    });
}

#[test]
fn c1_c2_policy_local_keeps_outside_callers_here_and_lets_inside_ones_go_everywhere() {
    World::test(|world| {
        prepare(world)?;
        let pods = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let _servers = [pods[0].serve(8080)?, pods[1].serve(8080)?];
        world.write("web.yaml", &web("  externalTrafficPolicy: Local\n"))?;
        world.write("endpoints.yaml", &slice(&[&pods[0], &pods[1]]))?;
        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || call(world.ext(), LB, 1).map(drop))?;

        for target in LOCAL_FRONTENDS {
            let outside = call(world.ext(), target, 4)?;
            even(&outside, &["a"])?;
            ensure!(outside.iter().all(|answer| answer.peer.ip().to_string() == "172.18.0.100"), "{target}: {outside:?}");
            for from in [world.node(), &client] {
                let inside = call(from, target, 4)?;
                even(&inside, &["a", "b"])?;
                let seen_by_b = inside.iter().filter(|answer| answer.name == "b").map(|answer| answer.peer.ip().to_string());
                ensure!(seen_by_b.clone().all(|ip| ip == NODE_V4.to_string()), "{target} from {}: {inside:?}", from.name());
            }
        }

        // C2: without an endpoint here, who comes from outside is dropped, and inside callers are still served.
        world.write("endpoints.yaml", &slice(&[&pods[1]]))?;
        eventually(PATIENCE, || is_dropped(world.ext(), LB))?;
        for target in LOCAL_FRONTENDS {
            is_dropped(world.ext(), target)?;
            even(&call(world.node(), target, 2)?, &["b"])?;
            even(&call(&client, target, 2)?, &["b"])?;
        }

        // And back.
        world.write("endpoints.yaml", &slice(&[&pods[0], &pods[1]]))?;
        eventually(PATIENCE, || call(world.ext(), LB, 2).map(drop))?;
        even(&call(world.ext(), EXTERNAL, 2)?, &["a"])
    });
}

#[test]
fn c3_internal_policy_local_never_leaves_the_node() {
    World::test(|world| {
        prepare(world)?;
        let pod = world.pod("b", On::Node2)?;
        let _server = pod.serve(8080)?;
        world.write("web.yaml", &web("  internalTrafficPolicy: Local\n"))?;
        world.write("endpoints.yaml", &slice(&[&pod]))?;
        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || call(world.ext(), LB, 1).map(drop))?;
        let replies = world.node().call(Protocol::Tcp, "10.96.0.10:80", 3)?;
        ensure!(replies.iter().all(|reply| reply.outcome == Err("refused".to_owned())), "{replies:?}");
        Ok(())
    });
}

#[test]
fn d1_source_ranges_judge_the_real_source() {
    World::test(|world| {
        prepare(world)?;
        let pod = world.pod("a", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let _server = pod.serve(8080)?;
        world.write("endpoints.yaml", &slice(&[&pod]))?;
        world.write("web.yaml", &web("  loadBalancerSourceRanges: [\"172.18.0.100/32\"]\n"))?;
        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || call(world.ext(), LB, 1).map(drop))?;
        is_dropped(world.node(), LB)?;
        is_dropped(&client, LB)?;
        call(&client, EXTERNAL, 1)?;
        call(&client, NODE_PORT, 1)?;

        world.write("web.yaml", &web("  loadBalancerSourceRanges: [\"172.18.0.2/32\", \"10.244.0.0/16\"]\n"))?;
        eventually(PATIENCE, || is_dropped(world.ext(), LB))?;
        call(world.node(), LB, 1)?;
        call(&client, LB, 1)?;

        world.write("web.yaml", &web(""))?;
        eventually(PATIENCE, || call(world.ext(), LB, 1).map(drop))
    });
}

#[test]
fn c4_the_health_check_node_port_answers_on_its_own_addresses() {
    World::test(|world| {
        prepare(world)?;
        let pods = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let other =
            "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec:\n  clusterIP: 10.96.0.11\n  ports: [{port: 80}]\n";
        world
            .write("web.yaml", &format!("{}---\n{other}", web("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32100\n")))?;
        world.write("endpoints.yaml", &slice(&[&pods[0], &pods[1]]))?;
        let _agent = world.agent(&[])?;
        let get = |address: &str| {
            let line = format!(
                "exec 3<>/dev/tcp/{address}/32100; printf 'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
            );
            world.ext().exec(&["bash", "-c", &line])
        };
        eventually(PATIENCE, || {
            let answer = get(&NODE_V4.to_string())?;
            ensure!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"localEndpoints\": 1"), "{answer}");
            Ok(())
        })?;
        ensure!(get("198.51.100.21")?.starts_with("HTTP/1.1 200 OK"));
        ensure!(get("10.96.0.11").is_err(), "another Service's VIP answers");

        world.write("endpoints.yaml", &slice(&[&pods[1]]))?;
        eventually(PATIENCE, || {
            let answer = get(&NODE_V4.to_string())?;
            ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"localEndpoints\": 0"), "{answer}");
            Ok(())
        })
    });
}

#[test]
fn d6_a_load_balancer_address_that_is_the_nodes_own_leaves_the_node_reachable() {
    World::test(|world| {
        prepare(world)?;
        let pod = world.pod("a", On::Node)?;
        let _server = pod.serve(8080)?;
        let _listener = world.node().start(&["probe", "serve", "--name", "host", "--port", "2222", "--tcp"])?;
        world.write("web.yaml", &web("").replace("198.51.100.21", &NODE_V4.to_string()))?;
        world.write("endpoints.yaml", &slice(&[&pod]))?;
        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || even(&call(world.ext(), "172.18.0.2:80", 2)?, &["a"]))?;
        even(&call(world.ext(), "172.18.0.2:2222", 2)?, &["host"])?;
        even(&call(world.ext(), NODE_PORT, 2)?, &["a"])
    });
}

#[test]
fn f1_node_ports_answer_on_loopback_addresses_where_that_is_wanted() {
    World::test(|world| {
        prepare(world)?;
        let pod = world.pod("a", On::Node)?;
        let _server = pod.serve(8080)?;
        let udp = "  - {name: dns, protocol: UDP, port: 53, targetPort: 8080, nodePort: 30053}\n";
        let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).port("dns", Protocol::Udp, 8080).pod(&pod);
        world.write("web.yaml", &web("").replace("status:", &format!("{udp}status:")))?;
        world.write("endpoints.yaml", &slice.to_string())?;

        let agent = world.agent(&[])?;
        eventually(PATIENCE, || call(world.node(), NODE_PORT, 1).map(drop))?;
        let replies = world.node().call(Protocol::Tcp, "127.0.0.1:30080", 1)?;
        ensure!(replies.iter().all(|reply| reply.outcome == Err("refused".to_owned())), "{replies:?}");
        agent.terminate()?;

        let _agent = world.agent(&["--localhost-nodeports"])?;
        eventually(PATIENCE, || even(&call(world.node(), "127.0.0.1:30080", 2)?, &["a"]))?;
        even(&answers(world.node().call(Protocol::Udp, "127.0.0.1:30053", 2)?)?, &["a"])?;
        ensure!(world.ext().call(Protocol::Tcp, NODE_PORT, 1)?.iter().all(|reply| reply.outcome.is_ok()));
        Ok(())
    });
}

#[test]
fn h1_a_firewall_that_drops_by_default_is_reported_and_can_be_opened() {
    World::test(|world| {
        prepare(world)?;
        let pod = world.pod("a", On::Node)?;
        let _server = pod.serve(8080)?;
        world.write("web.yaml", &web(""))?;
        world.write("endpoints.yaml", &slice(&[&pod]))?;
        world.node().exec(&["iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"])?;
        world.node().exec(&["iptables", "-P", "INPUT", "DROP"])?;

        let mut agent = world.agent(&[])?;
        agent.process().wait_for("the INPUT chain's policy is DROP", PATIENCE)?;
        agent.process().wait_for("serving health", PATIENCE)?;
        is_dropped(world.ext(), LB)?;
        agent.terminate()?;

        let agent = world.agent(&["--open-input"])?;
        for target in LOCAL_FRONTENDS {
            eventually(PATIENCE, || even(&call(world.ext(), target, 2)?, &["a"]))?;
        }
        agent.terminate()?;

        let _agent = world.agent(&[])?;
        eventually(PATIENCE, || is_dropped(world.ext(), LB))
    });
}

#[test]
fn j6_a_default_scheduler_that_the_kernel_lacks_is_named_and_rr_serves() {
    World::test(|world| {
        prepare(world)?;
        world.write("web.yaml", &web(""))?;
        let output = world.run_once(&["--scheduler", "nosuch"])?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(5), "{}: {log}", output.status);
        ensure!(log.contains("load its module with `modprobe ip_vs_nosuch`"), "{log}");
        let table = world.node().ipvsadm(&["-Sn"])?;
        ensure!(table.lines().all(|line| line.ends_with("-s rr")) && !table.is_empty(), "{table}");

        // Once there is one that can be had, it serves the same objects.
        let output = world.run_once(&["--scheduler", "wlc"])?;
        ensure!(output.status.success(), "{output:?}");
        let table = world.node().ipvsadm(&["-Sn"])?;
        ensure!(table.lines().all(|line| line.ends_with("-s wlc")) && !table.is_empty(), "{table}");
        Ok(())
    });
}
