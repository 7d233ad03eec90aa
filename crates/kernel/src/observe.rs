//! What the kernel holds: all of it, a part of it, or whether a few things are still there.

use std::collections::BTreeSet;

use model::{Rules, Scope, State};

use crate::{Bound, Error, Kernel};

/// A part of a [`State`] that is read by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The packet rules that are ours. They come first: programs read them, which may fail where everything else goes on.
    Rules,
    /// The sets that are ours, with their members.
    Sets,
    /// All virtual servers.
    VirtualServers,
    /// The VIPs that are ours.
    Vips,
}

/// Listed objects, as they are compared with those that are remembered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Compared {
    alike: usize,
    others: bool,
}

impl Compared {
    /// Takes in one, which is as it is remembered or not.
    pub(crate) fn add(&mut self, alike: bool) {
        if alike {
            self.alike += 1;
        } else {
            self.others = true;
        }
    }

    /// Whether they are just those that are remembered, which are so many.
    pub(crate) const fn are_exactly(self, remembered: usize) -> bool {
        !self.others && self.alike == remembered
    }
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 4] = [Self::Rules, Self::Sets, Self::VirtualServers, Self::Vips];
}

impl Kernel {
    /// Reads `part`, and puts it in the place of what `state` had of it.
    ///
    /// # Errors
    /// When it cannot be read in full; then `state` is as it was.
    pub fn observe_part(&mut self, part: Part, state: &mut State) -> Result<(), Error> {
        match part {
            Part::Sets => {
                let mut sets = self.ipset.observe()?;
                sets.retain(|set, _| self.families.contains(&set.family));
                state.sets = sets;
            }
            Part::VirtualServers => state.virtual_servers = self.ipvs.observe()?,
            Part::Vips => {
                let Bound { vips, unreached } = self.vips.observe(&self.families)?;
                (state.vips, state.unreached) = (vips, unreached);
            }
            Part::Rules => {
                let read = |family| self.flavour.observe(family).map(|rules| (family, rules)).inspect(|_| self.pulse.beat());
                let rules = self.families.iter().map(|family| read(*family)).collect::<Result<Vec<_>, _>>()?;
                state.rules = rules.into_iter().filter(|(_, rules)| *rules != Rules::default()).collect();
            }
        }
        Ok(())
    }

    /// The parts in which the kernel holds something else than `state` says. It costs little beside the kernel's own work, because nothing is
    /// made of what is read: to build a second state and to compare the two takes half as much again.
    ///
    /// # Errors
    /// When a part cannot be read in full; then nothing is known to differ.
    pub fn differing(&mut self, state: &State) -> Result<BTreeSet<Part>, Error> {
        let mut differing = BTreeSet::new();
        for part in Part::ALL {
            if !self.holds(part, state)? {
                differing.insert(part);
            }
        }
        Ok(differing)
    }

    fn holds(&mut self, part: Part, state: &State) -> Result<bool, Error> {
        match part {
            Part::Sets => self.ipset.holds(&state.sets, &self.families),
            Part::VirtualServers => self.ipvs.holds(&state.virtual_servers),
            Part::Vips => {
                let Bound { vips, unreached } = self.vips.observe(&self.families)?;
                Ok((&vips, &unreached) == (&state.vips, &state.unreached))
            }
            Part::Rules => {
                let mut observed = State::default();
                self.observe_part(part, &mut observed)?;
                Ok(observed.rules == state.rules)
            }
        }
    }

    /// The parts of which something is missing that `sample` names: its virtual servers and set members are asked for one by one, which
    /// costs what the sample is, however much there is beside it. VIPs are left out: the kernel tells of those that go.
    ///
    /// There is nothing less to ask. IPVS notifies nobody and has no stamp of its last change; generic netlink does not tell how many
    /// services there are, and the headers of sets, which do tell, cost a walk over all buckets.
    ///
    /// # Errors
    /// When the answers cannot be read; then nothing is known to be missing.
    pub fn missing(&mut self, sample: &Scope) -> Result<BTreeSet<Part>, Error> {
        let mut parts = BTreeSet::new();
        if self.ipvs.lacks_any(&sample.virtual_servers)? {
            parts.insert(Part::VirtualServers);
        }
        if self.ipset.lacks_any(&sample.members)? {
            parts.insert(Part::Sets);
        }
        Ok(parts)
    }
}
