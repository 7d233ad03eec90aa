//! Who asks for a step, or why nobody does any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use desired::{ServiceName, Standing};
use model::{Family, Member, RealServer, RealServerKey, Role, Set, Via, Vip, VirtualServerConfig, VirtualServerKey};
use plan::{RulesChange, Step};

use super::document::{Change, Kind, Part};
use crate::survey::Survey;

pub(super) struct Why<'a> {
    survey: &'a Survey,
    askers: BTreeMap<(Set, Member), BTreeSet<&'a ServiceName>>,
}

impl<'a> Why<'a> {
    pub(super) fn of(survey: &'a Survey) -> Self {
        Self { survey, askers: survey.ledger.askers() }
    }

    pub(super) fn change(&self, step: &Step) -> Change {
        let change = match step {
            Step::CreateSet { .. } => Change { reason: "the packet rules ask it".to_owned(), ..Change::default() },
            Step::GrowSet { set, members, .. } => Change {
                kind: Kind::Edit,
                reason: format!("it is to hold {} members, and have room for as many again", members.len()),
                parts: self.new_members(*set, members),
                ..Change::default()
            },
            Step::ChangeRules(_, change) => rules(change),
            Step::AddMembers(set, members) => {
                let parts = self.members(*set, members);
                let services = parts.iter().flat_map(|part| part.services.iter().cloned()).collect();
                Change { reason: purpose(set.role).to_owned(), services, parts, ..Change::default() }
            }
            Step::AddVirtualServer { key, real_servers, .. } => {
                let parts = real_servers.iter().map(|(real, server)| Part {
                    text: format!("{real} {} weight {}", server.forwarding, server.weight),
                    ..Part::default()
                });
                Change { parts: parts.collect(), ..self.of_virtual_server(key) }
            }
            Step::SetVirtualServer { key, config } => {
                let mut change = Change { kind: Kind::Edit, ..self.of_virtual_server(key) };
                if let Some(held) = self.survey.observed.virtual_servers.get(key) {
                    change.parts =
                        differences(&held.config, config).into_iter().map(|text| Part { text, ..Part::default() }).collect();
                }
                change
            }
            Step::AddRealServer { key, .. } => self.of_virtual_server(key),
            Step::SetRealServer { key, real, server } if server.weight == 0 => Change {
                kind: Kind::Edit,
                reason: format!(
                    "{}; it gets no new connections, and goes when those that it has are over",
                    self.leaving(key, real)
                ),
                ..self.of_virtual_server(key)
            },
            Step::SetRealServer { key, real, .. } => {
                let mut change = Change { kind: Kind::Edit, ..self.of_virtual_server(key) };
                if let Some(held) = self.held(key, real) {
                    change.reason = format!("{}; it has {} weight {}", change.reason, held.forwarding, held.weight);
                }
                change
            }
            Step::BindVip { vip, .. } => self.of_vip(vip.address),
            Step::RebindVip { vip, source } => {
                let reason = match source {
                    _ if vip.via == Via::Address => {
                        "it is bound, and nothing reaches it: somebody has taken the routes that the kernel made for it".to_owned()
                    }
                    Some(source) => format!("the node's own connections to it are to come from {source}"),
                    None => "the node has no address of its own that connections to it could come from".to_owned(),
                };
                Change { kind: Kind::Edit, reason, ..self.of_vip(vip.address) }
            }
            Step::RemoveRealServer { key, real } => {
                Change { kind: Kind::Remove, reason: self.leaving(key, real), ..self.of_virtual_server(key) }
            }
            Step::UnbindVip(vip) => Change { kind: Kind::Remove, reason: self.unbinding(*vip), ..Change::default() },
            Step::RemoveVirtualServer(_) => Change {
                kind: Kind::Remove,
                reason: "it is listed as an agent's, and no Service has its address, port and protocol any more".to_owned(),
                ..Change::default()
            },
            Step::RemoveMembers(set, members) => Change {
                kind: Kind::Remove,
                reason: "no Service asks for it any more".to_owned(),
                parts: self.members(*set, members),
                ..Change::default()
            },
            Step::DestroySet(_) => Change { kind: Kind::Remove, reason: "nothing asks it".to_owned(), ..Change::default() },
        };
        Change { text: step.to_string(), ..change }
    }

    fn of_virtual_server(&self, key: &VirtualServerKey) -> Change {
        let Some(owner) = self.survey.ledger.owner(key) else {
            return Change { reason: "no Service has it any more".to_owned(), ..Change::default() };
        };
        let reason = match (key, self.survey.ledger.frontend(key)) {
            (VirtualServerKey::Mark { .. }, Some(frontend)) => {
                format!("Service {owner}: callers of {frontend} inside the cluster, whom policy Local is not for")
            }
            _ => {
                let fragment = self.survey.ledger.fragment(owner.service);
                let kind = fragment.and_then(|fragment| fragment.frontend(key)).map_or("", |frontend| frontend.kind.field());
                format!("Service {owner}, {kind}")
            }
        };
        Change { reason, services: [owner.service.to_string()].into(), ..Change::default() }
    }

    fn of_vip(&self, address: IpAddr) -> Change {
        let services = self.asking(Set::new(Role::Vips, Family::of(address)), Member::Ip(address));
        Change { reason: "IPVS takes packets only on their way into the node itself".to_owned(), services, ..Change::default() }
    }

    fn unbinding(&self, vip: Vip) -> String {
        let is_bound_otherwise = self.survey.desired.vips.keys().any(|desired| desired.address == vip.address);
        if is_bound_otherwise {
            return "it is to be bound in the other way (--vip-binding)".to_owned();
        }
        "no Service has the address any more, or the node has it itself".to_owned()
    }

    /// Why `real` is not to serve any more.
    fn leaving(&self, key: &VirtualServerKey, real: &RealServerKey) -> String {
        match self.survey.ledger.standing(key, real.address) {
            None => "no Service has its virtual server any more".to_owned(),
            Some(Standing::Terminating) => "its endpoint is terminating".to_owned(),
            Some(Standing::Present) => {
                "its endpoint is there and is not ready, has another port, or is not for this node (`kube-ipvs explain` says which)"
                    .to_owned()
            }
            Some(Standing::Gone) => "no EndpointSlice of the Service has it any more".to_owned(),
            Some(Standing::Stranded) => "its node is not ready".to_owned(),
        }
    }

    fn held(&self, key: &VirtualServerKey, real: &RealServerKey) -> Option<&RealServer> {
        self.survey.observed.virtual_servers.get(key)?.real_servers.get(real)
    }

    fn members(&self, set: Set, members: &BTreeSet<Member>) -> Vec<Part> {
        members.iter().map(|member| Part { text: member.to_string(), services: self.asking(set, *member) }).collect()
    }

    /// Those among `members` that the kernel does not have.
    fn new_members(&self, set: Set, members: &BTreeSet<Member>) -> Vec<Part> {
        let held = self.survey.observed.sets.get(&set);
        let added: BTreeSet<_> =
            members.iter().filter(|member| held.is_none_or(|held| !held.members.contains(member))).copied().collect();
        self.members(set, &added)
    }

    fn asking(&self, set: Set, member: Member) -> BTreeSet<String> {
        self.askers.get(&(set, member)).into_iter().flatten().map(ToString::to_string).collect()
    }
}

/// What the members of a set are there for.
const fn purpose(role: Role) -> &'static str {
    match role {
        Role::LoopBack => "pods of this node that reach themselves through their Service are masqueraded",
        Role::ClusterIp => "ClusterIPs: callers that are no pods are masqueraded",
        Role::ExternalIp => "external IPs: callers are masqueraded",
        Role::ExternalIpLocal => "external IPs with policy Local: callers keep their address",
        Role::LoadBalancer => "load balancer addresses: callers are masqueraded, but for policy Local",
        Role::LoadBalancerLocal => "load balancer addresses with policy Local: callers keep their address",
        Role::Restricted => "loadBalancerSourceRanges: only some may call",
        Role::SourceRange => "loadBalancerSourceRanges: these may call",
        Role::SourceNode => "loadBalancerSourceRanges: the node itself may call",
        Role::NodePort => "node ports: callers are masqueraded, but for policy Local",
        Role::NodePortLocal => "node ports with policy Local: callers keep their address",
        Role::InCluster => "policy Local is not for callers inside the cluster, whose packets get a mark",
        Role::NoLocal => "policy Local without an endpoint on this node: callers from outside are dropped",
        Role::HealthCheck => "health check node ports may be called on the Service's own addresses",
        Role::Vips => "what listens on all addresses does not answer on VIPs",
    }
}

fn rules(change: &RulesChange) -> Change {
    let rewritten = change.rewrite.iter().map(|(chain, rules)| format!("{} {}: {} rules", chain.table, chain.name, rules.len()));
    let inserted = change.insert.iter().map(|jump| format!("{} {}: jump to {}", jump.to.table, jump.from, jump.to.name));
    let deleted = change.delete.keys().map(|jump| format!("{} {}: no jump to {} any more", jump.to.table, jump.from, jump.to.name));
    let dropped = change.drop.iter().map(|chain| format!("{} {}: removed", chain.table, chain.name));
    let parts = rewritten.chain(inserted).chain(deleted).chain(dropped).map(|text| Part { text, ..Part::default() });
    Change {
        kind: if change.is_removal() { Kind::Remove } else { Kind::Add },
        reason: "they do what IPVS itself does not: masquerade, policy Local, source ranges; they do not grow with Services"
            .to_owned(),
        parts: parts.collect(),
        ..Change::default()
    }
}

/// What is different between two configurations of a virtual server, from the first to the second.
fn differences(held: &VirtualServerConfig, desired: &VirtualServerConfig) -> Vec<String> {
    let mut differences = Vec::new();
    if held.scheduler != desired.scheduler {
        differences.push(format!("scheduler {} to {}", held.scheduler, desired.scheduler));
    }
    if held.flags != desired.flags {
        differences.push(format!("flags {:#x} to {:#x}", held.flags.bits(), desired.flags.bits()));
    }
    let persistence = |config: &VirtualServerConfig| config.persistence.map_or("none".to_owned(), |seconds| format!("{seconds} s"));
    if held.persistence != desired.persistence {
        differences.push(format!("persistence {} to {}", persistence(held), persistence(desired)));
    }
    if held.granularity != desired.granularity {
        differences.push(format!("persistence over {} bits of the client's address to {}", held.granularity, desired.granularity));
    }
    differences
}
