//! What a test's thread logs.
//!
//! One subscriber serves all threads: those of single threads come and go, and the answers that tracing keeps of whether anybody listens to
//! a line are then at times another thread's.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

thread_local! {
    static LOGGED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The log of this thread since the last [`Log::capture`].
pub(crate) struct Log(());

impl Log {
    /// Begins with an empty one.
    pub(crate) fn capture() -> Self {
        static SUBSCRIBED: Once = Once::new();
        SUBSCRIBED.call_once(|| {
            tracing_subscriber::fmt().with_ansi(false).with_writer(|| Writer).init();
            tracing::callsite::rebuild_interest_cache();
        });
        LOGGED.set(Some(Vec::new()));
        Self(())
    }

    /// The lines so far that hold `text`.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        let log = LOGGED.with_borrow(|log| String::from_utf8(log.clone().unwrap_or_default()).unwrap());
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|log| log.iter_mut().for_each(|log| log.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
