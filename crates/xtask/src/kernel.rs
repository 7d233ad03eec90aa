//! Kernels for the guest: distribution packages, downloaded and unpacked below the target directory, never installed.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use crate::build::target_dir;
use crate::host::{self, create_directory};

/// The series of the base kernel: the oldest that kube-ipvs is tested on.
const BASE_SERIES: &str = "6.1";

/// Of `kernel/`, what is unpacked: everything the image could take modules from. The rest of a package is drivers and file systems.
const MODULE_DIRECTORIES: &[&str] = &["net", "lib", "crypto", "arch", "drivers/net/dummy.", "drivers/net/veth."];

/// Which kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The base series, or where the distribution lacks it, its oldest kernel.
    Base,
    Newest,
    /// The newest of a series, such as `6.12`.
    Series(String),
}

impl FromStr for Wanted {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "base" => Self::Base,
            "newest" => Self::Newest,
            series => Self::Series(series.to_owned()),
        })
    }
}

impl Wanted {
    fn name(&self) -> &str {
        match self {
            Self::Base => "base",
            Self::Newest => "newest",
            Self::Series(series) => series,
        }
    }

    /// The choice among releases that are sorted from oldest to newest.
    fn choose<'a>(&self, releases: &'a [Release]) -> Option<&'a Release> {
        let of_series = |series: &str| releases.iter().rev().find(|release| release.is_in(series));
        match self {
            Self::Base => of_series(BASE_SERIES).or(releases.first()),
            Self::Newest => releases.last(),
            Self::Series(series) => of_series(series),
        }
    }
}

/// A kernel that is unpacked and ready to boot.
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, with `modules.dep` and `modules.alias`; the modules are not compressed.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The wanted kernel: from an earlier download, else from the distribution.
    pub(crate) fn find(wanted: &Wanted) -> Result<Self> {
        let directory = target_dir().join("guest/kernels");
        create_directory(&directory)?;
        // Two runs at once must not unpack into each other.
        let lock = File::create(directory.join("lock")).context("cannot create the lock file of the kernels")?;
        lock.lock().context("cannot lock the kernels")?;

        let choice = directory.join(wanted.name());
        if let Some(kernel) = fs::read_to_string(&choice).ok().and_then(|release| Self::unpacked(&directory, release.trim())) {
            return Ok(kernel);
        }
        if host::is_root() {
            // The lists that a machine's image came with may be of a year ago, and so would the newest kernel be.
            host::apt_get(&["update"]).unwrap_or_else(|error| println!("{error:#}\nchoosing among the kernels that are known"));
        }
        let name = match obtain(&directory, wanted) {
            Ok(name) => name,
            Err(error) => {
                // A fresh machine has no package lists; with old ones, apt asks for versions that the archive has replaced.
                println!("{error:#}\nreading apt's package lists and trying again");
                host::apt_get(&["update"])?;
                obtain(&directory, wanted)?
            }
        };
        fs::write(&choice, &name).with_context(|| format!("cannot write {}", choice.display()))?;
        Self::unpacked(&directory, &name).with_context(|| format!("the package of kernel {name} holds no bootable image"))
    }

    fn unpacked(directory: &Path, release: &str) -> Option<Self> {
        let root = directory.join(format!("linux-{release}"));
        let image = root.join("vmlinuz");
        let modules = root.join("lib/modules").join(release);
        (!release.is_empty() && image.is_file() && modules.join("modules.dep").is_file()).then(|| Self {
            release: release.to_owned(),
            image,
            modules,
        })
    }
}

/// Chooses among what the distribution offers, and downloads that unless it is here; its release.
fn obtain(directory: &Path, wanted: &Wanted) -> Result<String> {
    let releases = available()?;
    let release = wanted.choose(&releases).with_context(|| {
        let known: Vec<&str> = releases.iter().map(|release| release.name.as_str()).collect();
        format!("apt has no kernel {} for the guest; it has: {}", wanted.name(), known.join(", "))
    })?;
    if Kernel::unpacked(directory, &release.name).is_none() {
        download(directory, release)?;
    }
    Ok(release.name.clone())
}

/// A kernel that the distribution offers.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    /// The numbers in the name, by which releases are sorted: 6.1.0-56 is newer than 6.1.0-9.
    numbers: Vec<u32>,
    name: String,
}

impl Release {
    fn new(name: &str) -> Self {
        let numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
        Self { numbers, name: name.to_owned() }
    }

    fn is_in(&self, series: &str) -> bool {
        self.name.strip_prefix(series).is_some_and(|rest| rest.starts_with(['.', '-']))
    }
}

/// The kernels that apt can download, from oldest to newest: Debian's cloud flavour, Ubuntu's generic one.
fn available() -> Result<Vec<Release>> {
    host::require("apt-cache").context("guest kernels come from Debian or Ubuntu packages")?;
    let listing = host::output(Command::new("apt-cache").args(["search", "--names-only", "^linux-image-[0-9]"]))?;
    Ok(releases_in(&listing))
}

fn releases_in(listing: &str) -> Vec<Release> {
    let flavours: &[&str] =
        if cfg!(target_arch = "aarch64") { &["-cloud-arm64", "-generic"] } else { &["-cloud-amd64", "-generic"] };
    let mut releases: Vec<Release> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("linux-image-"))
        .filter(|name| flavours.iter().any(|flavour| name.ends_with(flavour)))
        // A meta package ("6.12-cloud-amd64") has no third number: it depends on a real one and holds nothing.
        .filter(|name| name.split('-').next().is_some_and(|version| version.split('.').count() >= 3))
        .map(Release::new)
        .collect();
    releases.sort();
    releases
}

/// Downloads the packages of a kernel and lays out what a guest needs of them.
fn download(directory: &Path, release: &Release) -> Result<()> {
    let name = release.name.as_str();
    println!("downloading kernel {name} for the guest");
    let packages = directory.join(format!("packages-{name}"));
    let scratch = directory.join(format!("unpacking-{name}"));
    for path in [&packages, &scratch] {
        let _ = fs::remove_dir_all(path);
        create_directory(path)?;
    }
    host::download(&packages, &format!("linux-image-{name}"))?;
    if name.ends_with("-generic") {
        // Ubuntu keeps the modules apart, and the rarer ones (SCTP among them) in a second package that not every release has.
        host::download(&packages, &format!("linux-modules-{name}"))?;
        if let Err(error) = host::download(&packages, &format!("linux-modules-extra-{name}")) {
            println!("  without the extra modules: {error:#}");
        }
    }
    for package in fs::read_dir(&packages).context("cannot list the downloaded packages")? {
        host::output(Command::new("dpkg").arg("-x").arg(package?.path()).arg(&scratch))?;
    }

    let root = directory.join(format!("linux-{name}"));
    let _ = fs::remove_dir_all(&root);
    create_directory(&root)?;
    let unpacked = ["lib/modules", "usr/lib/modules"]
        .map(|place| scratch.join(place).join(name))
        .into_iter()
        .find(|place| place.join("kernel").is_dir());
    let unpacked = unpacked.with_context(|| format!("the package of kernel {name} holds no modules"))?;
    let modules = root.join("lib/modules").join(name);
    keep_modules(&unpacked, &modules)?;
    host::output(Command::new(host::require("busybox")?).args(["depmod", "-b"]).arg(&root).arg(name))
        .context("cannot index the guest kernel's modules")?;
    fs::rename(scratch.join(format!("boot/vmlinuz-{name}")), root.join("vmlinuz"))
        .with_context(|| format!("the package of kernel {name} holds no vmlinuz"))?;
    for path in [&packages, &scratch] {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Moves the modules that an image could need, uncompressed: busybox reads no zstd, and the guest would unpack them at each boot.
fn keep_modules(from: &Path, to: &Path) -> Result<()> {
    create_directory(to)?;
    for index in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if from.join(index).is_file() {
            fs::rename(from.join(index), to.join(index)).with_context(|| format!("cannot keep {index}"))?;
        }
    }
    let mut kept = Vec::new();
    let mut pending = vec![from.join("kernel")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let path = entry?.path();
            let relative = path.strip_prefix(from.join("kernel")).context("a module outside of its directory")?.to_path_buf();
            if path.is_dir() {
                pending.push(path);
            } else if MODULE_DIRECTORIES.iter().any(|kept| relative.to_string_lossy().starts_with(kept)) {
                let place = to.join("kernel").join(&relative);
                create_directory(place.parent().context("a module without a directory")?)?;
                fs::rename(&path, &place).with_context(|| format!("cannot keep {}", relative.display()))?;
                kept.push(place);
            }
        }
    }
    for (suffix, program) in [("xz", "xz"), ("zst", "zstd")] {
        let compressed: Vec<_> = kept.iter().filter(|path| path.extension().is_some_and(|extension| extension == suffix)).collect();
        for some in compressed.chunks(500) {
            host::output(Command::new(host::require(program)?).args(["-d", "-q"]).args(some))?;
        }
        if program == "zstd" {
            for path in compressed {
                fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    if kept.is_empty() {
        bail!("no modules in {}", from.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.1.0-56-cloud-amd64-dbg - Debug symbols for linux-image-6.1.0-56-cloud-amd64
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
";

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn kernels_are_chosen_by_number_not_by_text() {
        let releases = releases_in(LISTING);
        let choose = |wanted: &str| wanted.parse::<Wanted>().unwrap().choose(&releases).map(|release| release.name.as_str());
        assert_eq!(releases.len(), 3, "meta, unsigned and debug packages are no kernels: {releases:?}");
        assert_eq!(choose("base"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(choose("newest"), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(choose("6.1"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(choose("6.12"), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(choose("5.10"), None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn without_the_base_series_the_oldest_kernel_is_the_base() {
        let releases = releases_in("linux-image-6.17.0-5-generic - x\nlinux-image-6.8.0-31-generic - x\n");
        assert_eq!(Wanted::Base.choose(&releases).map(|release| release.name.as_str()), Some("6.8.0-31-generic"));
    }
}
