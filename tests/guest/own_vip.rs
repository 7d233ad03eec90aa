//! An API server that is reached through the Service `default/kubernetes`, which the agent serves itself.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{NODE2_V4, On, Pod, Process, Protocol, Result, World, answers, eventually, shares};

use crate::outage::{FORGET, is_well};
use crate::support::{PATIENCE, POD_PORT, node, serving, target, virtual_servers};

const WEB: &str = "10.96.0.10:80";
/// The API server as Kubernetes names it.
const OWN: &str = "10.96.0.1:443";
/// Where it is.
const PORT: u16 = 6443;

/// Its answers go by the node's own IPVS: a first packet that came too early is sent again after up to 16 s, and given up after 30 s.
const UPSTREAM: Duration = Duration::from_secs(90);

fn web(pod: &Pod) -> String {
    EndpointSlice::ipv4("web").port("http", Protocol::Tcp, POD_PORT).pod(pod).to_string()
}

/// A cluster whose API server is on the other node, and what the agent is to call it.
struct Cluster<'a> {
    world: &'a World,
    _server: Process,
}

impl<'a> Cluster<'a> {
    fn new(world: &'a World, pod: &Pod) -> Result<Self> {
        let own = Service::new("kubernetes").cluster_ip("10.96.0.1").port("https", Protocol::Tcp, 443, PORT);
        let own_slice =
            EndpointSlice::ipv4("kubernetes").port("https", Protocol::Tcp, PORT).endpoint(&NODE2_V4.to_string(), "node2");
        let service = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, POD_PORT);
        world.write("cluster.yaml", &format!("{}{own}{own_slice}{service}", node()))?;
        world.write("endpoints.yaml", &web(pod))?;
        let server = world.api_server_on(world.node2(), &["--listen", &target(NODE2_V4, PORT), "--interval-ms", "100"])?;
        Ok(Self { world, _server: server })
    }

    fn state(&self) -> PathBuf {
        self.world.manifests().with_file_name("state")
    }

    /// Has agents call the API server by its VIP from now on.
    fn call_by_vip(&self) -> Result {
        let (path, direct) = (self.world.kubeconfig(), format!("http://{}", target(NODE2_V4, PORT)));
        let kubeconfig = fs::read_to_string(&path)?;
        ensure!(kubeconfig.contains(&direct), "{kubeconfig}");
        fs::write(&path, kubeconfig.replace(&direct, &format!("http://{OWN}"))).context("cannot write the kubeconfig")
    }

    fn is_served_by(&self, pod: &Pod) -> Result {
        eventually(UPSTREAM, || {
            let served = answers(self.world.ext().call(Protocol::Tcp, WEB, 2)?)?;
            let shares = shares(&served);
            ensure!(shares.len() == 1 && shares.contains_key(pod.name()), "{shares:?}");
            Ok(())
        })
    }

    /// A change arrives, and on a connection that the node's IPVS knows as one to the VIP.
    fn change_arrives(&self, pod: &Pod) -> Result {
        self.world.write("endpoints.yaml", &web(pod))?;
        self.is_served_by(pod)?;
        let connections = self.world.node().exec(&["ipvsadm", "-Lnc"])?;
        let (server, established) = (target(NODE2_V4, PORT), "ESTABLISHED");
        let is_own = |line: &str| [OWN, &server, established].iter().all(|text| line.contains(text));
        ensure!(connections.lines().any(is_own), "no connection to {OWN}:\n{connections}");
        Ok(())
    }
}

#[test]
fn j10_the_api_server_behind_its_own_vip_does_not_lock_itself_out() {
    World::test(|world| {
        let ((a, _serve_a), (b, _serve_b)) = (serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?);
        let cluster = Cluster::new(world, &a)?;
        let state = cluster.state().display().to_string();
        let saving = ["--state-dir", &state];
        // The VIP has to be made once: by an agent that is led to the API server directly.
        let agent = world.agent_of_cluster(&saving)?;
        cluster.is_served_by(&a)?;
        // What comes after everything else is saved after it.
        world.write(
            "last.yaml",
            &Service::new("last").cluster_ip("10.96.0.99").port("http", Protocol::Tcp, 80, POD_PORT).to_string(),
        )?;
        eventually(PATIENCE, || {
            let saved = ["base", "journal"].map(|file| fs::read(cluster.state().join(file)).unwrap_or_default()).concat();
            ensure!(String::from_utf8_lossy(&saved).contains("default/last"), "not all is saved");
            Ok(())
        })?;
        cluster.call_by_vip()?;

        // On the kernel as it is, with and without anything saved.
        agent.kill()?;
        for (arguments, pod) in [(&saving[..], &b), (&[], &a), (&saving, &b)] {
            let agent = world.agent_of_cluster(arguments)?;
            cluster.change_arrives(pod)?;
            agent.kill()?;
        }

        // On a kernel that has nothing: what was saved has the VIP.
        world.node().exec(&["sh", "-c", FORGET])?;
        let mut agent = world.agent_of_cluster(&saving)?;
        agent.process().wait_for("served is what was saved", PATIENCE)?;
        cluster.is_served_by(&b)?;
        agent.process().wait_for("everything has been listed; what was saved is not needed any more", UPSTREAM)?;
        cluster.change_arrives(&a)
    });
}

/// Nothing leads to the VIP of an API server that only an agent could serve which knows nothing of it.
#[test]
fn j10_a_node_that_has_nothing_reaches_the_api_server_by_an_endpoint() {
    World::test(|world| {
        let ((a, _serve_a), (b, _serve_b)) = (serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?);
        let cluster = Cluster::new(world, &a)?;
        cluster.call_by_vip()?;
        let agent = world.agent_of_cluster(&[])?;
        eventually(PATIENCE, || {
            ensure!(is_well(world.node(), "livez")?, "the agent is not up");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(5));
        ensure!(virtual_servers(world.node())?.is_empty() && !is_well(world.node(), "healthz")?, "how does it know?");
        agent.kill()?;

        let _agent = world.agent_of_cluster(&["--api-endpoints", &format!("http://{}", target(NODE2_V4, PORT))])?;
        cluster.is_served_by(&a)?;
        ensure!(virtual_servers(world.node())?.iter().any(|line| line.contains(OWN)), "the VIP is not served");
        world.write("endpoints.yaml", &web(&b))?;
        cluster.is_served_by(&b)
    });
}
