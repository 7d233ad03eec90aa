//! `kube-ipvs plan`: what an agent that starts now would change in the kernel, and why. Nothing is changed by it, and it needs no agent.

mod document;
mod script;
mod text;
mod why;

use std::io::{self, Write};

use clap::{Args, ValueEnum};

use crate::cli::{Run, Source};
use crate::exit::{Ending, Exit};
use crate::settings::Effective;
use crate::survey::Subject;
use document::Document;

#[derive(Args, Debug)]
#[command(
    after_help = "Give it the flags that `kube-ipvs run` has on this node. It exits with 0 when there is nothing to do and with 2 when there are changes.

Examples:
  kube-ipvs plan --kubeconfig /etc/kube-ipvs/kubeconfig --cluster-cidr 10.244.0.0/16
  kube-ipvs plan --against cluster --kubeconfig admin.conf --node-name node-1
  kube-ipvs plan --against manifests --manifests ./services --node-name node-1 -o json | jq .counts
  kube-ipvs plan --manifests ./services -o script >changes.sh"
)]
pub(crate) struct Arguments {
    /// How to print what would change
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Format,

    /// Whose objects the kernel is compared with; those of --manifests where that is given and the cluster's where not, unless this says so.
    /// With a flag that leads elsewhere it is an error, so that what a script is sure of is what it gets
    #[arg(long, value_name = "WHAT")]
    against: Option<Against>,

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

/// Whose objects say what is desired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// Those of --manifests
    Manifests,
    /// Those that the API server has, which --kubeconfig leads to, or the service account of the pod
    Cluster,
}

impl Against {
    /// Says what is contradictory.
    fn check(self, source: &Source) -> anyhow::Result<()> {
        let sentence = match (self, &source.manifests) {
            (Self::Manifests, Some(_)) | (Self::Cluster, None) => return Ok(()),
            (Self::Manifests, None) => {
                "--against manifests: it is not known which; give --manifests PATH, a file or a directory of them".to_owned()
            }
            (Self::Cluster, Some(path)) => format!(
                "--against cluster: --manifests {} leads elsewhere; leave that out, or say --against manifests",
                path.display()
            ),
        };
        Err(Ending::error(Exit::Failure, sentence))
    }
}

/// Prints what would change, and says by the exit code whether anything would.
///
/// # Errors
/// When objects or the kernel cannot be read in full, or standard output cannot be written.
pub(crate) fn run(arguments: &Arguments, effective: &Effective) -> anyhow::Result<Option<Exit>> {
    crate::warn_on_stderr(effective);
    if let Some(against) = arguments.against {
        against.check(&effective.run.source)?;
    }
    let proxy = &effective.run.proxy;
    let survey = Subject { run: &effective.run }.survey().map_err(Ending::without_usage)?;
    let document = Document::of(&survey, proxy);
    let mut out = io::stdout().lock();
    let printed = match arguments.output {
        Format::Text => text::print(&mut out, &document),
        Format::Json => serde_json::to_writer_pretty(&mut out, &document).map_err(io::Error::from).and_then(|()| writeln!(out)),
        Format::Script => script::print(&mut out, &survey, proxy),
    };
    crate::printed(printed, "the plan")?;
    Ok((!document.is_empty()).then_some(Exit::Changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_with_is_said_by_both_flags_or_by_one() {
        let of = |manifests: Option<&str>| Source { kubeconfig: None, manifests: manifests.map(Into::into) };
        assert!(Against::Manifests.check(&of(Some("services"))).is_ok() && Against::Cluster.check(&of(None)).is_ok());
        let error = |against: Against, manifests| against.check(&of(manifests)).unwrap_err();
        let missing = error(Against::Manifests, None);
        assert!(missing.to_string().contains("give --manifests PATH"), "{missing}");
        let elsewhere = error(Against::Cluster, Some("services"));
        assert!(elsewhere.to_string().contains("--manifests services leads elsewhere"), "{elsewhere}");
        assert_eq!(Ending::code_of(&elsewhere), Exit::Failure, "2 says that there are changes");
    }
}
