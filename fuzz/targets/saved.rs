//! Whatever the files of saved state may hold.

#![no_main]

#[path = "agent/saved.rs"]
mod saved;
#[path = "agent/source.rs"]
mod source;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    saved::reading::read(bytes);
});
