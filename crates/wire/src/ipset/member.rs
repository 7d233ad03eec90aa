//! Members of sets, one by one and in lists.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnetwork::IpNetwork;
use model::{Family, Member, Protocol, SetKind};

use super::{IPSET_ATTR_ADT, IPSET_ATTR_DATA, IPSET_ATTR_LINENO, IPSET_CMD_ADD, IPSET_CMD_DEL, IPSET_CMD_TEST, Ipset, attributes};
use crate::address::read_address;
use crate::reader::{Attribute, Attributes, required};
use crate::writer::Writer;
use crate::{Batch, Decoded, Malformed};

const IPSET_ATTR_IP: u16 = 1;
const IPSET_ATTR_IP_TO: u16 = 2;
const IPSET_ATTR_CIDR: u16 = 3;
const IPSET_ATTR_PORT: u16 = 4;
const IPSET_ATTR_PORT_TO: u16 = 5;
const IPSET_ATTR_PROTO: u16 = 7;
const IPSET_ATTR_MARK: u16 = 10;
const IPSET_ATTR_ETHER: u16 = 17;
const IPSET_ATTR_NAME: u16 = 18;
const IPSET_ATTR_NAMEREF: u16 = 19;
const IPSET_ATTR_IP2: u16 = 20;
const IPSET_ATTR_CIDR2: u16 = 21;
const IPSET_ATTR_IP2_TO: u16 = 22;
const IPSET_ATTR_IFACE: u16 = 23;
const IPSET_ATTR_SKBMARK: u16 = 27;
const IPSET_ATTR_CADT_FLAGS: u16 = 8;

const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
const IPSET_ATTR_IPADDR_IPV6: u16 = 2;

const OWNER: &str = "a set member";

/// Members for one message, all of one layout. Clear and reuse it.
#[derive(Debug, Clone)]
pub struct AdtList {
    kind: SetKind,
    bytes: Vec<u8>,
    entries: u32,
}

/// The list has no room for another member: send it, clear it and go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list has no room for another member")]
pub struct Full;

impl AdtList {
    /// The most bytes of members in one message. The list is one attribute, whose length has 16 bits; the rest is for its header
    /// and the set's name.
    pub const MAX_BYTES: usize = 64_000;

    /// More than any member takes: 96 bytes for `hash:ip,port,ip` in IPv6.
    const MAX_ENTRY: usize = 128;

    /// An empty list for sets of this layout.
    #[must_use]
    pub const fn new(kind: SetKind) -> Self {
        Self { kind, bytes: Vec::new(), entries: 0 }
    }

    /// Appends a member.
    ///
    /// # Errors
    /// When there is no room for it. The list is then as it was.
    pub fn push(&mut self, member: &Member) -> Result<(), Full> {
        if self.bytes.len() + Self::MAX_ENTRY > Self::MAX_BYTES {
            return Err(Full);
        }
        let start = self.bytes.len();
        // Counted from 1: 0 is what an answer says when it is about no entry in particular.
        let line = self.entries + 1;
        let mut writer = Writer::new(&mut self.bytes);
        writer.nested(IPSET_ATTR_DATA, |data| write_member(data, member, line));
        if writer.finish().is_err() {
            self.bytes.truncate(start);
            return Err(Full);
        }
        self.entries = line;
        Ok(())
    }

    /// The layout of its members.
    #[must_use]
    pub const fn kind(&self) -> SetKind {
        self.kind
    }

    /// The number of members.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there is no member.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Forgets the members and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries = 0;
    }
}

impl Ipset {
    /// Adds a member. One that is there already is no error.
    ///
    /// # Errors
    /// When `set` cannot be the name of a set.
    pub fn add(self, batch: &mut Batch, seq: u32, set: &str, member: &Member) -> Result<(), Malformed> {
        self.one(batch, IPSET_CMD_ADD, seq, set, member)
    }

    /// Removes a member. One that is not there is no error.
    ///
    /// # Errors
    /// When `set` cannot be the name of a set.
    pub fn del(self, batch: &mut Batch, seq: u32, set: &str, member: &Member) -> Result<(), Malformed> {
        self.one(batch, IPSET_CMD_DEL, seq, set, member)
    }

    /// Asks whether a member is in a set: `-4103` when it is not, `ENOENT` when there is no such set.
    ///
    /// # Errors
    /// When `set` cannot be the name of a set.
    pub fn test(self, batch: &mut Batch, seq: u32, set: &str, member: &Member) -> Result<(), Malformed> {
        self.one(batch, IPSET_CMD_TEST, seq, set, member)
    }

    /// Adds the members of a list. Those that are there already are no error. The kernel stops at the first it refuses, and its
    /// answer says [which](failed_entry); those before it are in the set.
    ///
    /// # Errors
    /// When `set` cannot be the name of a set.
    pub fn add_list(self, batch: &mut Batch, seq: u32, set: &str, list: &AdtList) -> Result<(), Malformed> {
        self.many(batch, IPSET_CMD_ADD, seq, set, list)
    }

    /// Removes the members of a list. Those that are not there are no error.
    ///
    /// # Errors
    /// When `set` cannot be the name of a set.
    pub fn del_list(self, batch: &mut Batch, seq: u32, set: &str, list: &AdtList) -> Result<(), Malformed> {
        self.many(batch, IPSET_CMD_DEL, seq, set, list)
    }

    // Without NLM_F_EXCL the kernel takes what is already so for done.
    fn one(self, batch: &mut Batch, command: u16, seq: u32, set: &str, member: &Member) -> Result<(), Malformed> {
        self.named(batch, command, 0, seq, set, |message| {
            message.nested(IPSET_ATTR_DATA, |data| write_member(data, member, 0));
        })
    }

    fn many(self, batch: &mut Batch, command: u16, seq: u32, set: &str, list: &AdtList) -> Result<(), Malformed> {
        self.named(batch, command, 0, seq, set, |message| {
            // The place where the kernel puts the line number of the entry that it refused; a list without it is refused.
            message.u32_network(IPSET_ATTR_LINENO, 0);
            message.nested(IPSET_ATTR_ADT, |adt| adt.raw(&list.bytes));
        })
    }
}

/// Which entry of a list the kernel refused, counted from 0, by the request that it gave back with the error.
///
/// For a refused list the kernel always gives the request back, whatever the socket asked for. `None` when the answer is about the
/// list as a whole, such as a set that does not exist.
#[must_use]
pub fn failed_entry(request: &[u8]) -> Option<usize> {
    let line =
        attributes(request, "a refused list").ok()?.map_while(Result::ok).find(|attribute| attribute.kind == IPSET_ATTR_LINENO)?;
    // As it was sent, and so in network byte order.
    usize::try_from(line.u32_network().ok()?).ok()?.checked_sub(1)
}

fn write_member(data: &mut Writer<'_>, member: &Member, line: u32) {
    match *member {
        Member::Ip(ip) => write_ip(data, IPSET_ATTR_IP, ip),
        Member::IpPort(ip, protocol, port) => {
            write_ip(data, IPSET_ATTR_IP, ip);
            write_port(data, protocol, port);
        }
        Member::IpPortIp(ip, protocol, port, ip2) => {
            write_ip(data, IPSET_ATTR_IP, ip);
            write_port(data, protocol, port);
            write_ip(data, IPSET_ATTR_IP2, ip2);
        }
        Member::IpPortNet(ip, protocol, port, net) => {
            write_ip(data, IPSET_ATTR_IP, ip);
            write_port(data, protocol, port);
            write_ip(data, IPSET_ATTR_IP2, net.network());
            data.u8(IPSET_ATTR_CIDR2, net.prefix());
        }
        Member::IpPortMark(ip, protocol, port, mark) => {
            write_ip(data, IPSET_ATTR_IP, ip);
            write_port(data, protocol, port);
            // Mark and mask: every bit of the packet's mark is replaced.
            let value = u64::from(mark.get()) << 32 | u64::from(u32::MAX);
            data.bytes_network(IPSET_ATTR_SKBMARK, &value.to_be_bytes());
        }
    }
    data.u32_network(IPSET_ATTR_LINENO, line);
}

fn write_ip(data: &mut Writer<'_>, kind: u16, address: IpAddr) {
    data.nested(kind, |ip| match address {
        IpAddr::V4(address) => ip.bytes_network(IPSET_ATTR_IPADDR_IPV4, &address.octets()),
        IpAddr::V6(address) => ip.bytes_network(IPSET_ATTR_IPADDR_IPV6, &address.octets()),
    });
}

fn write_port(data: &mut Writer<'_>, protocol: Protocol, port: u16) {
    data.u16_network(IPSET_ATTR_PORT, port);
    data.u8(IPSET_ATTR_PROTO, protocol.number());
}

/// Reads one member, from the attributes inside its `IPSET_ATTR_DATA`. Its layout follows from what it has: the kernel repeats a set's
/// type in the first message of a dump only.
///
/// What a set's extensions add, such as a comment or counters, is not looked at.
///
/// # Errors
/// When it is malformed. A member the model has no words for, such as a prefix or an ICMP type, is no error.
pub fn parse_member(data: &[u8]) -> Result<Decoded<Member>, Malformed> {
    let parts = match Parts::read(data)? {
        Decoded::Known(parts) => parts,
        Decoded::Foreign(foreign) => return Ok(Decoded::Foreign(foreign)),
    };
    let (Some(ip), ip2) = (parts.ip, parts.ip2) else { return Ok(Decoded::foreign("a set member without an address")) };
    let port = match (parts.protocol, parts.port) {
        (None, None) => None,
        (protocol, port) => {
            let (protocol, port) = (required(protocol, OWNER, "a protocol")?, required(port, OWNER, "a port")?);
            let Some(protocol) = Protocol::from_number(protocol.into()) else {
                return Ok(Decoded::foreign(format!("the set member {ip} of protocol {protocol}")));
            };
            Some((protocol, port))
        }
    };
    if let Some(prefix) = parts.prefix2 {
        return Ok(match (port, ip2.and_then(|ip2| IpNetwork::new(ip2, prefix).ok())) {
            (Some((protocol, port)), Some(net)) => Decoded::Known(Member::IpPortNet(ip, protocol, port, net)),
            _ => Decoded::foreign("a set member that is a network"),
        });
    }
    if let Some((mark, mask)) = parts.mark {
        return Ok(match (port, ip2, NonZeroU32::new(mark)) {
            (Some((protocol, port)), None, Some(mark)) if mask == u32::MAX => {
                Decoded::Known(Member::IpPortMark(ip, protocol, port, mark))
            }
            _ => Decoded::foreign("a set member with a mark that is not ours"),
        });
    }
    Ok(match (port, ip2) {
        (None, None) => Decoded::Known(Member::Ip(ip)),
        (Some((protocol, port)), None) => Decoded::Known(Member::IpPort(ip, protocol, port)),
        (Some((protocol, port)), Some(ip2)) => Decoded::Known(Member::IpPortIp(ip, protocol, port, ip2)),
        (None, Some(ip2)) => Decoded::foreign(format!("the set member {ip},{ip2}")),
    })
}

/// Reads a member of a set of ports (`bitmap:port`), as [`parse_member`] does those of other sets.
///
/// # Errors
/// When it is malformed or has no port.
pub(super) fn parse_port(data: &[u8]) -> Result<u16, Malformed> {
    let port = match Parts::read(data)? {
        Decoded::Known(parts) => parts.port,
        Decoded::Foreign(_) => None,
    };
    required(port, OWNER, "a port")
}

/// The attributes of a member that mean something here.
#[derive(Default)]
struct Parts {
    ip: Option<IpAddr>,
    ip2: Option<IpAddr>,
    protocol: Option<u8>,
    port: Option<u16>,
    /// The prefix length of `ip2`, which only layouts with a network give.
    prefix2: Option<u8>,
    /// The mark and its mask.
    mark: Option<(u32, u32)>,
}

impl Parts {
    fn read(data: &[u8]) -> Result<Decoded<Self>, Malformed> {
        let mut parts = Self::default();
        let mut prefix = None;
        for attribute in Attributes::new(data, OWNER) {
            let attribute = attribute?;
            match attribute.kind {
                IPSET_ATTR_IP => parts.ip = Some(read_ip(&attribute)?),
                IPSET_ATTR_IP2 => parts.ip2 = Some(read_ip(&attribute)?),
                IPSET_ATTR_CIDR => prefix = Some(attribute.u8()?),
                IPSET_ATTR_CIDR2 => parts.prefix2 = Some(attribute.u8()?),
                IPSET_ATTR_SKBMARK => {
                    let [m0, m1, m2, m3, k0, k1, k2, k3] = attribute.array()?;
                    parts.mark = Some((u32::from_be_bytes([m0, m1, m2, m3]), u32::from_be_bytes([k0, k1, k2, k3])));
                }
                // `nomatch`, which turns a network's meaning around.
                IPSET_ATTR_CADT_FLAGS if attribute.u32_network()? != 0 => {
                    return Ok(Decoded::foreign("a set member with flags"));
                }
                IPSET_ATTR_PORT => parts.port = Some(attribute.u16_network()?),
                IPSET_ATTR_PROTO => parts.protocol = Some(attribute.u8()?),
                IPSET_ATTR_IP_TO | IPSET_ATTR_IP2_TO | IPSET_ATTR_PORT_TO => {
                    return Ok(Decoded::foreign("a set member that is a range"));
                }
                IPSET_ATTR_MARK | IPSET_ATTR_ETHER | IPSET_ATTR_NAME | IPSET_ATTR_NAMEREF | IPSET_ATTR_IFACE => {
                    return Ok(Decoded::foreign("a set member with more than addresses and a port"));
                }
                _ => {}
            }
        }
        if prefix.is_some() && prefix != parts.ip.map(|ip| Family::of(ip).bits()) {
            return Ok(Decoded::foreign("a set member that is a network"));
        }
        Ok(Decoded::Known(parts))
    }
}

fn read_ip(attribute: &Attribute<'_>) -> Result<IpAddr, Malformed> {
    let mut address = None;
    for attribute in attribute.nested("the address of a set member") {
        let attribute = attribute?;
        match attribute.kind {
            IPSET_ATTR_IPADDR_IPV4 => address = Some(read_address(&attribute, Family::V4)?),
            IPSET_ATTR_IPADDR_IPV6 => address = Some(read_address(&attribute, Family::V6)?),
            _ => {}
        }
    }
    required(address, OWNER, "the bytes of its address")
}
