//! The same cluster from files instead of an API server.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use model::State;

use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::figures::{Figures, Goal};
use crate::floor::ensure_equal;
use crate::namespace::Namespace;
use crate::scenarios::{NO_AUDIT, megabytes, since};

/// How many objects are in a file.
const PER_FILE: usize = 1000;

/// Starts an agent on manifests in an empty namespace, and holds it to the state that the API server's objects led to.
pub(crate) fn measure(cluster: Cluster, cold: &State, figures: &Figures) -> Result<()> {
    let directory = Path::new("/tmp/manifests");
    write(cluster, directory)?;
    Namespace::new()?.run(|| {
        let mut agent = Agent::start_on(&["--manifests", &directory.to_string_lossy()], NO_AUDIT)?;
        agent.ready()?;
        figures.time("cold sync from manifests", "processor time", agent.cpu()?, None, Goal::None)?;
        figures.time(
            "cold sync from manifests",
            "from the start",
            since(agent.started, agent.last_success()?)?,
            None,
            Goal::None,
        )?;
        figures.number("cold sync from manifests", "resident memory", "MB", megabytes(agent.memory("VmRSS")?), Goal::None)?;
        let observed = kernel::Kernel::open(&kernel::supported_families())?.observe()?;
        ensure_equal(cold, &observed)?;
        agent.terminate()
    })?;
    fs::remove_dir_all(directory).context("cannot remove the manifests")
}

/// Lists as `kubectl get -o json` prints them.
fn write(cluster: Cluster, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let objects: Vec<_> = cluster.objects().collect();
    for (number, objects) in objects.chunks(PER_FILE).enumerate() {
        let items: Vec<_> = objects.iter().map(ToString::to_string).collect();
        let text = format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}}\n", items.join(","));
        let path = directory.join(format!("{number}.json"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
