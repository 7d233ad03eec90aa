//! Whatever a netlink socket may receive: IPVS, ipset, rtnetlink, conntrack, nf_tables and generic netlink itself.

#![no_main]

#[path = "../../crates/wire/tests/wire/reading.rs"]
mod reading;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    reading::read_all(bytes);
    reading::read_payload(bytes);
});
