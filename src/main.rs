//! `kube-ipvs`: the agent that keeps a node's IPVS table as the cluster's Services say.
//!
//! This is the imperative shell around the crates below `crates/`: it parses the command line, watches the API server or files, owns
//! the clock, logs, counts and serves HTTP. What a node should hold is decided in `desired`, what has to be done for it in `plan`, and
//! done in `kernel`.

mod agent;
#[cfg(test)]
mod captured;
mod changes;
mod cleanup;
mod cli;
mod disturbances;
mod drain;
mod eligibility;
mod events;
mod exit;
mod freshness;
mod health;
mod health_check;
mod http;
mod init;
mod listeners;
mod local_policies;
mod logs;
mod mailbox;
mod metrics;
mod news;
mod node;
mod node_sysctls;
mod pace;
mod pages;
mod patrol;
mod probes;
mod reconciler;
mod refusals;
mod register;
mod relay;
mod removals;
mod run;
mod saved;
mod schedulers;
mod scrape;
mod settings;
mod source;
mod stale_flows;
mod status;
mod sysctls;
mod traffic;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::FromArgMatches;

use cli::{Cli, Command};
use exit::Ending;
use settings::Given;

fn main() -> ExitCode {
    let arguments = settings::arguments(env::args_os());
    let matches = settings::command().get_matches_from(&arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Command::Run(_) => run::start(&Given::new(arguments, "run")),
        Command::Config(_) => settings::show(&Given::new(arguments, "config")).map(|()| None),
        Command::Status(arguments) => status::run(&arguments).map(|()| None),
        Command::Init(_) => Given::new(arguments, "init").effective().and_then(|effective| init::run(&effective.run)),
        Command::Cleanup(arguments) => cleanup::run(&arguments).map(|()| None),
    };
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(exit)) => exit.into(),
        Err(error) => {
            // Standard error may be gone; the exit code still tells.
            let _ = writeln!(io::stderr(), "kube-ipvs: {error:#}");
            Ending::code_of(&error).into()
        }
    }
}

/// Prints a line on standard output. That nobody reads it is no failure.
fn print_line(line: &impl std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}
