//! The packet matrix: callers × frontends × policies × endpoints × families × protocols, as `matrix.txt` has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail, ensure};
use testkit::manifest::EndpointSlice;
use testkit::{Family, NODE_V4, NODE_V6, Netns, On, Pod, Protocol, Reply, Result, Series, World};

use crate::support::{POD_PORT, node, node_address, node_addresses, serving, started, vip};

const TABLE: &str = include_str!("matrix.txt");

const FRONTENDS: [&str; 4] = ["ClusterIP", "externalIP", "LoadBalancer", "NodePort"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const ENDPOINTS: [&str; 4] = ["both", "remote", "none", "terminating"];
const CALLERS: [&str; 5] = ["pod", "node", "hostnetwork", "outside", "pod-of-other"];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Enough for two pods to get their turns, beside a health check or two that nobody planned.
const CALLS: usize = 4;

/// One Service for each policy and kind of endpoints, with all frontends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    policy: &'static str,
    endpoints: &'static str,
    number: u8,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let of_policy = |policy| ENDPOINTS.into_iter().map(move |endpoints| (policy, endpoints));
        (10..).zip(POLICIES.into_iter().flat_map(of_policy)).map(|(number, (policy, endpoints))| Self { policy, endpoints, number })
    }

    fn name(self) -> String {
        format!("{}-{}", self.policy, self.endpoints).to_lowercase()
    }

    fn node_port(self) -> u16 {
        30_000 + u16::from(self.number)
    }

    fn target(self, frontend: &str, family: Family) -> SocketAddr {
        let outside = |net: u8| match family {
            Family::V4 => IpAddr::from([198, 51, 100, net + self.number]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(net + self.number)]),
        };
        match frontend {
            "ClusterIP" => SocketAddr::new(vip(family, self.number), 80),
            "externalIP" => SocketAddr::new(outside(0), 80),
            "LoadBalancer" => SocketAddr::new(outside(100), 80),
            _ => SocketAddr::new(node_address(family), self.node_port()),
        }
    }

    fn manifests(self, near: &Pod, far: &Pod) -> String {
        let (name, policy, port) = (self.name(), self.policy, self.node_port());
        let list = |frontend| Family::ALL.map(|family| format!("\"{}\"", self.target(frontend, family).ip())).join(", ");
        let ingress = Family::ALL.map(|family| format!("{{ip: \"{}\"}}", self.target("LoadBalancer", family).ip())).join(", ");
        let ports = PROTOCOLS.map(|protocol| {
            let in_manifest = protocol.in_manifest();
            format!("  - {{name: {protocol}, protocol: {in_manifest}, port: 80, targetPort: {POD_PORT}, nodePort: {port}}}\n")
        });
        let service = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: LoadBalancer\n  \
             clusterIPs: [{}]\n  ipFamilies: [IPv4, IPv6]\n  externalIPs: [{}]\n  internalTrafficPolicy: {policy}\n  \
             externalTrafficPolicy: {policy}\n  ports:\n{}status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n",
            list("ClusterIP"),
            list("externalIP"),
            ports.concat()
        );
        let slice = |family| {
            let slice = PROTOCOLS
                .into_iter()
                .fold(EndpointSlice::of(&name, family), |slice, protocol| slice.port(&protocol.to_string(), protocol, POD_PORT));
            match self.endpoints {
                "both" => slice.pod(near).pod(far),
                "remote" => slice.pod(far),
                "terminating" => slice.pod(near).terminating(),
                _ => slice,
            }
        };
        service + &Family::ALL.map(|family| slice(family).to_string()).concat()
    }
}

/// The cells of the table, by frontend, policy, endpoints and caller.
fn table() -> Result<BTreeMap<[&'static str; 4], &'static str>> {
    let mut cells = BTreeMap::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [frontend, policy, endpoints, row @ ..] = &words[..] else { bail!("a short line: {line}") };
        ensure!(row.len() == CALLERS.len(), "not a cell for each caller: {line}");
        for (caller, cell) in CALLERS.into_iter().zip(row) {
            ensure!(cells.insert([*frontend, policy, endpoints, caller], *cell).is_none(), "twice: {line}");
        }
    }
    for frontend in FRONTENDS {
        for Case { policy, endpoints, .. } in Case::all() {
            ensure!(cells.contains_key(&[frontend, policy, endpoints, CALLERS[0]]), "no line for {frontend} {policy} {endpoints}");
        }
    }
    ensure!(cells.len() == FRONTENDS.len() * Case::all().count() * CALLERS.len(), "lines for what is not tried");
    Ok(cells)
}

/// What a series of calls came to, in the table's words.
fn cell(replies: &[Reply], family: Family, caller: IpAddr) -> String {
    let mut pods = BTreeSet::new();
    let mut sources = BTreeSet::new();
    for reply in replies {
        match &reply.outcome {
            Ok(answer) => {
                pods.insert(answer.name.as_str());
                let peer = answer.peer.ip();
                sources.insert(match peer {
                    _ if node_addresses(family).contains(&peer) => "node".to_owned(),
                    _ if peer == caller => "own".to_owned(),
                    _ => peer.to_string(),
                });
            }
            Err(error) => {
                sources.insert(match error.as_str() {
                    "timeout" => "dropped".to_owned(),
                    // To a sender on the node itself the kernel says so, without a packet.
                    "Operation not permitted (os error 1)" => "refused".to_owned(),
                    error => error.to_owned(),
                });
            }
        }
    }
    // "near" before "far", as the table has them.
    let pods = pods.into_iter().rev().collect::<Vec<_>>().join(",");
    let sources = sources.into_iter().collect::<Vec<_>>().join(",");
    if pods.is_empty() { sources } else { format!("{pods}={sources}") }
}

#[test]
fn c1_c2_c3_every_caller_gets_what_the_packet_matrix_says() {
    World::test(|world| {
        let table = table()?;
        let (near, _serve_near) = serving(world, "near", On::Node)?;
        let (far, _serve_far) = serving(world, "far", On::Node2)?;
        let (client, other) = (world.pod("client", On::Node)?, world.pod("other", On::Node2)?);
        for netns in [world.ext(), world.node2()] {
            netns.exec(&["ip", "route", "add", "198.51.100.0/24", "via", &NODE_V4.to_string()])?;
            netns.exec(&["ip", "route", "add", "2001:db8::/64", "via", &NODE_V6.to_string()])?;
        }
        // By default the kernel refuses one call a second of each caller, and lets the others wait.
        world.node().exec(&[
            "sh",
            "-c",
            "cd /proc/sys/net; echo 0 >ipv4/icmp_ratelimit; echo 0 >ipv4/icmp_ratemask; echo 0 >ipv6/icmp/ratelimit",
        ])?;
        let manifests: String = Case::all().map(|case| case.manifests(&near, &far)).collect();
        world.write("services.yaml", &format!("{}{manifests}", node()))?;
        let _agent = started(world, &[])?;

        // IPVS finds the connection of a reply by client and real server alone. A client that calls two VIPs with one port at once may be given the same
        // pod for both, and then one of them never gets its answers: so no two calls here have a port in common.
        let mut first_ports = (10_000..).step_by(CALLS);
        let mut wrong = Vec::new();
        let mut right = 0;
        for caller in CALLERS {
            let (netns, source): (&Netns, [IpAddr; 2]) = match caller {
                "pod" => (&client, Family::ALL.map(|family| client.address(family))),
                "node" | "hostnetwork" => (world.node(), Family::ALL.map(node_address)),
                "outside" => (world.ext(), [testkit::EXT_V4.into(), testkit::EXT_V6.into()]),
                _ => (&other, Family::ALL.map(|family| other.address(family))),
            };
            let mut places = Vec::new();
            let mut series = Vec::new();
            for (family, source) in Family::ALL.into_iter().zip(source) {
                for protocol in PROTOCOLS {
                    for case in Case::all() {
                        for frontend in FRONTENDS {
                            let wanted =
                                *table.get(&[frontend, case.policy, case.endpoints, caller]).context("a cell is missing")?;
                            if wanted != "-" {
                                places.push((frontend, case, family, protocol, source, wanted));
                                let target = case.target(frontend, family);
                                let source = (caller == "hostnetwork").then_some(source);
                                let first_port = first_ports.next().context("no ports are left")?;
                                series.push(Series { protocol, target, source, first_port });
                            }
                        }
                    }
                }
            }
            let replies = netns.call_side_by_side(&series, CALLS)?;
            for ((frontend, case, family, protocol, source, wanted), replies) in places.into_iter().zip(replies) {
                let seen = cell(&replies, family, source);
                if seen == wanted {
                    right += 1;
                } else {
                    let Case { policy, endpoints, .. } = case;
                    wrong.push(format!(
                        "{frontend} {policy} {endpoints}, {caller} over {family} {protocol}: {seen} instead of {wanted}"
                    ));
                }
            }
        }
        ensure!(wrong.is_empty(), "{right} cells are right, and {} are not:\n{}", wrong.len(), wrong.join("\n"));
        ensure!(right == 4 * (FRONTENDS.len() * 8 * CALLERS.len() - 8), "only {right} cells were tried");
        Ok(())
    });
}
