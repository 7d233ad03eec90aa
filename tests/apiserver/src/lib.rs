//! This crate turns Kubernetes objects into a kube-apiserver's answers: a double to run the agent and kubectl against, without a cluster.
//!
//! The principal type is [`ApiServer`]: it listens on a loopback port, holds Services, EndpointSlices, Nodes and Events (and of Pods, ConfigMaps and
//! DaemonSets what operators' scripts need), answers lists (pages, resource versions, selectors) and watches (changes, bookmarks, streaming lists) as a
//! real server does, and fails on demand in the ways a real one fails.
//! How real servers answer is recorded in `recordings/`, and a test replays the recordings against the double.
//! Its neighbour is the agent's API source, which tests drive through kube's real client; `apiserver --manifests` serves files to kubectl by hand.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use apiserver::{ApiServer, Fault, Options, Resource, Verb};
//!
//! let server = ApiServer::start(Options::default()).await?;
//! server.apply(r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-1"}}"#.parse::<apiserver::Json>()?)?;
//! server.fail_next(Verb::List, Resource::Nodes, 1, Fault::Status(500));
//! println!("{}", server.kubeconfig());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod body;
mod discovery;
mod event;
mod fault;
mod json;
mod list;
mod manifests;
mod mishap;
mod objects;
mod options;
mod request;
mod resource;
mod selector;
mod server;
mod status;
mod store;
mod tls;
mod watch;

pub use fault::{Fault, Verb};
pub use json::Json;
pub use manifests::read_manifests;
pub use mishap::Mishap;
pub use objects::Unusable;
pub use options::Options;
pub use request::Received;
pub use resource::Resource;
pub use tls::Tls;

use fault::Interruption;
use server::Shared;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running double. Dropping it closes its port and its connections.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl ApiServer {
    /// Starts a double on the current tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(options));
        let serving = tokio::spawn(server::serve(listener, shared.clone()));
        Ok(Self { address, shared, serving })
    }

    /// The base URL, such as `http://127.0.0.1:40123`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.shared.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Lets this token in from now on, and no other.
    pub fn set_token(&self, token: &str) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
    }

    /// A kubeconfig for this server, with its token if it wants one.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let token = self.shared.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let user = token.map_or_else(|| "{}".to_owned(), |token| format!("{{token: {}}}", Json::from(token.as_str())));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\nclusters:\n- name: double\n  cluster: {{server: '{}'}}\nusers:\n- name: double\n  \
             user: {user}\ncontexts:\n- name: double\n  context: {{cluster: double, user: double}}\n",
            self.url()
        )
    }

    /// Creates or replaces an object, which names its `kind` and `apiVersion`. The server adds uid, version and time of creation.
    ///
    /// # Errors
    /// The object is of a kind the double does not serve, or has no name.
    pub fn apply(&self, object: impl Into<Json>) -> Result<(), Unusable> {
        objects::apply(&self.shared.store, object.into()).map(drop)
    }

    /// From now on watches are told nothing of what is written.
    pub fn hold(&self) {
        self.shared.store.hold(true);
    }

    /// Watches are told at once of all that has been written since [`Self::hold`].
    pub fn release(&self) {
        self.shared.store.hold(false);
    }

    /// Deletes an object; `namespace` is not looked at for Nodes. Says whether it was there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.shared.store.delete(resource, &objects::key(resource, Some(namespace), name))
    }

    /// Puts in an object that was recorded, with the version, uid and times it has.
    ///
    /// # Errors
    /// The object has no name or no version.
    pub fn load(&self, resource: Resource, object: impl Into<Json>) -> Result<(), Unusable> {
        objects::load(&self.shared.store, resource, object.into())
    }

    /// Everything of `resource`, in the order of lists.
    #[must_use]
    pub fn objects(&self, resource: Resource) -> Vec<Json> {
        self.shared.store.list(resource).1.into_iter().map(|(_, object)| Json::clone(&object)).collect()
    }

    /// The version of the last write.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store.version()
    }

    /// Moves the version on to `version`, as writes to other resources do. It never goes back.
    pub fn advance_to(&self, version: u64) {
        self.shared.store.advance_to(version);
    }

    /// Forgets the history: every version before the present is expired (410).
    pub fn compact(&self) {
        self.shared.store.compact(u64::MAX);
    }

    /// Forgets the history before `version`.
    pub fn compact_to(&self, version: u64) {
        self.shared.store.compact(version);
    }

    /// Makes the next `times` requests of this kind go wrong. Faults asked for earlier come first.
    pub fn fail_next(&self, verb: Verb, resource: Resource, times: usize, fault: Fault) {
        self.shared.faults.add(verb, resource, times, fault);
    }

    /// Takes back all faults that have not happened yet.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Answers a GET of `path`, such as the log of a pod, with `text` from now on, and with 404 again when there is none.
    pub fn set_text(&self, path: &str, text: Option<&str>) {
        let mut texts = self.shared.texts.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => texts.insert(path.to_owned(), text.to_owned()),
            None => texts.remove(path),
        };
    }

    /// Answers 403 to `verb` on `resource` from now on.
    pub fn forbid(&self, verb: Verb, resource: Resource) {
        self.shared.forbidden.lock().unwrap_or_else(PoisonError::into_inner).push((verb, resource));
    }

    /// Takes back [`ApiServer::forbid`].
    pub fn allow(&self, verb: Verb, resource: Resource) {
        self.shared.forbidden.lock().unwrap_or_else(PoisonError::into_inner).retain(|entry| *entry != (verb, resource));
    }

    /// Switches `sendInitialEvents` on or off.
    pub fn set_streaming_lists(&self, able: bool) {
        self.shared.streaming_lists.store(able, Ordering::Relaxed);
    }

    /// How many watches of `resource` are open.
    #[must_use]
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.shared.interruptions.get(&resource).map_or(0, tokio::sync::broadcast::Sender::receiver_count)
    }

    /// Loses the connections of all open watches of `resource` in the middle of a line.
    pub fn cut_watches(&self, resource: Resource) {
        self.interrupt(resource, Interruption::Cut);
    }

    /// Sends an ERROR line with `code` on all open watches of `resource`, and ends them.
    pub fn fail_watches(&self, resource: Resource, code: u16) {
        self.interrupt(resource, Interruption::ErrorLine(code));
    }

    /// Ends all open watches of `resource`, as their timeouts would.
    pub fn end_watches(&self, resource: Resource) {
        self.interrupt(resource, Interruption::End);
    }

    /// Every request received so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the last line of a watch, or part of a long list, was handed to its connection; `None` before the first. What a client does
    /// about it can be timed from here, without what the double itself spent on it.
    #[must_use]
    pub fn last_sent(&self) -> Option<SystemTime> {
        self.shared.last_sent.get()
    }

    fn interrupt(&self, resource: Resource, interruption: Interruption) {
        // Without an open watch there is nothing to interrupt.
        let _ = self.shared.interruptions.get(&resource).map(|watches| watches.send(interruption));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
