//! The name of an IPVS scheduler.

use std::fmt;
use std::str::FromStr;

use crate::Flags;

/// `IP_VS_SCHEDNAME_MAXLEN` (include/uapi/linux/ip_vs.h) is 16 with the terminating NUL.
const MAX: usize = 15;

/// The name of an IPVS scheduler: `rr`, `wlc`, `mh`, or whatever else the kernel has a module for.
///
/// Which names exist is the kernel's to say, so this type only rules out what cannot be a name at all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler {
    // NUL-padded; the unused tail is always zero, so derived comparisons are comparisons of names.
    name: [u8; MAX],
}

impl Scheduler {
    /// Round robin, the default.
    pub const RR: Self = Self { name: *b"rr\0\0\0\0\0\0\0\0\0\0\0\0\0" };

    /// The scheduler called `name`.
    ///
    /// # Errors
    /// When `name` is empty, longer than 15 bytes, or holds anything but ASCII letters, digits, `_` and `-`.
    pub fn new(name: &str) -> Result<Self, InvalidScheduler> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > MAX || !name.bytes().all(valid) {
            return Err(InvalidScheduler { name: name.into() });
        }
        let mut padded = [0; MAX];
        padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self { name: padded })
    }

    /// Whether it has connections go nowhere: a kernel takes `none` for a virtual server that schedules nothing
    /// (`ip_vs_add_service`, net/netfilter/ipvs/ip_vs_ctl.c).
    #[must_use]
    pub fn is_none(self) -> bool {
        self.as_str() == "none"
    }

    /// Whether it finds the server of a connection by a hash, so that nodes with the same list of servers choose alike.
    #[must_use]
    pub fn is_hashing(self) -> bool {
        matches!(self.as_str(), "dh" | "mh" | "sh")
    }

    /// Whether [`Flags::SCHED_1`] and [`Flags::SCHED_2`] mean something to it.
    #[must_use]
    pub fn has_flags(self) -> bool {
        matches!(self.as_str(), "mh" | "sh")
    }

    /// The flags it has unless something else is asked for.
    ///
    /// The schedulers that pick a server by the client need two things said. `SCHED_1` lets them take another server when the picked
    /// one drains; without it those clients are refused for as long as it does (net/netfilter/ipvs/ip_vs_mh.c, ip_vs_sh.c). `SCHED_2`
    /// has `mh` hash the port as well, as kube-proxy has it, so that clients behind one address are spread too.
    #[must_use]
    pub fn default_flags(self) -> Flags {
        match self.as_str() {
            "mh" => Flags::SCHED_1.with(Flags::SCHED_2),
            "sh" => Flags::SCHED_1,
            _ => Flags::NONE,
        }
    }

    /// The name, as ipvsadm's `-s` takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(MAX);
        // Only ASCII gets past `new`, so this never falls back.
        self.name.get(..len).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
    }
}

impl FromStr for Scheduler {
    type Err = InvalidScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scheduler({self})")
    }
}

/// A text that cannot be the name of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidScheduler {
    name: String,
}

impl fmt::Display for InvalidScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} cannot be an IPVS scheduler: a name has 1 to {MAX} ASCII letters, digits, '_' or '-', such as rr, wlc or mh",
            self.name
        )
    }
}

impl std::error::Error for InvalidScheduler {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_order_as_text() {
        for name in ["rr", "wlc", "mh", "fifteen-letters"] {
            assert_eq!(Scheduler::new(name).unwrap().as_str(), name);
        }
        assert_eq!(Scheduler::new("rr").unwrap(), Scheduler::RR);
        assert!(Scheduler::new("lc").unwrap() < Scheduler::RR);
    }

    #[test]
    fn what_the_kernel_has_no_room_for_is_refused() {
        for name in ["", "sixteen-letters-", "r r", "rr\0", "rrä"] {
            assert!(Scheduler::new(name).unwrap_err().to_string().contains("cannot be an IPVS scheduler"), "{name:?}");
        }
    }
}
