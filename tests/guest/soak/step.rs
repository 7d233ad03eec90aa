//! What may happen in a step.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use testkit::{Random, Result};

use super::Tally;
use super::cluster::{Cluster, Trouble};
use super::damage::{Damage, Harm};

/// Longer than an agent needs to start, so that it is killed in all that it does.
const LONGEST_LIFE_MS: u64 = 1500;

/// How long the API server is away, at the most.
const LONGEST_OUTAGE_MS: u64 = 4000;

/// A step: what happens before the kernel has to settle.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// One thing after the other, without waiting.
    Deeds(Vec<Deed>),
    /// The API server is away or not well, and something happens meanwhile.
    Outage { trouble: Trouble, meanwhile: Deed },
}

/// One thing that is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    /// So many changes of Services and slices.
    Changes(u64),
    /// The readiness of an endpoint that clients are connected to.
    Readiness,
    /// An address of the node comes or goes.
    Address,
    /// Another Node comes or goes, with an address that a load balancer may have.
    Node,
    /// Somebody else changes something in the kernel.
    Damage(Damage),
    /// The agent is asked to end, and another one started, which may bind VIPs in another way.
    End,
    /// So many agents, one after the other, are killed while they are at work.
    Kills(u64),
}

impl Step {
    pub(crate) fn random(random: &mut Random, is_restless: bool) -> Self {
        if random.one_in(12) {
            return Self::Outage { trouble: random.of(&Trouble::ALL), meanwhile: Deed::during_outage(random, is_restless) };
        }
        Self::Deeds((0..=random.below(3)).map(|_| Deed::random(random, is_restless)).collect())
    }

    /// Does what it says, waits until the kernel has settled, and looks what has become of the traffic. `details` tells exactly what was done.
    pub(crate) fn take(
        &self,
        cluster: &mut Cluster<'_>,
        random: &mut Random,
        tally: &mut Tally,
        details: &mut Vec<String>,
    ) -> Result {
        let harm = match self {
            Self::Deeds(deeds) => {
                deeds.iter().try_for_each(|deed| deed.take(cluster, random, tally, details))?;
                deeds.iter().map(Deed::harm).max().unwrap_or_default()
            }
            Self::Outage { trouble, meanwhile } => {
                tally.outages += 1;
                cluster.api_server_goes(*trouble)?;
                meanwhile.take(cluster, random, tally, details)?;
                thread::sleep(Duration::from_millis(random.below(LONGEST_OUTAGE_MS)));
                cluster.stays_served()?;
                cluster.api_server_returns()?;
                meanwhile.harm()
            }
        };
        let begun = Instant::now();
        cluster.settles()?;
        tally.longest = tally.longest.max(begun.elapsed());
        let (calls, excused) = cluster.traffic_goes_on(harm)?;
        tally.calls += calls;
        tally.excused += excused;
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deeds(deeds) => {
                let deeds: Vec<_> = deeds.iter().map(ToString::to_string).collect();
                out.write_str(&deeds.join(", "))
            }
            Self::Outage { trouble, meanwhile } => write!(out, "the API server {trouble}, meanwhile {meanwhile}"),
        }
    }
}

impl Deed {
    fn random(random: &mut Random, is_restless: bool) -> Self {
        // Drawn in any case: that a spell ends changes nothing else that the seed says.
        let kills = 1 + random.below(8);
        match random.below(20) {
            0..5 => Self::Changes(1 + random.below(4)),
            5..8 => Self::Readiness,
            8 => Self::Address,
            9 => Self::Node,
            10..15 => Self::Damage(Damage::random(random)),
            15 if is_restless => Self::End,
            16..20 if is_restless => Self::Kills(kills),
            _ => Self::Changes(1),
        }
    }

    /// Without what an agent cannot set right from what it knows: one that has just been started knows what was saved, which may be older than
    /// what the kernel holds.
    fn during_outage(random: &mut Random, is_restless: bool) -> Self {
        match random.below(4) {
            0 => Self::Damage(Damage::random(random)),
            1 if is_restless => Self::Kills(1 + random.below(2)),
            2 if is_restless => Self::End,
            _ => Self::Changes(1 + random.below(3)),
        }
    }

    fn harm(&self) -> Harm {
        match self {
            Self::Damage(damage) => damage.harm,
            _ => Harm::None,
        }
    }

    fn take(&self, cluster: &mut Cluster<'_>, random: &mut Random, tally: &mut Tally, details: &mut Vec<String>) -> Result {
        match self {
            Self::Changes(number) => {
                for _ in 0..*number {
                    details.push(cluster.change(random)?);
                }
                tally.changes += number;
            }
            Self::Readiness => {
                details.push(cluster.change_readiness(random)?);
                tally.changes += 1;
            }
            Self::Address => details.push(cluster.change_address()?),
            Self::Node => details.push(cluster.change_nodes()?),
            Self::Damage(damage) => {
                cluster.damage(damage)?;
                tally.damages += 1;
            }
            Self::End => {
                details.push(cluster.restart(random)?);
                tally.ends += 1;
            }
            Self::Kills(number) => {
                for _ in 0..*number {
                    details.push(cluster.change(random)?);
                    thread::sleep(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
                    cluster.kill()?;
                }
                tally.changes += number;
                tally.kills += number;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changes(number) => write!(out, "{number} changes"),
            Self::Readiness => out.write_str("readiness"),
            Self::Address => out.write_str("an address"),
            Self::Node => out.write_str("a Node"),
            Self::Damage(damage) => write!(out, "`{}`", damage.command),
            Self::End => out.write_str("a restart"),
            Self::Kills(number) => write!(out, "{number} kills"),
        }
    }
}
