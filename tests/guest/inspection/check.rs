//! `kube-ipvs check`: what it finds on nodes that lack something or have too much.

use std::process::Output;

use anyhow::ensure;
use serde_json::Value;
use testkit::manifest::Service;
use testkit::{On, Protocol, Result, World};

use super::inspect;
use crate::handover;
use crate::support::{KernelState, PATIENCE, POD_PORT, ensure_same, lines, node, serving, slices, started};

struct Report {
    text: String,
    code: Option<i32>,
}

impl Report {
    fn of(output: &Output) -> Self {
        Self { text: String::from_utf8_lossy(&output.stdout).into_owned(), code: output.status.code() }
    }

    /// A line that begins so.
    fn has(&self, start: &str) -> Result<&Self> {
        ensure!(lines(&self.text).any(|line| line.starts_with(start)), "no line {start:?} in\n{}", self.text);
        Ok(self)
    }

    fn has_not(&self, start: &str) -> Result<&Self> {
        ensure!(!lines(&self.text).any(|line| line.starts_with(start)), "a line {start:?} in\n{}", self.text);
        Ok(self)
    }
}

/// Checks the node, which changes nothing.
fn check(world: &World, more: &[&str]) -> Result<Report> {
    let before = KernelState::of(world.node())?;
    let report = Report::of(&inspect(world, &["check"], more)?);
    ensure_same(&before, &KernelState::of(world.node())?, "a check has changed the kernel")?;
    Ok(report)
}

fn write_web(world: &World, pods: &[&testkit::Pod]) -> Result {
    let web = Service::new("web").cluster_ip("10.96.0.10").port("tcp", Protocol::Tcp, 80, POD_PORT);
    world.write("web.yaml", &format!("{}{web}{}", node(), slices("web", pods)))
}

#[test]
fn a_node_is_checked_before_and_beside_an_agent() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        write_web(world, &[&a])?;
        // Two files that set sysctls, of which the second by name is in force.
        let host = world.manifests().with_file_name("host");
        std::fs::create_dir_all(host.join("etc/sysctl.d"))?;
        std::fs::write(host.join("etc/sysctl.d/10-first.conf"), "net.ipv4.ip_forward = 1\n")?;
        std::fs::write(host.join("etc/sysctl.d/20-second.conf"), "net.ipv4.ip_forward = 0\nnet.ipv4.vs.conntrack = 1\n")?;
        let root = host.display().to_string();
        let with_root = ["--host-root", root.as_str()];

        let before = check(world, &with_root)?;
        before
            .has("ok    capability CAP_NET_ADMIN: ")?
            .has("ok    module ip_vs: it is there")?
            .has("ok    IPVS, ipset and iptables: ")?
            .has("ok    scheduler rr: ")?
            .has("warn  sysctl net.ipv4.vs.conntrack: it is 0, not 1, and")?
            .has("warn  sysctl net.ipv4.ip_forward: it is 1, and")?
            .has("warn  agent: none answers")?
            .has("warn  drift: the kernel is ")?
            .has("ok    MTU: 1500 on eth0")?
            .has("ok    leftovers of kube-proxy: there are none")?
            .has("ok    leftovers of kube-router: there are none")?
            .has("ok    conntrack table: ")?
            .has("ok    IPVS table: 0 connections in 4096 buckets")?
            .has("ok    API server: not asked")?;
        ensure!(before.text.contains("20-second.conf sets it to 0 when the host boots"), "{}", before.text);
        ensure!(before.code == Some(0), "warnings are no failure: {:?}\n{}", before.code, before.text);
        ensure!(check(world, &["--strict"])?.code == Some(1), "--strict");

        let agent = started(world, &[])?;
        check(world, &[])?
            .has("ok    agent: one answers")?
            .has("ok    drift: the kernel holds what is desired")?
            .has("ok    objects: all are served as they are written")?
            .has("ok    sysctl net.ipv4.vs.conntrack: 1, set by no file")?;
        drop(agent);

        // What others do to the node.
        let host = world.node();
        host.exec(&["ipvsadm", "-D", "-t", "10.96.0.10:80"])?;
        host.exec(&["iptables-nft", "-P", "INPUT", "DROP"])?;
        host.exec(&["iptables-legacy", "-N", "DOCKER-USER"])?;
        host.exec(&["iptables-legacy", "-A", "FORWARD", "-j", "DOCKER-USER"])?;
        host.exec(&["ip", "link", "set", "eth0", "mtu", "1400"])?;
        host.exec(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore"])?;
        host.exec(&["ip", "link", "add", "kube-dummy-if", "type", "dummy"])?;
        host.exec(&["ipset", "create", "inet6:kube-router-svip", "hash:ip", "family", "inet6"])?;
        let after = check(world, &[])?;
        after
            .has("warn  drift: the kernel is 1 steps from what is desired, the first of which is to add virtual server TCP 10.96.0.10:80")?
            .has("warn  INPUT policy (IPv4): DROP")?
            .has("ok    INPUT policy (IPv6): ACCEPT")?
            .has("warn  iptables flavour: an agent uses iptables-nft")?
            .has("warn  MTU: cni0 and 1 more takes larger packets than eth0 with its 1400 bytes")?
            .has("warn  leftovers of kube-router: its service proxy has left device kube-dummy-if, set inet6:kube-router-svip;")?
            .has("ok    strict ARP: ")?;
        ensure!(after.text.contains("iptables-legacy has 1 rules (Docker)"), "{}", after.text);
        check(world, &["--open-input"])?.has("ok    INPUT policy (IPv4): DROP, and --open-input accepts")?;

        let json = check(world, &["-o", "json"])?;
        let document: Value = serde_json::from_str(&json.text)?;
        let drift = document["findings"].as_array().into_iter().flatten().find(|finding| finding["check"] == "drift");
        ensure!(drift.is_some_and(|drift| drift["level"] == "warn" && drift["remedy"].is_string()), "{document:#}");
        Ok(())
    });
}

#[test]
fn k2_kube_proxy_and_its_leftovers_are_found() {
    World::test(|world| {
        write_web(world, &[])?;
        check(world, &[])?.has_not("warn  leftovers of kube-proxy")?;
        handover::kube_proxy(world.node(), &[])?;
        check(world, &[])?.has("warn  leftovers of kube-proxy: its IPVS mode has packet rules here")?;
        world.node().exec(&["iptables-nft", "-t", "nat", "-N", "KUBE-SVC-ABC"])?;
        let report = check(world, &[])?;
        report.has("fail  leftovers of kube-proxy: kube-proxy in iptables mode has packet rules")?;
        ensure!(report.code == Some(1), "{:?}", report.code);
        Ok(())
    });
}

#[test]
fn a_process_that_would_undo_an_agents_work_is_found() {
    // All worlds share their processes.
    World::test_alone(|world| {
        write_web(world, &[])?;
        let mut rival =
            world.node().start(&["sh", "-c", "echo kube-router >/proc/$$/comm; echo renamed; while sleep 1; do :; done"])?;
        rival.wait_for("renamed", PATIENCE)?;
        let report = check(world, &[])?;
        report.has("fail  process kube-router: it runs (process ")?.has("ok    process kube-proxy: none")?;
        ensure!(report.code == Some(1), "{:?}", report.code);
        Ok(())
    });
}

#[test]
fn access_to_the_api_server_is_checked_verb_by_verb() {
    World::test(|world| {
        write_web(world, &[])?;
        let mut server = world.api_server(&["--forbid", "watch:endpointslices", "--forbid", "create:events"])?;
        let kubeconfig = world.kubeconfig().display().to_string();
        let of_cluster = || {
            let arguments = ["check", "--kubeconfig", &kubeconfig, "--node-name", "node", "--cluster-cidr", "10.244.0.0/16"];
            Ok::<_, anyhow::Error>(Report::of(&world.try_kube_ipvs(&arguments)?))
        };
        let report = of_cluster()?;
        report
            .has("ok    API server: v1.")?
            .has("ok    clock: within 5 s")?
            .has("ok    RBAC list services: allowed")?
            .has("ok    RBAC list endpointslices: allowed")?
            .has("fail  RBAC watch endpointslices: not allowed")?
            .has("warn  RBAC create events: not allowed")?
            .has("fail  drift: it is not known what is desired")?;
        ensure!(report.code == Some(1) && report.text.contains("verbs: [\"watch\"]"), "{}", report.text);
        server.kill()?;
        of_cluster()?.has("fail  API server: it cannot be asked")?;
        Ok(())
    });
}
