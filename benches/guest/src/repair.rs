//! What other tools take away, and how soon it is there again. Audits are off: the kernel tells of some of it, and the rest is looked for.

use std::thread;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};

use crate::figures::Goal;
use crate::namespace::run;
use crate::scenarios::{Running, SETTLING};

/// What the kernel tells of is repaired within a second.
const TOLD: Goal = Goal::AtMost(1000.0);
/// What it does not tell of is missed with the next look, a second later at the latest.
const LOOKED_FOR: Goal = Goal::AtMost(2000.0);

/// A damage, in the words of the tool that does it.
const DAMAGES: [(&str, Goal); 8] = [
    ("ip route del local 10.96.0.1 dev kube-ipvs0 table local", TOLD),
    ("ip route flush table local proto 71", TOLD),
    ("ip link del kube-ipvs0", TOLD),
    ("iptables-nft -w -t nat -F", TOLD),
    ("ipvsadm -C", LOOKED_FOR),
    ("ipset flush KUBE-CLUSTER-IP", LOOKED_FOR),
    ("ipset flush KUBE-LOOP-BACK", LOOKED_FOR),
    ("ipset flush", LOOKED_FOR),
];

/// Does one after the other, each to a whole node.
pub(crate) fn measure(running: &mut Running<'_>) -> Result<()> {
    for (damage, goal) in DAMAGES {
        thread::sleep(SETTLING);
        let Running { agent, figures, .. } = &mut *running;
        agent.passes()?;
        let words: Vec<_> = damage.split(' ').collect();
        let (program, arguments) = words.split_first().context("a damage without a tool")?;
        run(program, arguments, None)?;
        let done = SystemTime::now();
        agent.at_least(1)?;
        // What the kernel tells of may be repaired before the tool has ended.
        let repaired = agent.last_success()?.duration_since(done).unwrap_or_default();
        figures.time("repair", damage, repaired, None, goal)?;
        running.ensure_restored().with_context(|| format!("after `{damage}`"))?;
    }
    thread::sleep(SETTLING);
    let Running { agent, .. } = running;
    ensure!(agent.passes()?.iter().all(|pass| pass.steps == 0), "there was more to repair than was damaged");
    Ok(())
}
