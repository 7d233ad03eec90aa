//! The kernel modules that service proxying is made of.
//!
//! A kernel loads them by itself when they are first asked for, unless that is switched off (`kernel.modules_disabled`, no modprobe on the
//! host). Then somebody who may has to load them beforehand.

use std::path::Path;

use crate::Error;
use crate::program::run;

/// A module, and what does not work without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: &'static str,
    /// What does not work where the kernel does not have it, be it as a module or built in.
    pub effect: &'static str,
}

/// What the agent needs whatever it is told.
pub const NEEDED: [Module; 6] = [
    Module { name: "ip_vs", effect: "there are no virtual servers" },
    Module { name: "ip_vs_rr", effect: "Services that ask for no other scheduler have none" },
    Module { name: "ip_set", effect: "packet rules cannot tell which addresses are Services" },
    Module { name: "dummy", effect: "there is no device to bind VIPs to" },
    Module { name: "nf_conntrack", effect: "nothing is masqueraded" },
    Module { name: "nf_conntrack_netlink", effect: "UDP clients may stay with real servers that are gone" },
];

/// Has the module called `name` loaded, unless it is there.
///
/// # Errors
/// When it is not there and cannot be loaded, with what modprobe says of it.
pub fn load(name: &str) -> Result<(), Error> {
    if Path::new("/sys/module").join(name).exists() {
        return Ok(());
    }
    // It knows what is built in, where the host's /lib/modules is to be seen.
    run("modprobe", &[name], None).map(drop)
}
