//! This crate turns Kubernetes objects into desired state: Services, EndpointSlices and the Node in, [`model::State`] out.
//!
//! An [`Index`] takes the objects in as they come and says which Services a change touches. The [`Fragment`] of a Service is what it
//! wants of the node, and depends on nothing but the Service, its slices, the node's facts and the [`Config`]. A [`Ledger`] merges
//! fragments, settles what Services share, and hands out the desired state of exactly the keys that changed. [`rules`] gives the
//! packet rules, which do not change with Services.
//!
//! Nothing here waits, tells the time, logs or keeps state of its own accord; what is wrong with an object is a [`Problem`], a value.
//! `plan` compares the result with what `kernel` observes.
//!
//! ```
//! use desired::{Config, Index, Ledger};
//! use model::Scope;
//!
//! let mut index = Index::new(Config::new("node-1"));
//! let mut ledger = Ledger::new(index.config());
//!
//! index.apply_service(&serde_json::from_value(serde_json::json!({
//!     "metadata": {"namespace": "shop", "name": "web"},
//!     "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
//! }))?)?;
//! index.apply_slice(&serde_json::from_value(serde_json::json!({
//!     "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
//!     "addressType": "IPv4",
//!     "ports": [{"name": "", "port": 8080}],
//!     "endpoints": [{"addresses": ["10.244.1.2"]}, {"addresses": ["10.244.2.2"]}],
//! }))?)?;
//!
//! let mut scope = Scope::default();
//! for service in index.take_dirty() {
//!     scope.extend(ledger.set(&service, index.fragment(&service)));
//! }
//! let desired = ledger.desired(&scope);
//! let (web, server) = desired.virtual_servers.iter().next().ok_or("nothing is desired")?;
//! assert_eq!(web.to_string(), "TCP 10.96.0.10:80");
//! assert_eq!(server.real_servers.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod annotation;
mod config;
mod drain_timeout;
mod duration;
mod endpoint_view;
mod endpoints;
mod facts;
mod fragment;
mod index;
mod interface;
mod ledger;
mod listeners;
mod machines;
mod marks;
mod name;
pub mod object;
mod pods;
mod ports;
mod problem;
mod rules;
mod scheduling;
mod service;
mod slice;

pub use config::{
    Config, DetectLocal, InterfaceName, InvalidInterfaceName, MarkBit, Masquerade, NodePortAddresses, OccupiedNodePorts,
};
pub use duration::parse_duration;
pub use endpoint_view::{Callers, EndpointView};
pub use endpoints::Verdict;
pub use facts::{InterfaceAddress, NodeFacts};
pub use fragment::{Fragment, Frontend, FrontendKind, HealthCheck, Parting, Standing, TrafficPolicy};
pub use index::{Index, Kind, Place, Priority};
pub use interface::{InterfacePattern, InvalidInterfacePattern};
pub use ledger::{Conflict, Ledger, Owner};
pub use listeners::Listener;
pub use name::ServiceName;
pub use ports::{InvalidPortRange, PortRange};
pub use problem::{Problem, Reason};
pub use rules::{RuleOptions, rules};
