//! `kube-ipvs`: the agent that keeps a node's IPVS table as the cluster's Services say.
//!
//! This is the imperative shell around the crates below `crates/`: it parses the command line, watches the API server or files, owns
//! the clock, logs, counts and serves HTTP. What a node should hold is decided in `desired`, what has to be done for it in `plan`, and
//! done in `kernel`.

mod agent;
mod alignment;
#[cfg(test)]
mod captured;
mod change_log;
mod changes;
mod check;
mod cleanup;
mod cli;
mod control;
mod disturbances;
mod drain;
mod eligibility;
mod events;
mod exit;
mod explain;
mod freshness;
mod health;
mod health_check;
mod http;
mod init;
mod listeners;
mod local_policies;
mod logs;
mod mailbox;
mod manual;
mod metrics;
mod news;
mod node;
mod node_events;
mod node_sysctls;
mod pace;
mod pages;
mod patrol;
mod plan_command;
mod probes;
mod reconciler;
mod refusals;
mod register;
mod relay;
mod reliance;
mod removals;
mod run;
mod saved;
mod schedulers;
mod scrape;
mod settings;
mod source;
mod stale_flows;
mod status;
mod status_page;
mod survey;
mod sysctls;
mod top;
mod traffic;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::FromArgMatches;

use cli::{Cli, Command};
use exit::{Ending, Exit};
use settings::{Effective, Given};

fn main() -> ExitCode {
    let arguments = settings::arguments(env::args_os());
    let read = settings::command().try_get_matches_from(&arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match read {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let effective = |name: &str| Given::new(arguments.clone(), name).effective();
    let outcome = match cli.command {
        Command::Run(_) => run::start(&Given::new(arguments, "run")),
        Command::Config(_) => settings::show(&Given::new(arguments, "config")).map(|()| None),
        Command::Status(arguments) => status::run(&arguments).map(|()| None),
        Command::Top(arguments) => top::run(&arguments).map(|()| None),
        Command::Plan(asked) => {
            effective("plan").map_err(Ending::without_usage).and_then(|effective| plan_command::run(&asked, &effective))
        }
        Command::Explain(asked) => effective("explain").and_then(|effective| explain::run(&asked, &effective)),
        Command::Check(asked) => effective("check").and_then(|effective| check::run(&asked, &effective)),
        Command::Init(_) => effective("init").and_then(|effective| init::run(&effective.run)),
        Command::Cleanup(arguments) => cleanup::run(&arguments).map(|()| None),
        Command::Completion(arguments) => manual::complete(&arguments).map(|()| None),
        Command::Man(arguments) => manual::write(&arguments).map(|()| None),
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

/// Prints what clap has to say, be it help or a complaint.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // Whoever asked may have gone.
    let _ = error.print();
    // The first argument is the command: there are no flags of the program itself that a command could follow.
    let is_plan = arguments.get(1).is_some_and(|command| command == "plan");
    match error.use_stderr() {
        false => ExitCode::SUCCESS,
        true if is_plan => Exit::Failure.into(),
        true => Exit::Usage.into(),
    }
}

/// Prints a line on standard output. That nobody reads it is no failure.
fn print_line(line: &impl std::fmt::Display) -> anyhow::Result<()> {
    printed(writeln!(io::stdout(), "{line}"), "it")
}

/// What has become of printing `what`. That nobody reads it is no failure.
fn printed(result: io::Result<()>, what: &str) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).with_context(|| format!("cannot print {what}")),
        _ => Ok(()),
    }
}

/// For commands that print what they are asked for: on standard error what went wrong on the way, and nothing else.
fn warn_on_stderr(effective: &Effective) {
    let logs =
        tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).with_target(false).without_time();
    logs.with_ansi(io::stderr().is_terminal()).init();
    effective.log();
}
