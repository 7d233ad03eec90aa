//! The steps of a plan, the stages they belong to, and what each does to a state.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use model::{
    Family, Member, RealServer, RealServerKey, Set, SetState, State, Via, Vip, VirtualServer, VirtualServerConfig, VirtualServerKey,
};

use crate::RulesChange;

/// When a step is carried out. The order of the variants is the order of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Make sets, and give full ones more room.
    Sets,
    /// Install packet rules, which refer to sets.
    Rules,
    /// Add set members.
    Members,
    /// Add set members that close something, when those who may pass all the same are known.
    Restrictions,
    /// Make or edit virtual servers, add real servers or give them their weight.
    VirtualServers,
    /// Bind VIPs.
    Vips,
    /// Take surplus real servers away.
    RealServers,
    /// Unbind surplus VIPs.
    UnbindVips,
    /// Remove surplus virtual servers.
    RemoveVirtualServers,
    /// Remove surplus packet rules.
    RemoveRules,
    /// Remove surplus set members that close something, while those who may pass all the same are known.
    LiftRestrictions,
    /// Remove surplus set members.
    RemoveMembers,
    /// Destroy surplus sets.
    DestroySets,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sets => "sets",
            Self::Rules => "packet rules",
            Self::Members => "set members",
            Self::Restrictions => "restrictions",
            Self::VirtualServers => "virtual servers",
            Self::Vips => "VIPs",
            Self::RealServers => "surplus real servers",
            Self::UnbindVips => "surplus VIPs",
            Self::RemoveVirtualServers => "surplus virtual servers",
            Self::RemoveRules => "surplus packet rules",
            Self::LiftRestrictions => "surplus restrictions",
            Self::RemoveMembers => "surplus set members",
            Self::DestroySets => "surplus sets",
        })
    }
}

/// One thing to do. A step names everything it needs, so it can be carried out, refused and reported by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an empty set.
    CreateSet {
        /// The set.
        set: Set,
        /// The most members it takes (`maxelem`).
        capacity: u32,
        /// How many members it is about to get, to size its hash for.
        expected: usize,
    },
    /// Replace a set by a larger one with these members, in one swap.
    GrowSet {
        /// The set.
        set: Set,
        /// The most members it takes from now on.
        capacity: u32,
        /// Everything it holds from now on: what it held, and what is desired.
        members: BTreeSet<Member>,
    },
    /// Change packet rules.
    ChangeRules(Family, RulesChange),
    /// Add members to a set.
    AddMembers(Set, BTreeSet<Member>),
    /// Make a virtual server together with its real servers.
    AddVirtualServer {
        /// The virtual server.
        key: VirtualServerKey,
        /// How it is configured.
        config: VirtualServerConfig,
        /// Its real servers, in the order in which they are added.
        real_servers: Vec<(RealServerKey, RealServer)>,
    },
    /// Edit a virtual server in place.
    SetVirtualServer {
        /// The virtual server.
        key: VirtualServerKey,
        /// How it is configured from now on.
        config: VirtualServerConfig,
    },
    /// Add a real server.
    AddRealServer {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
        /// How it is configured.
        server: RealServer,
    },
    /// Edit a real server in place: its connections do not notice.
    SetRealServer {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
        /// How it is configured from now on.
        server: RealServer,
    },
    /// Bind a VIP that is not bound.
    BindVip {
        /// The VIP.
        vip: Vip,
        /// The source address that the node's own connections to it prefer.
        source: Option<IpAddr>,
    },
    /// Give a bound VIP another preferred source, in place; one that is bound as an address and that nothing reaches, its routes.
    RebindVip {
        /// The VIP.
        vip: Vip,
        /// The source address that the node's own connections to it prefer.
        source: Option<IpAddr>,
    },
    /// Remove a real server.
    RemoveRealServer {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        real: RealServerKey,
    },
    /// Unbind a VIP.
    UnbindVip(Vip),
    /// Remove a virtual server with whatever real servers it has left.
    RemoveVirtualServer(VirtualServerKey),
    /// Remove members from a set.
    RemoveMembers(Set, BTreeSet<Member>),
    /// Destroy a set.
    DestroySet(Set),
}

impl Step {
    /// When it is due.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::GrowSet { set, .. } if set.role.is_restriction() => Stage::Restrictions,
            Self::CreateSet { .. } | Self::GrowSet { .. } => Stage::Sets,
            Self::ChangeRules(_, change) if change.is_removal() => Stage::RemoveRules,
            Self::ChangeRules(..) => Stage::Rules,
            Self::AddMembers(set, _) if set.role.is_restriction() => Stage::Restrictions,
            Self::AddMembers(..) => Stage::Members,
            // A weight of 0 takes a real server out of service, so it waits until those that come in are there.
            Self::SetRealServer { server, .. } if server.weight == 0 => Stage::RealServers,
            Self::AddVirtualServer { .. }
            | Self::SetVirtualServer { .. }
            | Self::AddRealServer { .. }
            | Self::SetRealServer { .. } => Stage::VirtualServers,
            Self::BindVip { .. } | Self::RebindVip { .. } => Stage::Vips,
            Self::RemoveRealServer { .. } => Stage::RealServers,
            Self::UnbindVip(_) => Stage::UnbindVips,
            Self::RemoveVirtualServer(_) => Stage::RemoveVirtualServers,
            Self::RemoveMembers(set, _) if set.role.is_restriction() => Stage::LiftRestrictions,
            Self::RemoveMembers(..) => Stage::RemoveMembers,
            Self::DestroySet(_) => Stage::DestroySets,
        }
    }

    /// The virtual server it is about, if it is about one.
    #[must_use]
    pub const fn virtual_server(&self) -> Option<VirtualServerKey> {
        match self {
            Self::AddVirtualServer { key, .. }
            | Self::SetVirtualServer { key, .. }
            | Self::AddRealServer { key, .. }
            | Self::SetRealServer { key, .. }
            | Self::RemoveRealServer { key, .. }
            | Self::RemoveVirtualServer(key) => Some(*key),
            _ => None,
        }
    }

    /// Whether it makes something that is not there in any form.
    pub(crate) fn is_addition(&self) -> bool {
        match self {
            Self::CreateSet { .. }
            | Self::GrowSet { .. }
            | Self::AddMembers(..)
            | Self::AddVirtualServer { .. }
            | Self::BindVip { .. } => true,
            Self::ChangeRules(_, change) => !change.is_removal(),
            Self::SetVirtualServer { .. }
            | Self::AddRealServer { .. }
            | Self::SetRealServer { .. }
            | Self::RebindVip { .. }
            | Self::RemoveRealServer { .. }
            | Self::UnbindVip(_)
            | Self::RemoveVirtualServer(_)
            | Self::RemoveMembers(..)
            | Self::DestroySet(_) => false,
        }
    }

    /// Does to `state` what the step does to the kernel.
    pub fn apply_to(&self, state: &mut State) {
        match self {
            Self::CreateSet { set, capacity, .. } => {
                state.sets.insert(*set, SetState { capacity: *capacity, members: BTreeSet::new() });
            }
            Self::GrowSet { set, capacity, members } => {
                state.sets.insert(*set, SetState { capacity: *capacity, members: members.clone() });
            }
            Self::ChangeRules(family, change) => {
                let rules = state.rules.entry(*family).or_default();
                change.apply_to(rules);
                if rules.chains.is_empty() && rules.jumps.is_empty() {
                    state.rules.remove(family);
                }
            }
            Self::AddMembers(set, members) => {
                match state.sets.get_mut(set) {
                    // A copy is dense; members that come one by one, in order, leave half of what they take empty.
                    Some(set) if set.members.is_empty() => set.members.clone_from(members),
                    Some(set) => members.iter().for_each(|member| set.add(*member)),
                    None => {}
                }
            }
            Self::AddVirtualServer { key, config, real_servers } => {
                let real_servers = real_servers.iter().copied().collect();
                state.virtual_servers.insert(*key, VirtualServer { config: *config, real_servers });
            }
            Self::SetVirtualServer { key, config } => {
                if let Some(server) = state.virtual_servers.get_mut(key) {
                    server.config = *config;
                }
            }
            Self::AddRealServer { key, real, server } | Self::SetRealServer { key, real, server } => {
                if let Some(virtual_server) = state.virtual_servers.get_mut(key) {
                    virtual_server.real_servers.insert(*real, *server);
                }
            }
            Self::BindVip { vip, source } | Self::RebindVip { vip, source } => {
                state.bind(*vip, *source);
            }
            Self::RemoveRealServer { key, real } => {
                if let Some(server) = state.virtual_servers.get_mut(key) {
                    server.real_servers.remove(real);
                }
            }
            Self::UnbindVip(vip) => {
                state.unbind(vip);
            }
            Self::RemoveVirtualServer(key) => {
                state.virtual_servers.remove(key);
            }
            Self::RemoveMembers(set, members) => {
                if let Some(set) = state.sets.get_mut(set) {
                    members.iter().for_each(|member| set.remove(*member));
                }
            }
            Self::DestroySet(set) => {
                state.sets.remove(set);
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateSet { set, capacity, .. } => write!(f, "create set {set} with room for {capacity} members"),
            Self::GrowSet { set, capacity, .. } => write!(f, "grow set {set} to room for {capacity} members"),
            Self::ChangeRules(family, change) if change.is_removal() => {
                let what = if change.drop.is_empty() { "jumps to packet rules" } else { "packet rules" };
                write!(f, "remove {what} ({family})")
            }
            Self::ChangeRules(family, _) => write!(f, "install packet rules ({family})"),
            Self::AddMembers(set, members) => members_of(f, "add", members, "to", *set),
            Self::AddVirtualServer { key, config, real_servers } => {
                write!(f, "add virtual server {key} {} with {} real servers", config.scheduler, real_servers.len())
            }
            Self::SetVirtualServer { key, config } => write!(f, "edit virtual server {key}: scheduler {}", config.scheduler),
            Self::AddRealServer { key, real, server } => {
                write!(f, "add real server {real} to {key}: {} weight {}", server.forwarding, server.weight)
            }
            Self::SetRealServer { key, real, server } => {
                write!(f, "edit real server {real} of {key}: {} weight {}", server.forwarding, server.weight)
            }
            Self::BindVip { vip, source: Some(source) } => write!(f, "bind {vip} with source {source}"),
            Self::BindVip { vip, source: None } => write!(f, "bind {vip}"),
            Self::RebindVip { vip, source: Some(source) } => write!(f, "rebind {vip} with source {source}"),
            Self::RebindVip { vip, .. } if vip.via == Via::Address => write!(f, "rebind {vip}, which nothing reaches"),
            Self::RebindVip { vip, source: None } => write!(f, "rebind {vip} without a source"),
            Self::RemoveRealServer { key, real } => write!(f, "remove real server {real} from {key}"),
            Self::UnbindVip(vip) => write!(f, "unbind {vip}"),
            Self::RemoveVirtualServer(key) => write!(f, "remove virtual server {key}"),
            Self::RemoveMembers(set, members) => members_of(f, "remove", members, "from", *set),
            Self::DestroySet(set) => write!(f, "destroy set {set}"),
        }
    }
}

/// Names a single member; counts more than one, because there may be thousands.
fn members_of(f: &mut fmt::Formatter<'_>, verb: &str, members: &BTreeSet<Member>, preposition: &str, set: Set) -> fmt::Result {
    match (members.first(), members.len()) {
        (Some(member), 1) => write!(f, "{verb} {member} {preposition} set {set}"),
        (_, count) => write!(f, "{verb} {count} members {preposition} set {set}"),
    }
}
