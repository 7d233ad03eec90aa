//! Random lives of Services: an agent that followed every change leaves the kernel as one that starts with the end result.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Pod, Protocol, Random, Result, World, eventually};

use crate::held::{Held, echoing};
use crate::support::{KernelState, PATIENCE, POD_PORT, ensure_all_answered, ensure_same, node, started, target, vip};

const SERVICES: u64 = 4;
const CHANGES: usize = 12;

/// For how long agents are killed.
const KILLING: Duration = Duration::from_secs(25);
/// Longer than an agent needs, so that it is killed in all that it does.
const LONGEST_LIFE_MS: u64 = 1500;
/// After how many kills one is left to finish.
const KILLS: u32 = 6;

fn name(number: u64) -> String {
    format!("service-{number}")
}

/// A Service of some kind. The addresses are few, so that Services also claim the same ones.
fn service(number: u64, random: &mut Random) -> Value {
    let kind = random.of(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
    let families = random.of(&[&["IPv4"][..], &["IPv6"], &["IPv4", "IPv6"]]);
    let cluster_ip =
        |family: &&str| if *family == "IPv4" { format!("10.96.0.{}", 10 + number) } else { format!("fd00:96::{number}") };
    let ports: Vec<_> = (0..=random.below(3))
        .map(|port| {
            let node_port = (kind != "ClusterIP").then_some(30000 + 10 * number + port);
            json!({"name": format!("p{port}"), "protocol": random.of(&["TCP", "UDP", "SCTP"]),
                "port": 80 + port, "targetPort": 8080 + port, "nodePort": node_port})
        })
        .collect();
    let externals = random.one_in(3).then(|| json!([format!("198.51.100.{}", random.below(2)), "2001:db8::1"]));
    let ranges = random.one_in(3).then(|| json!(["172.18.0.0/24", "fd00:18::/64"]));
    let ingress = json!([{"ip": format!("198.51.100.{}", 100 + random.below(2))}, {"ip": format!("2001:db8::{}", 100 + number)}]);
    let status = (kind == "LoadBalancer").then(|| json!({"loadBalancer": {"ingress": ingress}}));
    json!({"apiVersion": "v1", "kind": "Service", "status": status,
        "metadata": {"namespace": "default", "name": name(number), "creationTimestamp": format!("2026-01-01T00:00:0{number}Z")},
        "spec": {"type": kind, "clusterIPs": families.iter().map(cluster_ip).collect::<Vec<_>>(), "ipFamilies": families, "ports": ports,
            "externalIPs": externals, "loadBalancerSourceRanges": ranges,
            "internalTrafficPolicy": random.of(&["Cluster", "Local"]),
            "externalTrafficPolicy": (kind != "ClusterIP").then(|| random.of(&["Cluster", "Local"])),
            "sessionAffinity": random.of(&["None", "None", "ClientIP"])}})
}

fn slice(number: u64, random: &mut Random) -> Value {
    let family = random.of(&["IPv4", "IPv4", "IPv6"]);
    let endpoints: Vec<_> = (0..random.below(5))
        .map(|_| {
            let (net, host) = (1 + random.below(2), 10 + random.below(4));
            let address = if family == "IPv4" { format!("10.244.{net}.{host}") } else { format!("fd00:244:0:{net}::{host}") };
            let ready = !random.one_in(4);
            json!({"addresses": [address], "nodeName": if net == 1 { "node" } else { "node2" },
                "conditions": {"ready": ready, "serving": ready || random.one_in(2), "terminating": !ready}})
        })
        .collect();
    let ports: Vec<_> = (0..3)
        .flat_map(|port| ["TCP", "UDP", "SCTP"].map(|protocol| (port, protocol)))
        .map(|(port, protocol)| json!({"name": format!("p{port}"), "protocol": protocol, "port": 8080 + port}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "ports": ports, "endpoints": endpoints,
        "metadata": {"namespace": "default", "name": format!("{}-{}", name(number), random.below(3)),
            "labels": {"kubernetes.io/service-name": name(number)}}})
}

/// Changes one file of both worlds; what was done.
fn change(one: &World, other: &World, random: &mut Random) -> Result<String> {
    let number = random.below(SERVICES);
    let object = if random.one_in(2) { service(number, random) } else { slice(number, random) };
    let name = object.pointer("/metadata/name").and_then(Value::as_str).context("an object without a name")?;
    let file = format!("{name}.json");
    if one.manifests().join(&file).exists() && random.one_in(3) {
        [one, other].into_iter().try_for_each(|world| world.remove(&file))?;
        return Ok(format!("removed {file}"));
    }
    [one, other].into_iter().try_for_each(|world| world.write(&file, &object.to_string()))?;
    Ok(format!("wrote {file}: {object}"))
}

/// The state of a world's node, less the addresses that come from the random ones of its devices.
fn state(world: &World) -> Result<KernelState> {
    let mut state = KernelState::of(world.node())?;
    state.addresses.retain(|address| !address.contains("inet6 fe80:"));
    Ok(state)
}

/// One pass of an agent; its log. Services that claim the same address make it end with 5, which is no harm here.
fn pass(world: &World) -> Result<String> {
    let output = world.run_once(&["--log-level", "debug"])?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(matches!(output.status.code(), Some(0 | 5)), "{}:\n{log}", output.status);
    Ok(log)
}

fn live(seed: u64) {
    World::test(|world| {
        let fresh = World::new()?;
        let mut random = Random::new(seed);
        for world in [world, &fresh] {
            world.write("node.yaml", &node().to_string())?;
        }
        let agent = started(world, &[])?;
        let changes = (0..CHANGES).map(|_| change(world, &fresh, &mut random)).collect::<Result<Vec<_>>>()?;
        pass(&fresh)?;
        let wanted = state(&fresh)?;
        ensure!(wanted.virtual_servers.len() > 10, "too little came of it: {wanted:?}");
        eventually(PATIENCE, || ensure_same(&wanted, &state(world)?, "it differs from a fresh start"))
            .with_context(|| format!("after\n{}", changes.join("\n")))?;

        agent.terminate()?;
        let log = pass(world)?;
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
    let open = |family| Held::open(&client, Protocol::Tcp, &target(vip(family, 90), 80), 20, Duration::from_millis(300));
    let held = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    // A busy guest loses a first packet now and then, which is sent again after a second.
    let patient = ["--interval-ms", "120", "--timeout-ms", "4000"];
    let call = |family| client.keep_calling_with(Protocol::Tcp, &target(vip(family, 90), 81), &patient);
    let calls = Family::ALL.into_iter().map(call).collect::<Result<Vec<_>>>()?;

    let begun = Instant::now();
    let mut changes = Vec::new();
    while begun.elapsed() < KILLING {
        for _ in 0..KILLS {
            for _ in 0..=random.below(3) {
                changes.push(change(world, &fresh, &mut random)?);
            }
            thread::sleep(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
            agent.kill()?;
            agent = world.agent(&[])?;
        }
        pass(&fresh)?;
        let wanted = state(&fresh)?;
        eventually(PATIENCE, || ensure_same(&wanted, &state(world)?, "it differs from one that was not killed"))
            .with_context(|| format!("after\n{}", changes.join("\n")))?;
        held.iter().try_for_each(|held| held.go_on(40))?;
    }
    calls.into_iter().try_for_each(|calls| ensure_all_answered(&calls.stop()?))
}

#[test]
fn a4_an_agent_that_is_killed_at_random_moments_converges_and_harms_no_connection() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = u64::from(now.subsec_nanos()) << 32 | u64::from(now.subsec_nanos());
    World::test(|world| kills(world, seed).with_context(|| format!("with the seed {seed:#x}")));
}
