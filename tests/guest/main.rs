//! Tests on a kernel with IPVS, with real traffic and other people's tools as oracles. `cargo xtask test --tier guest` boots one and runs them.
//!
//! Each test has a world of network namespaces of its own ([`testkit::World`]), so all run side by side in one boot. What a test reads must be compiled
//! in (`include_str!`): the repository is not in the guest.

mod addresses;
mod binding;
mod changes;
mod cleanup;
mod cluster;
mod configuration;
mod deleted;
mod drain;
mod events;
mod everything;
mod foreign;
mod handover;
mod held;
mod inspection;
mod life;
mod matrix;
mod metrics;
mod neighbours;
mod outage;
mod own_vip;
mod policies;
mod privileges;
mod random;
mod repair;
mod schedulers;
mod sizes;
mod soak;
mod start;
mod status;
mod support;
mod timeouts;
mod top;
mod traffic;
mod trouble;
mod udp;
mod versions;
mod web;
mod world;
