//! Routes, of which those that make a VIP local to the node are ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Family;

use crate::address::{family_from_number, family_number, read_address, write_address};
use crate::flags::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use crate::reader::{Attribute, Attributes, split_header};
use crate::{Batch, Decoded, Malformed, Writer};

use super::{PROTOCOL, ROUTE_LOCAL, ROUTE_UNICAST, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, TABLE_LOCAL, TABLE_MAIN};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;

/// `RT_TABLE_LOCAL` where the header has eight bits for it.
const HEADER_TABLE_LOCAL: u8 = 255;
/// `RT_SCOPE_HOST`: an IPv4 route to the node itself. IPv6 has no scopes and takes 0.
const SCOPE_HOST: u8 = 254;

const OWNER: &str = "a route";

/// A route that makes one address local to the node: `local ADDRESS/32 dev LINK table local proto 71 src SOURCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalRoute {
    /// The address it makes local.
    pub address: IpAddr,
    /// The link it goes with: when that is removed, so is the route. In IPv6 the link must be up.
    pub link: u32,
    /// The address that the node's own connections to `address` come from, one of the node's. Without it they come from `address`
    /// itself. When the node loses it, the IPv4 route stays with a source that is no more.
    pub source: Option<IpAddr>,
}

/// Adds a local route: `EEXIST` when there is a route to the address in the table.
///
/// # Errors
/// When address and source are of different families.
pub fn add_local_route(batch: &mut Batch, seq: u32, route: &LocalRoute) -> Result<(), Malformed> {
    write(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, seq, route)
}

/// Adds a local route in front of one to the same address that is there already: `EEXIST` when that one is the same. Of such routes
/// Linux takes the first (IPv4) or the one with the lowest metric (IPv6), and each goes by itself.
///
/// # Errors
/// When address and source are of different families.
pub fn prepend_local_route(batch: &mut Batch, seq: u32, route: &LocalRoute) -> Result<(), Malformed> {
    write(batch, RTM_NEWROUTE, NLM_F_CREATE, seq, route)
}

/// Adds a local route or, in one step, puts it in the place of the route to the same address, whoever made that. The kernel's own
/// route to an address that is bound to a link is such a route: do not use this on addresses that may be bound.
///
/// # Errors
/// When address and source are of different families.
pub fn replace_local_route(batch: &mut Batch, seq: u32, route: &LocalRoute) -> Result<(), Malformed> {
    write(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, seq, route)
}

/// Removes a local route of ours: `ESRCH` when there is none. Only a route with our protocol number matches, and only one with this
/// source, if one is given.
///
/// # Errors
/// When address and source are of different families.
pub fn del_local_route(batch: &mut Batch, seq: u32, route: &LocalRoute) -> Result<(), Malformed> {
    write(batch, RTM_DELROUTE, 0, seq, route)
}

fn write(batch: &mut Batch, kind: u16, flags: u16, seq: u32, route: &LocalRoute) -> Result<(), Malformed> {
    let family = Family::of(route.address);
    if let Some(source) = route.source.filter(|source| Family::of(*source) != family) {
        let LocalRoute { address, .. } = route;
        return Err(Malformed::new(format!(
            "a route to {address} cannot have the source {source}: they must be of the same family"
        )));
    }
    let scope = match family {
        Family::V4 => SCOPE_HOST,
        Family::V6 => 0,
    };
    batch.message(kind, NLM_F_REQUEST | flags, seq, |message| {
        let header =
            Header { family, prefix: family.bits(), table: HEADER_TABLE_LOCAL, protocol: PROTOCOL, scope, kind: ROUTE_LOCAL };
        header.write(message);
        write_address(message, RTA_DST, route.address);
        if let Some(source) = route.source {
            write_address(message, RTA_PREFSRC, source);
        }
        message.u32(RTA_OIF, route.link);
    })
}

/// Which routes of table `local` to list. The kernel looks at protocol and link only when the socket has `NETLINK_GET_STRICT_CHK`
/// (Linux 4.20) set, so whoever reads the answer must look as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteFilter {
    /// Routes of this family.
    pub family: Family,
    /// Routes made by this protocol.
    pub protocol: Option<u8>,
    /// Routes of this link: `ENODEV` when there is none.
    pub link: Option<u32>,
}

/// Asks for routes of table `local`.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_routes(batch: &mut Batch, seq: u32, filter: RouteFilter) -> Result<(), Malformed> {
    batch.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, seq, |message| {
        let RouteFilter { family, protocol, link } = filter;
        Header { family, prefix: 0, table: 0, protocol: protocol.unwrap_or(0), scope: 0, kind: 0 }.write(message);
        message.u32(RTA_TABLE, TABLE_LOCAL);
        if let Some(link) = link {
            message.u32(RTA_OIF, link);
        }
    })
}

/// Asks for the routes of table `main` in a family, among which are those that lead out of the network.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_main_routes(batch: &mut Batch, seq: u32, family: Family) -> Result<(), Malformed> {
    batch.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, seq, |message| {
        Header { family, prefix: 0, table: 0, protocol: 0, scope: 0, kind: 0 }.write(message);
        message.u32(RTA_TABLE, TABLE_MAIN);
    })
}

/// Asks for the routes of a family that lead out of `link`, in all tables. The kernel looks at `link` only when the socket has
/// `NETLINK_GET_STRICT_CHK` (Linux 4.20) set, so whoever reads the answer must look as well.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_routes_of_link(batch: &mut Batch, seq: u32, family: Family, link: u32) -> Result<(), Malformed> {
    batch.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, seq, |message| {
        Header { family, prefix: 0, table: 0, protocol: 0, scope: 0, kind: 0 }.write(message);
        message.u32(RTA_OIF, link);
    })
}

/// Asks how the node would reach `address`. The answer's [`Route::source`] is the address it would speak from; `ENETUNREACH` when it
/// would not.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_route_to(batch: &mut Batch, seq: u32, address: IpAddr) -> Result<(), Malformed> {
    let family = Family::of(address);
    batch.message(RTM_GETROUTE, NLM_F_REQUEST, seq, |message| {
        Header { family, prefix: family.bits(), table: 0, protocol: 0, scope: 0, kind: 0 }.write(message);
        write_address(message, RTA_DST, address);
    })
}

/// `struct rtmsg`, less what is always 0 here: source prefix, TOS and flags.
struct Header {
    family: Family,
    prefix: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
}

impl Header {
    fn write(&self, message: &mut Writer<'_>) {
        message.raw(&[family_number(self.family), self.prefix, 0, 0, self.table, self.protocol, self.scope, self.kind]);
        message.raw(&[0; 4]);
    }
}

/// A route as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The first address it leads to.
    pub destination: IpAddr,
    /// How many bits of the destination count.
    pub prefix: u8,
    /// The table it is in.
    pub table: u32,
    /// The type (`RTN_`), such as [`ROUTE_LOCAL`].
    pub kind: u8,
    /// Who made it (`RTPROT_`), such as [`PROTOCOL`]; 2 for the kernel itself.
    pub protocol: u8,
    /// The scope (`RT_SCOPE_`); IPv4 only.
    pub scope: u8,
    /// The link it leads out of; routes with several have none here.
    pub link: Option<u32>,
    /// The source address it suggests.
    pub source: Option<IpAddr>,
}

/// `RTPROT_KERNEL`: routes that the kernel makes by itself, as for the addresses of a link.
pub const BY_KERNEL: u8 = 2;
/// `RTPROT_UNSPEC`.
const BY_NOBODY: u8 = 0;

impl Route {
    /// Whether the kernel made it by itself, and takes it away by itself.
    #[must_use]
    pub const fn is_kernels(&self) -> bool {
        self.protocol == BY_KERNEL
    }

    /// The address that this route makes local, if it is one that the kernel has made because the address is bound to a link.
    #[must_use]
    pub fn of_own_address(&self) -> Option<IpAddr> {
        // Of IPv6 routes old kernels do not say that they have made them themselves.
        let is_kernels = self.is_kernels() || self.protocol == BY_NOBODY;
        self.is_local().then_some(self.destination).filter(|_| is_kernels)
    }

    /// Whether it is one to a single address, in table `local`.
    fn is_local(&self) -> bool {
        self.prefix == Family::of(self.destination).bits() && self.table == TABLE_LOCAL && self.kind == ROUTE_LOCAL
    }

    /// This route as a local route of ours, if it is one: of our protocol, to one address, on a link, in table `local`.
    #[must_use]
    pub fn ours(&self) -> Option<LocalRoute> {
        let ours = self.is_local() && self.protocol == PROTOCOL;
        self.link.filter(|_| ours).map(|link| LocalRoute { address: self.destination, link, source: self.source })
    }
}

/// Reads a route from [`RTM_NEWROUTE`] or [`RTM_DELROUTE`].
///
/// # Errors
/// When it is malformed. One of another family is no error.
pub fn parse_route(payload: &[u8]) -> Result<Decoded<Route>, Malformed> {
    let ([family, prefix, _, _, table, protocol, scope, kind], rest) = split_header(payload, OWNER)?;
    let (_, attributes) = split_header::<4>(rest, OWNER)?;
    let Some(family) = family_from_number(family.into()) else {
        return Ok(Decoded::foreign(format!("a route of family {family}")));
    };
    let destination = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut route = Route { destination, prefix, table: table.into(), kind, protocol, scope, link: None, source: None };
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => route.destination = read_address(&attribute, family)?,
            RTA_OIF => route.link = Some(attribute.u32()?),
            RTA_PREFSRC => route.source = Some(read_address(&attribute, family)?),
            // The whole number, of which the header has room for eight bits.
            RTA_TABLE => route.table = attribute.u32()?,
            _ => {}
        }
    }
    Ok(Decoded::Known(route))
}

/// The gateways of a route of table `main` that leads everywhere; none for any other route. Several share the traffic.
///
/// # Errors
/// When it is malformed. One of another family is no error.
pub fn parse_default_gateways(payload: &[u8]) -> Result<Decoded<Vec<IpAddr>>, Malformed> {
    let route = match parse_route(payload)? {
        Decoded::Known(route) => route,
        Decoded::Foreign(why) => return Ok(Decoded::Foreign(why)),
    };
    let mut gateways = Vec::new();
    if route.prefix == 0 && route.table == TABLE_MAIN && route.kind == ROUTE_UNICAST {
        let (_, attributes) = split_header::<12>(payload, OWNER)?;
        for attribute in Attributes::new(attributes, OWNER) {
            let attribute = attribute?;
            if attribute.kind == RTA_MULTIPATH {
                next_hops(attribute.value, Family::of(route.destination), &mut gateways)?;
            } else {
                gateways.extend(gateway(&attribute, Family::of(route.destination))?);
            }
        }
    }
    Ok(Decoded::Known(gateways))
}

/// Reads `struct rtnexthop` after `struct rtnexthop`, each with its attributes.
fn next_hops(mut bytes: &[u8], family: Family, gateways: &mut Vec<IpAddr>) -> Result<(), Malformed> {
    const HOP: &str = "a next hop";
    while !bytes.is_empty() {
        let ([len_0, len_1, ..], _) = split_header::<8>(bytes, HOP)?;
        let len = usize::from(u16::from_ne_bytes([len_0, len_1]));
        let (_, attributes) = split_header::<8>(bytes.get(..len).unwrap_or_default(), HOP)?;
        for attribute in Attributes::new(attributes, HOP) {
            gateways.extend(gateway(&attribute?, family)?);
        }
        // The last one may come without its padding.
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The gateway in an attribute of a route of `family`, if it is such an attribute. That of an IPv4 route may be an IPv6 address, which
/// then comes as `struct rtvia`: the family, then the address.
fn gateway(attribute: &Attribute<'_>, family: Family) -> Result<Option<IpAddr>, Malformed> {
    match attribute.kind {
        RTA_GATEWAY => read_address(attribute, family).map(Some),
        RTA_VIA => {
            let (number, address) = split_header::<2>(attribute.value, "a gateway")?;
            Ok(match family_from_number(u16::from_ne_bytes(number)) {
                Some(Family::V4) => Some(Ipv4Addr::from(split_header::<4>(address, "a gateway")?.0).into()),
                Some(Family::V6) => Some(Ipv6Addr::from(split_header::<16>(address, "a gateway")?.0).into()),
                None => None,
            })
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A route as the kernel lists it: a header and attributes of these numbers and values.
    fn route(family: u8, prefix: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![family, prefix, 0, 0, 254, 3, 0, ROUTE_UNICAST, 0, 0, 0, 0];
        attributes.iter().for_each(|(kind, value)| bytes.extend(attribute(*kind, value)));
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn hop(attributes: &[u8]) -> Vec<u8> {
        let len = u16::try_from(8 + attributes.len()).unwrap();
        [&len.to_ne_bytes()[..], &[0, 0, 2, 0, 0, 0], attributes].concat()
    }

    fn gateways(payload: &[u8]) -> Vec<String> {
        parse_default_gateways(payload).unwrap().known().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn d5_every_gateway_of_a_default_route_is_found() {
        assert_eq!(gateways(&route(2, 0, &[(RTA_GATEWAY, &[192, 0, 2, 1]), (RTA_OIF, &[2, 0, 0, 0])])), ["192.0.2.1"]);
        let v6: [u8; 16] = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(gateways(&route(10, 0, &[(RTA_GATEWAY, &v6)])), ["fe80::1"]);
        let via = [&10_u16.to_ne_bytes()[..], &v6].concat();
        assert_eq!(gateways(&route(2, 0, &[(RTA_VIA, &via)])), ["fe80::1"]);
        let hops = [hop(&attribute(RTA_GATEWAY, &[192, 0, 2, 1])), hop(&attribute(RTA_GATEWAY, &[192, 0, 2, 2]))].concat();
        assert_eq!(gateways(&route(2, 0, &[(RTA_MULTIPATH, &hops)])), ["192.0.2.1", "192.0.2.2"]);

        assert_eq!(gateways(&route(2, 24, &[(RTA_DST, &[198, 51, 100, 0]), (RTA_GATEWAY, &[192, 0, 2, 1])])), [""; 0]);
        assert_eq!(gateways(&route(2, 0, &[(RTA_TABLE, &100_u32.to_ne_bytes()), (RTA_GATEWAY, &[192, 0, 2, 1])])), [""; 0]);
    }

    #[test]
    fn a_next_hop_that_lies_about_its_length_is_an_error() {
        let mut hops = hop(&attribute(RTA_GATEWAY, &[192, 0, 2, 1]));
        for lie in [0_u16, 7, 17, u16::MAX] {
            hops.splice(..2, lie.to_ne_bytes());
            assert!(parse_default_gateways(&route(2, 0, &[(RTA_MULTIPATH, &hops)])).is_err(), "{lie}");
        }
        for cut in 1..hops.len() {
            // Cut anywhere, it is an error or says less; it never panics.
            drop(parse_default_gateways(&route(2, 0, &[(RTA_MULTIPATH, &hops[..cut])])));
        }
    }
}
