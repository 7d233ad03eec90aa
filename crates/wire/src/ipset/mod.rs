//! ipset over nfnetlink (include/uapi/linux/netfilter/ipset/ip_set.h): sets and their members.
//!
//! Numbers are in network byte order, marked so. Error numbers from 4096 on are ipset's own: [`error_text`] says what they mean.

mod error;
mod member;
mod set;

pub use error::error_text;
pub use member::{AdtList, Full, failed_entry, parse_member};
pub use set::{ListScope, SetHeader, SetPart, parse_set};

use model::{Family, SetKind};

use crate::address::family_number;
use crate::error::check_name;
use crate::flags::NLM_F_REQUEST;
use crate::reader::{Attributes, required, split_header};
use crate::writer::Writer;
use crate::{Batch, Malformed};

/// `NFNL_SUBSYS_IPSET`, the upper half of the message type.
const SUBSYSTEM: u16 = 6;
/// `IPSET_MAXNAMELEN` is 32 with the terminating NUL.
const NAME_MAX: usize = 31;

/// The range of protocol versions spoken here. 7 added nothing this crate needs, so it does not matter which is used.
const PROTOCOL: u8 = 7;
const PROTOCOL_MIN: u8 = 6;

const IPSET_CMD_PROTOCOL: u16 = 1;
const IPSET_CMD_CREATE: u16 = 2;
const IPSET_CMD_DESTROY: u16 = 3;
const IPSET_CMD_FLUSH: u16 = 4;
const IPSET_CMD_SWAP: u16 = 6;
const IPSET_CMD_LIST: u16 = 7;
const IPSET_CMD_ADD: u16 = 9;
const IPSET_CMD_DEL: u16 = 10;
const IPSET_CMD_TEST: u16 = 11;
const IPSET_CMD_TYPE: u16 = 13;

const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_TYPENAME: u16 = 3;
const IPSET_ATTR_SETNAME2: u16 = 3;
const IPSET_ATTR_REVISION: u16 = 4;
const IPSET_ATTR_FAMILY: u16 = 5;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_ADT: u16 = 8;
const IPSET_ATTR_LINENO: u16 = 9;
const IPSET_ATTR_PROTOCOL_MIN: u16 = 10;
const IPSET_ATTR_REVISION_MIN: u16 = 10;

/// Asks which protocol versions the kernel speaks. A kernel without ipset answers `EINVAL`.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_protocol(batch: &mut Batch, seq: u32) -> Result<(), Malformed> {
    Ipset { protocol: PROTOCOL }.request(batch, IPSET_CMD_PROTOCOL, 0, seq, |_| ())
}

/// Reads the answer to [`get_protocol`].
///
/// # Errors
/// When it is malformed, or the kernel speaks no version that is spoken here.
pub fn parse_protocol(payload: &[u8]) -> Result<Ipset, Malformed> {
    const OWNER: &str = "the ipset protocol version";
    let (mut max, mut min) = (None, None);
    for attribute in attributes(payload, OWNER)? {
        let attribute = attribute?;
        match attribute.kind {
            IPSET_ATTR_PROTOCOL => max = Some(attribute.u8()?),
            IPSET_ATTR_PROTOCOL_MIN => min = Some(attribute.u8()?),
            _ => {}
        }
    }
    let max = required(max, OWNER, "a number")?;
    // Kernels before 4.20 know one version and say just that.
    let min = min.unwrap_or(max);
    let protocol = max.min(PROTOCOL);
    if protocol < min.max(PROTOCOL_MIN) {
        let range = format!("the kernel speaks ipset protocol {min} to {max}, kube-ipvs {PROTOCOL_MIN} to {PROTOCOL}");
        return Err(Malformed::new(range));
    }
    Ok(Ipset { protocol })
}

/// Reads the answer to [`Ipset::get_type`]: the lowest and highest revision of the type that the kernel can make.
///
/// # Errors
/// When it is malformed.
pub fn parse_type(payload: &[u8]) -> Result<(u8, u8), Malformed> {
    const OWNER: &str = "an ipset type";
    let (mut max, mut min) = (None, None);
    for attribute in attributes(payload, OWNER)? {
        let attribute = attribute?;
        match attribute.kind {
            IPSET_ATTR_REVISION => max = Some(attribute.u8()?),
            IPSET_ATTR_REVISION_MIN => min = Some(attribute.u8()?),
            _ => {}
        }
    }
    let max = required(max, OWNER, "a revision")?;
    Ok((min.unwrap_or(max), max))
}

/// Writes requests to ipset in a protocol version that the kernel speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipset {
    protocol: u8,
}

impl Ipset {
    /// Asks for the revisions of a type. `-4098` or `ENOENT` mean that the kernel has no such type.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_type(self, batch: &mut Batch, seq: u32, kind: SetKind, family: Family) -> Result<(), Malformed> {
        self.request(batch, IPSET_CMD_TYPE, 0, seq, |message| {
            message.text(IPSET_ATTR_TYPENAME, kind.name());
            message.u8(IPSET_ATTR_FAMILY, family_number(family));
        })
    }

    fn request(
        self,
        batch: &mut Batch,
        command: u16,
        flags: u16,
        seq: u32,
        attributes: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), Malformed> {
        batch.message((SUBSYSTEM << 8) | command, NLM_F_REQUEST | flags, seq, |message| {
            // struct nfgenmsg: ipset has one family's worth of sets, and answers under AF_INET for both.
            message.raw(&[family_number(Family::V4), 0, 0, 0]);
            message.u8(IPSET_ATTR_PROTOCOL, self.protocol);
            attributes(message);
        })
    }

    fn named(
        self,
        batch: &mut Batch,
        command: u16,
        flags: u16,
        seq: u32,
        name: &str,
        attributes: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), Malformed> {
        check_name("a set", name, NAME_MAX)?;
        self.request(batch, command, flags, seq, |message| {
            message.text(IPSET_ATTR_SETNAME, name);
            attributes(message);
        })
    }
}

/// The attributes after the `struct nfgenmsg`.
fn attributes<'a>(payload: &'a [u8], owner: &'static str) -> Result<Attributes<'a>, Malformed> {
    let (_, attributes) = split_header::<4>(payload, owner)?;
    Ok(Attributes::new(attributes, owner))
}
