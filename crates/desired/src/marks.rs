//! The packet marks that lead callers inside the cluster past policy `Local`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use model::{Family, Member, Role, Set, State, VirtualServerKey};

use crate::config::MarkBit;

/// Gives each frontend that needs one a packet mark of its own.
///
/// A mark is the masquerade bit and a number of [`BITS`] bits around it, in the lower half of the mark: the upper half is Calico's by
/// default. The number follows from the frontend, so that it is the same on every node and after every restart, unless two frontends
/// fall on the same number. Then the one that came later has the next free one, and what a kernel holds already wins over both: a
/// virtual server that changes its mark is another one, and would lose its connections.
#[derive(Debug)]
pub(crate) struct Marks {
    masquerade: u32,
    of: BTreeMap<VirtualServerKey, NonZeroU32>,
    taken: BTreeMap<NonZeroU32, VirtualServerKey>,
    adopted: BTreeMap<VirtualServerKey, NonZeroU32>,
    /// The marks in `adopted`.
    reserved: BTreeSet<NonZeroU32>,
}

/// 16,383 frontends with policy `Local`.
const BITS: u32 = 14;
const LAST: u32 = (1 << BITS) - 1;

impl Marks {
    /// How many frontends can have one.
    pub(crate) const CAPACITY: usize = LAST as usize;

    pub(crate) const fn new(masquerade: MarkBit) -> Self {
        Self {
            masquerade: masquerade.mask(),
            of: BTreeMap::new(),
            taken: BTreeMap::new(),
            adopted: BTreeMap::new(),
            reserved: BTreeSet::new(),
        }
    }

    /// Takes in the marks that frontends have in `observed`, to be given to them again.
    pub(crate) fn adopt(&mut self, observed: &State) {
        for family in Family::ALL {
            let Some(set) = observed.sets.get(&Set::new(Role::InCluster, family)) else { continue };
            for member in &set.members {
                if let Member::IpPortMark(address, protocol, port, mark) = *member
                    && self.is_ours(mark)
                {
                    self.adopted.insert(VirtualServerKey::address(address, protocol, port), mark);
                    self.reserved.insert(mark);
                }
            }
        }
    }

    /// The mark of `frontend`, which is given one if it has none: of those that nobody is to have again, if there are any left. `None`
    /// when all are taken.
    pub(crate) fn acquire(&mut self, frontend: VirtualServerKey) -> Option<NonZeroU32> {
        if let Some(mark) = self.of.get(&frontend) {
            return Some(*mark);
        }
        if self.taken.len() >= Self::CAPACITY {
            return None;
        }
        let adopted = self.adopted.remove(&frontend).filter(|mark| self.reserved.remove(mark) && !self.taken.contains_key(mark));
        let free = |mark: &NonZeroU32| !self.taken.contains_key(mark) && !self.reserved.contains(mark);
        let first = number_of(frontend);
        let probes = || (0..LAST).map(|step| (first - 1 + step) % LAST + 1).filter_map(|number| self.mark(number));
        let not_taken = |mark: &NonZeroU32| !self.taken.contains_key(mark);
        let mark = adopted.or_else(|| probes().find(free)).or_else(|| probes().find(not_taken))?;
        self.of.insert(frontend, mark);
        self.taken.insert(mark, frontend);
        Some(mark)
    }

    /// Takes the mark of `frontend` back.
    pub(crate) fn release(&mut self, frontend: &VirtualServerKey) -> Option<NonZeroU32> {
        let mark = self.of.remove(frontend)?;
        self.taken.remove(&mark);
        Some(mark)
    }

    /// The mark that `frontend` has.
    pub(crate) fn of(&self, frontend: &VirtualServerKey) -> Option<NonZeroU32> {
        self.of.get(frontend).copied()
    }

    /// The frontend that has `mark`.
    pub(crate) fn frontend(&self, mark: NonZeroU32) -> Option<&VirtualServerKey> {
        self.taken.get(&mark)
    }

    /// All frontends that have a mark.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&VirtualServerKey, NonZeroU32)> {
        self.of.iter().map(|(frontend, mark)| (frontend, *mark))
    }

    /// The mark for `number`: its bits around the masquerade bit, and that bit.
    fn mark(&self, number: u32) -> Option<NonZeroU32> {
        let below = self.masquerade - 1;
        NonZeroU32::new((number & !below) << 1 | number & below | self.masquerade)
    }

    fn is_ours(&self, mark: NonZeroU32) -> bool {
        let below = self.masquerade - 1;
        let number = (mark.get() & !below & !self.masquerade) >> 1 | mark.get() & below;
        mark.get() & self.masquerade != 0 && (1..=LAST).contains(&number)
    }
}

/// 1 to [`LAST`], spread over frontends by the FNV-1a hash (Fowler, Noll and Vo), which is the same everywhere and for ever.
fn number_of(frontend: VirtualServerKey) -> u32 {
    let text = frontend.to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % LAST + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Protocol, SetState};

    fn frontend(host: u32) -> VirtualServerKey {
        VirtualServerKey::address(std::net::Ipv4Addr::from(0xc633_6400 + host).into(), Protocol::Tcp, 443)
    }

    #[test]
    fn marks_are_distinct_and_carry_the_masquerade_bit_and_nothing_of_the_upper_half() {
        for bit in [0, 7, 13, 14, 15] {
            let mut marks = Marks::new(MarkBit::new(bit).unwrap());
            let given: BTreeSet<_> = (0..2_000).map(|host| marks.acquire(frontend(host)).unwrap().get()).collect();
            assert_eq!(given.len(), 2_000);
            assert!(given.iter().all(|mark| mark & 1 << bit != 0 && mark >> 16 == 0), "bit {bit}");
            assert!(given.iter().all(|mark| marks.is_ours(NonZeroU32::new(*mark).unwrap())));
        }
    }

    #[test]
    fn a_frontend_keeps_its_mark_whatever_the_order_after_a_restart() {
        let mut before = Marks::new(MarkBit::default());
        let mut observed = State::default();
        let set = observed.sets.entry(Set::new(Role::InCluster, Family::V4)).or_insert_with(SetState::default);
        for host in 0..3_000 {
            let mark = before.acquire(frontend(host)).unwrap();
            let VirtualServerKey::Address { address, port, protocol } = frontend(host) else { unreachable!() };
            set.members.insert(Member::IpPortMark(address, protocol, port, mark));
        }
        let mut after = Marks::new(MarkBit::default());
        after.adopt(&observed);
        for host in (0..3_100).rev() {
            let mark = after.acquire(frontend(host)).unwrap();
            if host < 3_000 {
                assert_eq!(Some(mark), before.acquire(frontend(host)));
            }
        }
    }

    #[test]
    fn all_can_be_given_and_none_twice() {
        let mut marks = Marks::new(MarkBit::default());
        for host in 0..LAST {
            assert!(marks.acquire(frontend(host)).is_some());
        }
        assert_eq!(marks.acquire(frontend(LAST)), None);
        let freed = marks.release(&frontend(5)).unwrap();
        assert_eq!(marks.acquire(frontend(LAST)), Some(freed));
        assert_eq!(marks.frontend(freed), Some(&frontend(LAST)));
    }
}
