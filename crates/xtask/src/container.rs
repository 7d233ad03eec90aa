//! The agent's container image: the program, iptables and modprobe with their libraries, and nothing else; no shell, no package manager.
//!
//! What goes in is gathered from this machine into one directory, so that a builder of images and the archive that is written without one
//! hold the same. The same program and packages give the same bytes: times are `SOURCE_DATE_EPOCH`, or the last commit's.

mod oci;
mod sbom;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build::{self, target_dir};
use crate::host::{self, create_directory};
use tree::Tree;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Take this program for the agent instead of building it with the profile `dist`
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Write an OCI archive even where podman, buildah or docker work
    #[arg(long)]
    archive: bool,
}

/// What an image says of itself.
struct Labels {
    version: String,
    /// As OCI and Go call it.
    architecture: &'static str,
    /// Seconds since 1970, of everything in the image.
    time: u64,
}

impl Labels {
    fn find() -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: architecture(std::env::consts::ARCH)?,
            time: time()?,
        })
    }

    /// As RFC 3339 has it.
    fn created(&self) -> Result<String> {
        let time = format!("@{}", self.time);
        Ok(host::output(Command::new("date").args(["--utc", "--date", &time, "+%Y-%m-%dT%H:%M:%SZ"]))?.trim().to_owned())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    host::prepare(host::IMAGE_TOOLS)?;
    let labels = Labels::find()?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => build::distributed()?,
    };
    let directory = target_dir().join("image");
    create_directory(&directory)?;

    let mut tree = Tree::new(directory.join("root"))?;
    tree.gather(&program)?;
    for package in sbom::owners(tree.sources())? {
        tree.add_copyright(package.split(':').next().unwrap_or_default())?;
    }
    let contents = serde_json::to_string_pretty(&sbom::document(&labels, &program, tree.sources())?)?;
    let list = directory.join(format!("kube-ipvs-{}-{}.spdx.json", labels.version, labels.architecture));
    std::fs::write(&list, &contents).with_context(|| format!("cannot write {}", list.display()))?;
    tree.write("usr/share/sbom/kube-ipvs.spdx.json", 0o644, contents.as_bytes())?;
    println!("what is in the image: {}", list.display());

    match builder().filter(|_| !arguments.archive) {
        Some(builder) => build_with(builder, &directory, &labels)?,
        None => {
            let archive = directory.join(format!("kube-ipvs-{}-{}.tar", labels.version, labels.architecture));
            let digest = oci::write(tree.root(), &archive, &labels)?;
            let size = std::fs::metadata(&archive).with_context(|| format!("cannot read {}", archive.display()))?.len();
            println!("the image, an OCI archive of {:.1} MB: {}\nits manifest: {digest}", to_megabytes(size), archive.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one digit after the point")]
fn to_megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn architecture(of_rust: &str) -> Result<&'static str> {
    match of_rust {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images are made on x86-64 and arm64 machines, and this is {other}"),
    }
}

fn time() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => host::output(Command::new("git").current_dir(build::root()).args(["log", "-1", "--format=%ct"]))
            .context("set SOURCE_DATE_EPOCH: without it the image has the time of the last commit")?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}, and should be seconds since 1970"))
}

/// The first builder of images that works here: being installed is not enough for one that needs a daemon.
fn builder() -> Option<&'static str> {
    let works = |name: &&str| {
        let status = Command::new(name).arg("info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    ["podman", "buildah", "docker"].into_iter().find(works)
}

fn build_with(builder: &str, context: &Path, labels: &Labels) -> Result<()> {
    let tag = format!("kube-ipvs:{}", labels.version);
    let mut command = Command::new(builder);
    command.args(["build", "--tag", &tag, "--file"]).arg(build::root().join("manifests/image/Containerfile"));
    if builder != "docker" {
        command.arg(format!("--timestamp={}", labels.time));
    }
    let version = format!("VERSION={}", labels.version);
    let status = command
        .args(["--build-arg", &version])
        .arg(context)
        // docker takes the time from here.
        .env("SOURCE_DATE_EPOCH", labels.time.to_string())
        .status()
        .with_context(|| format!("cannot run {builder}"))?;
    if !status.success() {
        bail!("{builder} did not build the image (see above); with --archive it is written without a builder");
    }
    println!("{builder} has the image as {tag}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_oci_wants_them() {
        let labels = Labels { version: "1".to_owned(), architecture: "amd64", time: 951_782_400 };
        assert_eq!(labels.created().unwrap(), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn a_machine_for_which_there_is_no_image_is_named() {
        assert_eq!(architecture("aarch64").unwrap(), "arm64");
        assert!(architecture("riscv64").unwrap_err().to_string().contains("riscv64"));
    }
}
