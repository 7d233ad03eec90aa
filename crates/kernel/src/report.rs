//! How it went with a plan.

use std::collections::BTreeSet;
use std::time::Duration;

use model::State;
use plan::{Plan, Step};

use crate::Error;

/// What became of the steps of a plan. One step that fails does not stop the others.
#[derive(Debug, Default)]
pub struct Report {
    /// What the kernel did not do, in the order of the plan.
    pub failures: Vec<Failure>,
    /// How much of the time was the kernel's, or that of the programs that install packet rules.
    pub in_kernel: Duration,
    /// The steps, by their place in the plan, that were not carried out: refused, or left alone because of another's failure.
    undone: BTreeSet<usize>,
}

/// A step, or a part of one, that was not carried out.
#[derive(Debug)]
pub struct Failure {
    /// What was not done. Of a virtual server that was made without one of its real servers, just that real server.
    pub step: Step,
    /// Why not.
    pub error: Error,
}

impl Report {
    pub(crate) fn fail(&mut self, index: usize, step: Step, error: Error) {
        self.undone.insert(index);
        self.failures.push(Failure { step, error });
    }

    pub(crate) fn fail_part(&mut self, step: Step, error: Error) {
        self.failures.push(Failure { step, error });
    }

    pub(crate) fn leave(&mut self, index: usize) {
        self.undone.insert(index);
    }

    /// The steps that were not carried out.
    #[must_use]
    pub fn undone(&self) -> usize {
        self.undone.len()
    }

    /// Whether only an observation can tell what the kernel holds now.
    #[must_use]
    pub fn leaves_state_unknown(&self) -> bool {
        self.failures.iter().any(|failure| match failure.step {
            // That something else is in the way does not make it unknown what is there.
            Step::BindVip { .. } if failure.error.already_exists() => false,
            // Of a list of members those before the refused one are in.
            Step::AddMembers(..) | Step::RemoveMembers(..) | Step::GrowSet { .. } => true,
            _ => failure.error.leaves_state_unknown(),
        })
    }

    /// Does to `state` what was done to the kernel: the steps of `plan` that were carried out.
    pub fn apply_to(&self, plan: &Plan, state: &mut State) {
        for (index, step) in plan.steps().enumerate() {
            if !self.undone.contains(&index) {
                step.apply_to(state);
            }
        }
        for failure in &self.failures {
            if let Step::AddRealServer { key, real, .. } = failure.step
                && let Some(server) = state.virtual_servers.get_mut(&key)
            {
                server.real_servers.remove(&real);
            }
        }
    }
}
