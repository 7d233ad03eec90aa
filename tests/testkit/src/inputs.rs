//! What the fuzzer begins with and what it has found, for tests that go through all of it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use proptest::prelude::{ProptestConfig, Strategy, any, prop};
use proptest::test_runner::TestRunner;

use crate::Result;

/// Cases of changes that are tried.
const CASES: u32 = 1000;

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

/// Has every input of a fuzz target read, whole and cut at every length. Those that are named yield as much as is said.
///
/// # Errors
/// When one yields something else, or there are none.
pub fn read_whole_and_cut(target: &str, yields: &[(&str, usize)], read: impl Fn(&[u8]) -> usize) -> Result {
    let inputs = fuzz_inputs(target)?;
    for (seed, amount) in yields {
        let (_, bytes) = inputs.iter().find(|(name, _)| name == seed).with_context(|| format!("{target} has no {seed}"))?;
        let read = read(bytes);
        ensure!(read == *amount, "{seed} yields {read}, and not {amount}");
    }
    for (_, bytes) in &inputs {
        for cut in (0..bytes.len()).filter_map(|length| bytes.get(..length)) {
            read(cut);
        }
    }
    Ok(())
}

/// Has inputs of a fuzz target read in which up to eleven bytes are others: `letters`.
///
/// # Errors
/// When one is not survived; it says which.
pub fn read_changed(target: &str, letters: impl Strategy<Value = u8>, read: impl Fn(&[u8]) -> usize) -> Result {
    let inputs = fuzz_inputs(target)?;
    let changes = prop::collection::vec((any::<prop::sample::Index>(), letters), 1..12);
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let tried = TestRunner::new(config).run(&(any::<prop::sample::Index>(), changes), |(which, changes)| {
        let (_, mut bytes) = which.get(&inputs).clone();
        for (at, letter) in changes {
            let at = at.index(bytes.len().max(1));
            // One that is empty has nothing to change.
            if let Some(byte) = bytes.get_mut(at) {
                *byte = letter;
            }
        }
        read(&bytes);
        Ok(())
    });
    tried.map_err(|error| anyhow!("{error}"))
}
