//! As in `source.rs`.

#[path = "../../../src/source/manifests/defaults.rs"]
mod defaults;
#[path = "../../../src/source/manifests/document.rs"]
mod document;
#[path = "../../../src/source/manifests/reading.rs"]
pub(crate) mod reading;
