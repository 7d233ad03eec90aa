//! What can be told before the first message is sent.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use model::Family;

use crate::Error;

/// A capability that something here does not work without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_NET_ADMIN`: to change the network.
    NetAdmin,
    /// `CAP_NET_RAW`: iptables asks the kernel about sets through a raw socket, in either flavour, to load a rule that asks one and to print it
    /// (`get_version`, extensions/libxt_set.h); and the legacy flavour about tables. Without it none of our rules can be read or installed.
    NetRaw,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::NetAdmin, Self::NetRaw];

    /// Its name, without `CAP_`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "NET_ADMIN",
            Self::NetRaw => "NET_RAW",
        }
    }

    /// Its bit (include/uapi/linux/capability.h).
    const fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
        }
    }

    /// Whether the process has it.
    ///
    /// # Errors
    /// When it does not; the error says what to do.
    pub fn check(self) -> Result<(), Error> {
        let name = self.name();
        match fs::read_to_string("/proc/self/status").ok().as_deref().and_then(effective_capabilities) {
            Some(effective) if effective >> self.bit() & 1 == 0 => Err(Error::denied(
                format!("CAP_{name}"),
                format!("this process lacks the capability: run as root, or add {name} to the container's capabilities"),
            )),
            // Without /proc the kernel's own answers have to do.
            _ => Ok(()),
        }
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The address families that this kernel has, be they switched off in this network namespace: what was made before is still there.
#[must_use]
pub fn known_families() -> BTreeSet<Family> {
    let ipv6 = Path::new("/proc/net/if_inet6").exists();
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || ipv6).collect()
}

/// The address families that this network namespace has: IPv4, and IPv6 unless the kernel was built or started without it, or it is
/// switched off.
#[must_use]
pub fn supported_families() -> BTreeSet<Family> {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|value| value.trim() == "1");
    let ipv6 = Path::new("/proc/net/if_inet6").exists() && !disabled;
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || ipv6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tkube-ipvs\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(1 << Capability::NetAdmin.bit()));
        assert_eq!(effective_capabilities("Name:\tkube-ipvs\n"), None);
        assert_eq!(effective_capabilities("CapEff:\tlots\n"), None);
    }
}
