//! Everything that is read of manifests, whatever the files hold. For tests, and for the fuzzer.

use super::{defaults, document};
use std::path::Path;

/// Reads bytes as YAML and as JSON, where they are text. How many objects came out.
pub(crate) fn read(bytes: &[u8]) -> usize {
    let Ok(text) = str::from_utf8(bytes) else { return 0 };
    ["file.yaml", "file.json"].into_iter().map(|path| read_text(Path::new(path), text)).sum()
}

fn read_text(path: &Path, text: &str) -> usize {
    match document::objects(path, text) {
        Ok(parsed) => {
            for object in &parsed.objects {
                assert!(object.metadata().name.as_deref().is_some_and(|name| !name.is_empty()), "{object} has no name");
                let mut again = object.clone();
                defaults::fill(&mut again);
                assert_eq!(&again, object, "what is filled in needs no more");
            }
            parsed.objects.len()
        }
        Err(sentence) => {
            let line =
                sentence.strip_prefix(&format!("{}, line ", path.display())).and_then(|rest| rest.split(':').next()?.parse().ok());
            // A file ends behind its last line, and what is missing is missing there. YAML takes a carriage return for the end of one.
            let lines = 1..=text.split(['\n', '\r']).count() + 1;
            assert!(line.is_some_and(|line: usize| lines.contains(&line)), "{sentence}");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inputs() -> Vec<(String, Vec<u8>)> {
        testkit::fuzz_inputs("manifests").unwrap()
    }

    #[test]
    fn what_the_fuzzer_begins_with_and_has_found_is_read_whole_and_cut() {
        let inputs = inputs();
        for (seed, objects) in [("several", 3), ("list", 2), ("json", 3), ("mistakes", 0)] {
            let (_, bytes) = inputs.iter().find(|(name, _)| name == seed).unwrap();
            assert_eq!(read(bytes), objects, "{seed}");
        }
        for (_, bytes) in &inputs {
            for length in 0..bytes.len() {
                read(&bytes[..length]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_changed_is_survived(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\n -:#&*|>{}[]'\"\\,!0x".to_vec())), 1..12)) {
            let (_, mut bytes) = which.get(&inputs()).clone();
            for (at, byte) in changes.into_iter().take(bytes.len()) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            read(&bytes);
        }
    }
}
