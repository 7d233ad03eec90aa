//! Real servers that leave keep their connections for a while.

use std::time::Duration;

use crate::support::{lines, started};
use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{NODE_V4, On, Pod, Process, Protocol, Result, World, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a line every tenth of a second and says "held" when it comes back, "lost" when it does not.
pub(crate) const CLIENT: &str = "exec 3<>/dev/tcp/10.96.0.10/80 || exit 1
while echo ping >&3 2>/dev/null && read -t 3 -u 3 line 2>/dev/null; do echo held; sleep 0.1; done; echo lost";

pub(crate) fn slice(pods: &[&Pod]) -> String {
    let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080);
    pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
}

/// The same, beside a pod that terminates.
fn slice_beside(pods: &[&Pod], terminating: &Pod) -> String {
    let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080);
    pods.iter().fold(slice, |slice, pod| slice.pod(pod)).pod(terminating).terminating().to_string()
}

fn service() -> Service {
    Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080)
}

/// Two pods that echo, behind a Service, and a client whose connection one of them has: that pod comes first.
pub(crate) fn connect(world: &World, arguments: &[&str]) -> Result<([Pod; 2], Vec<Process>, Process)> {
    connect_to(world, &service(), arguments)
}

fn connect_to(world: &World, service: &Service, arguments: &[&str]) -> Result<([Pod; 2], Vec<Process>, Process)> {
    let [a, b] = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
    let client = world.pod("client", On::Node)?;
    let echo = ["busybox", "nc", "-ll", "-p", "8080", "-e", "cat"];
    let mut processes = vec![a.start(&echo)?, b.start(&echo)?];
    world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())?;
    world.write("web.yaml", &service.to_string())?;
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
            world.write("endpoints.yaml", &slice_beside(&[&other], &busy))?;
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
        world.write("endpoints.yaml", &slice_beside(&[&other], &busy))?;
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

/// What new callers get at the VIP, inside and outside.
fn ensure_refused(world: &World) -> Result {
    for caller in [world.node(), world.ext()] {
        for reply in caller.call(Protocol::Tcp, "10.96.0.10:80", 2)? {
            ensure!(reply.outcome.as_ref().is_err_and(|error| error == "refused"), "{}: {reply:?}", caller.name());
            ensure!(reply.took < Duration::from_millis(900), "{}: refused after {:?}", caller.name(), reply.took);
        }
    }
    Ok(())
}

/// Waits until nothing of the Service is left, as after a start without it.
fn gone(world: &World) -> Result {
    eventually(PATIENCE, || {
        let node = world.node();
        let left = [
            node.exec(&["ipvsadm", "-Sn"])?,
            node.exec(&["ip", "route", "show", "table", "local", "proto", "71"])?,
            lines(&node.exec(&["ipset", "save"])?).filter(|line| line.starts_with("add ")).collect(),
        ];
        ensure!(left.iter().all(|text| text.trim().is_empty()), "{left:?}");
        Ok(())
    })
}

#[test]
fn a5_a_deleted_service_keeps_its_connections_and_refuses_new_ones_at_once() {
    // Schedulers that would choose another server, or remember one.
    let sticky = service().spec("sessionAffinity: ClientIP");
    for (service, scheduler) in [(service(), "rr"), (service(), "sh"), (sticky, "mh")] {
        World::test(|world| {
            let (_pods, mut processes, mut connection) = connect_to(world, &service, &["--scheduler", scheduler])?;
            let agent = processes.len() - 1;
            world.remove("web.yaml")?;
            eventually(PATIENCE, || ensure_refused(world)).context("after the Service is deleted")?;
            let before = held(&connection)?;
            eventually(PATIENCE, || {
                ensure!(held(&connection)? >= before + 30, "only {} answers", held(&connection)?);
                ensure_refused(world)
            })?;

            // The kernel knows, so another process does as well.
            processes.remove(agent).kill()?;
            processes.push(started(world, &["--scheduler", scheduler])?.into_process());
            let before = held(&connection)?;
            eventually(PATIENCE, || {
                ensure!(held(&connection)? >= before + 30, "only {} answers after a restart", held(&connection)?);
                ensure_refused(world)
            })?;

            connection.kill()?;
            gone(world)
        });
    }
}

/// A download of fifteen seconds, of which the client says beforehand that it sends no more.
#[test]
fn a5_a_deleted_service_keeps_connections_of_which_one_half_is_closed() {
    const DOWNLOAD: &str = "cat >/dev/null; for i in $(seq 30); do echo part $i; sleep 0.5; done; echo all of it";
    World::test(|world| {
        let (pod, client) = (world.pod("a", On::Node2)?, world.pod("client", On::Node)?);
        let _server = pod.start(&["busybox", "nc", "-ll", "-p", "8080", "-e", "sh", "-c", DOWNLOAD])?;
        world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())?;
        world.write("endpoints.yaml", &slice(&[&pod]))?;
        world.write("web.yaml", &service().to_string())?;
        let _agent = started(world, &[])?;
        let mut download = client.start(&["sh", "-c", "echo request | busybox nc 10.96.0.10 80"])?;
        download.wait_for("part 1", PATIENCE)?;
        let listed = world.node().exec(&["ipvsadm", "-Lnc"])?;
        ensure!(listed.contains("CLOSE_WAIT"), "{listed}");
        world.remove("web.yaml")?;
        eventually(PATIENCE, || ensure_refused(world))?;
        download.wait_for("all of it", PATIENCE)?;
        // And then it is over, long before the kernel forgets the connection.
        gone(world)
    });
}

#[test]
fn a5_a_deleted_service_ends_at_its_deadline() {
    World::test(|world| {
        let (_pods, _processes, mut connection) = connect(world, &["--drain-timeout", "8s"])?;
        world.remove("web.yaml")?;
        eventually(PATIENCE, || ensure_refused(world))?;
        held(&connection)?;
        connection.wait_for("lost", PATIENCE)?;
        gone(world)
    });
}

#[test]
fn a5_a_service_that_comes_back_goes_on_with_its_connections() {
    World::test(|world| {
        let ([busy, _other], _processes, connection) = connect(world, &[])?;
        for _ in 0..3 {
            world.remove("web.yaml")?;
            eventually(PATIENCE, || ensure_refused(world))?;
            world.write("web.yaml", &service().to_string())?;
            eventually(PATIENCE, || {
                ensure!(weight(world, &busy)?.as_deref() == Some("1"));
                Ok(())
            })?;
        }
        let before = held(&connection)?;
        eventually(PATIENCE, || {
            ensure!(held(&connection)? >= before + 5);
            Ok(())
        })
    });
}
