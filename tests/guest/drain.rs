//! Real servers that leave keep their connections for a while.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{NODE_V4, On, Pod, Process, Protocol, Result, World, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a line every tenth of a second and says "held" when it comes back, "lost" when it does not.
pub(crate) const CLIENT: &str = "exec 3<>/dev/tcp/10.96.0.10/80 || exit 1
while echo ping >&3 2>/dev/null && read -t 3 -u 3 line 2>/dev/null; do echo held; sleep 0.1; done; echo lost";

fn slice(pods: &[&Pod]) -> String {
    let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080);
    pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
}

/// Two pods that echo, behind a Service, and a client whose connection one of them has: that pod comes first.
fn connect(world: &World, arguments: &[&str]) -> Result<([Pod; 2], Vec<Process>, Process)> {
    let [a, b] = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
    let client = world.pod("client", On::Node)?;
    let echo = ["busybox", "nc", "-ll", "-p", "8080", "-e", "cat"];
    let mut processes = vec![a.start(&echo)?, b.start(&echo)?];
    world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())?;
    world.write("web.yaml", &Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080).to_string())?;
    world.write("endpoints.yaml", &slice(&[&a, &b]))?;
    processes.push(world.agent(arguments)?.into_process());
    eventually(PATIENCE, || {
        let table = world.node().exec(&["ipvsadm", "-Sn"])?;
        ensure!(table.matches("-w 1").count() == 2, "{table}");
        Ok(())
    })?;
    let mut connection = client.start(&["bash", "-c", CLIENT])?;
    connection.wait_for("held", PATIENCE)?;
    let table = world.node().exec(&["ipvsadm", "-Ln"])?;
    let busy = table.lines().find(|line| line.contains("Masq    1      1")).context(table.clone())?;
    let pods = if busy.contains("10.244.1.") { [a, b] } else { [b, a] };
    Ok((pods, processes, connection))
}

/// How many answers a client has had, whose connection is not to be lost.
pub(crate) fn held(connection: &Process) -> Result<usize> {
    let output = connection.output()?;
    ensure!(!output.contains("lost"), "the connection was lost after {} answers", output.matches("held").count());
    Ok(output.matches("held").count())
}

fn weight(world: &World, pod: &Pod) -> Result<Option<String>> {
    let table = world.node().exec(&["ipvsadm", "-Sn"])?;
    let real = format!("{}:8080", pod.address(testkit::Family::V4));
    Ok(table.lines().find(|line| line.contains(&real)).and_then(|line| Some(line.rsplit_once("-w ")?.1.trim().to_owned())))
}

#[test]
fn a2_a3_a_real_server_that_leaves_keeps_its_connection_and_gets_its_weight_back_in_place() {
    World::test(|world| {
        let ([busy, other], _processes, connection) = connect(world, &[])?;
        for _ in 0..3 {
            world.write("endpoints.yaml", &slice(&[&other]))?;
            eventually(PATIENCE, || {
                ensure!(weight(world, &busy)?.as_deref() == Some("0"));
                Ok(())
            })?;
            let before = held(&connection)?;
            eventually(PATIENCE, || {
                ensure!(held(&connection)? >= before + 15, "only {} answers", held(&connection)?);
                Ok(())
            })?;
            world.write("endpoints.yaml", &slice(&[&busy, &other]))?;
            eventually(PATIENCE, || {
                ensure!(weight(world, &busy)?.as_deref() == Some("1"));
                Ok(())
            })?;
        }
        held(&connection).map(drop)
    });
}

#[test]
fn a2_at_its_deadline_a_real_server_goes_and_its_clients_are_told() {
    World::test(|world| {
        let ([busy, other], _processes, mut connection) = connect(world, &["--drain-timeout", "3s"])?;
        world.write("endpoints.yaml", &slice(&[&other]))?;
        connection.wait_for("lost", PATIENCE)?;
        ensure!(weight(world, &busy)?.is_none(), "the real server is still there");
        ensure!(weight(world, &other)?.as_deref() == Some("1"));
        Ok(())
    });
}

#[test]
fn a4_a_drain_goes_on_after_a_restart_and_an_idle_server_goes_at_once() {
    World::test(|world| {
        let ([busy, other], mut processes, connection) = connect(world, &[])?;
        world.write("endpoints.yaml", &slice(&[&other]))?;
        eventually(PATIENCE, || {
            ensure!(weight(world, &busy)?.as_deref() == Some("0"));
            Ok(())
        })?;
        processes.pop().context("the agent")?.kill()?;
        let _agent = world.agent(&[])?;
        let before = held(&connection)?;
        eventually(PATIENCE, || {
            ensure!(held(&connection)? >= before + 30);
            Ok(())
        })?;
        ensure!(weight(world, &busy)?.as_deref() == Some("0"), "the drain did not go on");

        // The other one has no connections.
        world.write("endpoints.yaml", &slice(&[&busy]))?;
        eventually(PATIENCE, || {
            ensure!(weight(world, &other)?.is_none() && weight(world, &busy)?.as_deref() == Some("1"));
            Ok(())
        })?;
        held(&connection).map(drop)
    });
}
