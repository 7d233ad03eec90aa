//! All fragments together: who has what, and what is wanted once or many times.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use model::{Family, Member, Role, Scope, Set, SetState, State, Via, Vip, VirtualServerKey};

use crate::config::Config;
use crate::fragment::{Fragment, Frontend, Parting, Standing, Taken};
use crate::marks::Marks;
use crate::name::ServiceName;
use crate::problem::{Problem, Problems, Reason};

/// Merges the fragments of all Services into the desired state of the node.
///
/// It settles what Services share. A virtual server has one owner, the oldest Service that claims its key. A VIP or set member is
/// there for as long as anybody wants it. Every change returns the keys it touches, and [`Self::desired`] gives the state for just those,
/// so that following a change costs what it touches.
#[derive(Debug)]
pub struct Ledger {
    via: Via,
    sources: BTreeMap<Family, IpAddr>,
    fragments: BTreeMap<ServiceName, Fragment>,
    owners: BTreeMap<VirtualServerKey, Claim>,
    /// Who would take over the keys that more than one Service claims, in order. Never an empty list.
    waiting: BTreeMap<VirtualServerKey, VecDeque<Claim>>,
    /// The same by Service: the keys that it claims and another has. Never an empty set.
    waits_for: BTreeMap<ServiceName, BTreeSet<VirtualServerKey>>,
    /// Frontends that need a mark when all are given.
    unmarked: BTreeSet<VirtualServerKey>,
    /// The Services whose [problems](Self::take_problems) may have changed.
    touched: BTreeSet<ServiceName>,
    /// How many want it.
    members: BTreeMap<Set, BTreeMap<Member, u32>>,
    sets: BTreeMap<Set, Size>,
    /// How many claim it, to no avail.
    taken: BTreeMap<Taken, u32>,
    marks: Marks,
}

/// Who is behind a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The Service.
    pub service: &'a ServiceName,
    /// The name of its port; empty where the port has none.
    pub port: &'a str,
}

impl fmt::Display for Owner<'_> {
    /// `namespace/name:port`, or `namespace/name` where the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            "" => self.service.fmt(f),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

/// Two or more Services that claim one address, port and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What they claim.
    pub key: VirtualServerKey,
    /// The Service that has it: the one made first or, of those made in the same second, the first by name.
    pub owner: ServiceName,
    /// The others, in the order in which they would take over.
    pub waiting: Vec<ServiceName>,
}

/// In order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: i64,
    service: ServiceName,
}

/// A frontend that a Service has, with what comes with it.
struct Holding {
    frontend: Frontend,
    members: Vec<(Set, Member)>,
}

impl Holding {
    fn of(fragment: &Fragment, key: &VirtualServerKey) -> Option<Self> {
        let frontend = *fragment.frontend(key)?;
        Some(Self { frontend, members: fragment.members_of(&frontend) })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    members: usize,
    capacity: u32,
}

impl Ledger {
    /// A ledger without Services: its desired state is the empty sets.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let empty = Size { members: 0, capacity: SetState::capacity_for(0) };
        Self {
            via: config.via,
            sources: BTreeMap::new(),
            fragments: BTreeMap::new(),
            owners: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waits_for: BTreeMap::new(),
            unmarked: BTreeSet::new(),
            touched: BTreeSet::new(),
            members: BTreeMap::new(),
            sets: config.families.iter().copied().flat_map(Set::of_family).map(|set| (set, empty)).collect(),
            taken: BTreeMap::new(),
            marks: Marks::new(config.masquerade.mark),
        }
    }

    /// Replaces the fragment of the Service called `name`; `None` for a Service that is gone. Returns what that touches.
    pub fn set(&mut self, name: &ServiceName, fragment: Option<Fragment>) -> Scope {
        let mut scope = Scope::default();
        let previous = self.fragments.remove(name);
        if previous == fragment {
            self.fragments.extend(previous.map(|fragment| (name.clone(), fragment)));
            return scope;
        }

        let keys: BTreeSet<_> =
            [&previous, &fragment].into_iter().flatten().flat_map(Fragment::frontends).map(Frontend::key).collect();
        let owners_before: Vec<_> = keys.iter().map(|key| self.owner_name(key).cloned()).collect();
        for (key, before) in keys.iter().zip(&owners_before) {
            let contested = self.waiting.contains_key(key);
            self.withdraw(key, name);
            if let Some(created) = fragment.as_ref().filter(|fragment| fragment.frontend(key).is_some()).map(|new| new.created) {
                self.claim(*key, Claim { created, service: name.clone() });
            }
            if contested || self.waiting.contains_key(key) {
                self.note_claims(*key, name, before.as_ref());
            }
        }

        if !self.unmarked.is_empty() {
            self.touched.insert(name.clone());
        }

        // What is wanted on is counted before what is not is taken off, so that nothing passes through zero on the way.
        let mut taken = Vec::new();
        let mut dropped = Vec::new();
        for (key, before) in keys.iter().zip(owners_before) {
            let after = self.owner_name(key).cloned();
            let lookup = |owner: &Option<ServiceName>, own: &Option<Fragment>| -> Option<Holding> {
                let owner = owner.as_ref()?;
                let fragment = if owner == name { own.as_ref() } else { self.fragments.get(owner) };
                Holding::of(fragment?, key)
            };
            let unchanged = before == after
                && (after.as_ref() != Some(name)
                    || matches!((&previous, &fragment), (Some(one), Some(two)) if one.serves_like(two, key)));
            let (after, before) = (lookup(&after, &fragment), lookup(&before, &previous));
            if !unchanged {
                scope.virtual_servers.insert(*key);
                self.follow_mark(*key, after.as_ref(), before.as_ref(), &mut scope);
            }
            taken.extend(after);
            dropped.extend(before);
        }
        taken.iter().flat_map(|holding| &holding.members).for_each(|member| self.acquire(*member, &mut scope));
        fragment.iter().flat_map(Fragment::local_members).for_each(|member| self.acquire(member, &mut scope));
        dropped.iter().flat_map(|holding| &holding.members).for_each(|member| self.release(*member, &mut scope));
        previous.iter().flat_map(Fragment::local_members).for_each(|member| self.release(member, &mut scope));

        for taken in fragment.iter().flat_map(Fragment::taken) {
            *self.taken.entry(*taken).or_default() += 1;
        }
        for taken in previous.iter().flat_map(Fragment::taken) {
            if let Entry::Occupied(mut entry) = self.taken.entry(*taken) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }

        self.fragments.extend(fragment.map(|fragment| (name.clone(), fragment)));
        self.hand_on_marks(&mut scope);
        self.grow_sets(&mut scope);
        scope
    }

    /// Sets the address that the node's own connections to VIPs of `family` prefer as their source. Only routes carry it.
    pub fn set_source(&mut self, family: Family, source: Option<IpAddr>) -> Scope {
        let previous = match source {
            Some(source) => self.sources.insert(family, source),
            None => self.sources.remove(&family),
        };
        let mut scope = Scope::default();
        if previous != source && self.via == Via::Route {
            scope.vips = self.vips(family).collect();
        }
        scope
    }

    /// The desired state of what `scope` names. What it names and this lacks is not to be. Packet rules are not among it.
    ///
    /// Sets come with the capacity for all of their members, not just those in scope.
    #[must_use]
    pub fn desired(&self, scope: &Scope) -> State {
        let set = |(set, members): (&Set, &BTreeSet<Member>)| {
            let capacity = self.sets.get(set)?.capacity;
            let wanted = self.members.get(set);
            let members =
                members.iter().filter(|member| wanted.is_some_and(|wanted| wanted.contains_key(member))).copied().collect();
            Some((*set, SetState { capacity, members }))
        };
        State {
            rules: BTreeMap::new(),
            sets: scope.members.iter().filter_map(set).collect(),
            virtual_servers: scope.virtual_servers.iter().filter_map(|key| Some((*key, self.virtual_server(key)?))).collect(),
            vips: scope
                .vips
                .iter()
                .filter(|vip| vip.via == self.via && self.has_vip(vip.address))
                .map(|vip| (*vip, self.source(vip.address)))
                .collect(),
            unreached: BTreeSet::new(),
        }
    }

    /// The whole desired state, packet rules left out. Every set of the enabled families is in it, be it empty.
    #[must_use]
    pub fn complete(&self) -> State {
        let set = |(set, size): (&Set, &Size)| (*set, SetState { capacity: size.capacity, members: self.members(*set).collect() });
        State {
            rules: BTreeMap::new(),
            sets: self.sets.iter().map(set).collect(),
            virtual_servers: self.keys().filter_map(|key| Some((key, self.virtual_server(&key)?))).collect(),
            vips: Family::ALL.into_iter().flat_map(|family| self.vips(family)).map(|vip| (vip, self.source(vip.address))).collect(),
            unreached: BTreeSet::new(),
        }
    }

    /// The keys of all virtual servers, those behind marks included.
    pub fn keys(&self) -> impl Iterator<Item = VirtualServerKey> {
        let behind_mark =
            |(frontend, mark): (&VirtualServerKey, NonZeroU32)| VirtualServerKey::Mark { family: frontend.family(), mark };
        self.owners.keys().copied().chain(self.marks.iter().map(behind_mark))
    }

    /// Takes note of what a kernel holds from an earlier run, so that frontends get the marks they had. To be called before the first
    /// [`Self::set`].
    pub fn adopt(&mut self, observed: &State) {
        self.marks.adopt(observed);
    }

    /// All members that `set` is to have.
    pub fn members(&self, set: Set) -> impl Iterator<Item = Member> {
        self.members.get(&set).into_iter().flat_map(BTreeMap::keys).copied()
    }

    /// Who is behind the virtual server `key`.
    #[must_use]
    pub fn owner(&self, key: &VirtualServerKey) -> Option<Owner<'_>> {
        let key = self.frontend(key)?;
        let service = self.owner_name(&key)?;
        let port = self.fragments.get(service)?.port_name(&key)?;
        Some(Owner { service, port })
    }

    /// The frontend that the virtual server `key` serves: the one it is for by its address, or the one whose packets carry its mark.
    #[must_use]
    pub fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
        match key {
            VirtualServerKey::Address { .. } => self.owners.contains_key(key).then_some(*key),
            VirtualServerKey::Mark { family, mark } => self.marks.frontend(*mark).filter(|key| key.family() == *family).copied(),
        }
    }

    /// The virtual server for callers inside the cluster of the frontend `key`, where policy `Local` sets them apart.
    #[must_use]
    pub fn in_cluster(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
        Some(VirtualServerKey::Mark { family: key.family(), mark: self.marks.of(key)? })
    }

    /// Whether a Service claims `frontend` and does not get it, because another machine has its address or a process of this node its port.
    /// Neither can be reached for as long as the virtual server and its VIP are there.
    #[must_use]
    pub fn is_taken(&self, frontend: &VirtualServerKey) -> bool {
        let VirtualServerKey::Address { address, .. } = *frontend else { return false };
        self.taken.contains_key(&Taken::Address(address)) || self.taken.contains_key(&Taken::NodePort(*frontend))
    }

    /// How the endpoint at `address` of the port behind the virtual server `key` stands; `None` where no such virtual server is desired.
    #[must_use]
    pub fn standing(&self, key: &VirtualServerKey, address: IpAddr) -> Option<Standing> {
        let (frontend, fragment) = self.served(key)?;
        fragment.standing(&frontend, address)
    }

    /// What matters when real servers leave the virtual server `key`; `None` where no such virtual server is desired.
    #[must_use]
    pub fn parting(&self, key: &VirtualServerKey) -> Option<Parting<'_>> {
        let (frontend, fragment) = self.served(key)?;
        match key {
            VirtualServerKey::Address { .. } => fragment.parting(&frontend),
            VirtualServerKey::Mark { .. } => fragment.in_cluster_parting(&frontend),
        }
    }

    /// The fragment of the Service called `name`, as it was last set.
    #[must_use]
    pub fn fragment(&self, name: &ServiceName) -> Option<&Fragment> {
        self.fragments.get(name)
    }

    /// All fragments, by Service.
    pub fn fragments(&self) -> impl Iterator<Item = (&ServiceName, &Fragment)> {
        self.fragments.iter()
    }

    /// Who asks for each member of a set. This walks all Services: it is for people who want to know why, and for no change.
    #[must_use]
    pub fn askers(&self) -> BTreeMap<(Set, Member), BTreeSet<&ServiceName>> {
        let mut askers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, fragment) in &self.fragments {
            for frontend in fragment.frontends().iter().filter(|frontend| self.owner_name(&frontend.key()) == Some(name)) {
                let marked = self.marks.of(&frontend.key()).map(|mark| frontend.marked(mark));
                for member in fragment.members_of(frontend).into_iter().chain(marked) {
                    askers.entry(member).or_default().insert(name);
                }
            }
            for member in fragment.local_members() {
                askers.entry(member).or_default().insert(name);
            }
        }
        askers
    }

    /// The keys that more than one Service claims, and who has them.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.waiting.iter().filter_map(|(key, waiting)| {
            let owner = self.owner_name(key)?.clone();
            Some(Conflict { key: *key, owner, waiting: waiting.iter().map(|claim| claim.service.clone()).collect() })
        })
    }

    /// What of a Service is not served because of others: another has what it claims, or nothing is left for it. Of the Services for
    /// which that may have changed since the last call, each with all there is to say of it now, be it nothing.
    pub fn take_problems(&mut self) -> Vec<(ServiceName, Box<[Problem]>)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().map(|name| (name.clone(), self.problems(&name))).collect()
    }

    fn problems(&self, name: &ServiceName) -> Box<[Problem]> {
        let mut problems = Problems::of("Service", name);
        let Some(fragment) = self.fragments.get(name) else { return problems.finish() };
        for key in self.waits_for.get(name).into_iter().flatten() {
            if let (Some(frontend), Some(owner)) = (fragment.frontend(key), self.owner_name(key)) {
                let message = format!(
                    "claims {key}, which Service {owner} had before, and is not served there as long as that has it; \
                     give one of the two another address or port"
                );
                problems.add_for(Reason::Conflict, frontend.kind.field(), message);
            }
        }
        let needs_mark = |frontend: &&Frontend| !self.unmarked.is_empty() && self.unmarked.contains(&frontend.key());
        for frontend in fragment.frontends().iter().filter(needs_mark).filter(|one| self.owner_name(&one.key()) == Some(name)) {
            let message = format!(
                "is Local, and all {} packet marks of this node are given to other frontends: callers inside the cluster reach {} \
                 on this node's endpoints alone; set it to Cluster here or elsewhere, or have fewer external addresses and node ports",
                Marks::CAPACITY,
                frontend.key()
            );
            problems.add_for(Reason::NoPacketMark, "spec.externalTrafficPolicy", message);
        }
        problems.finish()
    }

    fn owner_name(&self, key: &VirtualServerKey) -> Option<&ServiceName> {
        Some(&self.owners.get(key)?.service)
    }

    /// The frontend that the virtual server `key` serves, and the fragment that it is of.
    fn served(&self, key: &VirtualServerKey) -> Option<(VirtualServerKey, &Fragment)> {
        let frontend = self.frontend(key)?;
        Some((frontend, self.fragments.get(self.owner_name(&frontend)?)?))
    }

    fn virtual_server(&self, key: &VirtualServerKey) -> Option<model::VirtualServer> {
        match key {
            VirtualServerKey::Address { .. } => self.fragments.get(self.owner_name(key)?)?.virtual_server(key),
            VirtualServerKey::Mark { .. } => {
                let frontend = self.frontend(key)?;
                self.fragments.get(self.owner_name(&frontend)?)?.in_cluster_server(&frontend)
            }
        }
    }

    /// The VIPs of `family`: the set of them says which.
    fn vips(&self, family: Family) -> impl Iterator<Item = Vip> {
        let bound = |member| if let Member::Ip(address) = member { Some(Vip::new(address, self.via)) } else { None };
        self.members(Set::new(Role::Vips, family)).filter_map(bound)
    }

    fn has_vip(&self, address: IpAddr) -> bool {
        let members = self.members.get(&Set::new(Role::Vips, Family::of(address)));
        members.is_some_and(|members| members.contains_key(&Member::Ip(address)))
    }

    fn source(&self, vip: IpAddr) -> Option<IpAddr> {
        match self.via {
            Via::Route => self.sources.get(&Family::of(vip)).copied(),
            Via::Address => None,
        }
    }

    fn claim(&mut self, key: VirtualServerKey, claim: Claim) {
        let waits = match self.owners.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(claim);
                return;
            }
            Entry::Occupied(mut entry) if claim < *entry.get() => entry.insert(claim),
            Entry::Occupied(_) => claim,
        };
        let waiting = self.waiting.entry(key).or_default();
        let index = waiting.partition_point(|other| *other < waits);
        waiting.insert(index, waits);
    }

    fn withdraw(&mut self, key: &VirtualServerKey, service: &ServiceName) {
        let mut next = None;
        let owned = self.owner_name(key) == Some(service);
        if let Some(waiting) = self.waiting.get_mut(key) {
            if owned {
                next = waiting.pop_front();
            } else {
                waiting.retain(|claim| claim.service != *service);
            }
            if waiting.is_empty() {
                self.waiting.remove(key);
            }
        }
        if let Some(next) = next {
            self.owners.insert(*key, next);
        } else if owned {
            self.owners.remove(key);
        }
    }

    /// Takes note that `name` has claimed or given up `key`, which `before` had and which others claim as well, or did.
    fn note_claims(&mut self, key: VirtualServerKey, name: &ServiceName, before: Option<&ServiceName>) {
        let owner = self.owner_name(&key).cloned();
        let waiting = self.waiting.get(&key).into_iter().flatten().map(|claim| claim.service.clone());
        let (concerned, waiting): (BTreeSet<_>, BTreeSet<_>) = if owner.as_ref() == before {
            // Whoever else waits still waits for the same.
            let waits = waiting.filter(|waits| waits == name).collect();
            ([name.clone()].into(), waits)
        } else {
            let waiting: BTreeSet<_> = waiting.collect();
            let parties = [Some(name), owner.as_ref()].into_iter().flatten().cloned();
            (parties.chain(waiting.iter().cloned()).collect(), waiting)
        };
        for service in concerned {
            if waiting.contains(&service) {
                self.waits_for.entry(service.clone()).or_default().insert(key);
            } else if let Entry::Occupied(mut entry) = self.waits_for.entry(service.clone()) {
                entry.get_mut().remove(&key);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
            self.touched.insert(service);
        }
    }

    /// Gives the frontend `key` its mark, or takes it back, and puts the virtual server behind the mark in scope.
    fn follow_mark(&mut self, key: VirtualServerKey, after: Option<&Holding>, before: Option<&Holding>, scope: &mut Scope) {
        let marked =
            |holding: Option<&Holding>| holding.filter(|holding| holding.frontend.has_in_cluster()).map(|holding| holding.frontend);
        let family = key.family();
        match (marked(after), marked(before)) {
            (Some(frontend), _) => {
                let had_mark = self.marks.of(&key).is_some();
                let Some(mark) = self.marks.acquire(key) else {
                    self.unmarked.insert(key);
                    self.touch_owner(&key);
                    return;
                };
                scope.virtual_servers.insert(VirtualServerKey::Mark { family, mark });
                if !had_mark {
                    self.acquire(frontend.marked(mark), scope);
                    self.forget_unmarked(&key);
                }
            }
            (None, Some(frontend)) => {
                self.forget_unmarked(&key);
                let Some(mark) = self.marks.release(&key) else { return };
                scope.virtual_servers.insert(VirtualServerKey::Mark { family, mark });
                self.release(frontend.marked(mark), scope);
            }
            (None, None) => {}
        }
    }

    /// Gives marks that have become free to frontends that need one.
    fn hand_on_marks(&mut self, scope: &mut Scope) {
        while let Some(key) = self.unmarked.first().copied()
            && let Some(mark) = self.marks.acquire(key)
        {
            self.forget_unmarked(&key);
            let owner = self.owner_name(&key).and_then(|owner| self.fragments.get(owner));
            let Some(frontend) = owner.and_then(|fragment| fragment.frontend(&key)).copied() else { continue };
            scope.virtual_servers.insert(VirtualServerKey::Mark { family: key.family(), mark });
            self.acquire(frontend.marked(mark), scope);
        }
    }

    fn forget_unmarked(&mut self, key: &VirtualServerKey) {
        if self.unmarked.remove(key) {
            self.touch_owner(key);
        }
    }

    fn touch_owner(&mut self, key: &VirtualServerKey) {
        let owner = self.owner_name(key).cloned();
        self.touched.extend(owner);
    }

    fn acquire(&mut self, (set, member): (Set, Member), scope: &mut Scope) {
        let count = self.members.entry(set).or_default().entry(member).or_default();
        *count += 1;
        if *count == 1 {
            self.sets.entry(set).or_default().members += 1;
            self.touch((set, member), scope);
        }
    }

    fn release(&mut self, (set, member): (Set, Member), scope: &mut Scope) {
        let Some(members) = self.members.get_mut(&set) else { return };
        let Some(count) = members.get_mut(&member) else { return };
        *count -= 1;
        if *count == 0 {
            members.remove(&member);
            self.sets.entry(set).or_default().members -= 1;
            self.touch((set, member), scope);
        }
    }

    /// Puts a member in scope, and with one of the set of all VIPs the VIP.
    fn touch(&self, (set, member): (Set, Member), scope: &mut Scope) {
        scope.members.entry(set).or_default().insert(member);
        if let (Role::Vips, Member::Ip(address)) = (set.role, member) {
            scope.vips.insert(Vip::new(address, self.via));
        }
    }

    /// Sets only ever grow: to make one smaller is to build it anew, and who needed the room once will need it again.
    fn grow_sets(&mut self, scope: &mut Scope) {
        for set in scope.members.keys() {
            if let Some(size) = self.sets.get_mut(set) {
                size.capacity = size.capacity.max(SetState::capacity_for(size.members));
            }
        }
    }
}
