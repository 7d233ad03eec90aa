//! Whatever an API server may send, up to the desired state that follows from it.

#![no_main]

#[path = "../../crates/desired/tests/suite/serving.rs"]
mod serving;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    serving::serve(bytes);
});
