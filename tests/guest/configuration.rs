//! The configuration file of kube-proxy, and what becomes of its changes while the agent runs.

use std::fs;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Protocol, Result, World, eventually};

use crate::support::{PATIENCE, POD_PORT, node, node_addresses, rules, serving, started, target, vip, virtual_servers};

const NODE_PORT: u16 = 30080;

fn file(fields: &str, own: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\nclusterCIDR: 10.244.0.0/16\n{fields}\n---\n\
         apiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIPVSConfiguration\n{own}\n"
    )
}

/// Waits until `ipvsadm -Sn` has a line that begins so, or has none.
fn becomes(world: &World, line: &str, there: bool) -> Result {
    eventually(PATIENCE, || {
        let table = virtual_servers(world.node())?;
        ensure!(table.iter().any(|is| is.starts_with(line)) == there, "{line}: {there} is wanted of {table:?}");
        Ok(())
    })
}

#[test]
fn kube_proxys_file_is_honoured_and_its_changes_are_in_force_without_a_restart() {
    World::test(|world| {
        let (pod, _server) = serving(world, "a", On::Node)?;
        let web = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, POD_PORT).node_port(NODE_PORT);
        let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, POD_PORT).pod(&pod);
        world.write("web.yaml", &format!("{}{web}{slice}", node()))?;
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.conf");
        fs::write(&path, file("ipvs: {scheduler: wlc, tcpTimeout: 20m, strictARP: true}", ""))?;
        let mut agent = started(world, &["--config", path.to_str().context("UTF-8")?])?;

        let cluster_ip = target(vip(Family::V4, 10), 80);
        becomes(world, &format!("-A -t {cluster_ip} -s wlc"), true)?;
        // All addresses, as with kube-proxy.
        for address in node_addresses(Family::V4) {
            becomes(world, &format!("-A -t {} -s wlc", target(address, NODE_PORT)), true)?;
        }
        let sysctl =
            |name: &str| -> Result<String> { Ok(world.node().exec(&["cat", &format!("/proc/sys/{name}")])?.trim().to_owned()) };
        ensure!(sysctl("net/ipv4/conf/all/arp_ignore")? == "1" && sysctl("net/ipv4/conf/all/arp_announce")? == "2");
        ensure!(sysctl("net/netfilter/nf_conntrack_tcp_timeout_established")? == "86400");
        ensure!(world.node().exec(&["ipvsadm", "-L", "--timeout"])?.contains("1200 "));

        let before = rules(world.node())?;
        let changed = "ipvs: {scheduler: lc, tcpTimeout: 30m}\niptables: {masqueradeAll: true}\nnodePortAddresses: [primary]";
        fs::write(&path, file(changed, "vipBinding: address"))?;
        becomes(world, &format!("-A -t {cluster_ip} -s lc"), true)?;
        becomes(world, &format!("-A -t {} ", target(node_addresses(Family::V4)[1], NODE_PORT)), false)?;
        becomes(world, &format!("-A -t {} -s lc", target(node_addresses(Family::V4)[0], NODE_PORT)), true)?;
        eventually(PATIENCE, || {
            ensure!(world.node().exec(&["ipvsadm", "-L", "--timeout"])?.contains("1800 "));
            ensure!(rules(world.node())? != before, "the packet rules masquerade all");
            Ok(())
        })?;
        agent.process().wait_for("restart the agent for what this does not change while it runs: --vip-binding", PATIENCE)?;

        // What cannot be used changes nothing.
        fs::write(&path, file("ipvs: {scheduler: rr, tcpTimeout: soon}\nmode: nftables", ""))?;
        agent.process().wait_for("ipvs.tcpTimeout: is \"soon\"", PATIENCE)?;
        becomes(world, &format!("-A -t {cluster_ip} -s lc"), true)?;
        let replaced = directory.path().join("another");
        fs::write(&replaced, file("ipvs: {scheduler: wrr}", ""))?;
        fs::rename(replaced, &path)?;
        becomes(world, &format!("-A -t {cluster_ip} -s wrr"), true)?;
        ensure!(agent.terminate()?.success());
        Ok(())
    });
}

#[test]
fn health_and_metrics_are_served_on_ipv6_and_can_be_switched_off() {
    World::test(|world| {
        world.write("node.yaml", &node().to_string())?;
        let get = |url: &str| world.node().exec(&["wget", "-q", "-O", "-", url]);
        // All addresses of IPv6 take IPv4 as well, which is where this waits for it.
        let agent = started(world, &["--healthz-bind-address", "[::]:10256", "--metrics-bind-address", "[::1]:10249"])?;
        get("http://[::1]:10256/livez")?;
        ensure!(get("http://[::1]:10249/metrics")?.contains("kube_ipvs_build_info"), "no metrics");
        ensure!(get("http://[::1]:10249/proxyMode")? == "ipvs", "another mode");
        ensure!(get("http://127.0.0.1:10249/metrics").is_err(), "metrics are served elsewhere");
        ensure!(agent.terminate()?.success());

        let off = ["--log-level", "debug", "--healthz-bind-address", "", "--metrics-bind-address", ""];
        let mut agent = world.agent(&off)?;
        agent.process().wait_for("nothing to do", PATIENCE)?;
        for url in ["http://127.0.0.1:10256/healthz", "http://127.0.0.1:10249/metrics"] {
            ensure!(get(url).is_err(), "{url} is served");
        }
        Ok(())
    });
}
