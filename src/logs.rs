//! Log lines on standard error: how they look, and which there are.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::LogFormat;
use crate::exit::{Ending, Exit};

/// What is logged, to be changed while it is.
pub(crate) struct Logs {
    reload: Box<dyn Fn(EnvFilter) -> anyhow::Result<()>>,
}

impl Logs {
    /// Begins to log what `level` says.
    ///
    /// # Errors
    /// When it says nothing that makes sense.
    pub(crate) fn to_stderr(format: LogFormat, level: &str) -> anyhow::Result<Self> {
        let logs = tracing_subscriber::fmt().with_env_filter(filter(level)?).with_writer(io::stderr).with_target(false);
        let reload: Box<dyn Fn(EnvFilter) -> anyhow::Result<()>> = match format {
            LogFormat::Text => {
                let logs = logs.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
                let handle = logs.reload_handle();
                logs.init();
                Box::new(move |filter| handle.reload(filter).context("cannot change what is logged"))
            }
            LogFormat::Json => {
                let logs = logs.json().with_filter_reloading();
                let handle = logs.reload_handle();
                logs.init();
                Box::new(move |filter| handle.reload(filter).context("cannot change what is logged"))
            }
        };
        Ok(Self { reload })
    }

    /// Logs what `level` says from now on.
    ///
    /// # Errors
    /// When it says nothing that makes sense.
    pub(crate) fn set(&self, level: &str) -> anyhow::Result<()> {
        (self.reload)(filter(level)?)
    }
}

/// What `level` asks for.
///
/// # Errors
/// When it says nothing that makes sense.
pub(crate) fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    // A word that is no level would be taken for the one target to log, and silence all others.
    let understood = |directive: &str| directive.contains(['=', '[']) || directive.parse::<LevelFilter>().is_ok();
    let filter = level.split(',').map(str::trim).all(understood).then(|| EnvFilter::try_new(level).ok()).flatten();
    filter.ok_or_else(|| {
        let sentence = format!(
            "--log-level {level:?}: expected off, error, warn, info, debug or trace, or directives such as kube_ipvs=debug,kube=info"
        );
        Ending::error(Exit::Usage, sentence)
    })
}
