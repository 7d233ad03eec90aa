//! The packet rules: read with `iptables-save`, changed with one `iptables-restore --noflush` per family.
//!
//! The rules are a small constant number and never change with Services, so these two programs run at start, on repair and at clean-up,
//! never on the change path. `iptables-restore` commits each table as one transaction.

pub(crate) mod kube_proxy;
mod saved;
mod text;
mod tools;

use std::fmt;

use model::{Family, Rules};
use plan::RulesChange;

pub use tools::Inventory;

use crate::Error;
use crate::program::run;

/// Which of the two incompatible kernels' interfaces the iptables programs talk to. Rules in one are invisible to the other, so all
/// tools on a node had better use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// nf_tables (`iptables-nft`).
    Nft,
    /// The original ip_tables (`iptables-legacy`).
    Legacy,
    /// Whichever `iptables` is, where the node has only that name.
    Default,
}

/// Chains by which the kubelet marks the flavour it uses (KEP-3178: IPTablesOwnershipCleanup).
const KUBELET_MARKS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// Seconds to wait for the lock that iptables programs share.
const LOCK_WAIT: &str = "5";

impl Flavour {
    /// The flavour to use on this node: the kubelet's if it has left its mark, else the one that has more rules, else the default.
    ///
    /// # Errors
    /// When no iptables is installed.
    pub fn detect() -> Result<Self, Error> {
        let rules = |flavour: Self| flavour.save(Family::V4);
        match (rules(Self::Nft), rules(Self::Legacy)) {
            (Ok(nft), Ok(legacy)) => Ok(choose(&nft, &legacy)),
            (Ok(_), Err(_)) => Ok(Self::Nft),
            (Err(_), Ok(_)) => Ok(Self::Legacy),
            (Err(_), Err(_)) => rules(Self::Default).map(|_| Self::Default),
        }
    }

    /// All flavours that work on this node, whose rules are all in force.
    ///
    /// # Errors
    /// When there is none.
    pub fn installed() -> Result<Vec<Self>, Error> {
        let installed: Vec<_> = [Self::Nft, Self::Legacy].into_iter().filter(|flavour| flavour.save(Family::V4).is_ok()).collect();
        if installed.is_empty() { Self::Default.save(Family::V4).map(|_| vec![Self::Default]) } else { Ok(installed) }
    }

    const fn program(self, family: Family, verb: Verb) -> &'static str {
        match (family, self, verb) {
            (Family::V4, Self::Nft, Verb::Save) => "iptables-nft-save",
            (Family::V4, Self::Nft, Verb::Restore) => "iptables-nft-restore",
            (Family::V4, Self::Legacy, Verb::Save) => "iptables-legacy-save",
            (Family::V4, Self::Legacy, Verb::Restore) => "iptables-legacy-restore",
            (Family::V4, Self::Default, Verb::Save) => "iptables-save",
            (Family::V4, Self::Default, Verb::Restore) => "iptables-restore",
            (Family::V6, Self::Nft, Verb::Save) => "ip6tables-nft-save",
            (Family::V6, Self::Nft, Verb::Restore) => "ip6tables-nft-restore",
            (Family::V6, Self::Legacy, Verb::Save) => "ip6tables-legacy-save",
            (Family::V6, Self::Legacy, Verb::Restore) => "ip6tables-legacy-restore",
            (Family::V6, Self::Default, Verb::Save) => "ip6tables-save",
            (Family::V6, Self::Default, Verb::Restore) => "ip6tables-restore",
            (Family::V4, Self::Nft, Verb::Help) => "iptables-nft",
            (Family::V4, Self::Legacy, Verb::Help) => "iptables-legacy",
            (Family::V4, Self::Default, Verb::Help) => "iptables",
            (Family::V6, Self::Nft, Verb::Help) => "ip6tables-nft",
            (Family::V6, Self::Legacy, Verb::Help) => "ip6tables-legacy",
            (Family::V6, Self::Default, Verb::Help) => "ip6tables",
        }
    }

    /// All rules of one family, as `iptables-save` prints them. No `-t`: naming a table would make the legacy flavour create it.
    pub(crate) fn save(self, family: Family) -> Result<String, Error> {
        run(self.program(family, Verb::Save), &[], None)
    }

    /// Our rules, as the kernel has them.
    ///
    /// # Errors
    /// When the program is not there or fails.
    pub fn observe(self, family: Family) -> Result<Rules, Error> {
        Ok(text::parse_saved(&self.save(family)?))
    }

    /// Whether the INPUT chain drops what none of its rules accepts. VIPs and node ports come in through it.
    ///
    /// # Errors
    /// When the program is not there or fails.
    pub fn input_drops(self, family: Family) -> Result<bool, Error> {
        Ok(text::input_drops(&self.save(family)?))
    }

    /// How many rules of `family` there are, and whose.
    ///
    /// # Errors
    /// When the program is not there or fails.
    pub fn inventory(self, family: Family) -> Result<Inventory, Error> {
        Ok(tools::inventory(&self.save(family)?))
    }

    /// Carries `change` out. All of a table's changes take effect at once.
    ///
    /// # Errors
    /// When the program is not there or refuses the rules, with what it said.
    pub fn apply(self, family: Family, change: &RulesChange) -> Result<(), Error> {
        self.restore(family, &text::render_change(change))
    }

    /// The program that changes packet rules of `family`. It is to be given `--noflush`, and on its standard input what is to be done.
    #[must_use]
    pub const fn restoring_program(self, family: Family) -> &'static str {
        self.program(family, Verb::Restore)
    }

    /// What [`Self::apply`] gives that program.
    #[must_use]
    pub fn restoring_input(change: &RulesChange) -> String {
        text::render_change(change)
    }

    /// Carries out what `input` says, in the language of `iptables-restore`.
    pub(crate) fn restore(self, family: Family, input: &str) -> Result<(), Error> {
        run(self.program(family, Verb::Restore), &["--noflush", "-w", LOCK_WAIT], Some(input)).map(|_| ())
    }

    /// Whether the program says that its MASQUERADE takes `--random-fully`. No table is opened for that, which in the legacy flavour would make it.
    ///
    /// # Errors
    /// When the program is not there or fails.
    pub fn claims_random_fully(self, family: Family) -> Result<bool, Error> {
        Ok(run(self.program(family, Verb::Help), &["-j", "MASQUERADE", "--help"], None)?.contains("--random-fully"))
    }

    /// Whether MASQUERADE takes `--random-fully` here: tried in a chain of its own that nothing jumps to, and that is gone afterwards.
    ///
    /// # Errors
    /// When the programs cannot even make that chain, which means that no rule of ours could be installed.
    pub fn probe_random_fully(self, family: Family) -> Result<bool, Error> {
        const ADD: &str = "*nat\n:KUBE-IPVS-PROBE - [0:0]\n";
        const REMOVE: &str = "*nat\n:KUBE-IPVS-PROBE - [0:0]\n-X KUBE-IPVS-PROBE\nCOMMIT\n";
        let supported = self.restore(family, &format!("{ADD}-A KUBE-IPVS-PROBE -j MASQUERADE --random-fully\nCOMMIT\n")).is_ok();
        self.restore(family, REMOVE)?;
        Ok(supported)
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
            Self::Default => "iptables",
        })
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Save,
    Restore,
    /// To say what there is to say of itself.
    Help,
}

fn choose(nft: &str, legacy: &str) -> Flavour {
    let marked = |rules: &str| rules.lines().any(|line| KUBELET_MARKS.iter().any(|mark| line.starts_with(mark)));
    let count = |rules: &str| rules.lines().filter(|line| line.starts_with("-A ")).count();
    match (marked(nft), marked(legacy)) {
        (true, _) => Flavour::Nft,
        (false, true) => Flavour::Legacy,
        (false, false) => match count(nft).cmp(&count(legacy)) {
            std::cmp::Ordering::Greater => Flavour::Nft,
            std::cmp::Ordering::Less => Flavour::Legacy,
            std::cmp::Ordering::Equal => Flavour::Default,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
    const RULE: &str = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";
    const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";

    #[test]
    fn j5_the_kubelets_flavour_wins_over_the_number_of_rules() {
        assert_eq!(choose(CANARY, RULE), Flavour::Nft);
        assert_eq!(choose(RULE, CANARY), Flavour::Legacy);
    }

    #[test]
    fn j5_without_a_kubelet_the_flavour_in_use_is_taken() {
        assert_eq!(choose(RULE, EMPTY), Flavour::Nft);
        assert_eq!(choose(EMPTY, RULE), Flavour::Legacy);
        assert_eq!(choose(EMPTY, EMPTY), Flavour::Default);
    }
}
