//! A start on what another version of the agent has left: laid out otherwise, with more and with less in it.

use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Protocol, Result, World, eventually};

use crate::held::{Held, echoing};
use crate::support::{
    KernelState, PATIENCE, POD_PORT, answered, ensure_all_answered, ensure_same, made, node, started, target, vip,
};

/// What this version does not do: sets of another size, in place of those that are asked all the time; VIPs bound as addresses
/// as well; another scheduler and persistence; a chain that nothing needs, a rule too many and one too few; the set that a growth which was
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

#[test]
fn a4_what_another_version_has_left_is_taken_over_without_harm_to_connections() {
    World::test(|world| {
        let [(a, _echo_a), (b, _echo_b)] = [echoing(world, "a", On::Node)?, echoing(world, "b", On::Node2)?];
        let _answering = [a.serve(POD_PORT + 1)?, b.serve(POD_PORT + 1)?];
        let client = world.pod("client", On::Node)?;
        let service =
            Family::ALL.iter().fold(Service::new("web"), |service, family| service.cluster_ip(&vip(*family, 10).to_string()));
        let service = service.port("echo", Protocol::Tcp, 80, POD_PORT).port("answer", Protocol::Tcp, 81, POD_PORT + 1);
        let slice = |family| {
            let slice =
                EndpointSlice::of("web", family).port("echo", Protocol::Tcp, POD_PORT).port("answer", Protocol::Tcp, POD_PORT + 1);
            slice.pod(&a).pod(&b).to_string()
        };
        world.write("web.yaml", &format!("{}{service}{}", node(), Family::ALL.map(slice).concat()))?;
        let agent = started(world, &[])?;
        let before = KernelState::of(world.node())?;
        let held = |family| Held::open(&client, Protocol::Tcp, &target(vip(family, 10), 80), 20, Duration::from_millis(300));
        let held = Family::ALL.into_iter().map(held).collect::<Result<Vec<_>>>()?;
        let patient = ["--interval-ms", "100", "--timeout-ms", "4000"];
        let calls = |family| client.keep_calling_with(Protocol::Tcp, &target(vip(family, 10), 81), &patient);
        let calls = Family::ALL.into_iter().map(calls).collect::<Result<Vec<_>>>()?;
        calls.iter().try_for_each(answered)?;

        agent.kill()?;
        world.node().exec(&["sh", "-c", OTHERWISE])?;
        let otherwise = KernelState::of(world.node())?;
        let differs = [
            otherwise.sets != before.sets,
            otherwise.virtual_servers != before.virtual_servers,
            otherwise.addresses != before.addresses,
            otherwise.routes != before.routes,
            otherwise.rules != before.rules,
        ];
        ensure!(differs == [true; 5], "it is the same in places: {differs:?}");
        ensure!(otherwise.sets.iter().filter(|line| line.contains(" maxelem 70000")).count() > 10, "{:?}", otherwise.sets);

        let _agent = started(world, &[])?;
        eventually(PATIENCE, || ensure_same(&before, &without_sizes(KernelState::of(world.node())?), "not taken over"))?;
        calls.iter().try_for_each(|calls| made(calls, 10))?;
        held.iter().try_for_each(|held| held.go_on(60))?;
        calls.into_iter().try_for_each(|calls| ensure_all_answered(&calls.stop()?))
    });
}
