//! Whether the agent grows: many random changes that return to the start, and what it takes before and after.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use testkit::Random;

use crate::figures::Goal;
use crate::scenarios::{Running, megabytes};

/// So many come and go first, so that memory for what changes bring for a while is there already.
const WARMING_UP: u32 = 1000;
/// So many changes are written before the agent gets a rest: the double keeps the history until it is compacted.
const ROUND: u32 = 1000;
const SETTLING: Duration = Duration::from_secs(3);
/// How often the kernel is looked at until it holds what it did before.
const LOOKS: u32 = 100;

/// Makes `changes` changes, at least.
pub(crate) fn measure(running: &mut Running<'_>, changes: u32) -> Result<()> {
    if changes == 0 {
        return Ok(());
    }
    // The same changes in every run.
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    shake(running, &mut random, WARMING_UP)?;
    let before = running.agent.memory("VmRSS")?;
    shake(running, &mut random, changes)?;
    let after = running.agent.memory("VmRSS")?;
    let growth = (megabytes(after) / megabytes(before) - 1.0) * 100.0;
    running.figures.number("growth", "changes", "", f64::from(changes), Goal::None)?;
    running.figures.number("growth", "resident memory after", "MB", megabytes(after), Goal::None)?;
    running.figures.number("growth", "more than before", "%", growth, Goal::AtMost(5.0))
}

/// Gives random slices one endpoint more or less, and all of them their own number in the end.
fn shake(running: &mut Running<'_>, random: &mut Random, changes: u32) -> Result<()> {
    let cluster = running.cluster;
    let mut written = 0;
    while written < changes {
        let mut touched = BTreeSet::new();
        while touched.len() < (ROUND / 2).min(cluster.services) as usize {
            let number = u32::try_from(random.below(cluster.services.into()))?;
            let endpoints = if random.below(2) == 0 { cluster.endpoints + 1 } else { cluster.endpoints - 1 };
            running.double.apply(cluster.slice(number, endpoints))?;
            touched.insert(number);
            written += 1;
        }
        for number in touched {
            running.double.apply(cluster.slice(number, cluster.endpoints))?;
            written += 1;
        }
        running.double.compact();
    }
    for _ in 0..LOOKS {
        thread::sleep(SETTLING);
        if running.kernel.observe()? == running.cold {
            running.agent.passes()?;
            return Ok(());
        }
    }
    bail!("after {written} changes that return to the start the kernel does not hold what it held there")
}
