//! Comparing the parts of two states.

use std::collections::BTreeSet;

use model::{Member, Rules, Set, SetState, State, VirtualServer, VirtualServerKey};

use crate::{Ownership, Plan, RulesChange, Step};

/// A key on one side, the other, or both.
enum Side<'a, V> {
    Desired(&'a V),
    Observed(&'a V),
    Both { desired: &'a V, observed: &'a V },
}

/// Walks two sorted maps together, in key order, visiting every key of either once.
fn merge<'a, K: Ord + Copy + 'a, V: 'a, M: IntoIterator<Item = (&'a K, &'a V)>>(
    desired: M,
    observed: M,
    mut visit: impl FnMut(K, Side<'a, V>),
) {
    let mut desired = desired.into_iter().peekable();
    let mut observed = observed.into_iter().peekable();
    loop {
        let order = match (desired.peek(), observed.peek()) {
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return,
        };
        let left = if order.is_le() { desired.next() } else { None };
        let right = if order.is_ge() { observed.next() } else { None };
        match (left, right) {
            (Some((key, desired)), Some((_, observed))) => visit(*key, Side::Both { desired, observed }),
            (Some((key, desired)), None) => visit(*key, Side::Desired(desired)),
            (None, Some((key, observed))) => visit(*key, Side::Observed(observed)),
            (None, None) => return,
        }
    }
}

pub(crate) fn sets(plan: &mut Plan, desired: &State, observed: &State) {
    merge(&desired.sets, &observed.sets, |set, side| match side {
        Side::Desired(desired) => {
            plan.push(Step::CreateSet { set, capacity: desired.capacity, expected: desired.members.len() });
            add_members(plan, set, desired.members.clone());
        }
        Side::Observed(observed) => {
            remove_members(plan, set, observed.members.clone());
            plan.push(Step::DestroySet(set));
        }
        Side::Both { desired, observed } => set_members(plan, set, desired, observed),
    });
}

fn set_members(plan: &mut Plan, set: Set, desired: &SetState, observed: &SetState) {
    // A member that is to have another mark is replaced by being added: to remove it as well would leave none.
    let surplus: BTreeSet<_> = observed.members.iter().filter(|member| !desired.has(**member)).copied().collect();
    if desired.capacity > observed.capacity {
        // What is surplus is carried over as well: it goes in its own stage, when nothing uses it any more.
        let members = desired.members.union(&surplus).copied().collect();
        plan.push(Step::GrowSet { set, capacity: desired.capacity, members });
    } else {
        add_members(plan, set, desired.members.difference(&observed.members).copied().collect());
    }
    remove_members(plan, set, surplus);
}

fn add_members(plan: &mut Plan, set: Set, members: BTreeSet<Member>) {
    if !members.is_empty() {
        plan.push(Step::AddMembers(set, members));
    }
}

fn remove_members(plan: &mut Plan, set: Set, members: BTreeSet<Member>) {
    if !members.is_empty() {
        plan.push(Step::RemoveMembers(set, members));
    }
}

pub(crate) fn rules(plan: &mut Plan, desired: &State, observed: &State) {
    let none = Rules::default();
    merge(&desired.rules, &observed.rules, |family, side| {
        let change = match side {
            Side::Desired(desired) => RulesChange::between(desired, &none),
            Side::Observed(observed) => RulesChange::between(&none, observed),
            Side::Both { desired, observed } => RulesChange::between(desired, observed),
        };
        if let Some(change) = change {
            plan.push(Step::ChangeRules(family, change));
        }
    });
}

pub(crate) fn virtual_servers(plan: &mut Plan, desired: &State, observed: &State, ownership: &Ownership<'_>) {
    merge(&desired.virtual_servers, &observed.virtual_servers, |key, side| match side {
        Side::Desired(server) => {
            let real_servers = server.real_servers.iter().map(|(real, server)| (*real, *server)).collect();
            plan.push(Step::AddVirtualServer { key, config: server.config, real_servers });
        }
        Side::Observed(_) => {
            if ownership.covers(&key, desired, observed) {
                plan.push(Step::RemoveVirtualServer(key));
            }
        }
        Side::Both { desired, observed } => virtual_server(plan, key, desired, observed),
    });
}

fn virtual_server(plan: &mut Plan, key: VirtualServerKey, desired: &VirtualServer, observed: &VirtualServer) {
    if desired.config != observed.config {
        plan.push(Step::SetVirtualServer { key, config: desired.config });
    }
    merge(&desired.real_servers, &observed.real_servers, |real, side| match side {
        Side::Desired(server) => plan.push(Step::AddRealServer { key, real, server: *server }),
        Side::Observed(_) => plan.push(Step::RemoveRealServer { key, real }),
        Side::Both { desired, observed } => {
            if desired != observed {
                plan.push(Step::SetRealServer { key, real, server: *desired });
            }
        }
    });
}

pub(crate) fn vips(plan: &mut Plan, desired: &State, observed: &State) {
    let unreached = &observed.unreached;
    merge(&desired.vips, &observed.vips, |vip, side| match side {
        Side::Desired(source) => plan.push(Step::BindVip { vip, source: *source }),
        Side::Observed(_) => plan.push(Step::UnbindVip(vip)),
        Side::Both { desired, observed } => {
            if desired != observed || unreached.contains(&vip) {
                plan.push(Step::RebindVip { vip, source: *desired });
            }
        }
    });
}
