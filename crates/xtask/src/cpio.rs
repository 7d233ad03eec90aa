//! The archive format of an initramfs: cpio "newc", as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst describes it.
//!
//! Archives may follow one another, and later entries replace earlier ones: so the large, seldom changing part of the image is cached as one archive
//! and each run appends its own.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. Parent directories are added as they are needed.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    present: BTreeSet<String>,
}

impl Archive {
    /// Adds a regular file; a path that is in this archive already is left as it is.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[])
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.record("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str).filter(|parent| !parent.is_empty())
            && !self.present.contains(parent)
        {
            self.directory(parent)?;
        }
        if !self.present.insert(path.to_owned()) {
            return Ok(());
        }
        self.record(path, mode, device, content)
    }

    fn record(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large for an initramfs"))?;
        let name_size = u32::try_from(path.len() + 1).context("a path is too long for an initramfs")?;
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name size, check: the order of the format.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Names and contents end on a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_parents_before_their_files_and_aligned_records() {
        let mut archive = Archive::default();
        archive.file("/a/b", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let names: Vec<_> = text.match_indices("070701").map(|(at, _)| text[at + 110..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["a", "a/b", "TRAILER!!!"]);
        assert!(text.match_indices("070701").all(|(at, _)| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
        // The size field of the second record is its seventh: five bytes.
        let second = text.match_indices("070701").nth(1).unwrap().0;
        assert_eq!(&text[second + 54..second + 62], "00000005");
    }

    #[test]
    fn a_path_is_written_once() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"first").unwrap();
        archive.file("/a", 0o644, b"second").unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        assert!(text.contains("first") && !text.contains("second"));
    }
}
