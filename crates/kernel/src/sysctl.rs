//! The sysctls that IPVS service proxying depends on.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A sysctl, the value it needs, and what does not work without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name with dots, as sysctl(8) has it.
    pub name: &'static str,
    /// The value to set.
    pub value: Cow<'static, str>,
    /// What happens when it is not set.
    pub effect: &'static str,
    /// Whether a kernel without it is fine as it is.
    pub optional: bool,
    /// Whether more than the value, which is a number then, is as good.
    pub or_more: bool,
}

/// What the agent sets at start. See Documentation/networking/ipvs-sysctl.rst in the kernel for those under `net.ipv4.vs`.
///
/// `conn_reuse_mode` is not optional by kernel version but by presence: kernels that have dropped or never had it do the right thing or
/// cannot do it.
pub static NEEDED: [Sysctl; 5] = [
    Sysctl {
        name: "net.ipv4.vs.conntrack",
        value: Cow::Borrowed("1"),
        effect: "answers to masqueraded clients (hairpin, node ports, callers from outside the cluster) are lost",
        optional: false,
        or_more: false,
    },
    Sysctl {
        name: "net.ipv4.vs.expire_nodest_conn",
        value: Cow::Borrowed("1"),
        effect: "clients of a removed real server hang instead of being reset",
        optional: false,
        or_more: false,
    },
    Sysctl {
        name: "net.ipv4.vs.expire_quiescent_template",
        value: Cow::Borrowed("1"),
        effect: "clients with session affinity stay with a real server that is going away",
        optional: false,
        or_more: false,
    },
    Sysctl {
        name: "net.ipv4.vs.conn_reuse_mode",
        value: Cow::Borrowed("1"),
        effect: "clients that reuse a source port are sent to a real server that is gone",
        optional: true,
        or_more: false,
    },
    Sysctl {
        name: "net.ipv4.ip_forward",
        value: Cow::Borrowed("1"),
        effect: "connections that pass through this node to pods, and their answers, are not forwarded",
        optional: false,
        or_more: false,
    },
];

/// What the agent looks at but leaves to the administrator: switching on IPv6 forwarding makes Linux ignore router advertisements,
/// which may cost a node its default route.
pub static CHECKED_IPV6: Sysctl = Sysctl {
    name: "net.ipv6.conf.all.forwarding",
    value: Cow::Borrowed("1"),
    effect: "IPv6 connections that pass through this node to pods are not forwarded; set it where router advertisements are not needed",
    optional: true,
    or_more: false,
};

/// How it went with one sysctl.
#[derive(Debug)]
pub enum Outcome {
    /// It had the value.
    AsNeeded,
    /// It was set; it had another value.
    Set {
        /// The value it had.
        from: String,
    },
    /// This kernel does not have it.
    Absent,
    /// It has another value, and could not or was not to be set.
    Wrong {
        /// The value it has.
        is: String,
        /// Why it was not set, if that was tried.
        error: Option<io::Error>,
    },
}

impl Sysctl {
    /// Sets it unless it has the value already.
    #[must_use]
    pub fn ensure(&self) -> Outcome {
        self.ensure_below(Path::new("/proc/sys"))
    }

    /// Whether anybody may set it: some belong to the host, and can only be read in another network namespace.
    #[must_use]
    pub fn is_settable(&self) -> bool {
        let path = self.path(Path::new("/proc/sys"));
        fs::metadata(path).is_ok_and(|metadata| !metadata.permissions().readonly())
    }

    /// Looks whether it has the value.
    #[must_use]
    pub fn check(&self) -> Outcome {
        match fs::read_to_string(self.path(Path::new("/proc/sys"))) {
            Err(_) => Outcome::Absent,
            Ok(is) if self.is_met_by(is.trim()) => Outcome::AsNeeded,
            Ok(is) => Outcome::Wrong { is: is.trim().to_owned(), error: None },
        }
    }

    fn ensure_below(&self, root: &Path) -> Outcome {
        let path = self.path(root);
        let is = match fs::read_to_string(&path) {
            Err(_) => return Outcome::Absent,
            Ok(is) => is.trim().to_owned(),
        };
        if self.is_met_by(&is) {
            return Outcome::AsNeeded;
        }
        match fs::write(&path, self.value.as_bytes()) {
            Ok(()) => Outcome::Set { from: is },
            Err(error) => Outcome::Wrong { is, error: Some(error) },
        }
    }

    fn is_met_by(&self, is: &str) -> bool {
        let number = |text: &str| text.parse::<u64>().ok();
        is == self.value || (self.or_more && number(is).zip(number(&self.value)).is_some_and(|(is, least)| is >= least))
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.join(self.name.replace('.', "/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FORWARD: Sysctl = Sysctl {
        name: "net.ipv4.ip_forward",
        value: Cow::Borrowed("1"),
        effect: "nothing is forwarded",
        optional: false,
        or_more: false,
    };

    fn tree(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kube-ipvs-sysctl-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("net/ipv4")).unwrap();
        root
    }

    #[test]
    fn it_is_set_once_and_then_left_alone() {
        let root = tree("set");
        fs::write(root.join("net/ipv4/ip_forward"), "0\n").unwrap();
        assert!(matches!(FORWARD.ensure_below(&root), Outcome::Set { from } if from == "0"));
        assert!(matches!(FORWARD.ensure_below(&root), Outcome::AsNeeded));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_is_a_least_is_raised_and_never_lowered() {
        let root = tree("least");
        let sysctl = Sysctl { value: "1000".into(), or_more: true, ..FORWARD.clone() };
        for (is, then) in [("999\n", "1000"), ("1000\n", "1000\n"), ("2000\n", "2000\n")] {
            fs::write(root.join("net/ipv4/ip_forward"), is).unwrap();
            let _ = sysctl.ensure_below(&root);
            assert_eq!(fs::read_to_string(root.join("net/ipv4/ip_forward")).unwrap(), then);
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn l3_a_kernel_without_it_is_told_apart_from_a_refusal() {
        let root = tree("absent");
        assert!(matches!(FORWARD.ensure_below(&root), Outcome::Absent));
        fs::create_dir(root.join("net/ipv4/ip_forward")).unwrap();
        assert!(matches!(FORWARD.ensure_below(&root), Outcome::Absent), "unreadable counts as absent");
        fs::remove_dir_all(root).unwrap();
    }
}
