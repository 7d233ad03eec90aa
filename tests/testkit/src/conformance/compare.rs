//! What a case wants against what a node's kernel holds, by meaning.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::Value;

use crate::conformance::case::{self, Kind, ObjectName, Wanted, family_of};
use crate::conformance::observed::{self, Observed, Service, key, plain_member, real_server};
use crate::{Family, Result};

/// The sets that have the same name and the same members in the agent.
const SAME: &[&str] = &[
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-CIDR",
    "IPVS-IPS",
];

/// The sets of frontends that only endpoints on the node answer.
const LOCAL: &[&str] = &["EXTERNAL-IP-LOCAL", "LOAD-BALANCER-LOCAL", "NODE-PORT-LOCAL-ADDRESS"];

/// All objects of the moment.
pub(super) type Objects = BTreeMap<ObjectName, Value>;

/// How the kernel differs, but for packet rules and flows.
pub(super) fn differences(wanted: &Wanted, observed: &Observed, objects: &Objects) -> Result<Vec<String>> {
    let wanted_servers = wanted_servers(wanted);
    let mut differences = compare("virtual servers", &lines(&wanted_servers), &lines(&observed.virtual_servers));
    differences.extend(compare("sets", &wanted_members(wanted)?, &members(observed)));
    let bound = wanted.bound_addresses.iter().map(ToString::to_string).collect();
    differences.extend(compare("bound addresses", &bound, &observed.bound));
    differences.extend(compare(
        "closed to the node",
        &wanted.node_access_drop.iter().cloned().collect(),
        &closed_to_the_node(observed),
    ));
    differences.extend(laws(observed, &wanted_servers, objects));
    Ok(differences)
}

fn wanted_servers(wanted: &Wanted) -> BTreeMap<String, Service> {
    let servers = wanted.virtual_servers.iter().map(|server| {
        let real_servers = server.real_servers.iter().map(|real| real_server(real.address, real.port, real.weight)).collect();
        let config = observed::config(&server.scheduler, server.flags, server.persistence);
        (key(server.address, &server.protocol.to_string(), server.port), Service { config, real_servers })
    });
    servers.collect()
}

fn lines(servers: &BTreeMap<String, Service>) -> BTreeSet<String> {
    let line = |(key, service): (&String, &Service)| {
        let real_servers: Vec<_> = service.real_servers.iter().map(String::as_str).collect();
        format!("{key} {} [{}]", service.config, real_servers.join(", "))
    };
    servers.iter().map(line).collect()
}

/// The members a case wants, in words that both sides have.
fn wanted_members(wanted: &Wanted) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for (name, members) in &wanted.sets {
        let (family, role) = split_name(name).with_context(|| format!("{name} is no set of kube-proxy's"))?;
        for member in members {
            let member = plain_member(member);
            all.insert(match role {
                "NODE-PORT-TCP" => format!("{family} node port tcp:{member}"),
                "NODE-PORT-UDP" => format!("{family} node port udp:{member}"),
                "NODE-PORT-SCTP-HASH" => format!("{family} node port {member}"),
                "NODE-PORT-LOCAL-TCP" => format!("{family} local node port tcp:{member}"),
                "NODE-PORT-LOCAL-UDP" => format!("{family} local node port udp:{member}"),
                // A name has 31 characters at most.
                "NODE-PORT-LOCAL-SCTP-HASH" | "NODE-PORT-LOCAL-SCTP-HAS" => format!("{family} local node port {member}"),
                "LOAD-BALANCER-SOURCE-CID" => format!("{family} LOAD-BALANCER-SOURCE-CIDR {member}"),
                "LOAD-BALANCER-SOURCE-IP" => {
                    let (frontend, _) = member.rsplit_once(',').with_context(|| format!("{name} has {member}"))?;
                    format!("{family} open to the node {frontend}")
                }
                "HEALTH-CHECK-NODE-PORT" => format!("{family} health check {member}"),
                role if SAME.contains(&role) => format!("{family} {role} {member}"),
                _ => anyhow::bail!("{name} is a set that is not compared here"),
            });
        }
    }
    Ok(all)
}

/// The members of the agent's sets in the same words. Sets of other tools, and those that have laws of their own, are left out.
fn members(observed: &Observed) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (name, members) in &observed.sets {
        let Some((family, role)) = split_name(name) else { continue };
        for member in members {
            let port = member.rsplit_once(',').map_or(member.as_str(), |(_, port)| port);
            let by_port = if port.starts_with("sctp:") { member } else { port };
            all.insert(match role {
                "NODE-PORT-ADDRESS" => format!("{family} node port {by_port}"),
                "NODE-PORT-LOCAL-ADDRESS" => format!("{family} local node port {by_port}"),
                "LOAD-BALANCER-SOURCE-NODE" | "LOAD-BALANCER-SOURCE-NOD" => format!("{family} open to the node {member}"),
                "LOAD-BALANCER-SOURCE-CID" => format!("{family} LOAD-BALANCER-SOURCE-CIDR {member}"),
                "HEALTH-CHECK-ADDRESS" => format!("{family} health check {}", port.trim_start_matches("tcp:")),
                role if SAME.contains(&role) => format!("{family} {role} {member}"),
                _ => continue,
            });
        }
    }
    all
}

fn split_name(name: &str) -> Option<(Family, &str)> {
    let rest = name.strip_prefix("KUBE-")?;
    Some(rest.strip_prefix("6-").map_or((Family::V4, rest), |rest| (Family::V6, rest)))
}

/// Restricted frontends that the node itself may not call.
fn closed_to_the_node(observed: &Observed) -> BTreeSet<String> {
    let of = |names: [&str; 2]| names.iter().flat_map(|name| observed.members(name)).cloned().collect::<BTreeSet<_>>();
    let restricted = of(["KUBE-LOAD-BALANCER-FW", "KUBE-6-LOAD-BALANCER-FW"]);
    &restricted - &of(["KUBE-LOAD-BALANCER-SOURCE-NODE", "KUBE-6-LOAD-BALANCER-SOURCE-NOD"])
}

/// What must be so of things that kube-proxy does not have.
fn laws(observed: &Observed, wanted: &BTreeMap<String, Service>, objects: &Objects) -> Vec<String> {
    let of = |roles: &[&str]| -> BTreeSet<String> {
        let names = roles.iter().flat_map(|role| [format!("KUBE-{role}"), format!("KUBE-6-{role}")]);
        names.flat_map(|name| observed.members(&name).cloned().collect::<Vec<_>>()).collect()
    };
    let mut broken = Vec::new();
    for member in of(&["NODE-PORT-ADDRESS"]).iter().filter(|member| !observed.virtual_servers.contains_key(*member)) {
        broken.push(format!("node port {member} has no virtual server"));
    }

    let local = of(LOCAL);
    broken.extend(compare("marked for callers inside the cluster", &local, &of(&["IN-CLUSTER-MARK"])));
    let has_server =
        |frontend: &&String| observed.virtual_servers.get(*frontend).is_some_and(|server| !server.real_servers.is_empty());
    let without: BTreeSet<String> = local.iter().filter(|frontend| !has_server(frontend)).cloned().collect();
    broken.extend(compare("without local endpoint", &without, &of(&["NO-LOCAL-ENDPOINT"])));

    let mut marks = BTreeSet::new();
    for (frontend, mark) in &observed.marks {
        let family = if frontend.contains("::") || frontend.matches(':').count() > 1 { Family::V6 } else { Family::V4 };
        if !marks.insert((family, *mark)) {
            broken.push(format!("{frontend} shares its mark {mark:#x}"));
        }
        let Some(marked) = observed.marked.get(&(family, *mark)) else {
            broken.push(format!("{frontend} has the mark {mark:#x} and no virtual server behind it"));
            continue;
        };
        let config = observed.virtual_servers.get(frontend).map(|server| server.config.as_str());
        if config != Some(&marked.config) {
            broken.push(format!("{frontend} is {config:?} and behind its mark {:?}", marked.config));
        }
        match all_endpoints(frontend, wanted, objects) {
            None => broken.push(format!("{frontend} has a mark and is no Service's")),
            Some(all) => broken.extend(compare(&format!("{frontend} inside the cluster"), &all, &serving(&marked.real_servers))),
        }
    }
    for (family, mark) in observed.marked.keys().filter(|key| !marks.contains(*key)) {
        broken.push(format!("no frontend has the mark {mark:#x} of an {family} virtual server"));
    }
    broken
}

/// Those that are not draining.
fn serving(real_servers: &BTreeSet<String>) -> BTreeSet<String> {
    real_servers.iter().filter(|real| !real.ends_with("weight 0")).cloned().collect()
}

/// The real servers of a frontend under policy `Cluster`: those of its Service's ClusterIP or, if that is not for all, all that are ready, or
/// else those that still serve.
fn all_endpoints(frontend: &str, wanted: &BTreeMap<String, Service>, objects: &Objects) -> Option<BTreeSet<String>> {
    let (address, rest) = frontend.split_once(',')?;
    let (protocol, number) = rest.split_once(':')?;
    let number: u64 = number.parse().ok()?;
    let address = case::address(address).ok()?;
    let services = objects.iter().filter(|((kind, ..), _)| *kind == Kind::Service);
    let (name, service, port) = services.into_iter().find_map(|(name, service)| {
        let externals = [("/spec/externalIPs", ""), ("/status/loadBalancer/ingress", "/ip")];
        let is_external = externals.iter().any(|(list, item)| {
            let addresses = service
                .pointer(list)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.pointer(item)?.as_str());
            addresses.filter_map(|text| case::address(text).ok()).any(|external| external == address)
        });
        let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
        let mut ports = ports.filter(|port| text(port, "/protocol", "TCP").eq_ignore_ascii_case(protocol));
        let key = if is_external { "/port" } else { "/nodePort" };
        ports.find(|port| port.pointer(key).and_then(Value::as_u64) == Some(number)).map(|port| (name, service, port))
    })?;

    let cluster_ips = service.pointer("/spec/clusterIPs").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let mut cluster_ips =
        cluster_ips.chain(service.pointer("/spec/clusterIP").and_then(Value::as_str)).filter_map(|text| case::address(text).ok());
    let cluster_ip = cluster_ips.find(|ip| family_of(*ip) == family_of(address));
    if text(service, "/spec/internalTrafficPolicy", "Cluster") == "Cluster"
        && let Some(server) = cluster_ip.and_then(|ip| wanted.get(&format!("{ip},{protocol}:{}", port.get("port")?)))
    {
        return Some(serving(&server.real_servers));
    }

    let (mut ready, mut leaving) = (BTreeSet::new(), BTreeSet::new());
    let slices = objects.iter().filter(|((kind, namespace, _), slice)| {
        let label = slice.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str);
        *kind == Kind::EndpointSlice
            && *namespace == name.1
            && label == Some(&name.2)
            && text(slice, "/addressType", "") == family_of(address).to_string()
    });
    for (_, slice) in slices {
        let ports = slice.pointer("/ports").and_then(Value::as_array).into_iter().flatten();
        let same = |of: &&Value| {
            text(of, "/name", "") == text(port, "/name", "") && text(of, "/protocol", "TCP").eq_ignore_ascii_case(protocol)
        };
        let numbers: Vec<u16> = ports.filter(same).filter_map(|of| of.get("port")?.as_u64()?.try_into().ok()).collect();
        for endpoint in slice.pointer("/endpoints").and_then(Value::as_array).into_iter().flatten() {
            let Some(ip) = endpoint.pointer("/addresses/0").and_then(Value::as_str).and_then(|text| case::address(text).ok())
            else {
                continue;
            };
            let condition = |name: &str| endpoint.pointer(&format!("/conditions/{name}")).and_then(Value::as_bool);
            let is_ready = condition("ready").unwrap_or(true);
            let serves = condition("serving").unwrap_or(is_ready) && condition("terminating").unwrap_or(false);
            let entries = numbers.iter().map(|number| real_server(ip, *number, 1));
            if is_ready {
                ready.extend(entries);
            } else if serves {
                leaving.extend(entries);
            }
        }
    }
    Some(if ready.is_empty() { leaving } else { ready })
}

fn text<'a>(value: &'a Value, pointer: &str, default: &'a str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or(default)
}

/// What is missing on one side and surplus on the other.
pub(super) fn compare(what: &str, wanted: &BTreeSet<String>, observed: &BTreeSet<String>) -> Vec<String> {
    let missing = wanted.difference(observed).map(|entry| format!("{what}: missing {entry}"));
    let surplus = observed.difference(wanted).map(|entry| format!("{what}: surplus {entry}"));
    missing.chain(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_are_the_same_however_sets_hold_them() {
        let observed = Observed::read(
            "@@sets\nadd KUBE-NODE-PORT-ADDRESS 172.21.5.17,tcp:31412\nadd KUBE-6-NODE-PORT-LOCAL-ADDRESS 2001:db8::1,sctp:31491\n\
             add KUBE-LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,198.18.0.1\nadd OTHERS 1.2.3.4\n",
        )
        .unwrap();
        let wanted = [
            "IPv4 LOAD-BALANCER-SOURCE-CIDR 192.0.2.1,tcp:80,198.18.0.1",
            "IPv4 node port tcp:31412",
            "IPv6 local node port 2001:db8::1,sctp:31491",
        ];
        assert_eq!(members(&observed), wanted.map(str::to_owned).into());
        assert_eq!(plain_member("192.0.2.1,tcp:80,198.18.0.1/32"), "192.0.2.1,tcp:80,198.18.0.1");
    }

    #[test]
    fn a_frontend_of_policy_local_leads_everywhere_inside_the_cluster() {
        let objects = Objects::from([
            (
                (Kind::Service, "shop".to_owned(), "web".to_owned()),
                serde_json::json!({"spec": {"internalTrafficPolicy": "Local", "externalIPs": ["192.0.2.7"], "ports": [{"name": "http", "port": 80}]}}),
            ),
            (
                (Kind::EndpointSlice, "shop".to_owned(), "web-1".to_owned()),
                serde_json::json!({
                    "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                    "ports": [{"name": "http", "port": 8080}],
                    "endpoints": [
                        {"addresses": ["10.1.1.1"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                        {"addresses": ["10.1.1.2"]}
                    ]
                }),
            ),
        ]);
        let all = all_endpoints("192.0.2.7,tcp:80", &BTreeMap::new(), &objects);
        assert_eq!(all, Some(BTreeSet::from(["10.1.1.2#8080 weight 1".to_owned()])));
        assert_eq!(all_endpoints("192.0.2.8,tcp:80", &BTreeMap::new(), &objects), None);
    }
}
