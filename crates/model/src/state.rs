//! A whole node's state, or the part of it that a change is about.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{Family, Rules, Set, SetState, Vip, VirtualServer, VirtualServerKey};

/// What a node holds, desired or observed, in full or restricted to the objects that one change touches.
///
/// Packet rules, sets and VIPs in an observed state are ours by construction: only objects with our names, device and routing
/// protocol are read into it. Virtual servers of other tools do appear; `plan` tells them apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Packet rules by family.
    pub rules: BTreeMap<Family, Rules>,
    /// Sets that exist.
    pub sets: BTreeMap<Set, SetState>,
    /// Virtual servers with their real servers.
    pub virtual_servers: BTreeMap<VirtualServerKey, VirtualServer>,
    /// VIPs that are bound, each with the source address that the node's own connections to it prefer (routes only).
    pub vips: BTreeMap<Vip, Option<IpAddr>>,
}

impl State {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.sets.is_empty() && self.virtual_servers.is_empty() && self.vips.is_empty()
    }
}
