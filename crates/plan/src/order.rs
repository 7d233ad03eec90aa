//! In which order real servers are added.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use model::{RealServerKey, Scheduler, State};

use crate::{Plan, Stage, Step};

/// The order in which a node adds real servers.
///
/// A scheduler such as `rr` or `lc` that has no reason to prefer one server takes the first of its list, and the kernel puts a server
/// that is added in front (`__ip_vs_update_dest`, net/netfilter/ipvs/ip_vs_ctl.c). If all nodes added them in the same order, the
/// first connections of all nodes would go to the same server; so each has an order of its own. The schedulers that hash are the other
/// way round: they spread alike on nodes with the same list, which is what they are chosen for, and keep the order of the addresses.
///
/// Only new real servers have an order. Those that are there stay where they are, and two states are the same in whichever order their
/// servers were added.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    seed: u64,
}

impl Order {
    /// The order of the node called `name`.
    #[must_use]
    pub fn of_node(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self { seed: hasher.finish() }
    }

    /// The place of a real server behind a virtual server with `scheduler`. It need not stay the same from one build of this program to
    /// another, which the hasher of the node's name does not promise.
    fn place(self, scheduler: Option<Scheduler>, real: &RealServerKey) -> u64 {
        if scheduler.is_some_and(Scheduler::is_hashing) {
            return 0;
        }
        let address = match real.address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let [high, low] =
            [address >> u64::BITS, address & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or_default());
        [high, low, real.port.into()].into_iter().fold(self.seed, |state, word| mixed(state ^ word))
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): every bit of the word counts
/// for every bit of the result. A first start asks for the place of every real server there is, and for nothing that needs a stronger hash.
const fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Plan {
    /// The same plan, towards `desired`, with real servers added in `order`.
    #[must_use]
    pub fn in_order(mut self, order: Order, desired: &State) -> Self {
        let Some(steps) = self.stages.get_mut(&Stage::VirtualServers) else { return self };
        for of_one in steps.chunk_by_mut(|one, two| one.virtual_server() == two.virtual_server()) {
            let server = of_one.first().and_then(Step::virtual_server).and_then(|key| desired.virtual_servers.get(&key));
            let place = |real: &RealServerKey| order.place(server.map(|server| server.config.scheduler), real);
            for step in &mut *of_one {
                if let Step::AddVirtualServer { real_servers, .. } = step {
                    real_servers.sort_by_cached_key(|(real, _)| place(real));
                }
            }
            // What changes in place keeps its turn, ahead of what is added.
            of_one.sort_by_cached_key(|step| match step {
                Step::AddRealServer { real, .. } => Some(place(real)),
                _ => None,
            });
        }
        self
    }
}
