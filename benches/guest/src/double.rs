//! The API server double, on a thread of its own.

use std::sync::mpsc;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Fault, Json, Options, Resource, Verb};

/// What agents watch.
const WATCHED: [Resource; 3] = [Resource::Services, Resource::EndpointSlices, Resource::Nodes];

/// A running double that can be written to from here.
pub(crate) struct Double(ApiServer);

impl Double {
    /// Starts one that holds these objects, and no history.
    pub(crate) fn start(objects: impl Iterator<Item = Json>) -> Result<Self> {
        // Lists come in pages: then "the last page" has been received when it has been sent. Of a streaming list megabytes may still be on their
        // way when the double is done with it.
        let options = Options { streaming_lists: false, ..Options::default() };
        let (sender, receiver) = mpsc::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(sender.send(Err(error))),
            };
            runtime.block_on(async move {
                // Whoever asked has gone when this cannot be said, and with it the process.
                let _ = sender.send(ApiServer::start(options).await);
                std::future::pending::<()>().await;
            });
        };
        thread::Builder::new().name("apiserver".to_owned()).spawn(serve).context("cannot start the double's thread")?;
        let server = receiver.recv().context("the API server double has ended")?.context("the API server double cannot listen")?;
        let double = Self(server);
        for object in objects {
            double.apply(object)?;
        }
        double.0.compact();
        Ok(double)
    }

    pub(crate) fn kubeconfig(&self) -> String {
        self.0.kubeconfig()
    }

    pub(crate) fn apply(&self, object: Json) -> Result<()> {
        self.0.apply(object).map_err(|error| anyhow::anyhow!("the API server double refuses an object: {error}"))
    }

    /// Writes all of `objects`, and tells the agent of them at once. Returns when that began.
    pub(crate) fn apply_at_once(&self, objects: impl IntoIterator<Item = Json>) -> Result<SystemTime> {
        self.0.hold();
        let applied = objects.into_iter().try_for_each(|object| self.apply(object));
        let begun = SystemTime::now();
        self.0.release();
        applied.map(|()| begun)
    }

    /// Loses all connections, and from now on each that is made for a list or a watch.
    pub(crate) fn go_away(&self) {
        for resource in WATCHED {
            for verb in [Verb::List, Verb::Watch] {
                self.0.fail_next(verb, resource, usize::MAX, Fault::Disconnect);
            }
            self.0.cut_watches(resource);
        }
    }

    pub(crate) fn come_back(&self) {
        self.0.clear_faults();
    }

    /// How many requests there have been.
    pub(crate) fn requests(&self) -> usize {
        self.0.requests().len()
    }

    /// Forgets the history.
    pub(crate) fn compact(&self) {
        self.0.compact();
    }

    pub(crate) fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        anyhow::ensure!(self.0.delete(resource, namespace, name), "{namespace}/{name} is not there to delete");
        Ok(())
    }

    /// When the last line was handed to a connection.
    pub(crate) fn last_sent(&self) -> Result<SystemTime> {
        self.0.last_sent().context("the API server double has sent nothing")
    }
}
