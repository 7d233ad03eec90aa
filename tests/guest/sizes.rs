//! Sets that have to grow. A set cannot be given more room in place: a larger one takes its place in one step.

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Protocol, World, eventually};

use crate::support::{
    BETWEEN_CALLS, PATIENCE, POD_PORT, answered, ensure_all_answered, lines, made, members, node, serving, slices, started,
    synchronise, target, vip,
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
        let header = eventually(PATIENCE * 2, || {
            let header = world.node().exec(&["ipset", "list", "-t", "KUBE-LOOP-BACK"])?;
            let entries =
                header.lines().find_map(|line| line.strip_prefix("Number of entries: ")).context("no number of entries")?;
            ensure!(entries.parse::<usize>()? == ENDPOINTS + 1, "{header}");
            Ok(header)
        })?;
        ensure!(header.contains("maxelem 262144"), "{header}");
        eventually(PATIENCE, || {
            let servers = world.node().exec(&["sh", "-c", "ipvsadm -Sn | grep -c '^-a -t 10.96.0.20:'"])?;
            ensure!(servers.trim().parse::<usize>()? == ENDPOINTS, "{servers}");
            Ok(())
        })?;
        made(&calls, 3)?;
        ensure_all_answered(&calls.stop()?)
    });
}

/// What is made in parts when there is much of it must not hide from the rest what an earlier run has left.
#[test]
fn k2_a_start_that_makes_much_still_takes_away_what_is_left() {
    const PORTS: u16 = 100;
    const SERVICES: u16 = 6;
    // Of a table that was emptied but for those: what has a mark, and the node port of a Service that goes meanwhile.
    const LEAVE: &str = "table=$(ipvsadm -Sn) && ipvsadm -C && echo \"$table\" | grep -E -e '-f |:30099 ' | ipvsadm -R
        for set in $(ipset save | sed -n 's/^add \\([^ ]*\\) .*tcp:30099.*/\\1/p' | sort -u); do
            ipset save $set | sed \"s/ $set / SMALL /; s/ maxelem [0-9]*/ maxelem 64/\" | ipset restore
            ipset swap SMALL $set && ipset destroy SMALL
        done";
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let many = (0..SERVICES).map(|number| {
            let service = Service::new(&format!("many-{number}")).cluster_ip(&format!("10.96.1.{number}"));
            (0..PORTS)
                .fold(service, |service, port| service.port(&format!("p{port}"), Protocol::Tcp, 1000 + port, POD_PORT))
                .to_string()
        });
        let public = Service::new("public")
            .cluster_ip("10.96.0.10")
            .port("tcp", Protocol::Tcp, 80, POD_PORT)
            .node_port(30080)
            .spec("externalTrafficPolicy: Local");
        let gone = Service::new("gone").cluster_ip("10.96.0.11").port("tcp", Protocol::Tcp, 80, POD_PORT).node_port(30099);
        world.write("many.yaml", &format!("{}{}{public}{}", node(), many.collect::<String>(), slices("public", &[&pod])))?;
        world.write("gone.yaml", &format!("{gone}{}", slices("gone", &[&pod])))?;
        synchronise(world, &[])?;
        let table = || -> testkit::Result<Vec<String>> {
            let saved = world.node().ipvsadm(&["-Sn"])?;
            Ok(lines(&saved).filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
        };
        let marks = |table: &[String]| table.iter().filter(|line| line.contains(" -f ")).cloned().collect::<Vec<_>>();
        let before = table()?;
        ensure!(!marks(&before).is_empty() && before.iter().any(|line| line.contains(":30099")), "{before:#?}");

        world.remove("gone.yaml")?;
        world.node().exec(&["sh", "-ec", LEAVE])?;
        ensure!(table()?.len() < 10, "{:#?}", table()?);
        // Another bit than those of the mark that the frontend has: all marks are others then.
        let _agent = started(world, &["--masquerade-bit", "10"])?;
        eventually(PATIENCE, || {
            let after = table()?;
            ensure!(after.len() > usize::from(SERVICES * PORTS), "{} virtual servers", after.len());
            ensure!(!after.iter().any(|line| line.contains(":30099") || line.contains("10.96.0.11")), "{:#?}", marks(&after));
            ensure!(marks(&after).len() == marks(&before).len(), "{:#?} where there were {:#?}", marks(&after), marks(&before));
            ensure!(marks(&after) != marks(&before), "the marks are the same, and nothing was tried: {:#?}", marks(&after));
            Ok(())
        })
    });
}
