//! Connections that are held, over which lines go back and forth, while something happens.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::{Netns, On, Pod, Process, Protocol, Result, World, eventually, source_ports};

use crate::support::{PATIENCE, POD_PORT};

/// Connections to a server that echoes, each with a line on its way or soon.
pub(crate) struct Held {
    process: Process,
    /// How many were meant to be reset, and are.
    reset: usize,
}

impl Held {
    /// Opens connections; each sends its next line `interval` after the last has come back.
    pub(crate) fn open(caller: &Netns, protocol: Protocol, target: &str, connections: u32, interval: Duration) -> Result<Self> {
        Self::open_with(caller, protocol, target, connections, &["--interval-ms", &interval.as_millis().to_string()])
    }

    /// The same with options of `probe hold`.
    pub(crate) fn open_with(caller: &Netns, protocol: Protocol, target: &str, connections: u32, options: &[&str]) -> Result<Self> {
        let first_port = source_ports(connections.try_into()?).to_string();
        let (protocol, connections) = (protocol.to_string(), connections.to_string());
        let command = ["probe", "hold", &protocol, target, "--connections", &connections, "--first-port", &first_port];
        let mut process = caller.start(&[&command, options].concat())?;
        process.wait_for("connected", PATIENCE)?;
        Ok(Self { process, reset: 0 })
    }

    /// How many lines have come back over each connection at the least, none being lost but for those that were meant to be reset.
    pub(crate) fn lines(&self) -> Result<u64> {
        let lost = self.lost()?;
        ensure!(lost.len() == self.reset, "{} connections are lost: {:?}", lost.len(), shares(&lost));
        let output = self.printed()?;
        let count = output.lines().rev().find_map(|line| line.strip_prefix("held: "));
        count.map_or(Ok(0), str::parse).context("no count of lines")
    }

    /// Waits until some more lines have come back over each connection, none being lost.
    pub(crate) fn go_on(&self, lines: u64) -> Result {
        self.reach(self.lines()? + lines)
    }

    /// Waits until so many lines have come back over each connection, none being lost.
    pub(crate) fn reach(&self, lines: u64) -> Result {
        eventually(PATIENCE, || {
            // An error here would be taken for one that may pass.
            let now = match self.lines() {
                Ok(now) => now,
                Err(error) => return Ok(Err(error)),
            };
            ensure!(now >= lines, "{now} of {lines} lines have come back over the slowest connection");
            Ok(Ok(()))
        })?
    }

    /// Waits until so many more are lost, each of them by a reset. The longest that one was without an answer before.
    pub(crate) fn are_reset(&mut self, count: usize) -> Result<Duration> {
        self.reset += count;
        let lost = eventually(PATIENCE, || {
            let lost = self.lost()?;
            ensure!(lost.len() >= self.reset, "{} instead of {} are lost", lost.len(), self.reset);
            Ok(lost)
        })?;
        let shares = shares(&lost);
        ensure!(shares == BTreeMap::from([("reset", self.reset)]), "{shares:?} instead of {} resets", self.reset);
        Ok(lost.into_iter().map(|(_, after)| after).max().unwrap_or_default())
    }

    /// How connections were lost, and how long after their last line.
    fn lost(&self) -> Result<Vec<(String, Duration)>> {
        let output = self.printed()?;
        let lost = output.lines().filter_map(|line| line.strip_prefix("lost: "));
        lost.map(|line| {
            let (why, after) = line.rsplit_once(" after ").context("no time")?;
            Ok((why.to_owned(), Duration::from_millis(after.parse()?)))
        })
        .collect()
    }

    /// Whole lines: the last one may be half written.
    fn printed(&self) -> Result<String> {
        let mut output = self.process.output()?;
        output.truncate(output.rfind('\n').map_or(0, |end| end + 1));
        Ok(output)
    }
}

/// How many were lost in which way.
fn shares(lost: &[(String, Duration)]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for (why, _) in lost {
        *shares.entry(why.as_str()).or_default() += 1;
    }
    shares
}

/// Waits until some more lines have come back over each of all connections, none being lost.
pub(crate) fn go_on(held: &[Held], lines: u64) -> Result {
    held.iter().try_for_each(|held| held.go_on(lines))
}

/// A pod whose server echoes.
pub(crate) fn echoing(world: &World, name: &str, on: On) -> Result<(Pod, Process)> {
    echoing_after(world, name, on, Duration::ZERO)
}

/// The same, where each line waits before it is sent back.
pub(crate) fn echoing_after(world: &World, name: &str, on: On, delay: Duration) -> Result<(Pod, Process)> {
    let pod = world.pod(name, on)?;
    let (port, delay) = (POD_PORT.to_string(), delay.as_millis().to_string());
    let mut server = pod.start(&["probe", "serve", "--name", name, "--port", &port, "--echo", "--delay-ms", &delay])?;
    server.wait_for("ready\n", PATIENCE)?;
    Ok((pod, server))
}
