//! What the image is made of, as SPDX 2.3 has it: the crates that are linked into the agent, and the Debian packages that files were taken from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Labels, oci};
use crate::build;
use crate::host;

/// The identifier of the agent itself in the document.
const AGENT: &str = "SPDXRef-kube-ipvs";

/// The document about an image with this program and copies of `files`.
pub(super) fn document(labels: &Labels, program: &Path, files: &BTreeSet<PathBuf>) -> Result<Value> {
    let mut tree = build::cargo(&[
        "tree",
        "--locked",
        "--package",
        "kube-ipvs",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
    ]);
    let tree = host::output(&mut tree)?;
    let lock = build::root().join("Cargo.lock");
    let lock = std::fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;

    let checksums = checksums(&lock);
    let crates = linked_crates(&tree).into_iter().map(|linked| linked.describe(&checksums));
    let debian = debian_packages(files)?;
    let agent = json!({
        "SPDXID": AGENT,
        "name": "kube-ipvs",
        "versionInfo": labels.version,
        "licenseDeclared": "Apache-2.0",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
    });
    let hash = oci::digest(program)?.replace(':', "-");
    assemble(labels, &hash, agent, crates.chain(debian).collect())
}

fn assemble(labels: &Labels, hash: &str, agent: Value, others: Vec<Value>) -> Result<Value> {
    let contained = others
        .iter()
        .filter_map(|package| package.get("SPDXID"))
        .map(|id| json!({"spdxElementId": AGENT, "relationshipType": "DEPENDS_ON", "relatedSpdxElement": id}));
    let described = json!({"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": AGENT});
    let relationships: Vec<_> = [described].into_iter().chain(contained).collect();
    let packages: Vec<_> = [agent].into_iter().chain(others).collect();
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("kube-ipvs-{}-{}", labels.version, labels.architecture),
        // It has to be unique, and the same for the same image.
        "documentNamespace": format!("https://spdx.org/spdxdocs/kube-ipvs-{}-{}-{hash}", labels.version, labels.architecture),
        "creationInfo": {"created": labels.created()?, "creators": [format!("Tool: cargo-xtask-image-{}", labels.version)]},
        "packages": packages,
        "relationships": relationships,
    }))
}

/// A crate that is linked into the agent, or whose macros are.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Linked<'a> {
    name: &'a str,
    version: &'a str,
    licence: &'a str,
}

/// Those in what cargo tree prints, the agent itself left out: lines of `NAME vVERSION (proc-macro)|LICENCE (*)`, where a star says that the line was there
/// before.
fn linked_crates(tree: &str) -> BTreeSet<Linked<'_>> {
    let crates = tree.lines().filter_map(|line| {
        let (package, licence) = line.split_once('|')?;
        let (name, version) = package.split_once(" v")?;
        let version = version.split(' ').next()?;
        Some(Linked { name, version, licence: licence.trim_end_matches(" (*)") })
    });
    crates.filter(|linked| linked.name != "kube-ipvs").collect()
}

impl Linked<'_> {
    fn describe(&self, checksums: &BTreeMap<(&str, &str), &str>) -> Value {
        let Self { name, version, licence } = *self;
        let mut described = json!({
            "SPDXID": identifier("crate", name, version),
            "name": name,
            "versionInfo": version,
            "licenseDeclared": expression(licence),
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
        });
        // One of this workspace has no checksum, and is no package of a registry.
        if let (Some(checksum), Some(fields)) = (checksums.get(&(name, version)), described.as_object_mut()) {
            fields.insert("checksums".to_owned(), json!([{"algorithm": "SHA256", "checksumValue": checksum}]));
            fields.insert("externalRefs".to_owned(), package_url(&format!("pkg:cargo/{name}@{version}")));
        }
        described
    }
}

/// Before there were expressions, alternatives were written with a slash.
fn expression(declared: &str) -> String {
    if declared.is_empty() { "NOASSERTION".to_owned() } else { declared.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ") }
}

/// By name and version, from Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let field = |name| package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'));
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    packages.collect()
}

/// The names of the packages of Debian or Ubuntu that `files` come from, some with an architecture (`libc6:amd64`).
pub(super) fn owners(files: &BTreeSet<PathBuf>) -> Result<BTreeSet<String>> {
    files.iter().map(|file| owner(file)).collect()
}

fn debian_packages(files: &BTreeSet<PathBuf>) -> Result<Vec<Value>> {
    let names = owners(files)?;
    let format = "${Package} ${Version} ${Architecture}";
    names.iter().map(|name| Ok(of_debian(&host::output(Command::new("dpkg-query").args(["-W", "-f", format, name]))?))).collect()
}

fn of_debian(shown: &str) -> Value {
    let mut words = shown.split_whitespace();
    let [name, version, architecture] = [words.next(), words.next(), words.next()].map(Option::unwrap_or_default);
    json!({
        "SPDXID": identifier("deb", name, version),
        "name": name,
        "versionInfo": version,
        // Said in the package's file of copyrights, and not in a way for programs.
        "licenseDeclared": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "externalRefs": package_url(&format!("pkg:deb/{name}@{version}?arch={architecture}")),
    })
}

/// The package that has a file, which may be known to dpkg by its path through `/lib` or the one through `/usr/lib`, which are the same directory.
fn owner(file: &Path) -> Result<String> {
    let real = file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?;
    let without_usr = |path: &Path| path.strip_prefix("/usr").ok().map(|rest| Path::new("/").join(rest));
    let candidates = [Some(file.to_path_buf()), without_usr(file), without_usr(&real), Some(real.clone())];
    let found = candidates.into_iter().flatten().find_map(|path| {
        let printed = host::output(Command::new("dpkg-query").arg("-S").arg(path)).ok()?;
        Some(printed.split_once(": ")?.0.split(", ").next()?.to_owned())
    });
    found.with_context(|| {
        format!("{} is in no package: install it with apt, so that the image's contents can be named", file.display())
    })
}

fn package_url(locator: &str) -> Value {
    json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}])
}

/// SPDX allows letters, digits, dots and dashes.
fn identifier(kind: &str, name: &str, version: &str) -> String {
    let allowed = |character: char| if character.is_ascii_alphanumeric() || character == '.' { character } else { '-' };
    format!("SPDXRef-{kind}-{}", format!("{name}-{version}").chars().map(allowed).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_crates_are_read_from_cargos_tree_once_each() {
        let tree = "kube-ipvs v0.1.0 (/src)|Apache-2.0\na v1.0.0|MIT/Apache-2.0\nmacros v2.1.0-rc.1 (proc-macro)|MIT OR Apache-2.0\n\
                    own v0.1.0 (/src/crates/own)|Apache-2.0\na v1.0.0|MIT/Apache-2.0 (*)\n";
        let crates: Vec<_> = linked_crates(tree).into_iter().map(|it| (it.name, it.version, it.licence)).collect();
        assert_eq!(
            crates,
            [("a", "1.0.0", "MIT/Apache-2.0"), ("macros", "2.1.0-rc.1", "MIT OR Apache-2.0"), ("own", "0.1.0", "Apache-2.0")]
        );
    }

    #[test]
    fn a_crate_has_its_licence_and_the_checksum_of_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\
                    source = \"registry\"\nchecksum = \"00ff\"\ndependencies = [\n \"own\",\n]\n";
        let checksums = checksums(lock);
        let described = Linked { name: "a", version: "1.0.0", licence: "MIT/Apache-2.0" }.describe(&checksums);
        assert_eq!(described["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(described["checksums"][0]["checksumValue"], "00ff");
        assert_eq!(described["externalRefs"][0]["referenceLocator"], "pkg:cargo/a@1.0.0");
        let own = Linked { name: "own", version: "0.1.0", licence: "" }.describe(&checksums);
        assert_eq!((own.get("checksums"), &own["licenseDeclared"]), (None, &"NOASSERTION".into()));
    }

    #[test]
    fn a_document_describes_the_agent_and_names_each_package_once() {
        let labels = Labels { version: "1.2.3".to_owned(), architecture: "amd64", time: 0 };
        let packages = vec![of_debian("libc6 2.36-9+deb12u10 amd64"), of_debian("iptables 1.8.9-2 amd64")];
        let document = assemble(&labels, "sha256-00", json!({"SPDXID": AGENT}), packages).unwrap();
        assert_eq!(document["creationInfo"]["created"], "1970-01-01T00:00:00Z");
        assert_eq!(document["packages"][1]["SPDXID"], "SPDXRef-deb-libc6-2.36-9-deb12u10");
        let related: Vec<_> = document["relationships"].as_array().unwrap().iter().map(|it| &it["relatedSpdxElement"]).collect();
        let named: Vec<_> = document["packages"].as_array().unwrap().iter().map(|it| &it["SPDXID"]).collect();
        assert_eq!(related, named);
    }
}
