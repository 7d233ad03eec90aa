//! Whether this node may be relied on: what `/healthz` and health check node ports answer follows from it.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::freshness::Freshness;
use crate::health::Health;

/// What that depends on, as it changes.
#[derive(Clone)]
pub(crate) struct Reliance {
    pub(crate) health: watch::Receiver<Health>,
    /// How old what is known may be; `None` where objects are read from files.
    pub(crate) freshness: Option<Freshness>,
    /// The age from which on the node is not to be relied on; zero for none.
    pub(crate) max_staleness: watch::Receiver<Duration>,
}

impl Reliance {
    /// `None` when all is well, else what there is against it.
    pub(crate) fn against(&self, now: Instant) -> Option<String> {
        self.health.borrow().unhealthy(now).or_else(|| self.stale(now))
    }

    /// What was saved is as good as what is told, and ages alike.
    fn stale(&self, now: Instant) -> Option<String> {
        let (freshness, limit) = (self.freshness.as_ref()?, *self.max_staleness.borrow());
        match freshness.saved() {
            Some(saved) => saved.stale(limit),
            None => freshness.stale(now, limit),
        }
    }
}
