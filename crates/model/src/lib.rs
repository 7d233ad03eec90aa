//! This crate is the vocabulary of kube-ipvs: what a node's IPVS state is made of.
//!
//! Every other crate speaks in these types. `desired` fills a [`State`] from Kubernetes objects, `kernel` fills one from what it
//! observes, `plan` compares the two, and `wire` turns the parts into netlink attributes and back. There is no behaviour here
//! beyond what makes a wrong value impossible to write down: a scheduler's name that the kernel has no room for, a set member of
//! another set's layout, a configuration that carries a counter.
//!
//! Configuration and counters are different types on purpose. A diff over [`State`] cannot see traffic.
//!
//! ```
//! use model::{Protocol, RealServer, RealServerKey, Scheduler, State, VirtualServer, VirtualServerKey};
//!
//! let web = VirtualServerKey::address("10.96.0.10".parse()?, Protocol::Tcp, 80);
//! let mut server = VirtualServer::new(Scheduler::RR, web.family());
//! server.real_servers.insert(RealServerKey::new("10.244.1.2".parse()?, 8080), RealServer::default());
//!
//! let mut desired = State::default();
//! desired.virtual_servers.insert(web, server);
//! assert_eq!(desired.virtual_servers.keys().next().map(ToString::to_string).as_deref(), Some("TCP 10.96.0.10:80"));
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

mod counters;
mod family;
mod flow;
mod real_servers;
mod rules;
mod scheduler;
mod set;
mod state;
mod vip;
mod virtual_server;

pub use counters::{RealServerCounters, TrafficCounters, TrafficRates};
pub use family::{Family, Protocol};
pub use flow::{Direction, Flow};
pub use real_servers::{Iter, RealServers};
pub use rules::{Chain, Jump, Rules, Table};
pub use scheduler::{InvalidScheduler, Scheduler};
pub use set::{Member, Role, Set, SetKind, SetState};
pub use state::{Scope, State};
pub use vip::{DEVICE, Via, Vip};
pub use virtual_server::{
    Flags, ForwardingMethod, RealServer, RealServerKey, VirtualServer, VirtualServerConfig, VirtualServerKey,
};
