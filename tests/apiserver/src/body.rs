//! Response bodies: whole ones, and ones sent line by line that can break off.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// The body of an answer.
pub(crate) enum Answer {
    /// All of it, with a Content-Length.
    Whole(Option<Bytes>),
    /// Chunked, as it comes.
    Lines(mpsc::Receiver<Result<Bytes, Cut>>, LastSent),
}

/// When something was last handed to a connection, of all connections. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastSent(Arc<Mutex<Option<SystemTime>>>);

impl LastSent {
    pub(crate) fn get(&self) -> Option<SystemTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
    }
}

/// The connection is to be lost here.
#[derive(Debug)]
pub(crate) struct Cut;

/// The sending end of a chunked body.
pub(crate) struct LineSender(mpsc::Sender<Result<Bytes, Cut>>);

impl Answer {
    pub(crate) fn whole(text: impl Into<Bytes>) -> Self {
        Answer::Whole(Some(text.into()))
    }

    pub(crate) fn lines(last_sent: &LastSent) -> (LineSender, Self) {
        let (sender, receiver) = mpsc::channel(16);
        (LineSender(sender), Answer::Lines(receiver, last_sent.clone()))
    }
}

impl LineSender {
    /// Sends `text`; an error means that the client has gone.
    pub(crate) async fn send(&self, text: String) -> Result<(), Cut> {
        self.0.send(Ok(text.into())).await.map_err(|_| Cut)
    }

    /// Sends the first half of `text` and loses the connection.
    pub(crate) async fn cut(&self, text: &str) {
        let half = text.as_bytes().get(..text.len() / 2).unwrap_or_default().to_vec();
        // If the client has gone already, the connection is as lost as it should be.
        let _ = self.0.send(Ok(half.into())).await;
        let _ = self.0.send(Err(Cut)).await;
    }

    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Lines(receiver, last_sent) => {
                let line = receiver.poll_recv(context);
                if matches!(line, Poll::Ready(Some(Ok(_)))) {
                    last_sent.note();
                }
                line.map(|line| line.map(|line| line.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Lines(..) => SizeHint::default(),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut on demand")
    }
}

impl std::error::Error for Cut {}
