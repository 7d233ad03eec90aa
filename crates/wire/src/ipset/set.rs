//! Sets as a whole.

use model::{Family, Member, SetKind};

use super::member::{parse_member, parse_port};
use super::{
    IPSET_ATTR_ADT, IPSET_ATTR_DATA, IPSET_ATTR_FAMILY, IPSET_ATTR_FLAGS, IPSET_ATTR_REVISION, IPSET_ATTR_SETNAME,
    IPSET_ATTR_SETNAME2, IPSET_ATTR_TYPENAME, IPSET_CMD_CREATE, IPSET_CMD_DESTROY, IPSET_CMD_FLUSH, IPSET_CMD_LIST, IPSET_CMD_SWAP,
    Ipset, NAME_MAX, attributes,
};
use crate::address::{family_from_number, family_number};
use crate::error::check_name;
use crate::flags::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use crate::reader::{Attribute, Attributes, required};
use crate::{Batch, Decoded, Malformed};

const IPSET_ATTR_TIMEOUT: u16 = 6;
const IPSET_ATTR_CADT_FLAGS: u16 = 8;
const IPSET_ATTR_MARKMASK: u16 = 11;
const IPSET_ATTR_HASHSIZE: u16 = 18;
const IPSET_ATTR_MAXELEM: u16 = 19;
const IPSET_ATTR_NETMASK: u16 = 20;
const IPSET_ATTR_ELEMENTS: u16 = 24;
const IPSET_ATTR_REFERENCES: u16 = 25;
/// `IPSET_ATTR_BITMASK`, since Linux 6.3.
const IPSET_ATTR_BITMASK: u16 = 12;

/// `IPSET_FLAG_WITH_SKBINFO`: members carry what to set on packets.
const WITH_SKBINFO: u32 = 1 << 6;
/// `IPSET_FLAG_LIST_HEADER`: leave the members out.
const LIST_HEADER: u32 = 4;

const OWNER: &str = "a set";

/// How much of the sets to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListScope {
    /// What each set is, without its members.
    Headers,
    /// Members as well.
    Members,
}

impl Ipset {
    /// Makes an empty set: `EEXIST` when the name is taken. `revision` must be in the range that [`super::parse_type`] gave.
    ///
    /// The kernel rounds `hashsize` up to a power of two. `maxelem` is the most members the set will ever take.
    ///
    /// # Errors
    /// When `name` cannot be the name of a set.
    #[expect(clippy::too_many_arguments, reason = "each is an attribute of its own, and a struct for one call would say no more")]
    pub fn create(
        self,
        batch: &mut Batch,
        seq: u32,
        name: &str,
        kind: SetKind,
        family: Family,
        revision: u8,
        hashsize: u32,
        maxelem: u32,
    ) -> Result<(), Malformed> {
        self.named(batch, IPSET_CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, seq, name, |message| {
            message.text(IPSET_ATTR_TYPENAME, kind.name());
            message.u8(IPSET_ATTR_REVISION, revision);
            message.u8(IPSET_ATTR_FAMILY, family_number(family));
            message.nested(IPSET_ATTR_DATA, |data| {
                if kind == SetKind::HashIpPortMark {
                    data.u32_network(IPSET_ATTR_CADT_FLAGS, WITH_SKBINFO);
                }
                data.u32_network(IPSET_ATTR_HASHSIZE, hashsize);
                data.u32_network(IPSET_ATTR_MAXELEM, maxelem);
            });
        })
    }

    /// Removes a set: `ENOENT` when there is none, `-4100` while packet rules refer to it.
    ///
    /// # Errors
    /// When `name` cannot be the name of a set.
    pub fn destroy(self, batch: &mut Batch, seq: u32, name: &str) -> Result<(), Malformed> {
        // Without NLM_F_EXCL newer kernels take a set that is not there for removed, and older ones do not.
        self.named(batch, IPSET_CMD_DESTROY, NLM_F_EXCL, seq, name, |_| ())
    }

    /// Removes all members of a set.
    ///
    /// # Errors
    /// When `name` cannot be the name of a set.
    pub fn flush(self, batch: &mut Batch, seq: u32, name: &str) -> Result<(), Malformed> {
        self.named(batch, IPSET_CMD_FLUSH, 0, seq, name, |_| ())
    }

    /// Swaps the contents of two sets of the same type and family in one step. Packet rules stay with the name, whose set is then the
    /// other one.
    ///
    /// # Errors
    /// When one of the two cannot be the name of a set.
    pub fn swap(self, batch: &mut Batch, seq: u32, name: &str, with: &str) -> Result<(), Malformed> {
        check_name(OWNER, with, NAME_MAX)?;
        self.named(batch, IPSET_CMD_SWAP, 0, seq, name, |message| message.text(IPSET_ATTR_SETNAME2, with))
    }

    /// Lists one set: `ENOENT` when there is none.
    ///
    /// # Errors
    /// When `name` cannot be the name of a set.
    pub fn list(self, batch: &mut Batch, seq: u32, name: &str, scope: ListScope) -> Result<(), Malformed> {
        self.named(batch, IPSET_CMD_LIST, NLM_F_DUMP, seq, name, |message| write_scope(message, scope))
    }

    /// Lists all sets.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn list_all(self, batch: &mut Batch, seq: u32, scope: ListScope) -> Result<(), Malformed> {
        self.request(batch, IPSET_CMD_LIST, NLM_F_DUMP, seq, |message| write_scope(message, scope))
    }
}

fn write_scope(message: &mut crate::Writer<'_>, scope: ListScope) {
    if scope == ListScope::Headers {
        message.u32_network(IPSET_ATTR_FLAGS, LIST_HEADER);
    }
}

/// One message of a list. A set with many members takes several, of which the first has the header.
#[derive(Debug, Clone)]
pub struct SetPart<'a> {
    /// The name of the set.
    pub name: &'a str,
    /// What the set is.
    pub header: Option<SetHeader<'a>>,
    members: Option<Attribute<'a>>,
}

impl<'a> SetPart<'a> {
    /// The same members, if they are ports and nothing else (`bitmap:port`). Others are an error.
    pub fn ports(&self) -> impl Iterator<Item = Result<u16, Malformed>> + use<'a> {
        let entries = self.members.map_or(Attributes::new(&[], OWNER), |members| members.nested("the members of a set"));
        entries
            .filter(|entry| entry.as_ref().map_or(true, |entry| entry.kind == IPSET_ATTR_DATA))
            .map(|entry| entry.and_then(|entry| parse_port(entry.value)))
    }

    /// The members in this message. After the first malformed one there may be more, but the set is not known in full any more.
    pub fn members(&self) -> impl Iterator<Item = Result<Decoded<Member>, Malformed>> + use<'a> {
        let entries = self.members.map_or(Attributes::new(&[], OWNER), |members| members.nested("the members of a set"));
        entries
            .filter(|entry| entry.as_ref().map_or(true, |entry| entry.kind == IPSET_ATTR_DATA))
            .map(|entry| entry.and_then(|entry| parse_member(entry.value)))
    }
}

/// What a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetHeader<'a> {
    /// The type, such as `hash:ip,port`.
    pub type_name: &'a str,
    /// The address family; some types have none.
    pub family: Option<Family>,
    /// The revision of the type.
    pub revision: u8,
    /// Buckets of the hash; hash types only.
    pub hashsize: Option<u32>,
    /// The most members it takes; hash types only.
    pub maxelem: Option<u32>,
    /// How many packet rules and sets refer to it. While there are any, the set cannot be destroyed.
    pub references: u32,
    /// How many members it has; the oldest kernels do not say.
    pub elements: Option<u32>,
    /// Whether its members carry what to set on packets.
    pub has_skbinfo: bool,
    /// Whether it was made with anything else beyond its type, such as timeouts, counters or a netmask.
    pub is_extended: bool,
}

impl SetHeader<'_> {
    /// The layout of its members, if the model has words for it and the set was made with nothing beyond it.
    #[must_use]
    pub fn kind(&self) -> Option<SetKind> {
        let kinds: &[_] = if self.has_skbinfo {
            &[SetKind::HashIpPortMark]
        } else {
            &[SetKind::HashIp, SetKind::HashIpPort, SetKind::HashIpPortIp, SetKind::HashIpPortNet]
        };
        kinds.iter().copied().find(|kind| kind.name() == self.type_name).filter(|_| !self.is_extended)
    }
}

/// Reads one message of a list.
///
/// # Errors
/// When it is malformed or incomplete. Members are read by [`SetPart::members`].
pub fn parse_set(payload: &[u8]) -> Result<SetPart<'_>, Malformed> {
    let (mut name, mut type_name, mut family, mut revision, mut data, mut members) = (None, None, None, None, None, None);
    for attribute in attributes(payload, OWNER)? {
        let attribute = attribute?;
        match attribute.kind {
            IPSET_ATTR_SETNAME => name = Some(attribute.text()?),
            IPSET_ATTR_TYPENAME => type_name = Some(attribute.text()?),
            IPSET_ATTR_FAMILY => family = family_from_number(attribute.u8()?.into()),
            IPSET_ATTR_REVISION => revision = Some(attribute.u8()?),
            IPSET_ATTR_DATA => data = Some(attribute),
            IPSET_ATTR_ADT => members = Some(attribute),
            _ => {}
        }
    }
    let header = match type_name {
        None => None,
        Some(type_name) => {
            let mut header = SetHeader {
                type_name,
                family,
                revision: required(revision, OWNER, "a revision")?,
                hashsize: None,
                maxelem: None,
                references: 0,
                elements: None,
                has_skbinfo: false,
                is_extended: false,
            };
            header.read_data(&required(data, OWNER, "what it was made with")?)?;
            Some(header)
        }
    };
    Ok(SetPart { name: required(name, OWNER, "a name")?, header, members })
}

impl SetHeader<'_> {
    fn read_data(&mut self, data: &Attribute<'_>) -> Result<(), Malformed> {
        for attribute in data.nested("what a set was made with") {
            let attribute = attribute?;
            match attribute.kind {
                IPSET_ATTR_HASHSIZE => self.hashsize = Some(attribute.u32_network()?),
                IPSET_ATTR_MAXELEM => self.maxelem = Some(attribute.u32_network()?),
                IPSET_ATTR_REFERENCES => self.references = attribute.u32_network()?,
                IPSET_ATTR_ELEMENTS => self.elements = Some(attribute.u32_network()?),
                IPSET_ATTR_CADT_FLAGS => match attribute.u32_network()? {
                    0 => {}
                    WITH_SKBINFO => self.has_skbinfo = true,
                    _ => self.is_extended = true,
                },
                IPSET_ATTR_TIMEOUT | IPSET_ATTR_MARKMASK | IPSET_ATTR_NETMASK | IPSET_ATTR_BITMASK => {
                    self.is_extended = true;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
