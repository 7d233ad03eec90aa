//! Boots a kernel with an initramfs and reports what the init of the image says about its command.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::target_dir;
use crate::host;
use crate::kernel::Kernel;

/// The line with which the guest's init reports a command's exit code; see `init.sh`. Nothing else ends a run well.
const MARKER: &str = "@@guest-exit ";

/// How long a machine with working KVM may take to boot and answer. It needs about two seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// MiB of memory: enough for the tests with tens of network namespaces; the image itself takes some 60 MiB of it.
const MEMORY: u32 = 2048;

/// The lines of the console that are shown when a run ends without a result.
const TAIL: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// QEMU's emulation, about ten times slower.
    Emulation,
    /// One emulated processor whose clock counts instructions, a nanosecond each: times do not depend on what else this machine does, and
    /// while the guest waits no time passes here.
    Counting,
}

/// The machine to boot on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardware {
    pub(crate) accelerator: Accelerator,
    /// MiB.
    pub(crate) memory: u32,
}

impl Hardware {
    pub(crate) const fn new(accelerator: Accelerator) -> Self {
        Self { accelerator, memory: MEMORY }
    }
}

/// What a finished run said.
pub(crate) struct Outcome {
    pub(crate) code: u8,
    /// Everything on the console, with plain line ends and without the marker.
    pub(crate) console: String,
}

/// How the console is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    /// Keep it only.
    Quiet,
    /// Print it as it comes.
    Show,
    /// Connect it with this terminal.
    Interactive,
}

/// Boots and waits for the result; at the limit the guest is ended and the run has failed.
pub(crate) fn run(kernel: &Kernel, initramfs: &Path, hardware: Hardware, console: Console, limit: Duration) -> Result<Outcome> {
    let mut machine = Machine(command(kernel, initramfs, hardware, console)?.spawn().context("cannot start QEMU")?);
    let mut output = machine.0.stdout.take().context("QEMU has no output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            let Some(bytes) = buffer.get(..length) else { break };
            if sender.send(bytes.to_vec()).is_err() {
                break;
            }
        }
    });

    let deadline = Instant::now() + limit;
    let mut transcript = Transcript::default();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                if console == Console::Interactive {
                    show(&bytes);
                }
                if let Some(code) = transcript.take_in(&bytes, console == Console::Show) {
                    return Ok(Outcome { code, console: transcript.finished });
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest did not finish within {} s; the end of its console:\n{}", limit.as_secs(), transcript.tail())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended without a result; the end of its console:\n{}", transcript.tail())
            }
        }
    }
}

/// KVM if this machine's really works. A `/dev/kvm` that can be opened is no proof: under some hypervisors its guests never come to run.
/// So a kernel is booted once and the answer kept in `target/guest/accelerator`.
pub(crate) fn accelerator(kernel: &Kernel, probe_image: &dyn Fn() -> Result<tempfile::Image>) -> Result<Accelerator> {
    let answer = target_dir().join("guest/accelerator");
    match fs::read_to_string(&answer).as_deref().map(str::trim) {
        Ok("kvm") => return Ok(Accelerator::Kvm),
        Ok("emulation") => return Ok(Accelerator::Emulation),
        _ => {}
    }
    let reason = if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        Some("/dev/kvm is missing or not open to this user")
    } else {
        let image = probe_image()?;
        let works = run(kernel, image.path(), Hardware::new(Accelerator::Kvm), Console::Quiet, PROBE_LIMIT)
            .is_ok_and(|outcome| outcome.code == 0);
        (!works).then_some("/dev/kvm is there, but a guest that uses it does not boot")
    };
    if let Some(reason) = reason {
        println!("{reason}: the guest is emulated, which is slower (delete {} to try again)", answer.display());
    }
    fs::write(&answer, if reason.is_none() { "kvm\n" } else { "emulation\n" })
        .with_context(|| format!("cannot write {}", answer.display()))?;
    Ok(if reason.is_none() { Accelerator::Kvm } else { Accelerator::Emulation })
}

/// A file that goes away with its owner.
pub(crate) mod tempfile {
    use std::path::{Path, PathBuf};

    pub(crate) struct Image(pub(crate) PathBuf);

    impl Image {
        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

fn command(kernel: &Kernel, initramfs: &Path, hardware: Hardware, console: Console) -> Result<Command> {
    let (machine, serial) = if cfg!(target_arch = "aarch64") { ("virt", "ttyAMA0") } else { ("pc", "ttyS0") };
    let acceleration: &[&str] = match hardware.accelerator {
        Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host", "-smp", "2"],
        Accelerator::Emulation => &["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"],
        // With the fast string instructions every byte that is copied or cleared would count as an instruction.
        Accelerator::Counting if cfg!(target_arch = "x86_64") => {
            &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max,-erms,-fsrm", "-smp", "1"]
        }
        Accelerator::Counting => &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max", "-smp", "1"],
    };
    let mut qemu = Command::new(host::require(host::QEMU)?);
    qemu.args(["-machine", machine]).args(acceleration).args(["-m", &format!("{}M", hardware.memory)]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    // norandmaps: QEMU's emulation translates code anew for each virtual address at which it meets it, so with random addresses every process would
    // have its libraries translated again (a dynamic program then starts in 29 ms instead of 9 ms).
    // panic=-1 with -no-reboot: a kernel that panics ends QEMU at once, which is seen as a run without a result.
    qemu.args(["-append", &format!("console={serial} quiet loglevel=4 panic=-1 norandmaps mitigations=off random.trust_cpu=on")]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]);
    if console == Console::Interactive {
        qemu.args(["-serial", "mon:stdio"]);
    } else {
        qemu.args(["-serial", "stdio"]).stdin(Stdio::null());
    }
    if console == Console::Quiet {
        qemu.stderr(Stdio::null());
    }
    qemu.stdout(Stdio::piped());
    Ok(qemu)
}

/// QEMU, ended with its owner: a guest that said its result has nothing left to do, and one that hangs must not stay.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The console so far, cut into lines.
#[derive(Default)]
struct Transcript {
    finished: String,
    line: Vec<u8>,
}

impl Transcript {
    /// Takes in some bytes; the exit code when the marker's line is complete.
    fn take_in(&mut self, bytes: &[u8], echo: bool) -> Option<u8> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r').to_owned();
            // What the command printed last may lack a line end: then the marker follows it on the same line.
            let (text, code) = match line.split_once(MARKER) {
                Some((text, code)) => (text, code.trim().parse().ok()),
                None => (line.as_str(), None),
            };
            if code.is_none() || !text.is_empty() {
                self.finished.push_str(text);
                self.finished.push('\n');
                if echo {
                    show(text.as_bytes());
                    show(b"\n");
                }
            }
            if code.is_some() {
                return code;
            }
        }
        None
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.finished.lines().collect();
        let mut tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n");
        if !self.line.is_empty() {
            tail.push('\n');
            tail.push_str(&String::from_utf8_lossy(&self.line));
        }
        tail
    }
}

/// Writes to the terminal. That it is gone (`| head`) does not concern the guest.
fn show(bytes: &[u8]) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(bytes);
    let _ = output.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_ends_a_run_even_when_it_comes_in_pieces() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.take_in(b"hello\r\nwor", false), None);
        assert_eq!(transcript.take_in(b"ld\r\n@@guest-", false), None);
        assert_eq!(transcript.take_in(b"exit 3\r\n", false), Some(3));
        assert_eq!(transcript.finished, "hello\nworld\n");
    }

    #[test]
    fn the_marker_is_found_behind_a_line_without_end() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.take_in(b"no end@@guest-exit 0\n", false), Some(0));
        assert_eq!(transcript.finished, "no end\n");
    }

    #[test]
    fn a_broken_marker_is_no_result() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.take_in(b"@@guest-exit soon\n@@guest-exit 300\n", false), None);
    }
}
