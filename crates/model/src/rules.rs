//! The packet rules: a constant number of them per family, in chains of our own.

use std::collections::BTreeMap;
use std::fmt;

/// The packet rules of one family, in the words of `iptables-save`.
///
/// The text of a rule is exactly what `iptables-save` prints after `-A CHAIN`, so that what is desired and what is observed compare
/// with `==`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Our chains and their rules, in order.
    pub chains: BTreeMap<Chain, Vec<String>>,
    /// The jumps from built-in chains to ours, and how often each is there: once, unless two programs have made it at the same time.
    pub jumps: BTreeMap<Jump, usize>,
}

/// A chain of our own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// The table it is in.
    pub table: Table,
    /// Its name, at most 28 bytes.
    pub name: String,
}

impl Chain {
    /// What the names of our chains begin with. Chains of other names are not ours.
    pub const PREFIX: &str = "KUBE-IPVS-";

    /// The names that begin like ours and are kube-proxy's.
    pub const KUBE_PROXY: [&str; 2] = ["KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"];

    /// The chain called `name` in `table`, if that is one of ours.
    #[must_use]
    pub fn ours(table: Table, name: &str) -> Option<Self> {
        (name.starts_with(Self::PREFIX) && !Self::KUBE_PROXY.contains(&name)).then(|| Self { table, name: name.to_owned() })
    }
}

/// A jump to one of our chains from a chain that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jump {
    /// The built-in chain it is in, such as `PREROUTING`.
    pub from: String,
    /// Where it leads.
    pub to: Chain,
}

/// A table of iptables that has rules of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Marks, ahead of address translation.
    Mangle,
    /// Address translation.
    Nat,
    /// Accepting and refusing.
    Filter,
}

impl Table {
    /// Every table that may have rules of ours.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Filter];

    /// The name iptables has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// The table with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
