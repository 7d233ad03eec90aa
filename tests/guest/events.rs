//! What cannot be served as it is written is told to whoever wrote it: Events on the API server's double.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testkit::manifest::Service;
use testkit::{Family, NODE_V4, On, Pod, Protocol, Result, World, answers, eventually, shares};

use crate::support::{PATIENCE, node, slice, target};

const API: &str = "127.0.0.1:8001";

/// An address outside of the cluster that two Services claim.
const SHARED: &str = "198.51.100.7";

/// The Events there are on objects of a kind: on what, why, and the sentence.
fn events(world: &World, kind: &str) -> Result<Vec<[String; 3]>> {
    let list = world.node().exec(&["wget", "-q", "-O", "-", &format!("http://{API}/apis/events.k8s.io/v1/events")])?;
    let list: Value = serde_json::from_str(&list)?;
    let text = |event: &Value, path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let events = list.get("items").and_then(Value::as_array).context("no list")?.iter();
    let of_kind = events.filter(|event| text(event, "/regarding/kind") == kind);
    Ok(of_kind.map(|event| ["/regarding/name", "/reason", "/note"].map(|path| text(event, path))).collect())
}

#[test]
fn conflicts_leave_an_address_with_the_older_service_until_it_goes_and_tell_the_younger() {
    World::test(|world| {
        let pods = [world.pod("old-pod", On::Node)?, world.pod("young-pod", On::Node)?];
        let _servers = pods.iter().map(|pod| pod.serve(8080)).collect::<Result<Vec<_>>>()?;
        world.ext().exec(&["ip", "route", "add", SHARED, "via", &NODE_V4.to_string()])?;
        world.write("node.yaml", &node().to_string())?;
        // By name the younger comes first: that is not what decides.
        let claim = |name: &str, created: &str, cluster_ip: &str, pod: &Pod| {
            let service = Service::new(name).created(created).cluster_ip(cluster_ip).port("tcp", Protocol::Tcp, 80, 8080);
            let service = service.spec(&format!("externalIPs: [\"{SHARED}\"]"));
            world.write(&format!("{name}.yaml"), &format!("{service}{}", slice(name, Family::V4, [pod])))
        };
        claim("young", "2026-02-01T00:00:00Z", "10.96.0.11", &pods[1])?;
        claim("zold", "2026-01-01T00:00:00Z", "10.96.0.12", &pods[0])?;

        let _server = world.api_server(&["--listen", API])?;
        let agent = world.agent_of_cluster(&[])?;

        let serving = || -> Result<Vec<String>> {
            let call = world.ext().call(Protocol::Tcp, &target(SHARED.parse::<std::net::IpAddr>()?, 80), 4)?;
            Ok(shares(&answers(call)?).into_keys().map(str::to_owned).collect::<Vec<_>>())
        };
        let served_by = |name: &str| {
            eventually(PATIENCE, || {
                let serving = serving()?;
                ensure!(serving == [name], "{SHARED} is served by {serving:?}");
                Ok(())
            })
        };
        served_by("old-pod")?;
        let told = [
            "young",
            "Conflict",
            "spec.externalIPs claims TCP 198.51.100.7:80, which Service default/zold had before, and is not served there as long as \
             that has it; give one of the two another address or port",
        ];
        eventually(PATIENCE, || {
            let events = events(world, "Service")?;
            ensure!(events == [told.map(str::to_owned)], "{events:#?}");
            Ok(())
        })?;
        // The rest of the younger Service is served.
        let call = world.node().call(Protocol::Tcp, "10.96.0.11:80", 1)?;
        assert_eq!(answers(call)?[0].name, "young-pod");

        // Another process decides the same, and its Event is there already.
        agent.terminate()?;
        let agent = world.agent_of_cluster(&[])?;
        let metric = |line: &str| -> Result {
            let metrics = world.node().exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:10249/metrics"])?;
            ensure!(metrics.lines().any(|other| other == line), "no {line:?} in:\n{metrics}");
            Ok(())
        };
        eventually(PATIENCE, || metric("kube_ipvs_events_total{result=\"repeated\"} 1"))?;
        metric("kube_ipvs_object_problems{reason=\"Conflict\"} 1")?;
        served_by("old-pod")?;

        world.remove("zold.yaml")?;
        served_by("young-pod")?;
        eventually(PATIENCE, || metric("kube_ipvs_object_problems{reason=\"Conflict\"} 0"))?;
        assert_eq!(events(world, "Service")?.len(), 1);
        let of_node = events(world, "Node")?;
        ensure!(of_node.iter().all(|[name, reason, _]| name == "node" && reason == "Starting"), "{of_node:?}");
        ensure!(of_node.len() == 2, "two agents have started, and that is {of_node:?}");
        let lines = agent.log()?.lines().filter(|line| line.contains("reason=Conflict")).count();
        ensure!(lines == 1, "the conflict is logged {lines} times");
        Ok(())
    });
}
