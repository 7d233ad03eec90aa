//! A start: what is there is taken over, what is missing as a whole is made in parts, and a pass over everything does the rest.

use super::*;

/// For how long what was observed at the start is good enough for the first pass: about as long as what is remembered is relied on between two
/// audits. Lists of fifty thousand Services take less; where an API server is in trouble they take longer, and then there may have been others at work.
const ADOPTED: Duration = Duration::from_secs(60);

/// How many virtual servers are made together where there are none.
const PART: usize = 500;

impl Reconciler {
    /// Observes the kernel for the first time, and takes over what an earlier run has left there.
    pub(super) fn adopt(&mut self) {
        let begun = Instant::now();
        match self.observe() {
            Ok(mut observed) => {
                if let Err(error) = self.kernel.remove_remains() {
                    debug!(%error, "cannot remove the set that an earlier run was filling; the next that does so removes it");
                }
                if self.settings.take_over {
                    self.take_over(&mut observed);
                }
                self.ledger.adopt(&observed);
                self.observed = Some(observed);
                self.observed_at = begun;
            }
            Err(error) => self.failed(Pass::Start, begun, &error),
        }
    }

    /// Takes in Services while others are still listed; the pass over everything serves them with the rest.
    pub(super) fn take_arriving(&mut self, fragments: Fragments) {
        if self.observed.is_none() {
            // What the kernel holds has to be known first: the ledger goes on with the marks of an earlier run.
            self.arriving.extend(fragments);
            return;
        }
        let begun = Instant::now();
        for (service, fragment) in std::mem::take(&mut self.arriving).into_iter().chain(fragments) {
            self.ledger.set(&service, fragment);
        }
        self.metrics.count_phase(Phase::Desired, begun.elapsed());
    }

    /// Makes the sets and installs the packet rules before there is any virtual server that needs them. Removes nothing.
    pub(super) fn prepare(&mut self, begun: Instant) {
        let Some(observed) = &self.observed else { return };
        let sets = self.settings.config.families.iter().flat_map(|family| Set::of_family(*family));
        let scope = Scope { members: sets.map(|set| (set, BTreeSet::new())).collect(), ..Scope::default() };
        let scope = self.widened(scope, observed);
        let mut desired = self.ledger.desired(&scope);
        let mut held = observed.restricted_to(&scope);
        self.keep_members(&mut desired, &held);
        desired.rules.clone_from(&self.rules);
        held.rules.clone_from(&observed.rules);
        self.prepared = true;
        let plan = self.planned(&desired, &held, &Ownership::Scope);
        self.apply(&plan, Pass::Start, begun);
    }

    /// Until everything has been listed, a member that nobody has asked for yet may still be wanted: of a set that grows early it is carried over.
    pub(super) fn keep_members(&self, desired: &mut State, held: &State) {
        if self.complete {
            return;
        }
        for (set, held) in &held.sets {
            if let Some(desired) = desired.sets.get_mut(set) {
                desired.members.extend(&held.members);
            }
        }
    }

    /// Makes what is missing as a whole before the pass over everything at the start, a part at a time: what all of it together takes on the way
    /// would stay with the process, as holes between what it keeps.
    fn bring_in(&mut self) {
        let Some(observed) = &self.observed else { return };
        let missing: Vec<_> = self.ledger.keys().filter(|key| !observed.virtual_servers.contains_key(key)).collect();
        if missing.len() <= PART {
            return;
        }
        // The sets as a whole, so that none of them has to grow, and with them the packet rules. What is there with another mark stays until the pass
        // over everything, which knows by it what the mark's virtual server was for.
        let sets = self.settings.config.families.iter().flat_map(|family| Set::of_family(*family));
        let is_marked_otherwise = |set: &Set, member: &Member| {
            observed.sets.get(set).is_some_and(|held| held.has(*member) && !held.members.contains(member))
        };
        let members = sets.map(|set| (set, self.ledger.members(set).filter(|member| !is_marked_otherwise(&set, member)).collect()));
        let scope = self.widened(Scope { members: members.collect(), ..Scope::default() }, observed);
        self.prepared = true;
        self.add_missing(&scope);
        // From the last to the first: who has cleaned up a moment ago went the other way, and what was removed last the kernel finds first when it
        // is made again (`ip_vs_trash_get_dest`, net/netfilter/ipvs/ip_vs_ctl.c).
        for part in missing.rchunks(PART) {
            // What must not be done after a failure, the pass over everything knows: it has all steps in one plan. It also binds the VIPs: the kernel
            // looks each real server up among the addresses of the node, which is the dearer the more there are.
            if !self.refused.is_empty() {
                return;
            }
            self.add_missing(&Scope { virtual_servers: part.iter().copied().collect(), ..Scope::default() });
        }
    }

    /// Adds what is missing as a whole of what `scope` names, and the packet rules where they are. Changes and removes nothing.
    fn add_missing(&mut self, scope: &Scope) {
        let begun = Instant::now();
        // Where a failure has left it open what the kernel holds, the pass over everything finds out.
        let Some(observed) = &self.observed else { return };
        let mut desired = self.ledger.desired(scope);
        let mut held = observed.restricted_to(scope);
        self.keep_members(&mut desired, &held);
        desired.rules.clone_from(&self.rules);
        held.rules.clone_from(&observed.rules);
        self.schedulers.serve(&mut desired, |scheduler| self.kernel.offers(scheduler));
        let plan = self.planned(&desired, &held, &Ownership::Scope).additions();
        self.apply(&plan, Pass::Start, begun);
        self.share(&desired);
    }

    /// Serves everything, now that all of it has been told. What was adopted a moment ago has been kept in line with what was done since, and is
    /// not read a second time: on a full kernel that is most of a restart.
    pub(super) fn first_pass(&mut self) {
        let fresh = self.observed_at.elapsed() < ADOPTED;
        if fresh {
            self.bring_in();
        }
        self.complete = true;
        match self.observed.take_if(|_| fresh) {
            Some(observed) => self.pass_over(Pass::Start, observed, Instant::now()),
            None => self.pass(Pass::Start),
        }
    }
}
