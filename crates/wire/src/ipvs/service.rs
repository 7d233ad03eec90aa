//! Services: the kernel's word for virtual servers.

use std::net::IpAddr;
use std::num::NonZeroU32;

use model::{Family, Flags, Protocol, Scheduler, VirtualServerConfig, VirtualServerKey};

use super::{
    IPVS_CMD_ATTR_SERVICE, IPVS_CMD_DEL_SERVICE, IPVS_CMD_GET_SERVICE, IPVS_CMD_NEW_SERVICE, IPVS_CMD_SET_SERVICE, Ipvs,
    Statistics, object,
};
use crate::address::{family_from_number, family_number, read_address};
use crate::flags::NLM_F_DUMP;
use crate::reader::{Attribute, required};
use crate::writer::Writer;
use crate::{Batch, Decoded, Malformed};

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_SVC_ATTR_STATS: u16 = 10;
const IPVS_SVC_ATTR_STATS64: u16 = 12;

/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x1;

const OWNER: &str = "an IPVS service";

/// A service as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service<'a> {
    /// What makes it itself.
    pub key: VirtualServerKey,
    /// Its settings.
    pub config: VirtualServerConfig,
    /// What it has seen.
    pub statistics: Statistics<'a>,
}

impl Ipvs {
    /// Makes a service: `EEXIST` when there is one, `ENOENT` when the kernel has no such scheduler.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn new_service(
        self,
        batch: &mut Batch,
        seq: u32,
        key: &VirtualServerKey,
        config: &VirtualServerConfig,
    ) -> Result<(), Malformed> {
        self.write_service(batch, IPVS_CMD_NEW_SERVICE, seq, key, config)
    }

    /// Gives a service these settings, in place.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn set_service(
        self,
        batch: &mut Batch,
        seq: u32,
        key: &VirtualServerKey,
        config: &VirtualServerConfig,
    ) -> Result<(), Malformed> {
        self.write_service(batch, IPVS_CMD_SET_SERVICE, seq, key, config)
    }

    /// Removes a service and its dests.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn del_service(self, batch: &mut Batch, seq: u32, key: &VirtualServerKey) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_DEL_SERVICE, 0, seq, |message| {
            message.nested(IPVS_CMD_ATTR_SERVICE, |service| write_key(service, key));
        })
    }

    /// Asks for one service: `ESRCH` when there is none.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_service(self, batch: &mut Batch, seq: u32, key: &VirtualServerKey) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_GET_SERVICE, 0, seq, |message| {
            message.nested(IPVS_CMD_ATTR_SERVICE, |service| write_key(service, key));
        })
    }

    /// Asks for all services.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_services(self, batch: &mut Batch, seq: u32) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_GET_SERVICE, NLM_F_DUMP, seq, |_| ())
    }

    fn write_service(
        self,
        batch: &mut Batch,
        command: u8,
        seq: u32,
        key: &VirtualServerKey,
        config: &VirtualServerConfig,
    ) -> Result<(), Malformed> {
        self.request(batch, command, 0, seq, |message| {
            message.nested(IPVS_CMD_ATTR_SERVICE, |service| {
                write_key(service, key);
                write_config(service, config, key.family());
            });
        })
    }
}

/// Appends what tells services apart.
pub(super) fn write_key(service: &mut Writer<'_>, key: &VirtualServerKey) {
    service.u16(IPVS_SVC_ATTR_AF, u16::from(family_number(key.family())));
    match *key {
        VirtualServerKey::Address { address, port, protocol } => {
            service.u16(IPVS_SVC_ATTR_PROTOCOL, u16::from(protocol.number()));
            service.bytes(IPVS_SVC_ATTR_ADDR, &union_address(address));
            // Network byte order, but without the flag that would say so.
            service.bytes(IPVS_SVC_ATTR_PORT, &port.to_be_bytes());
        }
        VirtualServerKey::Mark { mark, .. } => service.u32(IPVS_SVC_ATTR_FWMARK, mark.get()),
    }
}

/// Appends the settings, all of which the kernel insists on when it makes or changes a service.
fn write_config(service: &mut Writer<'_>, config: &VirtualServerConfig, family: Family) {
    let persistent = if config.persistence.is_some() { PERSISTENT } else { 0 };
    let mut flags = [0; 8];
    let (value, mask) = flags.split_at_mut(4);
    value.copy_from_slice(&(config.flags.bits() | persistent).to_ne_bytes());
    // Every flag is ours to say. The kernel keeps its own bookkeeping bit whatever the mask is.
    mask.copy_from_slice(&u32::MAX.to_ne_bytes());
    service.text(IPVS_SVC_ATTR_SCHED_NAME, config.scheduler.as_str());
    service.bytes(IPVS_SVC_ATTR_FLAGS, &flags);
    service.u32(IPVS_SVC_ATTR_TIMEOUT, config.persistence.map_or(0, NonZeroU32::get));
    service.bytes(IPVS_SVC_ATTR_NETMASK, &netmask(config.granularity, family));
}

/// The kernel has one field for both: a mask in network byte order for IPv4, a prefix length in the host's for IPv6.
fn netmask(granularity: u8, family: Family) -> [u8; 4] {
    let bits = u32::from(granularity.min(family.bits()));
    match family {
        Family::V4 => u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be_bytes(),
        Family::V6 => bits.to_ne_bytes(),
    }
}

/// A mask with holes, which only other tools make, counts up to its first hole.
fn granularity(netmask: [u8; 4], family: Family) -> Option<u8> {
    let bits = match family {
        Family::V4 => u32::from_be_bytes(netmask).leading_ones(),
        Family::V6 => u32::from_ne_bytes(netmask),
    };
    u8::try_from(bits).ok().filter(|bits| *bits <= family.bits())
}

/// `union nf_inet_addr`: 16 bytes, of which an IPv4 address takes the first four.
pub(super) fn union_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Reads one service of a dump, or the answer to [`Ipvs::get_service`].
///
/// A timeout without the persistence flag means nothing and is not looked at, and the flag without a timeout is no persistence.
///
/// # Errors
/// When it is malformed or has no key. A service the model has no words for is no error.
pub fn parse_service(payload: &[u8]) -> Result<Decoded<Service<'_>>, Malformed> {
    let parts = Parts::read(payload)?;
    let family = required(parts.family, OWNER, "an address family")?;
    let Some(family) = family_from_number(family) else {
        return Ok(Decoded::foreign(format!("an IPVS service of address family {family}")));
    };
    let key = if let Some(mark) = parts.mark {
        let mark = required(NonZeroU32::new(mark), OWNER, "a firewall mark other than 0")?;
        VirtualServerKey::Mark { family, mark }
    } else {
        let protocol = required(parts.protocol, OWNER, "a protocol")?;
        let address = read_address(&required(parts.address, OWNER, "an address")?, family)?;
        let port = required(parts.port, OWNER, "a port")?;
        let Some(protocol) = Protocol::from_number(protocol) else {
            return Ok(Decoded::foreign(format!("the IPVS service {address} port {port} of protocol {protocol}")));
        };
        VirtualServerKey::Address { address, port, protocol }
    };
    let scheduler = required(parts.scheduler, OWNER, "a scheduler")?;
    let Ok(scheduler) = Scheduler::new(scheduler) else {
        return Ok(Decoded::foreign(format!("the IPVS service {key} with the scheduler {scheduler:?}")));
    };
    let netmask = required(parts.netmask, OWNER, "a netmask")?;
    let Some(granularity) = granularity(netmask, family) else {
        return Ok(Decoded::foreign(format!("the IPVS service {key} with the netmask {netmask:?}")));
    };
    let flags = required(parts.flags, OWNER, "flags")?;
    let timeout = required(parts.timeout, OWNER, "a timeout")?;
    let config = VirtualServerConfig {
        scheduler,
        flags: Flags::from_bits_truncate(flags),
        persistence: NonZeroU32::new(timeout).filter(|_| flags & PERSISTENT != 0),
        granularity,
    };
    Ok(Decoded::Known(Service { key, config, statistics: Statistics(parts.stats64.or(parts.stats)) }))
}

/// The attributes of a service that mean something here.
#[derive(Default)]
struct Parts<'a> {
    family: Option<u16>,
    protocol: Option<u16>,
    address: Option<Attribute<'a>>,
    port: Option<u16>,
    mark: Option<u32>,
    scheduler: Option<&'a str>,
    flags: Option<u32>,
    timeout: Option<u32>,
    netmask: Option<[u8; 4]>,
    stats: Option<Attribute<'a>>,
    stats64: Option<Attribute<'a>>,
}

impl<'a> Parts<'a> {
    fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut parts = Self::default();
        for attribute in object(payload, IPVS_CMD_ATTR_SERVICE, OWNER)? {
            let attribute = attribute?;
            match attribute.kind {
                IPVS_SVC_ATTR_AF => parts.family = Some(attribute.u16()?),
                IPVS_SVC_ATTR_PROTOCOL => parts.protocol = Some(attribute.u16()?),
                IPVS_SVC_ATTR_ADDR => parts.address = Some(attribute),
                IPVS_SVC_ATTR_PORT => parts.port = Some(attribute.u16_network()?),
                IPVS_SVC_ATTR_FWMARK => parts.mark = Some(attribute.u32()?),
                IPVS_SVC_ATTR_SCHED_NAME => parts.scheduler = Some(attribute.text()?),
                IPVS_SVC_ATTR_FLAGS => parts.flags = Some(u32::from_ne_bytes(attribute.prefix()?)),
                IPVS_SVC_ATTR_TIMEOUT => parts.timeout = Some(attribute.u32()?),
                IPVS_SVC_ATTR_NETMASK => parts.netmask = Some(attribute.array()?),
                IPVS_SVC_ATTR_STATS => parts.stats = Some(attribute),
                IPVS_SVC_ATTR_STATS64 => parts.stats64 = Some(attribute),
                _ => {}
            }
        }
        Ok(parts)
    }
}
