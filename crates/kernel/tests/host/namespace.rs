//! A network namespace for each test.

use std::any::type_name_of_val;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, fs, process};

/// Set in the process that is to run one test inside of its namespace.
const INSIDE: &str = "KUBE_IPVS_HOST_TEST";

/// Runs `body`, the closure that a test consists of, in a network namespace of its own: starts this program again inside of one, to run
/// just the test that was called.
///
/// Nothing less would do. A thread cannot change its namespace without unsafe code, and sets and rules have no other owner to tell
/// the tests apart by.
pub(crate) fn isolated(body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    // The closure's name is the test's, between the crate's in front and its own behind.
    let name = type_name_of_val(&body).trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").unwrap();
    // The lock of iptables lies on the file system, which is no part of the namespace; and in /run, which is root's.
    let lock = TemporaryFile(env::temp_dir().join(format!("kube-ipvs-{}-{}", process::id(), name.replace("::", "-"))));
    let output = Command::new("unshare")
        .arg("--net")
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .env("XTABLES_LOCKFILE", &lock.0)
        .output()
        .unwrap_or_else(|error| panic!("unshare (package util-linux): {error}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{name} is not what the test is called: {said}");
}

struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs a command line, split at spaces, and returns what it printed. The test fails if it does.
pub(crate) fn sh(line: &str) -> String {
    let output = try_sh(line);
    assert!(output.status.success(), "{line}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command line, split at spaces.
pub(crate) fn try_sh(line: &str) -> Output {
    let mut words = line.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|error| panic!("{line}: {error}"))
}
