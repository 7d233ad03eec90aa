//! A start on what another version of the agent has left: laid out otherwise, with more and with less in it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, Netns, On, Pod, Protocol, Result, World, eventually};

use crate::held::{Held, echoing, go_on};
use crate::support::{
    KernelState, PATIENCE, POD_PORT, answered, ensure_all_answered, ensure_same, made, node, node_address, started, target, vip,
};

/// What this version does not do: sets of another size, in place of those that are asked all the time; VIPs bound as addresses
/// as well; other schedulers, those behind packet marks included, and persistence; a chain that nothing needs, a rule too many and one too few; the set that a growth which was
/// interrupted leaves; a Service that is gone, with all that is made for one.
const OTHERWISE: &str = "
for set in $(ipset list -n); do
    ipset list -t $set | grep -q '^References' || continue
    header=$(ipset save $set | sed -n \"s/^create $set //p\" | sed 's/maxelem [0-9]*/maxelem 70000/; s/ *initval [^ ]*//; s/ *bucketsize [0-9]*//')
    ipset create OTHER $header
    ipset save $set | sed -n \"s/^add $set /add OTHER /p\" | ipset restore
    ipset swap OTHER $set && ipset destroy OTHER
done
ipset create KUBE-IPVS-GROWING hash:ip,port family inet
ip address add 10.96.0.10/32 dev kube-ipvs0
ipvsadm -E -t 10.96.0.10:80 -s wlc
ipvsadm -E -t [fd00:96::10]:81 -s rr -p 60
ipvsadm -Sn | sed -n 's/^-A \\(-f .*\\) -s .*/\\1/p' | while read mark; do ipvsadm -E $mark -s lc; done
iptables -w -t filter -N KUBE-IPVS-FORMERLY
iptables -w -t filter -A KUBE-IPVS-FORMERLY -j RETURN
iptables -w -t filter -I INPUT -j KUBE-IPVS-FORMERLY
ipset add KUBE-CLUSTER-IP 10.96.0.77,tcp:80
ipset add KUBE-IPVS-IPS 10.96.0.77
ipvsadm -A -t 10.96.0.77:80 -s rr
ipvsadm -a -t 10.96.0.77:80 -r 10.244.2.99:8080 -m -w 1
ip route add local 10.96.0.77 dev kube-ipvs0 table local proto 71
true";

/// A set that is larger than it has to be stays so, and says how large its buckets are where its maker did.
fn without_sizes(mut state: KernelState) -> KernelState {
    for line in &mut state.sets {
        *line = line.replace(" maxelem 70000", " maxelem 65536").replace(" bucketsize 12", "");
    }
    state
}

/// A load balancer's address in each family, outside of the cluster's networks.
const LOAD_BALANCER: [&str; 2] = ["198.51.100.21", "2001:db8:c::21"];
const NODE_PORT: u16 = 30080;
const ECHO_NODE_PORT: u16 = 30081;

/// Of each of six frontends.
const CONNECTIONS: u32 = 40;

/// A Service without ports yet.
fn service(name: &str, number: u8) -> Service {
    Family::ALL.iter().fold(Service::new(name), |service, family| service.cluster_ip(&vip(*family, number).to_string()))
}

fn slices_of(service: &str, pods: &[&Pod]) -> String {
    let slice = |family| {
        let slice = EndpointSlice::of(service, family);
        let slice = slice.port("echo", Protocol::Tcp, POD_PORT).port("answer", Protocol::Tcp, POD_PORT + 1);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    Family::ALL.map(slice).concat()
}

#[test]
fn a4_what_another_version_has_left_is_taken_over_without_harm_to_connections() {
    World::test(|world| {
        let [(a, _echo_a), (b, _echo_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
        let _answering = [a.serve(POD_PORT + 1)?, b.serve(POD_PORT + 1)?];
        let client = world.pod("client", On::Node)?;
        let (host, ext) = (world.node(), world.ext());
        for (family, address) in Family::ALL.into_iter().zip(LOAD_BALANCER) {
            ext.exec(&["ip", "route", "add", address, "via", &node_address(family).to_string()])?;
        }
        let web = service("web", 10).port("echo", Protocol::Tcp, 80, POD_PORT).port("answer", Protocol::Tcp, 81, POD_PORT + 1);
        // Whose callers from outside stay on the node, behind packet marks.
        let [ip4, ip6] = LOAD_BALANCER;
        let local = service("local", 11).spec("externalTrafficPolicy: Local").load_balancer_ip(ip4).load_balancer_ip(ip6);
        let local = local.port("echo", Protocol::Tcp, 80, POD_PORT).node_port(ECHO_NODE_PORT);
        let local = local.port("answer", Protocol::Tcp, 81, POD_PORT + 1).node_port(NODE_PORT);
        let endpoints = ["web", "local"].map(|name| slices_of(name, &[&a, &b])).concat();
        world.write("web.yaml", &format!("{}{web}{local}{endpoints}", node()))?;
        let agent = started(world, &[])?;
        let before = KernelState::of(host)?;

        let (mut held, mut calls) = (Vec::new(), Vec::new());
        let mut use_both = |caller: &Netns, echo: String, answer: String| -> Result {
            held.push(Held::open(caller, Protocol::Tcp, &echo, CONNECTIONS, Duration::from_secs(1))?);
            calls.push(caller.keep_calling_apart(&answer)?);
            Ok(())
        };
        for (family, address) in Family::ALL.into_iter().zip(LOAD_BALANCER) {
            let (load_balancer, on_node) = (address.parse::<IpAddr>()?, node_address(family));
            use_both(&client, target(vip(family, 10), 80), target(vip(family, 10), 81))?;
            use_both(ext, target(load_balancer, 80), target(load_balancer, 81))?;
            use_both(ext, target(on_node, ECHO_NODE_PORT), target(on_node, NODE_PORT))?;
        }
        calls.iter().try_for_each(answered)?;

        agent.kill()?;
        host.exec(&["sh", "-c", OTHERWISE])?;
        let otherwise = KernelState::of(host)?;
        let differs = [
            otherwise.sets != before.sets,
            otherwise.virtual_servers != before.virtual_servers,
            otherwise.addresses != before.addresses,
            otherwise.routes != before.routes,
            otherwise.rules != before.rules,
        ];
        ensure!(differs == [true; 5], "it is the same in places: {differs:?}");
        ensure!(otherwise.sets.iter().filter(|line| line.contains(" maxelem 70000")).count() > 10, "{:?}", otherwise.sets);
        let by_mark = otherwise.virtual_servers.iter().filter(|line| line.starts_with("-A -f ")).collect::<Vec<_>>();
        ensure!(by_mark.len() > 3 && by_mark.iter().all(|line| line.ends_with(" -s lc")), "{by_mark:?}");

        let _agent = started(world, &[])?;
        eventually(PATIENCE, || ensure_same(&before, &without_sizes(KernelState::of(host)?), "not taken over"))?;
        calls.iter().try_for_each(|calls| made(calls, 10))?;
        go_on(&held, 3)?;
        calls.into_iter().try_for_each(|calls| ensure_all_answered(&calls.stop()?))
    });
}
