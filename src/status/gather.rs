//! Asks the kernel and the agent for what there is to show.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::join::{Told, join};
use super::view::View;
use crate::control::Query;
use crate::control::client::ask;
use crate::exit::kernel_ending;

/// How long what looks like drift has to last: kernel and agent are not asked in the same moment, and a change takes less than this.
pub(crate) const SETTLING: Duration = Duration::from_millis(300);

/// For how long what the agent has told of Services is good enough for those who look again and again, as long as the kernel does not contradict
/// it: to ask each time would have the agent work for what is looked at.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What the kernel has now, beside what an agent has `told`.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn look(told: Option<&Told>) -> Result<View, kernel::Error> {
    let table = kernel::read_table()?;
    // Our sets are read only where they say something new. Without them nobody can tell what is foreign, and all else is worth showing.
    let unknown = table.virtual_servers.iter().any(|listing| told.is_none_or(|told| !told.knows(&listing.key)));
    let sets = if unknown { kernel::read_sets().ok() } else { None };
    Ok(join(table, told, sets))
}

/// Looks at kernel and agent, again and again.
pub(crate) struct Gatherer {
    /// Where the agent is asked; `None` for not asking.
    socket: Option<PathBuf>,
    /// For how long Services and endpoints that were told are good enough, as long as nothing contradicts them.
    patience: Duration,
    told: Option<(Instant, Told)>,
    trouble: Option<String>,
}

impl Gatherer {
    pub(crate) const fn new(socket: Option<PathBuf>, patience: Duration) -> Self {
        Self { socket, patience, told: None, trouble: None }
    }

    /// Why no agent has answered the last time, if it was asked.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What there is to show now.
    ///
    /// # Errors
    /// When the kernel cannot be read. Without an agent there is less to show, which is no error.
    pub(crate) fn view(&mut self) -> anyhow::Result<View> {
        let first = self.look()?;
        if !first.has_drifted() {
            return Ok(first);
        }
        thread::sleep(SETTLING);
        self.told = None;
        let mut second = self.look()?;
        second.keep_lasting_drift(&first);
        Ok(second)
    }

    fn look(&mut self) -> anyhow::Result<View> {
        self.listen();
        look(self.told.as_ref().map(|(_, told)| told)).map_err(|error| kernel_ending(&error))
    }

    /// Asks the agent for what has become too old.
    fn listen(&mut self) {
        let Some(socket) = &self.socket else { return };
        let fresh = self.told.take_if(|(asked, _)| asked.elapsed() < self.patience);
        let told = match fresh {
            Some((asked, mut told)) => ask(socket, Query::Drains).map(|drains| {
                told.set_drains(&drains);
                (asked, told)
            }),
            None => (|| {
                let asked = Instant::now();
                let (table, drains) = (ask(socket, Query::VirtualServers)?, ask(socket, Query::Drains)?);
                Ok((asked, Told::new(table, &drains, ask(socket, Query::Endpoints)?)))
            })(),
        };
        (self.told, self.trouble) = match told {
            Ok(told) => (Some(told), None),
            Err(error) => (None, Some(format!("no agent answers on {}: {error:#}", socket.display()))),
        };
    }
}
