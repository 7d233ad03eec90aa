//! The reconciler on a kernel that is slow, or that does not come back from a system call, and what `/livez` makes of either.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use hyper::StatusCode;
use kernel::{Interference, supported_families};
use tokio::sync::oneshot;

use super::faults::{Life, isolated, settings};
use super::*;
use crate::eligibility::Eligibility;
use crate::probes::Probes;
use crate::reliance::Reliance;

/// What the reconciler is allowed instead of minutes.
const LIMIT: Duration = Duration::from_secs(5);
/// What each message to a slow kernel takes: a turn that asks for two dozen virtual servers one by one takes longer than the limit.
const SLOW: Duration = Duration::from_millis(500);
/// After which something is wrong with the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the kernel treats what is sent to it.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    Normal,
    Slow,
    /// The system call does not return.
    Never,
}

/// Between all sockets and the kernel.
#[derive(Clone)]
struct Gate(Arc<(Mutex<Pace>, Condvar)>);

impl Gate {
    fn set(&self, pace: Pace) {
        *self.0.0.lock().unwrap() = pace;
        self.0.1.notify_all();
    }
}

impl Interference for Gate {
    fn send<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>> {
        let (pace, changed) = &*self.0;
        let pace = changed.wait_while(pace.lock().unwrap(), |pace| *pace == Pace::Never).unwrap();
        if *pace == Pace::Slow {
            drop(pace);
            thread::sleep(SLOW);
        }
        Ok(Some(bytes.into()))
    }

    fn receive(&mut self, received: io::Result<usize>, _: &mut [u8]) -> io::Result<usize> {
        received
    }
}

/// A reconciler behind a gate.
struct Bench {
    gate: Gate,
    mailbox: Mailbox,
    running: Running,
    probes: Probes,
}

impl Bench {
    /// One that has brought some Services into the kernel.
    fn start() -> Self {
        let families = supported_families();
        let config = Config { families: families.clone(), ..Config::new("node") };
        let gate = Gate(Arc::new((Mutex::new(Pace::Normal), Condvar::new())));
        let mut kernel = Kernel::open(&families).unwrap();
        kernel.interfere(|| Box::new(gate.clone()));
        let mailbox = Mailbox::default();
        let settings = Settings { stuck_after: LIMIT, ..settings(config.clone()) };
        let running = spawn(kernel, settings, mailbox.clone(), News::default(), Metrics::new().unwrap()).unwrap();
        let reliance =
            Reliance { health: running.health.clone(), freshness: None, max_staleness: watch::channel(Duration::ZERO).1 };
        let probes = Probes { reliance, families, eligibility: watch::channel(Eligibility::Eligible).1 };
        let bench = Self { gate, mailbox, running, probes };
        bench.ensure_alive("before the first synchronisation");
        assert_eq!(bench.probes.answer("/healthz").status, StatusCode::SERVICE_UNAVAILABLE);
        Life::new(config, 1).post(&bench.mailbox);
        bench.until("the first synchronisation", || bench.probes.answer("/healthz").status == StatusCode::OK);
        bench
    }

    fn ensure_alive(&self, context: &str) {
        let answer = self.probes.answer("/livez");
        assert_eq!(answer.status, StatusCode::OK, "{context}: {}", String::from_utf8_lossy(&answer.body));
    }

    fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let begun = Instant::now();
        while !reached() {
            assert!(begun.elapsed() < PATIENCE, "never: {what}; {:?}", self.running.health.borrow());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(self) {
        self.mailbox.post(|letter| letter.stop = true);
        self.running.thread.join().unwrap();
    }
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j8_in_guest_a_turn_that_takes_long_and_gets_on_is_not_stuck() {
    isolated(1, || {
        let bench = Bench::start();
        bench.gate.set(Pace::Slow);
        let mut longest = Duration::ZERO;
        while longest < LIMIT * 3 / 2 {
            // It is answered when the turn under way is over.
            let (ask, mut answered) = oneshot::channel();
            bench.mailbox.post(|letter| letter.owners.push(ask));
            let asked = Instant::now();
            while answered.try_recv().is_err() {
                bench.ensure_alive("an audit of a slow kernel");
                assert!(asked.elapsed() < PATIENCE, "no turn ends");
                thread::sleep(Duration::from_millis(20));
            }
            longest = longest.max(asked.elapsed());
        }
        bench.gate.set(Pace::Normal);
        bench.stop();
    });
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j8_in_guest_a_reconciler_that_hangs_in_a_system_call_fails_liveness() {
    isolated(1, || {
        let bench = Bench::start();
        bench.gate.set(Pace::Never);
        let says = || {
            let answer = bench.probes.answer("/livez");
            (answer.status, String::from_utf8(answer.body).unwrap())
        };
        bench.until("stuck", || says().0 == StatusCode::SERVICE_UNAVAILABLE);
        let (_, body) = says();
        assert!(body.contains("\"healthy\":false") && body.contains("the reconciler has been stuck for"), "{body}");

        bench.gate.set(Pace::Normal);
        bench.until("alive again", || says().0 == StatusCode::OK);
        bench.stop();
    });
}
