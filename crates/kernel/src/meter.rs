//! What the kernel counts, for whoever only wants to know that.

use model::{TrafficCounters, VirtualServerKey};

use crate::Error;
use crate::ipvs::{Ipvs, RealServerTraffic};
use crate::preflight::Capability;

/// Reads IPVS's counters through sockets of its own, beside a [`Kernel`](crate::Kernel) that may be busy with changes.
pub struct Meter(Ipvs);

impl Meter {
    /// Opens them.
    ///
    /// # Errors
    /// When the process lacks `CAP_NET_ADMIN`, or the kernel has no IPVS.
    pub fn open() -> Result<Self, Error> {
        Capability::NetAdmin.check()?;
        Ipvs::open().map(Self)
    }

    /// What each virtual server has seen, whoever made it, in the kernel's order. It costs one dump.
    ///
    /// # Errors
    /// When the counters cannot be read in full.
    pub fn virtual_servers(&mut self) -> Result<Vec<(VirtualServerKey, TrafficCounters)>, Error> {
        self.0.traffic()
    }

    /// What each real server of the virtual server `key` has and has seen, in the kernel's order; nothing where there is no such virtual server.
    ///
    /// # Errors
    /// When the counters cannot be read in full.
    pub fn real_servers(&mut self, key: &VirtualServerKey) -> Result<Vec<RealServerTraffic>, Error> {
        self.0.real_server_traffic(key)
    }
}
