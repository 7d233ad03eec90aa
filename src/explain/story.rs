//! What there is to say of one frontend.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use desired::{Callers, EndpointView, Index, Ledger, Owner, Standing, Verdict};
use kernel::Connection;
use model::{
    DEVICE, Direction, Flow, Member, RealServer, RealServerKey, Role, Set, State, Via, Vip, VirtualServer, VirtualServerKey,
};
use plan::{Plan, Step};

use super::callers::{Caller, Rules, Treatment};
use super::traffic::{Deadlines, Listed, Traffic};
use crate::drain::Limits;
use crate::status::view::in_words;

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
    /// What a running agent says of who is leaving.
    pub(super) deadlines: &'a Deadlines,
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
        tell_connections(&mut text, &traffic.connections, from);
        tell_flows(&mut text, &traffic.flows, from);
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
        let mut is_draining = false;
        for (real, _) in leaving {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.real == *real);
            let reason = match endpoint.map(|endpoint| endpoint.verdict) {
                Some(Verdict::Chosen | Verdict::LastResort) if self.gets_a_weight(key, real) => {
                    "its weight is 0 and should not be".to_owned()
                }
                Some(Verdict::Chosen | Verdict::LastResort) => {
                    "it has weight 0 by its Service's annotation kube-ipvs.io/weights, and stays".to_owned()
                }
                verdict => {
                    is_draining = true;
                    format!("{}; {}", self.why_leaving(key, real, verdict), self.drain(key, real))
                }
            };
            text.line(3, format_args!("{real}: {reason}{}", connections(traffic, key, real)));
        }
        if let (true, Err(trouble)) = (is_draining, self.deadlines) {
            text.line(3, format_args!("how much of that is left, only a running agent knows, and {trouble}"));
        }
    }

    /// Whether an agent would set its weight.
    fn gets_a_weight(self, of: &VirtualServerKey, who: &RealServerKey) -> bool {
        self.plan.steps().any(|step| matches!(step, Step::SetRealServer { key, real, .. } if key == of && real == who))
    }

    fn why_leaving(self, key: &VirtualServerKey, real: &RealServerKey, verdict: Option<Verdict>) -> &'static str {
        match self.ledger.standing(key, real.address) {
            None => "no Service has its virtual server any more",
            Some(Standing::Terminating) => "its endpoint is terminating",
            Some(Standing::Gone) => "no EndpointSlice has it any more",
            Some(Standing::Stranded) => "its node is not ready",
            Some(Standing::Present) => verdict.map_or("its endpoint has another port now", why_not),
        }
    }

    /// How long a real server that has left keeps its connections.
    fn drain(self, key: &VirtualServerKey, real: &RealServerKey) -> String {
        match self.deadlines {
            Ok(deadlines) => match deadlines.get(&(*key, *real)) {
                Some(left) => format!("draining, for {} more at most", in_words(*left)),
                None => "the agent does not count it among those that drain".to_owned(),
            },
            Err(_) => {
                let frontend = self.ledger.frontend(key).unwrap_or(*key);
                let asked = self.ledger.parting(key).and_then(|parting| parting.drain_timeout);
                let limit = self.limits.at_most(&frontend, asked, self.ledger.standing(key, real.address));
                format!("draining for at most {} since it left", in_words(limit))
            }
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
    let found = traffic.counted.iter().find(|(of, server, _)| of == key && server == real);
    found.map_or(String::new(), |(.., counters)| {
        let active = match counters.active {
            1 => "1 connection is active".to_owned(),
            active => format!("{active} connections are active"),
        };
        format!("; {active} and {} {} over", counters.inactive, if counters.inactive == 1 { "is" } else { "are" })
    })
}

/// What IPVS itself keeps: where packets of a connection go, and for how long without any.
fn tell_connections(text: &mut Text, connections: &Result<Listed<Connection>, String>, from: Option<IpAddr>) {
    let connections = match connections {
        Ok(connections) => connections,
        Err(error) => return text.line(1, format_args!("its connections cannot be listed: {error}")),
    };
    let of_caller = of_caller(from);
    match connections.count {
        0 => text.line(1, format_args!("IPVS has no connection to it{of_caller}")),
        1 => text.line(1, format_args!("IPVS has 1 connection to it{of_caller}")),
        count => text.line(1, format_args!("IPVS has {count} connections to it{of_caller}")),
    }
    for Connection { client, real_server, state, expires, .. } in &connections.named {
        let left = in_words(Duration::from_secs(u64::from(*expires)));
        // What makes a client stay with its real server is kept as a connection from no port (`ip_vs_ct_in_get`, ip_vs_conn.c).
        match client.port() {
            0 => text.line(2, format_args!("{} stays with {real_server}, for {left} after its last connection", client.ip())),
            _ => text.line(2, format_args!("{client} has {real_server}: {state}, for {left} without a packet")),
        }
    }
    tell_rest(text, connections.rest());
}

fn tell_flows(text: &mut Text, flows: &Result<Listed<Flow>, String>, from: Option<IpAddr>) {
    let flows = match flows {
        Ok(flows) => flows,
        Err(error) => return text.line(1, format_args!("its flows cannot be read: {error}")),
    };
    let of_caller = of_caller(from);
    match flows.count {
        0 => text.line(1, format_args!("connection tracking knows no flow to it{of_caller}")),
        1 => text.line(1, format_args!("connection tracking knows 1 flow to it{of_caller}")),
        count => text.line(1, format_args!("connection tracking knows {count} flows to it{of_caller}")),
    }
    for Flow { original, reply, .. } in &flows.named {
        let Direction { source: server, destination: answered } = reply;
        let masqueraded = if answered == &original.source { String::new() } else { format!(", who sees it as {answered}") };
        text.line(2, format_args!("{} is answered by {server}{masqueraded}", original.source));
    }
    tell_rest(text, flows.rest());
}

fn of_caller(from: Option<IpAddr>) -> String {
    from.map(|from| format!(" from {from}")).unwrap_or_default()
}

fn tell_rest(text: &mut Text, rest: usize) {
    if rest > 0 {
        text.line(2, format_args!("and {rest} more"));
    }
}
