//! The order in which IPVS goes through its virtual servers, and when it matters.
//!
//! Real servers that were removed stay with the kernel for up to two minutes, in a list. For each real server that is added it walks that list
//! from the head, where what was removed last is, until it has found the same one or has seen them all (`ip_vs_trash_get_dest`,
//! net/netfilter/ipvs/ip_vs_ctl.c). After somebody has emptied a large table that is nearly all of the time that it takes to fill it again:
//! 50,000 real servers, for each of which 25,000 others are passed. Whoever empties it goes through its buckets from the first to the last
//! (`ip_vs_flush`). So what is made again from the last bucket to the first is found where the list begins.

use std::cmp::Reverse;
use std::net::IpAddr;

use model::VirtualServerKey;

/// Of the table by address and of that by mark (`IP_VS_SVC_TAB_BITS`, ip_vs_ctl.c).
const BUCKETS: u32 = 256;

/// Which bucket a virtual server is in, as far as the order of a listing has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buckets {
    /// By protocol, address and port, or by mark, with which the kernel mixes some bits of an address of its own.
    Mixed { with: u32 },
    /// By other means, as kernels do that keep the key of their hash function to themselves.
    Secret,
}

impl Buckets {
    /// By the order in which a kernel has listed virtual servers; `None` when there are too few to tell.
    pub(super) fn of_listing<'a>(keys: impl IntoIterator<Item = &'a VirtualServerKey>) -> Option<Self> {
        let by_address = keys.into_iter().filter(|key| matches!(key, VirtualServerKey::Address { .. }));
        let (mut with, mut known, mut last) = (0, 0, None);
        for after in by_address.map(hash) {
            let before = last.replace(after).unwrap_or(after);
            // The first bit by which two buckets differ is 0 in the lower one, whatever it is mixed with.
            let Some(bit) = (before ^ after).checked_ilog2().map(|bit| 1 << bit) else { continue };
            if known & bit != 0 && with & bit != before & bit {
                return Some(Self::Secret);
            }
            (with, known) = (with | before & bit, known | bit);
        }
        (known == BUCKETS - 1).then_some(Self::Mixed { with })
    }

    /// Sorts by where the list of removed real servers has them after the table was emptied. What shares a bucket stays in its order.
    pub(super) fn sort<T>(self, items: &mut [T], key: impl Fn(&T) -> Option<VirtualServerKey>) {
        let Self::Mixed { with } = self else { return };
        // The table by mark is emptied last.
        let place = |key: VirtualServerKey| (matches!(key, VirtualServerKey::Mark { .. }), hash(&key) ^ with);
        items.sort_by_cached_key(|item| Reverse(key(item).map(place)));
    }
}

/// `ip_vs_svc_hashkey` and `ip_vs_svc_fwm_hashkey` (ip_vs_ctl.c) without the kernel's own part.
fn hash(key: &VirtualServerKey) -> u32 {
    let hash = match *key {
        VirtualServerKey::Mark { mark, .. } => mark.get(),
        VirtualServerKey::Address { address, protocol, port } => {
            let address = match address {
                IpAddr::V4(address) => address.to_bits(),
                IpAddr::V6(address) => address
                    .octets()
                    .chunks_exact(4)
                    .fold(0, |folded, word| folded ^ word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))),
            };
            let port = u32::from(port);
            u32::from(protocol.number()) ^ address ^ port >> 8 ^ port
        }
    };
    hash % BUCKETS
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use model::{Family, Protocol};

    use super::*;

    fn keys(count: u16) -> Vec<VirtualServerKey> {
        let address = |number: u16| -> IpAddr {
            if number.is_multiple_of(3) {
                [0xfd00, 0x96, 0, 0, 0, 0, 7, number].into()
            } else {
                (0x0a60_0000 + u32::from(number) * 7).to_be_bytes().into()
            }
        };
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let key =
            |number: u16| VirtualServerKey::address(address(number), protocols[usize::from(number) % 3], 80 + number % 5 * 700);
        (1..=count).map(key).collect()
    }

    /// As a kernel lists them that mixes `with` in, buckets from the first to the last.
    fn listed(mut keys: Vec<VirtualServerKey>, with: u32) -> Vec<VirtualServerKey> {
        keys.sort_by_key(|key| hash(key) ^ with);
        keys
    }

    #[test]
    fn what_a_kernel_mixes_in_shows_in_the_order_of_its_listing() {
        for with in [0, 1, 0x5a, 0x80, 0xff] {
            assert_eq!(Buckets::of_listing(&listed(keys(3000), with)), Some(Buckets::Mixed { with }), "{with:#x}");
        }
        let neighbours =
            |count| (0..count).map(|host| VirtualServerKey::address([10, 96, 0, host].into(), Protocol::Tcp, 80)).collect();
        assert_eq!(Buckets::of_listing(&listed(neighbours(200), 0xa7)), Some(Buckets::Mixed { with: 0xa7 }));
        assert_eq!(Buckets::of_listing(&listed(neighbours(100), 0xa7)), None, "they say nothing of the highest bit");
    }

    #[test]
    fn an_order_by_other_means_is_left_alone() {
        let mut keys = keys(100);
        // Any that has nothing to do with buckets.
        keys.sort_by_key(|key| hash(key).reverse_bits());
        assert_eq!(Buckets::of_listing(&keys), Some(Buckets::Secret));
        let before = keys.clone();
        Buckets::Secret.sort(&mut keys, |key| Some(*key));
        assert_eq!(keys, before);
    }

    #[test]
    fn what_was_removed_last_is_made_first() {
        let mark = |mark| VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(mark).unwrap() };
        let mut removed = listed(keys(500), 0x33);
        removed.extend([mark(0x100), mark(0x101)]);
        let mut made = keys(500);
        made.extend([mark(0x101), mark(0x100)]);
        Buckets::of_listing(&listed(keys(500), 0x33)).unwrap().sort(&mut made, |key| Some(*key));
        assert_eq!(made[..2], [mark(0x100), mark(0x101)].map(|key| key), "0 is mixed to 0x33, 1 to 0x32");
        let buckets = |keys: &[VirtualServerKey]| keys.iter().map(hash).collect::<Vec<_>>();
        removed.reverse();
        assert_eq!(buckets(&made[2..]), buckets(&removed[2..]));
    }
}
