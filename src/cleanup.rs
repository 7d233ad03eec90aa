//! `kube-ipvs cleanup`: takes away what an agent has left on the node, and nothing else.
//!
//! The order is that of a plan towards nothing: VIPs are unbound first, so that nobody comes any more, then virtual servers go, and only
//! then packet rules and what they ask. Traffic is masqueraded for as long as there is something that forwards it, and where a step
//! fails, what others need stays. Whoever runs it again goes on from there.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::{Flavour, Kernel, Leftovers, Mode, Report};
use model::{DEVICE, Rules, State, Via, VirtualServerKey};
use plan::{Ownership, Plan, RulesChange, Step, plan};

use crate::cli::Cleanup;
use crate::exit::{Ending, Exit, kernel_ending};

/// What to do about what kube-proxy in IPVS mode has on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KubeProxy {
    /// To have found none: the two have sets and virtual servers in common.
    Absent,
    /// To remove it as well.
    Remove,
    /// To leave it what it has taken over.
    HandOver,
}

/// How long to wait for sets to be let go, and how often to look: five seconds in all.
const LET_GO: Duration = Duration::from_millis(100);
const LET_GO_ATTEMPTS: u32 = 50;

/// What was removed.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    virtual_servers: usize,
    vips: usize,
    rules: bool,
    sets: usize,
    device: bool,
}

/// Cleans up and says what was removed.
///
/// # Errors
/// When an agent or kube-proxy is in charge, or the kernel cannot be read or refuses.
pub(crate) fn run(arguments: &Cleanup) -> anyhow::Result<()> {
    refuse_beside_agent(&arguments.control_socket, arguments.force)?;
    let kube_proxy = match (arguments.kube_proxy, arguments.hand_over) {
        (true, _) => KubeProxy::Remove,
        (false, true) => KubeProxy::HandOver,
        (false, false) => KubeProxy::Absent,
    };
    let removed = clean_up(&arguments.exclude_cidrs, kube_proxy)?;
    crate::print_line(&removed)
}

fn refuse_beside_agent(socket: &Path, force: bool) -> anyhow::Result<()> {
    if force || socket.as_os_str().is_empty() || UnixStream::connect(socket).is_err() {
        return Ok(());
    }
    let sentence = format!(
        "an agent is running (it answers on {}) and would put back what is removed: stop it first, or give --force",
        socket.display()
    );
    Err(Ending::error(Exit::Failure, sentence))
}

/// Removes what is ours, but for virtual servers in the networks `excluded`.
///
/// # Errors
/// When kube-proxy is in the way, or the kernel cannot be read or refuses.
pub(crate) fn clean_up(excluded: &[IpNetwork], kube_proxy: KubeProxy) -> anyhow::Result<Removed> {
    let ending = |error: kernel::Error| kernel_ending(&error);
    let families = kernel::known_families();
    let mut kernel = Kernel::open(&families).map_err(ending)?;
    let mut leftovers = kernel.find_kube_proxy().map_err(ending)?;
    check(kube_proxy, leftovers.mode())?;
    let observed = kernel.observe().map_err(ending)?;

    let mut removed = Removed::default();
    let traffic = traffic(&observed, &leftovers, kube_proxy, excluded);
    carry_out(&mut kernel, &traffic)?;
    for step in traffic.steps() {
        match step {
            Step::RemoveVirtualServer(_) => removed.virtual_servers += 1,
            Step::UnbindVip(_) => removed.vips += 1,
            _ => {}
        }
    }
    // Sets are in use by rules of whichever flavour.
    for flavour in Flavour::installed().map_err(ending)? {
        for family in &families {
            let rules = flavour.observe(*family).map_err(ending)?;
            if let Some(change) = RulesChange::between(&Rules::default(), &rules) {
                flavour.apply(*family, &change).map_err(ending)?;
                removed.rules = true;
            }
        }
    }
    if kube_proxy == KubeProxy::Remove && !leftovers.is_empty() {
        until_let_go(|| kernel.remove_kube_proxy(&mut leftovers)).map_err(ending)?;
        removed.rules = true;
    }
    kernel.remove_remains().map_err(ending)?;
    removed.sets = remove_sets(&mut kernel, kube_proxy)?;
    if kube_proxy != KubeProxy::HandOver {
        removed.device = kernel.remove_device().map_err(ending)?;
    }
    Ok(removed)
}

fn check(kube_proxy: KubeProxy, mode: Mode) -> anyhow::Result<()> {
    let sentence = match (kube_proxy, mode) {
        (KubeProxy::Absent, Mode::Ipvs) => {
            "kube-proxy in IPVS mode has packet rules on this node, which use the same sets: --hand-over leaves what it has taken over, \
             --kube-proxy removes all that is its own as well"
        }
        (KubeProxy::HandOver, Mode::None | Mode::Iptables) => {
            "--hand-over: kube-proxy in IPVS mode has no packet rules on this node: start it first, and wait until it is healthy"
        }
        _ => return Ok(()),
    };
    Err(Ending::error(Exit::Failure, sentence))
}

/// What ends traffic: everything but the packet rules and the sets that they ask.
fn traffic(observed: &State, leftovers: &Leftovers, kube_proxy: KubeProxy, excluded: &[IpNetwork]) -> Plan {
    let mut observed = State { rules: Default::default(), ..observed.clone() };
    let mut staying = State::default();
    match kube_proxy {
        KubeProxy::Absent => {}
        KubeProxy::Remove => observed.own(leftovers.node_ports(&observed.clone())),
        KubeProxy::HandOver => {
            let by_address = |key: &VirtualServerKey| matches!(key, VirtualServerKey::Address { .. });
            staying.virtual_servers.clone_from(&observed.virtual_servers);
            staying.virtual_servers.retain(|key, _| by_address(key));
            staying.vips.clone_from(&observed.vips);
            staying.vips.retain(|vip, _| vip.via == Via::Address);
        }
    }
    staying.sets.clone_from(&observed.sets);
    plan(&staying, &observed, &Ownership::Listed { excluded })
}

/// What ends the sets, when no rule asks them any more.
fn sets(observed: State, kube_proxy: KubeProxy) -> Plan {
    let observed = State { sets: observed.sets, ..State::default() };
    let mut staying = State::default();
    if kube_proxy == KubeProxy::HandOver {
        staying.sets.clone_from(&observed.sets);
        staying.sets.retain(|set, _| set.role.is_kube_proxys());
    }
    plan(&staying, &observed, &Ownership::Scope)
}

/// Removes the sets that are to go, and returns how many.
fn remove_sets(kernel: &mut Kernel, kube_proxy: KubeProxy) -> anyhow::Result<usize> {
    let mut removed = 0;
    let report = until_let_go(|| {
        // Anew each time, because of those that are gone by now.
        let sets = sets(kernel.observe()?, kube_proxy);
        let mut report = kernel.apply(&sets);
        removed += sets.steps().filter(|step| matches!(step, Step::DestroySet(_))).count().saturating_sub(report.undone());
        match report.failures.pop() {
            Some(failure) if failure.error.is_in_use() => Err(failure.error),
            failure => {
                report.failures.extend(failure);
                Ok(report)
            }
        }
    });
    check_report(report.map_err(|error| kernel_ending(&error))?)?;
    Ok(removed)
}

/// Does what a set in use may keep from being done until that is let go: nf_tables does so some time after the rules that asked it are
/// gone.
fn until_let_go<T>(mut work: impl FnMut() -> Result<T, kernel::Error>) -> Result<T, kernel::Error> {
    let mut waits = 0..LET_GO_ATTEMPTS;
    loop {
        match work() {
            Err(error) if error.is_in_use() && waits.next().is_some() => thread::sleep(LET_GO),
            done => return done,
        }
    }
}

fn carry_out(kernel: &mut Kernel, plan: &Plan) -> anyhow::Result<()> {
    check_report(kernel.apply(plan))
}

fn check_report(Report { failures, .. }: Report) -> anyhow::Result<()> {
    match failures.split_first() {
        None => Ok(()),
        Some((first, others)) => {
            let others = if others.is_empty() { String::new() } else { format!(", and {} more like it", others.len()) };
            let sentence = format!("cannot {}: {}{others}; what depends on it stays: try again", first.step, first.error);
            Err(Ending::error(Exit::Failure, sentence))
        }
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { virtual_servers, vips, rules, sets, device } = self;
        let counts = [(virtual_servers, "virtual servers"), (vips, "VIPs"), (sets, "sets")];
        let mut parts: Vec<_> =
            counts.iter().filter(|(count, _)| **count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        parts.extend(rules.then(|| "packet rules".to_owned()));
        parts.extend(device.then(|| format!("the device {DEVICE}")));
        match parts.as_slice() {
            [] => f.write_str("there is nothing to remove"),
            parts => write!(f, "removed {}", parts.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k3_what_was_removed_is_said_and_so_is_nothing() {
        assert_eq!(Removed::default().to_string(), "there is nothing to remove");
        let removed = Removed { virtual_servers: 2, vips: 1, rules: true, sets: 30, device: true };
        assert_eq!(removed.to_string(), "removed 2 virtual servers, 1 VIPs, 30 sets, packet rules, the device kube-ipvs0");
    }

    #[test]
    fn k2_what_is_shared_with_kube_proxy_is_not_removed_by_the_way() {
        for (kube_proxy, mode, said) in [
            (KubeProxy::Absent, Mode::None, None),
            // Its chains have other names than ours, and it has no sets.
            (KubeProxy::Absent, Mode::Iptables, None),
            (KubeProxy::Absent, Mode::Ipvs, Some("--hand-over leaves")),
            (KubeProxy::Remove, Mode::Ipvs, None),
            (KubeProxy::Remove, Mode::None, None),
            (KubeProxy::HandOver, Mode::Ipvs, None),
            (KubeProxy::HandOver, Mode::None, Some("start it first")),
            (KubeProxy::HandOver, Mode::Iptables, Some("start it first")),
        ] {
            let outcome = check(kube_proxy, mode).map_err(|error| error.to_string());
            match said {
                None => assert!(outcome.is_ok(), "{kube_proxy:?} {mode:?}: {outcome:?}"),
                Some(said) => assert!(outcome.unwrap_err().contains(said), "{kube_proxy:?} {mode:?}"),
            }
        }
    }
}
