//! What goes on at a frontend now: what the kernel counts and lists, and what a running agent knows of who is leaving.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kernel::{Connection, Connections, Kernel};
use model::{Family, Flow, Protocol, RealServerCounters, RealServerKey, VirtualServerKey};

use crate::control::client::ask;
use crate::control::{Drains, Query};

/// How many of a kind are named; of all, the number is known.
const NAMED: usize = 10;

/// What goes on at a frontend.
#[derive(Debug)]
pub(super) struct Traffic {
    /// The connections of real servers, of both virtual servers of a frontend.
    pub(super) counted: Vec<(VirtualServerKey, RealServerKey, RealServerCounters)>,
    /// What IPVS keeps for it: connections, and which client stays with which real server.
    pub(super) connections: Result<Listed<Connection>, String>,
    /// What connection tracking knows of flows to it.
    pub(super) flows: Result<Listed<Flow>, String>,
}

/// The first of many.
#[derive(Clone, Debug)]
pub(super) struct Listed<T> {
    pub(super) named: Vec<T>,
    /// How many there are, with those that are named.
    pub(super) count: usize,
}

/// For how long real servers may stay that are leaving, as a running agent says; or why none does.
pub(super) type Deadlines = Result<BTreeMap<(VirtualServerKey, RealServerKey), Duration>, String>;

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { named: Vec::new(), count: 0 }
    }
}

impl<T> Listed<T> {
    pub(super) fn push(&mut self, one: T) {
        if self.named.len() < NAMED {
            self.named.push(one);
        }
        self.count += 1;
    }

    /// How many are not named.
    pub(super) const fn rest(&self) -> usize {
        self.count.saturating_sub(self.named.len())
    }
}

impl Traffic {
    /// At the frontend `key`, of callers at `from` alone where that is given. `in_cluster` is its other virtual server.
    ///
    /// # Errors
    /// When the kernel does not say what it counts. What it does not list is told as that.
    pub(super) fn of(
        kernel: &mut Kernel,
        key: &VirtualServerKey,
        in_cluster: Option<VirtualServerKey>,
        from: Option<IpAddr>,
    ) -> Result<Self, kernel::Error> {
        let mut counted = Vec::new();
        for key in [Some(*key), in_cluster].into_iter().flatten() {
            counted.extend(kernel.connections(&key)?.into_iter().map(|(real, counters)| (key, real, counters)));
        }
        let VirtualServerKey::Address { address, port, protocol } = *key else {
            return Ok(Self { counted, connections: Ok(Listed::default()), flows: Ok(Listed::default()) });
        };
        let called = SocketAddr::new(address, port);
        let connections = Connections::open().and_then(|connections| of_frontend(connections, protocol, called, from));
        Ok(Self {
            counted,
            connections: connections.map_err(|error| error.to_string()),
            flows: flows(kernel, protocol, called, from).map_err(|error| error.to_string()),
        })
    }
}

/// Those of `connections` that are to `called`, and from `from` if that is given.
fn of_frontend(
    connections: impl Iterator<Item = Result<Connection, kernel::Error>>,
    protocol: Protocol,
    called: SocketAddr,
    from: Option<IpAddr>,
) -> Result<Listed<Connection>, kernel::Error> {
    let mut listed = Listed::default();
    for connection in connections {
        let connection = connection?;
        let is_called = connection.virtual_server == called && Protocol::from_name(&connection.protocol) == Some(protocol);
        if is_called && from.is_none_or(|from| connection.client.ip() == from) {
            listed.push(connection);
        }
    }
    Ok(listed)
}

fn flows(kernel: &mut Kernel, protocol: Protocol, called: SocketAddr, from: Option<IpAddr>) -> Result<Listed<Flow>, kernel::Error> {
    let listed = RefCell::new(Listed::default());
    let wanted = |flow: &Flow| {
        let is_called = flow.protocol == protocol && flow.original.destination == called;
        if is_called && from.is_none_or(|from| flow.original.source.ip() == from) {
            listed.borrow_mut().push(*flow);
        }
        // Of millions, those that are named are all that is kept.
        false
    };
    kernel.flows(Family::of(called.ip()), protocol, wanted)?;
    Ok(listed.into_inner())
}

/// Asks the agent behind `socket`, if it has one.
pub(super) fn deadlines(socket: &Path) -> Deadlines {
    if socket.as_os_str().is_empty() {
        return Err("no control socket is named".to_owned());
    }
    let drains: Drains =
        ask(socket, Query::Drains).map_err(|error| format!("no agent answers on {}: {error:#}", socket.display()))?;
    Ok(drains.parse().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_a_frontend_are_counted_and_the_first_are_named() {
        let mut list = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n".to_owned();
        let mut add = |protocol: &str, host: u8, called: &str, state: &str| {
            list.push_str(&format!("{protocol} 0AF401{host:02X} C350 {called} 0AF40102 1F90 {state} 60\n"));
        };
        const WEB: &str = "0A60000A 0050";
        (1..=12).for_each(|host| add("TCP", host, WEB, "ESTABLISHED"));
        add("UDP", 1, WEB, "UDP");
        add("TCP", 1, "0A60000B 0050", "ESTABLISHED");
        add("TCP", 1, "0A60000A 0051", "ESTABLISHED");
        let called = "10.96.0.10:80".parse().unwrap();
        let of = |from| of_frontend(Connections::of(list.as_bytes()), Protocol::Tcp, called, from).unwrap();
        let all = of(None);
        assert_eq!((all.count, all.named.len(), all.rest()), (12, 10, 2));
        let own = of(Some("10.244.1.12".parse().unwrap()));
        assert_eq!((own.count, own.rest()), (1, 0));
        assert_eq!(own.named[0].client.to_string(), "10.244.1.12:50000");

        list.push_str("TCP nonsense\n");
        let torn = of_frontend(Connections::of(list.as_bytes()), Protocol::Tcp, called, None);
        assert!(torn.is_err(), "what cannot be read in full is not told as if it were all");
    }

    #[test]
    fn without_an_agent_it_is_said_who_was_asked() {
        let nobody = deadlines(Path::new("/nowhere/kube-ipvs.sock")).unwrap_err();
        assert!(nobody.starts_with("no agent answers on /nowhere/kube-ipvs.sock: "), "{nobody}");
        assert!(deadlines(Path::new("")).is_err());
    }
}
