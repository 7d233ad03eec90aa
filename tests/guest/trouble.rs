//! An API server that is there and not well, and a way to it that is lost: what is served goes on, and what changes arrives.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Agent, Calls, Family, NODE2_V4, Netns, On, Pod, Protocol, Result, World, answers, eventually};

use crate::held::{Held, echoing, go_on};
use crate::support::{
    PATIENCE, POD_PORT, answered, ensure_all_answered, made, node, real_servers, serving, slices, target, vip, virtual_servers,
};
use crate::web::{CONNECTIONS, Is, Web};

/// All that the API server's double can have go wrong.
pub(crate) const FAULTS: [&str; 11] =
    ["end", "cut", "failure", "expired", "cut-list", "broken", "busy", "disconnect", "half-line", "late", "silent"];

/// So often each of them happens.
const ROUNDS: usize = 3;

/// Another Service in both families, whose pods say who has answered.
fn called() -> Service {
    let called = Family::ALL.iter().fold(Service::new("called"), |called, family| called.cluster_ip(&vip(*family, 11).to_string()));
    called.port(&Protocol::Tcp.to_string(), Protocol::Tcp, 80, POD_PORT)
}

/// Calls in both families that go on.
fn calls(client: &Netns) -> Result<Vec<Calls>> {
    let start = |family| {
        let options = ["--interval-ms", "100", "--timeout-ms", "15000"];
        let calls = client.keep_calling_with(Protocol::Tcp, &target(vip(family, 11), 80), &options)?;
        answered(&calls)?;
        Ok(calls)
    };
    Family::ALL.into_iter().map(start).collect()
}

fn held(web: &Web<'_>) -> Result<Vec<Held>> {
    web.hold_every(Duration::from_millis(500), CONNECTIONS)
}

/// Waits until a Service is served in both families.
fn is_served(world: &World, number: u8) -> Result {
    eventually(PATIENCE, || {
        let table = virtual_servers(world.node())?;
        let has = |family: &Family| table.iter().any(|line| line.contains(&format!("-a -t {} ", target(vip(*family, number), 80))));
        ensure!(Family::ALL.iter().all(has), "not all is served: {table:?}");
        Ok(())
    })
}

/// Fails when the agent has ended.
fn goes_on(agent: &mut Agent) -> Result {
    let ended = agent.process().ended()?;
    ensure!(ended.is_none(), "the agent ended: {}", agent.log()?);
    Ok(())
}

#[test]
fn j10_faults_of_the_api_server_cost_no_connection_and_no_change() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Ready, Is::Ready])?;
        let [(c, _serve_c), (d, _serve_d)] = [serving(world, "c", On::Node)?, serving(world, "d", On::Node2)?];
        world.write("called.yaml", &called().to_string())?;
        let write = |is_second: Is, pods: &[&Pod]| {
            web.endpoints([Is::Ready, is_second])?;
            world.write("called-endpoints.yaml", &slices("called", pods))
        };
        write(Is::Ready, &[&c, &d])?;
        let faults: Vec<_> = FAULTS.iter().flat_map(|fault| ["--fault", fault]).collect();
        let mut server = world.api_server(&[&["--interval-ms", "100", "--fault-interval-ms", "700"], &faults[..]].concat())?;
        let mut agent = world.agent_of_cluster(&["--log-level", "debug"])?;
        is_served(world, 10)?;
        is_served(world, 11)?;
        let (held, calls) = (held(&web)?, calls(&web.client)?);

        // Until each has happened some times since, under changes of endpoints.
        let happened = |fault: &str| Ok(server.output()?.lines().filter(|line| *line == format!("fault: {fault}")).count());
        let before = FAULTS.iter().map(|fault| happened(fault)).collect::<Result<Vec<_>>>()?;
        let (begun, mut changes) = (Instant::now(), 0);
        loop {
            let since = FAULTS.iter().zip(&before).map(|(fault, before)| Ok(happened(fault)? - before));
            if since.collect::<Result<Vec<_>>>()?.iter().all(|times| *times >= ROUNDS) {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE * 2, "the faults do not come");
            write(if changes % 2 == 0 { Is::Unready } else { Is::Ready }, [&[&c, &d][..], &[&c], &[&d]][changes % 3])?;
            changes += 1;
            thread::sleep(Duration::from_millis(300));
        }
        goes_on(&mut agent)?;
        let log = agent.log()?;
        for said in ["answers 500", "answers 429", "has expired; listing again"] {
            ensure!(log.contains(said), "the agent met no error that says {said:?}:\n{log}");
        }

        // Told to an API server that is not well, and then restarted: who has met errors again and again waits for up to half a minute.
        write(Is::Ready, &[&d])?;
        let last = Service::new("last").cluster_ip("10.96.0.12").port("http", Protocol::Tcp, 80, POD_PORT);
        world
            .write("last.yaml", &format!("{last}{}", EndpointSlice::ipv4("last").port("http", Protocol::Tcp, POD_PORT).pod(&d)))?;
        server.kill()?;
        let _well = world.api_server(&["--interval-ms", "100", "--resource-version", "100000"])?;
        eventually(PATIENCE, || answers(web.client.call(Protocol::Tcp, "10.96.0.12:80", 1)?).map(drop))
            .context("the last Service")?;
        web.becomes([Some(1), Some(1)]).context("the last readiness")?;
        eventually(PATIENCE, || {
            let servers = real_servers(world.node(), "-t", &target(vip(Family::V4, 11), 80))?;
            let gone = target(c.address(Family::V4), POD_PORT);
            ensure!(!servers.iter().any(|server| server.starts_with(&gone) && !server.ends_with("-w 0")), "{servers:?}");
            Ok(())
        })?;
        go_on(&held, 10)?;
        for calls in calls {
            ensure_all_answered(&calls.stop()?)?;
        }
        goes_on(&mut agent)
    });
}

/// An API server that has lost a Service is believed: a list that is complete says what there is.
#[test]
fn j10_what_a_complete_list_lacks_drains() {
    World::test(|world| {
        let web = Web::new(world, echoing, Protocol::Tcp, [Is::Gone, Is::Ready])?;
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        world.write("called.yaml", &format!("{}{}", called(), slices("called", &[&c])))?;
        let mut server = world.api_server(&[])?;
        let mut agent = world.agent_of_cluster(&["--log-level", "debug"])?;
        is_served(world, 10)?;
        is_served(world, 11)?;
        let (held, calls) = (held(&web)?, calls(&web.client)?);

        server.kill()?;
        // Its endpoints stay: were their list the first to be told of, they would be taken for dead, and have ten seconds.
        web.delete()?;
        let _server = world.api_server(&["--resource-version", "1000"])?;
        web.becomes([None, Some(0)])?;
        for family in Family::ALL {
            eventually(PATIENCE, || {
                let replies = web.client.call(Protocol::Tcp, &target(vip(family, 10), 80), 1)?;
                ensure!(replies.iter().all(|reply| reply.outcome == Err("refused".to_owned())), "{replies:?}");
                Ok(())
            })?;
        }
        go_on(&held, 10)?;
        web.becomes([None, Some(0)])?;
        for calls in calls {
            made(&calls, 5)?;
            ensure_all_answered(&calls.stop()?)?;
        }
        goes_on(&mut agent)
    });
}

/// The ports from which the connections come that a host has on one of its own.
fn callers_of(host: &Netns, port: u16) -> Result<Vec<String>> {
    const ESTABLISHED: &str = "01";
    let table = host.exec(&["cat", "/proc/net/tcp"])?;
    let caller = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, own, caller, state, ..] = fields[..] else { return None };
        let is_meant = state == ESTABLISHED && own.ends_with(&format!(":{port:04X}"));
        let caller = u16::from_str_radix(caller.rsplit_once(':')?.1, 16).ok()?;
        is_meant.then(|| caller.to_string())
    };
    Ok(table.lines().skip(1).filter_map(caller).collect())
}

/// What was sent on a quiet watch would have come within minutes, when its time is over; that nobody is at its other end is noticed much sooner.
#[test]
fn j10_watches_whose_connections_are_dead_are_opened_again_within_a_minute_or_so() {
    const PORT: u16 = 6443;
    World::test(|world| {
        let (c, _serve_c) = serving(world, "c", On::Node2)?;
        let (d, _serve_d) = serving(world, "d", On::Node)?;
        world.write("called.yaml", &format!("{}{}", node(), called()))?;
        world.write("endpoints.yaml", &slices("called", &[&c]))?;
        let (host, listen) = (world.node2(), target(NODE2_V4, PORT));
        let mut server = world.api_server_on(host, &["--listen", &listen])?;
        let mut agent = world.agent_of_cluster(&["--log-level", "debug"])?;
        is_served(world, 11)?;
        let callers = eventually(PATIENCE, || {
            let callers = callers_of(host, PORT)?;
            ensure!(callers.len() >= 3, "not all watches are open: {callers:?}");
            Ok(callers)
        })?;

        // As a firewall that has forgotten them: of these connections neither end hears of the other any more, not even that it has ended.
        let port = PORT.to_string();
        for caller in &callers {
            for (chain, from, to) in [("INPUT", caller, &port), ("OUTPUT", &port, caller)] {
                host.exec(&["iptables-legacy", "-w", "-A", chain, "-p", "tcp", "--sport", from, "--dport", to, "-j", "DROP"])?;
            }
        }
        server.kill()?;
        world.write("endpoints.yaml", &slices("called", &[&d]))?;
        let _server = world.api_server_on(host, &["--listen", &listen, "--resource-version", "1000"])?;
        let lost = Instant::now();
        let has_changed = || -> Result {
            for family in Family::ALL {
                let answers = answers(world.ext().call(Protocol::Tcp, &target(vip(family, 11), 80), 1)?)?;
                ensure!(answers.iter().all(|answer| answer.name == "d"), "{answers:?}");
            }
            Ok(())
        };
        thread::sleep(Duration::from_secs(5));
        ensure!(has_changed().is_err(), "the change has arrived on connections that are dead");
        // Watches are opened again for their time after 240 s.
        eventually(Duration::from_secs(150), has_changed)?;
        println!("the change was served {:?} after the connections were lost", lost.elapsed());
        let dropped = host.exec(&["iptables-legacy", "-w", "-nvxL", "INPUT"])?;
        ensure!(dropped.lines().any(|line| line.contains("DROP") && !line.trim_start().starts_with("0 ")), "{dropped}");
        goes_on(&mut agent)
    });
}
