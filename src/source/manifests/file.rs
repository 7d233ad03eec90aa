//! Files as they lie on the disk: which there are, whether they have changed, and what is in them.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// More than ten times what 10,000 Services with a hundred endpoints each take; whatever is larger is not a manifest.
const MAX_SIZE: u64 = 64 << 20;

/// A file written twice within the granularity of its time stamp may look unchanged. Older ones cannot.
const GRANULARITY: Duration = Duration::from_millis(1_500);

/// A file that is there.
pub(super) enum Found {
    Readable(Readable),
    /// It cannot be used, and this is why.
    Broken(String),
}

/// A regular file within the size limit.
pub(super) struct Readable {
    path: PathBuf,
    pub(super) stamp: Stamp,
    /// Whether an unchanged stamp means unchanged contents.
    pub(super) settled: bool,
}

/// What changes when a file changes: through symlinks, so that a swapped link is a change too.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// The text of a file, and the stamp it had when it was read to its end.
pub(super) struct Contents {
    pub(super) text: String,
    pub(super) stamp: Stamp,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Readable {
    pub(super) fn read(&self) -> Result<Contents, String> {
        let path = self.path.display();
        let unreadable = |error: std::io::Error| format!("{path} cannot be read: {error}");
        let mut file = std::fs::File::open(&self.path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        let size = (&mut file).take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if size as u64 > MAX_SIZE {
            return Err(too_large(&self.path));
        }
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
            format!("{path}, line {line}: this is not UTF-8 text")
        })?;
        Ok(Contents { text, stamp })
    }
}

/// The manifest files at `path`, by name. An error means that it is not known which there are, and is a sentence.
pub(super) fn find(path: &Path) -> Result<BTreeMap<PathBuf, Found>, String> {
    let unreadable =
        |error: std::io::Error| format!("{} cannot be read: {error}; what was read before stays in force", path.display());
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_dir() {
        return Ok(BTreeMap::from([(path.to_owned(), found(path, &metadata))]));
    }
    let mut files = BTreeMap::new();
    for entry in path.read_dir().map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if !is_manifest(&file) {
            continue;
        }
        match std::fs::metadata(&file) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) => _ = files.insert(file.clone(), found(&file, &metadata)),
            // Gone since the directory was read.
            Err(_) if std::fs::symlink_metadata(&file).is_err_and(|error| error.kind() == ErrorKind::NotFound) => {}
            Err(error) => _ = files.insert(file.clone(), Found::Broken(format!("{} cannot be read: {error}", file.display()))),
        }
    }
    Ok(files)
}

fn found(path: &Path, metadata: &Metadata) -> Found {
    if !metadata.is_file() {
        return Found::Broken(format!("{} is not a regular file", path.display()));
    }
    if metadata.len() > MAX_SIZE {
        return Found::Broken(too_large(path));
    }
    // A time in the future says nothing about the age, so it is not trusted, and the file is read at every look.
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    let settled = age.is_some_and(|age| age >= GRANULARITY);
    Found::Readable(Readable { path: path.to_owned(), stamp: Stamp::of(metadata), settled })
}

fn too_large(path: &Path) -> String {
    format!("{} is larger than {} MiB: split it into several files", path.display(), MAX_SIZE >> 20)
}

/// Hidden files are none: editors keep their swap files there, and ConfigMap volumes their versions.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json")
}
