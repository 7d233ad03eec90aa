//! `kube-ipvs explain`: what becomes of a connection on this node, in words. Nothing is changed by it.

mod callers;
mod story;
mod target;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use clap::Args;
use kernel::Kernel;
use model::{Flow, VirtualServerKey};

use crate::cli::Run;
use crate::exit::{Exit, kernel_ending};
use crate::run;
use crate::settings::Effective;
use crate::survey::{Subject, Survey};
use story::Story;
use target::{Found, Target};

#[derive(Args, Debug)]
#[command(after_help = "Give it the flags that `kube-ipvs run` has on this node.

Examples:
  kube-ipvs explain 10.96.0.10:80 --config /etc/kube-ipvs/config.yaml
  kube-ipvs explain shop/web:http --manifests ./services
  kube-ipvs explain 203.0.113.7:443 --from 198.51.100.9 --config /etc/kube-ipvs/config.yaml")]
pub(crate) struct Arguments {
    /// What is called: an address, ADDRESS:PORT, or a Service as NAMESPACE/NAME, with :PORT-NAME for one of its ports
    #[arg(value_name = "ADDRESS[:PORT]|SERVICE", value_parser = Target::parse)]
    target: Target,

    /// Who calls; pods, the node and callers from outside each by themselves unless given
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,

    // Read again with what the configuration file says.
    #[command(flatten)]
    _run: Run,
}

/// Says what becomes of connections to the target.
///
/// # Errors
/// When objects or the kernel cannot be read in full, or standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, effective: &Effective) -> anyhow::Result<Option<Exit>> {
    crate::warn_on_stderr(effective);
    let Arguments { target, from, .. } = arguments;
    let mut survey = Subject { run: &effective.run }.survey()?;
    let found = target.resolve(&survey.index, &survey.ledger, &survey.observed);
    let mut text = String::new();
    for key in &found.keys {
        let traffic = Traffic::of(&mut survey, key, *from).map_err(|error| kernel_ending(&error))?;
        let story = Story {
            index: &survey.index,
            ledger: &survey.ledger,
            observed: &survey.observed,
            plan: &survey.plan,
            limits: run::tuning(&effective.run).drain,
        };
        text.push_str(&story.tell(key, *from, &traffic));
        text.push('\n');
    }
    let Found { remarks, keys } = &found;
    for remark in remarks {
        text.push_str(&format!("{remark}\n"));
    }
    // What is wrong with a Service explains what is missing.
    let services = target::services_of(keys, target, &survey.ledger);
    for problem in survey.problems.iter().filter(|problem| services.iter().any(|service| problem.contains(&format!(" {service} "))))
    {
        text.push_str(&format!("problem: {problem}\n"));
    }
    match io::stdout().lock().write_all(text.trim_end().as_bytes()).and_then(|()| writeln!(io::stdout())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print the explanation"),
        _ => Ok((keys.is_empty()).then_some(Exit::Failure)),
    }
}

/// What goes on at a frontend now.
#[derive(Debug)]
pub(super) struct Traffic {
    /// The connections of real servers, of both virtual servers of a frontend.
    pub(super) connections: Vec<(VirtualServerKey, model::RealServerKey, model::RealServerCounters)>,
    /// What connection tracking knows of flows to the frontend.
    pub(super) flows: Result<Vec<Flow>, String>,
}

impl Traffic {
    fn of(survey: &mut Survey, key: &VirtualServerKey, from: Option<IpAddr>) -> Result<Self, kernel::Error> {
        let kernel: &mut Kernel = &mut survey.kernel;
        let mut connections = Vec::new();
        for key in [Some(*key), survey.ledger.in_cluster(key)].into_iter().flatten() {
            connections.extend(kernel.connections(&key)?.into_iter().map(|(real, counters)| (key, real, counters)));
        }
        let VirtualServerKey::Address { address, port, protocol } = *key else {
            return Ok(Self { connections, flows: Ok(Vec::new()) });
        };
        let called = SocketAddr::new(address, port);
        let wanted = |flow: &Flow| {
            flow.protocol == protocol
                && flow.original.destination == called
                && from.is_none_or(|from| flow.original.source.ip() == from)
        };
        let flows = kernel.flows(key.family(), protocol, wanted).map_err(|error| error.to_string());
        Ok(Self { connections, flows })
    }
}
