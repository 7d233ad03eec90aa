//! Waiting for what is true soon.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::Result;

/// Between the first two attempts. Each usually starts a process or two.
const PAUSE: Duration = Duration::from_millis(20);

/// Each pause is half as long again as the one before, up to this: attempts must not take the processor from what they wait for.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// Tries until it succeeds, and returns what it returned.
///
/// # Errors
/// The last attempt's error, when it did not succeed in time.
pub fn eventually<T>(timeout: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        match attempt() {
            Ok(value) => return Ok(value),
            // One that took long may have seen the beginning of it, and says little of its end.
            Err(error) if begun >= deadline => return Err(error).with_context(|| format!("not so within {timeout:?}")),
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_the_first_success() {
        let mut attempts = 0;
        let value = eventually(Duration::from_secs(10), || {
            attempts += 1;
            if attempts < 3 { anyhow::bail!("not yet") } else { Ok(attempts) }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn it_tells_why_the_last_attempt_failed() {
        let error = eventually(Duration::ZERO, || -> Result { anyhow::bail!("still no route") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "not so within 0ns: still no route");
    }
}
