//! The API server double, on a thread of its own.

use std::sync::mpsc;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Json, Options, Resource};

/// A running double that can be written to from here.
pub(crate) struct Double(ApiServer);

impl Double {
    /// Starts one that holds these objects, and no history.
    pub(crate) fn start(objects: impl Iterator<Item = Json>) -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(sender.send(Err(error))),
            };
            runtime.block_on(async move {
                // Whoever asked has gone when this cannot be said, and with it the process.
                let _ = sender.send(ApiServer::start(Options::default()).await);
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

    pub(crate) fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        anyhow::ensure!(self.0.delete(resource, namespace, name), "{namespace}/{name} is not there to delete");
        Ok(())
    }

    /// When the last line was handed to a connection.
    pub(crate) fn last_sent(&self) -> Result<SystemTime> {
        self.0.last_sent().context("the API server double has sent nothing")
    }
}
