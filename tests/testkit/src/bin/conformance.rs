//! Runs a file of cases in namespaces of their own: `cargo xtask conformance` runs this in a guest.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program: its output is its interface")]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use testkit::Result;
use testkit::conformance::{Suite, Verdict, fetch, send_synchronisation};

#[derive(Parser)]
#[command(name = "conformance", about = "Runs cases of what kube-ipvs must make of Kubernetes objects")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the cases of a file; exits with 1 when one disagrees
    Run(Run),
    /// Request paths over HTTP and print the answers, each after a line `@@answer`
    #[command(hide = true)]
    Fetch {
        /// Address, port and path by turns, such as `127.0.0.1:10249 /metrics`
        requests: Vec<String>,
    },
    /// Tell IPVS' backup daemon of connections
    #[command(hide = true)]
    Synchronise {
        /// The interface it listens on
        interface: String,
        /// The message, as hexadecimal digits
        message: String,
    },
}

#[derive(Args)]
struct Run {
    /// The file of cases
    file: PathBuf,
    /// The list of intended differences
    #[arg(long, value_name = "FILE")]
    intended: PathBuf,
    /// Run only the cases whose id contains this (may be given several times)
    #[arg(long, value_name = "ID")]
    filter: Vec<String>,
    /// How many cases to run at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Print how long each case took
    #[arg(long)]
    times: bool,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(run) => run.run(),
        Command::Fetch { requests } => {
            for request in requests.chunks(2) {
                if let [place, path] = request {
                    println!("@@answer\n{}", fetch(place, path));
                }
            }
            Ok(true)
        }
        Command::Synchronise { interface, message } => send_synchronisation(&interface, &message).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Run {
    fn run(&self) -> Result<bool> {
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let suite = Suite::read(&read(&self.file)?, &read(&self.intended)?)?;
        let start = Instant::now();
        let summary = suite.run(&self.filter, self.jobs, |id, verdict, took| {
            let took = if self.times { format!("{:5.1} s  ", took.as_secs_f32()) } else { String::new() };
            match verdict {
                Verdict::Agree => println!("{took}agree  {id}"),
                Verdict::Intended { because } => println!("{took}intended {id} ({because})"),
                Verdict::Disagree(differences) => println!("{took}disagree {id}: {}", one_line(&differences.join("; "))),
            }
        });
        if self.times {
            println!("{:.0} s", start.elapsed().as_secs_f32());
        }
        println!("{summary}");
        Ok(summary.is_good())
    }
}

/// A tool's complaint may have several lines; a case has one.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" | ")
}
