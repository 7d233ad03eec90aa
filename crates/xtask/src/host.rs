//! What this machine has, and installing what it lacks: Debian and Ubuntu packages through apt-get, with sudo only for somebody who is not root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A program that is needed here, the package that brings it, and what for.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

#[cfg(target_arch = "aarch64")]
pub(crate) const QEMU: &str = "qemu-system-aarch64";
#[cfg(not(target_arch = "aarch64"))]
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Programs to make and boot a guest; the network tools among them are copied into it.
pub(crate) const GUEST_TOOLS: &[Tool] = &[
    #[cfg(target_arch = "aarch64")]
    tool(QEMU, "qemu-system-arm", "boots the guest"),
    #[cfg(not(target_arch = "aarch64"))]
    tool(QEMU, "qemu-system-x86", "boots the guest"),
    tool("busybox", "busybox-static", "is the guest's user land, and reads kernel modules"),
    tool("xz", "xz-utils", "unpacks kernel modules"),
    tool("zstd", "zstd", "unpacks kernel modules"),
    tool("strip", "binutils", "keeps the guest's image small"),
    tool("ldd", "libc-bin", "finds shared libraries for the guest"),
    tool("nsenter", "util-linux", "makes the network namespaces of the tests"),
    tool("ip", "iproute2", "makes the links, addresses and routes of the tests"),
    tool("ipvsadm", "ipvsadm", "shows IPVS tables in the tests"),
    tool("ipset", "ipset", "shows sets in the tests, and is tested against"),
    tool("iptables-nft", "iptables", "loads the packet rules"),
    tool("conntrack", "conntrack", "shows connections in the tests"),
    tool("nft", "nftables", "shows packet rules in the tests"),
    tool("tmux", "tmux", "is a terminal for the tests"),
];

/// Programs for the tests on this machine's own kernel.
pub(crate) const HOST_TOOLS: &[Tool] = &[
    tool("unshare", "util-linux", "makes the private network namespace of the host tests"),
    tool("ip", "iproute2", "shows links, addresses and routes in the host tests"),
    tool("ipset", "ipset", "shows sets in the host tests"),
    tool("iptables-nft", "iptables", "loads the packet rules in the host tests"),
];

/// Programs for a demo on this machine's own kernel.
pub(crate) const DEMO_TOOLS: &[Tool] = &[
    tool("nsenter", "util-linux", "makes the network namespaces"),
    tool("ip", "iproute2", "makes links, addresses and routes"),
    tool("ipset", "ipset", "shows the sets"),
    tool("iptables-nft", "iptables", "loads the packet rules"),
    tool("ipvsadm", "ipvsadm", "shows the kernel's IPVS table"),
];

/// Programs for the agent's container image; iptables and modprobe go into it.
pub(crate) const IMAGE_TOOLS: &[Tool] = &[
    tool("iptables-nft", "iptables", "loads the packet rules"),
    tool("modprobe", "kmod", "loads kernel modules"),
    tool("ldd", "libc-bin", "finds shared libraries for the image"),
    tool("tar", "tar", "writes the image"),
    tool("gzip", "gzip", "compresses the image"),
    tool("sha256sum", "coreutils", "gives the parts of the image their names"),
];

/// What runs Helm's engine, which comes as a library.
pub(crate) const PYTHON_TOOLS: &[Tool] = &[tool("python3", "python3", "runs Helm's engine")];

/// What the status page is looked at with.
pub(crate) const BROWSER: &[Tool] = &[tool("chromium", "chromium", "shows the status page in the tests")];

/// Installs those of the tools that are missing, saying what and why.
pub(crate) fn prepare(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        println!("installing {}: {} {}", tool.package, tool.program, tool.why);
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    let install = [&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat();
    if apt_get(&install).is_err() {
        // A fresh machine or container image comes without package lists, an old one with outdated ones.
        apt_get(&["update"])?;
        apt_get(&install).with_context(|| format!("install {} by hand", packages.join(" ")))?;
    }
    Ok(())
}

/// Downloads a package into `directory`, without installing it.
pub(crate) fn download(directory: &Path, package: &str) -> Result<()> {
    output(Command::new("apt-get").args(["-qq", "download", package]).current_dir(directory))
        .map(drop)
        .with_context(|| format!("cannot download {package} (are apt's package lists current? `apt-get update`)"))
}

/// Runs apt-get as root, quiet unless it fails.
pub(crate) fn apt_get(arguments: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu machine (no apt-get): install by hand what `apt-get {}` would", arguments.join(" "));
    }
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        println!("root is needed for `apt-get {}`: asking sudo", arguments.join(" "));
        let mut sudo = Command::new("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    let output = command
        .args(["-qq", "-o=Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
    })
}

/// The path of a program. The system directories are looked through too: they are not on everybody's PATH, but the network tools are there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Like [`find`], with an error that names the program.
pub(crate) fn require(program: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("{program} is not installed"))
}

/// The standard output of a program that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Creates a directory and its parents, with an error that names it.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}
