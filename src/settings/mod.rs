//! What the operator has decided: from the command line and the configuration file to one [`Run`](crate::cli::Run).
//!
//! The flags are the settings: a file gives values to flags, in the spelling of a field, and they are read by the same parsers. So there is one
//! list of settings with one set of defaults, and this is the only place that knows which source counts: a flag, or its environment variable,
//! before a `KubeIPVSConfiguration`, before a `KubeProxyConfiguration`, before the default.
//!
//! kube-proxy ignores most flags beside `--config`. A flag that is given and does nothing misleads whoever reads the manifest, so here it counts.

mod arguments;
mod kube_proxy;
mod live;
mod merge;
mod parsers;
mod print;
#[cfg(test)]
mod reference;

pub(crate) use arguments::{arguments, command};
pub(crate) use kube_proxy::KubeProxy;
pub(crate) use live::follow;
pub(crate) use merge::{Effective, Given, Origin};
pub(crate) use print::{show, write};
