//! Everything that is read of saved state, whatever the files hold. For tests, and for the fuzzer.

use super::format::{Contents, crc32, open};

/// Reads bytes as a base and as a journal: as they are, and with the checksums that they would need to get further in. How many objects
/// came out.
pub(crate) fn read(bytes: &[u8]) -> usize {
    let sealed = seal(bytes);
    [bytes, &sealed].into_iter().map(|bytes| read_base(bytes) + read_journal(bytes)).sum()
}

fn read_base(bytes: &[u8]) -> usize {
    match Contents::read_base(bytes) {
        Ok((belongs, contents)) => {
            let again = Contents::read_base(&contents.base(&belongs));
            assert_eq!(again.as_ref(), Ok(&(belongs, contents)), "what is read is written as it was");
            count(&again.map(|(_, contents)| contents).unwrap_or_default())
        }
        Err(damage) => {
            assert!(!damage.to_string().is_empty());
            0
        }
    }
}

fn read_journal(bytes: &[u8]) -> usize {
    let Ok((belongs, _)) = open(bytes) else { return 0 };
    let mut contents = Contents::default();
    if let Err(damage) = contents.read_journal(bytes, &belongs) {
        assert!(!damage.to_string().is_empty());
    }
    count(&contents)
}

fn count(contents: &Contents) -> usize {
    match contents.objects() {
        Ok(objects) => objects.len(),
        Err(reason) => {
            assert!(reason.contains(" cannot be read: "), "{reason}");
            0
        }
    }
}

/// The same records with the right checksums.
fn seal(bytes: &[u8]) -> Vec<u8> {
    const HEAD: usize = 12;
    let (head, mut rest) = bytes.split_at(HEAD.min(bytes.len()));
    let mut sealed = head.to_vec();
    while let Some((length, after)) = rest.split_first_chunk::<4>()
        && let Some((_, after)) = after.split_first_chunk::<4>()
    {
        let wanted = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (payload, after) = after.split_at(wanted.min(after.len()));
        sealed.extend(length);
        sealed.extend(crc32(payload).to_le_bytes());
        sealed.extend(payload);
        rest = after;
    }
    sealed.extend(rest);
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::any;

    /// Each is read as a base and as a journal, as it is and with the checksums that it has already.
    #[test]
    fn what_the_fuzzer_begins_with_and_has_found_is_read_whole_and_cut() {
        testkit::read_whole_and_cut("saved", &[("base", 12), ("cut", 4), ("empty", 0), ("journal", 2)], read).unwrap();
    }

    #[test]
    fn what_is_changed_is_survived() {
        testkit::read_changed("saved", any::<u8>(), read).unwrap();
    }
}
