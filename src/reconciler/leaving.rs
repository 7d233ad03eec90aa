//! What ends with what leaves: the real servers that are done, and the UDP flows that lead to nobody any more.

use super::*;

impl Reconciler {
    /// Counts the connections of real servers that are leaving, and removes those that are done.
    pub(super) fn drain(&mut self, pass: Pass) {
        let begun = Instant::now();
        self.drains.check_later(begun);
        let Some(observed) = &self.observed else { return };
        let scope = self.widened(self.drains.scope(observed), observed);
        let mut counted = BTreeMap::new();
        for key in self.drains.virtual_servers() {
            match self.kernel.connections(&key) {
                Ok(counters) => counted.extend([(key, counters)]),
                Err(error) => warn!(%key, %error, "cannot count the connections of real servers that are leaving; trying again"),
            }
        }
        let half_closed = counted.iter().any(|(key, counters)| self.drains.needs_look(*key, counters, begun)).then(|| {
            let half_closed = self.kernel.half_closed();
            half_closed.inspect_err(|error| warn!(%error, "cannot tell half-closed connections from closed ones; keeping both"))
        });
        let half_closed = half_closed.and_then(Result::ok);
        let gone: BTreeMap<_, _> =
            counted.iter().map(|(key, counters)| (*key, self.drains.let_go(*key, counters, half_closed.as_ref(), begun))).collect();
        for (real, counters) in gone
            .iter()
            .filter_map(|(key, gone)| Some((gone, counted.get(key)?)))
            .flat_map(|(gone, counters)| gone.iter().map(move |real| (real, counters)))
        {
            self.metrics.count_drain(counters.get(real).is_some_and(|counters| counters.active > 0));
        }
        let held = observed.restricted_to(&scope);
        let mut staying = held.clone();
        for (key, server) in &mut staying.virtual_servers {
            server.real_servers.retain(|real| gone.get(key).is_none_or(|gone| !gone.contains(real)));
        }
        let mut desired = self.ledger.desired(&scope);
        self.schedulers.serve(&mut desired, |scheduler| self.kernel.offers(scheduler));
        self.drains.keep_leaving(&mut desired, &staying, &Known { ledger: &self.ledger, ours: None, complete: self.begun }, begun);
        let plan = self.planned(&desired, &held, &Ownership::Scope);
        if !plan.is_empty() {
            self.apply(&plan, pass, begun);
        }
        // Where it is not known what has become of them, all of them are gone on with: the next count takes out who is not there.
        self.drains.keep_refused(self.observed.as_ref().unwrap_or(&held));
        self.drains.check_later(begun);
    }

    /// Has the kernel forget the UDP flows that lead to nobody any more.
    pub(super) fn forget_stale_flows(&mut self) {
        let Some(observed) = &self.observed else { return };
        for (family, frontends) in self.stale_flows.take(observed, |key| self.ledger.in_cluster(key)) {
            let begun = Instant::now();
            match self.kernel.flush_udp(family, |flow| frontends.is_stale(flow)) {
                Ok(flows) => {
                    if flows > 0 {
                        info!(%family, flows, elapsed = ?begun.elapsed(), "forgot UDP flows that led to nobody");
                    }
                    self.metrics.count_flush(family, begun.elapsed(), Some(flows));
                }
                Err(error) if error.is_missing_module() => {
                    warn!(%error, "UDP clients that keep their port may stay with real servers that are gone");
                    self.stale_flows.give_up();
                    return;
                }
                Err(error) => {
                    warn!(%family, %error, "UDP clients that keep their port may stay with real servers that are gone; trying again with the next audit");
                    self.metrics.count_flush(family, begun.elapsed(), None);
                    self.stale_flows.put_off(&frontends);
                }
            }
        }
    }
}
