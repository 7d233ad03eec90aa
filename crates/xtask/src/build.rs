//! Calls of cargo, and where its results are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A test program that cargo built, with what it needs to run outside of cargo.
pub(crate) struct TestProgram {
    pub(crate) package: String,
    pub(crate) executable: PathBuf,
    pub(crate) package_dir: PathBuf,
}

/// The repository's root: this package is two directories below it.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root()).args(arguments).stdin(Stdio::null());
    // What cargo has told this program of itself is not for what is built now: build scripts that ask for it would run again each time,
    // and all that depends on them be built again.
    for (name, _) in std::env::vars_os() {
        let is_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| name.starts_with(start));
        if name.to_str().is_some_and(is_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the agent and the programs of the test kit.
pub(crate) fn binaries() -> Result<()> {
    let status = cargo(&["build", "--quiet", "--package", "kube-ipvs", "--package", "testkit", "--package", "apiserver", "--bins"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the agent or the test programs do not build (see above)");
    }
    Ok(())
}

/// Builds the agent as it is released, and the program that measures it.
pub(crate) fn released() -> Result<()> {
    let status = cargo(&["build", "--quiet", "--release", "--package", "kube-ipvs", "--package", "bench", "--bins"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the agent or the program that measures it does not build (see above)");
    }
    Ok(())
}

/// Builds the agent as it is distributed; its path. No path of this machine goes into it, so that it does not depend on where it was built.
pub(crate) fn distributed() -> Result<PathBuf> {
    let root = root();
    let mut paths = vec![(root.clone(), "/kube-ipvs")];
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home.map(|home| home.join(".cargo")));
    paths.extend(cargo_home.map(|path| (path, "/cargo")));
    let flags: Vec<_> = paths.iter().map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())).collect();
    let status = cargo(&["build", "--locked", "--profile", "dist", "--package", "kube-ipvs", "--bin", "kube-ipvs"])
        // Separated by this character, paths may have spaces.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the agent does not build (see above)");
    }
    Ok(target_dir().join("dist/kube-ipvs"))
}

/// The packages of the workspace that declare an integration test target of this name.
pub(crate) fn packages_with_test(name: &str) -> Result<Vec<String>> {
    let output =
        cargo(&["metadata", "--format-version=1", "--no-deps"]).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let is_wanted = |target: &Value| text(target, "/name") == Some(name) && text(target, "/kind/0") == Some("test");
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata has no packages")?;
    Ok(packages
        .iter()
        .filter(|package| package.get("targets").and_then(Value::as_array).is_some_and(|targets| targets.iter().any(is_wanted)))
        .filter_map(|package| text(package, "/name").map(str::to_owned))
        .collect())
}

/// Builds the integration test target of this name in one package, without running it.
pub(crate) fn test_program(package: &str, name: &str) -> Result<TestProgram> {
    program_of(package, "--test", name)
}

/// Builds the unit tests of a program, without running them.
pub(crate) fn unit_tests(package: &str) -> Result<TestProgram> {
    program_of(package, "--bin", package)
}

fn program_of(package: &str, kind: &str, name: &str) -> Result<TestProgram> {
    let output = cargo(&["test", "--no-run", "--package", package, kind, name, "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("test target {name} of package {package} does not build (see above)");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| text(message, "/reason") == Some("compiler-artifact") && text(message, "/target/name") == Some(name))
        .filter(|message| message.pointer("/profile/test") == Some(&Value::Bool(true)))
        .find_map(|message| {
            Some(TestProgram {
                package: package.to_owned(),
                executable: PathBuf::from(text(&message, "/executable")?),
                package_dir: PathBuf::from(text(&message, "/manifest_path")?).parent()?.to_path_buf(),
            })
        })
        .with_context(|| format!("cargo built no program for test target {name} of package {package}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}
