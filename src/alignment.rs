//! What a pass over everything compares the kernel with, and what comes before the first one. The reconciler carries the plans out; `kube-ipvs plan`
//! prints them.

use std::collections::BTreeMap;
use std::time::Instant;

use desired::{Ledger, Parting, Standing};
use ipnetwork::IpNetwork;
use kernel::Leftovers;
use model::{Family, RealServerKey, Rules, Scheduler, State, VirtualServerKey};
use plan::{Ownership, Plan, plan};

use crate::drain::{Drains, Surroundings};
use crate::schedulers::Schedulers;

/// All that is desired of the node.
#[derive(Clone, Copy)]
pub(crate) struct Whole<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) rules: &'a BTreeMap<Family, Rules>,
    /// Networks in which no virtual server is removed.
    pub(crate) excluded: &'a [IpNetwork],
}

impl<'a> Whole<'a> {
    /// The state that the kernel is to be brought to from `observed`: in terms of the schedulers that it `offers`, and with what is leaving.
    /// `complete` says whether everything that exists was known when the virtual servers were last brought in line.
    pub(crate) fn desired(
        self,
        observed: &State,
        schedulers: &mut Schedulers,
        mut offers: impl FnMut(Scheduler) -> Result<bool, kernel::Error>,
        drains: &mut Drains,
        complete: bool,
        now: Instant,
    ) -> State {
        let mut desired = self.ledger.complete();
        desired.rules.clone_from(self.rules);
        schedulers.ask_again(&desired, &mut offers);
        schedulers.serve(&mut desired, offers);
        drains.keep_leaving(
            &mut desired,
            observed,
            &Known { ledger: self.ledger, ours: Some((observed, self.excluded)), complete },
            now,
        );
        desired
    }

    /// What of a whole node is ours to touch.
    pub(crate) const fn ownership(self) -> Ownership<'a> {
        Ownership::Node { excluded: self.excluded }
    }
}

/// What is known of virtual servers that may be leaving.
pub(crate) struct Known<'a> {
    pub(crate) ledger: &'a Ledger,
    /// What was observed of the whole node, and the networks in which nothing is removed; `None` for states that hold nothing but what was
    /// desired once.
    pub(crate) ours: Option<(&'a State, &'a [IpNetwork])>,
    /// Whether everything that exists was known when the virtual servers were last brought in line.
    pub(crate) complete: bool,
}

impl Surroundings for Known<'_> {
    fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
        self.ledger.frontend(key)
    }

    fn is_ours(&self, key: &VirtualServerKey) -> bool {
        // Those on a VIP that is not theirs go with it at once.
        let listed = |(observed, excluded)| Ownership::Listed { excluded }.covers(key, &State::default(), observed);
        self.ours.is_none_or(listed)
    }

    fn is_taken(&self, frontend: &VirtualServerKey) -> bool {
        self.ledger.is_taken(frontend)
    }

    fn were_desired(&self) -> bool {
        self.complete
    }

    fn standing(&self, key: &VirtualServerKey, real: &RealServerKey) -> Option<Standing> {
        self.ledger.standing(key, real.address)
    }

    fn parting(&self, key: &VirtualServerKey) -> Option<Parting<'_>> {
        self.ledger.parting(key)
    }
}

/// What makes those of kube-proxy's virtual servers ours that none of the sets lists which we have in common.
pub(crate) fn taking_over(found: &Leftovers, observed: &State) -> Plan {
    let mut listed = observed.clone();
    listed.own(found.node_ports(observed));
    plan(&listed, observed, &Ownership::Scope)
}
