//! The kernel modules that service proxying is made of.
//!
//! A kernel loads them by itself when they are first asked for, unless that is switched off (`kernel.modules_disabled`, no modprobe on the
//! host). Then somebody who may has to load them beforehand.

use std::fs;
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

/// Whether a kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is in the kernel, be it built in.
    Loaded,
    /// It can be loaded, and is when it is first asked for.
    Loadable,
    /// The kernel's list of modules does not have it.
    Missing,
    /// There is no list to look it up in.
    Unknown,
}

/// Whether the kernel `release` has the module called `name`, by the lists of modules below the host's `root`. Loads nothing.
#[must_use]
pub fn presence_on(root: &Path, name: &str, release: &str) -> Presence {
    presence_among(Path::new("/sys/module"), &root.join("lib/modules").join(release), name)
}

fn presence_among(loaded: &Path, lists: &Path, name: &str) -> Presence {
    if loaded.join(name).exists() {
        return Presence::Loaded;
    }
    // `kernel/net/netfilter/ipvs/ip_vs.ko.xz: …`; file names have dashes where names have underscores.
    let has = |list: &str| {
        let names = |line: &str| {
            let file = line.split(':').next()?.rsplit('/').next()?;
            Some(file.split(".ko").next()?.replace('-', "_") == name)
        };
        fs::read_to_string(lists.join(list)).map(|text| text.lines().any(|line| names(line) == Some(true)))
    };
    match (has("modules.builtin"), has("modules.dep")) {
        (Ok(true), _) => Presence::Loaded,
        (_, Ok(true)) => Presence::Loadable,
        (Ok(false), Ok(false)) => Presence::Missing,
        _ => Presence::Unknown,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_looked_up_by_its_name_with_underscores() {
        let root = std::env::temp_dir().join(format!("kube-ipvs-modules-{}", std::process::id()));
        let lists = root.join("lib/modules/6.1.0");
        fs::create_dir_all(&lists).unwrap();
        let loaded = root.join("sys/module");
        fs::create_dir_all(loaded.join("ip_vs")).unwrap();
        let presence = |name| presence_among(&loaded, &lists, name);
        assert_eq!(presence("dummy"), Presence::Unknown);
        fs::write(lists.join("modules.builtin"), "kernel/net/nf-conntrack.ko\n").unwrap();
        fs::write(lists.join("modules.dep"), "kernel/drivers/net/dummy.ko.xz:\nkernel/a/ip_set_hash_ip.ko: kernel/a/ip_set.ko\n")
            .unwrap();
        assert_eq!(presence("ip_vs"), Presence::Loaded);
        assert_eq!(presence("nf_conntrack"), Presence::Loaded);
        assert_eq!(presence("dummy"), Presence::Loadable);
        assert_eq!(presence("ip_set"), Presence::Missing, "what another depends on is named on its own line");
        fs::remove_dir_all(root).unwrap();
    }
}
