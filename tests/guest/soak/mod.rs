//! The soak: a node's life at random, for as long as one likes. Services, endpoints, Nodes and addresses change, others interfere with what is
//! ours in the kernel, agents end and are killed, the API server is away for a while; and all the time clients call and hold connections.
//!
//! After each step the kernel has to come to what a start on an empty node makes of the same objects, calls must have been answered and
//! connections kept, unless somebody else took away what they need, and the agent must not have grown. All that is done follows from a
//! seed; when it is done does not, which is why a failure comes with its seed and the last that was done.

mod busy;
mod cluster;
mod damage;
mod footprint;
mod step;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use testkit::{Random, Result, World};

use cluster::Cluster;
use footprint::Footprint;
use step::Step;

/// By when the kernel has to be as desired after a step. It mostly is within a second or two; whether it ever is, is what this test is about.
const SETTLING: Duration = Duration::from_secs(120);

/// Of so many steps a failure tells what was done.
const TOLD: usize = 12;

/// How many steps the first spell has. See [`is_restless`].
const FIRST_SPELL: u64 = 20;

/// What was done in all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    steps: u64,
    changes: u64,
    damages: u64,
    outages: u64,
    ends: u64,
    kills: u64,
    calls: usize,
    /// Calls that were not answered while something that they need was taken away by others.
    excused: usize,
    longest: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, changes, damages, outages, ends, kills, calls, excused, longest } = self;
        write!(
            out,
            "{steps} steps: {changes} changes, {damages} damages, {outages} outages; agents ended {ends} times and were killed {kills} times; \
             {calls} calls, of which {excused} failed while others had damaged something; settled within {:.1} s",
            longest.as_secs_f32()
        )
    }
}

/// Whether agents may be ended in a step. Spells in which they are take turns with spells in which one and the same has to last, for what
/// it takes to be watched; each pair is twice as long as the one before.
fn is_restless(step: u64) -> bool {
    let mut begin = 0;
    let mut length = FIRST_SPELL;
    while step >= begin + 2 * length {
        begin += 2 * length;
        length *= 2;
    }
    step < begin + length
}

#[expect(clippy::print_stdout, reason = "who waits for it wants to see it go on")]
fn soak(world: &World, random: &mut Random, duration: Duration) -> Result<Tally> {
    let mut cluster = Cluster::new(world)?;
    let mut footprint = Footprint::default();
    let mut tally = Tally::default();
    let mut told = VecDeque::new();
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let step = Step::random(random, is_restless(tally.steps));
        tally.steps += 1;
        let number = tally.steps;
        println!("step {number}, {:.0} s: {step}", begun.elapsed().as_secs_f32());
        told.push_back(format!("step {number}: {step}"));
        if told.len() > TOLD {
            told.pop_front();
        }
        let mut details = Vec::new();
        let taken = step.take(&mut cluster, random, &mut tally, &mut details);
        let ended = taken.and_then(|()| footprint.look(cluster.agent_id())).with_context(|| {
            format!("the last steps:\n{}\nin the last one:\n{}", Vec::from_iter(told.clone()).join("\n"), details.join("\n"))
        })?;
        if let Some(ended) = ended {
            println!("{ended}");
        }
    }
    println!("{footprint}");
    footprint.ensure_judged(duration)?;
    Ok(tally)
}

/// A setting of the run.
fn setting(name: &str) -> Result<Option<u64>> {
    std::env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name} is no number"))).transpose()
}

#[test]
#[ignore = "lasts for as long as one likes: `cargo xtask soak` runs it"]
fn soak_in_guest() {
    World::test(|world| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = setting("SOAK_SEED")?.unwrap_or(now.as_secs());
        let minutes = setting("SOAK_MINUTES")?.unwrap_or(3);
        let tally = soak(world, &mut Random::new(seed), Duration::from_secs(60 * minutes))
            .with_context(|| format!("to do the same again: cargo xtask soak --minutes {minutes} --seed {seed}"))?;
        println!("soak with the seed {seed}, {minutes} minutes: {tally}");
        ensure!(tally.calls > tally.excused, "no call was answered");
        Ok(())
    });
}

#[test]
fn spells_take_turns_and_grow() {
    let changes: Vec<u64> = (1..500).filter(|step| is_restless(*step) != is_restless(step - 1)).collect();
    assert_eq!(changes, [20, 40, 80, 120, 200, 280, 440]);
}
