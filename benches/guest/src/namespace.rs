//! Network namespaces: the process begins in the one where the agent runs; what it is compared with gets fresh ones, because a virtual server's
//! deleted real servers stay in the kernel's memory for minutes and would be measured too.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster::NODE_ADDRESS;

/// Stays until its input ends, which is when this process is gone.
const HOLD: &str = "echo ready && exec cat";

/// A namespace beside the process' own. It goes with this value.
pub(crate) struct Namespace(Child);

impl Namespace {
    /// Makes one that has the node's address.
    pub(crate) fn new() -> Result<Self> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", &format!("{} && {HOLD}", settings())]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut namespace = Self(holder.spawn().context("cannot run unshare")?);
        let output = namespace.0.stdout.as_mut().context("a namespace without output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("cannot read what a namespace says")?;
        ensure!(line == "ready\n", "a network namespace cannot be made (this needs root)");
        Ok(namespace)
    }

    /// Runs `work` in it, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/proc/{}/ns/net", self.0.id());
        let handle = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter a namespace")?;
                work()
            });
            entered.join().unwrap_or_else(|_| bail!("the work in a namespace has failed"))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives the process' own namespace the node's address.
pub(crate) fn prepare() -> Result<()> {
    run("sh", &["-c", &settings()], None).map(drop)
}

fn settings() -> String {
    format!("ip link set lo up && ip link add lan type dummy && ip address add {NODE_ADDRESS}/16 dev lan && ip link set lan up")
}

/// Runs a program to its end in the namespace of this thread; its output.
pub(crate) fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("cannot run {program}"))?;
    if let Some(input) = input {
        // A program that ends early breaks the pipe; its status and its words tell why.
        let _ = child.stdin.take().context("no input")?.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no text"))
}
