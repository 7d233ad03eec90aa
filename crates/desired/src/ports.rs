//! Ranges of ports.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// One or more ports in a row. Never port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// Every port that an unprivileged caller may have as its source.
    const UNPRIVILEGED: Self = Self { first: NonZeroU16::new(1024).unwrap(), last: NonZeroU16::MAX };

    /// What the API server hands out as node ports unless told otherwise (`--service-node-port-range`).
    pub const NODE_PORTS: Self = Self { first: NonZeroU16::new(30_000).unwrap(), last: NonZeroU16::new(32_767).unwrap() };

    /// The ports from `first` to `last`, both included; `None` if `last` comes before `first`.
    #[must_use]
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Whether any port is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The longer of the two ranges of unprivileged ports that `self` leaves, below and above it; `None` if it leaves none.
    #[must_use]
    pub fn complement(self) -> Option<Self> {
        let Self { first, last } = Self::UNPRIVILEGED;
        let below = NonZeroU16::new(self.first.get() - 1).and_then(|end| Self::new(first, end));
        let above = self.last.checked_add(1).and_then(|begin| Self::new(begin.max(first), last));
        below.into_iter().chain(above).max_by_key(|range| range.last.get() - range.first.get())
    }
}

impl Default for PortRange {
    /// The longer part beside the default node ports: 32768-65535.
    fn default() -> Self {
        Self::NODE_PORTS.complement().unwrap_or(Self::UNPRIVILEGED)
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    /// Reads `30000-32767`, or one port.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse().map_err(|_| InvalidPortRange);
        Self::new(port(first)?, port(last)?).ok_or(InvalidPortRange)
    }
}

impl fmt::Display for PortRange {
    /// As `iptables-save` prints it: a range of one port is that port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// A text that is no range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPortRange;

impl fmt::Display for InvalidPortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected ports from 1 to 65535 such as 32768-65535, the lower one first")
    }
}

impl std::error::Error for InvalidPortRange {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_printed() {
        for text in ["1-65535", "30000-32767", "80"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        assert_eq!("80-80".parse::<PortRange>().unwrap().to_string(), "80");
        for wrong in ["", "-", "0-1", "2-1", "1-", "-1", "1-2-3", "1-65536", "http", "1 - 2", "-j ACCEPT"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn b3_the_longer_part_beside_the_node_ports_is_left_for_masquerading() {
        let beside = |text: &str| text.parse::<PortRange>().unwrap().complement().map(|range| range.to_string());
        assert_eq!(PortRange::default().to_string(), "32768-65535");
        assert_eq!(beside("30000-65535").as_deref(), Some("1024-29999"));
        assert_eq!(beside("1-1023").as_deref(), Some("1024-65535"));
        assert_eq!(beside("40000-50000").as_deref(), Some("1024-39999"));
        assert_eq!(beside("1-500").as_deref(), Some("1024-65535"));
        assert_eq!(beside("1-65535"), None);
        for text in ["30000-32767", "1024-2000", "50000"] {
            let range: PortRange = text.parse().unwrap();
            assert!(!range.overlaps(range.complement().unwrap()), "{text}");
        }
    }
}
