//! The test run: tiers from the quickest to the slowest, each counted, and one summary.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::build::{self, TestProgram};
use crate::guest::{self, Guest};
use crate::host;
use crate::kernel::Wanted;
use crate::qemu::Outcome;
use crate::{bench, conformance, soak, tools};

/// All guest tests of one boot together take about ten minutes when emulated.
const GUEST_LIMIT: Duration = Duration::from_secs(35 * 60);

/// Guest tests mostly wait (for processes to start, for deadlines), so more of them than processors run at a time.
const GUEST_THREADS: &str = "6";

/// The tests that are about numbers, files or output, and not about what the kernel does.
const ON_ONE_KERNEL: [&str; 19] = [
    "sizes::j3_a_set_grows_beyond_65536_members",
    "start::",
    "changes::",
    "status::",
    "top::",
    "cluster::",
    "events::",
    "random::",
    "faults::",
    "trouble::",
    "own_vip::",
    "stuck::",
    "handover::",
    "versions::",
    "neighbours::",
    "outage::",
    "configuration::",
    "inspection::plan",
    "inspection::explain",
];

/// The agent's own tests that need a browser.
const IN_BROWSER: &str = "status_page::browser::";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// The code is formatted
    Fmt,
    /// clippy has no warnings, and the fuzz targets compile
    Clippy,
    /// Unit, property and documentation tests
    Unit,
    /// Manifests, chart, scripts, alerts, metrics and the status page, by kubectl, Helm's engine, shellcheck, promtool and Chromium
    Tools,
    /// Tests on this machine's kernel, in a private network namespace
    Host,
    /// Tests in a guest with the base kernel
    Guest,
    /// Those of them that are about the kernel in a guest with the newest one
    GuestNewest,
    /// Three minutes of a node's life at random, the same each time
    Soak,
    /// What the agent costs at 1,000 Services is not more than a tenth above benches/baseline.json
    Bench,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Tools => "tools",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::GuestNewest => "guest-newest",
            Self::Soak => "soak",
            Self::Bench => "bench",
        }
    }

    fn run(self, filter: &[String]) -> Result<Counts> {
        match self {
            Self::Fmt => check(&["fmt", "--all", "--check"]),
            Self::Clippy => clippy(),
            Self::Unit => unit(),
            Self::Tools => with_tools(filter),
            Self::Host => on_host(filter),
            Self::Guest => in_guest(&Wanted::Base, filter, &[]),
            Self::GuestNewest => in_guest(&Wanted::Newest, filter, &ON_ONE_KERNEL),
            Self::Soak => soak::short().map(|outcome| Counts::of_console(&outcome)),
            Self::Bench => bench::gate().map(Counts::of_one),
        }
    }
}

/// What the test kit says of a test that failed beside others (`tests/testkit/src/attempts.rs`).
const SECOND_ATTEMPT: &str = ": passed at the second attempt, alone";

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Those of the passed that had failed beside others.
    alone: u64,
}

impl Counts {
    /// Of a tier that is one check.
    fn of_one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), ..Self::default() }
    }

    /// Of a guest's run.
    fn of_console(outcome: &Outcome) -> Self {
        let mut counts = Self::default();
        outcome.console.lines().for_each(|line| counts.take_in(line));
        counts.with_status(outcome.code == 0)
    }

    /// Adds up the result lines of libtest: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn take_in(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("conformance: ") {
            return self.take_in_cases(counts);
        }
        if line.trim_end().ends_with(SECOND_ATTEMPT) {
            self.alone += 1;
        }
        let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, result)| result.split_once(". ")) else { return };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Adds up what the conformance cases came to: `100 agree, 10 intended differences, 0 disagree`. A difference that is intended is as it should be.
    fn take_in_cases(&mut self, counts: &str) {
        for count in counts.split(", ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "agree" | "intended differences" => self.passed += number,
                "disagree" => self.failed += number,
                _ => {}
            }
        }
    }

    const fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            alone: self.alone + other.alone,
        }
    }

    /// A run that ended badly has at least one failure, whatever it counted (a crash counts nothing).
    fn with_status(mut self, success: bool) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:>5} passed  {:>4} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(formatter, "  {} ignored", self.ignored)?;
        }
        if self.alone > 0 {
            write!(formatter, "  {} passed only alone", self.alone)?;
        }
        Ok(())
    }
}

/// Runs the tiers, all of them when none is named, and prints the summary.
pub(crate) fn run(tiers: &[Tier], filter: &[String]) -> Result<ExitCode> {
    let tiers = if tiers.is_empty() { Tier::value_variants() } else { tiers };
    prepare(tiers)?;
    let mut lines = Vec::new();
    let mut total = Counts::default();
    for tier in tiers {
        println!("\n=== {} ===", tier.name());
        let start = Instant::now();
        let counts = tier.run(filter).unwrap_or_else(|error| {
            println!("{}: {error:#}", tier.name());
            Counts { failed: 1, ..Counts::default() }
        });
        let mut line = format!("{:<13} {counts}  {:>5.0} s", tier.name(), start.elapsed().as_secs_f32());
        total.passed += counts.passed;
        total.failed += counts.failed;
        if counts.passed + counts.failed == 0 {
            total.failed += 1;
            line.push_str("  (ran no test: that is a failure)");
        }
        lines.push(line);
    }
    println!("\n=== summary ===\n{}\n\n{} passed, {} failed", lines.join("\n"), total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs what the tiers need before the first of them runs, so that a machine that cannot have it is told at once.
fn prepare(tiers: &[Tier]) -> Result<()> {
    for tier in tiers {
        match tier {
            Tier::Fmt => component("fmt", "rustfmt")?,
            Tier::Clippy => component("clippy", "clippy")?,
            Tier::Unit => {}
            Tier::Tools => tools::find().map(drop)?,
            Tier::Host => host::prepare(host::HOST_TOOLS)?,
            Tier::Guest | Tier::GuestNewest | Tier::Soak | Tier::Bench => host::prepare(host::GUEST_TOOLS)?,
        }
    }
    Ok(())
}

/// A component of the toolchain that a minimal installation of Rust lacks.
fn component(subcommand: &str, name: &str) -> Result<()> {
    if build::cargo(&[subcommand, "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("installing the Rust component {name}");
    host::output(Command::new("rustup").args(["component", "add", name]))
        .map(drop)
        .with_context(|| format!("cargo {subcommand} is missing: install {name}"))
}

/// A tier of one check: cargo's exit code.
fn check(arguments: &[&str]) -> Result<Counts> {
    let status = build::cargo(arguments).status().context("cannot run cargo")?;
    Ok(Counts::of_one(status.success()))
}

fn clippy() -> Result<Counts> {
    let with = |targets: &[&str]| check(&[&["clippy", "--workspace"], targets, &["--", "-D", "warnings"]].concat());
    // What does not run with `cargo test` is not among all targets.
    Ok(with(&["--all-targets"])?.and(with(&["--test", "guest", "--test", "host", "--test", "tools"])?).and(fuzz_targets()?))
}

/// They are no part of the workspace, and take modules of it by their paths, so nothing else would notice that these have moved.
fn fuzz_targets() -> Result<Counts> {
    let directory = build::target_dir().join("fuzz");
    let directory = directory.to_str().context("the target directory has a name that is no text")?;
    check(&[
        "check",
        "--manifest-path",
        "fuzz/Cargo.toml",
        "--locked",
        "--bins",
        "--no-default-features",
        "--target-dir",
        directory,
    ])
}

fn unit() -> Result<Counts> {
    counted(build::cargo(&["test", "--workspace", "--no-fail-fast"]))
}

fn with_tools(filter: &[String]) -> Result<Counts> {
    let tools = tools::find()?;
    let run = |target: &[&str], options: &[&str]| {
        let mut command = build::cargo(&["test", "--package", "kube-ipvs"]);
        command.args(target).arg("--").args(options).envs(tools.clone());
        counted(command)
    };
    let filter: Vec<_> = filter.iter().map(String::as_str).collect();
    let mut counts = run(&["--test", "tools"], &filter)?;
    // That one is the agent's own, and left out elsewhere.
    if filter.is_empty() || filter.iter().any(|filter| filter.contains(IN_BROWSER)) {
        counts = counts.and(run(&["--bin", "kube-ipvs"], &["--ignored", IN_BROWSER])?);
    }
    Ok(counts)
}

fn on_host(filter: &[String]) -> Result<Counts> {
    let mut total = Counts::default();
    for package in build::packages_with_test("host")? {
        let TestProgram { package, executable, package_dir } = build::test_program(&package, "host")?;
        println!("{package}: in a private network namespace");
        let mut command = Command::new("unshare");
        if !host::is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("--net").arg(&executable).args(filter).current_dir(&package_dir).env("CARGO_MANIFEST_DIR", &package_dir);
        let counts = counted(command)?;
        total = total.and(counts);
    }
    Ok(total)
}

fn in_guest(wanted: &Wanted, filter: &[String], without: &[&str]) -> Result<Counts> {
    build::binaries()?;
    let packages = build::packages_with_test("guest")?;
    if packages.is_empty() {
        bail!("no package declares a test target named guest");
    }
    let mut guest = Guest::new(wanted)?;
    println!("Linux {}", guest.release());
    if !without.is_empty() {
        println!("without {}: one kernel is enough for them", without.join(", "));
    }
    for name in ["kube-ipvs", "probe", "demo", "apiserver"] {
        guest.program(&build::target_dir().join("debug").join(name), name)?;
    }
    let mut script = String::from("result=0\n");
    let mut run = |program: &TestProgram, name: String, options: &[&str]| -> Result<()> {
        guest.program(&program.executable, &name)?;
        let mut command = vec![name, "--test-threads".to_owned(), GUEST_THREADS.to_owned()];
        command.extend(options.iter().map(|option| (*option).to_owned()));
        command.extend_from_slice(filter);
        command.extend(without.iter().flat_map(|name| ["--skip", name]).map(str::to_owned));
        script.push_str(&guest::script(&command));
        script.push_str(" || result=$?\n");
        Ok(())
    };
    for package in packages {
        run(&build::test_program(&package, "guest")?, format!("guest-tests-{package}"), &[])?;
    }
    // Those of the agent's own tests that need a kernel with IPVS, and so are left out elsewhere. One other is the second half of a test, which runs it, and one
    // has a browser.
    run(
        &build::unit_tests("kube-ipvs")?,
        "guest-unit-tests-kube-ipvs".to_owned(),
        &["--ignored", "--skip", "in_a_pods_surroundings", "--skip", IN_BROWSER],
    )?;
    // Cases have no names that a filter of tests would know.
    if filter.is_empty() && *wanted == Wanted::Base {
        script.push_str(&guest::script(&conformance::in_need_of_a_kernel(&mut guest)?));
        script.push_str(" || result=$?\n");
    }
    script.push_str("exit $result\n");
    Ok(Counts::of_console(&guest.run(&script, GUEST_LIMIT)?))
}

/// Runs a program that ends with libtest's result lines, shows its output as it comes, and counts.
fn counted(mut command: Command) -> Result<Counts> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {shown}"))?;
    let output = child.stdout.take().context("a child process has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read a child process's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.take_in(&line);
    }
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    Ok(counts.with_status(status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut counts = Counts::default();
        counts.take_in("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        counts.take_in("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s");
        counts.take_in("test some_test ... ok");
        assert_eq!(counts, Counts { passed: 5, failed: 4, ignored: 1, alone: 0 });
    }

    #[test]
    fn a_test_that_passed_only_alone_is_told_of() {
        let mut counts = Counts::default();
        counts.take_in("test drain::one ... drain::one: failed beside others: it is tried again, alone");
        counts.take_in("drain::one: passed at the second attempt, alone\r");
        counts.take_in("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!(counts.and(Counts::default()).to_string(), "    3 passed     0 failed  1 passed only alone");
    }

    #[test]
    fn cases_count_like_tests() {
        let mut counts = Counts::default();
        counts.take_in("conformance: 100 agree, 10 intended differences, 2 disagree");
        assert_eq!(counts, Counts { passed: 110, failed: 2, ..Counts::default() });
    }

    #[test]
    fn a_crash_is_a_failure_though_nothing_was_counted() {
        assert_eq!(Counts::default().with_status(false).failed, 1);
        assert_eq!(Counts { passed: 3, failed: 2, ..Counts::default() }.with_status(false).failed, 2);
        assert_eq!(Counts { passed: 3, ..Counts::default() }.with_status(true).failed, 0);
    }
}
