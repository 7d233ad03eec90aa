//! `kube-ipvs check`: whether this node has what an agent needs, and whether all is as it should be. Nothing is changed by it.
//!
//! Every inspection is made, whatever the others find: who looks at three in the morning wants to see all of it at once.

mod api;
mod drift;
mod finding;
mod kube_router;
mod machine;
mod origin;
mod packet_filter;
mod settings;
mod tables;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::Run;
use crate::exit::Exit;
use crate::run;
use crate::settings::Effective;
use crate::survey::Subject;
use finding::{Document, Level};

#[derive(Args, Debug)]
#[command(
    after_help = "Give it the flags that `kube-ipvs run` has on this node. It exits with 1 when a check fails, and with 0 when there are warnings at most.

Examples:
  kube-ipvs check --kubeconfig /etc/kube-ipvs/kubeconfig --cluster-cidr 10.244.0.0/16
  kube-ipvs check --host-root /host -o json | jq '.findings[] | select(.level != \"ok\")'"
)]
pub(crate) struct Arguments {
    /// How to print what was found
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Format,

    /// Exit with 1 for warnings as well
    #[arg(long)]
    strict: bool,

    /// Where the host's file system is to be seen, for its sysctl.d and its list of modules
    #[arg(long, default_value = "/", value_name = "PATH")]
    host_root: PathBuf,

    // Read again with what the configuration file says.
    #[command(flatten)]
    _run: Run,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A line for each check
    Text,
    /// One JSON document
    Json,
}

/// Looks at everything and prints what it found.
///
/// # Errors
/// When decisions on the command line exclude each other, or standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, effective: &Effective) -> anyhow::Result<Option<Exit>> {
    let host_root = &arguments.host_root;
    let subject = Subject { run: &effective.run };
    let config = subject.config()?;
    let mut findings = Vec::new();
    machine::inspect(&config, host_root, &mut findings);
    settings::inspect(&config, &run::tuning(subject.run).sysctls, host_root, &mut findings);
    packet_filter::inspect(&config, &mut findings);
    findings.push(kube_router::inspect(&config));
    tables::inspect(&mut findings);
    api::inspect(subject, &config, &mut findings);
    drift::inspect(subject, &mut findings);
    let document = Document::of(findings);
    let mut out = io::stdout().lock();
    let printed = match arguments.output {
        Format::Text => document.print(&mut out),
        Format::Json => serde_json::to_writer_pretty(&mut out, &document).map_err(io::Error::from).and_then(|()| writeln!(out)),
    };
    crate::printed(printed, "what was found")?;
    let intolerable = if arguments.strict { Level::Warn } else { Level::Fail };
    Ok((document.worst() >= intolerable).then_some(Exit::Failure))
}
