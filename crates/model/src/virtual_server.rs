//! Virtual servers and their real servers: the configuration half of IPVS.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use crate::{Family, Protocol, RealServers, Scheduler};

/// What makes a virtual server itself. IPVS holds at most one virtual server per key in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtualServerKey {
    /// A virtual server by address, protocol and port.
    Address {
        /// The address clients connect to.
        address: IpAddr,
        /// The port clients connect to, host byte order. 0 is a catch-all that only other tools use.
        port: u16,
        /// The transport protocol.
        protocol: Protocol,
    },
    /// A virtual server for packets that carry a firewall mark (`ipvsadm -f`).
    Mark {
        /// The family of the packets; one mark may serve both, as two virtual servers.
        family: Family,
        /// The whole 32-bit mark; 0 is how the kernel says "not by mark".
        mark: NonZeroU32,
    },
}

impl VirtualServerKey {
    /// The key of a virtual server by address.
    #[must_use]
    pub const fn address(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        Self::Address { address, port, protocol }
    }

    /// The family of the packets this virtual server takes.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(address),
            Self::Mark { family, .. } => family,
        }
    }
}

impl fmt::Display for VirtualServerKey {
    /// As ipvsadm lists it: `TCP 10.96.0.1:443`, `FWM 7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, port, protocol } => write!(f, "{protocol} {}", SocketAddr::new(*address, *port)),
            Self::Mark { family: Family::V4, mark } => write!(f, "FWM {mark}"),
            Self::Mark { family: Family::V6, mark } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// A virtual server as it is configured: how it schedules, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// What is set with the virtual server itself and can be edited in place.
    pub config: VirtualServerConfig,
    /// The real servers connections are spread over.
    pub real_servers: RealServers,
}

impl VirtualServer {
    /// A virtual server without real servers, flags or persistence.
    #[must_use]
    pub const fn new(scheduler: Scheduler, family: Family) -> Self {
        Self { config: VirtualServerConfig::new(scheduler, family), real_servers: RealServers::new() }
    }
}

/// The settings of a virtual server, all of which the kernel changes in place, without touching a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServerConfig {
    /// Who gets the next connection.
    pub scheduler: Scheduler,
    /// Flags beyond persistence.
    pub flags: Flags,
    /// Seconds for which a client stays with its real server (session affinity); `None` for no persistence.
    pub persistence: Option<NonZeroU32>,
    /// How many leading bits of a client's address persistence looks at; the family's full length tells every client apart.
    pub granularity: u8,
}

impl VirtualServerConfig {
    /// Plain scheduling: no flags, no persistence.
    #[must_use]
    pub const fn new(scheduler: Scheduler, family: Family) -> Self {
        Self { scheduler, flags: Flags::NONE, persistence: None, granularity: family.bits() }
    }
}

/// Flags of a virtual server that are configuration (include/uapi/linux/ip_vs.h). The kernel's own bookkeeping bit
/// `IP_VS_SVC_F_HASHED` is not among them, and `IP_VS_SVC_F_PERSISTENT` is [`VirtualServerConfig::persistence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(u32);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// `IP_VS_SVC_F_ONEPACKET`: every UDP datagram is scheduled by itself, and for none of them does the kernel keep a connection. So
    /// there is nothing by which an answer could be translated back: it comes from the real server's own address, and where the
    /// caller is masqueraded it comes nowhere ("Never alter conntrack for OPS conns (no reply is expected)",
    /// net/netfilter/ipvs/ip_vs_nfct.c). It is for datagrams that have no answer.
    pub const ONE_PACKET: Self = Self(0x4);
    /// `IP_VS_SVC_F_SCHED1`: fallback to another server, for the schedulers `sh` and `mh`.
    pub const SCHED_1: Self = Self(0x8);
    /// `IP_VS_SVC_F_SCHED2`: hash the port as well, for the schedulers `sh` and `mh`.
    pub const SCHED_2: Self = Self(0x10);
    /// `IP_VS_SVC_F_SCHED3`: no scheduler in the kernel gives it a meaning yet.
    pub const SCHED_3: Self = Self(0x20);
    const ALL: u32 = 0x4 | 0x8 | 0x10 | 0x20;

    /// The configuration among the kernel's flag bits.
    #[must_use]
    pub const fn from_bits_truncate(bits: u32) -> Self {
        Self(bits & Self::ALL)
    }

    /// The bits, as the kernel numbers them.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Both sets of flags together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What makes a real server itself within its virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerKey {
    /// The address connections are sent to.
    pub address: IpAddr,
    /// The port connections are sent to, host byte order.
    pub port: u16,
}

impl RealServerKey {
    /// The real server at `address`:`port`.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }
}

impl fmt::Display for RealServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// The settings of a real server, all of which the kernel changes in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// How packets get there.
    pub forwarding: ForwardingMethod,
    /// Its share of new connections relative to its siblings. 0 takes no new connections and keeps the established ones: drain.
    pub weight: u32,
    /// No new connections above this many; 0 for no limit.
    pub upper_threshold: u32,
    /// New connections again below this many; 0 lets the kernel take three quarters of the upper one.
    pub lower_threshold: u32,
}

impl RealServer {
    /// Masquerade, weight 1, no thresholds: what a Service's real server is unless something says otherwise.
    pub const DEFAULT: Self = Self { forwarding: ForwardingMethod::Masquerade, weight: 1, upper_threshold: 0, lower_threshold: 0 };
}

impl Default for RealServer {
    /// [`Self::DEFAULT`].
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How IPVS forwards a packet to a real server (`IP_VS_CONN_F_FWD_MASK`, include/uapi/linux/ip_vs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForwardingMethod {
    /// Rewrite the destination (and, on the way back, the source): ipvsadm's `-m`, shown as `Masq`.
    Masquerade,
    /// Leave the packet to the local host: shown as `Local`.
    Local,
    /// Wrap it: ipvsadm's `-i`, shown as `Tunnel`.
    Tunnel,
    /// Send it unchanged to the real server's link-layer address: ipvsadm's `-g`, shown as `Route`.
    DirectRouting,
    /// Let it pass to its original destination; only the kernel's cache-cluster feature makes these.
    Bypass,
}

impl ForwardingMethod {
    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel => 2,
            Self::DirectRouting => 3,
            Self::Bypass => 4,
        }
    }

    /// The method behind a kernel number; bits outside `IP_VS_CONN_F_FWD_MASK` (0x7) are connection flags and not looked at.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number & 0x7 {
            0 => Some(Self::Masquerade),
            1 => Some(Self::Local),
            2 => Some(Self::Tunnel),
            3 => Some(Self::DirectRouting),
            4 => Some(Self::Bypass),
            _ => None,
        }
    }
}

impl fmt::Display for ForwardingMethod {
    /// The word in ipvsadm's `Forward` column.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Masquerade => "Masq",
            Self::Local => "Local",
            Self::Tunnel => "Tunnel",
            Self::DirectRouting => "Route",
            Self::Bypass => "Bypass",
        })
    }
}
