//! What is measured, in the order in which it is.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use apiserver::Resource;
use kernel::Kernel;
use model::{Family, State};
use plan::{Ownership, Step, plan};

use crate::Arguments;
use crate::agent::Agent;
use crate::cluster::{self, Cluster};
use crate::double::Double;
use crate::figures::{Figures, Goal, median};
use crate::floor::{self, Floor, ensure_equal};
use crate::namespace::{self, Namespace};
use crate::tools::Saved;
use crate::{growth, manifests, outage, repair, rolling};

/// No audit comes while other things are measured.
pub(crate) const NO_AUDIT: &[&str] = &["--audit-period", "1h"];
/// How many single changes are measured; of their times the middle one counts.
const SAMPLES: u32 = 31;
/// How many changes come at once in a burst, where there are as many Services.
const BURST: u32 = 1000;
/// How many steps a burst about one object may take, of which the last alone is wanted: a few in each of some passes.
const BURST_STEPS: f64 = 200.0;
/// How many audits are measured.
const AUDITS: u32 = 3;
/// How often threads may wake up in a minute while nothing happens: for the look each second, each heartbeat of 10 s, and what keeps
/// connections alive.
const WAKEUPS: f64 = 120.0;
/// Until what the agent has to do after its first synchronisation is done.
pub(crate) const SETTLING: Duration = Duration::from_secs(3);
/// Between two single changes: each finds the agent at rest.
const QUIET: Duration = Duration::from_millis(20);

/// What the agent did, for the floor and the tools to do as well.
struct Deeds {
    /// The kernel's state after the first synchronisation.
    cold: State,
    saved: Saved,
    /// The steps of a burst, one an endpoint.
    burst: Vec<Step>,
    created: Vec<Step>,
    deleted: Deletion,
}

/// How a Service goes.
struct Deletion {
    /// Its real servers take no new connection any more.
    refused: Vec<Step>,
    /// When they have no connections left, all of it goes.
    removed: Vec<Step>,
}

/// What the agent took.
#[derive(Default)]
struct Times {
    cold: Duration,
    cold_from_start: Duration,
    change: Duration,
    created: Duration,
    deleted: Duration,
    burst: Duration,
    adoption: Duration,
    adoption_from_start: Duration,
    audit: Duration,
    /// Of one core's time, while nothing else happens.
    audit_share: f64,
}

/// A running agent, with what it is fed from and where it works.
pub(crate) struct Running<'a> {
    pub(crate) cluster: Cluster,
    pub(crate) double: &'a Double,
    pub(crate) agent: Agent,
    pub(crate) kernel: Kernel,
    /// The kernel's state after the first synchronisation.
    pub(crate) cold: State,
    pub(crate) figures: &'a Figures,
}

/// Measures everything at one size.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cluster = Cluster { services: arguments.services, endpoints: arguments.endpoints };
    ensure!(cluster.services >= SAMPLES && cluster.endpoints > 0, "at least {SAMPLES} Services with an endpoint are needed");
    let figures = Figures::new(cluster.services);
    namespace::prepare()?;
    let double = Double::start(cluster.objects()).context("the cluster")?;

    let mut times = Times::default();
    let deeds = live(arguments, cluster, &double, &figures, &mut times)?;
    adopt(arguments, &double, &deeds.cold, &figures, &mut times).context("adoption")?;
    compare(&deeds, &figures, &times)?;
    manifests::measure(cluster, &deeds.cold, &figures).context("manifests")
}

/// The life of one agent, from an empty kernel on.
fn live(arguments: &Arguments, cluster: Cluster, double: &Double, figures: &Figures, times: &mut Times) -> Result<Deeds> {
    let mut agent = Agent::start(&double.kubeconfig(), NO_AUDIT)?;
    agent.ready().context("cold sync")?;
    let done = agent.last_success()?;
    times.cold = since(double.last_sent()?, done)?;
    times.cold_from_start = since(agent.started, done)?;
    figures.time("cold sync", "processor time", agent.cpu()?, None, Goal::None)?;
    for phase in ["decode", "desired", "plan", "encode", "kernel", "observe"] {
        let seconds = agent.metric(&format!("kube_ipvs_phase_seconds_total{{phase=\"{phase}\"}}"))?;
        figures.time("cold sync", &format!("phase: {phase}"), Duration::from_secs_f64(seconds), None, Goal::None)?;
    }
    thread::sleep(SETTLING);
    let peak = agent.memory("VmHWM")?;
    agent.passes()?;

    let mut kernel = Kernel::open(&kernel::supported_families())?;
    let cold = kernel.observe()?;
    ensure_complete(cluster, &cold)?;
    let saved = Saved::take()?;
    idle(arguments, &agent, figures).context("idle")?;
    memory(&agent, peak, cluster, figures)?;

    let mut running = Running { cluster, double, agent, kernel, cold, figures };
    times.change = changes(&mut running).context("one endpoint change")?;
    running.ensure_restored()?;
    let (created, deleted) = services(&mut running, times).context("one Service")?;
    let burst = burst(&mut running, times).context("burst")?;
    running.ensure_restored()?;
    burst_of_one(&mut running).context("burst of one object")?;
    running.ensure_restored()?;
    rolling::measure(&mut running).context("rolling restart")?;
    running.ensure_restored()?;
    repair::measure(&mut running).context("repair")?;
    outage::measure(&mut running, Duration::from_secs(arguments.outage.into())).context("outage")?;
    growth::measure(&mut running, arguments.growth).context("growth")?;
    let Running { agent, cold, .. } = running;
    agent.terminate()?;
    Ok(Deeds { cold, saved, burst, created, deleted })
}

fn idle(arguments: &Arguments, agent: &Agent, figures: &Figures) -> Result<()> {
    let time = Duration::from_secs(u64::from(arguments.idle));
    let (cpu, wakeups) = (agent.cpu()?, agent.wakeups()?);
    thread::sleep(time);
    let (cpu, wakeups) = (agent.cpu()? - cpu, agent.wakeups()? - wakeups);
    let share = cpu.as_secs_f64() / time.as_secs_f64() * 100.0;
    figures.number("idle", "share of a core", "%", share, Goal::AtMost(0.01))?;
    let per_minute = f64::from(u32::try_from(wakeups)?) * 60.0 / time.as_secs_f64();
    figures.number("idle", "wakeups a minute", "", per_minute, Goal::AtMost(WAKEUPS))
}

fn memory(agent: &Agent, peak: u64, cluster: Cluster, figures: &Figures) -> Result<()> {
    let settled = megabytes(agent.memory("VmRSS")?);
    let goal = match cluster.services {
        10_000 => Goal::AtMost(40.0),
        50_000 => Goal::AtMost(150.0),
        _ => Goal::None,
    };
    figures.number("memory", "settled", "MB", settled, goal)?;
    figures.number("memory", "peak", "MB", megabytes(peak), Goal::AtMost(settled * 1.5))
}

/// Single endpoints that come; how long each took, and what it cost.
fn changes(running: &mut Running<'_>) -> Result<Duration> {
    let Running { cluster, double, agent, figures, .. } = running;
    let cluster = *cluster;
    let more = cluster.endpoints + 1;
    let mut times = Vec::new();
    for number in sampled(cluster) {
        thread::sleep(QUIET);
        double.apply(cluster.slice(number, more))?;
        agent.steps(1)?;
        times.push(since(double.last_sent()?, agent.last_success()?)?);
    }
    gone(cluster, double, agent, sampled(cluster))?;

    // Once more, without a question in between, which would cost the agent something.
    let mut costs = Vec::new();
    for number in sampled(cluster) {
        let cpu = agent.cpu()?;
        double.apply(cluster.slice(number, more))?;
        agent.steps(1)?;
        costs.push(agent.cpu()? - cpu);
    }
    figures.time("one endpoint change", "processor time", median(&mut costs)?, None, Goal::None)?;
    gone(cluster, double, agent, sampled(cluster))?;
    median(&mut times)
}

/// Takes the additional endpoints of some Services away. They are drained first, and gone a second later.
pub(crate) fn gone(cluster: Cluster, double: &Double, agent: &mut Agent, services: impl Iterator<Item = u32>) -> Result<()> {
    let mut count = 0;
    for number in services {
        double.apply(cluster.slice(number, cluster.endpoints))?;
        count += 1;
    }
    agent.steps(2 * count).map(drop)
}

/// The Services that single changes are about: all over the cluster.
fn sampled(cluster: Cluster) -> impl Iterator<Item = u32> {
    (0..SAMPLES).map(move |sample| sample * (cluster.services / SAMPLES))
}

/// Services that come and go again.
fn services(running: &mut Running<'_>, times: &mut Times) -> Result<(Vec<Step>, Deletion)> {
    let Running { cluster, double, agent, kernel, cold, figures } = running;
    let cluster = *cluster;
    // Alike in which of their endpoints are on the agent's node.
    let first = cluster.services.next_multiple_of(10) + 10;
    let numbers = || (0..SAMPLES).map(|sample| first + sample * 10);
    let remove = |number: u32| double.delete(Resource::Services, cluster::namespace(), &cluster::name(number));

    // The first tells what is to be done for one.
    double.apply(cluster.slice(first, cluster.endpoints))?;
    double.apply(cluster.service(first))?;
    thread::sleep(SETTLING);
    let held = kernel.observe()?;
    let created = steps(&held, cold);
    agent.passes()?;
    remove(first)?;
    thread::sleep(SETTLING);
    let taken: Vec<_> = agent.passes()?.iter().map(|pass| pass.steps).filter(|steps| *steps > 0).collect();
    let [refusing, removing] = taken[..] else { bail!("a Service went in {} passes and not in two: {taken:?}", taken.len()) };
    let mut refused = held.clone();
    for (_, server) in refused.virtual_servers.iter_mut().filter(|(key, _)| !cold.virtual_servers.contains_key(*key)) {
        server.real_servers.values_mut().for_each(|real| real.weight = 0);
    }
    let deletion = Deletion { refused: steps(&refused, &held), removed: steps(&kernel.observe()?, &held) };
    ensure!(!created.is_empty() && !deletion.removed.is_empty(), "a Service that came and went changed nothing");

    for number in numbers() {
        // Nobody asks for these endpoints yet.
        double.apply(cluster.slice(number, cluster.endpoints))?;
    }
    thread::sleep(SETTLING);
    let (mut coming, mut going) = (Vec::new(), Vec::new());
    for number in numbers() {
        thread::sleep(QUIET);
        double.apply(cluster.service(number))?;
        agent.steps(u64::try_from(created.len())?)?;
        coming.push(since(double.last_sent()?, agent.last_success()?)?);
        thread::sleep(QUIET);
        remove(number)?;
        agent.steps(refusing)?;
        going.push(since(double.last_sent()?, agent.last_success()?)?);
        agent.steps(removing)?;
    }
    // Once more, without a question in between, which would cost the agent something.
    let mut costs = Vec::new();
    for number in numbers() {
        let cpu = agent.cpu()?;
        double.apply(cluster.service(number))?;
        agent.steps(u64::try_from(created.len())?)?;
        remove(number)?;
        agent.steps(refusing + removing)?;
        costs.push(agent.cpu()? - cpu);
    }
    for number in numbers() {
        double.delete(Resource::EndpointSlices, cluster::namespace(), &cluster::slice_name(number))?;
    }
    figures.time("one Service created and deleted", "processor time", median(&mut costs)?, None, Goal::None)?;
    (times.created, times.deleted) = (median(&mut coming)?, median(&mut going)?);
    ensure_equal(cold, &kernel.observe()?)?;
    figures.number("one Service created", "steps", "", f64::from(u32::try_from(created.len())?), Goal::None)?;
    Ok((created, deletion))
}

/// Many endpoints that come at once.
fn burst(running: &mut Running<'_>, times: &mut Times) -> Result<Vec<Step>> {
    let Running { cluster, double, agent, kernel, cold, figures } = running;
    let cluster = *cluster;
    let size = BURST.min(cluster.services);
    let cpu = agent.cpu()?;
    let begun = double.apply_at_once((0..size).map(|number| cluster.slice(number, cluster.endpoints + 1)))?;
    let passes = agent.steps(u64::from(size))?;
    let cpu = agent.cpu()? - cpu;
    let done = agent.last_success()?;
    times.burst = since(begun, done)?;
    figures.time("burst", "processor time", cpu, None, Goal::None)?;
    figures.time("burst", "after the last line was sent", since(double.last_sent()?, done)?, None, Goal::None)?;
    figures.number("burst", "passes", "", f64::from(u32::try_from(passes)?), Goal::None)?;
    let burst = steps(&kernel.observe()?, cold);
    ensure!(burst.len() == size as usize, "{} of {size} changes of the burst are in the kernel", burst.len());
    gone(cluster, double, agent, 0..size)?;
    Ok(burst)
}

/// As many changes of one object, of which only the last is wanted.
fn burst_of_one(running: &mut Running<'_>) -> Result<()> {
    let Running { cluster, double, agent, figures, .. } = running;
    let cluster = *cluster;
    agent.passes()?;
    let cpu = agent.cpu()?;
    double.apply_at_once((1..=BURST).map(|time| cluster.slice(0, cluster.endpoints + time % 2)))?;
    thread::sleep(SETTLING);
    let cpu = agent.cpu()? - cpu;
    let steps: u64 = agent.passes()?.iter().map(|pass| pass.steps).sum();
    figures.time("burst of one object", "processor time", cpu, None, Goal::None)?;
    figures.number("burst of one object", "steps", "", f64::from(u32::try_from(steps)?), Goal::AtMost(BURST_STEPS))
}

/// Another agent on the kernel that the first has left.
fn adopt(arguments: &Arguments, double: &Double, held: &State, figures: &Figures, times: &mut Times) -> Result<()> {
    let period = format!("{}s", arguments.audit_period);
    let mut kernel = Kernel::open(&kernel::supported_families())?;
    ensure!(kernel.observe()? == *held, "the kernel does not hold what the first agent left");
    let mut agent = Agent::start(&double.kubeconfig(), &["--audit-period", &period, "--max-audit-cpu", "0"])?;
    agent.ready()?;
    let done = agent.last_success()?;
    times.adoption = since(double.last_sent()?, done)?;
    times.adoption_from_start = since(agent.started, done)?;
    figures.time("adoption", "processor time", agent.cpu()?, None, Goal::None)?;
    let steps: u64 = agent.passes()?.iter().map(|pass| pass.steps).sum();
    figures.number("adoption", "steps taken", "", f64::from(u32::try_from(steps)?), Goal::AtMost(0.0))?;
    ensure!(steps == 0, "an agent that adopted what it would have made took {steps} steps");

    agent.further("Audit", 1)?;
    let cpu = agent.cpu()?;
    agent.further("Audit", AUDITS as usize)?;
    times.audit = (agent.cpu()? - cpu) / AUDITS;
    ensure!(kernel.observe()? == *held, "audits have changed the kernel's state");
    agent.terminate()?;

    let mut agent = Agent::start(&double.kubeconfig(), &[])?;
    agent.ready()?;
    // The first tells how far apart they are to be, and the second is the first that is.
    let further = |agent: &mut Agent| (0..2).try_for_each(|_| agent.further("Audit", 1));
    further(&mut agent)?;
    let (begun, cpu) = (Instant::now(), agent.cpu()?);
    further(&mut agent)?;
    times.audit_share = (agent.cpu()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let interval = Duration::from_secs_f64(agent.metric("kube_ipvs_audit_interval_seconds")?);
    figures.time("audit", "from one to the next", interval, None, Goal::None)?;
    agent.terminate()
}

/// What the same takes without the agent, and how the two compare.
fn compare(deeds: &Deeds, figures: &Figures, times: &Times) -> Result<()> {
    let families = supported();
    let flavour = Kernel::open(&kernel::supported_families())?.flavour();
    let (saving, rules) = floor::save_rules(flavour, &families)?;
    let everything = steps(&deeds.cold, &State::default());

    let node = Namespace::new()?;
    let (cold, dump) = node.run(|| {
        let mut floor = Floor::open()?;
        // Packet rules refer to sets.
        let is_set = |step: &&Step| matches!(step, Step::CreateSet { .. });
        let sets = floor.prepare(everything.iter().filter(is_set))?;
        let rest = floor.prepare(everything.iter().filter(|step| !is_set(step)))?;
        let sets_made = floor.send(&sets)?;
        let restoring = floor::restore_rules(flavour, &rules)?;
        let cold = sets_made + floor.send(&rest)?;
        let (dump, messages) = floor.dump(&deeds.cold, &families)?;
        figures.number("cold sync", "messages", "", f64::from(u32::try_from(sets.messages() + rest.messages())?), Goal::None)?;
        figures.time("cold sync", "floor: packet rules", restoring, None, Goal::None)?;
        figures.time("cold sync", "floor: netlink", cold, None, Goal::None)?;
        figures.number("adoption", "messages of the dump", "", f64::from(u32::try_from(messages)?), Goal::None)?;
        figures.time("adoption", "floor: packet rules", saving, None, Goal::None)?;
        figures.time("adoption", "floor: netlink", dump, None, Goal::None)?;
        let observed = Kernel::open(&kernel::supported_families())?.observe()?;
        ensure_equal(&deeds.cold, &observed).context("the floor")?;
        Ok((cold + restoring, dump + saving))
    })?;
    let (change, created, deleted) = node.run(|| {
        let mut floor = Floor::open()?;
        let singly = deeds.burst.iter().take(SAMPLES as usize);
        let mut change = singly.map(|step| floor.prepare([step]).and_then(|one| floor.send(&one))).collect::<Result<Vec<_>>>()?;
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let (create, refuse) = (floor.prepare(&deeds.created)?, floor.prepare(&deeds.deleted.refused)?);
            let remove = floor.prepare(&deeds.deleted.removed)?;
            created.push(floor.send(&create)?);
            deleted.push(floor.send(&refuse)?);
            floor.send(&remove)?;
        }
        Ok((median(&mut change)?, median(&mut created)?, median(&mut deleted)?))
    })?;
    let burst = Namespace::new()?.run(|| {
        let mut floor = Floor::open()?;
        let prepared = floor.prepare(&everything)?;
        floor.send(&prepared)?;
        let prepared = floor.prepare(&deeds.burst)?;
        floor.send(&prepared)
    })?;
    let tools = Namespace::new()?.run(|| deeds.saved.restore(&deeds.cold)).context("the tools")?;
    for (name, time) in tools {
        figures.time("cold sync", name, time, None, Goal::None)?;
    }
    let tools = tools.iter().map(|(_, time)| *time).sum();

    figures.time("cold sync", "from the last line", times.cold, Some(("floor", cold)), Goal::Times(1.5))?;
    figures.time("cold sync", "from the last line, beside tools", times.cold, Some(("tools", tools)), Goal::Faster(5.0))?;
    figures.time("cold sync", "from the start", times.cold_from_start, Some(("floor", cold)), Goal::None)?;
    figures.time("one endpoint change", "latency", times.change, Some(("floor", change)), Goal::TimesAndLatency(3.0))?;
    figures.time("one Service created", "latency", times.created, Some(("floor", created)), Goal::TimesAndLatency(3.0))?;
    figures.time("one Service deleted", "latency", times.deleted, Some(("floor", deleted)), Goal::TimesAndLatency(3.0))?;
    figures.time("burst", "from the first write", times.burst, Some(("floor", burst)), Goal::Times(1.5))?;
    figures.time("adoption", "from the last line", times.adoption, Some(("dump's floor", dump)), Goal::Times(1.2))?;
    figures.time("adoption", "from the start", times.adoption_from_start, Some(("dump's floor", dump)), Goal::None)?;
    figures.time("audit", "processor time", times.audit, Some(("dump's floor", dump)), Goal::Times(1.3))?;
    figures.number("audit", "share of a core", "%", times.audit_share * 100.0, Goal::AtMost(0.5))
}

/// The steps from one state to another.
pub(crate) fn steps(desired: &State, held: &State) -> Vec<Step> {
    plan(desired, held, &Ownership::Node { excluded: &[] }).steps().cloned().collect()
}

fn supported() -> Vec<Family> {
    let families: BTreeSet<_> = kernel::supported_families();
    families.into_iter().collect()
}

impl Running<'_> {
    /// What came has to have gone again.
    pub(crate) fn ensure_restored(&mut self) -> Result<()> {
        ensure!(self.kernel.observe()? == self.cold, "the kernel does not hold what it held before");
        Ok(())
    }
}

fn ensure_complete(cluster: Cluster, state: &State) -> Result<()> {
    let services = cluster.services as usize;
    let servers: usize = state.virtual_servers.values().map(|server| server.real_servers.len()).sum();
    ensure!(
        (state.virtual_servers.len(), servers, state.vips.len()) == (services, services * cluster.endpoints as usize, services),
        "the kernel holds {} virtual servers, {servers} real servers and {} VIPs for {services} Services",
        state.virtual_servers.len(),
        state.vips.len()
    );
    Ok(())
}

pub(crate) fn since(begin: SystemTime, end: SystemTime) -> Result<Duration> {
    end.duration_since(begin).context("the agent was done before it could begin")
}

pub(crate) fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1000).unwrap_or(u32::MAX)) / 1000.0
}
