//! Links: network devices.

use crate::error::check_name;
use crate::flags::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use crate::reader::{Attributes, required, split_header};
use crate::{Batch, Malformed, Writer};

use super::{RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK};

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

/// `IFF_UP`: the administrator wants the link up.
const UP: u32 = 1;
/// `IFF_LOOPBACK`.
const LOOPBACK: u32 = 8;
/// `IFNAMSIZ` is 16 with the terminating NUL.
const NAME_MAX: usize = 15;

const OWNER: &str = "a link";

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, which everything that refers to it uses. Never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it, such as `dummy` or `veth`; hardware and `lo` have none.
    pub kind: Option<String>,
    /// The flags (`IFF_`).
    pub flags: u32,
    /// The largest packet it takes, in bytes.
    pub mtu: Option<u32>,
}

impl Link {
    /// Whether it is meant to be up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Whether it is the loopback device.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }
}

/// Makes a dummy link and sets it up: `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no dummy links.
///
/// # Errors
/// When `name` cannot be the name of a link.
pub fn new_dummy(batch: &mut Batch, seq: u32, name: &str) -> Result<(), Malformed> {
    check_name(OWNER, name, NAME_MAX)?;
    batch.message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, seq, |message| {
        write_header(message, 0, UP, UP);
        message.text(IFLA_IFNAME, name);
        message.nested(IFLA_LINKINFO, |info| info.bytes(IFLA_INFO_KIND, b"dummy"));
    })
}

/// Sets a link up: `ENODEV` when there is none.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn set_up(batch: &mut Batch, seq: u32, index: u32) -> Result<(), Malformed> {
    batch.message(RTM_NEWLINK, NLM_F_REQUEST, seq, |message| write_header(message, index, UP, UP))
}

/// Removes a link, and with it its addresses and routes: `ENODEV` when there is none.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn del_link(batch: &mut Batch, seq: u32, index: u32) -> Result<(), Malformed> {
    batch.message(RTM_DELLINK, NLM_F_REQUEST, seq, |message| write_header(message, index, 0, 0))
}

/// Asks for the link called `name`: `ENODEV` when there is none.
///
/// # Errors
/// When `name` cannot be the name of a link.
pub fn get_link(batch: &mut Batch, seq: u32, name: &str) -> Result<(), Malformed> {
    check_name(OWNER, name, NAME_MAX)?;
    batch.message(RTM_GETLINK, NLM_F_REQUEST, seq, |message| {
        write_header(message, 0, 0, 0);
        message.text(IFLA_IFNAME, name);
    })
}

/// Asks for all links.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_links(batch: &mut Batch, seq: u32) -> Result<(), Malformed> {
    batch.message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, seq, |message| write_header(message, 0, 0, 0))
}

/// Appends a `struct ifinfomsg`; `change` says which of the `flags` are meant.
fn write_header(message: &mut Writer<'_>, index: u32, flags: u32, change: u32) {
    message.raw(&[0; 4]);
    message.raw(&index.to_ne_bytes());
    message.raw(&flags.to_ne_bytes());
    message.raw(&change.to_ne_bytes());
}

/// Reads a link from [`RTM_NEWLINK`] or [`RTM_DELLINK`].
///
/// # Errors
/// When it is malformed or has no name.
pub fn parse_link(payload: &[u8]) -> Result<Link, Malformed> {
    let (_, rest) = split_header::<4>(payload, OWNER)?;
    let (index, rest) = split_header(rest, OWNER)?;
    let (flags, rest) = split_header(rest, OWNER)?;
    let (_, attributes) = split_header::<4>(rest, OWNER)?;
    let (mut name, mut kind, mut mtu) = (None, None, None);
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => name = Some(attribute.text()?),
            IFLA_MTU => mtu = Some(attribute.u32()?),
            IFLA_LINKINFO => {
                for attribute in attribute.nested("a link's kind") {
                    let attribute = attribute?;
                    if attribute.kind == IFLA_INFO_KIND {
                        kind = Some(attribute.text()?.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let name = required(name, OWNER, "a name")?.to_owned();
    Ok(Link { index: u32::from_ne_bytes(index), name, kind, flags: u32::from_ne_bytes(flags), mtu })
}
