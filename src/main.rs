//! `kube-ipvs`: the agent that keeps a node's IPVS table as the cluster's Services say.
//!
//! This is the imperative shell around the crates below `crates/`: it parses the command line, watches the API server or files, owns
//! the clock, logs, counts and serves HTTP. What a node should hold is decided in `desired`, what has to be done for it in `plan`, and
//! done in `kernel`.

mod agent;
#[cfg(test)]
mod captured;
mod cleanup;
mod cli;
mod disturbances;
mod drain;
mod events;
mod exit;
mod freshness;
mod health;
mod health_check;
mod http;
mod init;
mod listeners;
mod local_policies;
mod mailbox;
mod metrics;
mod news;
mod node;
mod pace;
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
mod source;
mod stale_flows;
mod status;
mod sysctls;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use cli::{Cli, Command, LogFormat, Run};
use exit::{Ending, Exit};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(arguments) => log_to_stderr(&arguments).and_then(|()| run::run(&arguments)),
        Command::Status(arguments) => status::run(&arguments).map(|()| None),
        Command::Init => init::run(),
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

fn log_to_stderr(arguments: &Run) -> anyhow::Result<()> {
    let filter = log_filter(&arguments.log_level).ok_or_else(|| {
        let level = &arguments.log_level;
        let sentence = format!(
            "--log-level {level:?}: expected off, error, warn, info, debug or trace, or directives such as kube_ipvs=debug,kube=info"
        );
        Ending::error(Exit::Usage, sentence)
    })?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match arguments.log_format {
        LogFormat::Text => logs.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// A word that is no level would be taken for the one target to log, and silence all others.
fn log_filter(text: &str) -> Option<EnvFilter> {
    let understood = |directive: &str| directive.contains(['=', '[']) || directive.parse::<LevelFilter>().is_ok();
    text.split(',').map(str::trim).all(understood).then(|| EnvFilter::try_new(text).ok()).flatten()
}
