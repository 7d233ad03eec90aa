//! This program turns a fresh checkout on a fresh machine into a tested and demonstrated one: `cargo xtask demo`, `cargo xtask test`, `cargo xtask guest`.
//!
//! IPVS lives in the kernel and many kernels lack it, so everything that needs it runs in a *guest*: a distribution kernel, downloaded but not installed,
//! booted by QEMU with an initramfs made here. Files in reading order: [`host`] (what this machine has, and installing what it lacks), [`kernel`]
//! (kernel packages), [`cpio`] and [`image`] (the initramfs), [`qemu`] (booting), [`guest`] (the three together), [`build`] (cargo), [`tiers`]
//! (the test run and its summary), [`tools`] (those that check manifests), [`container`] (the agent's own image), [`conformance`], [`bench`], [`soak`], [`demo`], [`picture`].

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's command-line program: its output is its interface")]

mod bench;
mod build;
mod conformance;
mod container;
mod cpio;
mod demo;
mod guest;
mod host;
mod image;
mod kernel;
mod picture;
mod qemu;
mod soak;
mod tiers;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::guest::Guest;
use crate::kernel::Wanted;
use crate::tiers::Tier;

/// Development commands of kube-ipvs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See it work: boot a kernel with IPVS, make a node with pods, run the agent and send requests
    Demo {
        /// Stay inside afterwards, with a shell on the node's kernel (leave with `exit`, or Ctrl-A X)
        #[arg(long)]
        shell: bool,
        /// Use this machine's own kernel, in network namespaces, instead of a guest (needs root and IPVS)
        #[arg(long, conflicts_with_all = ["shell", "kernel"])]
        host: bool,
        /// Guest kernel: `base`, `newest`, or a series such as 6.1
        #[arg(long, default_value = "base")]
        kernel: Wanted,
    },
    /// Run all tests: formatting, clippy, unit, manifests by other people's tools, host namespaces, the guest on two kernels, soak, bench
    Test {
        /// Run only this tier (may be given several times)
        #[arg(long = "tier", value_enum)]
        tiers: Vec<Tier>,
        /// Run only the guest and host tests whose name contains this (may be given several times)
        #[arg(long)]
        filter: Vec<String>,
    },
    /// Run a file of conformance cases in the guest, one line a case and a summary; exits with 0 only if none disagrees
    Conformance(conformance::Arguments),
    /// Measure the agent in the guest beside the raw floor and the usual tools; `benches/README.md` says what each figure means
    Bench(bench::Arguments),
    /// Let a node live at random in the guest, with changes, damage, restarts and outages, and see whether all stays as it should; a failure
    /// comes with the seed to repeat it
    Soak(soak::Arguments),
    /// Run the API server double in the foreground, for kubectl or an agent to look at
    Apiserver {
        /// The arguments of the double, such as `--manifests PATH`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the agent's container image for this machine's architecture, with its list of contents (SPDX)
    Image(container::Arguments),
    /// Draw docs/top.svg anew: a node at work in the guest, as `kube-ipvs top` shows it in a terminal
    Picture,
    /// Write the man pages of kube-ipvs
    Man {
        /// The directory for them [default: target/man]
        directory: Option<PathBuf>,
    },
    /// Run a command in the guest, with kube-ipvs, probe and the network tools on its PATH, and exit with its code
    Guest {
        /// Guest kernel: `base`, `newest`, or a series such as 6.1
        #[arg(long, default_value = "base")]
        kernel: Wanted,
        /// Put this file into /extra of the guest (may be given several times; programs bring their shared libraries)
        #[arg(long, value_name = "FILE")]
        add: Vec<PathBuf>,
        /// Use the binaries that are in the target directory as they are
        #[arg(long)]
        no_build: bool,
        /// Boot a machine with one processor whose clock counts instructions, 1 ns each; a profiler's samples are instructions then
        #[arg(long)]
        icount: bool,
        /// Give up after this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
        /// The command; a single word with spaces is a shell line; none is an interactive shell
        #[arg(last = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo { shell: _, host: true, .. } => demo::on_host(),
        Command::Demo { shell, host: false, kernel } => demo::in_guest(&kernel, shell),
        Command::Test { tiers, filter } => tiers::run(&tiers, &filter),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Apiserver { arguments } => {
            // Paths among the arguments are relative to where the user is, which is where cargo left this program.
            let status = build::cargo(&["build", "--quiet", "--package", "apiserver"]).status()?;
            if !status.success() {
                anyhow::bail!("the API server double does not build (see above)");
            }
            let status = std::process::Command::new(build::target_dir().join("debug/apiserver")).args(arguments).status()?;
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        Command::Image(arguments) => container::run(&arguments),
        Command::Picture => picture::run(),
        Command::Man { directory } => {
            build::binaries()?;
            let directory = directory.unwrap_or_else(|| build::target_dir().join("man"));
            let status =
                std::process::Command::new(build::target_dir().join("debug/kube-ipvs")).arg("man").arg(&directory).status()?;
            anyhow::ensure!(status.success(), "kube-ipvs man ended with {status}");
            println!("the man pages are in {}", directory.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Guest { kernel, add, no_build, icount, timeout, command } => {
            host::prepare(host::GUEST_TOOLS)?;
            if !no_build {
                build::binaries()?;
            }
            let mut guest = Guest::new(&kernel)?;
            if icount {
                guest.count_instructions();
            }
            for name in ["kube-ipvs", "probe", "demo", "apiserver"] {
                let program = build::target_dir().join("debug").join(name);
                if program.exists() {
                    guest.program(&program, name)?;
                }
            }
            for file in &add {
                guest.extra(file)?;
            }
            let code = if command.is_empty() {
                guest.interact("PS1='guest:\\w# ' exec bash --norc -i")?
            } else {
                guest.run(&guest::script(&command), Duration::from_secs(timeout))?.code
            };
            Ok(ExitCode::from(code))
        }
    }
}
