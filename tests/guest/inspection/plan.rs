//! `kube-ipvs plan`: it changes nothing, says who asks for what, and what it says is what an agent does.

use std::process::Output;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testkit::manifest::Service;
use testkit::{Family, On, Pod, Process, Protocol, Result, World, answers, eventually};

use super::inspect;
use crate::handover;
use crate::support::{
    KernelState, PATIENCE, POD_PORT, ensure_same, lines, node, real_servers, serving, slices, started, synchronise, target, vip,
};

/// What another program has on the node.
const FOREIGN: &str = "-A -t 192.0.2.1:443 -s mh -b mh-fallback,mh-port\n-a -t 192.0.2.1:443 -r 192.0.2.10:443 -i -w 1000\n";

/// Everything that tools show of a node: what an agent writes, and what it might leave by the way.
fn everything(world: &World) -> Result<(KernelState, Vec<String>)> {
    let node = world.node();
    let mut rest = Vec::new();
    for command in [
        &["iptables-legacy-save"][..],
        &["ip6tables-legacy-save"],
        &["ip", "link", "show"],
        &["ip", "rule", "show"],
        &["ipvsadm", "-Ln", "--timeout"],
        &["sh", "-c", "grep -r . /proc/sys/net/ipv4/vs /proc/sys/net/ipv4/ip_forward"],
    ] {
        let kept = |line: &&str| !line.starts_with('#');
        rest.extend(lines(&node.exec(command)?).filter(kept).map(|line| line.split(" [").next().unwrap_or(line).to_owned()));
    }
    Ok((KernelState::of(node)?, rest))
}

/// What a script and an agent have to make alike: not what newer ipset programs say of every set that they make themselves.
fn comparable(world: &World) -> Result<KernelState> {
    let mut state = KernelState::of(world.node())?;
    for set in &mut state.sets {
        *set = set.split(" bucketsize ").next().unwrap_or(set).to_owned();
    }
    Ok(state)
}

fn plan(world: &World, more: &[&str]) -> Result<Output> {
    inspect(world, &["plan"], more)
}

/// What a plan says that has something to do; it changes nothing.
fn changes(world: &World, more: &[&str]) -> Result<String> {
    let before = everything(world)?;
    let output = plan(world, more)?;
    let after = everything(world)?;
    ensure_same(&before.0, &after.0, "a plan has changed the kernel")?;
    ensure!(before.1 == after.1, "a plan has changed {:#?} to {:#?}", before.1, after.1);
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn nothing_to_do(world: &World, more: &[&str]) -> Result {
    let output = plan(world, more)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(0) && said.starts_with("nothing to do on node node\n"), "{said}\n{output:?}");
    Ok(())
}

/// Runs the script that a plan prints.
fn carry_out(world: &World, more: &[&str]) -> Result {
    let script = changes(world, &[&["-o", "script"], more].concat())?;
    world.node().exec_with_input(&["sh", "-s"], &script).with_context(|| script.clone())?;
    Ok(())
}

fn says(text: &str, wanted: &[&str]) -> Result {
    wanted.iter().try_for_each(|line| {
        ensure!(lines(text).any(|said| said.trim_start() == *line), "no line {line:?} in\n{text}");
        Ok(())
    })
}

fn services() -> String {
    let web = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080)
        .port("udp", Protocol::Udp, 80, POD_PORT)
        .port("sctp", Protocol::Sctp, 80, POD_PORT)
        .spec("sessionAffinity: ClientIP");
    let hashed = Service::new("hashed").annotation("kube-ipvs.io/scheduler", "mh").cluster_ip("10.96.0.20").port(
        "tcp",
        Protocol::Tcp,
        80,
        POD_PORT,
    );
    let public = Service::new("public")
        .cluster_ip("10.96.0.30")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30081)
        .spec("externalTrafficPolicy: Local")
        .spec("externalIPs: [198.51.100.7]")
        .spec("loadBalancerSourceRanges: [192.0.2.0/24]");
    format!("{}{web}{hashed}{public}", node())
}

fn pods(world: &World) -> Result<([Pod; 2], [Process; 2])> {
    let (a, serve_a) = serving(world, "a", On::Node)?;
    let (b, serve_b) = serving(world, "b", On::Node2)?;
    Ok(([a, b], [serve_a, serve_b]))
}

#[test]
fn a_plan_changes_nothing_and_names_who_asks() {
    World::test(|world| {
        let ([a, b], _servers) = pods(world)?;
        world.write("services.yaml", &services())?;
        world
            .write("slices.yaml", &format!("{}{}{}", slices("web", &[&a, &b]), slices("hashed", &[&a]), slices("public", &[&a])))?;
        world.node().exec_with_input(&["ipvsadm", "-R"], FOREIGN)?;

        let text = changes(world, &[])?;
        let [pod_a, pod_b] = [&a, &b].map(|pod| target(pod.address(Family::V4), POD_PORT));
        says(
            &text,
            &[
                "+ create set KUBE-CLUSTER-IP with room for 65536 members  # the packet rules ask it",
                "+ add virtual server TCP 10.96.0.10:80 rr with 2 real servers  # Service default/web:tcp, spec.clusterIPs",
                "+ add virtual server TCP 172.18.0.2:30080 rr with 2 real servers  # Service default/web:tcp, spec.ports[].nodePort",
                "+ add virtual server TCP 198.51.100.7:80 rr with 1 real servers  # Service default/public:tcp, spec.externalIPs",
                &format!("{pod_a} Masq weight 1"),
                &format!("{pod_b} Masq weight 1"),
                "10.96.0.10,tcp:80  # default/web",
                "198.51.100.7,tcp:80  # default/public",
                "TCP 192.0.2.1:443",
            ],
        )?;
        ensure!(text.contains("inside the cluster, whom policy Local is not for"), "{text}");
        ensure!(text.contains("+ bind 10.96.0.10/32 as a route on kube-ipvs0 with source 172.18.0.2  # IPVS takes"), "{text}");
        ensure!(text.contains("~ set net.ipv4.vs.conntrack from 0 to 1  # otherwise answers"), "{text}");

        let document: Value = serde_json::from_str(&changes(world, &["-o", "json"])?)?;
        let all = document["sections"].as_array().context("sections")?.iter();
        let all: Vec<_> = all.flat_map(|section| section["changes"].as_array().cloned().unwrap_or_default()).collect();
        let web = all.iter().find(|change| change["text"] == "add virtual server TCP 10.96.0.10:80 rr with 2 real servers");
        let web = web.with_context(|| format!("{document:#}"))?;
        ensure!(web["kind"] == "add" && web["services"] == serde_json::json!(["default/web"]), "{web}");
        ensure!(document["counts"]["remove"] == 0 && document["foreignVirtualServers"][0] == "TCP 192.0.2.1:443", "{document:#}");

        synchronise(world, &[])?;
        nothing_to_do(world, &[])
    });
}

#[test]
fn the_script_of_a_plan_does_what_an_agent_does() {
    World::test(|world| {
        let ([a, b], _servers) = pods(world)?;
        let client = world.pod("client", On::Node)?;
        world.write("services.yaml", &services())?;
        let all = |of_web: &[&Pod]| format!("{}{}{}", slices("web", of_web), slices("hashed", &[&a]), slices("public", &[&a]));
        world.write("slices.yaml", &all(&[&a, &b]))?;
        world.node().exec_with_input(&["ipvsadm", "-R"], FOREIGN)?;
        carry_out(world, &[])?;
        nothing_to_do(world, &[])?;
        for family in Family::ALL {
            answers(client.call(Protocol::Tcp, &target(vip(family, 10), 80), 3)?)?;
        }
        let by_script = comparable(world)?;
        world.kube_ipvs(&["cleanup"])?;
        synchronise(world, &[])?;
        ensure_same(&by_script, &comparable(world)?, "the script made something else than the agent")?;

        // An endpoint and a Service go, while an agent is not looking.
        world.write("slices.yaml", &all(&[&b]))?;
        world.write("services.yaml", &services().replace("name: hashed", "name: other").replace("10.96.0.20", "10.96.0.21"))?;
        let text = changes(world, &[])?;
        let gone = target(a.address(Family::V4), POD_PORT);
        says(
            &text,
            &[&format!(
                "~ edit real server {gone} of TCP 10.96.0.10:80: Masq weight 0  # no EndpointSlice of the Service has it any more; \
                 it gets no new connections, and goes when those that it has are over (default/web)"
            )],
        )?;
        ensure!(
            text.contains(&format!("~ edit real server {gone} of TCP 10.96.0.20:80: Masq weight 0  # no Service has")),
            "{text}"
        );
        carry_out(world, &[])?;
        nothing_to_do(world, &[])?;
        let left = real_servers(world.node(), "-t", "10.96.0.10:80")?;
        ensure!(left.iter().any(|line| line.starts_with(&gone) && line.ends_with("-w 0")), "{left:?}");

        // An agent ends what the script began.
        let agent = started(world, &[])?;
        eventually(PATIENCE, || {
            let servers = real_servers(world.node(), "-t", "10.96.0.10:80")?;
            ensure!(servers.len() == 1, "{servers:?}");
            Ok(())
        })?;
        nothing_to_do(world, &[])?;

        // The other way to bind VIPs, which the agent would take back.
        agent.kill()?;
        carry_out(world, &["--vip-binding", "address"])?;
        nothing_to_do(world, &["--vip-binding", "address"])
    });
}

#[test]
fn k2_a_plan_says_what_becomes_of_what_kube_proxy_has() {
    World::test(|world| {
        let ([a, b], _servers) = pods(world)?;
        handover::kube_proxy(world.node(), &[&a, &b])?;
        world.write("web.yaml", &services())?;
        world.write("slices.yaml", &slices("web", &[&a, &b]))?;
        let text = changes(world, &[])?;
        says(&text, &["taking over from kube-proxy", "chain KUBE-SERVICES"])?;
        ensure!(text.contains("- destroy set KUBE-NODE-PORT-TCP  # only kube-proxy's rules ask it"), "{text}");
        ensure!(text.contains("unbind 10.96.0.10/32 as an address on kube-ipvs0  # it is to be bound in the other way"), "{text}");
        let kept = changes(world, &["--kube-proxy-leftovers", "keep"])?;
        ensure!(!kept.contains("destroy set KUBE-NODE-PORT-TCP"), "{kept}");

        carry_out(world, &[])?;
        let rules = world.node().exec(&["iptables-save"])?;
        ensure!(rules.contains("KUBE-IPVS-SERVICES") && !rules.contains(":KUBE-SERVICES"), "{rules}");
        nothing_to_do(world, &[])?;
        answers(world.node().call(Protocol::Tcp, "10.96.0.10:80", 2)?).map(drop)
    });
}

#[test]
fn a_plan_against_a_cluster_is_the_same() {
    World::test(|world| {
        let ([a, b], _servers) = pods(world)?;
        world.write("services.yaml", &services())?;
        world.write("slices.yaml", &slices("web", &[&a, &b]))?;
        let mut server = world.api_server(&[])?;
        let kubeconfig = world.kubeconfig().display().to_string();
        let of_cluster = || {
            let arguments = world.node_arguments();
            let (_, decisions) = arguments.split_at(2);
            let source = ["plan", "--kubeconfig", &kubeconfig];
            let arguments: Vec<_> = source.into_iter().chain(decisions.iter().map(String::as_str)).collect();
            world.try_kube_ipvs(&arguments)
        };
        let of_manifests = changes(world, &[])?;
        let output = of_cluster()?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        ensure!(String::from_utf8_lossy(&output.stdout) == of_manifests, "{}", String::from_utf8_lossy(&output.stdout));

        // Without its answer there is no plan: unknown is not absent.
        server.kill()?;
        let output = of_cluster()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty() && said.contains("Connection refused"), "{said}");
        Ok(())
    });
}
