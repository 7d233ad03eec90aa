//! Addresses of links.

use std::net::IpAddr;

use model::Family;

use crate::address::{family_from_number, family_number, read_address, write_address};
use crate::flags::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use crate::reader::{Attributes, required, split_header};
use crate::{Batch, Decoded, Malformed, Writer};

use super::{RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// `IFA_F_NODAD`.
const NODAD: u8 = 0x02;
/// `IFA_F_DADFAILED`.
const DAD_FAILED: u32 = 0x08;
/// `IFA_F_DEPRECATED`.
const DEPRECATED: u32 = 0x20;
/// `IFA_F_TENTATIVE`.
const TENTATIVE: u32 = 0x40;

const OWNER: &str = "an address";

/// An address as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link it is on.
    pub link: u32,
    /// The address itself; on a point-to-point link the near end.
    pub address: IpAddr,
    /// The length in bits of the network's prefix.
    pub prefix: u8,
    /// The scope (`RT_SCOPE_`): 0 for global, 253 for the link, 254 for the host.
    pub scope: u8,
    /// The flags (`IFA_F_`).
    pub flags: u32,
}

impl Address {
    /// Whether the node can speak from it yet: IPv6 first asks whether anyone else on the link has it.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.flags & (TENTATIVE | DAD_FAILED) == 0
    }

    /// Whether it should not be chosen for what begins now.
    #[must_use]
    pub const fn is_deprecated(&self) -> bool {
        self.flags & DEPRECATED != 0
    }
}

/// Binds an address to a link, as a network of its own: `EEXIST` when it is there.
///
/// An IPv6 address is usable at once (`IFA_F_NODAD`): a VIP is on every node by design, so asking who else has it is no use.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn new_address(batch: &mut Batch, seq: u32, link: u32, address: IpAddr) -> Result<(), Malformed> {
    let flags = if address.is_ipv6() { NODAD } else { 0 };
    write(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, seq, flags, link, address)
}

/// Unbinds an address from a link: `EADDRNOTAVAIL` when it is not there.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn del_address(batch: &mut Batch, seq: u32, link: u32, address: IpAddr) -> Result<(), Malformed> {
    write(batch, RTM_DELADDR, 0, seq, 0, link, address)
}

/// Asks for all addresses of both families, or of one link. The kernel looks at `link` only when the socket has
/// `NETLINK_GET_STRICT_CHK` (Linux 4.20) set; without it, all come.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_addresses(batch: &mut Batch, seq: u32, link: Option<u32>) -> Result<(), Malformed> {
    batch.message(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, seq, |message| write_header(message, [0; 4], link.unwrap_or(0)))
}

fn write(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    seq: u32,
    address_flags: u8,
    link: u32,
    address: IpAddr,
) -> Result<(), Malformed> {
    let family = Family::of(address);
    batch.message(kind, NLM_F_REQUEST | flags, seq, |message| {
        // The last of the four is the scope, 0 for global.
        write_header(message, [family_number(family), family.bits(), address_flags, 0], link);
        write_address(message, IFA_LOCAL, address);
        write_address(message, IFA_ADDRESS, address);
    })
}

/// Appends a `struct ifaddrmsg`.
fn write_header(message: &mut Writer<'_>, family_prefix_flags_scope: [u8; 4], link: u32) {
    message.raw(&family_prefix_flags_scope);
    message.raw(&link.to_ne_bytes());
}

/// Reads an address from [`RTM_NEWADDR`] or [`RTM_DELADDR`].
///
/// # Errors
/// When it is malformed or has no address. One of another family is no error.
pub fn parse_address(payload: &[u8]) -> Result<Decoded<Address>, Malformed> {
    let ([family, prefix, flags, scope], rest) = split_header(payload, OWNER)?;
    let (link, attributes) = split_header(rest, OWNER)?;
    let Some(family) = family_from_number(family.into()) else {
        return Ok(Decoded::foreign(format!("an address of family {family}")));
    };
    let (mut address, mut local, mut flags) = (None, None, u32::from(flags));
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            IFA_ADDRESS => address = Some(read_address(&attribute, family)?),
            IFA_LOCAL => local = Some(read_address(&attribute, family)?),
            // All of the flags, of which the header has room for eight.
            IFA_FLAGS => flags = attribute.u32()?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the far end. IPv6 leaves IFA_LOCAL out on all other links.
    let address = required(local.or(address), OWNER, "the address itself")?;
    Ok(Decoded::Known(Address { link: u32::from_ne_bytes(link), address, prefix, scope, flags }))
}
