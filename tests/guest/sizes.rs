//! Sets that have to grow. A set cannot be given more room in place: a larger one takes its place in one step.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Protocol, World, eventually};

use crate::support::{
    BETWEEN_CALLS, PATIENCE, POD_PORT, answered, ensure_all_answered, made, members, node, serving, slices, started, target, vip,
};

/// Of a set that somebody made too small, by ourselves of an older version or by hand.
#[test]
fn j3_sets_that_are_too_small_grow_under_traffic_without_a_lost_call() {
    World::test(|world| {
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        for (name, number, pod) in [("near", 10, &near), ("far", 11, &far)] {
            let service = Family::ALL
                .iter()
                .fold(Service::new(name), |service, family| service.cluster_ip(&vip(*family, number).to_string()));
            let service = service.port("tcp", Protocol::Tcp, 80, POD_PORT);
            world.write(&format!("{name}.yaml"), &format!("{service}{}", slices(name, &[pod])))?;
        }
        world.write("node.yaml", &node().to_string())?;
        let agent = started(world, &[])?;
        // To itself: without KUBE-LOOP-BACK nobody would masquerade. From outside to another node: without KUBE-CLUSTER-IP neither.
        let callers: Vec<_> = Family::ALL
            .into_iter()
            .flat_map(|family| {
                [(&*near, 10), (world.ext(), 11)]
                    .map(|(caller, number)| caller.keep_calling(Protocol::Tcp, &target(vip(family, number), 80), BETWEEN_CALLS))
            })
            .collect::<testkit::Result<_>>()?;
        callers.iter().try_for_each(answered)?;
        ensure!(agent.terminate()?.success());

        // Small ones take the place of the agent's, as it is going to do.
        let sets = [
            ("KUBE-LOOP-BACK", "hash:ip,port,ip family inet"),
            ("KUBE-6-LOOP-BACK", "hash:ip,port,ip family inet6"),
            ("KUBE-CLUSTER-IP", "hash:ip,port family inet"),
            ("KUBE-6-CLUSTER-IP", "hash:ip,port family inet6"),
            ("KUBE-IPVS-IPS", "hash:ip family inet"),
            ("KUBE-6-IPVS-IPS", "hash:ip family inet6"),
        ];
        for (set, layout) in sets {
            let members: String = members(world.node(), set)?.iter().map(|member| format!("add SMALL {member}\n")).collect();
            let input = format!("create SMALL {layout} maxelem 2\n{members}swap SMALL {set}\ndestroy SMALL\n");
            world.node().exec_with_input(&["ipset", "restore"], &input)?;
        }
        let more = Service::new("more").cluster_ip("10.96.0.20").cluster_ip("fd00:96::20").port("tcp", Protocol::Tcp, 80, POD_PORT);
        world.write("more.yaml", &more.to_string())?;
        let _agent = started(world, &[])?;
        callers.iter().try_for_each(|calls| made(calls, 3))?;
        for (set, _) in sets {
            let saved = world.node().exec(&["ipset", "save", set])?;
            ensure!(saved.contains("maxelem 65536"), "{saved}");
        }
        ensure!(members(world.node(), "KUBE-6-CLUSTER-IP")? == ["fd00:96::10,tcp:80", "fd00:96::11,tcp:80", "fd00:96::20,tcp:80"]);
        let left = world.node().exec(&["ipset", "list", "-n"])?;
        ensure!(!left.contains("-TMP"), "{left}");
        callers.into_iter().try_for_each(|calls| ensure_all_answered(&calls.stop()?))
    });
}

/// kube-proxy makes its sets with room for 65,536, and what comes after has no service. Here a running agent gets there, and beyond.
#[test]
fn j3_a_set_grows_beyond_65536_members_while_it_is_in_use() {
    const PORTS: u16 = 100;
    const SLICES: u16 = 7;
    const ENDPOINTS: usize = 70_000;
    World::test_alone(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let service = Service::new("web").cluster_ip("10.96.0.10").port("tcp", Protocol::Tcp, 80, POD_PORT);
        world.write("web.yaml", &format!("{}{service}{}", node(), slices("web", &[&pod])))?;
        let _agent = started(world, &["--audit-period", "1h"])?;
        // The pod calls itself: that works only while it is in the set.
        let calls = pod.keep_calling(Protocol::Tcp, &target(vip(Family::V4, 10), 80), BETWEEN_CALLS)?;
        answered(&calls)?;

        let name = |port: u16| format!("p{port}");
        let large = (0..PORTS).fold(Service::new("large").cluster_ip("10.96.0.20"), |service, port| {
            service.port(&name(port), Protocol::Tcp, 1000 + port, 2000 + port)
        });
        let slice = |number: u16| {
            let slice = EndpointSlice::ipv4("large").suffix(&number.to_string());
            let slice = (0..PORTS).fold(slice, |slice, port| slice.port(&name(port), Protocol::Tcp, 2000 + port));
            (0..100).fold(slice, |slice, host| slice.endpoint(&format!("10.245.{number}.{host}"), "node")).to_string()
        };
        let slices: String = (0..SLICES).map(slice).collect();
        world.write("large.yaml", &format!("{large}{slices}"))?;
        let header = eventually(PATIENCE * 4, || {
            let header = world.node().exec(&["ipset", "list", "-t", "KUBE-LOOP-BACK"])?;
            let entries =
                header.lines().find_map(|line| line.strip_prefix("Number of entries: ")).context("no number of entries")?;
            ensure!(entries.parse::<usize>()? == ENDPOINTS + 1, "{header}");
            Ok(header)
        })?;
        ensure!(header.contains("maxelem 262144"), "{header}");
        eventually(Duration::from_secs(60), || {
            let servers = world.node().exec(&["sh", "-c", "ipvsadm -Sn | grep -c '^-a -t 10.96.0.20:'"])?;
            ensure!(servers.trim().parse::<usize>()? == ENDPOINTS, "{servers}");
            Ok(())
        })?;
        made(&calls, 3)?;
        ensure_all_answered(&calls.stop()?)
    });
}
