//! What an agent may do besides its work: next to nothing.

use std::process::Output;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Netns, On, Protocol, Result, World, answers, eventually};

use crate::support::{PATIENCE, node, serving, target, vip};

/// Runs the agent once with these capabilities and no way to get others, as a container does that may not escalate.
fn run_with(world: &World, node: &Netns, capabilities: &[&str]) -> Result<Output> {
    let set = capabilities.iter().fold("-all".to_owned(), |set, capability| format!("{set},+{capability}"));
    let manifests = world.manifests().display().to_string();
    let bounding = format!("--bounding-set={set}");
    let inheritable = format!("--inh-caps={set}");
    node.try_exec(&[
        "setpriv",
        "--no-new-privs",
        &bounding,
        &inheritable,
        "kube-ipvs",
        "run",
        "--once",
        "--node-name",
        "node",
        "--manifests",
        &manifests,
    ])
}

#[test]
fn two_capabilities_are_enough_and_each_is_needed() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        world.write("node.yaml", &node().to_string())?;
        let address = vip(testkit::Family::V4, 10);
        world.write(
            "web.yaml",
            &Service::new("web").cluster_ip(&address.to_string()).port("http", Protocol::Tcp, 80, 8080).to_string(),
        )?;
        world.write("endpoints.yaml", &EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(&pod).to_string())?;
        for (capabilities, lacking) in [(&["net_admin"][..], "CAP_NET_RAW"), (&["net_raw"], "CAP_NET_ADMIN")] {
            let output = run_with(world, world.node(), capabilities)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(4), "{}: {said}", output.status);
            ensure!(said.contains(&format!("{lacking}: this process lacks the capability")), "{said}");
        }
        let output = run_with(world, world.node(), &["net_admin", "net_raw"])?;
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        let replies = world.node().call(Protocol::Tcp, &target(address, 80), 2)?;
        ensure!(replies.iter().all(|reply| reply.outcome.is_ok()), "{replies:?}");
        Ok(())
    });
}

#[test]
fn what_takes_more_privilege_is_done_by_init() {
    World::test(|world| {
        let node = world.node();
        node.exec(&["sh", "-c", "echo 0 >/proc/sys/net/ipv4/vs/conntrack; echo 0 >/proc/sys/net/ipv4/ip_forward"])?;
        let said = world.kube_ipvs(&["init"])?;
        ensure!(said.contains("module ip_vs is there") && said.contains("set net.ipv4.vs.conntrack from 0 to 1"), "{said}");
        let values = node.exec(&["cat", "/proc/sys/net/ipv4/vs/conntrack", "/proc/sys/net/ipv4/ip_forward"])?;
        ensure!(values == "1\n1\n", "{values}");

        // In a container that is not privileged.
        node.exec(&["sh", "-c", "echo 0 >/proc/sys/net/ipv4/vs/conntrack"])?;
        let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && kube-ipvs init";
        let output = node.try_exec(&["unshare", "-m", "sh", "-c", read_only])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(4), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        ensure!(
            said.contains("cannot set net.ipv4.vs.conntrack from 0 to 1 (/proc/sys is read-only here; run `kube-ipvs init`"),
            "{said}"
        );
        Ok(())
    });
}

/// With nothing to write to but /run, as in a container with a read-only root file system.
#[test]
fn a_read_only_root_file_system_is_enough() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        let address = vip(testkit::Family::V4, 10);
        let service = Service::new("web").cluster_ip(&address.to_string()).port("http", Protocol::Tcp, 80, 8080);
        let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(&pod);
        world.write("web.yaml", &format!("{}{service}{slice}", node()))?;
        let read_only = "for mount in / /tmp /dev; do mount -o remount,ro,bind $mount || exit 1; done
            for place in / /tmp /dev /root; do ! touch $place/x 2>/dev/null || exit 1; done
            exec kube-ipvs run --node-name node --manifests $0 --cluster-cidr 10.244.0.0/16";
        let manifests = world.manifests().display().to_string();
        let mut agent = world.node().start(&["unshare", "-m", "sh", "-c", read_only, &manifests])?;
        agent.wait_for("changed the kernel's state", PATIENCE)?;
        eventually(PATIENCE, || answers(world.node().call(Protocol::Tcp, &target(address, 80), 2)?))?;
        let status = world.kube_ipvs(&["status"])?;
        ensure!(status.contains("default/web:http"), "{status}");
        ensure!(!agent.output()?.contains("Read-only file system"), "{}", agent.output()?);
        agent.signal("TERM")?;
        ensure!(agent.wait(PATIENCE)?.success(), "it did not end well");
        Ok(())
    });
}
