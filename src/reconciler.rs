//! The one thread that owns the kernel side: it merges fragments, plans, applies, and remembers what the kernel holds.
//!
//! Netlink is synchronous in the kernel, so this is a plain blocking thread with a mailbox in front. A change costs what it touches:
//! its scope is planned against what is remembered, and nothing is read back. Everything is observed at start, in the periodic audit,
//! and soon after a failure that leaves it open what the kernel did.

mod answers;
pub(crate) mod audits;
#[cfg(test)]
mod faults;
mod leaving;
mod start;
#[cfg(test)]
mod stuck;
mod takeover;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use desired::{Config, Ledger};
use ipnetwork::IpNetwork;
use kernel::sysctl::{self, Outcome, Sysctl};
use kernel::{Failure, Kernel, Leftovers, Mode, Part, Report, Timeouts};
use model::{Family, Member, Rules, Scheduler, Scope, Set, State, Via, Vip};
use plan::{Order, Ownership, Plan, Step, plan};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use self::audits::Audits;
use self::takeover::Predecessor;
use crate::alignment::{Known, Whole, taking_over};
use crate::change_log::ChangeLog;
use crate::control::{AskReconciler, DesiredTable, DesiredVirtualServer, Stage};
use crate::disturbances::Disturbances;
use crate::drain::{Drains, Limits};
use crate::health::{HEARTBEAT, Health, Life};
use crate::mailbox::{Fragments, Letter, Mailbox, NodeSettings};
use crate::metrics::{Metrics, Pass, Phase};
use crate::news::News;
use crate::patrol::Patrol;
use crate::refusals::Refusals;
use crate::register::Origin;
use crate::schedulers::Schedulers;
use crate::stale_flows::{self, StaleFlows};
use crate::survey::OTHER_MODE;
use crate::sysctls;
use crate::traffic::{Owned, Owners};

/// For how long after a pass what comes is gathered for the next. A single change finds the reconciler idle and is done at once; of a burst the
/// changes share what each pass costs beside them.
const GATHERING: Duration = Duration::from_millis(2);

/// How many steps of a repair are named in the log, of each stage.
const NAMED_STEPS: usize = 3;

/// What shapes the reconciler's work.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) tuning: Tuning,
    /// Whether what kube-proxy in IPVS mode has left is removed when it is not needed any more.
    pub(crate) take_over: bool,
    /// How long it may get nowhere before it counts as stuck.
    pub(crate) stuck_after: Duration,
}

/// What of it may change while it works.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// The scheduler of Services whose own the kernel lacks.
    pub(crate) scheduler: Scheduler,
    pub(crate) excluded: Vec<IpNetwork>,
    pub(crate) audit: audits::Pace,
    /// Zero for never.
    pub(crate) check_period: Duration,
    pub(crate) drain: Limits,
    /// How long idle connections are kept, in seconds; 0 for as the kernel has it.
    pub(crate) timeouts: Timeouts,
    /// What the operator wants of sysctls, beside what IPVS needs.
    pub(crate) sysctls: Vec<Sysctl>,
}

/// The thread, and what it tells of itself.
pub(crate) struct Running {
    pub(crate) health: watch::Receiver<Health>,
    /// The schedulers that are asked for and that the kernel lacks.
    pub(crate) lacking_schedulers: watch::Receiver<BTreeSet<Scheduler>>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts the thread, which reads `mailbox` until a letter says stop, and leaves the kernel as it is then.
///
/// # Errors
/// When no thread can be made.
pub(crate) fn spawn(kernel: Kernel, settings: Settings, mailbox: Mailbox, news: News, metrics: Metrics) -> anyhow::Result<Running> {
    let now = Instant::now();
    let life = Life { pulse: kernel.pulse().clone(), patience: settings.stuck_after };
    let (health, health_of) = watch::channel(Health { life, ..Health::default() });
    let (lacking, lacking_schedulers) = watch::channel(BTreeSet::new());
    let reconciler = Reconciler {
        ledger: Ledger::new(&settings.config),
        drains: Drains::new(settings.tuning.drain),
        schedulers: Schedulers::new(settings.tuning.scheduler, lacking, metrics.clone()),
        order: Order::of_node(&settings.config.node_name),
        stale_flows: StaleFlows::default(),
        predecessor: None,
        kernel,
        rules: BTreeMap::new(),
        observed: None,
        observed_at: Instant::now(),
        audits: Audits::new(settings.tuning.audit, now),
        gathering_until: None,
        arriving: Fragments::new(),
        prepared: false,
        complete: false,
        begun: false,
        listing: true,
        on_saved: false,
        refused: Refusals::default(),
        unread: None,
        news,
        patrol: Patrol::new(settings.tuning.check_period, now),
        disturbances: Disturbances::new(now),
        settings,
        metrics,
        health,
        change_log: ChangeLog::default(),
    };
    let thread = thread::Builder::new().name("reconciler".to_owned());
    let thread = thread.spawn(move || reconciler.run(&mailbox)).context("cannot start the reconciler's thread")?;
    Ok(Running { health: health_of, lacking_schedulers, thread })
}

struct Reconciler {
    kernel: Kernel,
    settings: Settings,
    ledger: Ledger,
    drains: Drains,
    schedulers: Schedulers,
    /// In which order real servers are added.
    order: Order,
    stale_flows: StaleFlows,
    /// kube-proxy, until what it has left is gone for good.
    predecessor: Option<Predecessor>,
    rules: BTreeMap<Family, Rules>,
    /// What the kernel holds, as far as it is known; `None` when only an observation can tell.
    observed: Option<State>,
    /// When that was observed as a whole; what has been done since is taken into account.
    observed_at: Instant,
    audits: Audits,
    /// Until when changes are gathered.
    gathering_until: Option<Instant>,
    /// Services that were told of while it was not known what the kernel holds.
    arriving: Fragments,
    /// Whether sets and packet rules have been made ready for the first virtual server.
    prepared: bool,
    /// Whether everything that exists has been listed.
    complete: bool,
    /// Whether all that is desired has been compared with all that the kernel holds since then.
    begun: bool,
    /// Whether not everything has been listed: what is desired is what was told first, or saved, and older perhaps than what the kernel holds.
    listing: bool,
    /// Whether what was saved is served meanwhile.
    on_saved: bool,
    /// What the kernel did not take since the last observation.
    refused: Refusals,
    /// Why the last observation failed, until one does not.
    unread: Option<String>,
    news: News,
    patrol: Patrol,
    /// What others may have changed.
    disturbances: Disturbances,
    metrics: Metrics,
    health: watch::Sender<Health>,
    change_log: ChangeLog,
}

impl Reconciler {
    fn run(mut self, mailbox: &Mailbox) {
        self.show_interval();
        // While the API server's lists are on their way.
        self.adopt();
        loop {
            self.kernel.pulse().beat();
            let gathering = self.gathering_until.take();
            match mailbox.take_after(gathering, self.patience()) {
                Some(letter) if letter.stop => {
                    self.change_log.say(Instant::now());
                    return;
                }
                Some(letter) => self.read(letter),
                None => {}
            }
            let now = Instant::now();
            self.change_log.say_due(now);
            if self.drains.next_check().is_some_and(|check| check <= now) {
                self.drain(Pass::Change);
            }
            if self.patrol.next().is_some_and(|look| look <= now) {
                self.look_around(now);
            }
            if self.audits.next() <= now {
                self.audit();
            } else if self.begun {
                self.repair(now);
            }
            // Once for all that has been done since the last time: each look at flows costs what there are of them on the node.
            self.forget_stale_flows();
        }
    }

    /// How long there is nothing to do unless a letter comes.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let disturbed = self.disturbances.due().filter(|_| self.begun);
        let due = [Some(self.audits.next()), self.drains.next_check(), self.patrol.next(), disturbed, self.change_log.due()];
        due.into_iter().flatten().map(|due| due.saturating_duration_since(now)).fold(HEARTBEAT, Duration::min)
    }

    fn read(&mut self, letter: Letter) {
        for ask in letter.asks {
            self.answer(ask);
        }
        if let Some(tuning) = letter.tuning {
            self.tune(tuning);
        }
        for ask in letter.owners {
            let _ = ask.send(self.owners());
        }
        if self.observed.is_none() && !self.complete {
            self.adopt();
        }
        self.take_arriving(letter.arriving);
        self.listing = !(letter.complete || self.complete);
        self.on_saved = self.listing && (self.on_saved || !letter.services.is_empty());
        let mut scope = Scope::default();
        let mut rules = false;
        if let Some(NodeSettings { rules: desired, sources }) = letter.node {
            rules = self.rules != desired;
            self.rules = desired;
            for family in Family::ALL {
                scope.extend(self.ledger.set_source(family, sources.get(&family).copied()));
            }
        }
        if !(self.complete || self.listing) {
            // Services that have been told of early have no virtual servers yet, without which their VIPs would refuse who calls.
            scope = Scope::default();
        }
        scope.extend(self.merge(letter.urgent));
        // With nothing to serve before the rest, sets are made when it is known how many members they will have.
        self.change(&scope, rules && (self.complete || self.listing));
        if letter.complete && !self.complete {
            let begun = Instant::now();
            let mut services = std::mem::take(&mut self.arriving);
            services.extend(letter.services);
            for (service, fragment) in services {
                // Everything is in the scope of what comes.
                self.ledger.set(&service, fragment);
            }
            self.metrics.count_phase(Phase::Desired, begun.elapsed());
            self.news.post(Origin::Others, self.ledger.take_problems());
            self.first_pass();
        } else {
            let scope = self.merge(letter.services);
            self.news.post(Origin::Others, self.ledger.take_problems());
            self.change(&scope, false);
            self.note_saved();
        }
        letter.changes.finish(self.observed.is_some(), &self.metrics.upstream);
        self.note_synced();
        self.disturbances.note(letter.disturbed);
        if self.holds_any(&letter.unbound) {
            self.disturbances.note([Part::Vips]);
        }
    }

    /// Takes in what the operator has decided since. What it changes of what the kernel holds, the next pass brings in line.
    fn tune(&mut self, tuning: Tuning) {
        let now = Instant::now();
        self.schedulers.set_default(tuning.scheduler);
        self.drains.set_limits(tuning.drain);
        self.patrol = Patrol::new(tuning.check_period, now);
        self.audits.set_pace(tuning.audit, now);
        self.show_interval();
        for sysctl in &tuning.sysctls {
            sysctls::report(sysctl, &sysctl.ensure());
        }
        self.settings.tuning = tuning;
        self.audits.doubt();
        if self.complete {
            self.keep_timeouts(Pass::Start);
        }
    }

    /// Whether any of these addresses is taken to be bound as such: then it was not this process that has unbound it.
    fn holds_any(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let holds = |observed: &State, address| observed.vips.contains_key(&Vip::new(address, Via::Address));
        self.observed.as_ref().is_some_and(|observed| addresses.iter().any(|address| holds(observed, *address)))
    }

    fn merge(&mut self, fragments: Fragments) -> Scope {
        let begun = Instant::now();
        let mut scope = Scope::default();
        for (service, fragment) in fragments {
            self.change_log.name(&service);
            scope.extend(self.ledger.set(&service, fragment));
        }
        self.metrics.count_phase(Phase::Desired, begun.elapsed());
        scope
    }

    /// Brings the keys of `scope` in line, and the packet rules if they changed. Removes nothing outside of it.
    fn change(&mut self, scope: &Scope, rules: bool) {
        if scope.is_empty() && !rules {
            return;
        }
        let begun = Instant::now();
        if !self.prepared {
            self.prepare(begun);
        }
        let Some(observed) = &self.observed else {
            // A failure left it open what the kernel holds; the audit that is due soon takes this change along.
            return;
        };
        let scope = self.widened(scope.clone(), observed);
        let mut desired = self.ledger.desired(&scope);
        let mut held = observed.restricted_to(&scope);
        self.keep_members(&mut desired, &held);
        if rules {
            desired.rules.clone_from(&self.rules);
            held.rules.clone_from(&observed.rules);
        }
        self.schedulers.serve(&mut desired, |scheduler| self.kernel.offers(scheduler));
        let plan = if self.listing {
            // What the kernel holds besides was perhaps told after the last time that it was saved.
            self.planned(&desired, &held, &Ownership::Scope).additions()
        } else {
            self.drains.keep_leaving(&mut desired, &held, &Known { ledger: &self.ledger, ours: None, complete: self.begun }, begun);
            self.planned(&desired, &held, &Ownership::Scope)
        };
        self.apply(&plan, Pass::Change, begun);
        self.share(&desired);
    }

    /// Has what is remembered take no memory of its own for what is as desired.
    fn share(&mut self, desired: &State) {
        if let Some(observed) = &mut self.observed {
            observed.share(desired);
        }
    }

    /// Reads everything, a part after the other. Once the packet rules have been read, for which programs are needed, what was remembered is worth
    /// nothing beside what is read now, and would take as much memory once more. Until then it serves changes.
    fn observe(&mut self) -> Result<State, kernel::Error> {
        let begun = Instant::now();
        let mut observed = State::default();
        let mut read = Ok(());
        for part in Part::ALL {
            read = read.and_then(|()| self.kernel.observe_part(part, &mut observed));
            self.observed.take_if(|_| read.is_ok());
        }
        self.metrics.count_phase(Phase::Observe, begun.elapsed());
        self.unread.take_if(|_| read.is_ok());
        read.map(|()| observed)
    }

    /// The plan from `observed` to `desired`, in this node's order.
    fn planned(&self, desired: &State, observed: &State, ownership: &Ownership<'_>) -> Plan {
        let begun = Instant::now();
        let plan = plan(desired, observed, ownership).in_order(self.order, desired);
        self.metrics.count_phase(Phase::Plan, begun.elapsed());
        plan
    }

    /// The scope, with all members of every set in it that has to grow: a larger set takes the place of the whole.
    fn widened(&self, mut scope: Scope, observed: &State) -> Scope {
        let desired = self.ledger.desired(&Scope { members: scope.members.clone(), ..Scope::default() });
        for (set, wanted) in desired.sets {
            let Some(held) = observed.sets.get(&set) else { continue };
            if wanted.capacity > held.capacity {
                let members = scope.members.entry(set).or_default();
                members.extend(&held.members);
                members.extend(self.ledger.members(set));
            }
        }
        scope
    }

    /// Looks whether some of what must be there is.
    fn look_around(&mut self, now: Instant) {
        self.patrol.put_off(now);
        let Some(observed) = self.observed.as_ref().filter(|_| self.complete) else { return };
        let sample = self.patrol.sample(observed, |key| self.ledger.owner(key).is_some());
        match self.kernel.missing(&sample) {
            Ok(parts) => self.disturbances.note(parts),
            // An audit that cannot read either says so.
            Err(error) => debug!(%error, "cannot look whether everything is there"),
        }
    }

    /// Observes the parts again that others may have changed, and repairs what differs.
    fn repair(&mut self, now: Instant) {
        let parts = self.disturbances.take(now);
        // Where it is not known what the kernel holds, a pass over everything is due anyway.
        let Some(mut observed) = self.observed.take_if(|_| !parts.is_empty()) else { return };
        match parts.iter().try_for_each(|part| self.kernel.observe_part(*part, &mut observed)) {
            Ok(()) => {
                if parts.contains(&Part::Rules) && observed.rules == self.rules {
                    self.disturbances.note_good_rules();
                }
                self.pass_over(Pass::Repair, observed, now);
            }
            Err(error) => {
                self.observed = Some(observed);
                self.audits.doubt();
                self.failed(Pass::Repair, now, &error);
            }
        }
    }

    /// A pass over everything.
    fn pass(&mut self, pass: Pass) {
        let begun = Instant::now();
        match self.observe() {
            Ok(observed) => self.pass_over(pass, observed, begun),
            Err(error) => {
                self.audits.put_off(begun);
                self.failed(pass, begun, &error);
            }
        }
    }

    /// Compares everything with what was `observed`, and brings it in line.
    fn pass_over(&mut self, pass: Pass, observed: State, begun: Instant) {
        if pass != Pass::Repair {
            self.audits.put_off(begun);
            self.audits.trust();
            self.refused.clear();
        }
        self.keep_timeouts(pass);
        let whole = Whole { ledger: &self.ledger, rules: &self.rules, excluded: &self.settings.tuning.excluded };
        let offers = |scheduler| self.kernel.offers(scheduler);
        self.drains.forget_missing(&observed);
        let desired = whole.desired(&observed, &mut self.schedulers, offers, &mut self.drains, pass != Pass::Start, begun);
        let plan = self.planned(&desired, &observed, &whole.ownership());
        self.observed = Some(observed);
        self.share(&desired);
        // What is remembered of the kernel grows by what is done now, into the memory that this takes.
        drop(desired);
        if matches!(pass, Pass::Audit | Pass::Repair) {
            if !plan.is_empty() {
                self.metrics.count_drift(pass);
            }
            for (stage, steps) in plan.stages() {
                let named: Vec<_> = steps.iter().take(NAMED_STEPS).map(ToString::to_string).collect();
                let (steps, named) = (steps.len(), named.join("; "));
                warn!(%stage, steps, "repairing what others changed or the kernel refused before: {named}");
                self.metrics.repairs.with_label_values(&[&stage.to_string()]).inc_by(steps as u64);
            }
        }
        self.apply(&plan, pass, begun);
        self.begun = true;
        if pass == Pass::Start {
            // What went while no agent was running has left flows behind.
            self.stale_flows.extend(self.ledger.keys());
            // Those without connections need not wait for the next count.
            self.drain(pass);
        }
        self.succeed();
    }

    /// Has idle connections kept for as long as is asked for, whoever else has set that meanwhile.
    fn keep_timeouts(&mut self, pass: Pass) {
        match self.kernel.keep_timeouts(self.settings.tuning.timeouts) {
            Ok(None) => {}
            Ok(Some(Timeouts { tcp, tcp_fin, udp })) if pass != Pass::Start => {
                warn!(tcp, tcp_fin, udp, "set the IPVS time-outs again, which another tool has changed");
                self.metrics.repairs.with_label_values(&["time-outs"]).inc();
            }
            Ok(Some(Timeouts { tcp, tcp_fin, udp })) => info!(tcp, tcp_fin, udp, "set the IPVS time-outs, which were others"),
            Err(error) => warn!(%error, "cannot keep the IPVS time-outs; idle connections may be cut early"),
        }
    }

    fn apply(&mut self, plan: &Plan, pass: Pass, begun: Instant) {
        if let Some(observed) = &self.observed {
            let frontends = stale_flows::changed(plan, observed).filter_map(|key| self.ledger.frontend(&key));
            self.stale_flows.extend(frontends);
        }
        let applying = Instant::now();
        let report = self.kernel.apply(plan);
        self.metrics.count_phase(Phase::Kernel, report.in_kernel);
        self.metrics.count_phase(Phase::Encode, applying.elapsed().saturating_sub(report.in_kernel));
        if plan.steps().any(|step| matches!(step, Step::ChangeRules(..))) {
            self.disturbances.note_own_rules(Instant::now());
        }
        self.note(plan, &report);
        let unscheduled = self.unscheduled(&report);
        if report.leaves_state_unknown() {
            self.observed = None;
        } else if let Some(observed) = &mut self.observed {
            report.apply_to(plan, observed);
        }
        // It ends: every scheduler is news once.
        self.change(&unscheduled, false);
        if pass != Pass::Change {
            // What a change ran into may work with the next attempt, which comes soon: only what that confirms is for others to know.
            self.news.post(Origin::Kernel, self.refused.news(|key| self.ledger.owner(key).map(|owner| owner.service)));
        }
        if report.failures.is_empty() {
            if self.refused.is_empty() {
                self.audits.calm_down();
            }
        } else {
            self.audits.hasten(Instant::now());
            self.audits.doubt();
        }
        self.gathering_until = Some(Instant::now() + GATHERING);
        self.metrics.count_pass(pass, begun.elapsed(), report.failures.is_empty());
        self.note_synced();
        if self.complete && self.refused.is_empty() {
            self.metrics.count_complete();
        }
        self.count_objects();
        if plan.is_empty() {
            self.change_log.nothing_done();
            debug!(?pass, elapsed = ?begun.elapsed(), "nothing to do");
        } else {
            // Those of one virtual server come one after the other.
            let mut last = None;
            let keys = plan.steps().filter_map(Step::virtual_server).filter(|key| last.replace(*key) != Some(*key));
            let owners = keys.filter_map(|key| self.ledger.owner(&key).map(|owner| owner.service));
            self.change_log.note(pass, plan, report.undone(), begun.elapsed(), owners, Instant::now());
        }
        if self.complete {
            let outcome = self.outcome();
            self.health.send_modify(|health| {
                health.note(Instant::now(), outcome);
                health.synced_once = true;
            });
        }
    }

    /// The virtual servers that were refused for want of a scheduler that the kernel had been taken to have: another can serve them now.
    fn unscheduled(&mut self, report: &Report) -> Scope {
        let refused = || {
            report.failures.iter().filter_map(|Failure { step, error }| Some((step.virtual_server()?, error.lacking_scheduler()?)))
        };
        let mut news: BTreeSet<_> = refused().map(|(_, scheduler)| scheduler).collect();
        news.retain(|scheduler| self.schedulers.note_lacking(*scheduler));
        let virtual_servers = refused().filter(|(_, scheduler)| news.contains(scheduler)).map(|(key, _)| key).collect();
        Scope { virtual_servers, ..Scope::default() }
    }
}
