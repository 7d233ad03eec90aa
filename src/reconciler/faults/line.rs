//! What is between a socket and a kernel that fails.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::Interference;
use testkit::Random;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// Nothing is sent, and the call says so: ENOBUFS, EPERM or EINTR.
    NotSent,
    /// The kernel refuses some messages of a batch, with EBUSY or EPERM, and carries out the others.
    Refused,
    /// What is sent vanishes, and the call does not say so.
    Vanished,
    /// A call to receive is interrupted.
    Interrupted,
    /// An answer is lost, and the call says so (ENOBUFS).
    Lost,
    /// An answer ends in the middle of a message.
    Cut,
    /// An answer comes after the one that follows it.
    Late,
    /// A part of a dump says that something changed meanwhile (NLM_F_DUMP_INTR).
    Changed,
}

const ON_SENDING: [Fault; 3] = [Fault::NotSent, Fault::Refused, Fault::Vanished];
const ON_RECEIVING: [Fault; 5] = [Fault::Interrupted, Fault::Lost, Fault::Cut, Fault::Late, Fault::Changed];

/// How many kinds there are.
pub(super) const KINDS: usize = ON_SENDING.len() + ON_RECEIVING.len();

/// What can be wrong with a socket until another takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ailment {
    /// What is sent vanishes.
    Deaf,
    /// It answers for ever, but something else.
    Babbling,
}

/// How long an answer may take that has no end.
const SHORT: Duration = Duration::from_millis(500);
/// And any other.
const LONG: Duration = Duration::from_secs(20);

const EPERM: i32 = 1;
const EINTR: i32 = 4;
const EBUSY: i32 = 16;
const ENOBUFS: i32 = 105;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_MULTI: u8 = 0x02;
const NLM_F_DUMP_INTR: u8 = 0x10;

/// Which faults there are and have been, for all sockets; and what was said to the kernel all the same.
pub(super) struct Faults {
    /// How often each of them is made, of a hundred times that it could be.
    percent: AtomicU64,
    random: Mutex<Random>,
    made: Mutex<BTreeMap<Fault, usize>>,
    /// The payloads of messages that must never get to the kernel, and what each of them says.
    forbidden: BTreeMap<Vec<u8>, String>,
    forbidden_sent: Mutex<Vec<String>>,
    /// Batches of several messages, which are changes, that got to the kernel, be it in part, while faults were made.
    carried: AtomicUsize,
    /// How often all sockets have fallen ill, and of what.
    ailment: Mutex<(u64, Ailment)>,
    replaced: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// None, until there are to be some.
    pub(super) fn new(seed: u64, forbidden: BTreeMap<Vec<u8>, String>) -> Self {
        Self {
            percent: AtomicU64::new(0),
            random: Mutex::new(Random::new(seed)),
            made: Mutex::default(),
            forbidden,
            forbidden_sent: Mutex::default(),
            carried: AtomicUsize::new(0),
            ailment: Mutex::new((0, Ailment::Deaf)),
            replaced: AtomicUsize::new(0),
        }
    }

    /// Has each kind made `percent` times of a hundred from now on.
    pub(super) fn make(&self, percent: u64) {
        assert!(percent * ON_RECEIVING.len() as u64 <= 100, "not all of them can be that frequent");
        self.percent.store(percent, Ordering::Relaxed);
    }

    /// How often each kind has been made.
    pub(super) fn made(&self) -> BTreeMap<Fault, usize> {
        lock(&self.made).clone()
    }

    pub(super) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }

    /// What was said that must never be said.
    pub(super) fn forbidden_sent(&self) -> Vec<String> {
        lock(&self.forbidden_sent).clone()
    }

    /// Has every socket that there is suffer from `ailment`.
    pub(super) fn infect(&self, ailment: Ailment) {
        let mut last = lock(&self.ailment);
        *last = (last.0 + 1, ailment);
    }

    /// How many sockets have been replaced.
    pub(super) fn replaced(&self) -> usize {
        self.replaced.load(Ordering::Relaxed)
    }

    fn below(&self, limit: u64) -> u64 {
        lock(&self.random).below(limit)
    }

    /// One of `faults`, each as often as it is to be made; mostly none.
    fn draw(&self, faults: &[Fault]) -> Option<Fault> {
        let percent = self.percent.load(Ordering::Relaxed);
        let drawn = self.below(100).checked_div(percent)?;
        faults.get(usize::try_from(drawn).ok()?).copied()
    }

    fn note(&self, fault: Fault) {
        *lock(&self.made).entry(fault).or_default() += 1;
    }

    /// Looks at what gets to the kernel.
    fn witness(&self, bytes: &[u8]) {
        let messages = messages(bytes);
        lock(&self.forbidden_sent).extend(messages.iter().filter_map(|message| self.forbidden.get(&message[HEADER..]).cloned()));
        let is_carried = messages.len() > 1 && self.percent.load(Ordering::Relaxed) > 0;
        self.carried.fetch_add(usize::from(is_carried), Ordering::Relaxed);
    }
}

/// One socket's.
pub(super) struct Line {
    faults: Arc<Faults>,
    /// Answers that have not been handed on.
    answers: VecDeque<Vec<u8>>,
    /// Those among them that the kernel does not know of: for messages that it has not seen.
    refusals: VecDeque<Vec<u8>>,
    /// Whether the next answer is to overtake the first of them.
    late: bool,
    /// Of how many ailments it has been cured.
    cured: u64,
}

impl Line {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        Self { faults, answers: VecDeque::new(), refusals: VecDeque::new(), late: false, cured: 0 }
    }

    fn ailment(&self) -> Option<Ailment> {
        let (number, ailment) = *lock(&self.faults.ailment);
        (number > self.cured).then_some(ailment)
    }

    /// What is left of a batch of which the kernel refuses some.
    fn refuse_some(&mut self, bytes: &[u8]) -> Vec<u8> {
        let messages = messages(bytes);
        let one = usize::try_from(self.faults.below(messages.len() as u64)).unwrap();
        let mut left = Vec::new();
        for (number, message) in messages.into_iter().enumerate() {
            if number == one || self.faults.below(2) == 0 {
                let errno = if self.faults.below(2) == 0 { EBUSY } else { EPERM };
                self.refusals.push_back(refusal(&message[..HEADER], errno));
            } else {
                left.extend(message);
                left.resize(left.len().next_multiple_of(4), 0);
            }
        }
        left
    }

    /// The kernel answers messages in order, and so is it answered for it.
    fn refuse_before(&mut self, answer: &[u8]) {
        while self.refusals.front().is_some_and(|refusal| sequence(refusal) < sequence(answer)) {
            self.answers.extend(self.refusals.pop_front());
        }
    }
}

impl Interference for Line {
    fn send<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>> {
        if self.ailment() == Some(Ailment::Deaf) {
            return Ok(None);
        }
        let fault = self.faults.draw(&ON_SENDING);
        fault.into_iter().for_each(|fault| self.faults.note(fault));
        let sent = match fault {
            Some(Fault::NotSent) => {
                let errors = [ENOBUFS, EPERM, EINTR];
                return Err(io::Error::from_raw_os_error(errors[usize::try_from(self.faults.below(3)).unwrap()]));
            }
            Some(Fault::Vanished) => return Ok(None),
            Some(Fault::Refused) => self.refuse_some(bytes).into(),
            _ => Cow::from(bytes),
        };
        self.faults.witness(&sent);
        Ok((!sent.is_empty()).then_some(sent))
    }

    fn receive(&mut self, received: io::Result<usize>, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ailment() == Some(Ailment::Babbling) {
            // The refusal of a request that nobody has made.
            let mut nobodys = [0; HEADER];
            nobodys[8..12].fill(0xff);
            let answer = refusal(&nobodys, EBUSY);
            buffer[..answer.len()].copy_from_slice(&answer);
            return Ok(answer.len());
        }
        match received {
            Ok(len) => {
                let answer = buffer[..len].to_vec();
                self.refuse_before(&answer);
                self.answers.push_back(answer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.answers.extend(self.refusals.drain(..));
                if self.answers.is_empty() {
                    return Err(error);
                }
                // Nothing follows that could overtake it.
                self.late &= self.answers.len() > 1;
            }
            Err(error) => return Err(error),
        }
        let fault = self.faults.draw(&ON_RECEIVING);
        match fault {
            Some(Fault::Interrupted) => {
                self.faults.note(Fault::Interrupted);
                return Err(io::Error::from_raw_os_error(EINTR));
            }
            Some(Fault::Lost) => {
                self.faults.note(Fault::Lost);
                self.answers.pop_front();
                return Err(io::Error::from_raw_os_error(ENOBUFS));
            }
            Some(Fault::Late) => {
                self.late = true;
                if self.answers.len() == 1 {
                    // Until it is known what follows.
                    return Err(io::Error::from_raw_os_error(EINTR));
                }
            }
            _ => {}
        }
        if std::mem::take(&mut self.late) && self.answers.len() > 1 {
            self.faults.note(Fault::Late);
            self.answers.swap(0, 1);
        }
        let mut answer = self.answers.pop_front().unwrap_or_default();
        match fault {
            Some(Fault::Cut) => {
                self.faults.note(Fault::Cut);
                // Within a message: the kernel never leaves one out.
                let inside = starts(&answer).last().map_or(0, |last| last + 6);
                answer.truncate(inside);
            }
            Some(Fault::Changed) if flags(&answer).is_some_and(|flags| flags & NLM_F_MULTI > 0) => {
                self.faults.note(Fault::Changed);
                for at in starts(&answer) {
                    answer[at + 6] |= NLM_F_DUMP_INTR;
                }
            }
            _ => {}
        }
        buffer[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }

    fn replaced(&mut self) {
        self.answers.clear();
        self.refusals.clear();
        self.late = false;
        self.cured = lock(&self.faults.ailment).0;
        self.faults.replaced.fetch_add(1, Ordering::Relaxed);
    }

    fn patience(&self) -> Duration {
        if self.ailment() == Some(Ailment::Babbling) { SHORT } else { LONG }
    }
}

fn length(bytes: &[u8], at: usize) -> Option<usize> {
    let len = u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    Some(usize::try_from(len).ok()?.max(HEADER))
}

/// Where messages start.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let next = |at: &usize| Some(at + length(bytes, *at)?.next_multiple_of(4));
    std::iter::successors(Some(0), next).take_while(|at| at + HEADER <= bytes.len()).collect()
}

/// The messages of a batch or of an answer, each without what it is padded with.
pub(super) fn messages(bytes: &[u8]) -> Vec<&[u8]> {
    let message = |at: usize| &bytes[at..(at + length(bytes, at).unwrap_or(HEADER)).min(bytes.len())];
    starts(bytes).into_iter().map(message).collect()
}

/// What a message says, without who says it and when.
pub(super) fn payloads(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    messages(bytes).into_iter().map(|message| message[HEADER..].to_vec())
}

fn flags(answer: &[u8]) -> Option<u8> {
    answer.get(6).copied()
}

fn sequence(answer: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?))
}

/// `struct nlmsgerr` for the request with this header.
fn refusal(header: &[u8], errno: i32) -> Vec<u8> {
    let mut answer = Vec::from(36_u32.to_ne_bytes());
    answer.extend(NLMSG_ERROR.to_ne_bytes());
    answer.extend(0_u16.to_ne_bytes());
    answer.extend(&header[8..16]);
    answer.extend((-errno).to_ne_bytes());
    answer.extend(header);
    answer
}

#[cfg(test)]
mod tests {
    use wire::{Batch, Body, Messages};

    use super::*;

    fn line(percent: u64) -> (Arc<Faults>, Line) {
        let faults = Arc::new(Faults::new(1, BTreeMap::new()));
        faults.make(percent);
        (faults.clone(), Line::new(faults))
    }

    /// A batch of messages that are told apart by their number.
    fn batch(messages: u32) -> Batch {
        let mut batch = Batch::default();
        for number in 1..=messages {
            batch.message(0x20, 1, number, |message| message.raw(&number.to_ne_bytes())).unwrap();
        }
        batch
    }

    fn receive(line: &mut Line, answer: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        let received = answer.map(|answer| {
            buffer[..answer.len()].copy_from_slice(answer);
            answer.len()
        });
        line.receive(received.ok_or_else(|| io::ErrorKind::WouldBlock.into()), &mut buffer).map(|len| buffer[..len].to_vec())
    }

    #[test]
    fn each_kind_is_as_frequent_as_is_said() {
        for percent in [1, 4, 10] {
            for kinds in [&ON_SENDING[..], &ON_RECEIVING] {
                let (faults, _) = line(percent);
                let mut drawn = BTreeMap::new();
                for fault in (0..100_000).filter_map(|_| faults.draw(kinds)) {
                    *drawn.entry(fault).or_insert(0) += 1;
                }
                assert_eq!(drawn.len(), kinds.len());
                let often = percent * 1000;
                assert!(drawn.values().all(|times| (often * 9 / 10..often * 11 / 10).contains(times)), "{percent} %: {drawn:?}");
            }
        }
        let (faults, _) = line(0);
        assert!((0..1000).all(|_| faults.draw(&ON_RECEIVING).is_none()));
    }

    #[test]
    fn some_of_a_batch_are_refused_and_the_others_carried_out() {
        let (_, mut line) = line(0);
        let (mut all, mut last) = (0, 0);
        for _ in 0..200 {
            let left = line.refuse_some(batch(4).as_bytes());
            let left: Vec<u32> = Messages::new(&left).map(|message| message.unwrap().seq).collect();
            // The kernel says of the fourth, if it gets it, that it is done.
            let mut answered = Vec::new();
            if left.contains(&4) {
                let done = refusal(&batch(4).as_bytes()[60..76], 0);
                answered.push(receive(&mut line, Some(&done)).unwrap());
            }
            while let Ok(answer) = receive(&mut line, None) {
                answered.push(answer);
            }
            let answered: Vec<_> = answered.iter().map(|answer| Messages::new(answer).next().unwrap().unwrap()).collect();
            assert!(answered.is_sorted_by_key(|answer| answer.seq));
            let is_refusal = |body: &Body<'_>| matches!(body, Body::Error { errno: EBUSY | EPERM, .. });
            let refused: Vec<_> = answered.iter().filter(|answer| is_refusal(&answer.body)).map(|answer| answer.seq).collect();
            assert!(
                !refused.is_empty() && (1..=4).all(|seq| refused.contains(&seq) != left.contains(&seq)),
                "{refused:?} {left:?}"
            );
            assert_eq!(answered.last().unwrap().seq, 4);
            all += usize::from(left.is_empty());
            last += usize::from(!left.contains(&4));
        }
        assert!((1..100).contains(&all) && (50..200).contains(&last), "{all} {last}");
    }

    #[test]
    fn what_must_never_be_said_is_noticed() {
        let forbidden = payloads(batch(3).as_bytes()).nth(1).unwrap();
        let faults = Arc::new(Faults::new(1, BTreeMap::from([(forbidden, "the second".to_owned())])));
        let mut line = Line::new(faults.clone());
        line.send(batch(1).as_bytes()).unwrap();
        assert!(faults.forbidden_sent().is_empty());
        line.send(batch(3).as_bytes()).unwrap();
        assert_eq!(faults.forbidden_sent(), ["the second"]);
    }
}
