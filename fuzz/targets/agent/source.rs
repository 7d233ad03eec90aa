//! What the agent has at this place, without what it takes to watch and to wait.

#[path = "../../../src/source/decoding.rs"]
pub(crate) mod decoding;
#[path = "manifests.rs"]
pub(crate) mod manifests;
#[path = "../../../src/source/object.rs"]
mod object;

pub(crate) use object::{Event, Kind, Object};
