//! All that would change, as it is printed.

use std::collections::BTreeSet;

use kernel::Timeouts;
use plan::{Plan, Step};
use serde::Serialize;

use super::why::Why;
use crate::cli::Proxy;
use crate::survey::{Setting, Survey};

/// What would change. Field names are part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) node: String,
    pub(super) counts: Counts,
    /// In the order of the work.
    pub(super) sections: Vec<Section>,
    /// Virtual servers of other tools, which stay.
    pub(super) foreign_virtual_servers: Vec<String>,
    /// What of the objects would not be served as it is written.
    pub(super) problems: BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) add: usize,
    pub(super) edit: usize,
    pub(super) remove: usize,
}

/// Changes that have no order among them.
#[derive(Debug, Serialize)]
pub(super) struct Section {
    pub(super) title: String,
    pub(super) changes: Vec<Change>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) text: String,
    pub(super) reason: String,
    /// The Services that ask for it, as `namespace/name`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) services: BTreeSet<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<Part>,
}

/// A part of a change: a member, a real server, a chain.
#[derive(Debug, Default, Serialize)]
pub(super) struct Part {
    pub(super) text: String,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) services: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    #[default]
    Add,
    Edit,
    Remove,
}

impl Document {
    pub(super) fn of(survey: &Survey, proxy: &Proxy) -> Self {
        let why = Why::of(survey);
        let mut sections = Vec::new();
        let mut section = |title: &str, changes: Vec<Change>| {
            if !changes.is_empty() {
                sections.push(Section { title: title.to_owned(), changes });
            }
        };
        section("kernel settings", survey.settings.iter().map(setting).collect());
        let changes = |plan: &Plan| plan.steps().map(|step| why.change(step)).collect::<Vec<_>>();
        let mut adopted = changes(&survey.adoption);
        for change in &mut adopted {
            "kube-proxy in IPVS mode lists node ports by their port alone, and they are taken over".clone_into(&mut change.reason);
        }
        section("taking over from kube-proxy", adopted);
        for (stage, steps) in survey.plan.stages() {
            section(&stage.to_string(), steps.iter().map(|step| why.change(step)).collect());
        }
        if survey.removes_leftovers(proxy) {
            section("what kube-proxy has left, when all is served", leftovers(survey));
        }
        let counts = Counts::of(&sections);
        Self {
            node: survey.index.config().node_name.to_string(),
            counts,
            sections,
            foreign_virtual_servers: foreign(survey),
            problems: survey.problems.clone(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }
}

impl Counts {
    fn of(sections: &[Section]) -> Self {
        let mut counts = Self::default();
        for change in sections.iter().flat_map(|section| &section.changes) {
            *match change.kind {
                Kind::Add => &mut counts.add,
                Kind::Edit => &mut counts.edit,
                Kind::Remove => &mut counts.remove,
            } += 1;
        }
        counts
    }
}

fn setting(setting: &Setting) -> Change {
    let (text, reason) = match setting {
        Setting::Sysctl { sysctl, from } => {
            (format!("set {} from {from} to {}", sysctl.name, sysctl.value), format!("otherwise {}", sysctl.effect))
        }
        Setting::Timeouts { from, to } => (
            format!("set the IPVS time-outs from {} to {}", seconds(*from), seconds(*to)),
            "idle connections are kept for as long as --ipvs-tcp-timeout, --ipvs-tcpfin-timeout and --ipvs-udp-timeout say"
                .to_owned(),
        ),
    };
    Change { kind: Kind::Edit, text, reason, ..Change::default() }
}

/// As `ipvsadm --set` takes them.
fn seconds(Timeouts { tcp, tcp_fin, udp }: Timeouts) -> String {
    format!("tcp {tcp} s, tcpfin {tcp_fin} s, udp {udp} s")
}

fn leftovers(survey: &Survey) -> Vec<Change> {
    let remove = |text: String, reason: &str| Change { kind: Kind::Remove, text, reason: reason.to_owned(), ..Change::default() };
    let rules = survey.leftovers.rules().map(|(flavour, family, removal)| {
        let chains = removal.lines().filter_map(|line| line.strip_prefix("-X "));
        let parts = chains.map(|chain| Part { text: format!("chain {chain}"), ..Part::default() }).collect();
        let text = format!("remove kube-proxy's packet rules ({family}, {})", flavour.restoring_program(family));
        Change { parts, ..remove(text, "the agent has rules of its own") }
    });
    let sets = survey.leftovers.sets().iter().map(|set| remove(format!("destroy set {set}"), "only kube-proxy's rules ask it"));
    rules.chain(sets).collect()
}

/// The virtual servers that are there, and neither desired nor ours to remove.
fn foreign(survey: &Survey) -> Vec<String> {
    let removed: BTreeSet<_> = survey
        .plan
        .steps()
        .filter_map(|step| match step {
            Step::RemoveVirtualServer(key) => Some(*key),
            _ => None,
        })
        .collect();
    let others = survey.observed.virtual_servers.keys();
    others
        .filter(|key| !survey.desired.virtual_servers.contains_key(key) && !removed.contains(key))
        .map(ToString::to_string)
        .collect()
}
