//! The agent under test.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::{Process, Result};

/// An agent has this long to end after SIGTERM; an emulated guest is slow.
const GOODBYE: Duration = Duration::from_secs(60);

/// A running `kube-ipvs run`. It is killed when this value is dropped; what it did to the kernel stays.
#[derive(Debug)]
pub struct Agent(pub(crate) Process);

impl Agent {
    /// Asks it to end, as the kubelet does; its exit status.
    ///
    /// # Errors
    /// When it has ended before, or does not end in time.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.0.signal("TERM")?;
        self.0.wait(GOODBYE)
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(mut self) -> Result {
        Ok(self.0.kill()?)
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        self.0.output()
    }

    /// The process alone, for a test that keeps its processes together.
    #[must_use]
    pub fn into_process(self) -> Process {
        self.0
    }

    /// The process, to wait for a log line or to send another signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.0
    }
}

/// The agent's program: `KUBE_IPVS`, else `kube-ipvs` on the PATH.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("KUBE_IPVS").map_or_else(|| PathBuf::from("kube-ipvs"), PathBuf::from)
}
