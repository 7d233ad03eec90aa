//! Misbehaviour on demand.

use crate::resource::Resource;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a request asks for, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// One object by name.
    Get,
    /// All objects of a selection.
    List,
    /// The changes of a selection.
    Watch,
    /// A new object.
    Create,
    /// A change of an object by what differs.
    Patch,
    /// The end of an object.
    Delete,
}

impl Verb {
    /// The name in RBAC rules and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
        }
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The answer is this HTTP status with a fitting `Status` body (410, 429 with Retry-After, 500, 503, 401 …).
    Status(u16),
    /// The answer is 200 and one ERROR line with this code.
    ErrorLine(u16),
    /// The answer comes after this time.
    Delay(Duration),
    /// The connection is closed without an answer.
    Disconnect,
    /// The answer begins as it should and the connection is lost after half of its line `n` (0 is the first; the body of a list is one line).
    CutLine(usize),
    /// A watch is opened and nothing is ever sent on it, its end included. Whatever interrupts open watches loses its connection.
    Silent,
    /// Nothing is ever answered, and the connection stays open.
    NoAnswer,
}

/// What happens to the watches that are open now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// The connection is lost in the middle of a line.
    Cut,
    /// An ERROR line with this code, then the end.
    ErrorLine(u16),
    /// The end, as after `timeoutSeconds`.
    End,
}

/// The faults asked for and not yet used up.
#[derive(Default)]
pub(crate) struct Faults {
    pending: Mutex<Vec<Pending>>,
}

struct Pending {
    verb: Verb,
    resource: Resource,
    times: usize,
    fault: Fault,
}

impl Faults {
    pub(crate) fn add(&self, verb: Verb, resource: Resource, times: usize, fault: Fault) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(Pending { verb, resource, times, fault });
    }

    pub(crate) fn clear(&self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The fault for this request, in the order in which they were asked for.
    pub(crate) fn take(&self, verb: Verb, resource: Resource) -> Option<Fault> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let position = pending.iter().position(|pending| pending.verb == verb && pending.resource == resource)?;
        let entry = pending.get_mut(position)?;
        let fault = entry.fault.clone();
        entry.times = entry.times.saturating_sub(1);
        if entry.times == 0 {
            pending.remove(position);
        }
        Some(fault)
    }
}
