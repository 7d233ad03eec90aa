//! What kube-router's service proxy has left. Its network policies and routes are no proxy's business, and have other names.

use std::collections::BTreeSet;

use desired::Config;
use kernel::{Error, Ipset, Vips};
use model::Family;

use super::finding::Finding;

/// A device for VIPs.
const DEVICE: &str = "kube-dummy-if";
/// The sets that its rules ask, of this version and of those before; for IPv6 they begin with `inet6:`.
const SETS: [&str; 5] =
    ["kube-router-svip", "kube-router-svip-prt", "kube-router-local-ips", "kube-router-service-ips", "kube-router-ipvs-services"];

pub(super) fn inspect(config: &Config) -> Finding {
    match find(&config.families) {
        Ok(found) => judge(&found),
        Err(error) => Finding::error(CHECK, error),
    }
}

const CHECK: &str = "leftovers of kube-router";

fn find(families: &BTreeSet<Family>) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    if Vips::open()?.links()?.iter().any(|link| link.name == DEVICE) {
        found.push(format!("device {DEVICE}"));
    }
    let mut ipset = Ipset::open()?;
    for family in families {
        for set in SETS {
            let name = match family {
                Family::V4 => set.to_owned(),
                Family::V6 => format!("inet6:{set}"),
            };
            if ipset.exists(&name)? {
                found.push(format!("set {name}"));
            }
        }
    }
    Ok(found)
}

fn judge(found: &[String]) -> Finding {
    if found.is_empty() {
        return Finding::ok(CHECK, "there are none");
    }
    Finding::warn(
        CHECK,
        format_args!(
            "its service proxy has left {}; with its chain KUBE-ROUTER-SERVICES, what it did not serve is refused",
            found.join(", ")
        ),
        "stop kube-router, or start it with --run-service-proxy=false, and run `kube-router --cleanup-config` once",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        assert_eq!(judge(&[]), Finding::ok(CHECK, "there are none"));
        let said = judge(&["device kube-dummy-if".to_owned(), "set inet6:kube-router-svip".to_owned()]).to_string();
        assert!(
            said.starts_with("warn  leftovers of kube-router: its service proxy has left device kube-dummy-if, set inet6:"),
            "{said}"
        );
    }

    #[test]
    fn names_are_such_as_the_kernel_takes() {
        // IPSET_MAXNAMELEN is 32 with its NUL.
        assert!(SETS.iter().all(|set| set.len() + "inet6:".len() <= 31));
    }
}
