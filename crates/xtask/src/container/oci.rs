//! An OCI image in one file, as <https://github.com/opencontainers/image-spec> has it: a tar of blobs that are named by what is in them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Labels;
use crate::host::{self, create_directory};

/// What the image is built by elsewhere.
const CONTAINERFILE: &str = include_str!("../../../../manifests/image/Containerfile");

/// Writes the image of one layer that holds what is below `root`; the digest of its manifest.
pub(super) fn write(root: &Path, archive: &Path, labels: &Labels) -> Result<String> {
    let layout = archive.with_extension("oci");
    if layout.exists() {
        fs::remove_dir_all(&layout).with_context(|| format!("cannot remove {}", layout.display()))?;
    }
    create_directory(&layout.join("blobs/sha256"))?;

    let tarball = layout.join("layer.tar");
    tar(root, &tarball, labels.time)?;
    let uncompressed = digest(&tarball)?;
    // Without the name and time that gzip would put in.
    host::output(Command::new("gzip").args(["--no-name", "--best"]).arg(&tarball))?;
    let layer = add(&layout, &layout.join("layer.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip")?;

    let created = labels.created()?;
    let config = json!({
        "created": created,
        "architecture": labels.architecture,
        "os": "linux",
        "config": {
            "Env": CONTAINERFILE.lines().filter_map(|line| line.strip_prefix("ENV ")).collect::<Vec<_>>(),
            "Entrypoint": ["/usr/bin/kube-ipvs"],
            "Cmd": ["run"],
            "Labels": {
                "org.opencontainers.image.title": "kube-ipvs",
                "org.opencontainers.image.version": labels.version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [uncompressed]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    });
    let config = add_document(&layout, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = add_document(&layout, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    let digest = manifest.get("digest").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(fields) = manifest.as_object_mut() {
        fields.insert("platform".to_owned(), json!({"architecture": labels.architecture, "os": "linux"}));
        fields.insert("annotations".to_owned(), json!({"org.opencontainers.image.ref.name": labels.version}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]});
    write_json(&layout.join("index.json"), &index)?;
    write_json(&layout.join("oci-layout"), &json!({"imageLayoutVersion": "1.0.0"}))?;
    tar(&layout, archive, labels.time)?;
    fs::remove_dir_all(&layout).with_context(|| format!("cannot remove {}", layout.display()))?;
    Ok(digest)
}

/// A tar that depends on nothing but names, modes and contents: sorted, all of root's, all of one time.
fn tar(directory: &Path, archive: &Path, time: u64) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    let unfinished = archive.with_extension("unfinished");
    host::output(
        Command::new("tar")
            .args([
                "--create",
                "--format=ustar",
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mode=u+rwX,go+rX,go-w",
            ])
            .arg(format!("--mtime=@{time}"))
            .arg("--file")
            .arg(&unfinished)
            .arg("--directory")
            .arg(directory)
            .arg("--")
            .args(names),
    )?;
    fs::rename(&unfinished, archive).with_context(|| format!("cannot write {}", archive.display()))
}

fn add_document(layout: &Path, document: &Value, media_type: &str) -> Result<Value> {
    let path = layout.join("document");
    write_json(&path, document)?;
    add(layout, &path, media_type)
}

/// Moves a file among the blobs; its descriptor.
fn add(layout: &Path, file: &Path, media_type: &str) -> Result<Value> {
    let digest = digest(file)?;
    let size = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    let blob = layout.join("blobs").join(digest.replace(':', "/"));
    fs::rename(file, &blob).with_context(|| format!("cannot write {}", blob.display()))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
}

fn write_json(path: &Path, document: &Value) -> Result<()> {
    fs::write(path, serde_json::to_vec(document)?).with_context(|| format!("cannot write {}", path.display()))
}

/// `sha256:` and the hash in hexadecimal.
pub(super) fn digest(file: &Path) -> Result<String> {
    // As its standard input: of a name with a backslash in it, sha256sum would print another line.
    let content = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let printed = host::output(Command::new("sha256sum").stdin(Stdio::from(content)))?;
    match printed.split_whitespace().next() {
        Some(hash) if hash.len() == 64 => Ok(format!("sha256:{hash}")),
        _ => bail!("sha256sum printed no hash: {printed}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::build::target_dir;

    fn labels() -> Labels {
        Labels { version: "1.2.3".to_owned(), architecture: "arm64", time: 1_000_000_000 }
    }

    fn directory(name: &str) -> PathBuf {
        let directory = target_dir().join(format!("test-oci-{name}-{}", std::process::id()));
        create_directory(&directory).unwrap();
        directory
    }

    /// Files in the order given, so that two trees with the same content differ in what a file system may make of that.
    fn small_tree(root: &Path, names: [&str; 2], mode: u32) {
        for name in names {
            let path = root.join("usr/bin").join(name);
            create_directory(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("I am {name}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("a", root.join("usr/bin/link")).unwrap();
    }

    fn unpack(archive: &Path) -> PathBuf {
        let unpacked = archive.with_extension("unpacked");
        create_directory(&unpacked).unwrap();
        host::output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked)).unwrap();
        unpacked
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The blob that a descriptor names, which must be as large as it says and have the digest that it says.
    fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
        let named = descriptor["digest"].as_str().unwrap();
        let path = layout.join("blobs").join(named.replace(':', "/"));
        assert_eq!(digest(&path).unwrap(), named);
        assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        let directory = directory("digest");
        fs::write(directory.join("abc"), "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest(&directory.join("abc")).unwrap(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn each_part_of_an_image_names_the_next_by_its_digest() {
        let directory = directory("parts");
        small_tree(&directory.join("root"), ["a", "b"], 0o755);
        let archive = directory.join("image.tar");
        let named = write(&directory.join("root"), &archive, &labels()).unwrap();

        let layout = unpack(&archive);
        assert_eq!(json(&layout.join("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
        let index = json(&layout.join("index.json"));
        let descriptor = &index["manifests"][0];
        assert_eq!((&descriptor["digest"], &descriptor["platform"]["architecture"]), (&named.into(), &"arm64".into()));
        let manifest = json(&blob(&layout, descriptor));
        let config = json(&blob(&layout, &manifest["config"]));
        assert_eq!((&config["architecture"], &config["created"]), (&"arm64".into(), &"2001-09-09T01:46:40Z".into()));

        let layer = blob(&layout, &manifest["layers"][0]);
        let tarball = directory.join("layer.tar");
        let content = Command::new("gzip").arg("-dc").stdin(File::open(layer).unwrap()).output().unwrap();
        assert!(content.status.success());
        fs::write(&tarball, content.stdout).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&tarball).unwrap()]));
        let listing = host::output(Command::new("tar").args(["--utc", "--numeric-owner", "-tvf"]).arg(&tarball)).unwrap();
        let lines: Vec<_> = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert!(lines.iter().all(|fields| fields[1] == "0/0" && fields[3..5] == ["2001-09-09", "01:46"]), "{listing}");
        let names: Vec<_> = lines.iter().map(|fields| fields[5]).collect();
        assert_eq!(names, ["usr/", "usr/bin/", "usr/bin/a", "usr/bin/b", "usr/bin/link"]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_same_files_make_the_same_archive_however_they_came_there() {
        let directory = directory("same");
        let roots = [directory.join("first"), directory.join("second")];
        small_tree(&roots[0], ["a", "b"], 0o755);
        small_tree(&roots[1], ["b", "a"], 0o775);
        let archives = [directory.join("first.tar"), directory.join("second.tar")];
        let digests = [0, 1].map(|which| write(&roots[which], &archives[which], &labels()).unwrap());
        assert_eq!(digests[0], digests[1]);
        assert_eq!(digest(&archives[0]).unwrap(), digest(&archives[1]).unwrap());

        fs::write(roots[1].join("usr/bin/a"), "I am another\n").unwrap();
        assert_ne!(write(&roots[1], &archives[1], &labels()).unwrap(), digests[0]);
        fs::remove_dir_all(directory).unwrap();
    }
}
