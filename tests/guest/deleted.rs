//! Services that are deleted keep their connections for a while, and refuse new ones.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, Netns, On, Pod, Process, Protocol, Result, World, eventually};

use crate::held::{Held, echoing, echoing_after, go_on};
use crate::support::{
    KernelState, PATIENCE, POD_PORT, ensure_same, lines, node, node_address, routes, started, target, vip, virtual_servers,
};
use crate::web::{CONNECTIONS, Is, Web};

/// New callers are refused, and do not wait in vain. Not all of them by the first packet: where caller and node share a kernel, the refusal may come while
/// the caller's socket is still sending, which forgets it then and sends again after a second, two, four. The kernel refuses a caller six times in a
/// row and then once a second, so nobody asks in quick succession.
fn refused(world: &World) -> Result {
    for family in Family::ALL {
        for caller in [world.node(), world.ext()] {
            for reply in caller.call(Protocol::Tcp, &Web::target(family), 2)? {
                let refused = reply.outcome.as_ref().is_err_and(|error| error == "refused");
                ensure!(refused, "{}, {family}: {reply:?}", caller.name());
            }
        }
    }
    Ok(())
}

/// Waits until new callers are refused.
fn refuses(world: &World, web: &Web<'_>) -> Result {
    web.becomes([Some(0), Some(0)])?;
    refused(world)
}

/// Waits until nothing of the Service is left, as after a start without it.
fn gone(world: &World) -> Result {
    eventually(PATIENCE, || {
        let node = world.node();
        let sets = node.exec(&["ipset", "save"])?;
        let members = lines(&sets).filter(|line| line.starts_with("add ")).map(str::to_owned).collect();
        let left = [virtual_servers(node)?, routes(node)?, members].concat();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn a5_a_deleted_service_keeps_its_connections_and_refuses_new_ones_at_once() {
    // Schedulers that would choose another server, or remember one.
    for (scheduler, affinity) in [("rr", "None"), ("sh", "None"), ("mh", "ClientIP")] {
        World::test(|world| {
            let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
            web.write(&web.service().spec(&format!("sessionAffinity: {affinity}")))?;
            let agent = started(world, &["--scheduler", scheduler])?;
            let held = web.hold(CONNECTIONS)?;
            web.delete()?;
            refuses(world, &web)?;
            go_on(&held, 4)?;
            refused(world)?;

            // The kernel knows, so another process does as well.
            agent.kill()?;
            let _agent = started(world, &["--scheduler", scheduler])?;
            go_on(&held, 4)?;
            refused(world)?;

            drop(held);
            gone(world)
        });
    }
}

/// Downloads of fifteen seconds, of which the clients say beforehand that they send no more.
#[test]
fn a5_a_deleted_service_keeps_connections_of_which_one_half_is_closed() {
    const PARTS: u64 = 60;
    fn slowly(world: &World, name: &str, on: On) -> Result<(Pod, Process)> {
        echoing_after(world, name, on, Duration::from_millis(500))
    }
    World::test(|world| {
        let web = Web::new(world, slowly, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let _agent = started(world, &[])?;
        let held = web.hold_with(CONNECTIONS, &["--last", &PARTS.to_string()])?;
        go_on(&held, 1)?;
        eventually(PATIENCE, || {
            let listed = world.node().exec(&["ipvsadm", "-Lnc"])?;
            // While connections come, go and change their states, the kernel may list one twice or leave one out.
            let closing =
                lines(&listed).filter(|line| line.contains(" CLOSE_WAIT ")).filter_map(|line| line.split_whitespace().nth(3));
            let closing = closing.collect::<BTreeSet<_>>().len();
            ensure!(closing == 2 * CONNECTIONS as usize, "{closing} are half closed:\n{listed}");
            Ok(())
        })?;
        web.delete()?;
        refuses(world, &web)?;
        held.iter().try_for_each(|held| held.reach(PARTS))?;
        // And then it is over, long before the kernel forgets the connections.
        gone(world)
    });
}

#[test]
fn a5_a_deleted_service_ends_at_its_deadline() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let _agent = started(world, &["--drain-timeout", "20s"])?;
        let mut held = web.hold(CONNECTIONS)?;
        web.delete()?;
        refuses(world, &web)?;
        go_on(&held, 1)?;
        for held in &mut held {
            held.are_reset(CONNECTIONS as usize)?;
        }
        gone(world)
    });
}

/// One of two ports goes, with its node port, where callers from outside have virtual servers of their own.
#[test]
fn a5_a_deleted_port_keeps_its_connections_and_the_other_port_serves_on() {
    const NODE_PORT: u16 = 30080;
    const OTHER_NODE_PORT: u16 = 30081;
    World::test(|world| {
        let [(a, _serve_a), (b, _serve_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let write = |has_other: bool| {
            let service = Service::new("web").spec("externalTrafficPolicy: Local");
            let service = Family::ALL.iter().fold(service, |service, family| service.cluster_ip(&vip(*family, 10).to_string()));
            let service = service.port("http", Protocol::Tcp, 80, POD_PORT).node_port(NODE_PORT);
            let service = match has_other {
                true => service.port("other", Protocol::Tcp, 81, POD_PORT).node_port(OTHER_NODE_PORT),
                false => service,
            };
            let slice = |family| {
                let slice = EndpointSlice::of("web", family).port("http", Protocol::Tcp, POD_PORT);
                slice.port("other", Protocol::Tcp, POD_PORT).pod(&a).pod(&b).to_string()
            };
            world.write("web.yaml", &format!("{}{service}{}", node(), Family::ALL.map(slice).concat()))
        };
        write(false)?;
        let agent = started(world, &[])?;
        let alone = KernelState::of(world.node())?;
        write(true)?;
        eventually(PATIENCE, || {
            let (servers, of_one) = (virtual_servers(world.node())?, alone.virtual_servers.len());
            ensure!(servers.len() == 2 * of_one, "{servers:?}");
            Ok(())
        })?;
        let hold =
            |caller: &Netns, target: String| Held::open(caller, Protocol::Tcp, &target, CONNECTIONS / 2, Duration::from_secs(1));
        let (mut leaving, mut staying) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            leaving.push(hold(&client, target(vip(family, 10), 81))?);
            for caller in [&*client, world.ext()] {
                leaving.push(hold(caller, target(node_address(family), OTHER_NODE_PORT))?);
            }
            staying.push(hold(&client, target(vip(family, 10), 80))?);
            staying.push(hold(world.ext(), target(node_address(family), NODE_PORT))?);
        }
        let both = KernelState::of(world.node())?;
        write(false)?;
        let refused = || -> Result {
            for family in Family::ALL {
                for (caller, target) in
                    [(&*client, target(vip(family, 10), 81)), (world.ext(), target(node_address(family), OTHER_NODE_PORT))]
                {
                    let replies = caller.call(Protocol::Tcp, &target, 1)?;
                    ensure!(
                        replies.iter().all(|reply| reply.outcome.as_ref().is_err_and(|error| error == "refused")),
                        "{target}: {replies:?}"
                    );
                }
            }
            Ok(())
        };
        eventually(PATIENCE, refused)?;
        go_on(&leaving, 3)?;
        agent.kill()?;
        let _agent = started(world, &[])?;
        eventually(PATIENCE, refused)?;
        go_on(&leaving, 3)?;
        // Those of marks, for callers from inside, included.
        let drains = KernelState::of(world.node())?;
        ensure!(drains.virtual_servers.len() == both.virtual_servers.len(), "{:?}", drains.virtual_servers);

        drop(leaving);
        eventually(PATIENCE, || ensure_same(&alone, &KernelState::of(world.node())?, "something is left of the port"))?;
        go_on(&staying, 2)
    });
}

#[test]
fn a5_a_service_that_comes_back_goes_on_with_its_connections() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let _agent = started(world, &[])?;
        let held = web.hold(CONNECTIONS)?;
        for _ in 0..3 {
            web.delete()?;
            refuses(world, &web)?;
            web.write(&web.service())?;
            web.becomes([Some(1), Some(1)])?;
        }
        go_on(&held, 2)
    });
}
