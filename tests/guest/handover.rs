//! From kube-proxy in IPVS mode to this agent, and back, under traffic.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Calls, Family, Netns, On, Pod, Process, Protocol, Result, World, answers, eventually, shares};

use crate::held::{Held, go_on};
use crate::support::{
    PATIENCE, POD_PORT, answered, ensure_all_answered, lines, made, node, node_address, node_addresses, serving, started, target,
    vip, virtual_servers,
};

const NODE_PORT: u16 = 30080;
/// The port where pods send back what they get, and the node port for it.
const ECHO: u16 = 8081;
const ECHO_NODE_PORT: u16 = 30081;

/// The number of the Service whose clients stay with their pods, and for how many seconds they do, which is the API's default.
const STICKY: u8 = 11;
const AFFINITY: u32 = 10800;

/// All that are held together, in two families.
const CONNECTIONS: u32 = 500;
const INTERVAL: Duration = Duration::from_secs(2);

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

/// What a virtual server of kube-proxy serves, and the pods' port behind it.
struct Frontend {
    address: IpAddr,
    port: u16,
    protocol: Protocol,
    pod_port: u16,
    sticky: bool,
}

impl Frontend {
    const fn new(address: IpAddr, port: u16, pod_port: u16) -> Self {
        Self { address, port, protocol: Protocol::Tcp, pod_port, sticky: false }
    }

    /// As ipvsadm names it.
    fn key(&self) -> String {
        let option = if self.protocol == Protocol::Udp { "-u" } else { "-t" };
        format!("{option} {}", target(self.address, self.port))
    }
}

/// The frontends of a family, of a ClusterIP with node ports.
fn frontends(family: Family) -> Vec<Frontend> {
    let cluster_ip = vip(family, 10);
    let mut frontends = vec![Frontend::new(cluster_ip, 80, POD_PORT), Frontend::new(cluster_ip, 81, ECHO)];
    for address in node_addresses(family) {
        frontends.extend([Frontend::new(address, NODE_PORT, POD_PORT), Frontend::new(address, ECHO_NODE_PORT, ECHO)]);
    }
    frontends
}

/// The same, with a port over UDP and a Service with affinity.
fn frontends_of_all_kinds(family: Family) -> Vec<Frontend> {
    let mut frontends = frontends(family);
    frontends.push(Frontend { protocol: Protocol::Udp, ..Frontend::new(vip(family, 10), 80, POD_PORT) });
    frontends.push(Frontend { sticky: true, ..Frontend::new(vip(family, STICKY), 80, POD_PORT) });
    frontends
}

/// Puts a node into the state in which kube-proxy in IPVS mode has it. What is there already it takes over, as kube-proxy does.
pub(crate) fn kube_proxy(node: &Netns, pods: &[&Pod]) -> Result {
    kube_proxy_with("nft", node, pods, frontends)
}

/// The same, with packet rules in a flavour of iptables, and with these frontends.
fn kube_proxy_with(flavour: &str, node: &Netns, pods: &[&Pod], frontends: fn(Family) -> Vec<Frontend>) -> Result {
    node.exec(&[
        "sh",
        "-c",
        "cd /proc/sys/net/ipv4/vs && for s in conntrack expire_nodest_conn expire_quiescent_template; do echo 1 >$s; done",
    ])?;
    let (mut sets, mut table, mut bound) = (String::new(), String::new(), BTreeSet::new());
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
        let mut add = |set: &str, member: String| {
            let _ = writeln!(sets, "add {} {member} -exist", name(family, set));
        };
        let on_node = node_addresses(family);
        for frontend in frontends(family) {
            let Frontend { address, port, protocol, pod_port, sticky } = frontend;
            if on_node.contains(&address) {
                add("NODE-PORT-TCP", port.to_string());
            } else {
                add("IPVS-IPS", address.to_string());
                add("CLUSTER-IP", format!("{address},{protocol}:{port}"));
                bound.insert(address);
            }
            for pod in pods.iter().filter(|pod| pod.on() == On::Node).map(|pod| pod.address(family)) {
                add("LOOP-BACK", format!("{pod},{protocol}:{pod_port},{pod}"));
            }
            let key = frontend.key();
            if present.contains(&format!("{key} ")) {
                continue;
            }
            let persistence = if sticky { format!(" -p {AFFINITY}") } else { String::new() };
            let _ = writeln!(table, "-A {key} -s rr{persistence}");
            for pod in pods {
                let _ = writeln!(table, "-a {key} -r {} -m -w 1", target(pod.address(family), pod_port));
            }
        }
    }
    node.exec_with_input(&["ipset", "restore"], &sets)?;
    let _ = node.try_exec(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"])?;
    node.exec_with_input(&["ipvsadm", "-R"], &table)?;
    for address in bound {
        node.exec(&["ip", "address", "replace", &address.to_string(), "dev", "kube-ipvs0"])?;
    }
    for family in Family::ALL {
        node.exec_with_input(&[&format!("{}-{flavour}-restore", iptables(family)), "--noflush", "-w"], &rules(family))?;
    }
    Ok(())
}

const fn iptables(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn rules(family: Family) -> String {
    let (pods, loopback) = match family {
        Family::V4 => ("10.244.0.0/16", "127.0.0.0/8"),
        Family::V6 => ("fd00:244::/56", "::1/128"),
    };
    RULES.replace('@', begin(family)).replace('%', pods).replace('^', loopback)
}

/// What a kube-proxy does that has not ended: each second it has all that it wants of virtual servers, sets, addresses and rules as it was when this
/// began. The rules that lead to its chains it adds where there are none.
const KEEPS_PUTTING_BACK: &str = "cd /run && ipvsadm -Sn >servers && ipset save >sets || exit 1
ip -o address show dev kube-ipvs0 | sed -n 's/.* inet6* \\([^ ]*\\) .*/\\1/p' | grep -v fe80 >addresses
while :; do
    ipvsadm -Sn >now
    if [ -s now ]; then grep -vxFf now servers; else cat servers; fi | ipvsadm -R
    ipset restore -exist <sets
    while read address; do ip address replace $address dev kube-ipvs0; done <addresses
    for iptables in iptables ip6tables; do
        if $iptables-nft-save -t nat | grep -q 'A PREROUTING .* -j KUBE-SERVICES'; then its=chains; else its=rules; fi
        $iptables-nft-restore --noflush -w <$iptables.$its
    done
    echo put back; sleep 1
done";

/// Starts it, on a node in the state of kube-proxy.
fn rival(node: &Netns) -> Result<Process> {
    for family in Family::ALL {
        let (iptables, rules) = (iptables(family), rules(family));
        let chains: String = rules.lines().filter(|line| !line.starts_with("-I ")).map(|line| format!("{line}\n")).collect();
        for (file, text) in [("rules", &rules), ("chains", &chains)] {
            node.exec_with_input(&["sh", "-c", "cat >/run/$0", &format!("{iptables}.{file}")], text)?;
        }
    }
    let mut rival = node.start(&["sh", "-c", KEEPS_PUTTING_BACK])?;
    rival.wait_for("put back", PATIENCE)?;
    Ok(rival)
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

/// With a port over UDP, and another Service whose clients stay with their pods.
fn services_of_all_kinds(pods: &[&Pod]) -> String {
    let web = service().port("udp", Protocol::Udp, 80, POD_PORT);
    let sticky = Service::new("sticky").spec("sessionAffinity: ClientIP").port("tcp", Protocol::Tcp, 80, POD_PORT);
    let sticky = Family::ALL.iter().fold(sticky, |service, family| service.cluster_ip(&vip(*family, STICKY).to_string()));
    format!("{web}{sticky}{}{}", slices("web", pods), slices("sticky", pods))
}

fn slices(service: &str, pods: &[&Pod]) -> String {
    let slice = |family| {
        let slice = EndpointSlice::of(service, family).port("tcp", Protocol::Tcp, POD_PORT).port("udp", Protocol::Udp, POD_PORT);
        let slice = slice.port("echo", Protocol::Tcp, ECHO);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    Family::ALL.map(slice).concat()
}

/// Which pod each of the callers has, in both families: all with affinity, and so always the same.
fn stays(callers: [&Netns; 2]) -> Result<Vec<String>> {
    let mut pods = Vec::new();
    for family in Family::ALL {
        for caller in callers {
            let answers = answers(caller.call(Protocol::Tcp, &target(vip(family, STICKY), 80), 3)?)?;
            let shares = shares(&answers);
            ensure!(shares.len() == 1, "{} was answered by {shares:?}", caller.name());
            pods.extend(shares.keys().map(|name| (*name).to_owned()));
        }
    }
    Ok(pods)
}

/// A node with kube-proxy and two pods, and all who use them.
struct Scene {
    pods: [Pod; 2],
    client: Pod,
    calls: Vec<Calls>,
    connections: Vec<Held>,
    _servers: [Process; 4],
}

impl Scene {
    /// Brings `connections` of them about, a fifth of which are to each ClusterIP from a pod and from outside, and a tenth to each node port.
    fn new(world: &World, connections: u32) -> Result<Self> {
        let (near, serve_near) = serving(world, "near", On::Node)?;
        let (far, serve_far) = serving(world, "far", On::Node2)?;
        let echo = |pod: &Pod| {
            let mut server = pod.start(&["probe", "serve", "--name", "echo", "--port", &ECHO.to_string(), "--echo"])?;
            server.wait_for("ready\n", PATIENCE).map(|()| server)
        };
        let servers = [serve_near, serve_far, echo(&near)?, echo(&far)?];
        let client = world.pod("client", On::Node)?;
        let mut scene = Self { pods: [near, far], client, calls: Vec::new(), connections: Vec::new(), _servers: servers };
        kube_proxy_with("nft", world.node(), &scene.pods(), frontends_of_all_kinds)?;
        for family in Family::ALL {
            for caller in [&*scene.client, world.ext()] {
                scene.calls.push(caller.keep_calling_apart(&target(vip(family, 10), 80))?);
                scene.connections.push(hold(caller, &target(vip(family, 10), 81), connections / 5)?);
            }
            let datagrams = ["--interval-ms", "100", "--timeout-ms", "15000"];
            scene.calls.push(scene.client.keep_calling_with(Protocol::Udp, &target(vip(family, 10), 80), &datagrams)?);
            scene.calls.push(world.ext().keep_calling_apart(&target(node_address(family), NODE_PORT))?);
            scene.connections.push(hold(world.ext(), &target(node_address(family), ECHO_NODE_PORT), connections / 10)?);
        }
        scene.calls.iter().try_for_each(answered)?;
        Ok(scene)
    }

    fn pods(&self) -> [&Pod; 2] {
        self.pods.each_ref()
    }

    /// Waits until all connections have had further answers, and all callers have called again.
    fn go_on(&self) -> Result {
        self.calls.iter().try_for_each(|calls| made(calls, 5))?;
        go_on(&self.connections, 1)
    }

    fn end(self) -> Result {
        self.calls.into_iter().try_for_each(|calls| ensure_all_answered(&calls.stop()?))
    }
}

fn hold(caller: &Netns, target: &str, connections: u32) -> Result<Held> {
    Held::open(caller, Protocol::Tcp, target, connections, INTERVAL)
}

/// In the flavour of iptables that the kube-proxy before had, and when something of it has to stay because others use it.
#[test]
fn k2_what_kube_proxy_has_left_goes_in_every_flavour_but_for_what_others_use() {
    for flavour in ["nft", "legacy"] {
        World::test(|world| {
            let host = world.node();
            kube_proxy_with(flavour, host, &[], frontends)?;
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

/// They and their rules stay, which is no sign of a kube-proxy that runs.
#[test]
fn k2_a_chain_of_kube_proxy_that_others_use_is_not_taken_for_one_that_was_put_back() {
    for (chain, said) in [
        // It asks a set, which so stays as well.
        ("KUBE-IPVS-FILTER", "cannot remove all that kube-proxy has left"),
        ("KUBE-IPVS-OUT-FILTER", "removed what kube-proxy has left"),
    ] {
        World::test(|world| {
            let host = world.node();
            kube_proxy(host, &[])?;
            let rule = format!("*filter\n:OTHER - [0:0]\n-A OTHER -j {chain}\nCOMMIT\n");
            host.exec_with_input(&["iptables-nft-restore", "--noflush", "-w"], &rule)?;
            world.write("web.yaml", &format!("{}{}", node(), service()))?;
            let mut agent = started(world, &["--audit-period", "2s"])?;
            agent.process().wait_for(said, PATIENCE)?;
            // Longer than it takes until somebody looks whether anything has come back.
            std::thread::sleep(Duration::from_secs(15));
            let log = agent.log()?;
            ensure!(log.matches("what kube-proxy has left").count() <= 2 && !log.contains("put back"), "{log}");
            let left = host.exec(&["iptables-nft-save", "-t", "filter"])?;
            ensure!(left.contains(&format!("-A OTHER -j {chain}")) && !left.contains("KUBE-FORWARD"), "{left}");
            Ok(())
        });
    }
}

#[test]
fn k2_kube_proxy_hands_over_and_gets_back_without_a_lost_call_or_connection() {
    World::test(|world| {
        let scene = Scene::new(world, CONNECTIONS)?;
        let (client, host) = (&scene.client, world.node());
        let affinity = || stays([client, world.ext()]);
        let with = affinity()?;
        ensure!(with.contains(&"near".to_owned()) && with.contains(&"far".to_owned()), "all clients have {with:?}");
        // On an address where the agent does not serve node ports by default.
        let [_, on_bridge] = node_addresses(Family::V4);
        let elsewhere = hold(client, &target(on_bridge, ECHO_NODE_PORT), 10)?;

        world.write("web.yaml", &format!("{}{}", node(), services_of_all_kinds(&scene.pods())))?;
        let mut agent = started(world, &["--audit-period", "2s"])?;
        agent.process().wait_for("removed what kube-proxy has left", PATIENCE)?;
        let left = of_kube_proxy(host)?;
        ensure!(left.is_empty(), "{left:?}");
        ensure_no_addresses(host)?;
        let now = affinity()?;
        ensure!(now == with, "clients with affinity had {with:?} and have {now:?}");
        scene.go_on()?;
        let refused = client.call(Protocol::Tcp, &target(on_bridge, ECHO_NODE_PORT), 1)?;
        ensure!(refused[0].outcome.as_ref().is_err_and(|error| error == "refused"), "{refused:?}");
        elsewhere.go_on(1)?;
        drop(elsewhere);
        eventually(PATIENCE, || ensure_none_on(host, on_bridge))?;
        let log = agent.log()?;
        ensure!(!log.contains("kube-proxy has put back"), "nobody has:\n{log}");

        // And back: the agent ends, kube-proxy takes over, and what only the agent had is removed.
        ensure!(agent.terminate()?.success());
        let early = world.kube_ipvs(&["cleanup", "--hand-over"]).expect_err("there is no kube-proxy yet").to_string();
        ensure!(early.contains("start it first"), "{early}");
        kube_proxy_with("nft", host, &scene.pods(), frontends_of_all_kinds)?;
        let (its, servers) = (of_kube_proxy(host)?, virtual_servers(host)?);
        let between = world.kube_ipvs(&["cleanup"]).expect_err("kube-proxy is in charge").to_string();
        ensure!(between.contains("--hand-over"), "{between}");
        let said = world.kube_ipvs(&["cleanup", "--hand-over"])?;
        ensure!(said.contains("4 VIPs") && said.contains("packet rules"), "{said}");
        ensure!(of_kube_proxy(host)? == its && virtual_servers(host)? == servers, "what is kube-proxy's has changed");
        let sets = host.exec(&["ipset", "list", "-n"])?;
        ensure!(lines(&sets).count() == 2 * (SHARED.len() + OWN.len()), "{sets}");
        let rules = host.exec(&["iptables-save"])?;
        ensure!(!rules.contains("KUBE-IPVS-SERVICES"), "{rules}");
        scene.go_on()?;
        let back = affinity()?;
        ensure!(back == with, "clients with affinity had {with:?} and have {back:?}");
        scene.end()
    });
}

/// As on a node whose kube-proxy is still on its way out, or was forgotten.
#[test]
fn k2_a_kube_proxy_that_has_not_ended_costs_nothing_and_what_it_puts_back_goes_in_the_end() {
    World::test(|world| {
        let scene = Scene::new(world, CONNECTIONS / 5)?;
        let host = world.node();
        let affinity = || stays([&scene.client, world.ext()]);
        let with = affinity()?;
        world.write("web.yaml", &format!("{}{}", node(), services_of_all_kinds(&scene.pods())))?;
        let mut rival = rival(host)?;
        let mut agent = started(world, &["--audit-period", "2s"])?;
        agent.process().wait_for("removed what kube-proxy has left", PATIENCE)?;
        agent.process().wait_for("kube-proxy has put back what was removed of it", PATIENCE)?;
        scene.go_on()?;

        // Between two rounds: one that ends in the midst of what it does leaves virtual servers that none of its sets lists, which could be anybody's.
        let rounds = rival.output()?.matches("put back").count();
        eventually(PATIENCE, || {
            ensure!(rival.output()?.matches("put back").count() > rounds, "it puts nothing back");
            Ok(())
        })?;
        rival.kill()?;
        let [_, on_bridge] = node_addresses(Family::V4);
        // By then there is more patience with it than at first.
        eventually(2 * PATIENCE, || {
            let left = of_kube_proxy(host)?;
            ensure!(left.is_empty(), "{left:?}");
            ensure_no_addresses(host)?;
            ensure_none_on(host, on_bridge)
        })?;
        scene.go_on()?;
        let now = affinity()?;
        ensure!(now == with, "clients with affinity had {with:?} and have {now:?}");
        scene.end()
    });
}

/// Fails if a VIP is still bound in kube-proxy's way.
fn ensure_no_addresses(host: &Netns) -> Result {
    let addresses = host.exec(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?;
    ensure!(!addresses.contains("10.96.") && !addresses.contains("fd00:"), "{addresses}");
    Ok(())
}

/// Fails if there is a virtual server on an address.
fn ensure_none_on(host: &Netns, address: IpAddr) -> Result {
    let left: Vec<_> = virtual_servers(host)?.into_iter().filter(|line| line.contains(&format!("{address}:"))).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
