//! Who may use whom, and what the whole repository promises. The README draws the arrows; here they are held to.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each package may use outside of its tests, in this workspace and beyond. Whoever adds to this list changes what a crate may
/// know, and says why.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("model", &["ipnetwork"]),
    ("desired", &["model", "ipnetwork", "k8s-openapi", "serde"]),
    ("config", &["ipnetwork", "serde", "serde-saphyr", "serde_json"]),
    ("plan", &["model", "ipnetwork"]),
    ("wire", &["model", "ipnetwork", "thiserror"]),
    // rustix and socket2 for sockets whose notifications the kernel filters, which neli does not let anybody ask for.
    ("kernel", &["plan", "wire", "model", "neli", "rustix", "socket2", "thiserror", "tracing"]),
    (
        "kube-ipvs",
        &[
            "config",
            "desired",
            "plan",
            "kernel",
            "model",
            "anyhow",
            "clap",
            "clap_complete",
            "clap_mangen",
            "futures",
            "http-body-util",
            "hyper",
            "hyper-util",
            "ipnetwork",
            "k8s-openapi",
            "kube",
            "prometheus",
            "ratatui",
            "serde",
            "serde-saphyr",
            "serde_json",
            // For a socket of both families whatever the host's default is.
            "socket2",
            "tokio",
            "tokio-util",
            "tower",
            "tracing",
            "tracing-subscriber",
        ],
    ),
];

/// Packages that build and test, and that nothing which ships may use.
const TOOLS: [&str; 4] = ["xtask", "apiserver", "testkit", "bench"];

/// The crates that decide and do not act: no waiting, no sockets, no logging, not even by way of what they use.
const PURE: [&str; 5] = ["model", "config", "desired", "plan", "wire"];
const ACTING: [&str; 14] = [
    "tokio",
    "hyper",
    "kube",
    "kube-client",
    "kube-runtime",
    "neli",
    "socket2",
    "mio",
    "libc",
    "rustix",
    "tracing",
    "log",
    "anyhow",
    "clap",
];

/// Libraries of cryptography other than ring: they need more than Rust and a C compiler to build, or to run.
const OTHER_CRYPTOGRAPHY: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "openssl-sys", "native-tls"];

struct Package {
    name: String,
    manifest: PathBuf,
    license: Option<String>,
    /// Names of normal and build dependencies.
    uses: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    // What this test's own build was told is not meant for another one.
    output(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(arguments).arg("--offline"))
}

fn members() -> Vec<Package> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version=1"])).unwrap();
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let package = |package: &Value| Package {
        name: text(package, "name").unwrap(),
        manifest: text(package, "manifest_path").unwrap().into(),
        license: text(package, "license"),
        uses: package
            .get("dependencies")
            .and_then(Value::as_array)
            .unwrap()
            .iter()
            .filter(|dependency| text(dependency, "kind").as_deref() != Some("dev"))
            .filter_map(|dependency| text(dependency, "name"))
            .collect(),
    };
    metadata.get("packages").and_then(Value::as_array).unwrap().iter().map(package).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of the repository, each by its path.
fn tracked() -> Vec<String> {
    let tracked = output(Command::new("git").args(["-c", "safe.directory=*", "ls-files", "-z"]));
    let tracked: Vec<_> = tracked.split_terminator('\0').map(str::to_owned).collect();
    assert!(tracked.iter().any(|path| path == "Cargo.lock") && tracked.len() > 100, "{} files", tracked.len());
    tracked
}

#[test]
fn every_package_uses_only_what_it_may() {
    let may_use = BTreeMap::from(MAY_USE);
    let members = members();
    for package in &members {
        match may_use.get(package.name.as_str()) {
            Some(allowed) => {
                let others: Vec<_> = package.uses.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
                assert!(others.is_empty(), "{} uses {others:?}", package.name);
            }
            None => assert!(TOOLS.contains(&package.name.as_str()), "what may the package {} use?", package.name),
        }
    }
    for name in may_use.keys().chain(&TOOLS) {
        assert!(members.iter().any(|package| package.name == *name), "there is no package {name}");
    }
}

#[test]
fn deciding_crates_cannot_act_through_what_they_use() {
    for name in PURE {
        let tree = cargo(&["tree", "--package", name, "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
        let used: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(used.contains(name), "{tree}");
        let acting: Vec<_> = ACTING.into_iter().filter(|name| used.contains(name)).collect();
        assert!(acting.is_empty(), "{name} reaches {acting:?}");
    }
}

#[test]
fn the_model_uses_the_standard_library_and_networks_alone() {
    let tree = cargo(&["tree", "--package", "model", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    let used: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(used, ["model", "ipnetwork"]);
}

#[test]
fn the_lock_has_one_library_of_cryptography() {
    let lock = read("Cargo.lock");
    let names: BTreeSet<_> = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    assert!(names.contains("ring") && names.contains("kube-ipvs"));
    for name in OTHER_CRYPTOGRAPHY {
        assert!(!names.contains(name), "{name}: choose features without it");
    }
}

#[test]
fn unsafe_code_is_forbidden_in_every_package() {
    let workspace = read("Cargo.toml");
    assert!(workspace.contains("[workspace.lints.rust]\nunsafe_code = \"forbid\"\n"), "forbid, which no file can take back");
    for package in members() {
        let manifest = read(&package.manifest);
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{} has the lints of the workspace", package.name);
    }
}

#[test]
fn every_package_has_the_licence_whose_text_is_here() {
    let text = read("LICENSE");
    assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004") && text.contains("END OF TERMS"));
    for package in members() {
        assert_eq!(package.license.as_deref(), Some("Apache-2.0"), "{}", package.name);
    }
}

#[test]
fn every_crate_says_first_what_it_is_for() {
    for package in members() {
        let library = package.manifest.with_file_name("src").join("lib.rs");
        if library.exists() {
            let text = read(&library);
            assert!(text.starts_with("//! This crate "), "{}", library.display());
            assert!(text.contains("//! ```"), "{}: an example", library.display());
        }
    }
}

#[test]
fn what_the_fuzzer_begins_with_is_read_by_tests() {
    let entries = |directory: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let targets: BTreeSet<_> =
        entries("fuzz/targets").iter().filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).collect();
    assert_eq!(entries("fuzz/seeds"), targets, "each target has something to begin with");
    assert!(entries("fuzz/found").is_subset(&targets));
    let manifest = read("fuzz/Cargo.toml");
    let is_source = |path: &String| path.ends_with(".rs") && !path.starts_with("fuzz/") && root().join(path).exists();
    let sources: Vec<_> = tracked().iter().filter(|path| is_source(path)).map(read).collect();
    for target in targets {
        assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "fuzz/Cargo.toml has no {target}");
        let is_read = |text: &String| {
            ["read_whole_and_cut", "fuzz_inputs"].iter().any(|function| text.contains(&format!("testkit::{function}(\"{target}\"")))
        };
        assert!(sources.iter().any(is_read), "no test reads fuzz/seeds/{target}: have one call testkit::read_whole_and_cut");
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file passes too.
    let absolute = ["home", "root", "Users", "work"].map(|directory| format!("/{directory}/"));
    let outside = format!("..{}shared", '/');
    for path in tracked() {
        // A file that is deleted and not committed yet has nothing to say, and one that is no text no words.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for forbidden in absolute.iter().chain([&outside]) {
                assert!(!line.contains(forbidden.as_str()), "{path}:{}: {forbidden}: {line}", number + 1);
            }
        }
    }
}
