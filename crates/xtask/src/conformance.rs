//! The conformance cases, in a guest. What runs them is the program `conformance` of the test kit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::build;
use crate::guest::{self, Guest};
use crate::host;
use crate::kernel::Wanted;

/// A hundred cases take a few minutes when emulated; a file may have more.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Cases mostly wait for processes to start, so more of them than processors run at a time.
const JOBS: u16 = 4;

/// Our own cases, the differences among them that are intended, and those that the pure core cannot decide.
const CASES: &str = "cases.json";
const INTENDED: &str = "intended.json";
const PENDING: &str = "pending.json";

#[derive(Args)]
pub(crate) struct Arguments {
    /// The file of cases [default: tests/conformance/cases.json]
    file: Option<PathBuf>,
    /// The list of differences that are intended, by case id [default: tests/conformance/intended.json]
    #[arg(long, value_name = "FILE")]
    intended: Option<PathBuf>,
    /// Run only the cases whose id contains this (may be given several times)
    #[arg(long, value_name = "ID")]
    filter: Vec<String>,
    /// How many cases to run at a time
    #[arg(long, value_name = "N", default_value_t = JOBS)]
    jobs: u16,
    /// Print how long each case took
    #[arg(long)]
    times: bool,
    /// Guest kernel: `base`, `newest`, or a series such as 6.1
    #[arg(long, default_value = "base")]
    kernel: Wanted,
    /// Use the binaries that are in the target directory as they are
    #[arg(long)]
    no_build: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    host::prepare(host::GUEST_TOOLS)?;
    if !arguments.no_build {
        build::binaries()?;
    }
    let file = arguments.file.clone().unwrap_or_else(|| ours(CASES));
    let intended = arguments.intended.clone().unwrap_or_else(|| ours(INTENDED));
    if file_name(&file)? == file_name(&intended)? {
        bail!("{} and {} need different names", file.display(), intended.display());
    }

    let mut guest = Guest::new(&arguments.kernel)?;
    guest.program(&build::target_dir().join("debug/kube-ipvs"), "kube-ipvs")?;
    let mut command = command(&mut guest, &file, &intended, &arguments.filter, arguments.jobs)?;
    command.extend(arguments.times.then(|| "--times".to_owned()));
    Ok(ExitCode::from(guest.run(&guest::script(&command), LIMIT)?.code))
}

/// The command that runs those of our cases in the guest for which the pure core alone cannot tell, and those with an intended difference. The others
/// agree in `cargo test` already.
pub(crate) fn in_need_of_a_kernel(guest: &mut Guest) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for list in [PENDING, INTENDED] {
        let path = ours(list);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let list: BTreeMap<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is no list of cases", path.display()))?;
        ids.extend(list.into_keys());
    }
    command(guest, &ours(CASES), &ours(INTENDED), &ids, JOBS)
}

/// Puts the program and its files into the guest; the command that runs them there.
fn command(guest: &mut Guest, file: &Path, intended: &Path, filters: &[String], jobs: u16) -> Result<Vec<String>> {
    guest.program(&build::target_dir().join("debug/conformance"), "conformance")?;
    guest.extra(file)?;
    guest.extra(intended)?;
    let mut command = vec!["conformance".to_owned(), "run".to_owned(), format!("/extra/{}", file_name(file)?)];
    command.extend([format!("--intended=/extra/{}", file_name(intended)?), format!("--jobs={jobs}")]);
    command.extend(filters.iter().map(|filter| format!("--filter={filter}")));
    Ok(command)
}

fn ours(name: &str) -> PathBuf {
    build::root().join("tests/conformance").join(name)
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no file name", path.display()))
}
