//! Connections, packets and bytes of Services, as the kernel counts them: read when somebody scrapes, and not otherwise.
//!
//! The text is written here and not by the metrics library, which would make several objects of each of what may be a hundred thousand lines.

mod accounts;
mod text;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use desired::{Owner, ServiceName};
use kernel::{Error, Meter};
use model::VirtualServerKey;
use tokio::sync::oneshot;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::timeout;
use tracing::warn;

use crate::mailbox::Mailbox;
use crate::metrics::{Metrics, Reading};
use accounts::{Accounts, Counted};

/// Who scrapes more often is told the same again.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long a scrape waits for the kernel before it is told what was read last. Prometheus gives up after 10 s.
const DEADLINE: Duration = Duration::from_secs(3);

/// The Service behind each virtual server that is desired.
pub(crate) type Owners = Vec<Owned>;

/// A virtual server and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    key: VirtualServerKey,
    service: ServiceName,
    /// The name of its port; empty where that has none.
    port: Box<str>,
}

impl Owned {
    pub(crate) fn new(key: VirtualServerKey, owner: Owner<'_>) -> Self {
        Self { key, service: owner.service.clone(), port: owner.port.into() }
    }
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detail {
    /// So many real servers have counters of their own; 0 for none.
    pub(crate) real_servers: usize,
}

/// Where scrapes find the counters. To be used inside a `LocalSet`. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Traffic {
    detail: Detail,
    mailbox: Mailbox,
    metrics: Metrics,
    last: Arc<Mutex<Last>>,
}

/// What was read last.
#[derive(Default)]
struct Last {
    text: Arc<Vec<u8>>,
    read_at: Option<Instant>,
    reader: State,
}

enum State {
    /// It waits for a scrape.
    Idle(Box<Reader>),
    /// It reads for an earlier one.
    Busy,
}

impl Default for State {
    fn default() -> Self {
        Self::Idle(Box::default())
    }
}

/// Reads on a thread of the runtime's that may block.
#[derive(Default)]
struct Reader {
    /// Opened for the first scrape, and again after an error.
    meter: Option<Meter>,
    accounts: Accounts,
}

impl Traffic {
    /// Nothing is read before the first scrape.
    pub(crate) fn new(detail: Detail, mailbox: Mailbox, metrics: Metrics) -> Self {
        Self { detail, mailbox, metrics, last: Arc::default() }
    }

    /// The exposition text, of now unless the kernel takes too long.
    pub(crate) async fn text(&self) -> Arc<Vec<u8>> {
        self.text_by(SHORTEST, DEADLINE, |owners, mut reader| async move {
            // Only a runtime that is shutting down does not run it, and then nobody is told.
            spawn_blocking(move || {
                let read = reader.read(&owners);
                (reader, read)
            })
            .await
            .ok()
        })
        .await
    }

    async fn text_by<F>(
        &self,
        shortest: Duration,
        deadline: Duration,
        read: impl FnOnce(Owners, Box<Reader>) -> F + 'static,
    ) -> Arc<Vec<u8>>
    where
        F: Future<Output = Option<(Box<Reader>, Result<(), Error>)>>,
    {
        let begun = Instant::now();
        let reader = {
            let mut last = self.lock();
            if last.read_at.is_some_and(|then| begun.saturating_duration_since(then) < shortest) {
                return last.text.clone();
            }
            std::mem::replace(&mut last.reader, State::Busy)
        };
        if let State::Idle(reader) = reader {
            let this = self.clone();
            // A task of its own: a scrape that is given up must not take the counts along.
            let reading = spawn_local(async move { this.read(reader, begun, read).await });
            if timeout(deadline, reading).await.is_err() {
                self.metrics.count_reading(Reading::Late);
            }
        } else {
            self.metrics.count_reading(Reading::Late);
        }
        self.lock().text.clone()
    }

    async fn read<F>(&self, mut reader: Box<Reader>, begun: Instant, read: impl FnOnce(Owners, Box<Reader>) -> F)
    where
        F: Future<Output = Option<(Box<Reader>, Result<(), Error>)>>,
    {
        let (ask, answer) = oneshot::channel();
        self.mailbox.post(|letter| letter.owners.push(ask));
        // Without an answer the reconciler has ended, and this process is about to.
        let Ok(owners) = answer.await else { return };
        reader.accounts.keep_real_servers(self.detail.real_servers);
        let Some((reader, read)) = read(owners, reader).await else { return };
        let mut last = self.lock();
        match read {
            Ok(()) => {
                last.text = Arc::new(text::written(&reader.accounts));
                last.read_at = Some(begun);
                self.metrics.count_reading(Reading::Done);
            }
            Err(error) => {
                warn!(%error, "cannot read the kernel's traffic counters; scrapes are told what was read before");
                self.metrics.count_reading(Reading::Failed);
            }
        }
        last.reader = State::Idle(reader);
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        // Whatever a panic has left half done is replaced by the next reading.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    fn read(&mut self, owners: &[Owned]) -> Result<(), Error> {
        let read = self.counted(owners).map(|counted| self.accounts.take_in(owners, &counted));
        if read.is_err() {
            self.meter = None;
        }
        read
    }

    fn counted(&mut self, owners: &[Owned]) -> Result<Vec<Counted>, Error> {
        let meter = match &mut self.meter {
            Some(meter) => meter,
            none => none.insert(Meter::open()?),
        };
        let with_real_servers = self.accounts.keeps_real_servers();
        let virtual_servers =
            meter.virtual_servers()?.into_iter().map(|(key, traffic)| Counted { key, traffic, real_servers: Vec::new() });
        let mut counted: Vec<_> = virtual_servers.collect();
        if with_real_servers {
            let owned: std::collections::BTreeSet<_> = owners.iter().map(|owned| owned.key).collect();
            for server in counted.iter_mut().filter(|server| owned.contains(&server.key)) {
                server.real_servers = meter.real_servers(&server.key)?;
            }
        }
        Ok(counted)
    }
}

#[cfg(test)]
pub(crate) mod tests;
