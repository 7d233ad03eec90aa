//! What this crate makes of whole objects, in one program.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod bad_input;
mod conflicts;
mod decisions;
mod defects;
mod external;
mod hostile;
mod incremental;
mod objects;
mod parting;
mod scheduling;
mod selection;
mod serving;
mod snapshots;
mod support;
mod why;
