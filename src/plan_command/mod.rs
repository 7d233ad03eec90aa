//! `kube-ipvs plan`: what an agent that starts now would change in the kernel, and why. Nothing is changed by it, and it needs no agent.

mod document;
mod script;
mod text;
mod why;

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::cli::Run;
use crate::exit::{Ending, Exit};
use crate::settings::Effective;
use crate::survey::Subject;
use document::Document;

#[derive(Args, Debug)]
#[command(
    after_help = "Give it the flags that `kube-ipvs run` has on this node. It exits with 0 when there is nothing to do and with 2 when there are changes.

Examples:
  kube-ipvs plan --kubeconfig /etc/kube-ipvs/kubeconfig --cluster-cidr 10.244.0.0/16
  kube-ipvs plan --manifests ./services --node-name node-1 -o json | jq .counts
  kube-ipvs plan --manifests ./services -o script >changes.sh"
)]
pub(crate) struct Arguments {
    /// How to print what would change
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Format,

    // Read again with what the configuration file says.
    #[command(flatten)]
    _run: Run,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A line for each step, with who asks for it
    Text,
    /// One JSON document
    Json,
    /// A shell script of ipset restore, iptables-restore, ipvsadm -R and ip that does the same
    Script,
}

/// Prints what would change, and says by the exit code whether anything would.
///
/// # Errors
/// When objects or the kernel cannot be read in full, or standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, effective: &Effective) -> anyhow::Result<Option<Exit>> {
    crate::warn_on_stderr(effective);
    let proxy = &effective.run.proxy;
    let survey = Subject { run: &effective.run }.survey().map_err(Ending::without_usage)?;
    let document = Document::of(&survey, proxy);
    let mut out = io::stdout().lock();
    let printed = match arguments.output {
        Format::Text => text::print(&mut out, &document),
        Format::Json => serde_json::to_writer_pretty(&mut out, &document).map_err(io::Error::from).and_then(|()| writeln!(out)),
        Format::Script => script::print(&mut out, &survey, proxy),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).context("cannot print the plan"),
        _ => {}
    }
    Ok((!document.is_empty()).then_some(Exit::Changes))
}
