//! The time of processors.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What the calling thread has had of a processor's time so far, the kernel's work on its behalf included. Programs that it has run are not in it.
#[must_use]
pub fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_is_what_was_worked_and_not_what_was_waited() {
        let (begun, used) = (Instant::now(), processor_time());
        thread::sleep(Duration::from_millis(50));
        assert!(processor_time() - used < begun.elapsed());
        while processor_time() - used < Duration::from_millis(2) {
            black_box(());
        }
    }
}
