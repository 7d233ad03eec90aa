//! What there is to say of one frontend.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use desired::{Callers, EndpointView, Index, Ledger, Owner, Standing, Verdict};
use model::{
    DEVICE, Direction, Flow, Member, Protocol, RealServer, RealServerKey, Role, Set, State, Via, Vip, VirtualServer,
    VirtualServerKey,
};
use plan::{Plan, Step};

use super::Traffic;
use super::callers::{Caller, Rules, Treatment};
use crate::drain::Limits;

/// How many flows are named; of more, the number is said.
const NAMED_FLOWS: usize = 10;

/// What is known of the node.
#[derive(Clone, Copy)]
pub(super) struct Story<'a> {
    pub(super) index: &'a Index,
    pub(super) ledger: &'a Ledger,
    /// What the kernel holds.
    pub(super) observed: &'a State,
    /// What is between that and what is desired.
    pub(super) plan: &'a Plan,
    pub(super) limits: Limits,
}

/// Text that is indented by what it belongs to.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, depth: usize, line: impl Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{:1$}{line}", "", depth * 2);
    }
}

impl Story<'_> {
    /// All there is to say of the frontend `key`, for one caller or for each kind of them.
    pub(super) fn tell(self, key: &VirtualServerKey, from: Option<IpAddr>, traffic: &Traffic) -> String {
        let mut text = Text::default();
        let owner = self.ledger.owner(key);
        match owner {
            Some(owner) => text.line(0, format_args!("{key} is Service {owner}{}", self.kind(owner, key))),
            None => text.line(0, format_args!("{key} is asked for by no Service")),
        }
        self.tell_address(&mut text, key);
        self.tell_server(&mut text, key, owner, Callers::Others, traffic);
        if let Some(in_cluster) = self.ledger.in_cluster(key) {
            text.line(1, format_args!("callers inside the cluster have {in_cluster} instead"));
            self.tell_server(&mut text, &in_cluster, owner, Callers::InCluster, traffic);
        }
        self.tell_drift(&mut text, key);
        if owner.is_some() {
            self.tell_callers(&mut text, key, from);
        }
        tell_flows(&mut text, traffic);
        text.0
    }

    fn kind(self, owner: Owner<'_>, key: &VirtualServerKey) -> String {
        let fragment = self.ledger.fragment(owner.service);
        let frontend = fragment.and_then(|fragment| fragment.frontend(key));
        frontend.map_or(String::new(), |frontend| format!(", by {}", frontend.kind.field()))
    }

    /// How packets to it come to be for the node.
    fn tell_address(self, text: &mut Text, key: &VirtualServerKey) {
        let VirtualServerKey::Address { address, .. } = *key else { return };
        let held = |via| self.observed.vips.get_key_value(&Vip::new(address, via));
        let own = self.index.facts().interfaces.iter().find(|entry| entry.address == address && &*entry.interface != DEVICE);
        match (held(Via::Route).or_else(|| held(Via::Address)), own) {
            (Some((vip, source)), _) => {
                let source =
                    source.map(|source| format!(", with source {source} for the node's own connections")).unwrap_or_default();
                text.line(1, format_args!("its address is bound: {vip}{source}"));
            }
            (None, Some(own)) => text.line(1, format_args!("its address is the node's own, on {}", own.interface)),
            (None, None) => {
                text.line(1, "its address is not bound: packets to it do not stay on this node, and IPVS does not see them");
            }
        }
    }

    fn tell_server(self, text: &mut Text, key: &VirtualServerKey, owner: Option<Owner<'_>>, callers: Callers, traffic: &Traffic) {
        let Some(server) = self.observed.virtual_servers.get(key) else {
            text.line(1, format_args!("the kernel has no virtual server {key}: IPVS leaves it alone"));
            return;
        };
        let persistence = server
            .config
            .persistence
            .map(|seconds| format!(", and a client stays with its real server for {seconds} s after its last connection"));
        let scheduler = server.config.scheduler;
        text.line(1, format_args!("the virtual server schedules by {scheduler}{}", persistence.unwrap_or_default()));
        let endpoints = match (owner, self.ledger.frontend(key)) {
            (Some(owner), Some(frontend)) => self.index.endpoints(owner.service, &frontend, callers),
            _ => Vec::new(),
        };
        self.tell_real_servers(text, key, server, &endpoints, traffic);
        let others: Vec<_> = endpoints.iter().filter(|endpoint| !server.real_servers.contains_key(&endpoint.real)).collect();
        if !others.is_empty() {
            text.line(2, "and not to");
        }
        for endpoint in others {
            let reason = match endpoint.verdict {
                Verdict::Chosen | Verdict::LastResort => "the kernel does not have it yet".to_owned(),
                verdict => why_not(verdict).to_owned(),
            };
            text.line(3, format_args!("{}{}: {reason}", endpoint.real, place(endpoint)));
        }
    }

    fn tell_real_servers(
        self,
        text: &mut Text,
        key: &VirtualServerKey,
        server: &VirtualServer,
        endpoints: &[EndpointView],
        traffic: &Traffic,
    ) {
        let (serving, leaving): (Vec<_>, Vec<_>) = server.real_servers.iter().partition(|(_, real)| real.weight > 0);
        if serving.is_empty() {
            text.line(2, "new connections are refused: no real server takes any");
        } else {
            text.line(2, "new connections go to");
        }
        for (real, settings) in serving {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.real == *real);
            let remark = match endpoint.map(|endpoint| endpoint.verdict) {
                Some(Verdict::LastResort) => "; it terminates and still serves, because no other is ready",
                Some(Verdict::Chosen) | None => "",
                Some(_) => "; it should not any more",
            };
            let place = endpoint.map(place).unwrap_or_default();
            text.line(3, format_args!("{real}{place}, {}{}{remark}", describe(settings), connections(traffic, key, real)));
        }
        if !leaving.is_empty() {
            text.line(2, "established connections alone stay with");
        }
        for (real, _) in leaving {
            let standing = match self.ledger.standing(key, real.address) {
                None => "no Service has its virtual server any more",
                Some(Standing::Terminating) => "its endpoint is terminating",
                Some(Standing::Gone) => "no EndpointSlice has it any more",
                Some(Standing::Stranded) => "its node is not ready",
                Some(Standing::Present) => match endpoints.iter().find(|endpoint| endpoint.real == *real) {
                    Some(endpoint) => why_not(endpoint.verdict),
                    None => "its endpoint has another port now",
                },
            };
            let drain = format!("draining for at most {} s since it left", self.limit(key, real).as_secs());
            text.line(3, format_args!("{real}: {standing}; {drain}{}", connections(traffic, key, real)));
        }
    }

    /// How long a real server that has left keeps its connections.
    fn limit(self, key: &VirtualServerKey, real: &RealServerKey) -> Duration {
        let Limits { connections, datagrams, vanished } = self.limits;
        let frontend = self.ledger.frontend(key).unwrap_or(*key);
        let limit = match frontend {
            VirtualServerKey::Address { protocol: Protocol::Udp, .. } => datagrams,
            _ => self.ledger.parting(key).and_then(|parting| parting.drain_timeout).unwrap_or(connections),
        };
        match self.ledger.standing(key, real.address) {
            Some(Standing::Gone | Standing::Stranded) => limit.min(vanished),
            _ => limit,
        }
    }

    /// The steps that are due and about this frontend.
    fn tell_drift(self, text: &mut Text, key: &VirtualServerKey) {
        let in_cluster = self.ledger.in_cluster(key);
        let is_about = |member: &Member| {
            member.frontend() == Some(*key)
                || matches!((member, key), (Member::Ip(ip), VirtualServerKey::Address { address, .. }) if ip == address)
        };
        let concerns = |step: &&Step| match step {
            Step::AddMembers(_, members) | Step::RemoveMembers(_, members) => members.iter().any(is_about),
            Step::BindVip { vip, .. } | Step::RebindVip { vip, .. } | Step::UnbindVip(vip) => is_about(&Member::Ip(vip.address)),
            Step::ChangeRules(family, _) => *family == key.family(),
            step => step.virtual_server().is_some_and(|of| of == *key || Some(of) == in_cluster),
        };
        let steps: Vec<_> = self.plan.steps().filter(concerns).collect();
        if !steps.is_empty() {
            text.line(1, "the kernel differs from what is desired; an agent would");
        }
        steps.iter().for_each(|step| text.line(2, step));
    }

    fn tell_callers(self, text: &mut Text, key: &VirtualServerKey, from: Option<IpAddr>) {
        let rules = Rules { config: self.index.config(), facts: self.index.facts(), observed: self.observed };
        let callers = match from {
            Some(ip) => vec![Caller::of(ip, rules.config, rules.facts)],
            None => vec![Caller::Pod(None), Caller::Node, Caller::Outside(None)],
        };
        for caller in callers {
            let Treatment { sentences, virtual_server } = rules.treat(caller, key);
            text.line(1, format_args!("{}", caller.title()));
            sentences.iter().for_each(|sentence| text.line(2, sentence));
            if let (Caller::Pod(ip), Some(virtual_server)) = (caller, virtual_server) {
                self.tell_hairpin(text, &virtual_server, ip);
            }
        }
    }

    /// Whether a pod that is given itself gets an answer.
    fn tell_hairpin(self, text: &mut Text, virtual_server: &VirtualServerKey, caller: Option<IpAddr>) {
        let (Some(server), Some(frontend)) =
            (self.observed.virtual_servers.get(virtual_server), self.ledger.frontend(virtual_server))
        else {
            return;
        };
        let VirtualServerKey::Address { protocol, .. } = frontend else { return };
        let set = Set::new(Role::LoopBack, frontend.family());
        let is_listed = |real: &RealServerKey| {
            let member = Member::IpPortIp(real.address, protocol, real.port, real.address);
            self.observed.sets.get(&set).is_some_and(|set| set.members.contains(&member))
        };
        let listed: Vec<_> = server.real_servers.keys().filter(|real| is_listed(real)).collect();
        match caller {
            None if !listed.is_empty() => {
                let listed: Vec<_> = listed.iter().map(ToString::to_string).collect();
                text.line(
                    2,
                    format_args!(
                        "is masqueraded where it is given itself ({set}; KUBE-IPVS-POSTROUTING, nat), as {} may be",
                        listed.join(", ")
                    ),
                );
            }
            Some(ip) if listed.iter().any(|real| real.address == ip) => {
                text.line(2, format_args!("is masqueraded where it is given itself ({set}; KUBE-IPVS-POSTROUTING, nat)"));
            }
            Some(ip) if server.real_servers.keys().any(|real| real.address == ip) => {
                text.line(
                    2,
                    format_args!("gets no answer where it is given itself: {set} does not have it, because it is on another node"),
                );
            }
            _ => {}
        }
    }
}

fn describe(RealServer { forwarding, weight, .. }: &RealServer) -> String {
    format!("{forwarding} weight {weight}")
}

/// The pod, and where it is.
fn place(endpoint: &EndpointView) -> String {
    let pod = endpoint.pod.as_ref().map(|pod| format!(" pod {pod}")).unwrap_or_default();
    let node = match &endpoint.node {
        Some(_) if endpoint.local => " on this node".to_owned(),
        Some(node) => format!(" on {node}"),
        None => String::new(),
    };
    format!("{pod}{node}")
}

const fn why_not(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Chosen | Verdict::LastResort => "it is chosen",
        Verdict::NotReady => "it is not ready",
        Verdict::Terminating => "it is terminating",
        Verdict::OnOtherNode => "it is on another node, and the traffic policy is Local",
        Verdict::ForOtherNodes => "its hints name other nodes",
        Verdict::ForOtherZones => "its hints name other zones",
    }
}

fn connections(traffic: &Traffic, key: &VirtualServerKey, real: &RealServerKey) -> String {
    let found = traffic.connections.iter().find(|(of, server, _)| of == key && server == real);
    found.map_or(String::new(), |(.., counters)| {
        format!("; {} connections are active and {} are over", counters.active, counters.inactive)
    })
}

fn tell_flows(text: &mut Text, traffic: &Traffic) {
    let flows = match &traffic.flows {
        Ok(flows) => flows,
        Err(error) => return text.line(1, format_args!("its flows cannot be read: {error}")),
    };
    match flows.len() {
        0 => text.line(1, "connection tracking knows no flow to it"),
        count => text.line(1, format_args!("connection tracking knows {count} flows to it")),
    }
    for Flow { original, reply, .. } in flows.iter().take(NAMED_FLOWS) {
        let Direction { source: server, destination: answered } = reply;
        let masqueraded = if answered == &original.source { String::new() } else { format!(", who sees it as {answered}") };
        text.line(2, format_args!("{} is answered by {server}{masqueraded}", original.source));
    }
    if flows.len() > NAMED_FLOWS {
        text.line(2, format_args!("and {} more", flows.len() - NAMED_FLOWS));
    }
}
