//! Watches: initial events, changes as the selection sees them, bookmarks, and the end.

use crate::body::LineSender;
use crate::fault::{Fault, Interruption};
use crate::json::Json;
use crate::request::Query;
use crate::resource::Resource;
use crate::selector::Selection;
use crate::server::Shared;
use crate::status::Failure;
use crate::store::{Change, Object};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

/// A real server picks a time between 30 and 60 minutes when the client names none.
const DEFAULT_TIMEOUT_SECONDS: u32 = 1800;

/// A real server sends its last bookmark this long before the end of a watch.
const LAST_BOOKMARK_SECONDS: u32 = 2;

/// A watch that has been granted.
pub(crate) struct Watch {
    resource: Resource,
    selection: Selection,
    begin: Begin,
    bookmarks: bool,
    timeout_seconds: u32,
}

enum Begin {
    /// With the changes after this version.
    After(u64),
    /// With what is there, as ADDED events.
    WithObjects,
    /// The same, and a bookmark that says when everything has been sent.
    StreamingList,
    /// With an ERROR line, and that is all.
    Fail(Failure),
}

impl Watch {
    pub(crate) fn parse(shared: &Shared, resource: Resource, selection: Selection, query: &Query) -> Result<Self, Failure> {
        let version = match query.get("resourceVersion") {
            "" => 0,
            text => text.parse::<u64>().map_err(|_| Failure::bad_resource_version(text))?,
        };
        let bookmarks = query.is_true("allowWatchBookmarks");
        let begin = if query.is_true("sendInitialEvents") {
            if query.get("resourceVersionMatch") != "NotOlderThan" {
                let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(Failure::invalid_options("resourceVersionMatch", message));
            }
            if !shared.streaming_lists() {
                Begin::Fail(Failure::no_streaming_lists())
            } else if version > shared.store.version() {
                return Err(Failure::too_large_resource_version(version, shared.store.version()));
            } else {
                Begin::StreamingList
            }
        } else if !query.get("resourceVersionMatch").is_empty() {
            let message = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(Failure::invalid_options("resourceVersionMatch", message));
        } else if version == 0 {
            Begin::WithObjects
        } else {
            match shared.store.since(resource, version) {
                Ok(_) => Begin::After(version),
                Err(expired) => Begin::Fail(Failure::expired_watch(version, expired.floor)),
            }
        };
        let timeout_seconds = match query.get("timeoutSeconds") {
            "" | "0" => DEFAULT_TIMEOUT_SECONDS,
            text => {
                text.parse().map_err(|_| Failure::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))?
            }
        };
        Ok(Self { resource, selection, begin, bookmarks, timeout_seconds })
    }

    /// Sends the watch until it ends, is interrupted, or nobody listens.
    pub(crate) async fn run(self, shared: Arc<Shared>, sender: LineSender, fault: Option<Fault>) {
        let cut = match fault {
            Some(Fault::CutLine(line)) => Some(line),
            _ => None,
        };
        let mut out = Out { sender, sent: 0, cut };
        // Only the client decides whether the stream goes on; either way there is nothing left to do here.
        let _ = self.stream(&shared, &mut out).await;
    }

    async fn stream(&self, shared: &Shared, out: &mut Out) -> Result<(), Over> {
        let mut interruptions = shared.interruptions.get(&self.resource).ok_or(Over)?.subscribe();
        let mut versions = shared.store.versions();
        versions.mark_unchanged();
        let mut position = match &self.begin {
            Begin::Fail(failure) => return out.line(&error(failure)).await,
            Begin::After(version) => *version,
            Begin::WithObjects | Begin::StreamingList => {
                let (version, objects) = shared.store.list(self.resource);
                for (_, object) in objects.iter().filter(|(_, object)| self.selection.matches(self.resource, object)) {
                    out.line(&event("ADDED", self.resource, object)).await?;
                }
                if matches!(self.begin, Begin::StreamingList) && self.bookmarks {
                    out.line(&self.bookmark(version, true)).await?;
                }
                version
            }
        };
        let begun = Instant::now();
        let second = shared.options.second;
        let end = begun + second * self.timeout_seconds;
        let last_bookmark =
            end.checked_sub(second * LAST_BOOKMARK_SECONDS).filter(|_| self.timeout_seconds > 2 * LAST_BOOKMARK_SECONDS - 1);
        let mut next_bookmark = self.next_bookmark(begun, last_bookmark, second * shared.options.bookmark_seconds);
        loop {
            // Changes may have come before the subscription: look first, wait afterwards.
            let version = *versions.borrow_and_update();
            let changes = match shared.store.since(self.resource, position) {
                Ok(changes) => changes,
                Err(expired) => return out.line(&error(&Failure::expired_watch(position, expired.floor))).await,
            };
            for change in changes {
                position = position.max(change.version);
                if let Some(line) = self.line(&change) {
                    out.line(&line).await?;
                }
            }
            position = position.max(version);
            let bookmark_due = async {
                match next_bookmark {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What was asked for first happens first: an interruption before the changes that follow it.
                biased;
                () = out.sender.closed() => return Err(Over),
                interruption = interruptions.recv() => match interruption {
                    Ok(interruption) => return self.interrupt(out, position, interruption).await,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Over),
                },
                changed = versions.changed() => changed.map_err(|_| Over)?,
                () = bookmark_due => {
                    out.line(&self.bookmark(position, false)).await?;
                    next_bookmark = self.next_bookmark(Instant::now(), last_bookmark, second * shared.options.bookmark_seconds);
                }
                () = sleep_until(end) => return Ok(()),
            }
        }
    }

    async fn interrupt(&self, out: &mut Out, position: u64, interruption: Interruption) -> Result<(), Over> {
        match interruption {
            Interruption::End => Ok(()),
            Interruption::ErrorLine(code) => out.line(&error(&Failure::on_demand(code))).await,
            Interruption::Cut => {
                out.cut = Some(out.sent);
                out.line(&self.bookmark(position, false)).await
            }
        }
    }

    fn next_bookmark(&self, now: Instant, last: Option<Instant>, interval: Duration) -> Option<Instant> {
        let last = last.filter(|last| self.bookmarks && *last > now)?;
        Some(last.min(now + interval))
    }

    /// The change as this selection sees it: an object that leaves the selection is a deleted one.
    fn line(&self, change: &Change) -> Option<String> {
        let selected =
            |object: &Option<Object>| object.as_ref().is_some_and(|object| self.selection.matches(self.resource, object));
        match (selected(&change.before), selected(&change.after)) {
            (false, true) => Some(event("ADDED", self.resource, change.after.as_deref()?)),
            (true, true) => Some(event("MODIFIED", self.resource, change.after.as_deref()?)),
            (true, false) => {
                // The last state that was selected, at the version of its end.
                let mut last = Json::clone(change.before.as_deref()?);
                last.entry("metadata")?.set("resourceVersion", Json::String(change.version.to_string()));
                Some(event("DELETED", self.resource, &last))
            }
            (false, false) => None,
        }
    }

    fn bookmark(&self, version: u64, ends_initial_events: bool) -> String {
        let annotation = if ends_initial_events { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
        let (kind, api_version, rest) = (self.resource.kind(), self.resource.api_version(), self.resource.empty_body());
        format!(
            r#"{{"type":"BOOKMARK","object":{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}"{annotation}}}{rest}}}}}"#
        )
    }
}

/// An object as it stands alone: with its kind and version in front.
pub(crate) fn with_kind(resource: Resource, object: &Json) -> String {
    let text = object.to_string();
    let members = text.strip_prefix('{').unwrap_or_default();
    let comma = if members == "}" { "" } else { "," };
    format!(r#"{{"kind":"{}","apiVersion":"{}"{comma}{members}"#, resource.kind(), resource.api_version())
}

/// An ERROR line, without its newline.
pub(crate) fn error(failure: &Failure) -> String {
    format!(r#"{{"type":"ERROR","object":{}}}"#, failure.body())
}

fn event(kind: &str, resource: Resource, object: &Json) -> String {
    format!(r#"{{"type":"{kind}","object":{}}}"#, with_kind(resource, object))
}

/// The stream has ended and nothing more can be sent.
struct Over;

struct Out {
    sender: LineSender,
    sent: usize,
    /// The line in whose middle the connection is lost.
    cut: Option<usize>,
}

impl Out {
    async fn line(&mut self, line: &str) -> Result<(), Over> {
        if self.cut == Some(self.sent) {
            self.sender.cut(line).await;
            return Err(Over);
        }
        self.sent += 1;
        self.sender.send(format!("{line}\n")).await.map_err(|_| Over)
    }
}
