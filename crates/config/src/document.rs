//! A file as a whole: which documents it has.

use std::fmt;

use crate::problem::Problem;
use crate::tree::{self, Entry, Node, Value};
use crate::{kube_proxy, own};

/// The largest file that is read, in bytes: what a ConfigMap can hold.
const MAX_SIZE: usize = 1 << 20;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// In the order of the file, those of the `KubeProxyConfiguration` first. A flag is there at most once for each document.
    pub settings: Vec<Setting>,
    /// What is strange and does no harm.
    pub remarks: Vec<Problem>,
    /// The fields that have a value and no effect, each with the reason.
    pub idle: Vec<(&'static str, &'static str)>,
}

/// One flag, as a file gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Which document says so.
    pub document: Document,
    /// On which line.
    pub line: usize,
    /// In which field.
    pub field: String,
    /// The name of the flag, without dashes.
    pub flag: String,
    /// Its values, in the words of the command line. None for a list that is empty on purpose.
    pub values: Vec<String>,
}

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Document {
    /// kube-proxy's own.
    KubeProxy,
    /// What goes beyond that, or overrides it.
    KubeIpvs,
}

impl Document {
    const ALL: [Self; 2] = [Self::KubeProxy, Self::KubeIpvs];

    /// Its `apiVersion`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::KubeProxy => "kubeproxy.config.k8s.io/v1alpha1",
            Self::KubeIpvs => "kube-ipvs.io/v1alpha1",
        }
    }

    /// Its `kind`.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::KubeProxy => "KubeProxyConfiguration",
            Self::KubeIpvs => "KubeIPVSConfiguration",
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// Reads a file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the lines; never nothing.
pub fn read(bytes: &[u8]) -> Result<Configuration, Vec<Problem>> {
    let (configuration, problems) = read_what_there_is(bytes);
    if problems.is_empty() { Ok(configuration) } else { Err(problems) }
}

/// The same, with what can be read nevertheless beside what is wrong: for whoever has more to find out about it.
#[must_use]
pub fn read_what_there_is(bytes: &[u8]) -> (Configuration, Vec<Problem>) {
    match documents(bytes) {
        Ok(Found { mut configuration, mut problems }) => {
            configuration.settings.sort_by_key(|setting| setting.document);
            problems.sort();
            (configuration, problems)
        }
        Err(problem) => (Configuration::default(), vec![problem]),
    }
}

fn documents(bytes: &[u8]) -> Result<Found, Problem> {
    let whole = |line, message: &str| Problem::new(line, "", message);
    if bytes.len() > MAX_SIZE {
        return Err(whole(1, "the file is larger than 1 MiB, which no configuration is"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        whole(line, "this is not UTF-8 text")
    })?;
    let documents = tree::documents(text)?;
    if documents.is_empty() {
        return Err(whole(1, "the file has no document; leave out --config to run without one"));
    }
    let mut found = Found::default();
    let mut seen = Vec::new();
    for node in &documents {
        match recognise(node) {
            Ok((document, _)) if seen.contains(&document) => {
                found.problems.push(Problem::new(
                    node.line,
                    "kind",
                    format!("there is a {document} before this one; put them together"),
                ));
            }
            Ok((document, entries)) => {
                seen.push(document);
                match document {
                    Document::KubeProxy => kube_proxy::read(node.line, entries, &mut found),
                    Document::KubeIpvs => own::read(entries, &mut found),
                }
            }
            Err(problem) => found.problems.push(problem),
        }
    }
    Ok(found)
}

/// What has been found so far.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) configuration: Configuration,
    pub(crate) problems: Vec<Problem>,
}

fn recognise(node: &Node) -> Result<(Document, &[Entry]), Problem> {
    let choices =
        || Document::ALL.map(|document| format!("`apiVersion: {}` with `kind: {document}`", document.api_version())).join(" or ");
    let Value::Map(entries) = &node.value else {
        return Err(Problem::new(
            node.line,
            "",
            format!("the document is {}, not fields; it begins with {}", node.value.describe(), choices()),
        ));
    };
    let text = |key: &str| match entries.iter().rev().find(|entry| entry.key == key).map(|entry| (entry.line, &entry.node.value)) {
        Some((line, Value::Text(text))) => Some((line, text.as_str())),
        _ => None,
    };
    let (Some((line, version)), Some((_, kind))) = (text("apiVersion"), text("kind")) else {
        return Err(Problem::new(node.line, "", format!("the document needs apiVersion and kind: {}", choices())));
    };
    let known = Document::ALL.into_iter().find(|document| (document.api_version(), document.kind()) == (version, kind));
    known
        .map(|document| (document, entries.as_slice()))
        .ok_or_else(|| Problem::new(line, "apiVersion", format!("is {version:?} of kind {kind:?}; expected {}", choices())))
}
