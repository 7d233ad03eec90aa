//! Starts without an API server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Agent, Family, Netns, On, Protocol, Result, World, answers, eventually, shares};

use crate::support::{
    KernelState, PATIENCE, POD_PORT, answered, ensure_all_answered, ensure_same, made, node, real_servers, serving, slices, target,
    vip, virtual_servers,
};

const WEB: &str = "10.96.0.10:80";

/// Takes everything from a node that an agent has put there, as a reboot does.
pub(crate) const FORGET: &str = "for tables in iptables ip6tables; do
    for table in nat filter mangle raw; do $tables -w -t $table -F; $tables -w -t $table -X; done
done
ipvsadm -C && ip link delete kube-ipvs0 && ipset destroy";

fn web(pod: &testkit::Pod) -> String {
    EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(pod).to_string()
}

fn metric(node: &Netns, name: &str) -> Result<String> {
    let metrics = node.exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:10249/metrics"])?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("there is no {name}"))?.to_owned())
}

/// Whether an agent answers 200 to `healthz` or `livez`.
pub(crate) fn is_well(node: &Netns, path: &str) -> Result<bool> {
    let url = format!("http://127.0.0.1:10256/{path}");
    Ok(node.try_exec(&["wget", "-q", "-O", "-", &url])?.status.success())
}

/// The cluster of these tests: where its manifests go, and where agents save what an API server tells of them.
struct Cluster<'a> {
    world: &'a World,
    state: PathBuf,
}

impl<'a> Cluster<'a> {
    /// With the Service `web` and its endpoint, and the Service `other` without any.
    fn new(world: &'a World, pod: &testkit::Pod) -> Result<Self> {
        let service = |name: &str, ip: &str| Service::new(name).cluster_ip(ip).port("http", Protocol::Tcp, 80, 8080).to_string();
        world.write("node.yaml", &node().to_string())?;
        world.write("web.yaml", &service("web", "10.96.0.10"))?;
        world.write("endpoints.yaml", &web(pod))?;
        world.write("other.yaml", &service("other", "10.96.0.11"))?;
        Ok(Self { world, state: world.manifests().with_file_name("state") })
    }

    fn agent(&self) -> Result<Agent> {
        self.world.agent_of_cluster(&["--state-dir", &self.state.display().to_string()])
    }

    /// Waits until everything is served and saved.
    fn is_saved(&self) -> Result {
        let calls = self.world.node().keep_calling_with(Protocol::Tcp, WEB, &["--interval-ms", "100", "--timeout-ms", "400"])?;
        answered(&calls)?;
        eventually(PATIENCE, || {
            let saved = metric(self.world.node(), "kube_ipvs_saved_state_timestamp_seconds")?;
            let files = [std::fs::read(self.state.join("base"))?, std::fs::read(self.state.join("journal"))?].concat();
            let files = String::from_utf8_lossy(&files).into_owned();
            ensure!(saved != "0" && ["default/web", "default/other", "10.244."].iter().all(|text| files.contains(text)), "{files}");
            Ok(())
        })
    }
}

#[test]
fn j10_a_restart_without_an_api_server_takes_nothing_from_what_the_kernel_holds() {
    World::test(|world| {
        let ((a, _serve_a), (b, _serve_b)) = (serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?);
        let cluster = Cluster::new(world, &a)?;
        let mut server = world.api_server(&[])?;
        let agent = cluster.agent()?;
        cluster.is_saved()?;
        server.kill()?;
        agent.kill()?;
        // As if the last that was told had not been saved: another endpoint, other weights, a Service that is gone from what was saved.
        let (a, b) = (target(a.address(Family::V4), 8080), target(b.address(Family::V4), 8080));
        let node = world.node();
        node.exec(&["ipvsadm", "-a", "-t", WEB, "-r", &b, "-m", "-w", "1"])?;
        node.exec(&["ipvsadm", "-e", "-t", WEB, "-r", &a, "-m", "-w", "0"])?;
        let before = KernelState::of(node)?;

        let mut agent = cluster.agent()?;
        agent.process().wait_for("served is what was saved", PATIENCE)?;
        // Longer than anything takes that follows from it.
        std::thread::sleep(Duration::from_secs(5));
        ensure_same(&before, &KernelState::of(node)?, "a start from what was saved has changed the kernel's state")?;

        let _server = world.api_server(&["--resource-version", "1000"])?;
        eventually(PATIENCE, || {
            let servers = real_servers(node, "-t", WEB)?;
            ensure!(servers.iter().any(|server| server.starts_with(&a) && server.ends_with("-w 1")), "{servers:?}");
            ensure!(!servers.iter().any(|server| server.starts_with(&b) && !server.ends_with("-w 0")), "{servers:?}");
            Ok(())
        })
    });
}

/// An agent that has saved nothing knows of nothing then, and takes that for no reason to remove anything. It is alive, and not to be relied on.
#[test]
fn j10_a_restart_without_an_api_server_and_without_saved_state_changes_nothing() {
    World::test(|world| {
        let ((a, _serve_a), (b, _serve_b)) = (serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?);
        let client = world.pod("client", On::Node)?;
        let web = Family::ALL.iter().fold(Service::new("web"), |web, family| web.cluster_ip(&vip(*family, 10).to_string()));
        let web = web.port(&Protocol::Tcp.to_string(), Protocol::Tcp, 80, POD_PORT);
        world.write("web.yaml", &format!("{}{web}{}", node(), slices("web", &[&a, &b])))?;
        let mut server = world.api_server(&[])?;
        let agent = world.agent_of_cluster(&[])?;
        let call = |family| {
            let options = ["--interval-ms", "100", "--timeout-ms", "15000"];
            client.keep_calling_with(Protocol::Tcp, &target(vip(family, 10), 80), &options)
        };
        let is_served = |family: &Family| -> Result {
            eventually(PATIENCE, || answers(client.call(Protocol::Tcp, &target(vip(*family, 10), 80), 1)?).map(drop))
        };
        Family::ALL.iter().try_for_each(is_served)?;
        let calls = Family::ALL.into_iter().map(call).collect::<Result<Vec<_>>>()?;
        server.kill()?;
        agent.kill()?;
        let before = KernelState::of(world.node())?;

        let mut agent = world.agent_of_cluster(&[])?;
        // Of each kind it has asked once and more.
        agent.process().wait_for("cannot watch", PATIENCE)?;
        eventually(PATIENCE, || {
            ensure!(is_well(world.node(), "livez")?, "not up");
            Ok(())
        })?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            ensure!(is_well(world.node(), "livez")?, "a restart would not help");
            ensure!(!is_well(world.node(), "healthz")?, "nothing is known");
            ensure_same(&before, &KernelState::of(world.node())?, "a start from nothing has changed the kernel's state")?;
        }
        calls.iter().try_for_each(|calls| made(calls, 5))?;

        let _server = world.api_server(&["--resource-version", "1000"])?;
        eventually(PATIENCE, || {
            ensure!(is_well(world.node(), "healthz")?, "not synchronised");
            Ok(())
        })?;
        ensure_same(&before, &KernelState::of(world.node())?, "all is known again, and the same")?;
        for calls in calls {
            ensure_all_answered(&calls.stop()?)?;
        }
        Ok(())
    });
}

#[test]
fn j10_a_node_that_comes_up_without_an_api_server_serves_what_was_saved() {
    World::test(|world| {
        let ((a, _serve_a), (b, _serve_b)) = (serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?);
        let cluster = Cluster::new(world, &a)?;
        let mut server = world.api_server(&[])?;
        let agent = cluster.agent()?;
        cluster.is_saved()?;
        server.kill()?;
        agent.kill()?;
        world.node().exec(&["sh", "-c", FORGET])?;
        ensure!(world.node().call_with(Protocol::Tcp, WEB, &["--timeout-ms", "400"])?.iter().all(|reply| reply.outcome.is_err()));

        let mut agent = cluster.agent()?;
        let call = |count| answers(world.ext().call(Protocol::Tcp, WEB, count)?);
        eventually(PATIENCE, || call(1).map(drop))?;
        let served = call(4)?;
        assert_eq!(shares(&served).into_keys().collect::<Vec<_>>(), ["a"]);
        ensure!(virtual_servers(world.node())?.iter().any(|line| line.contains("10.96.0.11:80")));
        assert_eq!(metric(world.node(), "kube_ipvs_serves_saved_state")?, "1");
        eventually(PATIENCE, || {
            ensure!(is_well(world.node(), "healthz")? && is_well(world.node(), "livez")?);
            Ok(())
        })?;
        ensure!(agent.log()?.contains("served is what was saved"), "{}", agent.log()?);

        // What has changed meanwhile, and what has gone.
        world.write("endpoints.yaml", &web(&b))?;
        world.remove("other.yaml")?;
        let _server = world.api_server(&["--resource-version", "1000"])?;
        eventually(PATIENCE, || {
            let served = call(4)?;
            let shares = shares(&served);
            ensure!(shares.len() == 1 && shares.contains_key("b"), "{shares:?}");
            ensure!(!virtual_servers(world.node())?.iter().any(|line| line.contains("10.96.0.11:80")));
            ensure!(is_well(world.node(), "healthz")?);
            Ok(())
        })?;
        assert_eq!(metric(world.node(), "kube_ipvs_serves_saved_state")?, "0");
        ensure!(agent.process().ended()?.is_none(), "the agent ended");
        Ok(())
    });
}

/// What was saved is answered for as what is told is, by `/healthz` and by a health check node port, until it is too old.
#[test]
fn j10_what_was_saved_is_relied_on_until_it_is_too_old() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let cluster = Cluster::new(world, &a)?;
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: balanced, namespace: default}\nspec:\n  type: LoadBalancer\n  \
                       clusterIP: 10.96.0.12\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32100\n  ports: [{name: http, \
                       protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}]\n";
        let slice = EndpointSlice::ipv4("balanced").port("http", Protocol::Tcp, 8080).pod(&a);
        world.write("balanced.yaml", &format!("{service}{slice}"))?;
        let mut server = world.api_server(&[])?;
        let agent = cluster.agent()?;
        cluster.is_saved()?;
        server.kill()?;
        agent.kill()?;
        let node = world.node();
        let answer = |port: u16, path: &str| {
            let line = format!(
                "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
            );
            node.exec(&["bash", "-c", &line])
        };
        let begins = |answer: &str, begin: &str| -> Result {
            ensure!(answer.starts_with(begin), "{answer}");
            Ok(())
        };

        let mut agent = cluster.agent()?;
        agent.process().wait_for("served is what was saved", PATIENCE)?;
        eventually(PATIENCE, || {
            begins(&answer(10256, "/healthz")?, "HTTP/1.1 200")?;
            let balanced = answer(32100, "/")?;
            begins(&balanced, "HTTP/1.1 200")?;
            ensure!(balanced.contains("\"localEndpoints\": 1"), "{balanced}");
            Ok(())
        })?;
        agent.kill()?;

        let _agent = world.agent_of_cluster(&["--state-dir", &cluster.state.display().to_string(), "--max-staleness", "1s"])?;
        eventually(PATIENCE, || {
            let health = answer(10256, "/healthz")?;
            begins(&health, "HTTP/1.1 503")?;
            ensure!(
                health.contains("served is what was saved") && health.contains("longer than --max-staleness (1 s)"),
                "{health}"
            );
            let balanced = answer(32100, "/")?;
            begins(&balanced, "HTTP/1.1 503")?;
            ensure!(
                balanced.contains("\"localEndpoints\": 1") && balanced.contains("\"serviceProxyHealthy\": false"),
                "{balanced}"
            );
            begins(&answer(10256, "/livez")?, "HTTP/1.1 200")
        })
    });
}

/// The disk is full before a change of some pages is saved, so that writing it ends in the middle.
#[test]
fn j10_a_full_disk_costs_nothing_but_what_cannot_be_saved() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let cluster = Cluster::new(world, &a)?;
        let node = world.node();
        let directory = cluster.state.display().to_string();
        let shell = |script: &str| node.exec(&["sh", "-c", script, &directory]);
        // In the mount namespace of the node alone.
        shell("mkdir $0 && mount -t tmpfs -o size=128k tmpfs $0")?;
        let mut server = world.api_server(&["--interval-ms", "100"])?;
        let mut agent = cluster.agent()?;
        eventually(PATIENCE, || {
            ensure!(is_well(node, "healthz")?, "not everything has been listed");
            Ok(())
        })?;
        // What comes after everything else is saved after it.
        world
            .write("last.yaml", &Service::new("last").cluster_ip("10.96.0.99").port("http", Protocol::Tcp, 80, 8080).to_string())?;
        eventually(PATIENCE, || {
            ensure!(shell("cat $0/base $0/journal")?.contains("default/last"), "not all is saved");
            ensure!(metric(node, "kube_ipvs_saved_state_timestamp_seconds")? != "0", "nothing is saved");
            Ok(())
        })?;

        shell("cat /dev/zero >$0/filler 2>/dev/null; ! echo more >$0/another 2>/dev/null")?;
        let more = (0..80).map(|number| {
            let service = Service::new(&format!("more-{number}")).cluster_ip(&format!("10.96.1.{number}"));
            service.port("http", Protocol::Tcp, 80, 8080).to_string()
        });
        world.write("more.yaml", &more.collect::<String>())?;
        agent.process().wait_for("state cannot be saved; trying again, and serving all the same", PATIENCE)?;
        ensure!(metric(node, "kube_ipvs_save_errors_total")? != "0");
        let is_served = || virtual_servers(node).map(|servers| servers.iter().any(|line| line.contains("10.96.1.79:80")));
        eventually(PATIENCE, || {
            ensure!(is_served()?, "the change is not served");
            Ok(())
        })?;
        answers(node.call(Protocol::Tcp, WEB, 2)?)?;

        // What was saved before is whole.
        server.kill()?;
        agent.kill()?;
        let mut agent = cluster.agent()?;
        agent.process().wait_for("served is what was saved", PATIENCE)?;
        ensure!(!agent.log()?.contains("is ignored"), "{}", agent.log()?);
        ensure!(is_served()?, "what was not saved has been taken from the kernel");

        let _server = world.api_server(&["--interval-ms", "100", "--resource-version", "1000"])?;
        shell("rm $0/filler")?;
        eventually(PATIENCE, || {
            ensure!(shell("cat $0/base $0/journal")?.contains("default/more-79"), "not saved");
            Ok(())
        })
    });
}
