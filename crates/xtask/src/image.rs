//! The initramfs: busybox, the network tools with their libraries, and the kernel modules that traffic through IPVS, ipset and iptables needs.
//!
//! The archive is not compressed: QEMU hands it over faster than an emulated processor unpacks it.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::target_dir;
use crate::cpio::Archive;
use crate::host::{self, create_directory};
use crate::kernel::Kernel;

const INIT: &str = include_str!("init.sh");

/// Tools that are taken from this machine, each to /usr/sbin.
const TOOLS: &[&str] = &[
    "conntrack",
    "ip",
    "ipset",
    "ipvsadm",
    "nft",
    "nsenter",
    "setpriv",
    "tmux",
    "unshare",
    "xtables-legacy-multi",
    "xtables-nft-multi",
];

/// The shells: busybox' own would run its applets in place of the tools of the same name (its `ip` knows no namespaces), and so would its nsenter. dash
/// for scripts, bash for people.
const SHELLS: &[&str] = &["dash", "bash"];

/// /etc/protocols, where ipset and iptables look names up.
pub(crate) const PROTOCOLS: &[u8] = b"ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n";

/// Taken along where this machine has them; nothing depends on them.
const CONVENIENCES: &[&str] = &["ss", "strace", "tcpdump"];

/// Modules by the start of their path below `kernel/`; what they depend on comes with them.
const MODULES: &[&str] = &[
    "drivers/net/dummy.",
    "drivers/net/veth.",
    "net/bridge/br_netfilter.",
    "net/bridge/bridge.",
    "net/ipv4/ip_tunnel.",
    "net/ipv4/ipip.",
    "net/ipv4/netfilter/",
    "net/ipv6/ip6_tunnel.",
    "net/ipv6/netfilter/",
    "net/netfilter/",
    "net/netlink/netlink_diag.",
    "net/sctp/",
];

/// What `net/netfilter/` holds for other purposes: application helpers, logging and the flow table.
const WITHOUT: &[&str] = &[
    "_amanda",
    "_ftp",
    "_h323",
    "_irc",
    "_pptp",
    "_sane",
    "_sip",
    "_snmp",
    "_tftp",
    "flow_table",
    "ip_vs_pe_sip",
    "nfnetlink_log",
    "osf",
];

/// The cached archive with everything that does not change from run to run.
pub(crate) fn base(kernel: &Kernel) -> Result<PathBuf> {
    let tools = Tools::find()?;
    let directory = target_dir().join("guest/images");
    create_directory(&directory)?;
    let path = directory.join(format!("{}-{:016x}.cpio", kernel.release, tools.fingerprint()?));
    if path.is_file() {
        return Ok(path);
    }
    let mut archive = Archive::default();
    skeleton(&mut archive, &tools)?;
    modules(&mut archive, kernel)?;
    let unfinished = directory.join(format!("unfinished-{}", std::process::id()));
    fs::write(&unfinished, archive.finish()?).with_context(|| format!("cannot write {}", unfinished.display()))?;
    remove_outdated(&directory, &kernel.release);
    fs::rename(&unfinished, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Removes the images of a kernel that a new one replaces. A QEMU that still boots one has it open.
fn remove_outdated(directory: &Path, release: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(release) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Adds one of our programs without its debug information, and its libraries.
pub(crate) fn program(archive: &mut Archive, program: &Path, place: &str) -> Result<()> {
    let stripped = target_dir().join(format!("guest/stripped-{}", std::process::id()));
    host::output(Command::new(host::require("strip")?).arg("-o").arg(&stripped).arg(program))?;
    let content = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    fs::remove_file(&stripped).with_context(|| format!("cannot remove {}", stripped.display()))?;
    archive.file(place, 0o755, &content)?;
    libraries(archive, program)
}

/// Adds the shared libraries of a program, at the paths where its loader looks for them.
pub(crate) fn libraries(archive: &mut Archive, program: &Path) -> Result<()> {
    for library in needed_libraries(program)? {
        let content = fs::read(&library).with_context(|| format!("cannot read {library}"))?;
        archive.file(&library, 0o755, &content)?;
    }
    Ok(())
}

/// The paths of a program's shared libraries. ldd fails for a static program, which is no error here: it needs none.
pub(crate) fn needed_libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(host::require("ldd")?).arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    Ok(library_paths(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library_paths(listing: &str) -> Vec<String> {
    listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(str::to_owned).collect()
}

/// The directory of iptables' extensions.
pub(crate) fn extensions() -> Result<PathBuf> {
    let directories =
        fs::read_dir("/usr/lib").context("cannot list /usr/lib")?.filter_map(|entry| Some(entry.ok()?.path().join("xtables")));
    let found = directories.chain([PathBuf::from("/usr/lib/xtables")]).find(|directory| directory.is_dir());
    found.context("iptables' extensions (xtables/*.so) are not below /usr/lib")
}

/// The names under which iptables' two programs are called, each with the program. Without a flavour it is nf_tables.
pub(crate) fn iptables_names() -> Vec<(String, &'static str)> {
    let flavours = [("xtables-legacy-multi", "-legacy"), ("xtables-nft-multi", "-nft"), ("xtables-nft-multi", "")];
    let names = |(program, flavour): (&'static str, &'static str)| {
        let names =
            ["iptables", "ip6tables"].into_iter().flat_map(|command| ["", "-save", "-restore"].map(|action| (command, action)));
        names.map(move |(command, action)| (format!("{command}{flavour}{action}"), program))
    };
    flavours.into_iter().flat_map(names).collect()
}

/// The programs of this machine that go into the image.
struct Tools {
    busybox: PathBuf,
    /// All others.
    programs: Vec<PathBuf>,
    /// The directory of iptables' extensions: `libxt_*.so`.
    extensions: PathBuf,
}

impl Tools {
    fn find() -> Result<Self> {
        let mut programs = TOOLS.iter().chain(SHELLS).map(|name| host::require(name)).collect::<Result<Vec<_>>>()?;
        programs.extend(CONVENIENCES.iter().filter_map(|name| host::find(name)));
        Ok(Self { busybox: host::require("busybox")?, programs, extensions: extensions()? })
    }

    /// Changes when the image would.
    fn fingerprint(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (INIT, MODULES, WITHOUT, TOOLS).hash(&mut hasher);
        // This program's own build stands for the code of this file.
        let own = std::env::current_exe().context("cannot find this program's own path")?;
        for path in self.programs.iter().chain([&self.busybox, &self.extensions, &own]) {
            let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path, metadata.size(), metadata.mtime()).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

fn skeleton(archive: &mut Archive, tools: &Tools) -> Result<()> {
    for directory in ["dev", "proc", "sys", "run", "tmp", "root", "etc", "var/run", "var/lib", "usr/local/bin"] {
        archive.directory(directory)?;
    }
    archive.character_device("/dev/console", 5, 1)?;
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.file("/etc/protocols", 0o644, PROTOCOLS)?;
    // Which characters there are: tmux insists on more than ASCII. It comes with libc-bin.
    const CHARACTERS: &str = "/usr/lib/locale/C.utf8/LC_CTYPE";
    archive.file(CHARACTERS, 0o644, &fs::read(CHARACTERS).with_context(|| format!("cannot read {CHARACTERS}"))?)?;
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("/etc/group", 0o644, b"root:x:0:\n")?;
    archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;

    let content = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    for program in &tools.programs {
        let name = program.file_name().and_then(|name| name.to_str()).context("a tool without a name")?;
        archive.file(&format!("/usr/sbin/{name}"), 0o755, &content(program)?)?;
        libraries(archive, program)?;
    }
    for (name, program) in iptables_names() {
        archive.symlink(&format!("/usr/sbin/{name}"), program)?;
    }
    for extension in fs::read_dir(&tools.extensions).context("cannot list iptables' extensions")? {
        let path = extension?.path();
        archive.file(&path.to_string_lossy(), 0o755, &content(&path)?)?;
        libraries(archive, &path)?;
    }
    // Our own programs, which come with each run, need what this one needs.
    libraries(archive, &std::env::current_exe().context("cannot find this program's own path")?)?;

    // Last on the PATH, and never where a real tool is.
    archive.file("/busybox/busybox", 0o755, &content(&tools.busybox)?)?;
    libraries(archive, &tools.busybox)?;
    for applet in host::output(Command::new(&tools.busybox).arg("--list"))?.lines() {
        if ![TOOLS, SHELLS, CONVENIENCES].concat().contains(&applet) {
            archive.symlink(&format!("/busybox/{applet}"), "busybox")?;
        }
    }
    archive.symlink("/bin/sh", "/usr/sbin/dash")?;
    // Where the kernel calls it.
    archive.symlink("/sbin/modprobe", "/busybox/busybox")
}

/// Adds the modules with those they depend on, and the indices cut down to them.
fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let read = |name: &str| {
        fs::read_to_string(kernel.modules.join(name)).with_context(|| format!("cannot read {name} of kernel {}", kernel.release))
    };
    let dependencies = read("modules.dep")?;
    let chosen = chosen_modules(&dependencies);
    let root = format!("/lib/modules/{}", kernel.release);
    for module in &chosen {
        let content = fs::read(kernel.modules.join(module)).with_context(|| format!("cannot read {module}"))?;
        archive.file(&format!("{root}/{module}"), 0o644, &content)?;
    }
    let lines_of_chosen: String = dependencies
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|module| chosen.contains(module)))
        .flat_map(|line| [line, "\n"])
        .collect();
    archive.file(&format!("{root}/modules.dep"), 0o644, lines_of_chosen.as_bytes())?;

    let names: BTreeSet<String> =
        chosen.iter().filter_map(|module| Some(Path::new(module).file_stem()?.to_str()?.replace('-', "_"))).collect();
    let is_kept = |line: &&str| line.split_whitespace().nth(2).is_some_and(|module| names.contains(&module.replace('-', "_")));
    let aliases: String = read("modules.alias")?.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
    archive.file(&format!("{root}/modules.alias"), 0o644, aliases.as_bytes())?;
    archive.file(&format!("{root}/modules.builtin"), 0o644, read("modules.builtin")?.as_bytes())
}

/// The modules to include, as `modules.dep` (lines of `MODULE: DEPENDENCY…`, already transitive) names them.
fn chosen_modules(dependencies: &str) -> BTreeSet<&str> {
    let mut chosen = BTreeSet::new();
    for (module, needed) in dependencies.lines().filter_map(|line| line.split_once(':')) {
        let path = module.trim_start_matches("kernel/");
        if MODULES.iter().any(|start| path.starts_with(start)) && !WITHOUT.iter().any(|part| path.contains(part)) {
            chosen.insert(module);
            chosen.extend(needed.split_whitespace());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_both_kinds_of_lines() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(library_paths(listing), ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn modules_bring_what_they_depend_on() {
        let chosen = chosen_modules(
            "kernel/net/netfilter/ipvs/ip_vs.ko: kernel/net/netfilter/nf_conntrack.ko kernel/lib/libcrc32c.ko\n\
             kernel/net/netfilter/nf_conntrack_ftp.ko: kernel/net/netfilter/nf_conntrack.ko\n\
             kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n",
        );
        assert_eq!(
            chosen.into_iter().collect::<Vec<_>>(),
            ["kernel/lib/libcrc32c.ko", "kernel/net/netfilter/ipvs/ip_vs.ko", "kernel/net/netfilter/nf_conntrack.ko"]
        );
    }
}
