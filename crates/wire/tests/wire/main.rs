//! The codec against other people's tools, against itself, and against nonsense.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as the tests do, and clippy only knows the tests themselves"
)]

#[cfg(not(target_endian = "little"))]
compile_error!("the recordings, and some bytes spelled out, are those of a little-endian machine");

mod capture;
mod golden;
mod hostile;
mod reading;
mod round_trip;
