//! Objects from the API server: three watches that survive what API servers do.
//!
//! kube's watcher keeps the resource version, resumes after a disconnect and lists again after 410. What it leaves to its user is here: the choice between
//! streaming and paged lists, the pace after errors, deadlines for servers that say nothing, and sentences for people.

mod backoff;
mod bookmarks;
mod client;
mod connections;
mod endpoints;
mod proxy;
mod received;
mod token;
mod trouble;

#[cfg(test)]
pub(crate) use client::connect;
pub(crate) use client::connect_to;
pub(crate) use endpoints::Endpoint;

use super::selection::selectors;
use super::{Closed, Event, Events, Kind, tell, unknown_node};
use crate::freshness::Freshness;
use backoff::{Backoff, random_in};
use desired::object::{EndpointSlice, Node, Service};
use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use received::{Received, Watched};
use std::ops::ControlFlow;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// What can be adjusted; tests hurry.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// Objects per page of a paged list.
    pub(crate) page_size: u32,
    /// Seconds after which the server ends a watch, picked anew for each stream, so that nodes that began together do not go on in step.
    /// Below 300, where proxies and load balancers tend to cut idle connections.
    pub(crate) watch_seconds: RangeInclusive<u32>,
    /// How long a listing may stand still before it is given up.
    pub(crate) patience: Duration,
    /// The first and the longest wait after an error.
    pub(crate) backoff: (Duration, Duration),
    /// Over how long nodes are spread that list again because the history of what they watch is gone. To an API server that has lost it as a whole
    /// (an etcd that was compacted, or restored) all nodes would come at the same moment.
    pub(crate) apart: Duration,
    /// Whether to watch all Nodes, or only the own one.
    pub(crate) all_nodes: bool,
    /// The proxy whose Services are wanted; those that name none when it is `None`.
    pub(crate) proxy_name: Option<String>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            page_size: 500,
            watch_seconds: 240..=290,
            // API servers give up on a list after 60 s themselves.
            patience: Duration::from_secs(60),
            backoff: (Duration::from_millis(800), Duration::from_secs(30)),
            apart: Duration::from_secs(5),
            all_nodes: true,
            proxy_name: None,
        }
    }
}

/// The watches on one API server.
pub(crate) struct ApiSource {
    client: Client,
    node_name: String,
    tuning: Tuning,
    freshness: Freshness,
    /// Whether this server can do streaming lists. One refusal, by whichever watch, is remembered for all.
    streaming: AtomicBool,
}

impl ApiSource {
    /// `freshness` is where the client notes what its watches say.
    pub(crate) fn new(client: Client, node_name: String, tuning: Tuning, freshness: Freshness) -> Self {
        Self { client, node_name, tuning, freshness, streaming: AtomicBool::new(true) }
    }

    /// Watches until nobody listens any more.
    pub(crate) async fn run(&self, events: Events) {
        // Each ends only when the channel is closed, and then all do.
        let (Closed, Closed, Closed) =
            tokio::join!(self.follow::<Service>(&events), self.follow::<EndpointSlice>(&events), self.follow::<Node>(&events));
    }

    async fn follow<K: Watched>(&self, events: &Events) -> Closed {
        let mut backoff = Backoff::new(self.tuning.backoff);
        loop {
            let streaming = self.streaming.load(Ordering::Relaxed);
            let stream = watcher(Api::<Received<K>>::all(self.client.clone()), self.config(K::KIND, streaming));
            let follower = Follower { source: self, events, streaming, listing: Listing::Before, has_own_node: false };
            if let Err(closed) = follower.run(pin!(stream), &mut backoff).await {
                return closed;
            }
        }
    }

    fn config(&self, kind: Kind, streaming: bool) -> watcher::Config {
        let selectors = selectors(kind, (!self.tuning.all_nodes).then_some(&*self.node_name), self.tuning.proxy_name.as_deref());
        // Paged lists are consistent reads: a cached one (resourceVersion 0) would ignore the page size, and could go back behind what was seen.
        let config = watcher::Config {
            label_selector: selectors.labels,
            field_selector: selectors.fields,
            ..watcher::Config::default().timeout(random_in(&self.tuning.watch_seconds)).page_size(self.tuning.page_size)
        };
        if streaming { config.streaming_lists() } else { config }
    }

    fn give_up_streaming(&self, reason: &str) {
        if self.streaming.swap(false, Ordering::Relaxed) {
            tracing::info!(reason, "the API server cannot do streaming lists; using paged lists from now on");
        }
    }
}

/// How far a listing has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Listing {
    /// Nothing has been received.
    Before,
    /// Between `Init` and `InitDone`.
    Under,
    /// The watch is on.
    Complete,
}

/// Follows one stream of kube's watcher.
struct Follower<'a> {
    source: &'a ApiSource,
    events: &'a Events,
    streaming: bool,
    listing: Listing,
    /// Whether the listing under way has named the own Node.
    has_own_node: bool,
}

/// Whether the same stream goes on or another one is needed.
type Next = ControlFlow<()>;

impl Follower<'_> {
    /// Runs until the stream is of no more use.
    async fn run<K: Watched>(
        mut self,
        mut stream: impl Stream<Item = watcher::Result<watcher::Event<Received<K>>>> + Unpin,
        backoff: &mut Backoff,
    ) -> Result<(), Closed> {
        loop {
            let item = if self.listing == Listing::Complete {
                // kube opens a watch again that has been idle for its timeout and 5 s more.
                tokio::select! {
                    item = stream.next() => item,
                    () = self.events.closed() => return Err(Closed),
                }
            } else {
                match timeout(self.source.tuning.patience, stream.next()).await {
                    Ok(item) => item,
                    Err(_) => return self.stalled(K::KIND, backoff).await,
                }
            };
            let next = match item {
                Some(Ok(event)) => self.event(event, backoff).await?,
                Some(Err(error)) => self.error(K::KIND, &error, backoff).await?,
                None => ControlFlow::Break(()),
            };
            if next.is_break() {
                return Ok(());
            }
        }
    }

    async fn event<K: Watched>(&mut self, event: watcher::Event<Received<K>>, backoff: &mut Backoff) -> Result<Next, Closed> {
        match event {
            watcher::Event::Init => {
                if self.listing == Listing::Under && self.streaming {
                    // The streaming list ended before its bookmark, and kube has started over at once.
                    let delay = backoff.next();
                    if backoff.attempts() >= MAX_BROKEN_STREAMS {
                        self.source.give_up_streaming("its streaming lists end early");
                        return Ok(ControlFlow::Break(()));
                    }
                    sleep(delay).await;
                }
                self.listing = Listing::Under;
                self.has_own_node = false;
                tell(self.events, Event::Listing(K::KIND)).await?;
            }
            watcher::Event::InitApply(Received(object)) => {
                self.has_own_node |= K::KIND == Kind::Node && object.metadata().name.as_ref() == Some(&self.source.node_name);
                tell(self.events, Event::Applied(object.into())).await?;
            }
            watcher::Event::InitDone => {
                self.listing = Listing::Complete;
                backoff.reset();
                self.source.freshness.note(K::KIND);
                tell(self.events, Event::Listed(K::KIND)).await?;
                if K::KIND == Kind::Node && !self.has_own_node {
                    self.trouble(Kind::Node, unknown_node(&self.source.node_name)).await?;
                }
            }
            watcher::Event::Apply(Received(object)) => {
                backoff.reset();
                self.source.freshness.note(K::KIND);
                tell(self.events, Event::Applied(object.into())).await?;
            }
            watcher::Event::Delete(Received(object)) => {
                backoff.reset();
                self.source.freshness.note(K::KIND);
                tell(self.events, Event::Deleted(object.into())).await?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn error(&mut self, kind: Kind, error: &watcher::Error, backoff: &mut Backoff) -> Result<Next, Closed> {
        let gone = trouble::is_gone(error);
        if gone && backoff.hasten() {
            // Whoever says so is there again. Either wait counts, so that a server to which everything has expired is not asked without a pause.
            let delay = if self.listing == Listing::Complete {
                backoff.next_apart(self.source.tuning.apart)
            } else {
                // The pages of a list expire to each node by itself, and a start waits for nothing.
                backoff.next();
                Duration::ZERO
            };
            tracing::debug!(%kind, ?delay, "the resource version has expired; listing again");
            sleep(delay).await;
            return Ok(ControlFlow::Break(()));
        }
        if self.streaming && self.listing != Listing::Complete && trouble::refuses_streaming(error) {
            self.source.give_up_streaming(&error.to_string());
            return Ok(ControlFlow::Break(()));
        }
        // Only another stream lists again. After 410 as a status (not as an ERROR line) kube would ask for the same version for ever, and behind an
        // object that it could not read it would go on, and that change would be lost.
        let next = if gone || trouble::is_unreadable(error) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let delay = backoff.next().max(trouble::retry_after(error).min(self.source.tuning.backoff.1));
        self.trouble(kind, trouble::sentence(kind, error)).await?;
        sleep(delay).await;
        Ok(next)
    }

    async fn stalled(&self, kind: Kind, backoff: &mut Backoff) -> Result<(), Closed> {
        let seconds = self.source.tuning.patience.as_secs_f32();
        self.trouble(
            kind,
            format!("the API server has sent nothing for {seconds} s while listing {}; trying again", kind.resource()),
        )
        .await?;
        if self.streaming && self.listing == Listing::Under {
            // An older server ignores `sendInitialEvents` and never sends the bookmark that ends the list.
            self.source.give_up_streaming("its streaming lists do not end");
        }
        sleep(backoff.next()).await;
        Ok(())
    }

    async fn trouble(&self, kind: Kind, message: String) -> Result<(), Closed> {
        tell(self.events, Event::Trouble { kind: Some(kind), message }).await
    }
}

/// So many streaming lists may end early in a row before paged ones are used.
const MAX_BROKEN_STREAMS: u32 = 3;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod versions;
