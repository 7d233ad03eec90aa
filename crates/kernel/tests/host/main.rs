//! This crate's parts against a real kernel: sets, packet rules and addresses, with other people's tools as the measure.
//!
//! Each test has a network namespace of its own, so they run side by side and leave the machine's own network alone. VIPs need dummy
//! devices and virtual servers need IPVS, neither of which every machine has: those are tested in the guest.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod addresses;
mod flows;
mod namespace;
mod rules;
mod sets;
