//! What the agent takes: memory and file descriptors, which must not grow with what happens.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::Result;

/// How many looks at a process it takes until it has met most of what comes.
const WARMING_UP: u64 = 12;

/// A run of this length comes to a spell in which one process lasts for longer than that, if the machine is any good.
const LONG: Duration = Duration::from_secs(10 * 60);

/// By how much it may be above its most of that time: a percentage, and kB for what the allocator keeps now and then. An agent takes what its
/// objects take, of which there are about as many all the time: 100,000 changes have left it as large as it was (`benches/README.md`, growth).
const GROWTH_PERCENT: u64 = 5;
const GROWTH_KB: u64 = 1024;

/// Connections of those who read metrics and health at that moment.
const MORE_FILES: usize = 8;

/// What one process took, most of it.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    memory_kb: u64,
    files: usize,
}

impl Taken {
    /// By a process now.
    fn by(process: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).context("the agent is gone")?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let memory_kb = memory.context("no VmRSS")?.parse()?;
        let files = fs::read_dir(format!("/proc/{process}/fd")).context("the agent is gone")?.count();
        Ok(Self { memory_kb, files })
    }

    fn at_most(self, other: Self) -> Self {
        Self { memory_kb: self.memory_kb.max(other.memory_kb), files: self.files.max(other.files) }
    }
}

/// A process over its life.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    process: u32,
    looks: u64,
    /// While it warmed up.
    first: Taken,
    /// Afterwards.
    most: Taken,
    last: Taken,
}

/// The agents that have lasted long enough to be judged, the one that is running, and how many there were that have not.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    judged: Vec<Life>,
    running: Life,
    short: usize,
}

impl Life {
    const fn is_judged(&self) -> bool {
        self.looks > WARMING_UP
    }

    /// Notes what it takes now, and fails when it has grown.
    fn look(&mut self, taken: Taken) -> Result {
        self.last = taken;
        self.looks += 1;
        if !self.is_judged() {
            self.first = self.first.at_most(taken);
            return Ok(());
        }
        self.most = self.most.at_most(taken);
        let most_kb = self.first.memory_kb * (100 + GROWTH_PERCENT) / 100 + GROWTH_KB;
        ensure!(taken.memory_kb <= most_kb, "the agent has grown: {self}");
        ensure!(taken.files <= self.first.files + MORE_FILES, "the agent has more and more files open: {self}");
        Ok(())
    }
}

impl Footprint {
    /// Looks at the running agent, and fails when it has grown. What one took that has ended, and was judged.
    pub(crate) fn look(&mut self, process: u32) -> Result<Option<impl fmt::Display + use<>>> {
        self.note(process, Taken::by(process)?)
    }

    fn note(&mut self, process: u32, taken: Taken) -> Result<Option<Life>> {
        let mut ended = None;
        if process != self.running.process {
            let before = std::mem::replace(&mut self.running, Life { process, ..Life::default() });
            if before.is_judged() {
                self.judged.push(before);
                ended = Some(before);
            } else {
                self.short += usize::from(before.looks > 0);
            }
        }
        self.running.look(taken)?;
        Ok(ended)
    }

    /// Fails where nothing was judged in a run that was long enough for it.
    pub(crate) fn ensure_judged(&self, duration: Duration) -> Result {
        let judged = !self.judged.is_empty() || self.running.is_judged();
        ensure!(
            judged || duration < LONG,
            "no agent has lasted for more than {WARMING_UP} steps, so nobody knows whether it grows"
        );
        Ok(())
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = Some(&self.running).filter(|life| life.is_judged());
        let judged: Vec<_> = self.judged.iter().chain(running).collect();
        let short = self.short + usize::from(running.is_none());
        write!(
            out,
            "{} agents were judged by what they take, and {short} did not last for more than {WARMING_UP} steps",
            judged.len()
        )?;
        judged.into_iter().try_for_each(|life| write!(out, "\n{life}"))
    }
}

impl fmt::Display for Life {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, looks, first, most, last } = self;
        write!(
            out,
            "process {process}, {looks} steps: at first up to {} kB and {} files, later up to {} kB and {}, at last {} kB and {}",
            first.memory_kb, first.files, most.memory_kb, most.files, last.memory_kb, last.files
        )
    }
}

#[test]
fn agents_that_grow_are_found_and_a_long_run_without_a_judgement_fails() {
    let taken = |memory_kb, files| Taken { memory_kb, files };
    let mut footprint = Footprint::default();
    for process in 1..4 {
        for _ in 0..WARMING_UP {
            assert!(footprint.note(process, taken(18_000, 25)).unwrap().is_none());
        }
    }
    assert!(footprint.ensure_judged(LONG / 2).is_ok() && footprint.ensure_judged(LONG).is_err());
    assert!(footprint.to_string().starts_with("0 agents were judged by what they take, and 3 "), "{footprint}");
    assert!(footprint.note(3, taken(18_500, 27)).unwrap().is_none());
    assert!(footprint.ensure_judged(LONG).is_ok(), "the one that is running counts");
    let ended = footprint.note(4, taken(30_000, 60)).unwrap().unwrap();
    assert_eq!(
        ended.to_string(),
        "process 3, 13 steps: at first up to 18000 kB and 25 files, later up to 18500 kB and 27, at last 18500 kB and 27"
    );
    assert!(footprint.ensure_judged(LONG).is_ok());
    for more in [taken(18_000 * 21 / 20 + 1025, 25), taken(18_000, 34)] {
        let mut life = Life::default();
        (0..WARMING_UP).for_each(|_| life.look(taken(18_000, 25)).unwrap());
        assert!(life.look(more).is_err(), "{more:?}");
        assert!(life.look(taken(18_000 * 21 / 20 + 1024, 33)).is_ok());
    }
}
