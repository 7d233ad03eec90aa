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
    use proptest::sample::select;

    #[test]
    fn what_the_fuzzer_begins_with_and_has_found_is_read_whole_and_cut() {
        testkit::read_whole_and_cut("manifests", &[("several", 3), ("list", 2), ("json", 3), ("mistakes", 0)], read).unwrap();
    }

    #[test]
    fn what_is_changed_is_survived() {
        testkit::read_changed("manifests", select(b"\n -:#&*|>{}[]'\"\\,!0x".to_vec()), read).unwrap();
    }
}
