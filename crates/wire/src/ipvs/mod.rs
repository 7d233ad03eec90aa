//! IPVS over generic netlink (include/uapi/linux/ip_vs.h): services, their dests, and the settings of the network namespace.
//!
//! Addresses and ports are in network byte order, everything else in the host's. The kernel answers an unknown service with `ESRCH`
//! whatever the command was, an unknown dest or scheduler with `ENOENT`, and what is there already with `EEXIST`. A dump of the dests
//! of a service that does not exist is empty and no error.

mod dest;
mod service;

pub use dest::{Dest, parse_dest};
pub use service::{Service, parse_service};

use model::{TrafficCounters, TrafficRates};

use crate::reader::{Attribute, Attributes, required};
use crate::writer::Writer;
use crate::{Batch, Malformed, genl};

/// The name to ask [`genl::get_family`] for.
pub const FAMILY: &str = "IPVS";

/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;

const IPVS_CMD_NEW_SERVICE: u8 = 1;
const IPVS_CMD_SET_SERVICE: u8 = 2;
const IPVS_CMD_DEL_SERVICE: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_NEW_DEST: u8 = 5;
const IPVS_CMD_SET_DEST: u8 = 6;
const IPVS_CMD_DEL_DEST: u8 = 7;
const IPVS_CMD_GET_DEST: u8 = 8;
const IPVS_CMD_SET_CONFIG: u8 = 12;
const IPVS_CMD_GET_CONFIG: u8 = 13;
const IPVS_CMD_GET_INFO: u8 = 15;

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const IPVS_INFO_ATTR_VERSION: u16 = 1;
const IPVS_INFO_ATTR_CONN_TAB_SIZE: u16 = 2;

const IPVS_STATS_ATTR_CONNS: u16 = 1;
const IPVS_STATS_ATTR_INPKTS: u16 = 2;
const IPVS_STATS_ATTR_OUTPKTS: u16 = 3;
const IPVS_STATS_ATTR_INBYTES: u16 = 4;
const IPVS_STATS_ATTR_OUTBYTES: u16 = 5;
const IPVS_STATS_ATTR_CPS: u16 = 6;
const IPVS_STATS_ATTR_INPPS: u16 = 7;
const IPVS_STATS_ATTR_OUTPPS: u16 = 8;
const IPVS_STATS_ATTR_INBPS: u16 = 9;
const IPVS_STATS_ATTR_OUTBPS: u16 = 10;

/// Writes requests to the IPVS family under the number this kernel gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipvs {
    family: u16,
}

impl Ipvs {
    /// For the family with this number, from [`genl::parse_family`]. It differs from kernel to kernel.
    #[must_use]
    pub const fn new(family: u16) -> Self {
        Self { family }
    }

    /// Whether a message with this `kind` is one of the family's.
    #[must_use]
    pub const fn is(self, kind: u16) -> bool {
        self.family == kind
    }

    /// Asks for version and connection table size.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_info(self, batch: &mut Batch, seq: u32) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_GET_INFO, 0, seq, |_| ())
    }

    /// Asks for the timeouts of the network namespace.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn get_timeouts(self, batch: &mut Batch, seq: u32) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_GET_CONFIG, 0, seq, |_| ())
    }

    /// Sets the timeouts of the network namespace. One of 0 seconds is left as it is.
    ///
    /// # Errors
    /// When the message cannot be said in netlink.
    pub fn set_timeouts(self, batch: &mut Batch, seq: u32, timeouts: Timeouts) -> Result<(), Malformed> {
        self.request(batch, IPVS_CMD_SET_CONFIG, 0, seq, |message| {
            message.u32(IPVS_CMD_ATTR_TIMEOUT_TCP, timeouts.tcp);
            message.u32(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin);
            message.u32(IPVS_CMD_ATTR_TIMEOUT_UDP, timeouts.udp);
        })
    }

    fn request(
        self,
        batch: &mut Batch,
        command: u8,
        flags: u16,
        seq: u32,
        attributes: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), Malformed> {
        batch.message(self.family, crate::flags::NLM_F_REQUEST | flags, seq, |message| {
            genl::write_header(message, command, VERSION);
            attributes(message);
        })
    }
}

/// What the kernel's IPVS is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Major, minor and patch version.
    pub version: (u8, u8, u8),
    /// Buckets of the connection hash table; fixed when the module was loaded.
    pub connection_table_size: u32,
}

/// Reads the answer to [`Ipvs::get_info`].
///
/// # Errors
/// When it is malformed or incomplete.
pub fn parse_info(payload: &[u8]) -> Result<Info, Malformed> {
    const OWNER: &str = "the IPVS information";
    let (_, attributes) = genl::split(payload, OWNER)?;
    let (mut version, mut size) = (None, None);
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            IPVS_INFO_ATTR_VERSION => version = Some(attribute.u32()?),
            IPVS_INFO_ATTR_CONN_TAB_SIZE => size = Some(attribute.u32()?),
            _ => {}
        }
    }
    // IP_VS_VERSION_CODE is 0x010201 for 1.2.1.
    let [_, major, minor, patch] = required(version, OWNER, "a version")?.to_be_bytes();
    Ok(Info { version: (major, minor, patch), connection_table_size: required(size, OWNER, "a connection table size")? })
}

/// How long idle connections are kept, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// Reads the answer to [`Ipvs::get_timeouts`]. A protocol the kernel was built without has a timeout of 0.
///
/// # Errors
/// When it is malformed.
pub fn parse_timeouts(payload: &[u8]) -> Result<Timeouts, Malformed> {
    const OWNER: &str = "the IPVS configuration";
    let (_, attributes) = genl::split(payload, OWNER)?;
    let mut timeouts = Timeouts { tcp: 0, tcp_fin: 0, udp: 0 };
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        match attribute.kind {
            IPVS_CMD_ATTR_TIMEOUT_TCP => timeouts.tcp = attribute.u32()?,
            IPVS_CMD_ATTR_TIMEOUT_TCP_FIN => timeouts.tcp_fin = attribute.u32()?,
            IPVS_CMD_ATTR_TIMEOUT_UDP => timeouts.udp = attribute.u32()?,
            _ => {}
        }
    }
    Ok(timeouts)
}

/// The attributes of the one nested attribute `kind` that a service's or dest's message consists of.
fn object<'a>(payload: &'a [u8], kind: u16, owner: &'static str) -> Result<Attributes<'a>, Malformed> {
    let (_, attributes) = genl::split(payload, owner)?;
    let mut object = None;
    for attribute in Attributes::new(attributes, owner) {
        let attribute = attribute?;
        if attribute.kind == kind {
            object = Some(attribute.nested(owner));
        }
    }
    required(object, owner, "its attributes")
}

/// What a service or dest has seen, still in the kernel's words: most readers want the settings alone, and the counters are the larger part.
///
/// STATS, whose packet counts have 32 bits, or STATS64, where all counts have 64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics<'a>(Option<Attribute<'a>>);

impl Statistics<'_> {
    /// Reads the counters; a kernel that sends none has counted nothing.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn traffic(&self) -> Result<TrafficCounters, Malformed> {
        let mut traffic = TrafficCounters::default();
        for attribute in self.0.iter().flat_map(|stats| stats.nested("IPVS statistics")) {
            let attribute = attribute?;
            match attribute.kind {
                IPVS_STATS_ATTR_CONNS => traffic.connections = attribute.counter()?,
                IPVS_STATS_ATTR_INPKTS => traffic.packets_in = attribute.counter()?,
                IPVS_STATS_ATTR_OUTPKTS => traffic.packets_out = attribute.counter()?,
                IPVS_STATS_ATTR_INBYTES => traffic.bytes_in = attribute.counter()?,
                IPVS_STATS_ATTR_OUTBYTES => traffic.bytes_out = attribute.counter()?,
                _ => {}
            }
        }
        Ok(traffic)
    }

    /// Reads the estimated rates; they are 0 where the kernel sends none, or does not estimate (`net.ipv4.vs.run_estimation`).
    ///
    /// # Errors
    /// When they are malformed.
    pub fn rates(&self) -> Result<TrafficRates, Malformed> {
        let mut rates = TrafficRates::default();
        for attribute in self.0.iter().flat_map(|stats| stats.nested("IPVS statistics")) {
            let attribute = attribute?;
            match attribute.kind {
                IPVS_STATS_ATTR_CPS => rates.connections = attribute.counter()?,
                IPVS_STATS_ATTR_INPPS => rates.packets_in = attribute.counter()?,
                IPVS_STATS_ATTR_OUTPPS => rates.packets_out = attribute.counter()?,
                IPVS_STATS_ATTR_INBPS => rates.bytes_in = attribute.counter()?,
                IPVS_STATS_ATTR_OUTBPS => rates.bytes_out = attribute.counter()?,
                _ => {}
            }
        }
        Ok(rates)
    }
}
