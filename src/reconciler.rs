//! The one thread that owns the kernel side: it merges fragments, plans, applies, and remembers what the kernel holds.
//!
//! Netlink is synchronous in the kernel, so this is a plain blocking thread with a mailbox in front. A change costs what it touches:
//! its scope is planned against what is remembered, and nothing is read back. Everything is observed at start, in the periodic audit,
//! and soon after a failure that leaves it open what the kernel did.

mod answers;
pub(crate) mod audits;
#[cfg(test)]
mod faults;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use desired::{Config, Ledger};
use ipnetwork::IpNetwork;
use kernel::sysctl::{self, Outcome, Sysctl};
use kernel::{Failure, Kernel, Leftovers, Mode, Part, Report, Timeouts};
use model::{Family, Rules, Scheduler, Scope, Set, State, Via, Vip};
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
use crate::health::{HEARTBEAT, Health};
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

/// For how long what was observed at the start is good enough for the first pass. Lists take longer only where an API server is in trouble, and
/// then there may have been others at work.
const ADOPTED: Duration = Duration::from_secs(10);

/// For how long after a pass what comes is gathered for the next. A single change finds the reconciler idle and is done at once; of a burst the
/// changes share what each pass costs beside them.
const GATHERING: Duration = Duration::from_millis(2);

/// How many virtual servers are made together where there are none.
const PART: usize = 500;

/// How many steps of a repair are named in the log, of each stage.
const NAMED_STEPS: usize = 3;

/// What shapes the reconciler's work.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) tuning: Tuning,
    /// Whether what kube-proxy in IPVS mode has left is removed when it is not needed any more.
    pub(crate) take_over: bool,
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
    let (health, health_of) = watch::channel(Health::default());
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
        listing: true,
        on_saved: false,
        refused: Refusals::default(),
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
    /// What kube-proxy has left, until it is removed.
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
    /// Whether not everything has been listed: what is desired is what was told first, or saved, and older perhaps than what the kernel holds.
    listing: bool,
    /// Whether what was saved is served meanwhile.
    on_saved: bool,
    /// What the kernel did not take since the last observation.
    refused: Refusals,
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
            self.came_round();
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
            } else if self.complete {
                self.repair(now);
            }
            // Once for all that has been done since the last time: each look at flows costs what there are of them on the node.
            self.forget_stale_flows();
        }
    }

    /// How long there is nothing to do unless a letter comes.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let disturbed = self.disturbances.due().filter(|_| self.complete);
        let due = [Some(self.audits.next()), self.drains.next_check(), self.patrol.next(), disturbed, self.change_log.due()];
        due.into_iter().flatten().map(|due| due.saturating_duration_since(now)).fold(HEARTBEAT, Duration::min)
    }

    /// Leaves a sign of life. Nobody is woken by it.
    fn came_round(&self) {
        self.health.send_if_modified(|health| {
            health.came_round = Some(Instant::now());
            false
        });
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
        self.change(&scope, rules);
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
            self.bring_in();
            self.complete = true;
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

    /// Notes whether the kernel holds what was saved, where that is what is desired. What it holds besides is no difference.
    fn note_saved(&self) {
        if self.on_saved && self.observed.is_some() {
            let outcome = self.refused.first().map_or(Ok(()), Err);
            self.health.send_modify(|health| {
                health.note(Instant::now(), outcome);
                health.saved_once = true;
            });
        }
    }

    /// Takes in Services while others are still listed; the pass over everything serves them with the rest.
    fn take_arriving(&mut self, fragments: Fragments) {
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
            self.drains.keep_leaving(
                &mut desired,
                &held,
                &Known { ledger: &self.ledger, ours: None, complete: self.complete },
                begun,
            );
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

    /// Counts the connections of real servers that are leaving, and removes those that are done.
    fn drain(&mut self, pass: Pass) {
        let begun = Instant::now();
        let Some(observed) = &self.observed else {
            self.drains.check_later(begun);
            return;
        };
        let scope = self.drains.scope(observed);
        let mut counted = BTreeMap::new();
        for key in &scope.virtual_servers {
            match self.kernel.connections(key) {
                Ok(counters) => counted.extend([(*key, counters)]),
                Err(error) => {
                    warn!(%key, %error, "cannot count the connections of real servers that are leaving; trying again");
                    self.drains.check_later(begun);
                }
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
        self.drains.keep_leaving(
            &mut desired,
            &staying,
            &Known { ledger: &self.ledger, ours: None, complete: self.complete },
            begun,
        );
        let plan = self.planned(&desired, &held, &Ownership::Scope);
        if !plan.is_empty() {
            self.apply(&plan, pass, begun);
        }
    }

    /// Observes the kernel for the first time, and takes over what an earlier run has left there.
    fn adopt(&mut self) {
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

    fn observe(&mut self) -> Result<State, kernel::Error> {
        let begun = Instant::now();
        let observed = self.kernel.observe();
        self.metrics.count_phase(Phase::Observe, begun.elapsed());
        observed
    }

    /// The plan from `observed` to `desired`, in this node's order.
    fn planned(&self, desired: &State, observed: &State, ownership: &Ownership<'_>) -> Plan {
        let begun = Instant::now();
        let plan = plan(desired, observed, ownership).in_order(self.order, desired);
        self.metrics.count_phase(Phase::Plan, begun.elapsed());
        plan
    }

    /// Makes the sets and installs the packet rules before there is any virtual server that needs them. Removes nothing.
    fn prepare(&mut self, begun: Instant) {
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

    /// Until everything has been listed, a member that nobody has asked for yet may still be wanted: of a set that grows early it is carried over.
    fn keep_members(&self, desired: &mut State, held: &State) {
        if self.complete {
            return;
        }
        for (set, held) in &held.sets {
            if let Some(desired) = desired.sets.get_mut(set) {
                desired.members.extend(&held.members);
            }
        }
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
            Err(error) => self.failed(Pass::Repair, now, &error),
        }
    }

    /// Makes what is missing as a whole before the pass over everything at the start, a part at a time: what all of it together takes on the way
    /// would stay with the process, as holes between what it keeps.
    fn bring_in(&mut self) {
        let Some(observed) = self.observed.as_ref().filter(|_| self.observed_at.elapsed() < ADOPTED) else { return };
        let missing: Vec<_> = self.ledger.keys().filter(|key| !observed.virtual_servers.contains_key(key)).collect();
        if missing.len() <= PART {
            return;
        }
        // The sets as a whole, so that none of them has to grow, and with them the packet rules.
        let sets = self.settings.config.families.iter().flat_map(|family| Set::of_family(*family));
        let members = sets.map(|set| (set, self.ledger.members(set).collect())).collect();
        self.prepared = true;
        self.add_missing(&Scope { members, ..Scope::default() });
        for part in missing.chunks(PART) {
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
        desired.rules.clone_from(&self.rules);
        held.rules.clone_from(&observed.rules);
        self.schedulers.serve(&mut desired, |scheduler| self.kernel.offers(scheduler));
        let plan = self.planned(&desired, &held, &Ownership::Scope).additions();
        self.apply(&plan, Pass::Start, begun);
        self.share(&desired);
    }

    /// The pass over everything at the start. What was adopted a moment ago has been kept in line with what was done since, and is not read a
    /// second time: on a full kernel that is most of a restart.
    fn first_pass(&mut self) {
        let fresh = self.observed_at.elapsed() < ADOPTED;
        match self.observed.take().filter(|_| fresh) {
            Some(observed) => self.pass_over(Pass::Start, observed, Instant::now()),
            None => self.pass(Pass::Start),
        }
    }

    /// A pass over everything.
    fn pass(&mut self, pass: Pass) {
        let begun = Instant::now();
        // What was remembered is worth nothing beside what is read now, and would take as much memory once more.
        self.observed = None;
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
            let keys = plan.steps().filter_map(Step::virtual_server);
            let owners = keys.filter_map(|key| self.ledger.owner(&key).map(|owner| owner.service));
            self.change_log.note(pass, plan, report.undone(), begun.elapsed(), owners, Instant::now());
        }
        if self.complete {
            let outcome = self.refused.first().map_or(Ok(()), Err);
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

    /// Has the kernel forget the UDP flows that lead to nobody any more.
    fn forget_stale_flows(&mut self) {
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

    /// Remembers and reports what was refused, and forgets what was refused before of what this plan was about.
    fn note(&mut self, plan: &Plan, report: &Report) {
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

    fn failed(&mut self, pass: Pass, begun: Instant, error: &kernel::Error) {
        error!(%error, "cannot observe the kernel's state; what it holds keeps serving");
        self.observed = None;
        self.audits.hasten(Instant::now());
        self.metrics.count_pass(pass, begun.elapsed(), false);
        self.health.send_modify(|health| health.note(Instant::now(), Err(error.to_string())));
    }

    fn count_objects(&self) {
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

    /// Notes that it is known what the kernel holds, after all that has been told was tried.
    fn note_synced(&self) {
        if self.complete && self.observed.is_some() {
            self.metrics.upstream.note_synced();
        }
    }
}
