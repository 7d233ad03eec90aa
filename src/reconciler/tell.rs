//! What the reconciler tells of itself and its work: refusals, metrics, health.

use super::*;

impl Reconciler {
    /// Remembers and reports what was refused, and forgets what was refused before of what this plan was about.
    pub(super) fn note(&mut self, plan: &Plan, report: &Report) {
        if !self.refused.is_empty() {
            for key in plan.steps().filter_map(Step::virtual_server) {
                self.refused.forget(key);
            }
        }
        for Failure { step, error } in &report.failures {
            if let Step::ChangeRules(family, ..) = step {
                self.metrics.upstream.count_restore_failure(*family);
            }
            let key = step.virtual_server();
            match key.and_then(|key| self.ledger.owner(&key)) {
                // It is a problem of that Service, and said as such once.
                Some(service) => debug!(%step, %service, %error, "a step was refused"),
                None => warn!(%step, %error, "a step was refused"),
            }
            self.refused.add(key, step.to_string(), error.to_string());
        }
    }

    /// Whether the kernel holds what is desired, as far as that is known; if not, what is the matter.
    pub(super) fn outcome(&self) -> Result<(), String> {
        self.refused.first().or_else(|| self.unread.clone()).map_or(Ok(()), Err)
    }

    pub(super) fn failed(&mut self, pass: Pass, begun: Instant, error: &kernel::Error) {
        error!(%error, "cannot observe the kernel's state; what it holds keeps serving");
        self.unread = Some(error.to_string());
        self.audits.hasten(Instant::now());
        self.metrics.count_pass(pass, begun.elapsed(), false);
        self.health.send_modify(|health| health.note(Instant::now(), Err(error.to_string())));
    }

    pub(super) fn count_objects(&self) {
        self.metrics.refused.set(i64::try_from(self.refused.len()).unwrap_or(i64::MAX));
        let Some(observed) = &self.observed else { return };
        let count = |kind: &str, number: usize| {
            self.metrics.objects.with_label_values(&[kind]).set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        count("virtual_server", observed.virtual_servers.len());
        count("draining_real_server", self.drains.len());
        count("vip", observed.vips.len());
        count("set_member", observed.sets.values().map(|set| set.members.len()).sum());
    }

    /// Notes whether the kernel holds what was saved, where that is what is desired. What it holds besides is no difference.
    pub(super) fn note_saved(&self) {
        if self.on_saved && self.observed.is_some() {
            let outcome = self.outcome();
            self.health.send_modify(|health| {
                health.note(Instant::now(), outcome);
                health.saved_once = true;
            });
        }
    }

    /// Notes that it is known what the kernel holds, after all that has been told was tried.
    pub(super) fn note_synced(&self) {
        if self.complete && self.observed.is_some() {
            self.metrics.upstream.note_synced();
        }
    }
}
