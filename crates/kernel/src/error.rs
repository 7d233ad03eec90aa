//! The one error type of this crate.

use std::fmt;
use std::io;

use model::Scheduler;

/// What the kernel, or a tool that talks to it, would not do.
///
/// Callers ask it questions rather than match on it: [`is_gone`](Self::is_gone), [`is_missing_module`](Self::is_missing_module),
/// [`is_denied`](Self::is_denied), [`leaves_state_unknown`](Self::leaves_state_unknown).
#[derive(Debug)]
pub struct Error {
    context: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    /// The kernel answered a message with this positive error number, and maybe said more about it. ipset's private numbers begin at
    /// 4096 and are nobody else's.
    Refused { errno: i32, ipset: bool, message: Option<String> },
    /// The socket, or a file under /proc, failed.
    Io(io::Error),
    /// What came back makes no sense.
    Malformed(String),
    /// A part of the kernel is not there.
    MissingFeature(String),
    /// IPVS has no scheduler of this name.
    MissingScheduler(Scheduler),
    /// The process may not do what it has to.
    Denied(String),
    /// A program failed or is not there.
    Tool { message: String, missing: bool },
    /// The socket does not answer as sockets do.
    Stuck(String),
    /// A dump was interrupted by changes, or answers were lost, more often than worth trying again.
    Interrupted,
}

// Error numbers of the generic Linux ABI (include/uapi/asm-generic/errno*.h).
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const ENOBUFS: i32 = 105;
const EADDRNOTAVAIL: i32 = 99;
/// include/uapi/linux/netfilter/ipset/ip_set.h; the kernel says it for a set that is referred to.
const IPSET_ERR_BUSY: i32 = 4100;

impl Error {
    pub(crate) fn refused(context: impl Into<String>, errno: i32, message: Option<&str>) -> Self {
        let message = message.map(str::to_owned);
        Self { context: context.into(), cause: Cause::Refused { errno: errno.abs(), ipset: false, message } }
    }

    pub(crate) fn refused_by_ipset(context: impl Into<String>, errno: i32) -> Self {
        Self { context: context.into(), cause: Cause::Refused { errno: errno.abs(), ipset: true, message: None } }
    }

    pub(crate) fn io(context: impl Into<String>, error: io::Error) -> Self {
        Self { context: context.into(), cause: Cause::Io(error) }
    }

    pub(crate) fn malformed(context: impl Into<String>, what: impl fmt::Display) -> Self {
        Self { context: context.into(), cause: Cause::Malformed(what.to_string()) }
    }

    pub(crate) fn missing_feature(context: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::MissingFeature(remedy.into()) }
    }

    pub(crate) fn missing_scheduler(scheduler: Scheduler) -> Self {
        Self { context: format!("the scheduler {scheduler}"), cause: Cause::MissingScheduler(scheduler) }
    }

    pub(crate) fn denied(context: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::Denied(remedy.into()) }
    }

    pub(crate) fn tool(context: impl Into<String>, message: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::Tool { message: message.into(), missing: false } }
    }

    pub(crate) fn missing_tool(context: impl Into<String>, message: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::Tool { message: message.into(), missing: true } }
    }

    pub(crate) fn stuck(context: impl Into<String>, what: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::Stuck(what.into()) }
    }

    pub(crate) fn interrupted(context: impl Into<String>) -> Self {
        Self { context: context.into(), cause: Cause::Interrupted }
    }

    /// The kernel's error number, positive, if it refused a message or a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Refused { errno, .. } => Some(*errno),
            Cause::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the object the message was about does not exist, or no longer.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL))
    }

    /// Whether the object the message was to make exists already.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(EEXIST)
    }

    /// Whether a set is not destroyed because packet rules, or other sets, refer to it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self.cause, Cause::Refused { errno: IPSET_ERR_BUSY, ipset: true, .. })
    }

    /// Whether the process lacks a capability.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.cause, Cause::Denied(_)) || matches!(self.errno(), Some(EPERM | EACCES))
    }

    /// Whether the kernel, or the node, lacks a feature that nothing works without.
    #[must_use]
    pub const fn is_missing_module(&self) -> bool {
        matches!(self.cause, Cause::MissingFeature(_))
    }

    /// The scheduler that IPVS does not have, if that is what is wrong.
    #[must_use]
    pub const fn lacking_scheduler(&self) -> Option<Scheduler> {
        match self.cause {
            Cause::MissingScheduler(scheduler) => Some(scheduler),
            _ => None,
        }
    }

    /// Whether a program that is needed is not installed.
    #[must_use]
    pub const fn is_missing_tool(&self) -> bool {
        matches!(self.cause, Cause::Tool { missing: true, .. })
    }

    /// Whether the way to the kernel broke down, so that nothing is known of what else went the same way.
    pub(crate) const fn is_breakdown(&self) -> bool {
        matches!(self.cause, Cause::Io(_) | Cause::Malformed(_) | Cause::Stuck(_) | Cause::Interrupted)
    }

    /// Whether it takes another socket to go on.
    pub(crate) const fn is_stuck(&self) -> bool {
        matches!(self.cause, Cause::Stuck(_))
    }

    /// Whether the same request may well succeed when it is made again at once.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_breakdown() || matches!(self.errno(), Some(EINTR | EAGAIN | EBUSY | ENOBUFS))
    }

    /// Whether it is not known what the kernel did: answers were lost or could not be read, and only an observation can tell.
    #[must_use]
    pub fn leaves_state_unknown(&self) -> bool {
        match &self.cause {
            Cause::Refused { .. } => self.already_exists() || self.is_gone() || self.errno() == Some(ENOBUFS),
            Cause::Io(_) | Cause::Malformed(_) | Cause::Stuck(_) | Cause::Interrupted => true,
            Cause::MissingFeature(_) | Cause::MissingScheduler(_) | Cause::Denied(_) | Cause::Tool { .. } => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.context)?;
        match &self.cause {
            Cause::Refused { errno, ipset: true, .. } => match wire::ipset::error_text(*errno) {
                Some(text) => write!(f, "the kernel refused: {text}"),
                None => write!(f, "the kernel refused: {}", io::Error::from_raw_os_error(*errno)),
            },
            Cause::Refused { errno, message, .. } => {
                write!(f, "the kernel refused: {}", io::Error::from_raw_os_error(*errno))?;
                message.iter().try_for_each(|message| write!(f, " ({message})"))
            }
            Cause::Io(error) => error.fmt(f),
            Cause::Malformed(what) => write!(f, "the kernel's answer makes no sense: {what}"),
            Cause::MissingFeature(message) | Cause::Denied(message) | Cause::Tool { message, .. } | Cause::Stuck(message) => {
                f.write_str(message)
            }
            Cause::MissingScheduler(name) => {
                write!(f, "this kernel has none of that name: load its module with `modprobe ip_vs_{name}`, or choose another")
            }
            Cause::Interrupted => f.write_str("changes kept interrupting the reading of the kernel's state"),
        }
    }
}

impl std::error::Error for Error {}
