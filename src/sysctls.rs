//! What became of the sysctls, in sentences.

use std::io::{Error, ErrorKind};

use kernel::sysctl::{Outcome, Sysctl};
use tracing::{debug, info, warn};

/// What became of one.
pub(crate) fn sentence(sysctl: &Sysctl, outcome: &Outcome) -> String {
    let Sysctl { name, value, effect, optional, .. } = sysctl;
    match outcome {
        Outcome::AsNeeded => format!("{name} is {value}"),
        Outcome::Set { from } => format!("set {name} from {from} to {value}"),
        Outcome::Absent if *optional => format!("this kernel has no {name}"),
        Outcome::Absent => format!("this kernel has no {name}: {effect}"),
        Outcome::Wrong { is, error: Some(error) } => {
            format!("cannot set {name} from {is} to {value} ({}): {effect}", reason(error))
        }
        Outcome::Wrong { is, error: None } => format!("{name} is {is}, not {value}: {effect}"),
    }
}

/// Logs what became of one, by how much it matters.
pub(crate) fn report(sysctl: &Sysctl, outcome: &Outcome) {
    let sentence = sentence(sysctl, outcome);
    match outcome {
        Outcome::AsNeeded => debug!("{sentence}"),
        Outcome::Absent if sysctl.optional => debug!("{sentence}"),
        Outcome::Set { .. } => info!("{sentence}"),
        Outcome::Absent | Outcome::Wrong { .. } => warn!("{sentence}"),
    }
}

fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => {
            "/proc/sys is read-only here; run `kube-ipvs init` in a privileged container, or have the host set it".to_owned()
        }
        ErrorKind::PermissionDenied => "this process may not; run `kube-ipvs init` as root, or have the host set it".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_that_cannot_be_set_says_what_to_do_and_what_does_not_work() {
        let forward = Sysctl {
            name: "net.ipv4.ip_forward",
            value: "1".into(),
            effect: "nothing is forwarded",
            optional: false,
            or_more: false,
        };
        let wrong = |error| sentence(&forward, &Outcome::Wrong { is: "0".to_owned(), error: Some(error) });
        assert_eq!(
            wrong(ErrorKind::ReadOnlyFilesystem.into()),
            "cannot set net.ipv4.ip_forward from 0 to 1 (/proc/sys is read-only here; run `kube-ipvs init` in a privileged container, or have \
             the host set it): nothing is forwarded"
        );
        assert!(wrong(ErrorKind::PermissionDenied.into()).contains("run `kube-ipvs init` as root"));
        assert_eq!(sentence(&forward, &Outcome::Absent), "this kernel has no net.ipv4.ip_forward: nothing is forwarded");
    }
}
