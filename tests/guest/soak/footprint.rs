//! What the agent takes: memory and file descriptors, which must not grow with what happens.

use std::fmt;
use std::fs;

use anyhow::{Context as _, ensure};
use testkit::Result;

/// How many looks at a process it takes until it has met most of what comes.
const WARMING_UP: u64 = 12;

/// By how much it may be above its most of that time: a percentage, and kB for what the allocator keeps now and then.
const GROWTH_PERCENT: u64 = 20;
const GROWTH_KB: u64 = 4096;

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
#[derive(Debug, Default)]
struct Life {
    process: u32,
    looks: u64,
    /// While it warmed up.
    first: Taken,
    /// Afterwards.
    most: Taken,
    last: Taken,
}

/// The agents that have lasted, and the one that is running.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    lasted: Vec<Life>,
    running: Life,
}

impl Footprint {
    /// Looks at the running agent, and fails when it has grown.
    pub(crate) fn look(&mut self, process: u32) -> Result {
        if process != self.running.process {
            let ended = std::mem::replace(&mut self.running, Life { process, ..Life::default() });
            if ended.looks > WARMING_UP {
                self.lasted.push(ended);
            }
        }
        let life = &mut self.running;
        life.last = Taken::by(process)?;
        life.looks += 1;
        if life.looks <= WARMING_UP {
            life.first = life.first.at_most(life.last);
            return Ok(());
        }
        life.most = life.most.at_most(life.last);
        let most_kb = life.first.memory_kb * (100 + GROWTH_PERCENT) / 100 + GROWTH_KB;
        ensure!(life.last.memory_kb <= most_kb, "the agent has grown: {life}");
        ensure!(life.last.files <= life.first.files + MORE_FILES, "the agent has more and more files open: {life}");
        Ok(())
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lives = self.lasted.iter().chain(Some(&self.running).filter(|life| life.looks > WARMING_UP));
        lives.into_iter().try_for_each(|life| writeln!(out, "{life}"))
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
