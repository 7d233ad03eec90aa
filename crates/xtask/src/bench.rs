//! The benchmark, in a guest. What measures is the program `bench` (`benches/guest`); here its figures become tables, a plot and a verdict.

mod baseline;
mod figure;
mod growth;
mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::build;
use crate::guest::Guest;
use crate::host::{self, create_directory};
use crate::kernel::Wanted;
use figure::Figure;

/// Fifty thousand Services on an emulated processor take the better part of an hour.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// MiB that a guest needs besides what the Services in it take.
const MEMORY: u32 = 2048;
/// MiB for each thousand Services: most of it is the API server double's, which keeps whole objects.
const MEMORY_PER_THOUSAND: u32 = 128;

/// The scenarios of which no goal may be missed, whatever the size.
const PROMISES: [&str; 4] = ["burst of one object", "repair", "outage", "growth"];

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many Services, each with 5 endpoints; several numbers make a curve
    #[arg(long, value_name = "NUMBER,…", value_delimiter = ',', default_value = "1000")]
    services: Vec<u32>,
    /// Boot a machine whose clock counts instructions: figures repeat, whatever else this machine does
    #[arg(long)]
    icount: bool,
    /// Compare with benches/baseline.json, and fail when a figure is more than 10 % above it (implies --icount)
    #[arg(long)]
    gate: bool,
    /// Write the figures to benches/baseline.json (implies --icount)
    #[arg(long, conflicts_with = "gate")]
    update_baseline: bool,
    /// How long to look on while nothing happens, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u32,
    /// Time between two audits where audits are measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    audit_period: u32,
    /// How many random changes come and go before memory is looked at again; 0 leaves that out
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
    growth: u32,
    /// How long the API server is away, in seconds; an hour passes at once where instructions are counted. 0 leaves that out
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    outage: u32,
    /// Guest kernel: `base`, `newest`, or a series such as 6.1
    #[arg(long, default_value = "base")]
    kernel: Wanted,
    /// Use the binaries that are in the target directory as they are
    #[arg(long)]
    no_build: bool,
}

/// The short form for every test run: 1,000 Services, without waiting for what is not compared. Whether the figures are good.
pub(crate) fn gate() -> Result<bool> {
    let arguments = Arguments {
        services: vec![1000],
        icount: true,
        gate: true,
        update_baseline: false,
        idle: 1,
        audit_period: 3,
        growth: 0,
        outage: 3600,
        kernel: Wanted::Base,
        no_build: false,
    };
    measure(&arguments)
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    Ok(if measure(arguments)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the figures compare well, where they are to be compared.
fn measure(arguments: &Arguments) -> Result<bool> {
    host::prepare(host::GUEST_TOOLS)?;
    if !arguments.no_build {
        build::released()?;
    }
    let icount = arguments.icount || arguments.gate || arguments.update_baseline;
    let mut guest = Guest::new(&arguments.kernel)?;
    if icount {
        guest.count_instructions();
    }
    let largest = arguments.services.iter().copied().max().context("--services names no number")?;
    guest.set_memory(MEMORY + largest.div_ceil(1000) * MEMORY_PER_THOUSAND);
    for name in ["kube-ipvs", "bench"] {
        guest.program(&build::target_dir().join("release").join(name), name)?;
    }
    let release = guest.release().to_owned();
    let outcome = guest.run(&script(arguments), LIMIT)?;
    if outcome.code != 0 {
        bail!("a scenario could not be run (see above)");
    }
    let figures = outcome.console.lines().filter_map(figure::parse).collect::<Result<Vec<_>>>()?;
    if figures.is_empty() {
        bail!("the benchmark printed no figures");
    }

    let clock = if icount { "instructions, 1 ns each" } else { "real" };
    let title = format!("kernel {release}, clock: {clock}");
    let table = table(&title, &figures) + &growth::table(&figures);
    print!("\n{table}");
    write(&title, &table, &figures, icount)?;
    let places = baseline::Place { file: build::root().join("benches/baseline.json"), kernel: release };
    if arguments.update_baseline {
        places.write(&figures)?;
    }
    if !arguments.gate {
        return Ok(true);
    }
    let (compares, keeps) = (places.compare(&figures)?, keeps_promises(&figures));
    Ok(compares && keeps)
}

/// Whether what does not depend on the size of a cluster is as soon good again, and as little, as it is to be.
fn keeps_promises(figures: &[Figure]) -> bool {
    let missed =
        figures.iter().filter(|figure| PROMISES.contains(&figure.scenario.as_str()) && figure.reaches_goal() == Some(false));
    let lines: Vec<_> = missed.map(ToString::to_string).collect();
    if !lines.is_empty() {
        println!("\nwhat has to be reached at any size:\n{}", lines.join("\n"));
    }
    lines.is_empty()
}

/// Each size runs in a namespace of its own: what one leaves in the kernel is not to be measured with the next.
fn script(arguments: &Arguments) -> String {
    let mut script = "mount -t cgroup2 none /sys/fs/cgroup || exit 1\n".to_owned();
    for services in &arguments.services {
        let Arguments { audit_period, idle, growth, outage, .. } = arguments;
        let _ = writeln!(
            script,
            "unshare --net bench --services {services} --audit-period {audit_period} --idle {idle} --growth {growth} --outage {outage} || exit 1"
        );
    }
    script
}

fn table(title: &str, figures: &[Figure]) -> String {
    let mut text = format!("{title}\n\n");
    let _ = writeln!(
        text,
        "{:>8}  {:<32} {:<33} {:>12} {:<4} {:>12} {:>7}  goal",
        "services", "scenario", "measure", "value", "", "reference", "ratio"
    );
    for figure in figures {
        let _ = writeln!(text, "{figure}");
    }
    text
}

/// Writes the table, the same as JSON, and the curves to `target/bench/`.
fn write(title: &str, table: &str, figures: &[Figure], icount: bool) -> Result<()> {
    let directory = build::target_dir().join("bench");
    create_directory(&directory)?;
    let name = |extension: &str| directory.join(format!("{}.{extension}", if icount { "icount" } else { "figures" }));
    let list: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    save(&name("txt"), table)?;
    save(&name("json"), &format!("{:#}\n", json!({"title": title, "figures": list})))?;
    match plot::svg(title, figures) {
        Some(plot) => save(&name("svg"), &plot),
        None => Ok(()),
    }
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}
