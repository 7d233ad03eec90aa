//! The endpoints behind a frontend as people want to see them: who they are, and why each takes connections or does not.

use std::net::IpAddr;

use model::{RealServerKey, VirtualServerKey};

use crate::endpoints::{Candidate, Candidates, Choice, Reach, Verdict};
use crate::fragment::FrontendKind;
use crate::index::Index;
use crate::name::ServiceName;
use crate::slice::Slice;

/// An endpoint behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Where connections would go.
    pub real: RealServerKey,
    /// The name of the pod, where a slice says it.
    pub pod: Option<Box<str>>,
    /// The name of the node, where a slice says it.
    pub node: Option<Box<str>>,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it takes connections from this node, and why not.
    pub verdict: Verdict,
}

/// Whose connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Callers inside the cluster of a frontend whose policy `Local` is for those outside.
    InCluster,
    /// All others.
    Others,
}

impl Index {
    /// The endpoints behind the frontend `key` of the Service called `name`, in order; none where it has no such frontend.
    ///
    /// This works the Service out anew: it is for people who want to know why, and for no change.
    #[must_use]
    pub fn endpoints(&self, name: &ServiceName, key: &VirtualServerKey, callers: Callers) -> Vec<EndpointView> {
        let VirtualServerKey::Address { protocol, .. } = *key else { return Vec::new() };
        let (Some((service, slices)), Some(fragment)) = (self.known_of(name), self.fragment(name)) else { return Vec::new() };
        let (Some(frontend), Some(port_name)) = (fragment.frontend(key), fragment.port_name(key)) else { return Vec::new() };
        let reach = match (callers, frontend.kind) {
            (Callers::InCluster, _) => Reach::Cluster,
            (Callers::Others, FrontendKind::ClusterIp) => service.internal,
            (Callers::Others, _) => service.external,
        };
        let Some(port) = service.ports.iter().find(|port| *port.name == *port_name && port.protocol == protocol) else {
            return Vec::new();
        };
        let zone = self.facts().zone.as_deref();
        let candidates = Candidates::of(slices.iter().copied(), key.family(), port, zone, None, self.unready());
        let choice = Choice::of(&candidates, reach);
        let view = |(real, candidate): (&RealServerKey, &Candidate)| {
            let (pod, node) = whereabouts(&slices, real.address);
            EndpointView { real: *real, pod, node, local: candidate.local, verdict: choice.verdict(candidate) }
        };
        candidates.iter().map(view).collect()
    }
}

/// The pod and the node of the endpoint at `address`.
fn whereabouts(slices: &[&Slice], address: IpAddr) -> (Option<Box<str>>, Option<Box<str>>) {
    let mut found = slices.iter().flat_map(|slice| slice.iter()).filter(|(endpoint, _)| endpoint.address == address);
    let Some((endpoint, pod)) = found.next() else { return (None, None) };
    (pod.map(|pod| pod.to_string().into()), endpoint.node.as_deref().map(Into::into))
}
