//! Reading addresses as kube-proxy does, so that a Service means the same under both.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use model::Family;

/// The address `text` stands for.
///
/// Kubernetes once read `010.0.0.1` as `10.0.0.1`, and clusters hold objects from then, so leading zeros are decimal and not octal.
/// An IPv4-mapped IPv6 address is the IPv4 address: the kernel has no virtual server of the mapped form.
pub(crate) fn parse(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().or_else(|| parse_padded(text).map(IpAddr::V4))?;
    Some(address.to_canonical())
}

/// The network `text` stands for, without host bits.
pub(crate) fn parse_network(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    let address = IpNetwork::new(parse(address)?, prefix.parse().ok()?).ok()?;
    IpNetwork::new(address.network(), address.prefix()).ok()
}

fn parse_padded(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// The family the API calls `name`.
pub(crate) fn family(name: &str) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

/// What kind of address with which no connection can end `address` is, if it is one, with its article.
///
/// The API server refuses these for endpoints. A manifest has not been through one, and a loopback endpoint would expose what
/// listens on the node for itself.
pub(crate) fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("an unspecified")
    } else if address.is_loopback() {
        Some("a loopback")
    } else if address.is_multicast() {
        Some("a multicast")
    } else if link_local {
        Some("a link-local or broadcast")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("010.000.0000.001", "10.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("fd00:0010::0001", "fd00:10::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), address, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.1.2",
            "10.0.0.256",
            "+1.0.0.1",
            "1..0.1",
            "0x0a.0.0.1",
            "fe80::1%eth0",
            " 10.0.0.1",
            "10.0.0.1/32",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
