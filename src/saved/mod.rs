//! What the sources last told, kept on disk for a start without an API server.
//!
//! Two files in a directory: `base` holds all objects as they were at some time, `journal` what was told since then. A change costs its own
//! size; when the journal outgrows the base, both are written anew as one. A thread of its own does the writing, at most once a second, so
//! that nothing ever waits for the disk.
//!
//! [`batch`] is what has yet to be written, [`format`](self::format) the bytes, [`directory`] the files, [`keeper`] the thread.

mod batch;
mod directory;
mod format;
mod keeper;
#[cfg(test)]
mod reading;

pub(crate) use keeper::{Keeper, Kept};
