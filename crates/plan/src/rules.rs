//! The difference between two sets of packet rules.

use std::collections::{BTreeMap, BTreeSet};

use model::{Chain, Jump, Rules};

/// What takes the packet rules of one family from observed to desired, as one transaction a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesChange {
    /// Chains to make or rewrite as a whole.
    pub rewrite: BTreeMap<Chain, Vec<String>>,
    /// Jumps to insert at the head of their chain.
    pub insert: BTreeSet<Jump>,
    /// Jumps to delete, and how often.
    pub delete: BTreeMap<Jump, usize>,
    /// Chains to delete, after the jumps to them.
    pub drop: BTreeSet<Chain>,
}

impl RulesChange {
    /// The change from `observed` to `desired`; `None` when they are the same.
    #[must_use]
    pub fn between(desired: &Rules, observed: &Rules) -> Option<Self> {
        let differs = |(chain, rules): &(&Chain, &Vec<String>)| observed.chains.get(chain) != Some(rules);
        let surplus = |(jump, times): (&Jump, &usize)| {
            let surplus = times.saturating_sub(desired.jumps.get(jump).copied().unwrap_or_default());
            (surplus > 0).then(|| (jump.clone(), surplus))
        };
        let change = Self {
            rewrite: desired.chains.iter().filter(differs).map(|(chain, rules)| (chain.clone(), rules.clone())).collect(),
            insert: desired.jumps.keys().filter(|jump| !observed.jumps.contains_key(jump)).cloned().collect(),
            delete: observed.jumps.iter().filter_map(surplus).collect(),
            drop: observed.chains.keys().filter(|chain| !desired.chains.contains_key(chain)).cloned().collect(),
        };
        (change != Self::default()).then_some(change)
    }

    /// Whether it only takes away.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        self.rewrite.is_empty() && self.insert.is_empty()
    }

    /// Carries the change out on `rules`.
    pub fn apply_to(&self, rules: &mut Rules) {
        rules.jumps.retain(|jump, times| {
            *times -= self.delete.get(jump).copied().unwrap_or_default().min(*times);
            *times > 0
        });
        rules.chains.retain(|chain, _| !self.drop.contains(chain));
        rules.jumps.extend(self.insert.iter().map(|jump| (jump.clone(), 1)));
        rules.chains.extend(self.rewrite.clone());
    }
}
