//! As in `source.rs`.

#[path = "../../../src/saved/batch.rs"]
mod batch;
#[path = "../../../src/saved/format.rs"]
mod format;
#[path = "../../../src/saved/reading.rs"]
pub(crate) mod reading;
