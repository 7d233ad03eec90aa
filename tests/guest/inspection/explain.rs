//! `kube-ipvs explain`: what it says of connections is what becomes of them.

use anyhow::ensure;
use testkit::manifest::Service;
use testkit::{EXT_V4, Family, On, Protocol, Result, World, answers, eventually, shares};

use super::inspect;
use crate::held::{echoing, go_on};
use crate::support::{KernelState, PATIENCE, POD_PORT, ensure_same, node, serving, slices, started, synchronise, target};
use crate::web::{Is, Web};

/// Explains, which changes nothing.
fn explain(world: &World, called: &str, more: &[&str]) -> Result<String> {
    let before = KernelState::of(world.node())?;
    let output = inspect(world, &["explain", called], more)?;
    ensure_same(&before, &KernelState::of(world.node())?, "an explanation has changed the kernel")?;
    Ok(String::from_utf8(output.stdout)?)
}

fn says(text: &str, wanted: &str) -> Result {
    ensure!(text.contains(wanted), "not {wanted:?} in\n{text}");
    Ok(())
}

#[test]
fn what_is_said_of_callers_is_what_becomes_of_them() {
    World::test(|world| {
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let web = Service::new("web").cluster_ip("10.96.0.10").port("tcp", Protocol::Tcp, 80, POD_PORT).node_port(30080);
        let public = Service::new("public")
            .cluster_ip("10.96.0.20")
            .port("tcp", Protocol::Tcp, 80, POD_PORT)
            .node_port(30081)
            .spec("externalTrafficPolicy: Local");
        let services = format!("{}{web}{public}{}{}", node(), slices("web", &[&far]), slices("public", &[&far]));
        world.write("services.yaml", &services)?;

        let early = explain(world, "10.96.0.10:80", &[])?;
        says(&early, "TCP 10.96.0.10:80 is Service default/web:tcp, by spec.clusterIPs")?;
        says(&early, "the kernel has no virtual server TCP 10.96.0.10:80")?;
        says(&early, "the kernel differs from what is desired; an agent would\n    install packet rules (IPv4)")?;
        synchronise(world, &[])?;

        // A pod keeps its address, and one from outside does not.
        let pod = client.address(Family::V4).to_string();
        let real = target(far.address(Family::V4), POD_PORT);
        let seen = |replies| Ok::<_, anyhow::Error>(answers(replies)?.first().map(|answer| answer.peer.ip().to_string()));
        let of_pod = seen(client.call(Protocol::Tcp, "10.96.0.10:80", 1)?)?;
        ensure!(of_pod.as_deref() == Some(pod.as_str()), "{of_pod:?}");
        let told = explain(world, "10.96.0.10:80", &["--from", &pod])?;
        says(&told, &format!("{pod}, a pod\n    keeps its address"))?;
        says(&told, &format!("{real} pod far on node2, Masq weight 1"))?;
        says(&told, &format!("connection tracking knows 1 flow to it from {pod}\n"))?;
        says(&told, &format!("is answered by {real}\n"))?;
        says(&told, &format!("IPVS has 1 connection to it from {pod}\n    {pod}:"))?;
        says(&told, &format!(" has {real}: "))?;
        says(&explain(world, "10.96.0.10:80", &["--from", "10.244.9.9"])?, "IPVS has no connection to it from 10.244.9.9\n")?;

        let of_ext = seen(world.ext().call(Protocol::Tcp, "172.18.0.2:30080", 1)?)?;
        ensure!(of_ext.as_deref().is_some_and(|peer| peer != EXT_V4.to_string()), "{of_ext:?}");
        let told = explain(world, "172.18.0.2:30080", &["--from", &EXT_V4.to_string()])?;
        says(&told, &format!("{EXT_V4}, from outside\n    is masqueraded"))?;
        says(&told, "who sees it as 172.18.0.2:")?;
        says(&told, "its address is the node's own, on eth0")?;

        // Policy Local without an endpoint here: none from outside is served, and those inside are.
        let told = explain(world, "default/public", &[])?;
        says(&told, "a caller from outside\n    is dropped (KUBE-IPVS-INPUT, filter): externalTrafficPolicy is Local")?;
        says(&told, "a pod\n    gets the packet mark")?;
        says(&told, &format!("{real} pod far on node2: it is on another node, and the traffic policy is Local"))?;
        let dropped = world.ext().call(Protocol::Tcp, "172.18.0.2:30081", 1)?;
        ensure!(dropped.iter().all(|reply| reply.outcome.is_err()), "{dropped:?}");
        let served = answers(client.call(Protocol::Tcp, "172.18.0.2:30081", 1)?)?;
        ensure!(shares(&served).contains_key("far"), "{served:?}");

        // What somebody else has taken away, and what nobody has.
        world.node().exec(&["ip", "route", "del", "local", "10.96.0.10", "dev", "kube-ipvs0", "table", "local"])?;
        let told = explain(world, "web", &[])?;
        says(&told, "its address is not bound: packets to it do not stay on this node")?;
        says(&told, "bind 10.96.0.10/32 as a route on kube-ipvs0")?;
        says(&explain(world, "10.96.0.10:81", &[])?, "the address has TCP 10.96.0.10:80 (default/web)")?;
        says(&explain(world, "198.18.0.1:80", &[])?, "IPVS leaves it alone")
    });
}

#[test]
fn a_drain_is_told_with_the_time_that_is_left_and_the_connections_that_it_is_for() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _agent = started(world, &["--vanished-drain-timeout", "5m"])?;
        let held = web.hold(1)?;
        web.endpoints([Is::Gone, Is::Ready])?;
        let real = target(web.pods[0].address(Family::V4), POD_PORT);
        let told = eventually(PATIENCE, || {
            let told = explain(world, "10.96.0.10:80", &[])?;
            says(&told, &format!("{real}: no EndpointSlice has it any more; draining, for "))?;
            Ok(told)
        })?;
        let line = told.lines().find(|line| line.contains("draining, for ")).unwrap_or_default();
        ensure!(line.contains("s more at most; 1 connection is active"), "{line}");
        ensure!(!told.contains("only a running agent knows"), "{told}");
        says(&told, "IPVS has 1 connection to it\n")?;
        says(&told, &format!(" has {real}: ESTABLISHED, for "))?;
        go_on(&held, 1)
    });
}
