//! Child processes that end with their owner and whose output is kept.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use crate::{Result, eventually};

/// A running program. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output and errors going to a file.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, output and errors together.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn output(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// The file with its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status if it has ended by itself.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until its output holds a text.
    ///
    /// # Errors
    /// When the text does not come in time or the program ends before; with the output so far.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result {
        eventually(timeout, || {
            let output = self.output()?;
            if output.contains(text) {
                return Ok(None);
            }
            match self.ended()? {
                Some(status) => Ok(Some((status, output))),
                None => Err(anyhow!("a program did not print {text:?} but:\n{output}")),
            }
        })?
        .map_or(Ok(()), |(status, output)| bail!("a program ended ({status}) without printing {text:?}; it printed:\n{output}"))
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, name: &str) -> Result {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().context("cannot run kill")?;
        if !status.success() {
            bail!("cannot send {name} to process {}", self.child.id());
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        eventually(timeout, || self.child.try_wait()?.context("a program is still running"))
    }

    /// Kills it, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
