//! Flows through the node, as connection tracking knows them.

use std::net::SocketAddr;

use crate::Protocol;

/// A flow that connection tracking follows. Between its two directions is what the kernel rewrites.
///
/// A packet from a client to a virtual server that masquerades becomes one to a real server: there `original` leads to the virtual
/// server, and `reply` comes from the real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// As the one who began it has it.
    pub original: Direction,
    /// As the one who answers has it. The reverse of `original` where nothing is rewritten.
    pub reply: Direction,
    /// The zone it belongs to. Zones other than 0 are those of other datapaths on the node, with a view of their own.
    pub zone: u16,
}

/// The packets of a flow that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Where they come from.
    pub source: SocketAddr,
    /// Where they go to.
    pub destination: SocketAddr,
}
