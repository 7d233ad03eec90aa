//! The files of the image, in a directory as they will be in it.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build;
use crate::host::{self, create_directory};
use crate::image;

/// Where mounts go, so that a runtime need not make them in a root file system that is read-only.
const DIRECTORIES: &[&str] = &["dev", "proc", "sys", "run", "tmp", "lib/modules", "run/kube-ipvs"];

/// iptables' extensions by what their names begin with: those of ebtables and arptables (`libebt_`, `libarpt_`) are for programs that are not in the
/// image. All others are: iptables-save has to read the rules of whoever else has some on the node.
const EXTENSIONS: [&str; 3] = ["libxt_", "libipt_", "libip6t_"];

pub(super) struct Tree {
    root: PathBuf,
    /// The files of this machine that were copied, for the list of contents.
    sources: BTreeSet<PathBuf>,
}

impl Tree {
    /// An empty one in place of what was there.
    pub(super) fn new(root: PathBuf) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        create_directory(&root)?;
        Ok(Self { root, sources: BTreeSet::new() })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The files of this machine that it has copies of, the agent and its licence left out.
    pub(super) const fn sources(&self) -> &BTreeSet<PathBuf> {
        &self.sources
    }

    /// Puts in everything that the agent needs.
    pub(super) fn gather(&mut self, agent: &Path) -> Result<()> {
        for directory in DIRECTORIES {
            create_directory(&self.root.join(directory))?;
        }
        self.write("usr/bin/kube-ipvs", 0o755, &read(agent)?)?;
        self.libraries(agent)?;
        self.write("usr/share/doc/kube-ipvs/LICENSE", 0o644, &read(&build::root().join("LICENSE"))?)?;
        for program in ["xtables-nft-multi", "xtables-legacy-multi", "modprobe"] {
            let path = host::require(program)?;
            self.copy(&path, &format!("usr/sbin/{program}"), 0o755)?;
            self.libraries(&path)?;
        }
        for (name, program) in image::iptables_names() {
            let link = self.root.join("usr/sbin").join(name);
            symlink(program, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        for entry in fs::read_dir(image::extensions()?).context("cannot list iptables' extensions")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if EXTENSIONS.iter().any(|begin| name.starts_with(begin)) {
                self.copy(&path, &path.to_string_lossy(), 0o644)?;
                self.libraries(&path)?;
            }
        }
        self.write("etc/protocols", 0o644, image::PROTOCOLS)
    }

    /// The licences of a package's files, which have to go where the files go.
    pub(super) fn add_copyright(&self, package: &str) -> Result<()> {
        let path = format!("/usr/share/doc/{package}/copyright");
        self.write(&path, 0o644, &read(Path::new(&path))?)
    }

    /// A file of our own, or a text of others.
    pub(super) fn write(&self, place: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.root.join(place.trim_start_matches('/'));
        create_directory(path.parent().unwrap_or(&self.root))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))
    }

    fn copy(&mut self, source: &Path, place: &str, mode: u32) -> Result<()> {
        if self.sources.insert(source.to_path_buf()) { self.write(place, mode, &read(source)?) } else { Ok(()) }
    }

    /// At the paths where the loader looks for them.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        for library in image::needed_libraries(program)? {
            // The loader is a program too.
            self.copy(Path::new(&library), &library, 0o755)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
