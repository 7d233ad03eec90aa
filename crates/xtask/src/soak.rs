//! A node's life at random, in a guest. What lives it is one of the agent's guest tests (`tests/guest/soak`), which is given a seed and a time.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;

use crate::build;
use crate::guest::Guest;
use crate::host;
use crate::kernel::Wanted;
use crate::qemu::Outcome;

/// What every test run does: the same each time, so that it is red for a change alone, and not for a seed.
const MINUTES: u64 = 3;
const SEED: u64 = 1;

/// What begins last may take some minutes to settle, or to be found not to.
const MORE: Duration = Duration::from_secs(10 * 60);

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long it lasts
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    minutes: u64,
    /// What makes it do the same as another run; another one each time unless given
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Guest kernel: `base`, `newest`, or a series such as 6.1
    #[arg(long, default_value = "base")]
    kernel: Wanted,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    host::prepare(host::GUEST_TOOLS)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let outcome = soak(&arguments.kernel, arguments.minutes, arguments.seed.unwrap_or(now.as_secs()))?;
    Ok(ExitCode::from(outcome.code))
}

/// The short one for every test run.
pub(crate) fn short() -> Result<Outcome> {
    soak(&Wanted::Base, MINUTES, SEED)
}

fn soak(kernel: &Wanted, minutes: u64, seed: u64) -> Result<Outcome> {
    build::binaries()?;
    let mut guest = Guest::new(kernel)?;
    println!("Linux {}, seed {seed}, {minutes} minutes", guest.release());
    for name in ["kube-ipvs", "probe", "apiserver"] {
        guest.program(&build::target_dir().join("debug").join(name), name)?;
    }
    guest.program(&build::test_program("kube-ipvs", "guest")?.executable, "guest-tests")?;
    let script = format!("SOAK_MINUTES={minutes} SOAK_SEED={seed} guest-tests --ignored --exact soak::soak_in_guest --nocapture");
    guest.run(&script, Duration::from_secs(60 * minutes) + MORE)
}
