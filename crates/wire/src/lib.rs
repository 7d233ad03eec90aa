//! This crate turns messages into bytes and bytes into messages: generic netlink for IPVS, nfnetlink for ipset and connection tracking,
//! rtnetlink for links, addresses and routes, and what nf_tables says of rules that went.
//!
//! It does no I/O. A request is appended to a [`Batch`], whose bytes go into one `send`; what `recv` returns goes through [`Messages`],
//! and each message's payload through the `parse_` function of its kind. `kernel` owns the sockets and calls both sides; `model` has
//! the words that the kernel's objects are read into. `desired` and `plan` never see a byte.
//!
//! # Words
//!
//! The rest of the project says what ipvsadm's users say. This crate says what the kernel's attributes say:
//!
//! | kernel, and here | the model |
//! |---|---|
//! | service (`IPVS_CMD_NEW_SERVICE`) | [virtual server](model::VirtualServer) |
//! | its address, protocol and port, or its `FWMARK` | [`VirtualServerKey`](model::VirtualServerKey) |
//! | its `SCHED_NAME`, `FLAGS`, `TIMEOUT`, `NETMASK` | [`VirtualServerConfig`](model::VirtualServerConfig) |
//! | `FLAGS` bit 0x1 with `TIMEOUT` | [`persistence`](model::VirtualServerConfig::persistence) |
//! | `NETMASK` | [`granularity`](model::VirtualServerConfig::granularity) |
//! | dest (`IPVS_CMD_NEW_DEST`) | [real server](model::RealServer) |
//! | its `ADDR_FAMILY`, `ADDR`, `PORT` | [`RealServerKey`](model::RealServerKey) |
//! | `FWD_METHOD` | [`ForwardingMethod`](model::ForwardingMethod) |
//! | `ACTIVE_CONNS`, `INACT_CONNS`, `PERSIST_CONNS` | [`RealServerCounters`](model::RealServerCounters) |
//! | `STATS64`, else `STATS` | [`TrafficCounters`](model::TrafficCounters), [`TrafficRates`](model::TrafficRates) |
//! | entry of a set (`IPSET_ATTR_DATA`) | [member](model::Member) |
//! | `maxelem` | [`capacity`](model::SetState::capacity) |
//! | local route or address on `kube-ipvs0` | [VIP](model::Vip) |
//! | entry of connection tracking, its two tuples | [flow](model::Flow), its [directions](model::Direction) |
//!
//! # Trust
//!
//! Whatever is read is taken for hostile: a short or lying length is a [`Malformed`] with a sentence, never a panic. Attributes that
//! are not known are skipped, as every kernel adds some. Objects that the model has no words for are [`Decoded::Foreign`], so that one
//! of another tool's does not hide ours.
//!
//! ```
//! use model::{Protocol, RealServer, RealServerKey, Scheduler, VirtualServerConfig, VirtualServerKey};
//! use wire::{Batch, Body, Decoded, Messages, ipvs};
//!
//! let web = VirtualServerKey::address("10.96.0.10".parse()?, Protocol::Tcp, 80);
//! let config = VirtualServerConfig::new(Scheduler::RR, web.family());
//!
//! // Both messages go to the kernel in one `send`, and one answer says that they are done.
//! let ipvs = ipvs::Ipvs::new(32);
//! let mut batch = Batch::default();
//! ipvs.new_service(&mut batch, 1, &web, &config)?;
//! ipvs.new_dest(&mut batch, 2, &web, &RealServerKey::new("10.244.1.2".parse()?, 8080), &RealServer::default())?;
//! batch.acknowledge_last();
//! assert_eq!((batch.messages(), batch.len()), (2, 104 + 140));
//!
//! // The kernel lists a service in the same attributes that make one.
//! let message = Messages::new(batch.as_bytes()).next().expect("there are two messages")?;
//! let Body::Data(payload) = message.body else { panic!("an object") };
//! let Decoded::Known(service) = ipvs::parse_service(payload)? else { panic!("one that the model knows") };
//! assert_eq!((service.key, service.config), (web, config));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod error;
mod reader;
mod writer;

pub mod conntrack;
pub mod flags;
pub mod genl;
pub mod ipset;
pub mod ipvs;
pub mod nftables;
pub mod rtnl;

pub use error::{Decoded, Foreign, Malformed};
pub use reader::{Attribute, Attributes, Body, Message, Messages};
pub use writer::{Batch, Writer};
