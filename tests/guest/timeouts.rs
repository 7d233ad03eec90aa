//! How long the kernel keeps idle connections.

use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Netns, On, Protocol, Result, World, eventually};

use crate::support::{PATIENCE, node, started};

/// Says whether an answer still comes after ten seconds without a word.
const CLIENT: &str = "exec 3<>/dev/tcp/10.96.0.10/80 || exit 1
echo ping >&3; read -t 5 -u 3 line && echo connected
sleep 10
if echo ping >&3 2>/dev/null && read -t 5 -u 3 line 2>/dev/null; then echo kept; else echo lost; fi";

/// For TCP, TCP after a FIN, and UDP, in seconds.
fn timeouts(node: &Netns) -> Result<String> {
    let shown = node.exec(&["ipvsadm", "-L", "--timeout"])?;
    let (_, timeouts) = shown.trim_end().split_once(": ").ok_or_else(|| anyhow::anyhow!("{shown}"))?;
    Ok(timeouts.to_owned())
}

#[test]
fn a6_time_outs_are_set_and_set_again_when_another_tool_resets_them() {
    World::test(|world| {
        world.write("node.yaml", &node().to_string())?;
        let host = world.node();
        host.exec(&["ipvsadm", "--set", "900", "100", "200"])?;
        let agent = started(world, &[])?;
        ensure!(timeouts(host)? == "8100 100 200", "{}", timeouts(host)?);
        ensure!(agent.terminate()?.success());
        ensure!(timeouts(host)? == "8100 100 200", "{}", timeouts(host)?);

        let chosen =
            ["--audit-period", "1s", "--ipvs-tcp-timeout", "1h", "--ipvs-tcpfin-timeout", "30s", "--ipvs-udp-timeout", "40s"];
        let mut agent = started(world, &chosen)?;
        ensure!(timeouts(host)? == "3600 30 40", "{}", timeouts(host)?);
        host.exec(&["ipvsadm", "--set", "5", "5", "5"])?;
        eventually(PATIENCE, || {
            ensure!(timeouts(host)? == "3600 30 40", "{}", timeouts(host)?);
            Ok(())
        })?;
        agent.process().wait_for("another tool has changed", PATIENCE)
    });
}

#[test]
fn a6_an_idle_connection_lives_as_long_as_the_time_out_says() {
    for (arguments, ends) in [(&["--ipvs-tcp-timeout", "3s"][..], "lost"), (&[], "kept")] {
        World::test(|world| {
            let (pod, client) = (world.pod("a", On::Node2)?, world.pod("client", On::Node)?);
            let _echo = pod.start(&["busybox", "nc", "-ll", "-p", "8080", "-e", "cat"])?;
            let service = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080);
            let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(&pod);
            world.write("web.yaml", &format!("{}{service}{slice}", node()))?;
            // What it was set to before does not count.
            world.node().exec(&["ipvsadm", "--set", "3", "3", "3"])?;
            let _agent = started(world, arguments)?;
            let mut connection = eventually(Duration::from_secs(20), || {
                let mut connection = client.start(&["bash", "-c", CLIENT])?;
                connection.wait_for("connected", Duration::from_secs(5))?;
                Ok(connection)
            })?;
            connection.wait_for(ends, PATIENCE)
        });
    }
}
