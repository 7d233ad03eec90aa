//! The way from the asynchronous side to the reconciler: a mailbox in which news of one object replaces older news.
//!
//! A queue would either grow while the kernel is busy or block whoever fills it. Here the sender never waits, the memory is bounded by
//! the number of Services, and a burst of changes to one Service costs one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use desired::{Fragment, Index, RuleOptions, ServiceName, rules};
use kernel::Part;
use model::{Family, Rules};
use tokio::sync::oneshot;

use crate::changes::Changes;
use crate::control::AskReconciler;
use crate::reconciler::Tuning;
use crate::traffic::Owners;

/// Everything the reconciler has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    /// Services that the others need to come up, such as the API server's: before all else.
    pub(crate) urgent: Fragments,
    /// All other Services that changed.
    pub(crate) services: Fragments,
    /// Services of which more may be listed yet: to be kept, and served with the rest.
    pub(crate) arriving: Fragments,
    /// What is desired of the node itself.
    pub(crate) node: Option<NodeSettings>,
    /// Everything that exists has been listed: what is not desired may be removed. What is told before that was saved by an earlier run.
    pub(crate) complete: bool,
    /// Of these parts of what the kernel holds, others may have taken something away.
    pub(crate) disturbed: BTreeSet<Part>,
    /// Addresses that the device of the VIPs has lost, be it to this process.
    pub(crate) unbound: BTreeSet<IpAddr>,
    /// What the operator has decided since.
    pub(crate) tuning: Option<Tuning>,
    /// What is asked on the control socket.
    pub(crate) asks: Vec<AskReconciler>,
    /// The same for programs.
    pub(crate) owners: Vec<oneshot::Sender<Owners>>,
    /// What is behind all that has changed. It comes with that, and not by itself.
    pub(crate) changes: Changes,
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

impl NodeSettings {
    /// What follows from what is known of the node.
    pub(crate) fn of(index: &Index, options: RuleOptions) -> Self {
        let (config, facts) = (index.config(), index.facts());
        Self {
            rules: config.families.iter().map(|family| (*family, rules(*family, config, facts, options))).collect(),
            sources: config.families.iter().filter_map(|family| Some((*family, facts.source(*family)?))).collect(),
        }
    }
}

impl Letter {
    fn is_empty(&self) -> bool {
        let Self { urgent, services, arriving, node, complete, disturbed, unbound, tuning, asks, owners, changes: _, stop } = self;
        let quiet = !(*complete || *stop) && disturbed.is_empty() && unbound.is_empty() && tuning.is_none();
        let asked = !asks.is_empty() || !owners.is_empty();
        urgent.is_empty() && services.is_empty() && arriving.is_empty() && node.is_none() && !asked && quiet
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
        let mut letter = self.wait(patience);
        (!letter.is_empty()).then(|| std::mem::take(&mut *letter))
    }

    /// The same, but leaves the letter for others to add to until `ripe`. Whoever waits for something urgent waits no longer than that.
    pub(crate) fn take_after(&self, ripe: Option<Instant>, patience: Duration) -> Option<Letter> {
        if let Some(ripe) = ripe {
            drop(self.wait(patience));
            thread::sleep(ripe.saturating_duration_since(Instant::now()));
            return self.take(Duration::ZERO);
        }
        self.take(patience)
    }

    /// Waits until there is something in the letter, up to `patience`.
    fn wait(&self, patience: Duration) -> MutexGuard<'_, Letter> {
        let (_, ready) = &*self.inner;
        let waited = ready.wait_timeout_while(self.lock(), patience, |letter| letter.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0
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
    fn what_comes_before_a_letter_is_ripe_is_in_it() {
        let mailbox = Mailbox::default();
        mailbox.post(|letter| letter.stop = true);
        let ripe = Instant::now() + Duration::from_millis(200);
        let writer = std::thread::spawn({
            let mailbox = mailbox.clone();
            move || {
                thread::sleep(Duration::from_millis(20));
                mailbox.post(|letter| letter.complete = true);
            }
        });
        let letter = mailbox.take_after(Some(ripe), Duration::from_secs(60)).unwrap();
        assert!(letter.stop && letter.complete && Instant::now() >= ripe);
        assert!(mailbox.take_after(Some(ripe), Duration::ZERO).is_none());
        writer.join().unwrap();
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
