//! Signs of life of quiet watches. kube keeps bookmarks to itself, so they are looked for in what goes to it.

use crate::freshness::Freshness;
use crate::metrics::Requests;
use crate::source::Kind;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::{Request, Response};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// How API servers begin the line of a bookmark, and that of an error. They write each line by itself, so it comes as a frame of its own.
const BOOKMARK: &[u8] = br#"{"type":"BOOKMARK""#;
const ERROR: &[u8] = br#"{"type":"ERROR""#;

/// The kind that a request watches, if it is a watch.
pub(super) fn watched<B>(request: &Request<B>) -> Option<Kind> {
    request.uri().query().filter(|query| query.contains("watch=true"))?;
    let resource = request.uri().path().rsplit('/').next()?;
    Kind::ALL.into_iter().find(|kind| kind.resource() == resource)
}

/// The answer to a watch of a kind, or to something else that may be timed.
pub(super) fn observed(
    kind: Option<Kind>,
    answer: Response<Incoming>,
    freshness: &Freshness,
    timed: Option<Timed>,
) -> Response<Observed> {
    let kind = kind.filter(|_| answer.status().is_success());
    answer.map(|body| Observed { body, sign: kind.map(|kind| (kind, freshness.clone())), _timed: timed })
}

/// A request whose answer is being read. Dropped with that, it notes how long it has taken.
pub(super) struct Timed {
    pub(super) requests: Requests,
    pub(super) method: String,
    pub(super) host: String,
    pub(super) begun: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.requests.note_duration(&self.method, &self.host, self.begun.elapsed());
    }
}

/// The body of an answer, as it is.
pub(super) struct Observed {
    body: Incoming,
    /// Of what its signs of life are to be noted; `None` when it is no watch, or one that has failed.
    sign: Option<(Kind, Freshness)>,
    _timed: Option<Timed>,
}

impl Observed {
    fn look_at(&mut self, frame: Option<&Frame<Bytes>>) {
        let line = frame.map(|frame| frame.data_ref().map_or(&[][..], |data| &data[..]));
        if line.is_some_and(|line| line.starts_with(ERROR)) {
            self.sign = None;
        }
        // A watch that ends as it should has told everything until then.
        if let Some((kind, freshness)) = &self.sign
            && line.is_none_or(|line| line.starts_with(BOOKMARK))
        {
            freshness.note(*kind);
        }
    }
}

impl Body for Observed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context)).transpose();
        if let Ok(frame) = &frame {
            self.look_at(frame.as_ref());
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
