//! A socket that does not answer, or never stops: each request comes to an end, and the next one finds a socket that works.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wire::rtnl;

use super::*;

/// How long an answer may take here.
const SHORT: Duration = Duration::from_millis(50);
/// Only failures take so long.
const LONG: Duration = Duration::from_secs(30);

/// What is wrong with a socket until it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ailment {
    /// What is sent vanishes.
    Deaf,
    /// It answers for ever, but something else.
    Babbling,
    /// Each call to receive is interrupted.
    Interrupted,
}

struct Patient {
    ailment: Option<Ailment>,
    replaced: Arc<AtomicUsize>,
}

impl Interference for Patient {
    fn send<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>> {
        Ok((self.ailment != Some(Ailment::Deaf)).then_some(bytes.into()))
    }

    fn receive(&mut self, received: io::Result<usize>, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ailment {
            None | Some(Ailment::Deaf) => received,
            Some(Ailment::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Ailment::Babbling) => {
                let mut batch = Batch::default();
                // The acknowledgement of a request that nobody has made.
                batch.message(2, 0, u32::MAX, |message| message.raw(&[0; 20])).unwrap();
                buffer[..batch.len()].copy_from_slice(batch.as_bytes());
                Ok(batch.len())
            }
        }
    }

    fn replaced(&mut self) {
        self.ailment = None;
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    fn patience(&self) -> Duration {
        SHORT
    }
}

/// A route socket, which needs no privilege for reading, with something wrong; and how often it has been replaced.
fn ailing(ailment: Ailment) -> (Socket, Arc<AtomicUsize>) {
    let mut socket = Socket::for_requests(NlFamily::Route, "route").unwrap();
    let replaced = Arc::new(AtomicUsize::new(0));
    socket.interfere(Box::new(Patient { ailment: Some(ailment), replaced: replaced.clone() }));
    (socket, replaced)
}

fn dump(socket: &mut Socket) -> Result<Vec<String>, Error> {
    socket.dump("listing links", rtnl::get_links, |links: &mut Vec<String>, _, payload| {
        links.push(rtnl::parse_link(payload)?.name);
        Ok(())
    })
}

fn ask(socket: &mut Socket) -> Result<Option<String>, Error> {
    socket.ask(
        "looking for a link",
        |batch, seq| rtnl::get_link(batch, seq, "lo"),
        |_, payload| Ok(rtnl::parse_link(payload)?.name),
    )
}

/// A batch of one, which the kernel carries out.
fn execute(socket: &mut Socket) -> Result<usize, Error> {
    let mut batch = Batch::default();
    let seq = socket.next_seq();
    rtnl::get_link(&mut batch, seq, "lo").unwrap();
    socket.execute(&mut batch, seq..=seq).map(|refusals| refusals.len())
}

/// What comes of `request`, and that it comes in time, and not before its time where it has to be waited for.
fn in_time<T>(ailment: Ailment, request: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let outcome = request();
    assert!(begun.elapsed() < LONG, "{ailment:?}: {:?}", begun.elapsed());
    assert!(ailment == Ailment::Deaf || begun.elapsed() >= SHORT, "{ailment:?}: {:?}", begun.elapsed());
    outcome
}

#[test]
fn j8_a_request_ends_in_time_and_another_socket_takes_over() {
    for ailment in [Ailment::Deaf, Ailment::Babbling, Ailment::Interrupted] {
        let (mut socket, replaced) = ailing(ailment);
        let port = socket.port().unwrap();
        let error = in_time(ailment, || ask(&mut socket)).unwrap_err();
        assert!(error.is_stuck() && error.leaves_state_unknown(), "{ailment:?}: {error}");
        assert_eq!(replaced.load(Ordering::Relaxed), 1, "{ailment:?}");
        assert_eq!(socket.port().unwrap(), port, "{ailment:?}: notifications are told apart by it");
        assert_eq!(ask(&mut socket).unwrap().as_deref(), Some("lo"), "{ailment:?}");

        let (mut socket, replaced) = ailing(ailment);
        let error = in_time(ailment, || execute(&mut socket)).unwrap_err();
        assert!(error.is_stuck() && error.leaves_state_unknown(), "{ailment:?}: {error}");
        assert_eq!((execute(&mut socket).unwrap(), replaced.load(Ordering::Relaxed)), (0, 1), "{ailment:?}");
    }
}

#[test]
fn j8_a_dump_is_begun_again_on_another_socket_while_there_is_time() {
    let (mut socket, replaced) = ailing(Ailment::Deaf);
    let links = in_time(Ailment::Deaf, || dump(&mut socket)).unwrap();
    assert!(links.iter().any(|name| name == "lo"), "{links:?}");
    assert_eq!(replaced.load(Ordering::Relaxed), 1);
    for ailment in [Ailment::Babbling, Ailment::Interrupted] {
        let (mut socket, replaced) = ailing(ailment);
        let error = in_time(ailment, || dump(&mut socket)).unwrap_err();
        assert!(error.is_stuck(), "{ailment:?}: {error}");
        assert_eq!((dump(&mut socket).unwrap(), replaced.load(Ordering::Relaxed)), (links.clone(), 1), "{ailment:?}");
    }
}
