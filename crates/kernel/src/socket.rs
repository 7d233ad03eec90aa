//! A netlink socket: batches and dumps, sent and answered without ever waiting.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use wire::{Batch, Body, Malformed, Message, Messages};

use crate::{Error, Pulse};

/// The kernel's own limit on a part of a dump is 32 KiB; a socket that has asked for less gets less. So this is never too small.
const DUMP_BUFFER: usize = 64 * 1024;

/// More than a request takes that is no batch.
const REQUEST: usize = 256;

/// How often a dump that did not come in full is begun again before it counts as failed.
const DUMP_ATTEMPTS: usize = 8;

/// How long it may take to read the answer to a request, of a dump with all its attempts. The largest there are, some millions of flows,
/// take seconds. All sockets of a [`Kernel`](crate::Kernel) one after another take less than the agent's watchdog allows for one turn.
const PATIENCE: Duration = Duration::from_secs(20);

/// A netlink socket of one family.
///
/// The kernel handles a request inside `send`, and produces the next part of a dump inside `recv`. An answer is therefore there when it
/// is asked for, or it will never be: the socket does not block, and a request that finds nothing fails at once. One that finds ever more,
/// but not the end of its answer, fails after a while. Either way the socket does not do what sockets do, and is replaced by another.
pub(crate) struct Socket {
    inner: NlSocket,
    how: How,
    what: &'static str,
    buffer: Vec<u8>,
    seq: u32,
    /// How long batches have been with the kernel.
    in_kernel: Duration,
    pulse: Pulse,
    interference: Option<Box<dyn Interference>>,
}

/// How a socket was opened, and another would be in its place.
#[derive(Clone, Debug)]
struct How {
    family: NlFamily,
    /// Multicast groups that it is subscribed to.
    groups: &'static [u32],
    waits: bool,
    checks_strictly: bool,
}

impl How {
    /// Opens one, which the kernel is to call by the number `port` if there is one.
    fn open(&self, port: Option<u32>) -> io::Result<NlSocket> {
        let socket = NlSocket::connect(self.family, port, Groups::new_groups(self.groups))?;
        socket.enable_ext_ack(true)?;
        if !self.waits {
            socket.nonblock()?;
        }
        if self.checks_strictly {
            // Kernels before 4.20 cannot, and then send everything.
            let _ = socket.enable_strict_checking(true);
        }
        Ok(socket)
    }
}

/// Somebody between a socket and the kernel who spoils some of what is said: for tests of what becomes of errors.
pub trait Interference: Send {
    /// What is about to be sent. What is returned is sent in its place, and an error in place of sending; `None` lets nothing be sent and
    /// says that it was.
    ///
    /// # Errors
    /// The one that sending is to fail with.
    fn send<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>>;

    /// What was received: the length of what is at the start of `buffer`, or the error of receiving it. What is returned takes its place.
    ///
    /// # Errors
    /// The one that receiving is to fail with.
    fn receive(&mut self, received: io::Result<usize>, buffer: &mut [u8]) -> io::Result<usize>;

    /// The socket has been replaced by another: nothing of what was said on it before will come any more.
    fn replaced(&mut self) {}

    /// How long it may take to read the answer to a request.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// By when the answer to a request has to be read. Most answers have a few parts, and some clocks cost as much as one of them, so it is looked at
/// once for each, and for the first to begin with.
struct Deadline {
    patience: Duration,
    at: Option<Instant>,
}

impl Deadline {
    fn is_over(&mut self, now: Instant) -> bool {
        now >= *self.at.get_or_insert(now + self.patience)
    }
}

/// A message of a batch that the kernel did not carry out.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Which message, counted from 0.
    pub(crate) message: usize,
    /// The positive error number.
    pub(crate) errno: i32,
    /// The kernel's explanation.
    pub(crate) text: Option<String>,
}

impl Socket {
    /// A socket for the notifications of `groups`.
    pub(crate) fn subscribed(family: NlFamily, what: &'static str, buffer: usize, groups: &'static [u32]) -> Result<Self, Error> {
        Self::open_as(How { family, groups, waits: true, checks_strictly: false }, what, buffer)
    }

    /// A socket for requests and dumps.
    pub(crate) fn for_requests(family: NlFamily, what: &'static str) -> Result<Self, Error> {
        let how = How { family, groups: &[], waits: false, checks_strictly: false };
        Self::open_as(how, what, DUMP_BUFFER)
    }

    /// The same, which has the kernel check dump requests strictly, and so filter dumps. Only rtnetlink knows this.
    pub(crate) fn for_filtered_dumps(family: NlFamily, what: &'static str) -> Result<Self, Error> {
        let how = How { family, groups: &[], waits: false, checks_strictly: true };
        Self::open_as(how, what, DUMP_BUFFER)
    }

    /// The same, for many dumps of a few objects each.
    pub(crate) fn for_small_dumps(family: NlFamily, what: &'static str) -> Result<Self, Error> {
        let how = How { family, groups: &[], waits: false, checks_strictly: false };
        // Two pages: the kernel cannot be asked for less than its smallest part (NLMSG_GOODSIZE).
        Self::open_as(how, what, 8 * 1024)
    }

    /// A socket called `what` in errors. `buffer` is the size of its receive buffer, which is also the size of the parts the kernel
    /// allocates for a dump: a small one makes many small dumps cheaper.
    fn open_as(how: How, what: &'static str, buffer: usize) -> Result<Self, Error> {
        let inner = how.open(None).map_err(|error| Error::io(format!("opening the {what} netlink socket"), error))?;
        let pulse = Pulse::default();
        Ok(Self { inner, how, what, buffer: vec![0; buffer], seq: 0, in_kernel: Duration::ZERO, pulse, interference: None })
    }

    /// Has what is said go by `interference` from now on.
    pub(crate) fn interfere(&mut self, interference: Box<dyn Interference>) {
        self.interference = Some(interference);
    }

    /// Has `pulse` beat with each answer from now on.
    pub(crate) fn beat(&mut self, pulse: Pulse) {
        self.pulse = pulse;
    }

    /// Have `receive` fail when there is nothing to receive.
    pub(crate) fn do_not_wait(&self) -> Result<(), Error> {
        self.inner.nonblock().map_err(|error| self.failed(error))
    }

    /// Have `receive` wait for something to receive: for notifications, which come when they come.
    pub(crate) fn wait_for_answers(&self) -> Result<(), Error> {
        self.inner.block().map_err(|error| self.failed(error))
    }

    /// The number by which the kernel calls this socket (`nlmsg_pid`).
    pub(crate) fn port(&self) -> Result<u32, Error> {
        self.inner.pid().map_err(|error| self.failed(error))
    }

    /// The next sequence number.
    pub(crate) fn next_seq(&mut self) -> u32 {
        // 0 is what notifications carry.
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        self.seq
    }

    /// Sends a batch whose messages carry `seqs` in order, and returns those that were refused. Clears the batch.
    ///
    /// # Errors
    /// When the answers were lost or make no sense: then it is not known what was carried out.
    pub(crate) fn execute(&mut self, batch: &mut Batch, seqs: RangeInclusive<u32>) -> Result<Vec<Refusal>, Error> {
        batch.acknowledge_last();
        let begun = Instant::now();
        let sent = self.send(batch);
        batch.clear();
        sent.map_err(|error| self.failed(error))?;
        let mut deadline = self.deadline();
        let result =
            self.collect(&seqs, &mut deadline).and_then(|refusals| self.ensure_over(seqs, &mut deadline).map(|()| refusals));
        self.in_kernel += begun.elapsed();
        if let Err(error) = &result {
            self.recover(error);
        }
        result
    }

    /// How long batches have been with the kernel since this was last asked.
    pub(crate) fn take_time_in_kernel(&mut self) -> Duration {
        std::mem::take(&mut self.in_kernel)
    }

    fn collect(&mut self, seqs: &RangeInclusive<u32>, deadline: &mut Deadline) -> Result<Vec<Refusal>, Error> {
        let mut refusals = Vec::new();
        let what = self.what;
        loop {
            for message in Messages::new(self.answer_by(deadline)?) {
                let message = message.map_err(|error| Error::malformed(what, error))?;
                if !seqs.contains(&message.seq) {
                    continue;
                }
                let index = message.seq - seqs.start();
                let answered = matches!(message.body, Body::Ack { .. } | Body::Error { .. });
                match message.body {
                    Body::Error { errno, text, .. } => {
                        refusals.push(Refusal { message: index as usize, errno, text: text.map(Into::into) });
                    }
                    Body::Overrun => return Err(Error::interrupted(what)),
                    Body::Ack { .. } | Body::Data(_) | Body::Done { .. } | Body::Noop => {}
                }
                if answered && message.seq == *seqs.end() {
                    return Ok(refusals);
                }
            }
        }
    }

    /// Sends one request, whose answer is data, and hands the data's payload to `read`. `None` when the object does not exist.
    pub(crate) fn ask<T>(
        &mut self,
        context: &str,
        write: impl FnOnce(&mut Batch, u32) -> Result<(), Malformed>,
        read: impl Fn(&Message<'_>, &[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Error> {
        let seq = self.next_seq();
        let mut batch = Batch::default();
        write(&mut batch, seq).map_err(|error| Error::malformed(context, error))?;
        self.send(&batch).map_err(|error| self.failed(error))?;
        let result = self.answer(context, seq, read);
        match &result {
            Err(error) => self.recover(error),
            Ok(_) => self.drain(),
        }
        result
    }

    fn answer<T>(
        &mut self,
        context: &str,
        seq: u32,
        read: impl Fn(&Message<'_>, &[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Error> {
        let mut deadline = self.deadline();
        loop {
            for message in Messages::new(self.answer_by(&mut deadline)?) {
                let message = message.map_err(|error| Error::malformed(context, error))?;
                if message.seq != seq {
                    continue;
                }
                match &message.body {
                    Body::Data(payload) => {
                        return read(&message, payload).map(Some).map_err(|error| Error::malformed(context, error));
                    }
                    Body::Error { errno, text, .. } => {
                        let error = Error::refused(context, *errno, text.as_deref());
                        return if error.is_gone() { Ok(None) } else { Err(error) };
                    }
                    // Absence has an error number. That it was done is no answer to a question.
                    Body::Ack { .. } | Body::Done { .. } => return Err(Error::malformed(context, "an answer without an object")),
                    Body::Overrun => return Err(Error::interrupted(context)),
                    Body::Noop => {}
                }
            }
        }
    }

    /// Sends a dump request and hands every object's payload to `read`, which fills a fresh `T`. A dump that changes interrupted, or of
    /// which something was lost, is begun again, because a list with gaps is no observation.
    ///
    /// # Errors
    /// When the kernel refuses, or answers never come in full, or never make sense.
    pub(crate) fn dump<T: Default>(
        &mut self,
        context: &str,
        write: impl Fn(&mut Batch, u32) -> Result<(), Malformed>,
        mut read: impl FnMut(&mut T, &Message<'_>, &[u8]) -> Result<(), Malformed>,
    ) -> Result<T, Error> {
        let mut batch = Batch::with_capacity(REQUEST);
        let mut error = None;
        let mut deadline = self.deadline();
        for _ in 0..DUMP_ATTEMPTS {
            let seq = self.next_seq();
            batch.clear();
            write(&mut batch, seq).map_err(|error| Error::malformed(context, error))?;
            let mut objects = T::default();
            let parts = self.send(&batch).map_err(|error| self.failed(error));
            let parts = parts
                .and_then(|()| self.parts(context, seq, &mut deadline, |message, payload| read(&mut objects, message, payload)));
            match parts.and_then(|complete| self.ensure_over(seq..=seq, &mut deadline).map(|()| complete)) {
                Ok(true) => return Ok(objects),
                Ok(false) => error = None,
                Err(failed) => {
                    // An unfinished dump would make the socket refuse the next one with EBUSY.
                    self.recover(&failed);
                    if !failed.may_pass() {
                        return Err(failed);
                    }
                    error = Some(failed);
                }
            }
            if deadline.is_over(Instant::now()) {
                break;
            }
        }
        Err(error.unwrap_or_else(|| Error::interrupted(context)))
    }

    /// Reads a dump to its end. Whether it is complete; `false` when changes interrupted it.
    fn parts(
        &mut self,
        context: &str,
        seq: u32,
        deadline: &mut Deadline,
        mut read: impl FnMut(&Message<'_>, &[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, Error> {
        let mut complete = true;
        loop {
            for message in Messages::new(self.answer_by(deadline)?) {
                let message = message.map_err(|error| Error::malformed(context, error))?;
                if message.seq != seq {
                    continue;
                }
                complete &= !message.is_interrupted();
                match &message.body {
                    Body::Data(payload) => read(&message, payload).map_err(|error| Error::malformed(context, error))?,
                    Body::Done { errno: 0, .. } => return Ok(complete),
                    Body::Done { errno, text } | Body::Error { errno, text, .. } => {
                        return Err(Error::refused(context, *errno, text.as_deref()));
                    }
                    Body::Overrun => return Err(Error::interrupted(context)),
                    Body::Ack { .. } | Body::Noop => {}
                }
            }
        }
    }

    /// Fails when there is more to receive of an answer that is over: then its parts were not in order, and some came too late to count.
    fn ensure_over(&mut self, seqs: RangeInclusive<u32>, deadline: &mut Deadline) -> Result<(), Error> {
        let what = self.what;
        while let Some(received) = self.receive_by(Some(deadline))? {
            let is_late = |message: Result<Message<'_>, Malformed>| message.is_ok_and(|message| seqs.contains(&message.seq));
            if Messages::new(received).any(is_late) {
                return Err(Error::malformed(what, "a part of an answer came after its end"));
            }
        }
        Ok(())
    }

    fn send(&mut self, batch: &Batch) -> io::Result<()> {
        let bytes = match &mut self.interference {
            Some(interference) => match interference.send(batch.as_bytes())? {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
            None => batch.as_bytes().into(),
        };
        self.inner.send(bytes, Msg::empty()).map(drop)
    }

    /// The length of a datagram, which may be more than there was room for: with `MSG_TRUNC` the whole length is returned.
    fn datagram(&mut self) -> io::Result<usize> {
        let received = self.inner.recv(self.buffer.as_mut_slice(), Msg::TRUNC).map(|(len, _)| len);
        match &mut self.interference {
            Some(interference) => interference.receive(received, &mut self.buffer),
            None => received,
        }
    }

    /// By when the answer to a request that is made now has to be read.
    fn deadline(&self) -> Deadline {
        let patience = self.interference.as_ref().map_or(PATIENCE, |interference| interference.patience());
        Deadline { patience, at: None }
    }

    /// What one `recv` returns of the answer to a request. An answer that is not there is an error.
    fn answer_by(&mut self, deadline: &mut Deadline) -> Result<&[u8], Error> {
        let what = self.what;
        self.receive_by(Some(deadline))?.ok_or_else(|| Error::stuck(what, "a request was not answered"))
    }

    /// What one `recv` returns, on a socket that waits.
    pub(crate) fn receive(&mut self) -> Result<&[u8], Error> {
        let what = self.what;
        self.receive_if_any()?.ok_or_else(|| Error::stuck(what, "nothing came"))
    }

    /// What one `recv` returns; `None` on a socket that does not wait when there is nothing.
    pub(crate) fn receive_if_any(&mut self) -> Result<Option<&[u8]>, Error> {
        self.receive_by(None)
    }

    fn receive_by(&mut self, mut deadline: Option<&mut Deadline>) -> Result<Option<&[u8]>, Error> {
        let len = loop {
            // Before receiving, which takes no time on a socket that has a deadline: it does not wait.
            let now = Instant::now();
            if deadline.as_mut().is_some_and(|deadline| deadline.is_over(now)) {
                return Err(Error::stuck(self.what, "the answer to a request has no end"));
            }
            match self.datagram() {
                Ok(len) => {
                    self.pulse.beat_at(now);
                    break len;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(self.failed(error)),
            }
        };
        match self.buffer.get(..len) {
            Some(received) => Ok(Some(received)),
            None => Err(Error::malformed(
                self.what,
                format_args!("an answer of {len} bytes, for which {} are reserved", self.buffer.len()),
            )),
        }
    }

    /// Sees to it that the next request starts clean, after one that ended with `error`.
    fn recover(&mut self, error: &Error) {
        if error.is_stuck() { self.replace() } else { self.drain() }
    }

    /// Throws away what is left in the socket. One that does not get empty is replaced.
    fn drain(&mut self) {
        // Each round takes a message off the queue, or an error off the socket; only an empty queue ends it. The bound is the most
        // messages a receive buffer of the default size has been seen to hold, and then some.
        for _ in 0..4096 {
            match self.datagram() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
        self.replace();
    }

    /// Goes on with another socket, by the same number: it is by that number that notifications of what it does are told apart.
    fn replace(&mut self) {
        let port = self.inner.pid().ok();
        match self.how.open(None) {
            Ok(socket) => {
                tracing::warn!("the {} netlink socket does not work any more; opened another", self.what);
                // The number is free as soon as nobody has it. A socket with another one is better than none.
                self.inner = socket;
                if let Some(socket) = port.and_then(|port| self.how.open(Some(port)).ok()) {
                    self.inner = socket;
                }
                if let Some(interference) = &mut self.interference {
                    interference.replaced();
                }
            }
            Err(error) => tracing::warn!(%error, "the {} netlink socket does not work any more, and there is no other", self.what),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(format!("the {} netlink socket", self.what), error)
    }
}
