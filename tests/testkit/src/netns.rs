//! One network namespace of a world.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::{Calls, Process, Protocol, Reply, Result, source_ports};

/// Longer than the kernel waits before it sends a lost first packet for the third time (TCP after 1, 2 and 4 s, SCTP after 3 and 6 s): a guest that is
/// emulated on a busy machine drops some, and delivers others late.
const PATIENCE_MS: &str = "15000";
/// A program that takes longer is worth a line: what a test has read before it may be long past.
const LONG: Duration = Duration::from_secs(20);

/// Calls to one target.
#[derive(Clone, Debug)]
pub struct Series {
    /// How to call.
    pub protocol: Protocol,
    /// Whom to call.
    pub target: SocketAddr,
    /// The address to call from; `None` for the kernel's choice.
    pub source: Option<IpAddr>,
    /// The port of the first call; each further one comes from the next.
    pub first_port: u16,
}

/// What the namespace's first process does: gives the namespace a `/run` of its own, and a `/sys` that shows its devices, takes the settings, and stays
/// until its input ends, which is when the test is gone, however it went.
const HOLD: &str = r#"mount --bind "$0" /run && mount -t sysfs sysfs /sys && eval "$1" && echo ready && exec cat"#;

/// A host or a pod: a network namespace, with a `/run` of its own.
///
/// IPVS, ipset, iptables, conntrack and sysctls below `net` are the namespace's own, and so are abstract and TCP sockets; the file system is shared but
/// for `/run`, where control sockets and the lock of iptables are. It lasts as long as this value, and longer only if a process in it does.
#[derive(Debug)]
pub struct Netns {
    name: String,
    directory: PathBuf,
    holder: Child,
}

impl Netns {
    /// Makes the namespace; `directory` will hold its `/run` and the logs of its programs. `settings` are shell commands, such as writes to `/proc/sys`.
    pub(crate) fn new(name: &str, directory: PathBuf, settings: &str) -> Result<Self> {
        let run = directory.join("run");
        fs::create_dir_all(&run).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut holder = Command::new("unshare");
        holder.args(["--net", "--mount", "sh", "-c", HOLD]).arg(run).arg(settings);
        let holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run unshare")?;
        Ok(Self { name: name.to_owned(), directory, holder })
    }

    /// Waits until the namespace is there with its settings. Nothing else may be asked of it before.
    pub(crate) fn made(&mut self) -> Result {
        let output = self.holder.stdout.as_mut().context("a namespace is waited for once")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("cannot read")?;
        ensure!(line == "ready\n", "the network namespace {} cannot be made (this needs root)", self.name);
        Ok(())
    }

    /// Its name within the world.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process by which others find this namespace.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// A command that will run in this namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--"]).arg(program);
        command
    }

    /// The start of a shell line that runs the rest of the line in this namespace.
    #[must_use]
    pub fn shell_prefix(&self) -> String {
        format!("nsenter --net --mount --target {} --", self.holder.id())
    }

    /// What `ipvsadm` lists with these arguments, as soon as it lists the same twice in a row: what changes in the IPVS of other namespaces meanwhile has
    /// the kernel list some of ours twice, or leave them out (`ip_vs_genl_dump_services`, net/netfilter/ipvs/ip_vs_ctl.c). Counters may differ.
    ///
    /// # Errors
    /// As [`Netns::exec`].
    pub fn ipvsadm(&self, arguments: &[&str]) -> Result<String> {
        const ATTEMPTS: usize = 20;
        let list = || self.exec(&[&["ipvsadm"], arguments].concat());
        let mut last = list()?;
        for _ in 0..ATTEMPTS {
            let next = list()?;
            if last.lines().map(listed).eq(next.lines().map(listed)) {
                return Ok(next);
            }
            last = next;
        }
        Ok(last)
    }

    /// Runs a program to its end; its output.
    ///
    /// # Errors
    /// When it cannot be run or fails; with what it wrote to its error output.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let output = self.try_exec(command)?;
        if !output.status.success() {
            bail!(
                "`{}` in {} failed ({}): {}{}",
                command.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end(),
                String::from_utf8_lossy(&output.stdout).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program to its end, however it ends.
    ///
    /// # Errors
    /// When it cannot be run.
    #[expect(clippy::print_stderr, reason = "the test harness shows it with a failure")]
    pub fn try_exec(&self, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("no program to run")?;
        let begun = Instant::now();
        let output = self.command(program).args(arguments).stdin(Stdio::null()).output();
        let took = begun.elapsed();
        if took > LONG {
            eprintln!("`{}` in {} took {took:?}", command.join(" "), self.name);
        }
        output.with_context(|| format!("cannot run {program} in {}", self.name))
    }

    /// Runs a program to its end with a text as its input; its output.
    ///
    /// # Errors
    /// As [`Netns::exec`].
    pub fn exec_with_input(&self, command: &[&str], input: &str) -> Result<String> {
        let (program, arguments) = command.split_first().context("no program to run")?;
        feed(self.command(program).args(arguments), input).with_context(|| format!("`{}` in {}", command.join(" "), self.name))
    }

    /// Starts a program that goes on in the background.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: &[&str]) -> Result<Process> {
        let (program, arguments) = command.split_first().context("no program to run")?;
        Process::start(self.command(program).args(arguments), self.log_file(program))
    }

    /// Makes calls to an address such as `10.96.0.10:80` or `[fd00:96::10]:80`, one after the other, each from a socket of its own and from a port of its
    /// own: Linux may choose one for two, and what comes from one port is one connection to IPVS.
    ///
    /// # Errors
    /// When the calls cannot be made at all. That a call fails is data: see [`Reply`].
    pub fn call(&self, protocol: Protocol, target: &str, count: u16) -> Result<Vec<Reply>> {
        let (first, count) = (source_ports(count).to_string(), count.to_string());
        let options = ["--count", &count, "--source-port", &first, "--ports", &count, "--timeout-ms", PATIENCE_MS];
        self.call_with(protocol, target, &options)
    }

    /// As [`Netns::call`], with the options of `probe call`.
    ///
    /// # Errors
    /// As [`Netns::call`].
    pub fn call_with(&self, protocol: Protocol, target: &str, options: &[&str]) -> Result<Vec<Reply>> {
        let output = self
            .command(probe())
            .args(["call", &protocol.to_string(), target])
            .args(options)
            .stdin(Stdio::null())
            .output()
            .context("cannot run probe")?;
        // 0: all calls were answered, 1: not all.
        if !matches!(output.status.code(), Some(0 | 1)) {
            bail!(
                "probe call {protocol} {target} in {} failed ({}): {}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Reply::parse_all(&String::from_utf8_lossy(&output.stdout))
    }

    /// Makes series of `count` calls each, side by side; the replies of each series. A series ends with its first call that has no answer.
    ///
    /// # Errors
    /// When the calls cannot be made at all. That a call fails is data: see [`Reply`].
    pub fn call_side_by_side(&self, series: &[Series], count: usize) -> Result<Vec<Vec<Reply>>> {
        let line = |Series { protocol, target, source, first_port }: &Series| {
            let source = source.map_or_else(|| "-".to_owned(), |source| source.to_string());
            format!("{protocol} {target} {count} {PATIENCE_MS} {source} {first_port}\n")
        };
        let probe = probe();
        let probe = probe.to_str().context("the path of probe is no text")?;
        let output = self.exec_with_input(&[probe, "series"], &series.iter().map(line).collect::<String>())?;
        Reply::parse_series(&output, series.len())
    }

    /// Calls again and again in the background, with a pause between calls and patience in each.
    ///
    /// # Errors
    /// When that cannot be started.
    pub fn keep_calling(&self, protocol: Protocol, target: &str, pause: Duration) -> Result<Calls> {
        self.keep_calling_with(protocol, target, &["--interval-ms", &pause.as_millis().to_string(), "--timeout-ms", PATIENCE_MS])
    }

    /// As [`Netns::keep_calling`], with the options of `probe call`.
    ///
    /// # Errors
    /// As [`Netns::keep_calling`].
    pub fn keep_calling_with(&self, protocol: Protocol, target: &str, options: &[&str]) -> Result<Calls> {
        let log = self.log_file("calls");
        let mut command = self.command(probe());
        command.args(["call", &protocol.to_string(), target, "--until-killed"]).args(options);
        Ok(Calls(Process::start(&mut command, log)?))
    }

    /// Calls ten times a second in the background over TCP, from ports that no other client has: for one that calls several frontends with the same
    /// real servers.
    ///
    /// # Errors
    /// As [`Netns::keep_calling`].
    pub fn keep_calling_apart(&self, target: &str) -> Result<Calls> {
        /// In turn; who calls from one again calls the same frontend.
        const PORTS: u16 = 400;
        let (first, ports) = (source_ports(PORTS).to_string(), PORTS.to_string());
        let options = ["--source-port", &first, "--ports", &ports, "--interval-ms", "100", "--timeout-ms", PATIENCE_MS];
        self.keep_calling_with(Protocol::Tcp, target, &options)
    }

    /// Runs `ip -batch` with these lines in the namespace: one process for many settings.
    pub(crate) fn ip(&self, batch: &str) -> Result {
        self.exec_with_input(&["ip", "-batch", "-"], batch).map(drop).with_context(|| format!("with the lines\n{batch}"))
    }

    /// The file for the output of a program, new each time.
    pub(crate) fn log_file(&self, program: &str) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        self.directory.join(format!("{program}-{}.log", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The program that makes and answers calls.
pub(crate) fn probe() -> PathBuf {
    std::env::var_os("PROBE").map_or_else(|| PathBuf::from("probe"), PathBuf::from)
}

impl Drop for Netns {
    /// The namespace goes with its last process.
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot be run")?;
    // A program that ends early breaks the pipe; its status and its words tell why.
    let _ = child.stdin.take().context("no input")?.write_all(input.as_bytes());
    let output = child.wait_with_output().context("cannot be waited for")?;
    if !output.status.success() {
        bail!("failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a line of `ipvsadm` is about: of `-L` the first two words, as counters follow; of `-S` all of it.
fn listed(line: &str) -> Vec<&str> {
    let words = if line.starts_with("-A ") || line.starts_with("-a ") { usize::MAX } else { 2 };
    line.split_whitespace().take(words).collect()
}
