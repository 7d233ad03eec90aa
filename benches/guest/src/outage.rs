//! An API server that is away for long: the kernel goes on as it is, few requests are made, and what has changed meanwhile is taken in soon.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};

use crate::figures::Goal;
use crate::scenarios::{Running, gone, since};

/// The longest wait between two attempts, and a second for what follows from the one that succeeds.
const RECOVERY_MS: f64 = 31_000.0;
/// What one attempt every 15 s makes in an hour, for each of the three kinds that are watched: waits are between half of 30 s and all of it.
const REQUESTS_AN_HOUR: f64 = 3.0 * 240.0;

/// Takes the API server away for some time, in which a Service gains an endpoint and the history of that is forgotten.
pub(crate) fn measure(running: &mut Running<'_>, time: Duration) -> Result<()> {
    if time.is_zero() {
        return Ok(());
    }
    let Running { cluster, double, agent, kernel, cold, figures } = running;
    let cluster = *cluster;
    agent.passes()?;
    double.go_away();
    let (requests, cpu) = (double.requests(), agent.cpu()?);
    thread::sleep(time);
    let (requests, cpu) = (double.requests() - requests, agent.cpu()? - cpu);
    ensure!(agent.passes()?.iter().all(|pass| pass.steps == 0), "an absent API server has led to changes");
    ensure!(kernel.observe()? == *cold, "an absent API server has changed the kernel's state");
    let staleness = agent.metric("kube_ipvs_source_staleness_seconds{kind=\"endpointslices\"}")?;
    // Asked at the end, after the hour that it has not been heard of.
    ensure!(staleness >= time.as_secs_f64(), "what is {} s old counts as {staleness} s old", time.as_secs());

    double.apply(cluster.slice(0, cluster.endpoints + 1))?;
    double.compact();
    double.come_back();
    let back = SystemTime::now();
    agent.steps(1)?;
    let recovery = since(back, agent.last_success()?)?;
    let hours = time.as_secs_f64() / 3600.0;
    figures.number(
        "outage",
        "requests an hour",
        "",
        f64::from(u32::try_from(requests)?) / hours,
        Goal::AtMost(REQUESTS_AN_HOUR),
    )?;
    figures.number("outage", "share of a core", "%", cpu.as_secs_f64() / time.as_secs_f64() * 100.0, Goal::None)?;
    figures.number("outage", "until it is made good", "ms", recovery.as_secs_f64() * 1000.0, Goal::AtMost(RECOVERY_MS))?;
    gone(cluster, double, agent, 0..1)
}
