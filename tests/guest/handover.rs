//! From kube-proxy in IPVS mode to this agent, and back, under traffic.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Calls, Family, Netns, On, Pod, Process, Protocol, Result, World, eventually};

use crate::drain::held;
use crate::held::Held;
use crate::support::{
    PATIENCE, POD_PORT, answered, ensure_all_answered, lines, made, node, node_address, node_addresses, serving, started, target,
    vip, virtual_servers,
};

const NODE_PORT: u16 = 30080;
/// The port where pods send back what they get, and the node port for it.
const ECHO: u16 = 8081;
const ECHO_NODE_PORT: u16 = 30081;

/// All that are held together, in two families.
const CONNECTIONS: u32 = 500;
const INTERVAL: Duration = Duration::from_secs(2);

/// Sends a line every tenth of a second to `$0` port `$1`, and says "held" when it comes back, "lost" when it does not.
const CLIENT: &str = "exec 3<>/dev/tcp/$0/$1 || exit 1
while echo ping >&3 2>/dev/null && read -t 30 -u 3 line 2>/dev/null; do echo held; sleep 0.1; done; echo lost";

/// The sets of kube-proxy, `6-` standing for the beginning of the names in IPv6: those that are shared, and its own.
const SHARED: [(&str, &str); 9] = [
    ("LOOP-BACK", "hash:ip,port,ip"),
    ("CLUSTER-IP", "hash:ip,port"),
    ("EXTERNAL-IP", "hash:ip,port"),
    ("EXTERNAL-IP-LOCAL", "hash:ip,port"),
    ("LOAD-BALANCER", "hash:ip,port"),
    ("LOAD-BALANCER-FW", "hash:ip,port"),
    ("LOAD-BALANCER-LOCAL", "hash:ip,port"),
    ("LOAD-BALANCER-SOURCE-CIDR", "hash:ip,port,net"),
    ("IPVS-IPS", "hash:ip"),
];
const OWN: [(&str, &str); 8] = [
    ("LOAD-BALANCER-SOURCE-IP", "hash:ip,port,ip"),
    ("NODE-PORT-TCP", "bitmap:port"),
    ("NODE-PORT-LOCAL-TCP", "bitmap:port"),
    ("NODE-PORT-UDP", "bitmap:port"),
    ("NODE-PORT-LOCAL-UDP", "bitmap:port"),
    ("NODE-PORT-SCTP-HASH", "hash:ip,port"),
    ("NODE-PORT-LOCAL-SCTP-HASH", "hash:ip,port"),
    ("HEALTH-CHECK-NODE-PORT", "bitmap:port"),
];

/// The rules of kube-proxy for ClusterIPs and node ports; `@` stands for the beginning of the names of sets, `%` for the pods' network, `^` for
/// loopback.
const RULES: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -s ^ -j RETURN
-A KUBE-SERVICES ! -s % -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set @CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set @CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set @NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set @LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-I INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-I OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" -m set --match-set @HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-IPVS-FILTER -m set --match-set @LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set @CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set @EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set @EXTERNAL-IP-LOCAL dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set @HEALTH-CHECK-NODE-PORT dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set @IPVS-IPS dst -j REJECT
COMMIT
"#;

fn begin(family: Family) -> &'static str {
    match family {
        Family::V4 => "KUBE-",
        Family::V6 => "KUBE-6-",
    }
}

/// A set's name, which the kernel allows 31 bytes.
fn name(family: Family, set: &str) -> String {
    format!("{}{set}", begin(family)).chars().take(31).collect()
}

/// The frontends of a family, each with the port of the pods behind it.
fn frontends(family: Family) -> Vec<(String, u16)> {
    let mut frontends = vec![(target(vip(family, 10), 80), POD_PORT), (target(vip(family, 10), 81), ECHO)];
    for address in node_addresses(family) {
        frontends.extend([(target(address, NODE_PORT), POD_PORT), (target(address, ECHO_NODE_PORT), ECHO)]);
    }
    frontends
}

/// Puts a node into the state in which kube-proxy in IPVS mode has it. What is there already it takes over, as kube-proxy does.
pub(crate) fn kube_proxy(node: &Netns, pods: &[&Pod]) -> Result {
    kube_proxy_with("nft", node, pods)
}

/// The same, with packet rules in a flavour of iptables.
fn kube_proxy_with(flavour: &str, node: &Netns, pods: &[&Pod]) -> Result {
    node.exec(&[
        "sh",
        "-c",
        "cd /proc/sys/net/ipv4/vs && for s in conntrack expire_nodest_conn expire_quiescent_template; do echo 1 >$s; done",
    ])?;
    let (mut sets, mut table) = (String::new(), String::new());
    let present = virtual_servers(node)?.join("\n");
    for family in Family::ALL {
        let inet = if family == Family::V4 { "inet" } else { "inet6" };
        for (set, kind) in SHARED.into_iter().chain(OWN) {
            let options = match kind {
                "bitmap:port" => "range 0-65535".to_owned(),
                _ => format!("family {inet} hashsize 1024 maxelem 65536"),
            };
            let _ = writeln!(sets, "create {} {kind} {options} -exist", name(family, set));
        }
        let address = vip(family, 10);
        let mut add = |set: &str, member: String| {
            let _ = writeln!(sets, "add {} {member} -exist", name(family, set));
        };
        add("IPVS-IPS", address.to_string());
        for port in [80, 81] {
            add("CLUSTER-IP", format!("{address},tcp:{port}"));
        }
        for port in [NODE_PORT, ECHO_NODE_PORT] {
            add("NODE-PORT-TCP", port.to_string());
        }
        for pod in pods.iter().filter(|pod| pod.on() == On::Node) {
            let pod = pod.address(family);
            for port in [POD_PORT, ECHO] {
                add("LOOP-BACK", format!("{pod},tcp:{port},{pod}"));
            }
        }
        for (frontend, port) in frontends(family).into_iter().filter(|(frontend, _)| !present.contains(&format!("-t {frontend} ")))
        {
            let _ = writeln!(table, "-A -t {frontend} -s rr");
            for pod in pods {
                let _ = writeln!(table, "-a -t {frontend} -r {} -m -w 1", target(pod.address(family), port));
            }
        }
    }
    node.exec_with_input(&["ipset", "restore"], &sets)?;
    let _ = node.try_exec(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"])?;
    node.exec_with_input(&["ipvsadm", "-R"], &table)?;
    for family in Family::ALL {
        let bits = if family == Family::V4 { 32 } else { 128 };
        node.exec(&["ip", "address", "replace", &format!("{}/{bits}", vip(family, 10)), "dev", "kube-ipvs0"])?;
        let (program, pods, loopback) = match family {
            Family::V4 => ("iptables", "10.244.0.0/16", "127.0.0.0/8"),
            Family::V6 => ("ip6tables", "fd00:244::/56", "::1/128"),
        };
        let rules = RULES.replace('@', begin(family)).replace('%', pods).replace('^', loopback);
        node.exec_with_input(&[&format!("{program}-{flavour}-restore"), "--noflush", "-w"], &rules)?;
    }
    Ok(())
}

/// What of kube-proxy's is left that is not shared: its chains, and its own sets.
fn of_kube_proxy(node: &Netns) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for save in ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        let saved = node.exec(&[save])?;
        let ours = |line: &str| {
            line.contains("KUBE-IPVS-") && !line.contains("KUBE-IPVS-FILTER") && !line.contains("KUBE-IPVS-OUT-FILTER")
        };
        let its = lines(&saved).filter(|line| line.contains("KUBE-") && !ours(line));
        left.extend(its.map(|line| format!("{save}: {}", line.split(" [").next().unwrap_or(line))));
    }
    let sets = node.exec(&["ipset", "list", "-n"])?;
    let own = |set: &str| Family::ALL.iter().any(|family| OWN.iter().any(|(own, _)| name(*family, own) == set));
    left.extend(lines(&sets).filter(|set| own(set)).map(str::to_owned));
    Ok(left)
}

fn service() -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(NODE_PORT)
        .port("echo", Protocol::Tcp, 81, ECHO)
        .node_port(ECHO_NODE_PORT)
}

fn slices(pods: &[&Pod]) -> String {
    let slice = |family| {
        let slice = EndpointSlice::of("web", family).port("tcp", Protocol::Tcp, POD_PORT).port("echo", Protocol::Tcp, ECHO);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    Family::ALL.map(slice).concat()
}

/// Calls all the time. Beside so many connections a guest loses a first packet now and then, which is sent again after a second.
fn keep_calling(caller: &Netns, target: &str) -> Result<Calls> {
    caller.keep_calling_with(Protocol::Tcp, target, &["--interval-ms", "100", "--timeout-ms", "4000"])
}

fn connection(caller: &Netns, address: impl Display, port: u16) -> Result<Process> {
    let mut process = caller.start(&["bash", "-c", CLIENT, &address.to_string(), &port.to_string()])?;
    process.wait_for("held", PATIENCE)?;
    Ok(process)
}

/// Waits until all connections have had further answers, none of which went missing.
fn go_on(connections: &[Process]) -> Result {
    let before = connections.iter().map(held).collect::<Result<Vec<_>>>()?;
    eventually(PATIENCE, || {
        connections.iter().zip(&before).try_for_each(|(connection, before)| {
            ensure!(held(connection)? >= before + 5);
            Ok(())
        })
    })
}

/// In the flavour of iptables that the kube-proxy before had, and when something of it has to stay because others use it.
#[test]
fn k2_what_kube_proxy_has_left_goes_in_every_flavour_but_for_what_others_use() {
    for flavour in ["nft", "legacy"] {
        World::test(|world| {
            let host = world.node();
            kube_proxy_with(flavour, host, &[])?;
            host.exec_with_input(
                &[&format!("iptables-{flavour}-restore"), "--noflush", "-w"],
                "*nat\n:PORTMAP - [0:0]\n-A PORTMAP -j KUBE-MARK-MASQ\nCOMMIT\n*filter\n:OTHER - [0:0]\n\
                 -A OTHER -m set --match-set KUBE-NODE-PORT-UDP dst -j DROP\nCOMMIT\n",
            )?;
            world.write("web.yaml", &format!("{}{}", node(), service()))?;
            let mut agent = started(world, &["--audit-period", "2s"])?;
            agent.process().wait_for("cannot remove all that kube-proxy has left", PATIENCE)?;
            let mut left = of_kube_proxy(host)?;
            left.sort_unstable();
            let save = format!("iptables-{flavour}-save");
            let wanted = [
                "KUBE-NODE-PORT-UDP".to_owned(),
                format!("{save}: -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"),
                format!("{save}: -A OTHER -m set --match-set KUBE-NODE-PORT-UDP dst -j DROP"),
                format!("{save}: -A PORTMAP -j KUBE-MARK-MASQ"),
                format!("{save}: :KUBE-MARK-MASQ -"),
            ];
            ensure!(left == wanted, "{flavour}: {left:?}");
            Ok(())
        });
    }
}

#[test]
fn k2_kube_proxy_hands_over_and_gets_back_without_a_lost_call_or_connection() {
    World::test(|world| {
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let pods = [&near, &far];
        let echo = |pod: &Pod| {
            let mut server = pod.start(&["probe", "serve", "--name", "echo", "--port", &ECHO.to_string(), "--echo"])?;
            server.wait_for("ready\n", PATIENCE).map(|()| server)
        };
        let _echoes = [echo(&near)?, echo(&far)?];
        let (client, host) = (world.pod("client", On::Node)?, world.node());
        kube_proxy(host, &pods)?;

        let mut calls: Vec<Calls> = Vec::new();
        let mut connections: Vec<Held> = Vec::new();
        let hold = |caller: &Netns, target: String, count| Held::open(caller, Protocol::Tcp, &target, count, INTERVAL);
        for family in Family::ALL {
            for caller in [&*client, world.ext()] {
                calls.push(keep_calling(caller, &target(vip(family, 10), 80))?);
                connections.push(hold(caller, target(vip(family, 10), 81), CONNECTIONS / 5)?);
            }
            calls.push(keep_calling(world.ext(), &target(node_address(family), NODE_PORT))?);
            connections.push(hold(world.ext(), target(node_address(family), ECHO_NODE_PORT), CONNECTIONS / 10)?);
        }
        // On an address where the agent does not serve node ports by default.
        let [_, on_bridge] = node_addresses(Family::V4);
        let elsewhere = connection(&client, on_bridge, ECHO_NODE_PORT)?;
        calls.iter().try_for_each(answered)?;

        world.write("web.yaml", &format!("{}{}{}", node(), service(), slices(&pods)))?;
        let mut agent = started(world, &["--audit-period", "2s"])?;
        agent.process().wait_for("removed what kube-proxy has left", PATIENCE)?;
        let left = of_kube_proxy(host)?;
        ensure!(left.is_empty(), "{left:?}");
        let addresses = host.exec(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?;
        ensure!(!addresses.contains("10.96.") && !addresses.contains("fd00:"), "{addresses}");
        calls.iter().try_for_each(|calls| made(calls, 5))?;
        connections.iter().try_for_each(|held| held.go_on(CONNECTIONS.into()))?;
        let refused = client.call(Protocol::Tcp, &target(on_bridge, ECHO_NODE_PORT), 1)?;
        ensure!(refused[0].outcome.as_ref().is_err_and(|error| error == "refused"), "{refused:?}");
        let elsewhere = [elsewhere];
        go_on(&elsewhere)?;
        drop(elsewhere);
        eventually(PATIENCE, || {
            let left: Vec<_> = virtual_servers(host)?.into_iter().filter(|line| line.contains(&format!("{on_bridge}:"))).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;

        // And back: the agent ends, kube-proxy takes over, and what only the agent had is removed.
        ensure!(agent.terminate()?.success());
        let early = world.kube_ipvs(&["cleanup", "--hand-over"]).expect_err("there is no kube-proxy yet").to_string();
        ensure!(early.contains("start it first"), "{early}");
        kube_proxy(host, &pods)?;
        let (its, servers) = (of_kube_proxy(host)?, virtual_servers(host)?);
        let between = world.kube_ipvs(&["cleanup"]).expect_err("kube-proxy is in charge").to_string();
        ensure!(between.contains("--hand-over"), "{between}");
        let said = world.kube_ipvs(&["cleanup", "--hand-over"])?;
        ensure!(said.contains("2 VIPs") && said.contains("packet rules"), "{said}");
        ensure!(of_kube_proxy(host)? == its && virtual_servers(host)? == servers, "what is kube-proxy's has changed");
        let sets = host.exec(&["ipset", "list", "-n"])?;
        ensure!(lines(&sets).count() == 2 * (SHARED.len() + OWN.len()), "{sets}");
        let rules = host.exec(&["iptables-save"])?;
        ensure!(!rules.contains("KUBE-IPVS-SERVICES"), "{rules}");
        calls.iter().try_for_each(|calls| made(calls, 5))?;
        connections.iter().try_for_each(|held| held.go_on(CONNECTIONS.into()))?;
        for calls in calls {
            ensure_all_answered(&calls.stop()?)?;
        }
        Ok(())
    });
}
