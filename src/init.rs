//! `kube-ipvs init`: the part of the agent's work that takes more than `CAP_NET_ADMIN` and `CAP_NET_RAW`, done once and by itself.
//!
//! Modules take `CAP_SYS_MODULE`, and `/proc/sys` is read-only in a container that is not privileged. What is done here, `run` finds done.

use std::path::Path;

use kernel::modules;
use kernel::sysctl::{self, Outcome};

use crate::cli::Run;
use crate::exit::Exit;
use crate::{node_sysctls, print_line, sysctls};

/// Is there as soon as the kernel has IPVS, with the sysctls that it has.
const IPVS: &str = "/proc/sys/net/ipv4/vs";

/// Loads modules and sets sysctls; goes through all of them, whatever fails.
pub(crate) fn run(arguments: &Run) -> anyhow::Result<Option<Exit>> {
    for modules::Module { name, effect } in &modules::NEEDED {
        match modules::load(name) {
            Ok(()) => print_line(&format_args!("module {name} is there"))?,
            Err(error) => print_line(&format_args!("module {name} cannot be loaded; unless it is built in, {effect} ({error})"))?,
        }
    }
    let mut denied = false;
    for sysctl in &sysctl::NEEDED {
        let outcome = sysctl.ensure();
        print_line(&sysctls::sentence(sysctl, &outcome))?;
        denied |= matches!(outcome, Outcome::Wrong { .. });
    }
    // The agent works without these.
    for sysctl in node_sysctls::of(&arguments.kube_proxy) {
        let outcome = sysctl.ensure();
        print_line(&sysctls::sentence(&sysctl, &outcome))?;
    }
    if !Path::new(IPVS).exists() {
        print_line(&"this kernel has no IPVS: load the module with `modprobe ip_vs`, or install a kernel built with CONFIG_IP_VS")?;
        return Ok(Some(Exit::MissingFeature));
    }
    Ok(denied.then_some(Exit::Denied))
}
