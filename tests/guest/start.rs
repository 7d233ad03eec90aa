//! The first seconds of a node: nothing is reachable before it is reachable in the right way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use testkit::{Calls, NODE_V4, NODE2_V4, Netns, On, Protocol, Result, World, eventually};

use crate::support::{PATIENCE, node, serving, target};

/// Besides `default/kubernetes`.
const SERVICES: u16 = 5_000;
const API_VIP: &str = "10.96.0.1:443";
/// The last of the Services, in all orders.
const LAST_VIP: &str = "10.96.255.1:80";
/// The API server: a process of node2.
const API_PORT: u16 = 6443;

/// From the agent's start; a node that is not emulated takes a few hundred milliseconds.
const LIMIT: Duration = Duration::from_secs(180);

/// Calls that give up soon: each is a look at what happens right now. They end before the kernel sends a first packet again: that of a call from before the
/// start is known to conntrack as one that is not masqueraded.
fn keep_calling(caller: &Netns, target: &str) -> Result<Calls> {
    caller.keep_calling_with(Protocol::Tcp, target, &["--interval-ms", "20", "--timeout-ms", "400"])
}

/// `default/kubernetes` with the API server on node2, and Services with an endpoint each, on node2 as well.
fn cluster() -> String {
    let service = |namespace: &str, name: &str, ip: &str, port: &Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [port]}})
    };
    let slice = |namespace: &str, name: &str, address: &str, port: &Value| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [port],
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [address], "nodeName": "node2", "conditions": {"ready": true, "serving": true, "terminating": false}}]})
    };
    let mut items = vec![
        service(
            "default",
            "kubernetes",
            "10.96.0.1",
            &json!({"name": "https", "protocol": "TCP", "port": 443, "targetPort": API_PORT}),
        ),
        slice("default", "kubernetes", &NODE2_V4.to_string(), &json!({"name": "https", "protocol": "TCP", "port": API_PORT})),
    ];
    for number in 0..SERVICES {
        let name = format!("service-{number}");
        let [high, low] = number.to_be_bytes();
        let ip = if number + 1 == SERVICES { "10.96.255.1".to_owned() } else { format!("10.96.{}.{low}", 1 + high) };
        items.push(service("many", &name, &ip, &json!({"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080})));
        items.push(slice("many", &name, "10.244.2.2", &json!({"name": "http", "protocol": "TCP", "port": 8080})));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Counts, on node2, the packets that begin a connection to an endpoint: those from the node, and those from anybody else.
fn count_sources(world: &World) -> Result {
    let rules = format!(
        "*raw\n:COUNT - [0:0]\n-A PREROUTING -p tcp --syn --dport {API_PORT} -j COUNT\n-A PREROUTING -p tcp --syn --dport 8080 -j COUNT\n\
         -A COUNT -s {NODE_V4} -j ACCEPT\n-A COUNT -j DROP\nCOMMIT\n"
    );
    world.node2().exec_with_input(&["iptables-legacy-restore", "-w"], &rules).map(drop)
}

/// What [`count_sources`] has counted: from the node, and from others.
fn counted(world: &World) -> Result<(u64, u64)> {
    let saved = world.node2().exec(&["iptables-legacy-save", "-c", "-t", "raw"])?;
    let count = |target: &str| -> Result<u64> {
        let rule = saved.lines().find(|line| line.contains("] -A COUNT") && line.ends_with(target)).context("a rule is missing")?;
        let packets = rule.strip_prefix('[').and_then(|line| line.split(':').next()).context("a rule without counters")?;
        Ok(packets.parse()?)
    };
    Ok((count("-j ACCEPT")?, count("-j DROP")?))
}

/// Waits for the first answer; how long after `since` it was seen, and the answering server's view of the caller.
fn first_answer(calls: &Calls, since: Instant) -> Result<Duration> {
    eventually(LIMIT, || {
        let replies = calls.so_far()?;
        replies.iter().find_map(|reply| reply.outcome.as_ref().ok()).context("no call was answered")?;
        Ok(since.elapsed())
    })
}

#[test]
fn j1_no_packet_leaves_unmasqueraded_during_a_start_with_5000_services() {
    World::test_alone(|world| {
        let (_pod, _serve) = serving(world, "a", On::Node2)?;
        let _api = world.serve(world.node2(), "api", API_PORT)?;
        count_sources(world)?;
        world.write("node.yaml", &node().to_string())?;
        world.write("cluster.json", &cluster())?;
        let to_api =
            [("the node", world.node()), ("ext", world.ext())].map(|(who, caller)| Ok((who, keep_calling(caller, API_VIP)?)));
        let to_api = to_api.into_iter().collect::<Result<Vec<_>>>()?;
        let to_last =
            [("the node", world.node()), ("ext", world.ext())].map(|(who, caller)| Ok((who, keep_calling(caller, LAST_VIP)?)));
        let to_last = to_last.into_iter().collect::<Result<Vec<_>>>()?;
        for (who, calls) in to_api.iter().chain(&to_last) {
            let failed = eventually(PATIENCE, || calls.so_far()?.into_iter().next().context("no call was made"))?;
            ensure!(failed.outcome.is_err(), "{who} was answered before there was an agent");
        }

        let start = Instant::now();
        let mut agent = world.agent(&[])?;
        let mut report = Vec::new();
        let (mut api, mut last) = (Duration::ZERO, Duration::MAX);
        for (who, calls) in &to_api {
            let after = first_answer(calls, start)?;
            api = api.max(after);
            report.push(format!("{who} reached the API server after {after:?}"));
        }
        for (who, calls) in &to_last {
            let after = first_answer(calls, start)?;
            last = last.min(after);
            report.push(format!("{who} reached the last Service after {after:?}"));
        }
        println!("{}", report.join("\n"));

        for (who, calls) in to_api.into_iter().chain(to_last) {
            let replies = calls.stop()?;
            let answers: Vec<_> = replies.iter().filter_map(|reply| reply.outcome.as_ref().ok()).collect();
            let wrong = answers.iter().find(|answer| answer.peer.ip() != NODE_V4);
            if let Some(answer) = wrong {
                bail!("{who} arrived at {} as {}", answer.name, answer.peer.ip());
            }
            // From its first answer on, a call to a VIP is answered.
            let after_first: Vec<_> = replies.iter().skip_while(|reply| reply.outcome.is_err()).collect();
            ensure!(
                after_first.iter().all(|reply| reply.outcome.is_ok()),
                "{who}: calls failed after the first answer: {after_first:?}"
            );
        }
        let (from_node, from_others) = counted(world)?;
        ensure!(from_node > 0, "nothing was counted");
        ensure!(from_others == 0, "{from_others} packets came to node2 from somebody else than the node");
        // They would have been counted.
        world.ext().call_with(Protocol::Tcp, &target(NODE2_V4, API_PORT), &["--timeout-ms", "200"])?;
        ensure!(counted(world)?.1 > 0, "a packet from ext was not counted");
        // The Services that others need come first, not by chance.
        ensure!(api < last, "the API server came up with all the others: {report:?}");
        ensure!(agent.process().ended()?.is_none(), "the agent ended");
        Ok(())
    });
}
