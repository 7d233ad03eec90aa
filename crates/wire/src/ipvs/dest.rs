//! Dests: the kernel's word for real servers.

use model::{Family, ForwardingMethod, RealServer, RealServerCounters, RealServerKey, VirtualServerKey};

use super::service::{union_address, write_key};
use super::{
    IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_SERVICE, IPVS_CMD_DEL_DEST, IPVS_CMD_GET_DEST, IPVS_CMD_NEW_DEST, IPVS_CMD_SET_DEST, Ipvs,
    Statistics, object,
};
use crate::address::{family_from_number, family_number, read_address};
use crate::flags::NLM_F_DUMP;
use crate::reader::{Attribute, required};
use crate::writer::Writer;
use crate::{Batch, Decoded, Malformed};

const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
const IPVS_DEST_ATTR_PERSIST_CONNS: u16 = 9;
const IPVS_DEST_ATTR_STATS: u16 = 10;
const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;
const IPVS_DEST_ATTR_STATS64: u16 = 12;

const OWNER: &str = "an IPVS dest";

/// A dest as the kernel lists it. Which service it is of, only the request knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dest<'a> {
    /// What makes it itself.
    pub key: RealServerKey,
    /// Its settings.
    pub server: RealServer,
    /// Its connections.
    pub connections: RealServerCounters,
    /// What it has seen.
    pub statistics: Statistics<'a>,
}

impl Ipvs {
    /// Makes a dest of `service`: `ESRCH` when there is no such service, `EEXIST` when there is such a dest.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn new_dest(
        self,
        batch: &mut Batch,
        seq: u32,
        service: &VirtualServerKey,
        key: &RealServerKey,
        server: &RealServer,
    ) -> Result<(), Malformed> {
        self.write_dest(batch, IPVS_CMD_NEW_DEST, seq, service, key, Some(server))
    }

    /// Gives a dest these settings, in place: `ENOENT` when there is no such dest.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn set_dest(
        self,
        batch: &mut Batch,
        seq: u32,
        service: &VirtualServerKey,
        key: &RealServerKey,
        server: &RealServer,
    ) -> Result<(), Malformed> {
        self.write_dest(batch, IPVS_CMD_SET_DEST, seq, service, key, Some(server))
    }

    /// Removes a dest.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn del_dest(self, batch: &mut Batch, seq: u32, service: &VirtualServerKey, key: &RealServerKey) -> Result<(), Malformed> {
        self.write_dest(batch, IPVS_CMD_DEL_DEST, seq, service, key, None)
    }

    /// Asks for all dests of a service. There are none when there is no such service.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_dests(self, batch: &mut Batch, seq: u32, service: &VirtualServerKey) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_GET_DEST, NLM_F_DUMP, seq, |message| {
            message.nested(IPVS_CMD_ATTR_SERVICE, |attributes| write_key(attributes, service));
        })
    }

    fn write_dest(
        self,
        batch: &mut Batch,
        command: u8,
        seq: u32,
        service: &VirtualServerKey,
        key: &RealServerKey,
        server: Option<&RealServer>,
    ) -> Result<(), Malformed> {
        self.request(batch, command, 0, seq, |message| {
            message.nested(IPVS_CMD_ATTR_SERVICE, |attributes| write_key(attributes, service));
            message.nested(IPVS_CMD_ATTR_DEST, |attributes| {
                write_dest_key(attributes, key);
                if let Some(server) = server {
                    write_server(attributes, server);
                }
            });
        })
    }
}

/// Appends what tells dests of a service apart. A tunnel may lead to another family than the service's, so the family is said.
fn write_dest_key(dest: &mut Writer<'_>, key: &RealServerKey) {
    dest.u16(IPVS_DEST_ATTR_ADDR_FAMILY, u16::from(family_number(Family::of(key.address))));
    dest.bytes(IPVS_DEST_ATTR_ADDR, &union_address(key.address));
    // Network byte order, but without the flag that would say so.
    dest.bytes(IPVS_DEST_ATTR_PORT, &key.port.to_be_bytes());
}

/// Appends the settings, all of which the kernel insists on when it makes or changes a dest.
fn write_server(dest: &mut Writer<'_>, server: &RealServer) {
    dest.u32(IPVS_DEST_ATTR_FWD_METHOD, server.forwarding.number());
    dest.u32(IPVS_DEST_ATTR_WEIGHT, server.weight);
    dest.u32(IPVS_DEST_ATTR_U_THRESH, server.upper_threshold);
    dest.u32(IPVS_DEST_ATTR_L_THRESH, server.lower_threshold);
}

/// Reads one dest of the dump that [`Ipvs::get_dests`] asked for; `service` is the family of the service, which a kernel before 3.18
/// takes for granted.
///
/// # Errors
/// When it is malformed or has no key. A dest the model has no words for is no error.
pub fn parse_dest(payload: &[u8], service: Family) -> Result<Decoded<Dest<'_>>, Malformed> {
    let parts = Parts::read(payload)?;
    let family = parts.family.unwrap_or_else(|| family_number(service).into());
    let Some(family) = family_from_number(family) else {
        return Ok(Decoded::foreign(format!("an IPVS dest of address family {family}")));
    };
    let key = RealServerKey {
        address: read_address(&required(parts.address, OWNER, "an address")?, family)?,
        port: required(parts.port, OWNER, "a port")?,
    };
    let forwarding = required(parts.forwarding, OWNER, "a forwarding method")?;
    let Some(forwarding) = ForwardingMethod::from_number(forwarding) else {
        return Ok(Decoded::foreign(format!("the IPVS dest {key} of forwarding method {forwarding}")));
    };
    let server = RealServer {
        forwarding,
        weight: required(parts.weight, OWNER, "a weight")?,
        upper_threshold: parts.upper_threshold,
        lower_threshold: parts.lower_threshold,
    };
    let statistics = Statistics(parts.stats64.or(parts.stats));
    Ok(Decoded::Known(Dest { key, server, connections: parts.connections, statistics }))
}

/// The attributes of a dest that mean something here.
#[derive(Default)]
struct Parts<'a> {
    family: Option<u16>,
    address: Option<Attribute<'a>>,
    port: Option<u16>,
    forwarding: Option<u32>,
    weight: Option<u32>,
    upper_threshold: u32,
    lower_threshold: u32,
    connections: RealServerCounters,
    stats: Option<Attribute<'a>>,
    stats64: Option<Attribute<'a>>,
}

impl<'a> Parts<'a> {
    fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut parts = Self::default();
        for attribute in object(payload, IPVS_CMD_ATTR_DEST, OWNER)? {
            let attribute = attribute?;
            match attribute.kind {
                IPVS_DEST_ATTR_ADDR_FAMILY => parts.family = Some(attribute.u16()?),
                IPVS_DEST_ATTR_ADDR => parts.address = Some(attribute),
                IPVS_DEST_ATTR_PORT => parts.port = Some(attribute.u16_network()?),
                IPVS_DEST_ATTR_FWD_METHOD => parts.forwarding = Some(attribute.u32()?),
                IPVS_DEST_ATTR_WEIGHT => parts.weight = Some(attribute.u32()?),
                IPVS_DEST_ATTR_U_THRESH => parts.upper_threshold = attribute.u32()?,
                IPVS_DEST_ATTR_L_THRESH => parts.lower_threshold = attribute.u32()?,
                IPVS_DEST_ATTR_ACTIVE_CONNS => parts.connections.active = attribute.u32()?,
                IPVS_DEST_ATTR_INACT_CONNS => parts.connections.inactive = attribute.u32()?,
                IPVS_DEST_ATTR_PERSIST_CONNS => parts.connections.persistent = attribute.u32()?,
                IPVS_DEST_ATTR_STATS => parts.stats = Some(attribute),
                IPVS_DEST_ATTR_STATS64 => parts.stats64 = Some(attribute),
                _ => {}
            }
        }
        Ok(parts)
    }
}
