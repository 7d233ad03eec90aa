//! Random lives of Services: an agent that followed every change leaves the kernel as one that starts with the end result.

use std::io::{self, Write as _};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Calls, Family, On, Pod, Protocol, Random, Result, World, eventually};

use crate::held::{Held, echoing, go_on};
use crate::life::{change, pass, state};
use crate::support::{PATIENCE, POD_PORT, ensure_all_answered, ensure_same, node, started, target, vip};

const CHANGES: usize = 12;

/// How many agents are killed.
const KILLS: u32 = 200;
/// After how many kills one is left to finish.
const CHECK: u32 = 20;
/// Shorter than an agent needs to come up, and longer, so that it is killed in all that it does.
const LONGEST_LIFES_MS: [u64; 3] = [200, 800, 2000];

fn live(seed: u64) {
    World::test(|world| {
        let fresh = World::new()?;
        let mut random = Random::new(seed);
        for world in [world, &fresh] {
            world.write("node.yaml", &node().to_string())?;
        }
        let agent = started(world, &[])?;
        let changes = (0..CHANGES).map(|_| change(world, &fresh, &mut random)).collect::<Result<Vec<_>>>()?;
        pass(&fresh, &[])?;
        let wanted = state(&fresh)?;
        ensure!(wanted.virtual_servers.len() > 10, "too little came of it: {wanted:?}");
        eventually(PATIENCE, || ensure_same(&wanted, &state(world)?, "it differs from a fresh start"))
            .with_context(|| format!("after\n{}", changes.join("\n")))?;

        agent.terminate()?;
        let log = pass(world, &[])?;
        ensure!(
            log.contains("nothing to do") && !log.contains("changed the kernel's state"),
            "one more pass was not empty:\n{log}"
        );
        ensure_same(&wanted, &state(world)?, "one more pass changed it")
    });
}

#[test]
fn random_life_1() {
    live(0x9e37_79b9_7f4a_7c15);
}

#[test]
fn random_life_2() {
    live(0xd1b5_4a32_d192_ed03);
}

#[test]
fn random_life_3() {
    live(0x94d0_49bb_1331_11eb);
}

/// A Service that stays as it is: a port whose servers echo, and one whose servers answer.
fn steady(pods: &[&Pod]) -> String {
    let service =
        Family::ALL.iter().fold(Service::new("steady"), |service, family| service.cluster_ip(&vip(*family, 90).to_string()));
    let service = service.port("echo", Protocol::Tcp, 80, POD_PORT).port("answer", Protocol::Tcp, 81, POD_PORT + 1);
    let slice = |family| {
        let slice = EndpointSlice::of("steady", family).port("echo", Protocol::Tcp, POD_PORT);
        let slice = slice.port("answer", Protocol::Tcp, POD_PORT + 1);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    format!("{service}{}", Family::ALL.map(slice).concat())
}

fn kills(world: &World, seed: u64) -> Result {
    let fresh = World::new()?;
    let mut random = Random::new(seed);
    let [(a, _echo_a), (b, _echo_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
    let _answering = [a.serve(POD_PORT + 1)?, b.serve(POD_PORT + 1)?];
    let client = world.pod("client", On::Node)?;
    for world in [world, &fresh] {
        world.write("node.yaml", &node().to_string())?;
        world.write("steady.yaml", &steady(&[&a, &b]))?;
    }
    let mut agent = started(world, &[])?;
    let open = |family| Held::open(&client, Protocol::Tcp, &target(vip(family, 90), 80), 100, Duration::from_secs(2));
    let held = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    // On a busy machine a guest takes seconds now and then for what takes none elsewhere.
    let patient = ["--interval-ms", "120", "--timeout-ms", "15000"];
    let call = |family| client.keep_calling_with(Protocol::Tcp, &target(vip(family, 90), 81), &patient);
    let calls = Family::ALL.into_iter().map(call).collect::<Result<Vec<_>>>()?;

    let mut changes = Vec::new();
    for kills in 1..=KILLS {
        for _ in 0..=random.below(3) {
            changes.push(change(world, &fresh, &mut random)?);
        }
        let longest = random.of(&LONGEST_LIFES_MS);
        thread::sleep(Duration::from_millis(random.below(longest)));
        agent.kill()?;
        agent = world.agent(&[])?;
        if kills.is_multiple_of(CHECK) {
            pass(&fresh, &[])?;
            let wanted = state(&fresh)?;
            eventually(PATIENCE, || ensure_same(&wanted, &state(world)?, "it differs from one that was not killed"))
                .with_context(|| format!("after {kills} kills and\n{}", changes.join("\n")))?;
            go_on(&held, 1).with_context(|| format!("after {kills} kills"))?;
        }
    }
    let replies = calls.into_iter().map(Calls::stop).collect::<Result<Vec<_>>>()?.concat();
    ensure_all_answered(&replies)?;
    // Past the harness, which shows nothing of what went well.
    let figures = format!("{KILLS} kills, {} changes, {} calls, with the seed {seed:#x}", changes.len(), replies.len());
    writeln!(io::stderr(), "{figures}").context("cannot print")
}

#[test]
fn a4_agents_that_are_killed_at_200_random_moments_converge_and_harm_no_connection() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = u64::from(now.subsec_nanos()) << 32 | u64::from(now.subsec_nanos());
    World::test(|world| kills(world, seed).with_context(|| format!("with the seed {seed:#x}")));
}
