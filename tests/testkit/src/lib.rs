//! This crate turns `ip` commands into a small cluster network, in which the agent is tested with real traffic.
//!
//! [`World`] is the principal type: a node, a second node, pods and an outside client as network namespaces. [`Pod::serve`] and [`Netns::call`] speak
//! through it with the program `probe`, [`World::agent`] starts the agent on manifests made with [`manifest`], and [`eventually`] waits. The
//! namespaces need root; what needs IPVS runs in the guest kernel (`cargo xtask guest`, `cargo xtask test --tier guest`).
//!
//! ```no_run
//! use std::time::Duration;
//! use testkit::manifest::{EndpointSlice, Service};
//! use testkit::{On, Protocol, World, answers, eventually};
//!
//! World::test(|world| {
//!     let pod = world.pod("a", On::Node)?;
//!     let client = world.pod("client", On::Node)?;
//!     let _server = pod.serve(8080)?;
//!     let service = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080);
//!     let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(&pod);
//!     world.write("web.yaml", &format!("{service}{slice}"))?;
//!     let _agent = world.agent(&[])?;
//!     eventually(Duration::from_secs(10), || answers(client.call(Protocol::Tcp, "10.96.0.10:80", 3)?))?;
//!     Ok(())
//! });
//! ```

mod agent;
mod attempts;
pub mod conformance;
mod eventually;
mod inputs;
pub mod manifest;
mod netns;
mod ports;
mod process;
mod protocol;
mod random;
mod reply;
mod told;
mod world;

pub use crate::agent::Agent;
pub use crate::eventually::eventually;
pub use crate::inputs::{fuzz_inputs, read_changed, read_whole_and_cut};
pub use crate::netns::{Netns, Series};
pub use crate::ports::source_ports;
pub use crate::process::Process;
pub use crate::protocol::{Family, Protocol};
pub use crate::random::Random;
pub use crate::reply::{Answer, Calls, Reply, answers, shares};
pub use crate::told::tell_panics;
pub use crate::world::{EXT_V4, EXT_V6, NODE_V4, NODE_V6, NODE2_V4, NODE2_V6, On, Pod, World};

/// The result of whatever may fail in a test: a test's failure is a sentence, with its causes.
pub type Result<T = ()> = anyhow::Result<T>;
