//! This crate turns two states into a [`Plan`]: what is desired and what is observed go in, the ordered steps between them come out.
//!
//! A plan is data. It can be printed as a dry run, counted, split into batches at any point, and tested without a kernel. `desired`
//! and `kernel` make the states it compares, `kernel` carries its steps out, and neither can reach into how they are found.
//!
//! # Order
//!
//! The [`Stage`]s make before they break: sets, packet rules, members, virtual servers with their real servers, VIPs; then what is
//! surplus goes, in the opposite order. Whatever prefix of a plan is carried out, a virtual server that had a live real server and
//! shall keep one has one, and no VIP is bound before the packet rules that its traffic needs. Inside a stage no step depends on
//! another.
//!
//! # Ownership
//!
//! Objects of other tools never appear in a plan. [`Ownership`] is the one predicate that says which observed virtual servers may be
//! touched; everything else in a [`State`] is ours by construction.
//!
//! ```
//! use model::{Protocol, Scheduler, State, VirtualServer, VirtualServerKey};
//! use plan::{Ownership, Step, plan};
//!
//! let web = VirtualServerKey::address("10.96.0.10".parse()?, Protocol::Tcp, 80);
//! let mut desired = State::default();
//! desired.virtual_servers.insert(web, VirtualServer::new(Scheduler::RR, web.family()));
//!
//! let plan = plan::plan(&desired, &State::default(), &Ownership::Scope);
//! assert!(matches!(plan.steps().next(), Some(Step::AddVirtualServer { key, .. }) if *key == web));
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

mod diff;
mod order;
mod ownership;
mod rules;
mod step;

use std::collections::BTreeMap;
use std::fmt;

pub use order::Order;
pub use ownership::Ownership;
pub use rules::RulesChange;
pub use step::{Stage, Step};

use model::State;

/// What has to be done to get from an observed state to a desired one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    stages: BTreeMap<Stage, Vec<Step>>,
}

/// The steps from `observed` to `desired`. Equal states give an empty plan. Real servers are added in the order of their keys; see
/// [`Plan::in_order`].
#[must_use]
pub fn plan(desired: &State, observed: &State, ownership: &Ownership<'_>) -> Plan {
    let mut plan = Plan::default();
    diff::sets(&mut plan, desired, observed);
    diff::rules(&mut plan, desired, observed);
    diff::virtual_servers(&mut plan, desired, observed, ownership);
    diff::vips(&mut plan, desired, observed);
    plan
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// How many steps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stages.values().map(Vec::len).sum()
    }

    /// The stages that have something to do, in the order to do them.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, &[Step])> {
        self.stages.iter().map(|(stage, steps)| (*stage, steps.as_slice()))
    }

    /// All steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.values().flatten()
    }

    /// Of this plan, only what adds something that is missing as a whole. What is there stays as it is: no virtual server gets a real server more or
    /// less, or another weight. For a desired state that may be older than what is observed.
    #[must_use]
    pub fn additions(mut self) -> Self {
        for steps in self.stages.values_mut() {
            steps.retain(Step::is_addition);
        }
        self.stages.retain(|_, steps| !steps.is_empty());
        self
    }

    fn push(&mut self, step: Step) {
        self.stages.entry(step.stage()).or_default().push(step);
    }
}

impl fmt::Display for Plan {
    /// One line a step, under a heading for each stage.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stage, steps) in self.stages() {
            writeln!(f, "{stage}")?;
            for step in steps {
                writeln!(f, "  {step}")?;
            }
        }
        Ok(())
    }
}
