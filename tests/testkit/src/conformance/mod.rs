//! Cases of what a node must make of its Kubernetes objects, run as black boxes: the agent's program, a namespace for a node, and other
//! people's tools to look at what came out.
//!
//! A file of cases is read by [`Suite::read`] and run by [`Suite::run`], which tells a [`Verdict`] for each. The files in reading order:
//! `case` (the schema), `node` (a namespace made as a case wants it), `flows` (connections, without the traffic that would make them),
//! `observed` (what the tools print, taken apart), `compare` and `packet_rules` (by meaning: the cases speak of kube-proxy's sets and rules).
//! What is the same by meaning is written down in `tests/conformance/README.md`.

mod case;
mod compare;
mod fetch;
mod flows;
mod node;
mod observed;
mod packet_rules;
mod run;

pub use fetch::fetch;
pub use flows::send_synchronisation;
pub use run::{Suite, Summary, Verdict};
