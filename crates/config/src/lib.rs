//! This crate turns configuration files into settings: which flag has which value, and on which line that is said.
//!
//! A file holds a `KubeProxyConfiguration` as kube-proxy has it, a `KubeIPVSConfiguration`, or both as two documents. [`read`] goes through all of
//! it and returns every mistake, not the first. What flags there are, and in what order of precedence things count, is for the agent's root to
//! know, which also looks whether the values of the flags make sense: they are those of the command line.
//!
//! Reading is hostile-proof: of any bytes it makes a [`Configuration`] or [`Problem`]s, within limits of depth and size.
//!
//! ```
//! let file = "
//! apiVersion: kubeproxy.config.k8s.io/v1alpha1
//! kind: KubeProxyConfiguration
//! mode: ipvs
//! ipvs:
//!   scheduler: wlc
//! ---
//! apiVersion: kube-ipvs.io/v1alpha1
//! kind: KubeIPVSConfiguration
//! drainTimeout: 5m
//! ";
//! let configuration = config::read(file.as_bytes()).unwrap();
//! let drain = configuration.settings.iter().find(|setting| setting.flag == "drain-timeout").unwrap();
//! assert_eq!((drain.values.as_slice(), drain.line), (["5m".to_owned()].as_slice(), 10));
//! assert!(configuration.settings.iter().any(|setting| setting.flag == "scheduler" && setting.values == ["wlc"]));
//! ```

#![forbid(unsafe_code)]

mod document;
mod duration;
mod field;
mod kind;
mod kube_proxy;
mod own;
mod problem;
mod render;
mod tree;

pub use document::{Configuration, Document, Setting, read, read_what_there_is};
pub use duration::{format_duration, parse_duration};
pub use field::{Effect, FIELDS, Field, HEALTHZ_PORT, METRICS_PORT};
pub use kind::{Kind, bind as parse_bind};
pub use own::{field_of, flag_of};
pub use problem::Problem;
pub use render::kube_proxy_configuration;
