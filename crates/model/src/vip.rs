//! How a service address becomes local to the node.

use std::fmt;
use std::net::IpAddr;

use crate::Family;

/// The dummy device that VIPs are bound to. kube-proxy's name for it, kept because Calico looks for it.
pub const DEVICE: &str = "kube-ipvs0";

/// A service address (VIP) bound to the node, and by which means. IPVS takes packets only on their way into the local host, so
/// every address of a virtual server that the node does not already own must be made local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The service address.
    pub address: IpAddr,
    /// How it is made local.
    pub via: Via,
}

impl Vip {
    /// `address`, bound by `via`.
    #[must_use]
    pub const fn new(address: IpAddr, via: Via) -> Self {
        Self { address, via }
    }

    /// The address family.
    #[must_use]
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = if self.via == Via::Address { "an" } else { "a" };
        write!(f, "{}/{} as {article} {} on {DEVICE}", self.address, self.family().bits(), self.via)
    }
}

/// The means by which a VIP is made local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// A host route of type `local` in table `local`: no interface address, so nothing on the node takes it for its own.
    Route,
    /// An address on the device, as kube-proxy does.
    Address,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Route => "route",
            Self::Address => "address",
        })
    }
}
