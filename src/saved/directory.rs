//! The files, and how they are replaced: a base is complete before it has its name, and a journal is only ever added to.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::batch::Batch;
use super::format::{self, Belongs, Contents, Damage};

/// A journal may be this large whatever the base is: rewriting a small base with every change would be no gain.
const SMALL: u64 = 1024 * 1024;

/// Where state is saved.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    selection: String,
}

/// What was found in a directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) contents: Contents,
    pub(super) generation: u64,
    /// When it was last written; `None` if there is nothing.
    pub(super) at: Option<SystemTime>,
    /// What could not be used, in sentences.
    pub(super) warnings: Vec<String>,
}

impl Directory {
    /// Objects that were chosen otherwise than by `selection` are of no use.
    pub(super) fn new(path: &Path, selection: String) -> Self {
        Self { path: path.to_owned(), selection }
    }

    /// Reads what there is, as far as it can be used.
    pub(super) fn read(&self) -> Found {
        let mut found = Found::default();
        let (base, journal) = (self.path.join("base"), self.path.join("journal"));
        let not_used = |path: &Path, reason: &dyn std::fmt::Display| format!("saved state {} is ignored: {reason}", path.display());
        let belongs = match read_file(&base) {
            Ok(None) => return found,
            Ok(Some((bytes, at))) => match Contents::read_base(&bytes) {
                Ok((belongs, _)) if belongs.selection != self.selection => {
                    // Its number is not to be used again.
                    found.generation = belongs.generation;
                    found.warnings.push(not_used(&base, &Damage::OtherSelection(belongs.selection)));
                    return found;
                }
                Ok((belongs, contents)) => {
                    (found.contents, found.at) = (contents, Some(at));
                    belongs
                }
                Err(damage) => {
                    found.warnings.push(not_used(&base, &damage));
                    return found;
                }
            },
            Err(error) => {
                found.warnings.push(not_used(&base, &error));
                return found;
            }
        };
        found.generation = belongs.generation;
        match read_file(&journal) {
            Ok(None) => {}
            Ok(Some((bytes, at))) => {
                found.at = found.at.max(Some(at));
                if let Err(damage) = found.contents.read_journal(&bytes, &belongs) {
                    let reason = format!("{damage}; what is before that is used");
                    found.warnings.push(not_used(&journal, &reason));
                }
            }
            Err(error) => found.warnings.push(not_used(&journal, &error)),
        }
        found
    }

    /// Writes both files anew, as what is found with `batch` on top of it.
    ///
    /// # Errors
    /// When that is not possible; what is found then is what was before.
    pub(super) fn rewrite(&self, batch: &Batch) -> io::Result<Journal> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let Found { mut contents, generation, .. } = self.read();
        contents.apply(batch);
        // The time keeps a number from coming again after a base that could not be read.
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let belongs = Belongs { generation: clock.max(generation.saturating_add(1)), selection: self.selection.clone() };
        let base = contents.base(&belongs);
        drop(contents);
        self.replace("base", &base)?;
        let file = self.replace("journal", &format::header(&belongs))?;
        let length = file.metadata()?.len();
        Ok(Journal { file, length, limit: SMALL.max(u64::try_from(base.len()).unwrap_or(u64::MAX)) })
    }

    /// Makes `bytes` the file called `name`, at once and for good.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let unfinished = self.path.join(format!("{name}.unfinished"));
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let written =
            file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&unfinished, self.path.join(name)));
        if let Err(error) = written {
            // Half a file would take room that the next attempt may need.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        File::open(&self.path)?.sync_all()?;
        Ok(file)
    }
}

/// `None` where there is no such file.
fn read_file(path: &Path) -> io::Result<Option<(Vec<u8>, SystemTime)>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some((bytes, fs::metadata(path)?.modified()?))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Where what is whole ends.
    length: u64,
    /// The length from which on it is cheaper to write all anew.
    limit: u64,
}

impl Journal {
    pub(super) fn is_full(&self) -> bool {
        self.length > self.limit
    }

    /// Adds a batch. It is not waited for the disk: what a machine that loses its power forgets is a second or two.
    ///
    /// # Errors
    /// When it cannot be written. The journal is of no more use then if what was written of it cannot be taken back.
    pub(super) fn add(mut self, batch: &Batch) -> Result<Self, (Option<Self>, io::Error)> {
        let bytes = format::journal(batch);
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.length = self.length.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Ok(self)
            }
            Err(error) => {
                let taken_back = self.file.set_len(self.length).and_then(|()| self.file.seek(io::SeekFrom::Start(self.length)));
                Err((taken_back.is_ok().then_some(self), error))
            }
        }
    }
}
