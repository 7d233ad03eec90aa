//! Failures that are told when they happen. The test harness shows what a test has printed when all tests have ended; who reads along, or has the
//! beginning of a long output only, should know by then why a test failed.

use std::io::{self, Write as _};
use std::panic;
use std::sync::Once;
use std::thread;

/// Of a message that may hold whole tables. All of it is shown in the end.
const LENGTH: usize = 2_000;

/// From now on the beginning of each panic's message goes to standard error at once, past the test harness.
pub fn tell_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.to_string();
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "{}: {}", thread::current().name().unwrap_or("a thread"), beginning(&text));
            next(info);
        }));
    });
}

/// Not more than [`LENGTH`] bytes.
fn beginning(text: &str) -> &str {
    let end = (0..=LENGTH.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        assert_eq!(beginning("short"), "short");
        assert_eq!(beginning(&"a".repeat(3_000)).len(), LENGTH);
        assert_eq!(beginning(&format!("a{}", "ä".repeat(2_000))).len(), LENGTH - 1);
    }
}
