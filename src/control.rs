//! The control socket: what a running agent tells the other subcommands.
//!
//! It speaks HTTP/1.1 over a Unix socket that only root can use ([`control_listener`](crate::http::control_listener)), so that `curl
//! --unix-socket` can ask as well. A question is a GET request for one of the paths of [`Query`], all of which begin with the version of what is
//! answered; the answer is one JSON document. Fields may be added to answers within a version, and readers pass over those that they do not
//! know. What changes otherwise gets another version, and a reader that asks for one that the agent does not have is told so.
//!
//! Everything is bounded: the request's head, how many connections there are and how long each lasts (`http`), how large an answer is read
//! ([`client`]).

pub(crate) mod client;
mod document;
mod server;

pub(crate) use document::{DesiredTable, DesiredVirtualServer, Drain, Drains, Endpoint, Endpoints, Key, Stage};
pub(crate) use server::{AskAgent, AskReconciler, Desk};

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    /// The virtual servers that are desired, as a [`DesiredTable`].
    VirtualServers,
    /// The real servers that are leaving, as [`Drains`].
    Drains,
    /// The pods and nodes behind the endpoints of Services, as [`Endpoints`].
    Endpoints,
}

impl Query {
    const ALL: [Self; 3] = [Self::VirtualServers, Self::Drains, Self::Endpoints];

    /// Where it is asked.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::VirtualServers => "/v1/virtual-servers",
            Self::Drains => "/v1/drains",
            Self::Endpoints => "/v1/endpoints",
        }
    }

    fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|query| query.path() == path)
    }
}
