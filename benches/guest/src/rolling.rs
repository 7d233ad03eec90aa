//! A rolling restart: every pod of a large Service is replaced, a slice at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use apiserver::Resource;
use model::{State, VirtualServerKey};
use plan::Step;

use crate::cluster;
use crate::figures::Goal;
use crate::floor::Floor;
use crate::namespace::Namespace;
use crate::scenarios::{Running, since, steps};

/// Restarts the Service twice: once for the clock, and back under observation.
pub(crate) fn measure(running: &mut Running<'_>) -> Result<()> {
    let Running { double, agent, kernel, cold, .. } = running;
    for slice in cluster::rolling_slices(cluster::Generation::First) {
        double.apply(slice)?;
    }
    double.apply(cluster::rolling_service())?;
    thread::sleep(SETTLING);
    agent.passes()?;
    let before = kernel.observe()?;
    let sets = steps(&before, &State::default()).into_iter().filter(|step| matches!(step, Step::CreateSet { .. }));
    let made: Vec<_> = sets.chain(steps(&before, cold)).collect();
    let key = cluster::rolling_key();
    let all = before.virtual_servers.get(&key).context("the Service is not served")?.real_servers.len();
    ensure!(all == cluster::ROLLING_ENDPOINTS as usize, "the Service has {all} real servers");

    let (mut time, mut waves) = (Duration::ZERO, Vec::new());
    let cpu = agent.cpu()?;
    let mut held = before.clone();
    for wave in 0..cluster::ROLLING_SLICES {
        let begun = double.apply_at_once([cluster::rolling_wave(wave, cluster::Generation::First, cluster::Phase::Both)])?;
        // As many come as go, and each of these is one step.
        agent.at_least(u64::from(cluster::ROLLING_WAVE) * 2)?;
        time += since(begun, agent.last_success()?)?;
        let now = kernel.observe()?;
        waves
            .push(steps(&now, &held).into_iter().filter(|step| !matches!(step, Step::RemoveRealServer { .. })).collect::<Vec<_>>());
        held = now;
        double.apply(cluster::rolling_wave(wave, cluster::Generation::First, cluster::Phase::After))?;
        // Those that go are drained, and removed when that is found out.
        agent.at_least(u64::from(cluster::ROLLING_WAVE))?;
    }
    let cpu = agent.cpu()? - cpu;
    settle(running, &key)?;

    let floor = Namespace::new()?.run(|| {
        let mut floor = Floor::open()?;
        let prepared = floor.prepare(&made)?;
        floor.send(&prepared)?;
        let mut sum = Duration::ZERO;
        for wave in &waves {
            let prepared = floor.prepare(wave)?;
            sum += floor.send(&prepared)?;
        }
        Ok(sum)
    })?;
    running.figures.time("rolling restart", "processor time", cpu, None, Goal::None)?;
    running.figures.time("rolling restart", "waves until in the kernel", time, Some(("floor", floor)), Goal::Times(1.5))?;

    let least = observed(running, &key)?;
    running.figures.number(
        "rolling restart",
        "least live real servers",
        "",
        f64::from(u32::try_from(least)?),
        Goal::AtLeast(1.0),
    )?;
    ensure!(least > 0, "there was a moment without live real servers");

    running.double.delete(Resource::Services, cluster::namespace(), cluster::ROLLING)?;
    for number in 0..cluster::ROLLING_SLICES {
        running.double.delete(Resource::EndpointSlices, cluster::namespace(), &cluster::rolling_slice_name(number))?;
    }
    thread::sleep(SETTLING);
    running.agent.passes().map(drop)
}

/// Until what is left to do is done: drained real servers are looked after once a second.
const SETTLING: Duration = Duration::from_secs(3);

/// Waits until just the replacements are there.
fn settle(running: &mut Running<'_>, key: &VirtualServerKey) -> Result<()> {
    for _ in 0..20 {
        thread::sleep(SETTLING);
        let state = running.kernel.observe()?;
        let servers = state.virtual_servers.get(key).context("the Service is not served any more")?;
        if servers.real_servers.len() == cluster::ROLLING_ENDPOINTS as usize
            && servers.real_servers.values().all(|real| real.weight > 0)
        {
            running.agent.passes()?;
            return Ok(());
        }
    }
    bail!("real servers that have gone stay")
}

/// The way back, with somebody who looks on all the time: the least number of live real servers that was ever seen.
fn observed(running: &mut Running<'_>, key: &VirtualServerKey) -> Result<usize> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| -> Result<usize> {
            let mut floor = Floor::open()?;
            let (mut least, mut looks) = (usize::MAX, 0_usize);
            while !over.load(Ordering::Relaxed) {
                let servers: BTreeMap<_, _> = floor.real_servers(key)?;
                least = least.min(servers.values().filter(|server| server.weight > 0).count());
                looks += 1;
            }
            ensure!(looks > 10, "there were just {looks} looks");
            Ok(least)
        });
        let restart = (0..cluster::ROLLING_SLICES).try_for_each(|wave| {
            for phase in [cluster::Phase::Both, cluster::Phase::After] {
                running.double.apply(cluster::rolling_wave(wave, cluster::Generation::Second, phase))?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let settled = restart.and_then(|()| settle(running, key));
        over.store(true, Ordering::Relaxed);
        let least = looking.join().unwrap_or_else(|_| bail!("who looks on has failed"));
        settled.and(least)
    })
}
