//! The agent as it is started on a node, watched from outside: its log, its metrics, and what the kernel says of its processes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{CLUSTER_CIDR, NODE};

const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// What the image is made by: the agent is measured in the environment that it has there.
const CONTAINERFILE: &str = include_str!("../../../manifests/image/Containerfile");

/// The longest that anything is waited for: fifty thousand Services on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(900);
/// Between two looks at a file, which cost the agent nothing.
const GLANCE: Duration = Duration::from_millis(2);
/// Between two questions whether it is ready, which cost it a little.
const QUESTION: Duration = Duration::from_millis(100);

/// A running agent in a control group of its own. It is killed when this value is dropped.
pub(crate) struct Agent {
    child: Child,
    group: PathBuf,
    log: PathBuf,
    /// How many bytes of the log have been read.
    read: usize,
    pub(crate) started: SystemTime,
}

/// A line of the log that tells how a pass went.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    /// `Start`, `Change` or `Audit`.
    pub(crate) kind: String,
    /// What it did to the kernel.
    pub(crate) steps: u64,
}

impl Agent {
    /// Starts it with `options` besides what every run here has. `kubeconfig` leads to the API server.
    pub(crate) fn start(kubeconfig: &str, options: &[&str]) -> Result<Self> {
        let config = PathBuf::from(format!("/tmp/bench-{}.kubeconfig", std::process::id()));
        fs::write(&config, kubeconfig).with_context(|| format!("cannot write {}", config.display()))?;
        Self::start_on(&["--kubeconfig", &config.to_string_lossy()], options)
    }

    /// The same with any `source` of objects, in the network namespace of this thread.
    pub(crate) fn start_on(source: &[&str], options: &[&str]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("agent-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let group = PathBuf::from("/sys/fs/cgroup").join(&name);
        fs::create_dir(&group).with_context(|| format!("cannot make the control group {}", group.display()))?;
        let log = PathBuf::from(format!("/tmp/{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        let mut command = Command::new("sh");
        // It enters the group before it becomes the agent, so that all it ever uses is counted there, its child processes included.
        command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec kube-ipvs run "$@""#]).arg(&group);
        command.args(source).args(["--node-name", NODE, "--cluster-cidr", CLUSTER_CIDR]);
        command.args(["--healthz-bind-address", &HEALTH.to_string(), "--metrics-bind-address", &METRICS.to_string()]);
        // Its metrics are asked for all the time here, and traffic is read from the kernel for whoever asks.
        command
            .args(["--traffic-metrics", "off", "--control-socket", "", "--log-format", "json", "--log-level", "kube_ipvs=debug"])
            .args(options);
        let environment = CONTAINERFILE.lines().filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
        command.envs(environment.filter(|(name, _)| *name != "PATH"));
        let started = SystemTime::now();
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().context("cannot start the agent")?;
        Ok(Self { child, group, log, read: 0, started })
    }

    /// Waits until it says that the kernel holds what is desired, for the first time.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !get(HEALTH, "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            self.ensure_alive()?;
            ensure!(Instant::now() < deadline, "the agent did not become ready; its log:\n{}", self.tail());
            thread::sleep(QUESTION);
        }
        Ok(())
    }

    /// The passes it has logged since this was last asked.
    pub(crate) fn passes(&mut self) -> Result<Vec<Pass>> {
        let log = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let unread = log.get(self.read..).unwrap_or_default();
        // A line is read when it is there in full.
        let end = unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += end;
        Ok(unread.get(..end).unwrap_or_default().split(|byte| *byte == b'\n').filter_map(pass).collect())
    }

    /// Waits until passes with `steps` steps in all have been logged since the log was last read, and returns how many passes those were.
    pub(crate) fn steps(&mut self, steps: u64) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let (mut done, mut passes) = (0, 0);
        loop {
            for pass in self.passes()?.iter().filter(|pass| pass.steps > 0) {
                (done, passes) = (done + pass.steps, passes + 1);
            }
            ensure!(done <= steps, "the agent took {done} steps where {steps} were due; its log:\n{}", self.tail());
            if done == steps {
                return Ok(passes);
            }
            self.ensure_alive()?;
            ensure!(Instant::now() < deadline, "the agent took {done} of {steps} steps; its log:\n{}", self.tail());
            thread::sleep(GLANCE);
        }
    }

    /// Waits until passes with at least `steps` steps in all have been logged since the log was last read.
    pub(crate) fn at_least(&mut self, steps: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut done = 0;
        loop {
            done += self.passes()?.iter().map(|pass| pass.steps).sum::<u64>();
            if done >= steps {
                return Ok(());
            }
            self.ensure_alive()?;
            ensure!(Instant::now() < deadline, "the agent took {done} of {steps} steps; its log:\n{}", self.tail());
            thread::sleep(GLANCE);
        }
    }

    /// Waits until `number` more passes of a kind have been logged.
    pub(crate) fn further(&mut self, kind: &str, number: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        while seen < number {
            for pass in self.passes()?.iter().filter(|pass| pass.kind == kind) {
                ensure!(pass.steps == 0, "a pass of the kind {kind} took {} steps where nothing was to do", pass.steps);
                seen += 1;
            }
            self.ensure_alive()?;
            ensure!(Instant::now() < deadline, "the agent did not make its passes; its log:\n{}", self.tail());
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// When the kernel last held all that was desired.
    pub(crate) fn last_success(&self) -> Result<SystemTime> {
        let seconds = self.metric("kube_ipvs_last_success_timestamp_seconds")?;
        ensure!(seconds > 0.0, "the kernel has never held what is desired");
        Ok(UNIX_EPOCH + Duration::from_secs_f64(seconds))
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = get(METRICS, "/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .with_context(|| format!("the agent has no metric {name}"))?
            .trim()
            .parse()
            .with_context(|| format!("{name} is no number"))
    }

    /// The processor time that it and its child processes have used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let path = self.group.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let micros = value.with_context(|| format!("{} has no usage_usec", path.display()))?.trim().parse()?;
        Ok(Duration::from_micros(micros))
    }

    /// A field of `/proc/PID/status` in bytes: `VmRSS` or its peak, `VmHWM`.
    pub(crate) fn memory(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
        let kibibytes: u64 = value.with_context(|| format!("{path} has no {field}"))?.trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// How often its threads have gone to sleep by themselves, and so were woken up.
    pub(crate) fn wakeups(&self) -> Result<u64> {
        let directory = format!("/proc/{}/task", self.child.id());
        let mut sum = 0;
        for thread in fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += count.context("a thread without a count of context switches")?.trim().parse::<u64>()?;
        }
        Ok(sum)
    }

    /// Asks it to end, as the kubelet does.
    pub(crate) fn terminate(mut self) -> Result<()> {
        crate::namespace::run("kill", &["-TERM", &self.child.id().to_string()], None)?;
        let status = self.child.wait().context("cannot wait for the agent")?;
        ensure!(status.success(), "the agent ended with {status}; its log:\n{}", self.tail());
        Ok(())
    }

    fn ensure_alive(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot ask for the agent")? {
            Some(status) => bail!("the agent has ended ({status}); its log:\n{}", self.tail()),
            None => Ok(()),
        }
    }

    fn tail(&self) -> String {
        const LINES: usize = 20;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.group);
    }
}

fn pass(line: &[u8]) -> Option<Pass> {
    let line: Value = serde_json::from_slice(line).ok()?;
    // A line that sums up batches is about some that had lines of their own.
    let fields = line.get("fields").filter(|fields| fields.get("batches").is_none())?;
    let kind = fields.get("pass")?.as_str()?.to_owned();
    let steps = fields.get("steps").and_then(Value::as_u64).unwrap_or_default();
    Some(Pass { kind, steps })
}

fn get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("cannot read the answer of {server}"))?;
    Ok(answer)
}
