//! Address families and addresses as the kernel has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Family;

use crate::Malformed;
use crate::reader::Attribute;
use crate::writer::Writer;

/// `AF_INET` and `AF_INET6` (include/linux/socket.h); the same on every architecture.
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

pub(crate) fn family_from_number(number: u16) -> Option<Family> {
    Family::ALL.into_iter().find(|family| u16::from(family_number(*family)) == number)
}

/// Appends an address of 4 or 16 bytes.
pub(crate) fn write_address(writer: &mut Writer<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => writer.bytes(kind, &address.octets()),
        IpAddr::V6(address) => writer.bytes(kind, &address.octets()),
    }
}

/// Reads an address of `family`; what follows it in the attribute is not looked at, as IPVS gives 16 bytes to either family.
pub(crate) fn read_address(attribute: &Attribute<'_>, family: Family) -> Result<IpAddr, Malformed> {
    Ok(match family {
        Family::V4 => Ipv4Addr::from(attribute.prefix::<4>()?).into(),
        Family::V6 => Ipv6Addr::from(attribute.prefix::<16>()?).into(),
    })
}
