//! The conformance cases, in a guest. What runs them is the program `conformance` of the test kit.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::guest::{self, Guest};
use crate::host;
use crate::kernel::Wanted;

/// A hundred cases take a few minutes when emulated; a file may have more.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Cases mostly wait for processes to start, so more of them than processors run at a time.
const JOBS: &str = "4";

#[derive(Args)]
pub(crate) struct Arguments {
    /// The file of cases [default: tests/conformance/cases.json]
    file: Option<PathBuf>,
    /// The list of differences that are intended, by case id [default: tests/conformance/intended.json]
    #[arg(long, value_name = "FILE")]
    intended: Option<PathBuf>,
    /// Run only the cases whose id contains this
    #[arg(long, value_name = "ID", default_value = "")]
    filter: String,
    /// How many cases to run at a time
    #[arg(long, value_name = "N", default_value = JOBS)]
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
    let ours = |name: &str| build::root().join("tests/conformance").join(name);
    let file = arguments.file.clone().unwrap_or_else(|| ours("cases.json"));
    let intended = arguments.intended.clone().unwrap_or_else(|| ours("intended.json"));
    if file_name(&file)? == file_name(&intended)? {
        bail!("{} and {} need different names", file.display(), intended.display());
    }

    let mut guest = Guest::new(&arguments.kernel)?;
    for name in ["kube-ipvs", "conformance"] {
        guest.program(&build::target_dir().join("debug").join(name), name)?;
    }
    let mut command = vec!["conformance".to_owned(), "run".to_owned()];
    guest.extra(&file)?;
    guest.extra(&intended)?;
    command.push(format!("/extra/{}", file_name(&file)?));
    let options = [("--intended", format!("/extra/{}", file_name(&intended)?)), ("--jobs", arguments.jobs.to_string())];
    command
        .extend(options.into_iter().chain([("--filter", arguments.filter.clone())]).map(|(name, value)| format!("{name}={value}")));
    command.extend(arguments.times.then(|| "--times".to_owned()));
    Ok(ExitCode::from(guest.run(&guest::script(&command), LIMIT)?.code))
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no file name", path.display()))
}
