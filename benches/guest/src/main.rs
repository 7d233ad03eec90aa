//! This program measures the agent in a kernel that has IPVS: `cargo xtask bench` runs it in a guest, once for each size of cluster.
//!
//! The agent is the released program, fed through its real inputs by the API server double. Beside it, in namespaces of the same kernel, stand
//! the raw [`floor`] (the same netlink messages and nothing else) and the usual [`tools`]. What each figure means is in `benches/README.md`.

mod agent;
mod cluster;
mod double;
mod figures;
mod floor;
mod growth;
mod manifests;
mod namespace;
mod outage;
mod repair;
mod rolling;
mod scenarios;
mod tools;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

/// Measures kube-ipvs in this network namespace, which has to be fresh
#[derive(Parser)]
#[command(name = "bench")]
pub(crate) struct Arguments {
    /// How many Services there are
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    services: u32,
    /// How many endpoints each has
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    endpoints: u32,
    /// Time between two audits where audits are measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    audit_period: u32,
    /// How long to look on while nothing happens, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u32,
    /// How many random changes come and go before memory is looked at again; none skips that
    #[arg(long, value_name = "NUMBER", default_value_t = 100_000)]
    growth: u32,
    /// How long the API server is away, in seconds; none skips that
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    outage: u32,
}

fn main() -> ExitCode {
    match scenarios::run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without an error output nothing can be said at all.
            let _ = writeln!(std::io::stderr().lock(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
