//! The order in which ipvsadm lists.
//!
//! It compares by subtraction, in numbers that are too small for it: 192.0.2.1 comes before 10.96.0.10, and of three addresses each may come
//! before the next in a circle. So the order depends on how it sorts, which is by merging (glibc's `qsort`), and on the kernel's order before.

use std::cmp::Ordering;
use std::net::IpAddr;

use kernel::Table;
use model::{Family, Protocol, RealServerKey, VirtualServerKey};

/// Puts `table`, which is in the kernel's order, into ipvsadm's.
pub(crate) fn order(table: &mut Table) {
    let rows = std::mem::take(&mut table.virtual_servers);
    table.virtual_servers = merge_sort(rows, &|one, other| compare(&one.key, &other.key));
    for row in &mut table.virtual_servers {
        let reals = std::mem::take(&mut row.real_servers);
        row.real_servers = merge_sort(reals, &|one, other| compare_reals(&one.key, &other.key));
    }
}

/// `ipvs_cmp_services`, libipvs/libipvs.c.
fn compare(one: &VirtualServerKey, other: &VirtualServerKey) -> Ordering {
    let parts = |key: &VirtualServerKey| match *key {
        VirtualServerKey::Address { address, port, protocol } => (0, Some((protocol, address, port))),
        VirtualServerKey::Mark { mark, .. } => (mark.get(), None),
    };
    let ((mark, address), (other_mark, other_address)) = (parts(one), parts(other));
    difference(mark, other_mark).then_with(|| one.family().cmp(&other.family())).then_with(|| match (address, other_address) {
        (Some((protocol, address, port)), Some((other_protocol, other_address, other_port))) => protocol_number(protocol)
            .cmp(&protocol_number(other_protocol))
            .then_with(|| compare_addresses(address, other_address))
            .then_with(|| port.cmp(&other_port)),
        _ => Ordering::Equal,
    })
}

/// `ipvs_cmp_dests`, libipvs/libipvs.c.
fn compare_reals(one: &RealServerKey, other: &RealServerKey) -> Ordering {
    Family::of(one.address)
        .cmp(&Family::of(other.address))
        .then_with(|| compare_addresses(one.address, other.address))
        .then_with(|| one.port.cmp(&other.port))
}

const fn protocol_number(protocol: Protocol) -> u8 {
    protocol.number()
}

fn compare_addresses(one: IpAddr, other: IpAddr) -> Ordering {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => difference(one.to_bits(), other.to_bits()),
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let words = |bits: u128| [96, 64, 32, 0].map(|shift| u32::try_from(bits >> shift & u128::from(u32::MAX)).unwrap_or(0));
            let pairs = words(one.to_bits()).into_iter().zip(words(other.to_bits()));
            pairs.map(|(one, other)| difference(one, other)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) => Ordering::Less,
        (IpAddr::V6(_), IpAddr::V4(_)) => Ordering::Greater,
    }
}

/// The sign of a difference that is kept in an `int`.
fn difference(one: u32, other: u32) -> Ordering {
    one.wrapping_sub(other).cast_signed().cmp(&0)
}

/// As glibc merges, which the sorts of the standard library do not: they may panic over an order that goes in circles.
fn merge_sort<T>(mut items: Vec<T>, compare: &impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let second = items.split_off(items.len() / 2);
    let mut first = merge_sort(items, compare).into_iter().peekable();
    let mut second = merge_sort(second, compare).into_iter().peekable();
    let mut merged = Vec::with_capacity(first.len() + second.len());
    while let (Some(one), Some(other)) = (first.peek(), second.peek()) {
        let next = if compare(one, other).is_le() { first.next() } else { second.next() };
        merged.extend(next);
    }
    merged.extend(first);
    merged.extend(second);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn key(text: &str, protocol: Protocol, port: u16) -> VirtualServerKey {
        VirtualServerKey::address(text.parse().unwrap(), protocol, port)
    }

    #[test]
    fn the_order_is_ipvsadms_down_to_its_overflows() {
        let mark = |mark| VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(mark).unwrap() };
        let keys = vec![
            mark(7),
            key("10.96.0.10", Protocol::Udp, 53),
            key("fd00::1", Protocol::Tcp, 80),
            key("10.96.0.10", Protocol::Tcp, 443),
            key("192.0.2.1", Protocol::Tcp, 443),
            key("10.96.0.10", Protocol::Tcp, 80),
            key("172.18.0.2", Protocol::Tcp, 80),
        ];
        let sorted: Vec<_> = merge_sort(keys, &compare).iter().map(ToString::to_string).collect();
        assert_eq!(
            sorted,
            [
                "TCP 172.18.0.2:80",
                "TCP 192.0.2.1:443",
                "TCP 10.96.0.10:80",
                "TCP 10.96.0.10:443",
                "UDP 10.96.0.10:53",
                "TCP [fd00::1]:80",
                "FWM 7"
            ]
        );
    }

    #[test]
    fn an_order_that_goes_in_circles_ends() {
        let addresses = ["10.0.0.1", "100.0.0.1", "200.0.0.1"];
        let keys: Vec<_> = addresses.iter().cycle().take(60).map(|address| key(address, Protocol::Tcp, 80)).collect();
        let circle = [(0, 1), (1, 2), (2, 0)];
        assert!(circle.iter().all(|(one, other)| compare(&keys[*one], &keys[*other]).is_lt()), "a circle");
        assert_eq!(merge_sort(keys, &compare).len(), 60);
    }
}
