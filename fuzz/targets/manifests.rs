//! Whatever a file of manifests may hold.

#![no_main]

#[path = "agent/source.rs"]
mod source;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    source::manifests::reading::read(bytes);
});
