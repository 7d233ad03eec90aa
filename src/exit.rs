//! How the process ends. The codes are part of the interface: scripts and probes tell causes apart by them.

use std::fmt;
use std::process::ExitCode;

/// Why the process ends without having done what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed that none of the other codes names.
    Failure,
    /// A flag, file or kubeconfig says something that cannot be. clap's own usage errors end with this code too.
    Usage,
    /// The kernel or the node lacks something: IPVS, ipset, iptables.
    MissingFeature,
    /// The process lacks a capability.
    Denied,
    /// `run --once` left objects out that the kernel or the packet rules refused, or that could not be read.
    Incomplete,
    /// `plan` found something to do, which is no failure.
    Changes,
}

impl Exit {
    /// The text that `--help` shows.
    pub(crate) const HELP: &str = "\
Exit codes:
  0  done, or stopped by SIGTERM or SIGINT (by default the kernel keeps what it holds)
  1  failed, or a check did
  2  a flag, file or kubeconfig is invalid; plan: there are changes, and what is invalid ends with 1
  3  the node lacks IPVS, ipset or iptables
  4  CAP_NET_ADMIN or, but for status and top, CAP_NET_RAW is missing; init: it may not set a sysctl
  5  run --once: some objects were refused or could not be read";

    /// The code. `plan` uses 2 as other programs do that say by their code whether there is something to do.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage | Self::Changes => 2,
            Self::MissingFeature => 3,
            Self::Denied => 4,
            Self::Incomplete => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that knows the exit code it deserves. It rides along an [`anyhow::Error`] as context.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) exit: Exit,
    sentence: String,
}

impl Ending {
    /// An error that says `sentence` and ends the process with `exit`.
    pub(crate) fn error(exit: Exit, sentence: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { exit, sentence: sentence.into() })
    }

    /// The same error, in a command where the code for what is invalid has another meaning.
    pub(crate) fn without_usage(error: anyhow::Error) -> anyhow::Error {
        match Self::code_of(&error) {
            Exit::Usage => Self::error(Exit::Failure, format!("{error:#}")),
            _ => error,
        }
    }

    /// The exit code that `error` asks for.
    pub(crate) fn code_of(error: &anyhow::Error) -> Exit {
        error.downcast_ref::<Self>().map_or(Exit::Failure, |ending| ending.exit)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Ending {}

/// What the kernel would not do, as the end of the process.
pub(crate) fn kernel_ending(error: &kernel::Error) -> anyhow::Error {
    let exit = if error.is_denied() {
        Exit::Denied
    } else if error.is_missing_module() || error.is_missing_tool() {
        Exit::MissingFeature
    } else {
        Exit::Failure
    };
    Ending::error(exit, error.to_string())
}
