//! Which endpoints of a Service's port are its real servers.

use std::collections::BTreeSet;

use model::{Family, RealServerKey};

use crate::scheduling::Weights;
use crate::service::ServicePort;
use crate::slice::{Endpoint, Slice};

/// How far from this node an endpoint may be: what a traffic policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Policy `Cluster`: anywhere, near ones first where hints say so.
    Cluster,
    /// Policy `Local`: on this node. Where there is none, there is none; another node's are not a substitute.
    Node,
}

/// What an endpoint's hints of one kind say about this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Nothing.
    Missing,
    /// It is meant for others.
    Elsewhere,
    /// It is meant for this node.
    Here,
}

impl Hint {
    pub(crate) fn of<'a>(names: impl IntoIterator<Item = &'a str>, own: Option<&str>) -> Self {
        names.into_iter().fold(Self::Missing, |hint, name| match hint {
            Self::Here => Self::Here,
            Self::Missing | Self::Elsewhere if own == Some(name) => Self::Here,
            Self::Missing | Self::Elsewhere => Self::Elsewhere,
        })
    }
}

/// An endpoint of one port, all slices taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    ready: bool,
    serving: bool,
    pub(crate) terminating: bool,
    /// Whether its node is not ready.
    pub(crate) stranded: bool,
    pub(crate) local: bool,
    node_hint: Hint,
    zone_hint: Hint,
    pub(crate) weight: u16,
}

impl Candidate {
    fn of(endpoint: &Endpoint, zone: Option<&str>, unready: &BTreeSet<Box<str>>, weight: u16) -> Self {
        Self {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            stranded: endpoint.is_on(unready),
            local: endpoint.local,
            node_hint: endpoint.node_hint,
            zone_hint: Hint::of(endpoint.zones.iter().flat_map(|zones| zones.iter()).map(|zone| &**zone), zone),
            weight,
        }
    }

    /// Whether a load balancer may count on it at this node.
    pub(crate) const fn is_ready_here(self) -> bool {
        self.local && self.ready
    }

    /// Which of two descriptions of one endpoint to believe. While an endpoint moves between slices it is in both, and the one
    /// that still has work for it is right: not terminating before terminating, then ready before not ready.
    const fn rank(self) -> (bool, bool) {
        (!self.terminating, self.ready)
    }
}

/// The endpoints of one port, by key and in its order.
///
/// A sorted list and no tree: a Service may have thousands, all of which are gone through for a change of one.
#[derive(Debug)]
pub(crate) struct Candidates(Vec<(RealServerKey, Candidate)>);

impl Candidates {
    /// The endpoints of `port` in `family` over all `slices` of its Service, as seen from a node in `zone`, with `weights` if its Service
    /// gives any; `unready` says of which nodes it is known that they are not ready.
    pub(crate) fn of<'a>(
        slices: impl IntoIterator<Item = &'a Slice>,
        family: Family,
        port: &ServicePort,
        zone: Option<&str>,
        weights: Option<&Weights>,
        unready: &BTreeSet<Box<str>>,
    ) -> Self {
        let mut candidates = Vec::new();
        for slice in slices.into_iter().filter(|slice| slice.family == family) {
            let matches = slice.ports.iter().filter(|other| *other.name == *port.name && other.protocol == port.protocol);
            for number in matches.map(|other| other.port) {
                let candidate = |endpoint: &Endpoint, weight| {
                    (RealServerKey::new(endpoint.address, number), Candidate::of(endpoint, zone, unready, weight))
                };
                match weights {
                    // Nobody asks for the names of pods.
                    None => candidates.extend(slice.endpoints.iter().map(|endpoint| candidate(endpoint, 1))),
                    Some(weights) => candidates.extend(slice.iter().map(|(endpoint, pod)| {
                        let pod = pod.map(|pod| pod.to_string());
                        candidate(endpoint, weights.of(endpoint.address, pod.as_deref(), endpoint.node.as_deref()))
                    })),
                }
            }
        }
        Self::in_order(candidates)
    }

    fn in_order(mut candidates: Vec<(RealServerKey, Candidate)>) -> Self {
        // Slices are mostly in order within themselves, which a sort that keeps the order of what is equal makes use of.
        candidates.sort_by_key(|(key, _)| *key);
        candidates.dedup_by(|(later, again), (earlier, known)| {
            let same = later == earlier;
            if same && again.rank() > known.rank() {
                *known = *again;
            }
            same
        });
        Self(candidates)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RealServerKey, &Candidate)> {
        self.0.iter().map(|(key, candidate)| (key, candidate))
    }

    fn values(&self) -> impl Iterator<Item = &Candidate> + Clone {
        self.0.iter().map(|(_, candidate)| candidate)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The ones that take connections, in order: the ready ones or, so that the last pods of a rollout still answer, those that are serving while
    /// they terminate (KEP-1669).
    pub(crate) fn select(&self, reach: Reach) -> impl Iterator<Item = (&RealServerKey, &Candidate)> {
        let choice = Choice::of(self, reach);
        self.iter().filter(move |(_, candidate)| matches!(choice.verdict(candidate), Verdict::Chosen | Verdict::LastResort))
    }
}

/// Why an endpoint takes connections from this node, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is ready, and for this node.
    Chosen,
    /// It serves while it terminates, because there is no ready one (KEP-1669).
    LastResort,
    /// It is neither ready nor terminating.
    NotReady,
    /// It is terminating, and others are ready or it does not serve any more.
    Terminating,
    /// It is on another node, and the traffic policy is `Local`.
    OnOtherNode,
    /// Its hints name nodes, and not this one.
    ForOtherNodes,
    /// Its hints name zones, and not this node's.
    ForOtherZones,
}

/// How endpoints are chosen: what is known of all of them that matters for each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    mode: Mode,
    /// Whether any endpoint that is for this node is ready.
    has_ready: bool,
}

impl Choice {
    pub(crate) fn of(candidates: &Candidates, reach: Reach) -> Self {
        let mode = match reach {
            Reach::Cluster => Mode::of(candidates),
            Reach::Node => Mode::OnNode,
        };
        Self { mode, has_ready: candidates.values().any(|candidate| candidate.ready && mode.takes(candidate)) }
    }

    pub(crate) fn verdict(self, candidate: &Candidate) -> Verdict {
        let Candidate { ready, serving, terminating, local, .. } = *candidate;
        let is_elsewhere = self.mode == Mode::OnNode && !local;
        match (ready, terminating) {
            (true, _) if self.mode.takes(candidate) => Verdict::Chosen,
            (true, _) => match self.mode {
                Mode::SameNode => Verdict::ForOtherNodes,
                Mode::SameZone => Verdict::ForOtherZones,
                Mode::Everywhere | Mode::OnNode => Verdict::OnOtherNode,
            },
            (false, true) if serving && !self.has_ready && !is_elsewhere => Verdict::LastResort,
            (false, true) if serving && !self.has_ready => Verdict::OnOtherNode,
            (false, true) => Verdict::Terminating,
            (false, false) => Verdict::NotReady,
        }
    }
}

/// Which hints are followed. Hints are all or nothing: one ready endpoint without a hint means that who writes them is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    SameNode,
    SameZone,
    Everywhere,
    OnNode,
}

impl Mode {
    fn of(candidates: &Candidates) -> Self {
        let followed = |hint: fn(&Candidate) -> Hint| {
            let mut hints = candidates.values().filter(|candidate| candidate.ready).map(hint);
            let complete = hints.clone().all(|hint| hint != Hint::Missing);
            complete && hints.any(|hint| hint == Hint::Here)
        };
        if followed(|candidate| candidate.node_hint) {
            Self::SameNode
        } else if followed(|candidate| candidate.zone_hint) {
            Self::SameZone
        } else {
            Self::Everywhere
        }
    }

    fn takes(self, candidate: &Candidate) -> bool {
        match self {
            Self::SameNode => candidate.node_hint == Hint::Here,
            Self::SameZone => candidate.zone_hint == Hint::Here,
            Self::Everywhere => true,
            Self::OnNode => candidate.local,
        }
    }
}
