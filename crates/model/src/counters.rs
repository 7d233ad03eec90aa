//! What the kernel counts. Never part of a [`State`](crate::State), so that no diff can see it.

/// Connections of one real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealServerCounters {
    /// Connections in an established state (ipvsadm's `ActiveConn`).
    pub active: u32,
    /// Connections in any other state, such as TIME_WAIT, and all of UDP (ipvsadm's `InActConn`).
    pub inactive: u32,
    /// Persistence templates that point here (ipvsadm's `PersistConn`).
    pub persistent: u32,
}

/// Traffic since the virtual or real server was made or its counters were zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounters {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients; only masquerading sees them.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients; only masquerading sees them.
    pub bytes_out: u64,
}

impl TrafficCounters {
    /// What was counted since `earlier`; `None` where the counters began anew in between.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<Self> {
        Some(Self {
            connections: self.connections.checked_sub(earlier.connections)?,
            packets_in: self.packets_in.checked_sub(earlier.packets_in)?,
            packets_out: self.packets_out.checked_sub(earlier.packets_out)?,
            bytes_in: self.bytes_in.checked_sub(earlier.bytes_in)?,
            bytes_out: self.bytes_out.checked_sub(earlier.bytes_out)?,
        })
    }
}

/// Traffic per second, as the kernel estimates it: a mean over the last 8 seconds or so, in which later ones count more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficRates {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients; only masquerading sees them.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients; only masquerading sees them.
    pub bytes_out: u64,
}
