//! The way back from the reconciler: what it finds out about Services, told to the asynchronous side.
//!
//! As on the way there, news of one Service replaces older news of it, so the sender never waits and memory is bounded by the number of
//! Services. News says all there is to say of a Service, so nothing is lost with what is replaced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use desired::{Problem, ServiceName};
use tokio::sync::Notify;

use crate::register::Origin;

/// All problems of one origin that each Service has now; none for one whose problems are over.
pub(crate) type Found = BTreeMap<(ServiceName, Origin), Box<[Problem]>>;

/// What has not been taken yet. Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct News(Arc<Shared>);

#[derive(Default)]
struct Shared {
    found: Mutex<Found>,
    arrived: Notify,
}

impl News {
    /// Adds what was found, if that is anything, and wakes whoever waits.
    pub(crate) fn post(&self, origin: Origin, found: impl IntoIterator<Item = (ServiceName, Box<[Problem]>)>) {
        let mut news = found.into_iter().map(|(service, problems)| ((service, origin), problems)).peekable();
        if news.peek().is_some() {
            self.lock().extend(news);
            self.0.arrived.notify_one();
        }
    }

    /// Takes what there is, and waits for something if there is nothing. Nothing is lost when this is given up.
    pub(crate) async fn wait(&self) -> Found {
        loop {
            let found = self.take();
            if !found.is_empty() {
                return found;
            }
            self.0.arrived.notified().await;
        }
    }

    /// Takes what there is.
    pub(crate) fn take(&self) -> Found {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        // A map that is extended by a thread that panics has lost at worst the rest of its news.
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use desired::Reason;
    use std::time::Duration;

    #[tokio::test]
    async fn later_news_of_a_service_replaces_earlier_and_wakes_who_waits() {
        let news = News::default();
        let web = ServiceName::new("shop", "web");
        let waiting = tokio::spawn({
            let news = news.clone();
            async move { tokio::time::timeout(Duration::from_secs(60), news.wait()).await.unwrap() }
        });
        tokio::task::yield_now().await;
        std::thread::spawn({
            let (news, web) = (news.clone(), web.clone());
            move || {
                let problem = |count: usize| {
                    let problem = Problem::new(Reason::Conflict, "Service shop/web", "spec.externalIPs", &count.to_string());
                    Box::from([problem])
                };
                (0..10_000).for_each(|count| news.post(Origin::Others, [(web.clone(), problem(count))]));
                news.post(Origin::Kernel, []);
            }
        })
        .join()
        .unwrap();
        let found = waiting.await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(&*found[&(web, Origin::Others)][0].message, "9999");
        assert!(news.take().is_empty());
    }
}
