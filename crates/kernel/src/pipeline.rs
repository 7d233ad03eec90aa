//! Many messages, few system calls: messages are gathered into batches, and answers are led back to the step each message is for.

use std::ops::RangeInclusive;

use wire::{Batch, Malformed};

use crate::Error;
use crate::socket::{Refusal, Socket};

/// The most messages in a batch. At worst each is refused, and the socket's receive buffer of default size holds 237 refusals
/// (measured on Linux 6.1 and 6.12). Larger batches gain nothing measurable either.
const MAX_MESSAGES: usize = 128;
/// The most bytes in a batch, well below what one `send` takes by default (212,960).
const MAX_BYTES: usize = 64 * 1024;

/// Sends messages of one socket in batches. `T` says what a message is for.
pub(crate) struct Pipeline<'a, T> {
    socket: &'a mut Socket,
    batch: Batch,
    seqs: Option<RangeInclusive<u32>>,
    subjects: Vec<T>,
    outcome: Outcome<T>,
    refused: fn(&Refusal) -> Error,
}

/// What became of the messages.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// The messages that were refused, or could not be written, in order.
    pub(crate) failures: Vec<(T, Error)>,
    /// What made the socket fail. Of the messages sent since, nothing is known.
    pub(crate) broken: Option<Error>,
}

impl<T> Outcome<T> {
    /// Of messages that each ask for something: whether something is not there, which `is_absent` tells by the refusal.
    ///
    /// # Errors
    /// When an answer was lost, or refused for other reasons.
    pub(crate) fn lacks_any(self, is_absent: impl Fn(&Error) -> bool) -> Result<bool, Error> {
        let lacks = !self.failures.is_empty();
        let failed = self.failures.into_iter().map(|(_, error)| error).find(|error| !is_absent(error));
        self.broken.or(failed).map_or(Ok(lacks), Err)
    }
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self { failures: Vec::new(), broken: None }
    }
}

impl<'a, T> Pipeline<'a, T> {
    /// Messages go to `socket`; `refused` puts a refusal into words.
    pub(crate) fn new(socket: &'a mut Socket, refused: fn(&Refusal) -> Error) -> Self {
        Self { socket, batch: Batch::default(), seqs: None, subjects: Vec::new(), outcome: Outcome::default(), refused }
    }

    /// Adds the message that `write` writes, which is for `subject`. Sends what has been gathered once it is enough. After the socket
    /// has failed nothing more is sent.
    pub(crate) fn push(&mut self, subject: T, write: impl FnOnce(&mut Batch, u32) -> Result<(), Malformed>) {
        if self.outcome.broken.is_some() {
            return;
        }
        let seq = self.socket.next_seq();
        // Sequence numbers wrap after four billion messages; a batch never spans that.
        if self.seqs.as_ref().is_some_and(|seqs| seq < *seqs.end()) {
            self.send();
        }
        match write(&mut self.batch, seq) {
            Err(error) => {
                self.outcome.failures.push((subject, Error::malformed("a message", error)));
                // The number is skipped, so the batch has to end before it.
                self.send();
            }
            Ok(()) => {
                let first = self.seqs.as_ref().map_or(seq, |seqs| *seqs.start());
                self.seqs = Some(first..=seq);
                self.subjects.push(subject);
                if self.batch.messages() >= MAX_MESSAGES || self.batch.len() >= MAX_BYTES {
                    self.send();
                }
            }
        }
    }

    /// Sends what is left, and says what became of all messages.
    pub(crate) fn finish(mut self) -> Outcome<T> {
        self.send();
        self.outcome
    }

    fn send(&mut self) {
        let Some(seqs) = self.seqs.take() else { return };
        let mut subjects: Vec<_> = self.subjects.drain(..).map(Some).collect();
        match self.socket.execute(&mut self.batch, seqs) {
            Ok(refusals) => {
                for refusal in &refusals {
                    if let Some(subject) = subjects.get_mut(refusal.message).and_then(Option::take) {
                        self.outcome.failures.push((subject, (self.refused)(refusal)));
                    }
                }
            }
            Err(error) => self.outcome.broken = Some(error),
        }
    }
}
