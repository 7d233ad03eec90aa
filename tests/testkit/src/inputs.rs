//! What the fuzzer begins with and what it has found, for tests that go through all of it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::Result;

/// The inputs of a fuzz target, by name, and in the order of the names.
///
/// # Errors
/// When they cannot be read, as where the repository is not, or there are none.
pub fn fuzz_inputs(target: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut inputs = Vec::new();
    for kind in ["seeds", "found"] {
        let directory = fuzz.join(kind).join(target);
        if kind == "found" && !directory.exists() {
            continue;
        }
        let entries = fs::read_dir(&directory).with_context(|| format!("{} cannot be read", directory.display()))?;
        for entry in entries {
            let path = entry.context("a directory cannot be read")?.path();
            let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            inputs.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes));
        }
    }
    ensure!(!inputs.is_empty(), "there is nothing for {target}");
    inputs.sort();
    Ok(inputs)
}
