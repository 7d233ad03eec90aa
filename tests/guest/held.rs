//! Connections that are held while real servers come, go and die.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{Family, NODE2_V4, Netns, On, Pod, Process, Protocol, Result, World, eventually};

use crate::support::{PATIENCE, POD_PORT, node, started, target, vip};

const PORT: u16 = 80;

/// Connections to a server that echoes, each with a line on its way or soon.
pub(crate) struct Held(Process);

impl Held {
    /// Opens connections; each sends its next line `interval` after the last has come back.
    pub(crate) fn open(caller: &Netns, protocol: Protocol, target: &str, connections: u32, interval: Duration) -> Result<Self> {
        let (protocol, connections, interval) = (protocol.to_string(), connections.to_string(), interval.as_millis().to_string());
        let options = ["--connections", &connections, "--interval-ms", &interval];
        let mut held = caller.start(&[&["probe", "hold", &protocol, target], &options[..]].concat())?;
        held.wait_for("connected", PATIENCE)?;
        Ok(Self(held))
    }

    /// How many lines have come back, none of the connections being lost.
    pub(crate) fn lines(&self) -> Result<u64> {
        let output = self.0.output()?;
        let lost: Vec<_> = output.lines().filter(|line| line.starts_with("lost")).collect();
        ensure!(lost.is_empty(), "{} connections are lost: {lost:?}", lost.len());
        // The last line may be half written.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let count = whole.lines().rev().find_map(|line| line.strip_prefix("held: "));
        count.map_or(Ok(0), str::parse).context("no count of lines")
    }

    /// Waits until some more lines have come back, none of the connections being lost.
    pub(crate) fn go_on(&self, lines: u64) -> Result {
        let before = self.lines()?;
        eventually(PATIENCE, || {
            // An error here would be taken for one that may pass.
            let now = match self.lines() {
                Ok(now) => now,
                Err(error) => return Ok(Err(error)),
            };
            ensure!(now >= before + lines, "{} lines came back", now - before);
            Ok(Ok(()))
        })?
    }

    /// Waits until a connection is lost; how.
    fn lost(&mut self) -> Result<String> {
        self.0.wait_for("lost: ", PATIENCE)?;
        eventually(PATIENCE, || {
            let output = self.0.output()?;
            let (_, rest) = output.split_once("lost: ").context("nothing is lost")?;
            Ok(rest.split_once('\n').context("half a line")?.0.to_owned())
        })
    }
}

/// A pod whose server echoes.
pub(crate) fn echoing(world: &World, name: &str, on: On) -> Result<(Pod, Process)> {
    let pod = world.pod(name, on)?;
    let port = POD_PORT.to_string();
    let mut server = pod.start(&["probe", "serve", "--name", name, "--port", &port, "--echo"])?;
    server.wait_for("ready\n", PATIENCE)?;
    Ok((pod, server))
}

/// A Service in both families with a port over TCP, or SCTP.
fn service(protocol: Protocol) -> Service {
    let service = Family::ALL.iter().fold(Service::new("web"), |service, family| service.cluster_ip(&vip(*family, 10).to_string()));
    service.port("web", protocol, PORT, POD_PORT)
}

/// What becomes of a pod's endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Ready,
    Unready,
    Terminating,
}

fn slices(protocol: Protocol, pods: &[(&Pod, Is)]) -> String {
    Family::ALL.map(|family| slice_of("web", family, protocol, pods)).concat()
}

fn slice_of(service: &str, family: Family, protocol: Protocol, pods: &[(&Pod, Is)]) -> String {
    let slice = EndpointSlice::of(service, family).port("web", protocol, POD_PORT);
    let with = |slice: EndpointSlice, (pod, is): &(&Pod, Is)| match is {
        Is::Ready => slice.pod(pod),
        Is::Unready => slice.pod(pod).unready(),
        Is::Terminating => slice.pod(pod).terminating(),
    };
    pods.iter().fold(slice, with).to_string()
}

/// The weights that a pod has everywhere; none where it is no real server.
fn weights(world: &World, pod: &Pod) -> Result<Vec<u32>> {
    let table = world.node().exec(&["ipvsadm", "-Sn"])?;
    let reals = Family::ALL.map(|family| format!("-r {} ", target(pod.address(family), POD_PORT)));
    let lines = table.lines().filter(|line| reals.iter().any(|real| line.contains(real)));
    let weight = |line: &str| line.rsplit_once("-w ").context("no weight")?.1.trim().parse().context("no number");
    lines.map(weight).collect()
}

fn has_weights(world: &World, pod: &Pod, wanted: &[u32]) -> Result {
    eventually(PATIENCE, || {
        let weights = weights(world, pod)?;
        ensure!(weights == wanted, "{} has the weights {weights:?}", pod.name());
        Ok(())
    })
}

/// A pod turns unready or ready again in twenty Services at once, 28 times; the next time comes when the kernel has it in all of them.
#[test]
fn a3_500_flips_of_readiness_cost_none_of_200_busy_connections() {
    const SERVICES: u8 = 20;
    const ROUNDS: u8 = 7;
    World::test(|world| {
        let [(a, _serve_a), (b, _serve_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let family = |number: u8| if number.is_multiple_of(2) { Family::V4 } else { Family::V6 };
        let names: Vec<_> = (0..SERVICES).map(|number| (number, format!("web-{number}"))).collect();
        let write = |is_a, is_b| {
            let pods = [(&a, is_a), (&b, is_b)];
            let slices = names.iter().map(|(number, name)| slice_of(name, family(*number), Protocol::Tcp, &pods));
            world.write("endpoints.yaml", &slices.collect::<String>())
        };
        let service = |(number, name): &(u8, String)| {
            let service = Service::new(name).cluster_ip(&vip(family(*number), 10 + number).to_string());
            service.port("web", Protocol::Tcp, PORT, POD_PORT).to_string()
        };
        let services = names.iter().map(service);
        world.write("web.yaml", &format!("{}{}", node(), services.collect::<String>()))?;
        write(Is::Ready, Is::Ready)?;
        let _server = world.api_server(&["--interval-ms", "100"])?;
        let _agent = world.agent_of_cluster(&[])?;
        let everywhere = |pod, weight| has_weights(world, pod, &[weight; SERVICES as usize]);
        everywhere(&a, 1)?;
        everywhere(&b, 1)?;

        let open = |(number, _): &(u8, String)| {
            Held::open(&client, Protocol::Tcp, &target(vip(family(*number), 10 + number), PORT), 10, Duration::from_millis(1000))
        };
        let held = names.iter().map(open).collect::<Result<Vec<_>>>()?;
        for _ in 0..ROUNDS {
            for (pod, is_a, is_b) in [(&a, Is::Unready, Is::Ready), (&b, Is::Ready, Is::Unready)] {
                write(is_a, is_b)?;
                everywhere(pod, 0)?;
                write(Is::Ready, Is::Ready)?;
                everywhere(pod, 1)?;
            }
        }
        held.iter().try_for_each(|held| held.go_on(10))
    });
}

/// Has a line come back, waits until it is told to go on, and then says how its next line ended, and after how long.
const IDLE_CLIENT: &str = "exec 3<>/dev/tcp/$0/80 || exit 1
echo ping >&3; read -t 5 -u 3 line && echo held
until [ -e /run/go ]; do sleep 0.1; done
begin=${EPOCHREALTIME//[!0-9]/}
echo ping >&3; read -t 20 -u 3 line
echo ended $? after $(( (${EPOCHREALTIME//[!0-9]/} - begin) / 1000 )) ms";

#[test]
fn e1_clients_of_a_server_that_died_are_told_by_a_reset_soon_after_its_short_deadline() {
    World::test(|world| {
        let (pod, _serve) = echoing(world, "a", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        world.write("web.yaml", &format!("{}{}", node(), service(Protocol::Tcp)))?;
        world.write("endpoints.yaml", &slices(Protocol::Tcp, &[(&pod, Is::Ready)]))?;
        let _agent = started(world, &["--vanished-drain-timeout", "2s"])?;
        let start = |family| client.start(&["bash", "-c", IDLE_CLIENT, &vip(family, 10).to_string()]);
        let mut idle = Family::ALL.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        idle.iter_mut().try_for_each(|idle| idle.wait_for("held", PATIENCE))?;
        let open = |family| Held::open(&client, Protocol::Tcp, &target(vip(family, 10), PORT), 1, Duration::from_millis(100));
        let mut busy = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;

        pod.exec(&["ip", "link", "set", "eth0", "down"])?;
        let died = Instant::now();
        world.write("endpoints.yaml", &slices(Protocol::Tcp, &[]))?;
        has_weights(world, &pod, &[0, 0])?;
        has_weights(world, &pod, &[])?;
        let gone = died.elapsed();
        ensure!(gone >= Duration::from_secs(2) && gone < Duration::from_secs(8), "the real servers were gone after {gone:?}");

        client.exec(&["touch", "/run/go"])?;
        for idle in &mut idle {
            idle.wait_for(" ms\n", PATIENCE)?;
            let output = idle.output()?;
            let (_, ended) = output.split_once("ended ").context("no end")?;
            let (status, rest) = ended.split_once(" after ").context("no status")?;
            let took: u64 = rest.split_whitespace().next().context("no time")?.parse()?;
            // The shell's `read` ends with more than 128 when its time is over.
            ensure!(status == "1" && output.contains("reset by peer") && took < 2000, "{output}");
        }
        // Those that had sent something learn it when they send that again, with the kernel's growing patience.
        for busy in &mut busy {
            let lost = busy.lost()?;
            ensure!(lost == "reset", "{lost}");
        }
        ensure!(died.elapsed() < Duration::from_secs(15), "busy clients learnt it after {:?}", died.elapsed());
        Ok(())
    });
}

/// Two pods leave alike, and clients are connected to both; then the node of one is lost.
#[test]
fn e1_who_leaves_on_a_node_that_is_not_ready_has_the_short_deadline() {
    World::test(|world| {
        let [(near, _serve_near), (far, _serve_far)] = [echoing(world, "near", On::Node)?, echoing(world, "far", On::Node2)?];
        let client = world.pod("client", On::Node)?;
        let nodes =
            |ready| world.write("nodes.yaml", &format!("{}{}", node(), Node::new("node2").internal_ip(NODE2_V4).ready(ready)));
        nodes(true)?;
        world.write("web.yaml", &service(Protocol::Tcp).to_string())?;
        world.write("endpoints.yaml", &slices(Protocol::Tcp, &[(&near, Is::Ready), (&far, Is::Ready)]))?;
        let _agent = started(world, &["--vanished-drain-timeout", "2s"])?;
        let open = |family| Held::open(&client, Protocol::Tcp, &target(vip(family, 10), PORT), 4, Duration::from_millis(200));
        let mut held = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;

        world.write("endpoints.yaml", &slices(Protocol::Tcp, &[(&near, Is::Unready), (&far, Is::Unready)]))?;
        has_weights(world, &far, &[0, 0])?;
        thread::sleep(Duration::from_secs(4));
        for pod in [&near, &far] {
            has_weights(world, pod, &[0, 0])?;
        }
        held.iter().try_for_each(|held| held.go_on(10))?;

        nodes(false)?;
        has_weights(world, &far, &[])?;
        has_weights(world, &near, &[0, 0])?;
        for held in &mut held {
            held.lost()?;
        }
        Ok(())
    });
}

/// Long after what datagrams would have, and with an annotation that says for how long at the most.
#[test]
fn i2_a2_sctp_drains_like_tcp_and_a_service_says_for_how_long() {
    World::test(|world| {
        let (pod, _serve) = echoing(world, "a", On::Node2)?;
        let (other, _serve_other) = echoing(world, "b", On::Node)?;
        let client = world.pod("client", On::Node)?;
        let write = |pods: &[(&Pod, Is)]| world.write("endpoints.yaml", &slices(Protocol::Sctp, pods));
        write(&[(&pod, Is::Ready)])?;
        world.write("web.yaml", &format!("{}{}", node(), service(Protocol::Sctp)))?;
        let _agent = started(world, &[])?;
        let open = |family| Held::open(&client, Protocol::Sctp, &target(vip(family, 10), PORT), 5, Duration::from_millis(200));
        let mut held = Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>()?;

        write(&[(&pod, Is::Terminating), (&other, Is::Ready)])?;
        has_weights(world, &pod, &[0, 0])?;
        thread::sleep(Duration::from_secs(4));
        has_weights(world, &pod, &[0, 0])?;
        held.iter().try_for_each(|held| held.go_on(20))?;
        write(&[(&pod, Is::Ready), (&other, Is::Ready)])?;
        has_weights(world, &pod, &[1, 1])?;
        held.iter().try_for_each(|held| held.go_on(20))?;

        world
            .write("web.yaml", &format!("{}{}", node(), service(Protocol::Sctp).annotation("kube-ipvs.io/drain-timeout", "3s")))?;
        // The manifests are read twice a second.
        thread::sleep(Duration::from_secs(1));
        write(&[(&pod, Is::Terminating), (&other, Is::Ready)])?;
        has_weights(world, &pod, &[0, 0])?;
        has_weights(world, &pod, &[])?;
        for held in &mut held {
            held.lost()?;
        }
        Ok(())
    });
}
