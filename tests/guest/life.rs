//! Random changes of a cluster, and what becomes of them on a node.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testkit::{Random, Result, World};

use crate::support::KernelState;

const SERVICES: u64 = 4;

fn name(number: u64) -> String {
    format!("service-{number}")
}

/// A Service of some kind. The addresses are few, so that Services also claim the same ones.
fn service(number: u64, random: &mut Random) -> Value {
    let kind = random.of(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
    let families = random.of(&[&["IPv4"][..], &["IPv6"], &["IPv4", "IPv6"]]);
    let cluster_ip =
        |family: &&str| if *family == "IPv4" { format!("10.96.0.{}", 10 + number) } else { format!("fd00:96::{number}") };
    let cluster_ips: Vec<_> = families.iter().map(cluster_ip).collect();
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
        "spec": {"type": kind, "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips, "ipFamilies": families, "ports": ports,
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
pub(crate) fn change(one: &World, other: &World, random: &mut Random) -> Result<String> {
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

/// The state of a world's node, as every life that led to it leaves it.
pub(crate) fn state(world: &World) -> Result<KernelState> {
    Ok(KernelState::of(world.node())?.with_named_marks())
}

/// One pass of an agent with these arguments; its log. Services that claim the same address make it end with 5, which is no harm here.
pub(crate) fn pass(world: &World, arguments: &[&str]) -> Result<String> {
    let output = world.run_once(&[&["--log-level", "debug"], arguments].concat())?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(matches!(output.status.code(), Some(0 | 5)), "{}:\n{log}", output.status);
    Ok(log)
}
