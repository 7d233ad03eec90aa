//! Other network namespaces, with an IPVS of their own: those of nodes in containers, of container engines, of tests beside this one.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testkit::manifest::Service;
use testkit::{Family, On, Protocol, Result, World};

use crate::support::{PATIENCE, POD_PORT, node, serving, slice, started};

/// More than one part of the kernel's list holds.
const PORTS: u16 = 250;

/// Makes virtual servers and takes them away, again and again.
const BUSY: &str = "for i in $(seq 60); do echo \"-A -t 10.97.$i.1:80 -s rr\"; done >/run/busy
    while :; do ipvsadm -R </run/busy; ipvsadm -C; done";

/// The addresses and ports that `status` lists, as often as it does.
fn listed(world: &World) -> Result<Vec<String>> {
    let table: Value = serde_json::from_str(&world.kube_ipvs(&["status", "-o", "json"])?)?;
    let servers = table.get("virtualServers").and_then(Value::as_array).context("no virtualServers")?;
    let mut listed: Vec<_> = servers.iter().map(|server| format!("{:?} {:?}", server.get("address"), server.get("port"))).collect();
    listed.sort_unstable();
    Ok(listed)
}

#[test]
fn k2_virtual_servers_that_come_and_go_in_another_namespace_do_not_blur_ours() {
    // Beside it, ipvsadm could not tell other tests what is there.
    World::test_alone(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let many = (0..PORTS).fold(Service::new("many").cluster_ip("10.96.0.10"), |service, port| {
            service.port(&format!("p{port}"), Protocol::Tcp, 1000 + port, POD_PORT)
        });
        let endpoints = (0..PORTS)
            .fold(slice("many", Family::V4, [&pod]), |slice, port| slice.port(&format!("p{port}"), Protocol::Tcp, POD_PORT));
        world.write("many.yaml", &format!("{}{many}{endpoints}", node()))?;
        let _busy = world.node2().start(&["sh", "-c", BUSY])?;
        let mut agent = started(world, &["--audit-period", "1s"])?;
        let first = listed(world)?;
        ensure!(first.len() == usize::from(PORTS), "{} are listed: {first:?}", first.len());
        for _ in 0..10 {
            ensure!(listed(world)? == first, "status lists others than before");
        }
        agent.process().wait_for("pass=Audit", PATIENCE)?;
        let log = agent.log()?;
        let repaired = log.lines().find(|line| line.contains("changed the kernel's state") && line.contains("pass=Audit"));
        ensure!(repaired.is_none(), "an audit has repaired what was well: {repaired:?}");
        Ok(())
    });
}
