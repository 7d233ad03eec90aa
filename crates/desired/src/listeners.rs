//! What processes of the node listen on, as far as node ports can be in their way.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Family, Protocol};

/// A socket of a process of this node that takes connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The address it is bound to; the unspecified one for all addresses of its family. The unspecified IPv6 address stands for those
    /// of IPv4 too, as it does for a socket unless that asks for `IPV6_V6ONLY`.
    pub address: IpAddr,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listeners(BTreeSet<Listener>);

impl Listeners {
    pub(crate) const fn new(listeners: BTreeSet<Listener>) -> Self {
        Self(listeners)
    }

    /// Whether one of them would get what comes to `port` of `address`.
    pub(crate) fn take(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.of_port(protocol, port).any(|listener| {
            let everywhere = listener.address.is_unspecified()
                && (listener.address.is_ipv6() || Family::of(listener.address) == Family::of(address));
            everywhere || listener.address == address
        })
    }

    /// The ports whose listeners differ between `self` and `other`.
    pub(crate) fn changed_ports(&self, other: &Self) -> BTreeSet<(Protocol, u16)> {
        self.0.symmetric_difference(&other.0).map(|listener| (listener.protocol, listener.port)).collect()
    }

    fn of_port(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &Listener> {
        let first = Listener { protocol, port, address: IpAddr::from([0; 4]) };
        let same = move |listener: &&Listener| (listener.protocol, listener.port) == (protocol, port);
        self.0.range(first..).take_while(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f4_a_listener_takes_what_comes_to_its_address_or_to_any() {
        let listener = |address: &str| Listener { protocol: Protocol::Tcp, port: 80, address: address.parse().unwrap() };
        let take = |bound: &str, called: &str| {
            let neighbours = [Listener { port: 79, ..listener("::") }, Listener { protocol: Protocol::Udp, ..listener("::") }];
            let listeners = Listeners::new(neighbours.into_iter().chain([listener(bound)]).collect());
            listeners.take(Protocol::Tcp, called.parse().unwrap(), 80)
        };
        assert!(
            take("192.0.2.1", "192.0.2.1") && take("0.0.0.0", "192.0.2.1") && take("::", "192.0.2.1") && take("::", "2001:db8::1")
        );
        assert!(!take("192.0.2.2", "192.0.2.1") && !take("127.0.0.1", "192.0.2.1") && !take("0.0.0.0", "2001:db8::1"));
    }
}
