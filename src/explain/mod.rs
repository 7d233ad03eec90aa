//! `kube-ipvs explain`: what becomes of a connection on this node, in words. Nothing is changed by it.

mod callers;
mod story;
mod target;
#[cfg(test)]
mod tests;
mod traffic;

use std::io::{self, Write};
use std::net::IpAddr;

use clap::Args;

use crate::cli::Run;
use crate::exit::{Exit, kernel_ending};
use crate::run;
use crate::settings::Effective;
use crate::survey::Subject;
use story::Story;
use target::{Found, Target};
use traffic::Traffic;

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

    /// The caller's address; without it, pods, the node and outside callers are described in turn
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
    let deadlines = traffic::deadlines(&effective.run.control_socket);
    let mut text = String::new();
    for key in &found.keys {
        let in_cluster = survey.ledger.in_cluster(key);
        let traffic = Traffic::of(&mut survey.kernel, key, in_cluster, *from).map_err(|error| kernel_ending(&error))?;
        let story = Story {
            index: &survey.index,
            ledger: &survey.ledger,
            observed: &survey.observed,
            plan: &survey.plan,
            limits: run::tuning(&effective.run).drain,
            deadlines: &deadlines,
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
    crate::printed(writeln!(io::stdout(), "{}", text.trim_end()), "the explanation")?;
    Ok((keys.is_empty()).then_some(Exit::Failure))
}
