//! Where the objects come from: the API server ([`api`]) or files ([`manifests`]). Both tell the same story over the same channel.

pub(crate) mod api;
pub(crate) mod decoding;
pub(crate) mod indexing;
pub(crate) mod manifests;
mod object;
mod selection;

pub(crate) use object::{Event, Kind, Object};

use tokio::sync::mpsc;

/// The agent has stopped listening, so the source stops too.
#[derive(Debug, PartialEq)]
pub(crate) struct Closed;

pub(crate) type Events = mpsc::Sender<Event>;

async fn tell(events: &Events, event: Event) -> Result<(), Closed> {
    events.send(event).await.map_err(|_| Closed)
}

/// What a node name that matches no Node means, and what to do.
pub(crate) fn unknown_node(name: &str) -> String {
    format!(
        "there is no Node {name}: which endpoints are local and which addresses NodePorts get is unknown; \
         pass the name that `kubectl get nodes` shows with --node-name"
    )
}

#[cfg(test)]
mod tests;
