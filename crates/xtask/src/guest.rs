//! A guest to run things in: kernel, image and QEMU together.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::build::target_dir;
use crate::cpio::Archive;
use crate::host::create_directory;
use crate::image;
use crate::kernel::{Kernel, Wanted};
use crate::qemu::{self, Accelerator, Console, Hardware, Outcome, tempfile::Image};

/// A shell session in a guest has no time limit that anybody would meet.
const SHELL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A kernel with its cached base image, and what is to be put beside it for one run.
pub(crate) struct Guest {
    kernel: Kernel,
    base: PathBuf,
    hardware: Hardware,
    files: Archive,
}

impl Guest {
    /// Gets everything ready that does not depend on what will be run.
    pub(crate) fn new(wanted: &Wanted) -> Result<Self> {
        let kernel = Kernel::find(wanted)?;
        let base = image::base(&kernel)?;
        let probe = || assemble(&base, Archive::default(), "exit 0", false);
        let hardware = Hardware::new(qemu::accelerator(&kernel, &probe)?);
        Ok(Self { kernel, base, hardware, files: Archive::default() })
    }

    /// As `uname -r` prints it.
    pub(crate) fn release(&self) -> &str {
        &self.kernel.release
    }

    /// Gives it another amount of memory, in MiB.
    pub(crate) fn set_memory(&mut self, memory: u32) {
        self.hardware.memory = memory;
    }

    /// Has its clock count instructions.
    pub(crate) fn count_instructions(&mut self) {
        self.hardware.accelerator = Accelerator::Counting;
    }

    /// Puts one of our programs on the guest's PATH.
    pub(crate) fn program(&mut self, path: &Path, name: &str) -> Result<()> {
        image::program(&mut self.files, path, &format!("/usr/local/bin/{name}"))
    }

    /// Puts a file into /extra; a program brings its shared libraries.
    pub(crate) fn extra(&mut self, path: &Path) -> Result<()> {
        let name =
            path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no file name", path.display()))?;
        let place = format!("/extra/{name}");
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mode = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.permissions().mode() & 0o777;
        if content.starts_with(b"\x7fELF") {
            image::libraries(&mut self.files, path)?;
        }
        self.files.file(&place, mode, &content)
    }

    /// Runs a shell script and streams the console.
    pub(crate) fn run(self, script: &str, limit: Duration) -> Result<Outcome> {
        let image = assemble(&self.base, self.files, script, false)?;
        qemu::run(&self.kernel, image.path(), self.hardware, Console::Show, limit)
    }

    /// Runs a shell script on this terminal; its exit code.
    pub(crate) fn interact(self, script: &str) -> Result<u8> {
        let image = assemble(&self.base, self.files, script, true)?;
        Ok(qemu::run(&self.kernel, image.path(), self.hardware, Console::Interactive, SHELL_LIMIT)?.code)
    }
}

/// The shell script for a command line: one word is a line for the shell, several are a program with its arguments, taken as they are.
pub(crate) fn script(command: &[String]) -> String {
    match command {
        [line] => line.clone(),
        words => words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" "),
    }
}

/// The image of one run: the cached base followed by the run's own files.
fn assemble(base: &Path, mut files: Archive, script: &str, interactive: bool) -> Result<Image> {
    files.file("/run-in-guest", 0o755, script.as_bytes())?;
    if interactive {
        files.file("/interactive", 0o644, b"")?;
    }
    let directory = target_dir().join("guest/run");
    create_directory(&directory)?;
    remove_abandoned(&directory);
    let path = directory.join(format!("{}.cpio", std::process::id()));
    let mut content = fs::read(base).with_context(|| format!("cannot read {}", base.display()))?;
    content.extend_from_slice(&files.finish()?);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Image(path))
}

/// Removes the images of runs that were interrupted: their files are named after processes that are gone.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_alive = path.file_stem().is_some_and(|process| Path::new("/proc").join(process).exists());
        if !is_alive {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_shell_line_and_several_are_taken_as_they_are() {
        assert_eq!(script(&["ip a | head".to_owned()]), "ip a | head");
        assert_eq!(script(&["echo".to_owned(), "it's $HOME".to_owned()]), r"'echo' 'it'\''s $HOME'");
    }
}
