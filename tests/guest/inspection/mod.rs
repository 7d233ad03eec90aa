//! The commands that look and change nothing: `plan`, `explain` and `check`.

mod check;
mod explain;
mod plan;

use std::process::Output;

use testkit::{Result, World};

/// Runs a command with the flags by which the agent knows the node.
fn inspect(world: &World, command: &[&str], more: &[&str]) -> Result<Output> {
    let arguments = world.node_arguments();
    let arguments: Vec<_> =
        command.iter().copied().chain(arguments.iter().map(String::as_str)).chain(more.iter().copied()).collect();
    world.try_kube_ipvs(&arguments)
}
