//! The demo, in a guest or on this machine's own kernel. What it shows is the program `demo` of the test kit.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::guest::Guest;
use crate::host;
use crate::kernel::Wanted;

/// The demo takes half a minute when emulated; beyond this it hangs.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn in_guest(wanted: &Wanted, shell: bool) -> Result<ExitCode> {
    host::prepare(host::GUEST_TOOLS)?;
    println!("building the agent");
    build::binaries()?;
    let mut guest = Guest::new(wanted)?;
    for name in ["kube-ipvs", "probe", "demo"] {
        guest.program(&build::target_dir().join("debug").join(name), name)?;
    }
    println!("booting Linux {} in QEMU", guest.release());
    let code = if shell { guest.interact("demo --shell")? } else { guest.run("demo", LIMIT)?.code };
    Ok(ExitCode::from(code))
}

pub(crate) fn on_host() -> Result<ExitCode> {
    if !host::is_root() {
        bail!("the demo makes network namespaces, which needs root on this machine: run it as root, or without --host in a guest");
    }
    host::prepare(host::DEMO_TOOLS)?;
    // Loads the module where it is one; where it is built in or missing, the next line knows.
    let _ = Command::new("modprobe").args(["-q", "ip_vs"]).output();
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        bail!("this machine's kernel has no IPVS (module ip_vs): run the demo without --host, in a guest that has it");
    }
    build::binaries()?;
    let programs = build::target_dir().join("debug");
    let status = Command::new(programs.join("demo"))
        .env("KUBE_IPVS", programs.join("kube-ipvs"))
        .env("PROBE", programs.join("probe"))
        .status()
        .context("cannot run the demo")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
