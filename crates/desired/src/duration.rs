//! Durations as Go and kubectl write them.

use std::time::Duration;

/// Reads a duration such as `30s`, `1m30s` or `500ms`, in milliseconds at the finest; `None` for anything else.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let number: u64 = number.parse().ok()?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = number.checked_mul(milliseconds).and_then(|ms| total.checked_add(Duration::from_millis(ms)))?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}
