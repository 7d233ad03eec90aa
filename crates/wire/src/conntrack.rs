//! Connection tracking over nfnetlink (ctnetlink): entries are listed, and removed one by one
//! (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
//!
//! There is nothing here that makes an entry or removes several: a request to delete that names no entry empties the whole table.

use std::net::{IpAddr, SocketAddr};

use model::{Direction, Family, Flow, Protocol};

use crate::address::{family_from_number, family_number, read_address, write_address};
use crate::flags::{NLM_F_DUMP, NLM_F_REQUEST};
use crate::reader::{Attribute, Attributes, required, split_header};
use crate::writer::Writer;
use crate::{Batch, Decoded, Malformed};

/// `NFNL_SUBSYS_CTNETLINK`, the upper half of the message type.
const SUBSYSTEM: u16 = 1;

const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// Since Linux 5.8; older kernels skip it and list everything of the family.
const CTA_FILTER: u16 = 25;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_PROTO_NUM`: of the tuple beside it, the filter is about the protocol (net/netfilter/nf_internals.h).
const FILTER_PROTO_NUM: u32 = 1 << 3;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const OWNER: &str = "a conntrack entry";
const TUPLE: &str = "a tuple of a conntrack entry";

/// One entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it follows.
    pub flow: Flow,
    /// The kernel's number for it. A later entry for the same flow has another one, unless it happens to lie at the same place in memory.
    pub id: Option<u32>,
}

/// Lists the entries of a family that are of this protocol. Kernels before 5.8 list those of other protocols as well.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn get_entries(batch: &mut Batch, seq: u32, family: Family, protocol: Protocol) -> Result<(), Malformed> {
    request(batch, IPCTNL_MSG_CT_GET, NLM_F_DUMP, seq, family, |message| {
        message.nested(CTA_TUPLE_ORIG, |tuple| {
            tuple.nested(CTA_TUPLE_PROTO, |proto| proto.u8(CTA_PROTO_NUM, protocol.number()));
        });
        message.nested(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_NUM);
            filter.u32(CTA_FILTER_REPLY_FLAGS, 0);
        });
    })
}

/// Removes an entry: `ENOENT` when it is gone, or one with another number has taken its place.
///
/// # Errors
/// When the message cannot be said in netlink.
pub fn delete_entry(batch: &mut Batch, seq: u32, entry: &Entry) -> Result<(), Malformed> {
    let Entry { flow: Flow { protocol, original, reply, zone }, id } = *entry;
    let family = Family::of(original.destination.ip());
    request(batch, IPCTNL_MSG_CT_DELETE, 0, seq, family, |message| {
        write_tuple(message, CTA_TUPLE_ORIG, protocol, original);
        write_tuple(message, CTA_TUPLE_REPLY, protocol, reply);
        if zone != 0 {
            // Unmarked although in network byte order, here as in what the kernel sends.
            message.bytes(CTA_ZONE, &zone.to_be_bytes());
        }
        if let Some(id) = id {
            message.bytes(CTA_ID, &id.to_be_bytes());
        }
    })
}

/// Reads one entry of a list.
///
/// # Errors
/// When it is malformed or incomplete.
pub fn parse_entry(payload: &[u8]) -> Result<Decoded<Entry>, Malformed> {
    let (header, attributes) = split_header::<4>(payload, OWNER)?;
    let [family, ..] = header;
    let Some(family) = family_from_number(family.into()) else {
        return Ok(Decoded::foreign(format!("a conntrack entry of address family {family}")));
    };
    let (mut original, mut reply, mut id, mut zone) = (None, None, None, 0);
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            CTA_TUPLE_ORIG => original = Some(parse_tuple(&attribute, family)?),
            CTA_TUPLE_REPLY => reply = Some(parse_tuple(&attribute, family)?),
            CTA_ID => id = Some(attribute.u32_network()?),
            CTA_ZONE => zone = attribute.u16_network()?,
            _ => {}
        }
    }
    let original = required(original, OWNER, "its original tuple")?;
    let reply = required(reply, OWNER, "its reply tuple")?;
    if original.has_zone || reply.has_zone {
        return Ok(Decoded::foreign("a conntrack entry with a zone for one direction"));
    }
    let number = original.protocol;
    let Some(protocol) = Protocol::from_number(number.into()) else {
        return Ok(Decoded::foreign(format!("a conntrack entry of protocol {number}")));
    };
    let flow = Flow { protocol, original: original.direction()?, reply: reply.direction()?, zone };
    Ok(Decoded::Known(Entry { flow, id }))
}

/// One direction as the kernel has it.
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Protocols without ports have other attributes in their place.
    source_port: Option<u16>,
    destination_port: Option<u16>,
    has_zone: bool,
}

impl Tuple {
    fn direction(&self) -> Result<Direction, Malformed> {
        let port = |port| required(port, TUPLE, "a port");
        Ok(Direction {
            source: SocketAddr::new(self.source, port(self.source_port)?),
            destination: SocketAddr::new(self.destination, port(self.destination_port)?),
        })
    }
}

fn parse_tuple(tuple: &Attribute<'_>, family: Family) -> Result<Tuple, Malformed> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, None, None);
    let mut has_zone = false;
    let (source_kind, destination_kind) = address_kinds(family);
    for attribute in tuple.nested(TUPLE) {
        let attribute = attribute?;
        match attribute.kind {
            CTA_TUPLE_IP => {
                for address in attribute.nested("the addresses of a conntrack entry") {
                    let address = address?;
                    if address.kind == source_kind {
                        source = Some(read_address(&address, family)?);
                    } else if address.kind == destination_kind {
                        destination = Some(read_address(&address, family)?);
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for part in attribute.nested("the protocol of a conntrack entry") {
                    let part = part?;
                    match part.kind {
                        CTA_PROTO_NUM => protocol = Some(part.u8()?),
                        CTA_PROTO_SRC_PORT => source_port = Some(part.u16_network()?),
                        CTA_PROTO_DST_PORT => destination_port = Some(part.u16_network()?),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_ZONE => has_zone = true,
            _ => {}
        }
    }
    Ok(Tuple {
        source: required(source, TUPLE, "a source address")?,
        destination: required(destination, TUPLE, "a destination address")?,
        protocol: required(protocol, TUPLE, "a protocol")?,
        source_port,
        destination_port,
        has_zone,
    })
}

fn write_tuple(message: &mut Writer<'_>, kind: u16, protocol: Protocol, direction: Direction) {
    let Direction { source, destination } = direction;
    let (source_kind, destination_kind) = address_kinds(Family::of(source.ip()));
    message.nested(kind, |tuple| {
        tuple.nested(CTA_TUPLE_IP, |addresses| {
            write_address(addresses, source_kind, source.ip());
            write_address(addresses, destination_kind, destination.ip());
        });
        tuple.nested(CTA_TUPLE_PROTO, |proto| {
            proto.u8(CTA_PROTO_NUM, protocol.number());
            proto.bytes(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
            proto.bytes(CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
        });
    });
}

const fn address_kinds(family: Family) -> (u16, u16) {
    match family {
        Family::V4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        Family::V6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    }
}

fn request(
    batch: &mut Batch,
    command: u16,
    flags: u16,
    seq: u32,
    family: Family,
    attributes: impl FnOnce(&mut Writer<'_>),
) -> Result<(), Malformed> {
    batch.message((SUBSYSTEM << 8) | command, NLM_F_REQUEST | flags, seq, |message| {
        // struct nfgenmsg: the family, version 0, no resource.
        message.raw(&[family_number(family), 0, 0, 0]);
        attributes(message);
    })
}
