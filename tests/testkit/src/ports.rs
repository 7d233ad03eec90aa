//! Source ports that clients do not share.

use std::sync::atomic::{AtomicU32, Ordering};

/// Below those that Linux chooses by itself, and above what anybody here listens on.
const FIRST: u32 = 11_000;
const COUNT: u32 = 19_000;

/// The first of `count` source ports that no other client got here, until all have been given out once.
///
/// IPVS finds the connection of a reply by client and real server: a client that uses one port for two frontends at a time, and is given the same
/// real server for both, gets the answers of one of them only (`ip_vs_conn_out_get`, net/netfilter/ipvs/ip_vs_conn.c). Ports that Linux chooses
/// are different for each frontend alone.
#[must_use]
pub fn source_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (count, whole) = (u32::from(count), COUNT);
    // Ports in a row: those that are left over at the end are passed over.
    let next = |next: u32| if next % whole + count > whole { next.next_multiple_of(whole) } else { next };
    let taken = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(next(at) + count)).map_or(0, next);
    u16::try_from(FIRST + taken % whole).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_in_a_row_and_nobody_elses_until_all_are_used() {
        let mut seen = BTreeSet::new();
        // All but what is passed over.
        for _ in 0..COUNT / 1000 - 1 {
            let first = source_ports(999);
            for port in first..first + 999 {
                assert!((FIRST..FIRST + COUNT).contains(&port.into()) && seen.insert(port), "{port}");
            }
        }
        assert!((0..100).map(|_| source_ports(999)).all(|first| u32::from(first) + 999 <= FIRST + COUNT));
    }
}
