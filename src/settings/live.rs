//! What can change while the agent runs: the file is read again when it changes, and what it says is put in force where that can be done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::merge::{Effective, Given};

/// How often the file is looked at. ConfigMaps take about a minute to get to a node.
const INTERVAL: Duration = Duration::from_secs(2);

/// The flags that take effect at once. What others would need is made once: watches, sockets, threads, what the kernel holds by another name.
pub(super) const ALL: &[&str] = &[
    "allow-external-cidrs",
    "audit-period",
    "bridge-interface",
    "check-period",
    "cluster-cidr",
    "conntrack-max-per-core",
    "conntrack-min",
    "conntrack-tcp-be-liberal",
    "conntrack-tcp-timeout-close-wait",
    "conntrack-tcp-timeout-established",
    "conntrack-udp-timeout",
    "conntrack-udp-timeout-stream",
    "detect-local-mode",
    "drain-timeout",
    "exclude-cidrs",
    "feature-gates",
    "interface-name-prefix",
    "ipvs-strict-arp",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "load-balancer-exclude-cidrs",
    "log-level",
    "masquerade-all",
    "masquerade-port-range",
    "max-audit-cpu",
    "max-staleness",
    "node-port-range",
    "nodeport-addresses",
    "occupied-node-ports",
    "open-input",
    "scheduler",
    "source-ranges-per-family",
    "udp-drain-timeout",
    "v",
    "vanished-drain-timeout",
    "vip-ping",
];

/// Whether a flag takes effect at once.
pub(super) fn is_live(flag: &str) -> bool {
    ALL.contains(&flag)
}

/// What tells that a file may have changed: through symlinks, so that a ConfigMap's swap is seen.
type Stamp = Option<(u64, SystemTime)>;

/// Follows the file, if there is one, for as long as the process lives. `apply` gets what holds from now on; what it says is wrong is logged, and
/// what held before goes on to hold. `count` is told of each reading whether it could be used.
pub(crate) async fn follow(
    given: Given,
    mut holding: Rc<Effective>,
    mut apply: impl FnMut(&Rc<Effective>) -> anyhow::Result<()>,
    count: impl Fn(bool),
) {
    let Some(path) = holding.run.config.clone() else { return };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = stamp(&path);
    loop {
        ticks.tick().await;
        let stamp = stamp(&path);
        // One that is not there is about to be: editors and ConfigMaps replace files.
        if stamp == seen || stamp.is_none() {
            continue;
        }
        seen = stamp;
        let read = changed(&given, &holding, &path, &mut apply);
        count(read.is_ok());
        match read {
            Ok(Some(effective)) => holding = effective,
            Ok(None) => info!(path = %path.display(), "the configuration has been written anew, and says what it said before"),
            Err(error) => error!("the configuration has changed and cannot be used; what held before goes on to hold: {error:#}"),
        }
    }
}

fn changed(
    given: &Given,
    holding: &Effective,
    path: &Path,
    apply: &mut impl FnMut(&Rc<Effective>) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Rc<Effective>>> {
    let effective = Rc::new(given.effective()?);
    let changes = effective.changes_since(holding);
    if changes.is_empty() {
        return Ok(None);
    }
    effective.log();
    apply(&effective)?;
    let (live, later): (BTreeSet<_>, BTreeSet<_>) = changes.into_iter().partition(|flag| is_live(flag));
    let list = |flags: BTreeSet<String>| flags.into_iter().map(|flag| format!("--{flag}")).collect::<Vec<_>>().join(", ");
    let path = path.display();
    if !live.is_empty() {
        info!(%path, "the configuration has changed, and is in force: {}", list(live));
    }
    if !later.is_empty() {
        warn!(%path, "the configuration has changed; restart the agent for what this does not change while it runs: {}", list(later));
    }
    Ok(Some(effective))
}

fn stamp(path: &PathBuf) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((std::os::unix::fs::MetadataExt::ino(&metadata), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured::Log;
    use std::cell::RefCell;
    use std::fs;
    use tokio::task::{LocalSet, spawn_local};

    /// Only failures wait for it.
    const LONG: Duration = Duration::from_secs(30);

    async fn until(mut done: impl FnMut() -> bool) {
        let wait = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_changes_is_applied_and_one_that_is_wrong_is_not() {
        let body = |fields: &str| format!("apiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIPVSConfiguration\n{fields}\n");
        let directory = tempfile::tempdir().unwrap();
        // As a ConfigMap's volume has it: the name leads through a directory that is replaced.
        let version = |number: usize, fields: &str| {
            let versioned = directory.path().join(format!("..{number}"));
            fs::create_dir(&versioned).unwrap();
            fs::write(versioned.join("config.conf"), body(fields)).unwrap();
            let unready = directory.path().join("..unready");
            std::os::unix::fs::symlink(&versioned, &unready).unwrap();
            fs::rename(unready, directory.path().join("..data")).unwrap();
        };
        version(0, "drainTimeout: 1m");
        let path = directory.path().join("config.conf");
        std::os::unix::fs::symlink("..data/config.conf", &path).unwrap();
        let arguments = ["kube-ipvs", "run", "--vip-ping=refuse", "--config", path.to_str().unwrap()].map(Into::into);
        let given = Given::new(arguments.into(), "run");
        let holding = Rc::new(given.effective().unwrap());

        let log = Log::capture();
        let applied = Rc::new(RefCell::new(Vec::new()));
        let tasks = LocalSet::new();
        let (seen, counted) = (applied.clone(), Rc::new(RefCell::new(Vec::new())));
        let count = counted.clone();
        tasks
            .run_until(async {
                let apply = move |effective: &Rc<Effective>| {
                    seen.borrow_mut().push(effective.run.proxy.drain_timeout.as_secs());
                    Ok(())
                };
                let following = spawn_local(follow(given, holding, apply, move |success| count.borrow_mut().push(success)));
                tokio::time::sleep(Duration::from_millis(100)).await;
                version(1, "drainTimeout: 2m\nvipBinding: address");
                until(|| *applied.borrow() == [120]).await;
                version(2, "drainTimeout: never");
                until(|| !log.lines("cannot be used").is_empty()).await;
                // The flag counts before the file, so this changes nothing.
                version(3, "drainTimeout: 2m\nvipBinding: address\nvipPing: answer");
                tokio::time::sleep(INTERVAL + Duration::from_millis(200)).await;
                version(4, "drainTimeout: 3m\nvipBinding: address");
                until(|| *applied.borrow() == [120, 180]).await;
                following.abort();
            })
            .await;
        assert!(log.lines("cannot be used")[0].contains("line 3: drainTimeout: is \"never\""), "{:?}", log.lines(""));
        assert_eq!(*counted.borrow(), [true, false, true, true]);
        assert_eq!(log.lines("says what it said before").len(), 1);
        assert_eq!(log.lines("is in force: --drain-timeout").len(), 2);
        assert_eq!(log.lines("restart the agent").len(), 1);
        assert!(log.lines("restart the agent")[0].contains("--vip-binding"));
    }
}
