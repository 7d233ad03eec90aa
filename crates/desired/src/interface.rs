//! Which interfaces are meant.

use std::fmt;
use std::str::FromStr;

/// One interface by its name, or all whose names begin alike: `eth0`, `eth+`, as iptables writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePattern {
    name: Box<str>,
    /// Whether `name` is only the beginning.
    prefix: bool,
}

impl InterfacePattern {
    /// `IFNAMSIZ` (include/uapi/linux/if.h) without the terminating NUL.
    const MAX: usize = 15;

    /// Whether the interface called `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.prefix { name.starts_with(&*self.name) } else { *name == *self.name }
    }
}

impl FromStr for InterfacePattern {
    type Err = InvalidInterfacePattern;

    /// Reads a name, or a beginning with a `+` behind it. The kernel allows nearly every byte in a name; a text without a letter is
    /// taken for a mistyped address, as is one with a colon.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, prefix) = text.strip_suffix('+').map_or((text, false), |name| (name, true));
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        let lettered = name.bytes().any(|byte| byte.is_ascii_alphabetic());
        if name.len() > Self::MAX || !lettered || !name.bytes().all(valid) {
            return Err(InvalidInterfacePattern);
        }
        Ok(Self { name: name.into(), prefix })
    }
}

/// A text that names no interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidInterfacePattern;

impl fmt::Display for InvalidInterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected an interface such as eth0, at most {} bytes, or the beginning of some such as eth+",
            InterfacePattern::MAX
        )
    }
}

impl std::error::Error for InvalidInterfacePattern {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_and_a_beginning_all_that_go_on_from_it() {
        let pattern = |text: &str| text.parse::<InterfacePattern>().unwrap();
        assert!(pattern("eth0").matches("eth0") && !pattern("eth0").matches("eth01"));
        assert!(pattern("eth+").matches("eth01") && pattern("eth+").matches("eth") && !pattern("eth+").matches("veth"));
        for wrong in ["", "+", "eth++", "192.0.2.300", "fe80::1%eth0", "eth0/24", "a b", "sixteen-letters-"] {
            assert!(wrong.parse::<InterfacePattern>().is_err(), "{wrong:?}");
        }
    }
}
