//! A whole node's state, or the part of it that a change is about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{Family, Member, Role, Rules, Set, SetState, Vip, VirtualServer, VirtualServerKey};

/// What a node holds, desired or observed, in full or restricted to a [`Scope`].
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
    /// Those among the VIPs that are bound as addresses and that nothing reaches: others have taken the routes that the kernel made when they were
    /// bound. None that is desired is among them.
    pub unreached: BTreeSet<Vip>,
}

impl State {
    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.sets.is_empty() && self.virtual_servers.is_empty() && self.vips.is_empty()
    }

    /// Notes that `vip` is bound, with this preferred source, and reached.
    pub fn bind(&mut self, vip: Vip, source: Option<IpAddr>) {
        self.vips.insert(vip, source);
        self.unreached.remove(&vip);
    }

    /// Notes that `vip` is not bound.
    pub fn unbind(&mut self, vip: &Vip) {
        self.vips.remove(vip);
        self.unreached.remove(vip);
    }

    /// Lists virtual servers by address among the node port frontends, as if they had been made by us.
    pub fn own(&mut self, keys: impl IntoIterator<Item = VirtualServerKey>) {
        for key in keys {
            if let VirtualServerKey::Address { address, port, protocol } = key {
                let set = self.sets.entry(Set::new(Role::NodePort, key.family()));
                let set = set.or_insert_with(|| SetState { capacity: SetState::MIN_CAPACITY, members: BTreeSet::new() });
                set.members.insert(Member::IpPort(address, protocol, port));
            }
        }
    }

    /// Shares with `other` the memory of the lists of real servers that are the same in both. What a node holds is what is desired of it, but for a few
    /// virtual servers.
    pub fn share(&mut self, other: &Self) {
        for (key, others) in &other.virtual_servers {
            if let Some(own) = self.virtual_servers.get_mut(key) {
                own.real_servers.share(&others.real_servers);
            }
        }
    }

    /// The part of this state that `scope` is about, at a cost that follows the scope and not the state.
    ///
    /// Packet rules are in no scope: they do not change with Services. A set keeps its capacity and the members in question.
    #[must_use]
    pub fn restricted_to(&self, scope: &Scope) -> Self {
        let set = |(set, members): (&Set, &BTreeSet<Member>)| {
            let state = self.sets.get(set)?;
            let members = members.iter().filter(|member| state.members.contains(member)).copied().collect();
            Some((*set, SetState { capacity: state.capacity, members }))
        };
        let virtual_server = |key: &VirtualServerKey| Some((*key, self.virtual_servers.get(key)?.clone()));
        Self {
            rules: BTreeMap::new(),
            sets: scope.members.iter().filter_map(set).collect(),
            virtual_servers: scope.virtual_servers.iter().filter_map(virtual_server).collect(),
            vips: scope.vips.iter().filter_map(|vip| Some((*vip, *self.vips.get(vip)?))).collect(),
            unreached: self.unreached.intersection(&scope.vips).copied().collect(),
        }
    }
}

/// The keys that a change touches. What is outside of it is not compared, and so not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Virtual servers, with all of their real servers.
    pub virtual_servers: BTreeSet<VirtualServerKey>,
    /// VIPs.
    pub vips: BTreeSet<Vip>,
    /// Members of sets. A set that is named with no member is in scope for its existence and capacity.
    pub members: BTreeMap<Set, BTreeSet<Member>>,
}

impl Scope {
    /// Whether it holds no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.virtual_servers.is_empty() && self.vips.is_empty() && self.members.is_empty()
    }

    /// Takes in the keys of `other`.
    pub fn extend(&mut self, other: Self) {
        self.virtual_servers.extend(other.virtual_servers);
        self.vips.extend(other.vips);
        for (set, members) in other.members {
            self.members.entry(set).or_default().extend(members);
        }
    }
}
