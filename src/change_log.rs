//! The log of what was changed in the kernel: a line for each batch of steps, and in a burst of them a line for each second.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use desired::ServiceName;
use plan::{Plan, Step};
use tracing::{debug, info};

use crate::metrics::Pass;

/// The least time between two lines about changes that others asked for. What comes in between is summed up in the next.
const PACE: Duration = Duration::from_secs(1);

/// How many Services a line names.
const NAMED: usize = 4;

/// What has been done and not been said.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    pending: Option<Batches>,
    /// Until when there is to be no other line.
    quiet_until: Option<Instant>,
    /// The Services that the next batch is about.
    services: Services,
}

/// One batch, or several.
#[derive(Debug)]
struct Batches {
    pass: Pass,
    batches: usize,
    steps: usize,
    undone: usize,
    counts: Counts,
    services: Services,
    elapsed: Duration,
}

/// What steps are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    virtual_servers: usize,
    real_servers: usize,
    vips: usize,
    members: usize,
    sets: usize,
    rules: usize,
}

/// Services by name, of which no more are kept than are said.
#[derive(Debug, Default)]
struct Services {
    named: BTreeSet<ServiceName>,
    others: bool,
}

impl ChangeLog {
    /// Takes note that the next batch is about `service`.
    pub(crate) fn name(&mut self, service: &ServiceName) {
        self.services.add(service);
    }

    /// Takes note of a batch, and says it unless a line has just been said. `owners` are the Services behind its virtual servers.
    pub(crate) fn note<'a>(
        &mut self,
        pass: Pass,
        plan: &Plan,
        undone: usize,
        elapsed: Duration,
        owners: impl Iterator<Item = &'a ServiceName>,
        now: Instant,
    ) {
        let mut services = std::mem::take(&mut self.services);
        for owner in owners {
            if services.others {
                break;
            }
            services.add(owner);
        }
        let mut counts = Counts::default();
        plan.steps().for_each(|step| counts.add(step));
        let steps = plan.len();
        debug!(?pass, steps, undone, ?elapsed, "carried out a batch");
        let batch = Batches { pass, batches: 1, steps, undone, counts, services, elapsed };
        // What is not asked for by changes is rare, and says something of its own.
        if self.pending.as_ref().is_some_and(|pending| pending.pass != pass) || pass != Pass::Change {
            self.say(now);
        }
        match &mut self.pending {
            Some(pending) => pending.extend(&batch),
            None => self.pending = Some(batch),
        }
        if pass != Pass::Change || self.quiet_until.is_none_or(|until| until <= now) {
            self.say(now);
        }
    }

    /// When there is something to say; `None` while there is not.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().and(self.quiet_until)
    }

    /// Forgets the Services that turned out to need no batch.
    pub(crate) fn nothing_done(&mut self) {
        self.services = Services::default();
    }

    /// Says what is pending, if that is due.
    pub(crate) fn say_due(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.say(now);
        }
    }

    /// Says what is pending.
    pub(crate) fn say(&mut self, now: Instant) {
        let Some(Batches { pass, batches, steps, undone, counts, services, elapsed }) = self.pending.take() else { return };
        self.quiet_until = Some(now + PACE);
        info!(?pass, batches, steps, undone, what = %counts, services = %services, ?elapsed, "changed the kernel's state");
    }
}

impl Batches {
    fn extend(&mut self, other: &Self) {
        self.batches += other.batches;
        self.steps += other.steps;
        self.undone += other.undone;
        self.elapsed += other.elapsed;
        self.counts.extend(other.counts);
        self.services.others |= other.services.others;
        other.services.named.iter().for_each(|service| self.services.add(service));
    }
}

impl Services {
    fn add(&mut self, service: &ServiceName) {
        if self.named.len() < NAMED {
            self.named.insert(service.clone());
        } else {
            self.others |= !self.named.contains(service);
        }
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, service) in self.named.iter().enumerate() {
            write!(f, "{}{service}", if at == 0 { "" } else { "," })?;
        }
        if self.others { f.write_str(",…") } else { Ok(()) }
    }
}

impl Counts {
    fn add(&mut self, step: &Step) {
        match step {
            Step::AddVirtualServer { real_servers, .. } => {
                self.virtual_servers += 1;
                self.real_servers += real_servers.len();
            }
            Step::SetVirtualServer { .. } | Step::RemoveVirtualServer(_) => self.virtual_servers += 1,
            Step::AddRealServer { .. } | Step::SetRealServer { .. } | Step::RemoveRealServer { .. } => self.real_servers += 1,
            Step::BindVip { .. } | Step::RebindVip { .. } | Step::UnbindVip(_) => self.vips += 1,
            Step::AddMembers(_, members) | Step::RemoveMembers(_, members) => self.members += members.len(),
            Step::CreateSet { .. } | Step::GrowSet { .. } | Step::DestroySet(_) => self.sets += 1,
            Step::ChangeRules(..) => self.rules += 1,
        }
    }

    fn extend(&mut self, other: Self) {
        let Self { virtual_servers, real_servers, vips, members, sets, rules } = other;
        self.virtual_servers += virtual_servers;
        self.real_servers += real_servers;
        self.vips += vips;
        self.members += members;
        self.sets += sets;
        self.rules += rules;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { virtual_servers, real_servers, vips, members, sets, rules } = *self;
        let counts = [
            (virtual_servers, "virtual servers"),
            (real_servers, "real servers"),
            (vips, "VIPs"),
            (members, "set members"),
            (sets, "sets"),
            (rules, "families' packet rules"),
        ];
        let said: Vec<_> = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(&said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured::Log;
    use model::{Protocol, Scheduler, State, VirtualServer, VirtualServerKey};
    use plan::{Ownership, plan};

    fn batch(port: u16) -> Plan {
        let key = VirtualServerKey::address("10.96.0.10".parse().unwrap(), Protocol::Tcp, port);
        let desired =
            State { virtual_servers: [(key, VirtualServer::new(Scheduler::RR, key.family()))].into(), ..State::default() };
        plan(&desired, &State::default(), &Ownership::Scope)
    }

    fn name(number: usize) -> ServiceName {
        ServiceName::new("shop", &format!("web-{number}"))
    }

    #[test]
    fn a_change_is_said_at_once_and_a_burst_once_a_second() {
        let log = Log::capture();
        let mut changes = ChangeLog::default();
        let begun = Instant::now();
        for number in 0..500_u16 {
            changes.name(&name(usize::from(number)));
            changes.note(
                Pass::Change,
                &batch(number + 1),
                0,
                PACE / 500,
                std::iter::empty(),
                begun + PACE * u32::from(number) / 500,
            );
        }
        let lines = log.lines("changed the kernel's state");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("batches=1 steps=1 undone=0 what=1 virtual servers services=shop/web-0 "), "{lines:?}");
        assert_eq!(changes.due(), Some(begun + PACE));
        changes.say_due(begun + PACE / 2);
        assert_eq!(log.lines("changed").len(), 1, "it is not due");
        changes.say_due(begun + PACE);
        let lines = log.lines("changed the kernel's state");
        assert_eq!(lines.len(), 2);
        assert!(
            lines[1].contains(
                "batches=499 steps=499 undone=0 what=499 virtual servers services=shop/web-1,shop/web-2,shop/web-3,shop/web-4,… "
            ),
            "{lines:?}"
        );
        assert_eq!(changes.due(), None);
        changes.note(Pass::Change, &batch(1), 1, PACE, [&name(7)].into_iter(), begun + 2 * PACE);
        let lines = log.lines("undone=1");
        assert!(
            lines.len() == 1 && lines[0].contains("services=shop/web-7 "),
            "after a quiet second a change is said at once: {lines:?}"
        );
    }

    #[test]
    fn what_is_no_change_of_objects_is_never_summed_up_with_one() {
        let log = Log::capture();
        let mut changes = ChangeLog::default();
        let now = Instant::now();
        for (port, pass) in [(1, Pass::Change), (2, Pass::Change), (3, Pass::Repair), (4, Pass::Repair), (5, Pass::Change)] {
            changes.note(pass, &batch(port), 0, PACE, std::iter::empty(), now);
        }
        let passes = |pass: &str| log.lines(&format!("pass={pass} ")).len();
        assert_eq!((passes("Change"), passes("Repair")), (2, 2), "the last change is still pending");
        assert_eq!(changes.due(), Some(now + PACE));
    }
}
