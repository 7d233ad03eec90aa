//! Durations as Go reads and prints them, which is how kube-proxy's configuration has them.

use std::time::Duration;

/// Reads a duration such as `30s`, `1h30m`, `1.5s` or `0` (`time.ParseDuration`); `None` for what is none, or is negative.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(config::parse_duration("1m30s"), Some(Duration::from_secs(90)));
/// assert_eq!(config::parse_duration("1.5ms"), Some(Duration::from_micros(1500)));
/// assert_eq!(config::parse_duration("30"), None);
/// ```
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    /// What Go can hold: an `int64` of nanoseconds.
    const MOST: u128 = i64::MAX as u128;
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" || text == "-0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let nanoseconds = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(scaled(number, nanoseconds)?).filter(|total| *total <= MOST)?;
        rest = after;
    }
    // A negative one is a mistake wherever there is a duration, and so is told apart from zero alone.
    if text.starts_with('-') && total > 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(total / 1_000_000_000).ok()?, u32::try_from(total % 1_000_000_000).ok()?))
}

/// A decimal number of units, rounded down to nanoseconds.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut total = if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()?.checked_mul(unit)? };
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        total = total.checked_add(u128::from(digit - b'0').checked_mul(place)?)?;
    }
    Some(total)
}

/// As Go prints it: `30s`, `1m30s`, `24h0m0s`, `1.5s`, `500ms`.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(config::format_duration(Duration::from_secs(86_400)), "24h0m0s");
/// assert_eq!(config::format_duration(Duration::from_millis(500)), "500ms");
/// ```
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if nanoseconds < 1_000_000_000 {
        let (unit, name) = match nanoseconds {
            1_000_000.. => (1_000_000, "ms"),
            1_000.. => (1_000, "µs"),
            _ => (1, "ns"),
        };
        return format!("{}{name}", decimal(nanoseconds, unit));
    }
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = decimal(nanoseconds % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// `value / unit`, exactly, without trailing zeros. `unit` is a power of ten.
fn decimal(value: u128, unit: u128) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_go_does_not_read_is_not_read() {
        for wrong in ["", "s", "30", "-1s", "1", "1y", ".", ".s", "1..5s", "1 s", "9999999999999h", "+", "-", "1s-", "٣s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
        for zero in ["0", "0s", "-0", "-0s", "0h0m0s", "+0"] {
            assert_eq!(parse_duration(zero), Some(Duration::ZERO), "{zero:?}");
        }
        assert_eq!(parse_duration(".5s"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.h"), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn it_is_printed_as_go_prints_it() {
        for text in ["0s", "1ns", "1.5µs", "500ms", "30s", "1.5s", "1m30s", "5m0s", "1h0m0s", "24h0m0s", "2h15m0.25s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(nanoseconds in 0..i64::MAX.unsigned_abs()) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
    }
}
