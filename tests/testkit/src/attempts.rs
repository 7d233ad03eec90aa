//! Tests side by side, and what becomes of one that fails there.
//!
//! A guest emulates its processors, and others may use the machine under it: what waits for a packet may be kept waiting for as long as a failure
//! would take. So a test that fails beside others is tried once more with the machine to itself. Nothing of that is silent: both the failure and what
//! became of it are on standard error, the summary of the test run counts it, and after a few of them there are no second attempts any more.

use std::any::Any;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// Of so many tests of a program. When more fail than that, it is not for want of time.
const SECOND: u32 = 5;

/// The tests of this program.
pub(crate) static TESTS: Attempts = Attempts::new(SECOND, tell);

/// Who runs beside whom.
pub(crate) struct Attempts {
    /// Held by every test that runs. One that failed has poisoned it, which is nothing to the others.
    running: RwLock<()>,
    /// Second attempts that are left.
    second: AtomicU32,
    /// Says what became of the test that runs.
    tell: fn(&str),
}

impl Attempts {
    const fn new(second: u32, tell: fn(&str)) -> Self {
        Self { running: RwLock::new(()), second: AtomicU32::new(second), tell }
    }

    /// Runs a test beside others, and alone if it failed there.
    pub(crate) fn beside(&self, test: impl Fn()) {
        let Err(failure) = self.attempt(&test) else { return };
        if self.second.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            resume_unwind(failure);
        }
        (self.tell)("failed beside others: it is tried again, alone");
        self.alone(test);
        // xtask counts these lines.
        (self.tell)("passed at the second attempt, alone");
    }

    /// Runs a test while no other one does.
    pub(crate) fn alone(&self, test: impl FnOnce()) {
        let _alone = self.running.write();
        test();
    }

    fn attempt(&self, test: impl Fn()) -> Result<(), Box<dyn Any + Send>> {
        let _beside = self.running.read();
        // What a test shares with its second attempt are the constants of its program.
        catch_unwind(AssertUnwindSafe(test))
    }
}

/// Past the test harness, which shows nothing of a test that passed in the end.
fn tell(what: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "{}: {what}", thread::current().name().unwrap_or("a test"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a test ran that fails in its first attempts, and whether it passed.
    fn run(attempts: &Attempts, failures: u32) -> (u32, bool) {
        let ran = AtomicU32::new(0);
        let test = || assert!(ran.fetch_add(1, Ordering::Relaxed) >= failures, "not yet");
        let passed = catch_unwind(AssertUnwindSafe(|| attempts.beside(test))).is_ok();
        (ran.into_inner(), passed)
    }

    #[test]
    fn a_test_that_fails_has_one_more_attempt_and_a_program_few() {
        let attempts = Attempts::new(2, |_| {});
        assert_eq!(run(&attempts, 0), (1, true));
        assert_eq!(run(&attempts, 1), (2, true));
        assert_eq!(run(&attempts, 2), (2, false));
        assert_eq!(run(&attempts, 1), (1, false));
        assert_eq!(run(&attempts, 0), (1, true));
    }

    #[test]
    fn nothing_runs_beside_a_second_attempt() {
        let attempts = Attempts::new(1, |_| {});
        let (ran, running, most) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..50).for_each(|_| {
                        attempts.beside(|| {
                            running.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            running.fetch_sub(1, Ordering::SeqCst);
                        });
                    });
                });
            }
            attempts.beside(|| {
                assert!(ran.fetch_add(1, Ordering::SeqCst) > 0, "beside others");
                most.store(running.load(Ordering::SeqCst), Ordering::SeqCst);
            });
        });
        assert_eq!((ran.into_inner(), most.into_inner()), (2, 0));
    }
}
