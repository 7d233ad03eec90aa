//! The way from the asynchronous side to the reconciler: a mailbox in which news of one object replaces older news.
//!
//! A queue would either grow while the kernel is busy or block whoever fills it. Here the sender never waits, the memory is bounded by
//! the number of Services, and a burst of changes to one Service costs one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use desired::{Fragment, ServiceName};
use kernel::Part;
use model::{Family, Rules};
use tokio::sync::oneshot;

use crate::status::Names;

/// Everything the reconciler has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    /// Services that the others need to come up, such as the API server's: before all else.
    pub(crate) urgent: Fragments,
    /// All other Services that changed.
    pub(crate) services: Fragments,
    /// What is desired of the node itself.
    pub(crate) node: Option<NodeSettings>,
    /// Everything that exists has been listed: what is not desired may be removed.
    pub(crate) complete: bool,
    /// Of these parts of what the kernel holds, others may have taken something away.
    pub(crate) disturbed: BTreeSet<Part>,
    /// Addresses that the device of the VIPs has lost, be it to this process.
    pub(crate) unbound: BTreeSet<IpAddr>,
    /// Who wants to know the Service behind each virtual server.
    pub(crate) names: Vec<oneshot::Sender<Names>>,
    /// No more letters will come.
    pub(crate) stop: bool,
}

/// Services' fragments, by Service; `None` for a Service that is gone.
pub(crate) type Fragments = BTreeMap<ServiceName, Option<Fragment>>;

/// What is desired of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSettings {
    /// The packet rules.
    pub(crate) rules: BTreeMap<Family, Rules>,
    /// The addresses that the node's own connections to VIPs come from.
    pub(crate) sources: BTreeMap<Family, IpAddr>,
}

impl Letter {
    fn is_empty(&self) -> bool {
        let Self { urgent, services, node, complete, disturbed, unbound, names, stop } = self;
        let quiet = !(*complete || *stop) && disturbed.is_empty() && unbound.is_empty();
        urgent.is_empty() && services.is_empty() && node.is_none() && names.is_empty() && quiet
    }
}

/// A mailbox. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mailbox {
    inner: Arc<(Mutex<Letter>, Condvar)>,
}

impl Mailbox {
    /// Adds to the letter and wakes the reader.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Letter)) {
        let (_, ready) = &*self.inner;
        let mut letter = self.lock();
        write(&mut letter);
        drop(letter);
        ready.notify_one();
    }

    /// Takes the letter; waits for one up to `patience`.
    pub(crate) fn take(&self, patience: Duration) -> Option<Letter> {
        let (_, ready) = &*self.inner;
        let waited = ready.wait_timeout_while(self.lock(), patience, |letter| letter.is_empty());
        let (mut letter, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!letter.is_empty()).then(|| std::mem::take(&mut *letter))
    }

    fn lock(&self) -> MutexGuard<'_, Letter> {
        // A writer that panicked left at worst a letter without its news, which the next listing brings again.
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_news_of_a_service_replaces_earlier_and_the_sender_never_waits() {
        let mailbox = Mailbox::default();
        let web = ServiceName::new("shop", "web");
        for _ in 0..10_000 {
            mailbox.post(|letter| {
                letter.services.insert(web.clone(), None);
            });
        }
        let letter = mailbox.take(Duration::ZERO).unwrap();
        assert_eq!(letter.services.len(), 1);
        assert!(mailbox.take(Duration::ZERO).is_none());
    }

    #[test]
    fn a_reader_is_woken_by_a_letter() {
        let mailbox = Mailbox::default();
        let reader = std::thread::spawn({
            let mailbox = mailbox.clone();
            move || mailbox.take(Duration::from_secs(60)).is_some_and(|letter| letter.stop)
        });
        mailbox.post(|letter| letter.stop = true);
        assert!(reader.join().unwrap());
    }
}
