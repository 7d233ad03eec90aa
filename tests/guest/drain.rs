//! Real servers that leave keep their connections for a while.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use testkit::manifest::Node;
use testkit::{Family, NODE2_V4, Protocol, Result, World, eventually};

use crate::held::{Held, echoing, go_on};
use crate::support::{PATIENCE, answered_by, ensure_all_answered, made, serving, started};
use crate::web::{CONNECTIONS, Is, Web};

/// Waits until so many connections are reset in each family; the longest that one was without an answer before.
fn are_reset(held: &mut [Held], count: u32) -> Result<Duration> {
    let waited = held.iter_mut().map(|held| held.are_reset(count as usize)).collect::<Result<Vec<_>>>()?;
    Ok(waited.into_iter().max().unwrap_or_default())
}

#[test]
fn a2_a3_a_real_server_that_leaves_keeps_its_connections_gets_its_weight_back_in_place_and_goes_with_the_last() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _agent = started(world, &[])?;
        let (most, last) = (web.hold_with(CONNECTIONS - 1, &["--reset"])?, web.hold_with(1, &["--reset"])?);
        for _ in 0..3 {
            web.endpoints([Is::Ready, Is::Ready])?;
            web.becomes([Some(1), Some(1)])?;
            web.endpoints([Is::Terminating, Is::Ready])?;
            web.becomes([Some(0), Some(1)])?;
            go_on(&most, 5)?;
        }
        drop(most);
        // Longer than the kernel remembers connections that were reset, which is ten seconds.
        thread::sleep(Duration::from_secs(12));
        web.becomes([Some(0), Some(1)])?;
        go_on(&last, 1)?;
        drop(last);
        // The deadline is a quarter of an hour away.
        web.becomes([None, Some(1)])
    });
}

#[test]
fn a2_at_its_deadline_a_real_server_goes_and_its_clients_are_told_at_once() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _agent = started(world, &["--drain-timeout", "12s"])?;
        let mut leave = web.hold(CONNECTIONS)?;
        web.endpoints([Is::Terminating, Is::Ready])?;
        web.becomes([Some(0), Some(1)])?;
        let stay = web.hold(CONNECTIONS / 10)?;
        go_on(&leave, 1)?;
        let waited = are_reset(&mut leave, CONNECTIONS)?;
        // It sends a line a second. Without the reset it would wait for minutes.
        ensure!(waited < Duration::from_secs(45), "a client was told after {waited:?}");
        web.becomes([None, Some(1)])?;
        go_on(&stay, 2)
    });
}

#[test]
fn a4_a_drain_goes_on_after_a_restart_and_an_idle_server_goes_at_once() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let agent = started(world, &[])?;
        let held = web.hold(CONNECTIONS)?;
        web.endpoints([Is::Terminating, Is::Ready])?;
        web.becomes([Some(0), Some(1)])?;
        agent.kill()?;
        let _agent = started(world, &[])?;
        go_on(&held, 3)?;
        web.becomes([Some(0), Some(1)])?;

        // The other one has no connections.
        web.endpoints([Is::Ready, Is::Gone])?;
        web.becomes([Some(1), None])?;
        go_on(&held, 1)
    });
}

/// All are connected to one pod. The next flip comes when the kernel has the last one.
#[test]
fn a3_500_flips_of_readiness_cost_none_of_200_busy_connections() {
    const FLIPS: u32 = 500;
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _server = world.api_server(&["--interval-ms", "50"])?;
        let _agent = world.agent_of_cluster(&[])?;
        web.becomes([Some(1), None])?;
        let held = web.hold_every(Duration::from_millis(250), CONNECTIONS)?;
        web.endpoints([Is::Ready, Is::Ready])?;
        web.becomes([Some(1), Some(1)])?;
        let busy = |weight: u32| format!(" {weight} {CONNECTIONS} 0");
        // A real server that is deleted loses its connections, and one that is added comes first.
        let ready = web.real_servers()?;
        let unready: Vec<_> = ready.iter().map(|line| line.replace(&busy(1), &busy(0))).collect();
        ensure!(unready.iter().filter(|line| line.ends_with(&busy(0))).count() == 2, "{ready:?}");
        for (is, wanted) in [(Is::Unready, &unready), (Is::Ready, &ready)].into_iter().cycle().take(FLIPS as usize) {
            web.endpoints([is, Is::Ready])?;
            eventually(PATIENCE, || {
                let real_servers = web.real_servers()?;
                ensure!(real_servers == *wanted, "{real_servers:?} instead of {wanted:?}");
                Ok(())
            })?;
        }
        for held in &held {
            ensure!(held.lines()? >= u64::from(FLIPS / 5), "a connection was not busy: {} lines", held.lines()?);
        }
        go_on(&held, 10)
    });
}

#[test]
fn e1_clients_of_a_server_that_died_are_told_by_a_reset_soon_after_its_short_deadline() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Gone, Is::Ready])?;
        let _agent = started(world, &["--vanished-drain-timeout", "2s"])?;
        let mut busy = web.hold(CONNECTIONS / 2)?;
        // They send their next lines when the real server is gone.
        let mut idle = web.hold_every(Duration::from_secs(20), CONNECTIONS / 2)?;
        idle.iter().try_for_each(|held| held.reach(1))?;

        let [_, pod] = &web.pods;
        pod.exec(&["ip", "link", "set", "eth0", "down"])?;
        let died = Instant::now();
        web.endpoints([Is::Gone, Is::Gone])?;
        web.becomes([None, Some(0)])?;
        web.becomes([None, None])?;
        let gone = died.elapsed();
        ensure!(gone >= Duration::from_secs(2) && gone < Duration::from_secs(60), "the real servers were gone after {gone:?}");

        // Those that had sent something learn it when they send that again, with the kernel's growing patience; the others at once. No answer at all
        // would be another way to be lost.
        are_reset(&mut busy, CONNECTIONS / 2)?;
        are_reset(&mut idle, CONNECTIONS / 2).map(drop)
    });
}

/// Two pods leave alike, and clients are connected to both by turns; then the node of one is lost.
#[test]
fn e1_who_leaves_on_a_node_that_is_not_ready_has_the_short_deadline() {
    World::test(|world| {
        let node2 = |ready| world.write("node2.yaml", &Node::new("node2").internal_ip(NODE2_V4).ready(ready).to_string());
        node2(true)?;
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let _agent = started(world, &["--vanished-drain-timeout", "2s"])?;
        let mut held = web.hold(CONNECTIONS)?;
        web.endpoints([Is::Unready, Is::Unready])?;
        web.becomes([Some(0), Some(0)])?;
        go_on(&held, 4)?;
        web.becomes([Some(0), Some(0)])?;

        node2(false)?;
        web.becomes([Some(0), None])?;
        are_reset(&mut held, CONNECTIONS / 2)?;
        go_on(&held, 2)
    });
}

/// Long after what datagrams would have, and with an annotation that says for how long at the most.
#[test]
fn i2_a2_sctp_drains_like_tcp_and_a_service_says_for_how_long() {
    const CONNECTIONS: u32 = 50;
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Sctp, [Is::Gone, Is::Ready])?;
        let _agent = started(world, &[])?;
        let mut held = web.hold(CONNECTIONS)?;
        web.endpoints([Is::Ready, Is::Terminating])?;
        web.becomes([Some(1), Some(0)])?;
        go_on(&held, 4)?;
        web.becomes([Some(1), Some(0)])?;
        web.endpoints([Is::Ready, Is::Ready])?;
        web.becomes([Some(1), Some(1)])?;
        go_on(&held, 4)?;

        web.write(&web.service().annotation("kube-ipvs.io/drain-timeout", "3s"))?;
        // The manifests are read twice a second.
        thread::sleep(Duration::from_secs(1));
        web.endpoints([Is::Ready, Is::Terminating])?;
        web.becomes([Some(1), Some(0)])?;
        web.becomes([Some(1), None])?;
        are_reset(&mut held, CONNECTIONS).map(drop)
    });
}

/// The kernel remembers a connection for two minutes after its end, and with it the real server that its port had.
#[test]
fn a1_a_client_that_keeps_its_port_meets_a_server_that_lives_at_once() {
    World::test(|world| {
        let web = Web::new(world, serving, Protocol::Tcp, [Is::Ready, Is::Gone])?;
        let _agent = started(world, &[])?;
        let options = ["--source-port", "40001", "--interval-ms", "200", "--timeout-ms", "20000"];
        let call = |family| web.client.keep_calling_with(Protocol::Tcp, &Web::target(family), &options);
        let clients = Family::ALL.into_iter().map(call).collect::<Result<Vec<_>>>()?;
        let [first, second] = [[Is::Ready, Is::Terminating], [Is::Terminating, Is::Ready]];
        for (are, server) in [(first, "a"), (second, "b"), (first, "a"), (second, "b")] {
            web.endpoints(are)?;
            clients.iter().try_for_each(|calls| answered_by(calls, server))?;
            clients.iter().try_for_each(|calls| made(calls, 20))?;
        }
        // It is not kept by connections of the past.
        web.becomes([None, Some(1)])?;
        for calls in clients {
            let replies = calls.stop()?;
            ensure_all_answered(&replies)?;
            let mut servers: Vec<_> = replies.iter().filter_map(|reply| Some(reply.outcome.as_ref().ok()?.name.as_str())).collect();
            servers.dedup();
            ensure!(servers == ["a", "b", "a", "b"], "calls were answered by {servers:?}");
            let longest = replies.iter().map(|reply| reply.took).max().unwrap_or_default();
            ensure!(longest < Duration::from_secs(15), "of {} calls one took {longest:?}", replies.len());
        }
        Ok(())
    });
}
