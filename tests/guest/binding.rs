//! The two ways to make VIPs local to the node, and the way from one to the other.

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{Family, On, Protocol, Result, World, answers};

use crate::support::{
    BETWEEN_CALLS, POD_PORT, answered, ensure_all_answered, lines, made, node, node_addresses, routes, serving, slices, started,
    target, vip,
};

const BY_ADDRESS: [&str; 2] = ["--vip-binding", "address"];

fn services() -> String {
    let service = |number: u8| {
        Service::new(&format!("web-{number}"))
            .cluster_ip(&vip(Family::V4, number).to_string())
            .cluster_ip(&vip(Family::V6, number).to_string())
            .port("tcp", Protocol::Tcp, 80, POD_PORT)
    };
    (10..14).map(|number| service(number).to_string()).collect()
}

/// The addresses on our device, without the one that the kernel gives it.
fn addresses(world: &World) -> Result<Vec<String>> {
    let shown = world.node().exec(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?;
    let mut addresses: Vec<_> = lines(&shown)
        .filter_map(|line| line.split_whitespace().nth(3))
        .filter(|address| !address.starts_with("fe80:"))
        .map(str::to_owned)
        .collect();
    addresses.sort_unstable();
    Ok(addresses)
}

fn is_up(world: &World) -> Result {
    let link = world.node().exec(&["ip", "-o", "link", "show", "dev", "kube-ipvs0"])?;
    ensure!(link.contains(",UP") && link.contains("NOARP"), "{link}");
    Ok(())
}

#[test]
fn vips_bound_as_addresses_carry_traffic() {
    World::test(|world| {
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        let endpoints = format!("{}{}", slices("web-10", &[&near]), slices("web-11", &[&far]));
        world.write("web.yaml", &format!("{}{}{endpoints}", node(), services()))?;
        let _agent = started(world, &BY_ADDRESS)?;
        is_up(world)?;
        ensure!(routes(world.node())?.is_empty(), "there are routes as well");
        let bound = addresses(world)?;
        ensure!(
            bound.len() == 8 && bound.contains(&"10.96.0.10/32".to_owned()) && bound.contains(&"fd00:96::13/128".to_owned()),
            "{bound:?}"
        );
        for family in Family::ALL {
            for (number, pod) in [(10, &near), (11, &far)] {
                let vip = target(vip(family, number), 80);
                for (caller, sources) in [
                    (&*client, [client.address(family); 2]),
                    (world.ext(), node_addresses(family)),
                    (world.node(), node_addresses(family)),
                ] {
                    let answers = answers(caller.call(Protocol::Tcp, &vip, 2)?)?;
                    ensure!(
                        answers.iter().all(|answer| answer.name == pod.name() && sources.contains(&answer.peer.ip())),
                        "{} calls {vip}: {answers:?}",
                        caller.name()
                    );
                }
            }
            // The pod calls itself.
            let answers = answers(near.call(Protocol::Tcp, &target(vip(family, 10), 80), 1)?)?;
            ensure!(node_addresses(family).contains(&answers[0].peer.ip()), "{answers:?}");
        }
        Ok(())
    });
}

/// All four VIPs in both families, called without a pause through two changes of the binding.
#[test]
fn switching_the_binding_on_restart_moves_every_vip_without_a_gap() {
    World::test(|world| {
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let endpoints: String = (10..14).map(|number| slices(&format!("web-{number}"), &[&near])).collect();
        world.write("web.yaml", &format!("{}{}{endpoints}", node(), services()))?;
        let agent = started(world, &[])?;
        let callers = Family::ALL.map(|family| client.keep_calling(Protocol::Tcp, &target(vip(family, 10), 80), BETWEEN_CALLS));
        let callers = callers.into_iter().collect::<Result<Vec<_>>>()?;
        callers.iter().try_for_each(answered)?;
        ensure!(routes(world.node())?.len() == 8 && addresses(world)?.is_empty());

        ensure!(agent.terminate()?.success());
        let agent = started(world, &BY_ADDRESS)?;
        callers.iter().try_for_each(|calls| made(calls, 3))?;
        ensure!(
            routes(world.node())?.is_empty() && addresses(world)?.len() == 8,
            "{:?} {:?}",
            routes(world.node())?,
            addresses(world)?
        );
        is_up(world)?;

        ensure!(agent.terminate()?.success());
        let agent = started(world, &[])?;
        callers.iter().try_for_each(|calls| made(calls, 3))?;
        ensure!(
            routes(world.node())?.len() == 8 && addresses(world)?.is_empty(),
            "{:?} {:?}",
            routes(world.node())?,
            addresses(world)?
        );
        ensure!(!agent.log()?.contains("refused"), "{}", agent.log()?);
        is_up(world)?;
        // Neither has the host's own source changed for good.
        for family in Family::ALL {
            let answers = answers(world.node().call(Protocol::Tcp, &target(vip(family, 10), 80), 1)?)?;
            ensure!(node_addresses(family).contains(&answers[0].peer.ip()), "{answers:?}");
        }
        for (family, calls) in Family::ALL.into_iter().zip(callers) {
            ensure_all_answered(&calls.stop()?).with_context(|| family.to_string())?;
        }
        Ok(())
    });
}
