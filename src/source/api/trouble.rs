//! What an error of the API server means, and how to say it.

use crate::source::Kind;
use kube::core::Status;
use kube::runtime::watcher::Error;
use std::error::Error as _;
use std::time::Duration;

/// The history asked for is forgotten.
pub(super) fn is_gone(error: &Error) -> bool {
    status(error).is_some_and(|status| status.code == 410)
}

/// The server knows no streaming lists: an ERROR line where the list should be, or a request it does not understand. What passes (5xx, 429) does not count,
/// nor does what paged lists would meet too (401, 403).
pub(super) fn refuses_streaming(error: &Error) -> bool {
    match error {
        Error::WatchError(status) => !matches!(status.code, 401 | 403 | 410 | 429),
        Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 400 | 406 | 415 | 422),
        _ => false,
    }
}

/// The server sent something that is not an event or not an object of its kind.
pub(super) fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::WatchFailed(kube::Error::SerdeError(_)) | Error::NoResourceVersion)
}

/// How long the server asks to be left alone.
pub(super) fn retry_after(error: &Error) -> Duration {
    let seconds = status(error).and_then(|status| status.details.as_ref()).map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.into())
}

/// The error as a sentence: what cannot be done, why, and what to do.
pub(super) fn sentence(kind: Kind, error: &Error) -> String {
    let (resource, verb) = (kind.resource(), verb(error));
    match status(error) {
        Some(status) if status.code == 403 => {
            let group = kind.group();
            let server = &status.message;
            format!(
                "kube-ipvs may not {verb} {resource}: grant `apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"list\", \"watch\"]` in its ClusterRole ({server})"
            )
        }
        Some(status) if status.code == 401 => format!(
            "the API server does not know kube-ipvs (401 when it asked to {verb} {resource}): \
             renew the token or client certificate of its kubeconfig or service account"
        ),
        Some(status) => {
            format!(
                "cannot {verb} {resource}: the API server answers {} {}: {}; trying again",
                status.code, status.reason, status.message
            )
        }
        None => format!("cannot {verb} {resource}: {}; trying again", cause(error)),
    }
}

fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::WatchError(status) => Some(status),
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => Some(status),
            _ => None,
        },
        Error::NoResourceVersion => None,
    }
}

fn verb(error: &Error) -> &'static str {
    match error {
        Error::InitialListFailed(_) => "list",
        Error::WatchStartFailed(_) | Error::WatchError(_) | Error::WatchFailed(_) | Error::NoResourceVersion => "watch",
    }
}

/// The whole chain of an error that has no status: "client error (Connect): tcp connect error: Connection refused".
fn cause(error: &Error) -> String {
    let mut innermost_first: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        innermost_first.insert(0, error.to_string());
        next = error.source();
    }
    // Many errors repeat their source in their own text; the innermost says what happened.
    innermost_first.into_iter().next().unwrap_or_else(|| error.to_string())
}
