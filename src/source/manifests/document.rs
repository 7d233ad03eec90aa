//! Manifest text → objects, with the line of whatever is wrong.

use super::defaults;
use crate::source::{Object, decoding};
use desired::object::{EndpointSlice, Node, Service};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::path::Path;

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Object>,
    /// Kinds that are left alone, as `apps/v1 Deployment`.
    pub(super) others: Vec<String>,
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    /// Lines of the file before it.
    before: usize,
    format: Format,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Json,
    Yaml,
}

/// What is wrong, and on which line of the file.
#[derive(Debug, PartialEq)]
struct Broken {
    line: usize,
    message: String,
}

/// What every manifest begins with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Option<Vec<T>>,
}

/// Characters of a line that an error quotes.
const MAX_QUOTE: usize = 80;

/// The objects in a file, with the defaults filled in that an API server would have. The error is a sentence with file and line.
pub(super) fn objects(path: &Path, text: &str) -> Result<Parsed, String> {
    decoding::counted(|| parse(path, text))
        .map_err(|broken| format!("{}, line {}: {}", path.display(), broken.line, broken.message))
}

fn parse(path: &Path, text: &str) -> Result<Parsed, Broken> {
    if text.trim().is_empty() {
        // More likely about to be written than meant: who wants the objects gone removes the file.
        return Err(Broken { line: 1, message: "the file is empty; remove it if nothing should be served".to_owned() });
    }
    let documents =
        if path.extension().is_some_and(|extension| extension == "json") { json_documents(text)? } else { yaml_documents(text) };
    let mut parsed = Parsed::default();
    for document in documents {
        document.objects(&mut parsed)?;
    }
    for object in &mut parsed.objects {
        defaults::fill(object);
    }
    Ok(parsed)
}

impl Document<'_> {
    fn objects(&self, parsed: &mut Parsed) -> Result<(), Broken> {
        if self.is_blank() {
            return Ok(());
        }
        let head: Head = self.read()?;
        let (Some(version), Some(kind)) = (head.api_version, head.kind) else {
            return Err(self.broken("the document needs apiVersion and kind, such as `apiVersion: v1` and `kind: Service`"));
        };
        let begin = parsed.objects.len();
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => parsed.objects.push(self.read::<Service>()?.into()),
            ("v1", "Node") => parsed.objects.push(self.read::<Node>()?.into()),
            ("discovery.k8s.io/v1", "EndpointSlice") => parsed.objects.push(self.read::<EndpointSlice>()?.into()),
            ("v1", "ServiceList") => parsed.objects.extend(self.items::<Service>()?.into_iter().map(Object::from)),
            ("v1", "NodeList") => parsed.objects.extend(self.items::<Node>()?.into_iter().map(Object::from)),
            ("discovery.k8s.io/v1", "EndpointSliceList") => {
                parsed.objects.extend(self.items::<EndpointSlice>()?.into_iter().map(Object::from));
            }
            ("v1", "List") => {
                for (line, item) in self.list()? {
                    item_of_list(item, parsed).map_err(|message| Broken { line, message })?;
                }
            }
            _ => parsed.others.push(format!("{version} {kind}")),
        }
        let added = parsed.objects.get(begin..).unwrap_or_default();
        match added.iter().find(|object| object.metadata().name.as_deref().is_none_or(str::is_empty)) {
            Some(object) => Err(self.broken(format!("a {} has no metadata.name", object.kind()))),
            None => Ok(()),
        }
    }

    /// The items of a `List` of anything, each with its line in the file; in JSON the line is that of the list.
    fn list(&self) -> Result<Vec<(usize, Value)>, Broken> {
        Ok(match self.format {
            Format::Json => self.items::<Value>()?.into_iter().map(|item| (self.before + 1, item)).collect(),
            Format::Yaml => {
                let line = |item: &Spanned<Value>| self.before + usize::try_from(item.defined.line()).unwrap_or(1).max(1);
                self.items::<Spanned<Value>>()?.into_iter().map(|item| (line(&item), item.value)).collect()
            }
        })
    }

    fn items<T: DeserializeOwned>(&self) -> Result<Vec<T>, Broken> {
        Ok(self.read::<List<T>>()?.items.unwrap_or_default())
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Broken> {
        match self.format {
            Format::Json => serde_json::from_str(self.text).map_err(|error| {
                let message = error.to_string();
                // Its own position counts from the beginning of the document.
                let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
                Broken { line: self.before + error.line().max(1), message }
            }),
            Format::Yaml => serde_saphyr::from_str_with_options(self.text, yaml_options()).map_err(|error| {
                let line = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(1).max(1));
                let message = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
                let message = message.lines().next().unwrap_or_default();
                let message = message.split(" at line ").next().unwrap_or_default().trim_start_matches("error: ");
                // The parser says what it wanted, the line says what it got.
                let got: String = self.text.lines().nth(line - 1).unwrap_or_default().trim().chars().take(MAX_QUOTE).collect();
                Broken { line: self.before + line, message: format!("{message}: `{got}`") }
            }),
        }
    }

    /// Nothing but comments: what stands before the first `---`, or between two.
    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---" || line == "..." || line.starts_with("--- #")
        })
    }

    fn broken(&self, message: impl Into<String>) -> Broken {
        let blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim_end() == "---";
        Broken { line: self.before + self.text.lines().take_while(blank).count() + 1, message: message.into() }
    }
}

/// Each item of a `List` says itself what it is. The error is a sentence.
fn item_of_list(item: Value, parsed: &mut Parsed) -> Result<(), String> {
    let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    if version.is_empty() || kind.is_empty() {
        return Err("this item of the List needs apiVersion and kind".to_owned());
    }
    let wrong = |error: serde_json::Error| format!("{kind} {}: {error}", if name.is_empty() { "without a name" } else { &name });
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => parsed.objects.push(serde_json::from_value::<Service>(item).map_err(wrong)?.into()),
        ("v1", "Node") => parsed.objects.push(serde_json::from_value::<Node>(item).map_err(wrong)?.into()),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            parsed.objects.push(serde_json::from_value::<EndpointSlice>(item).map_err(wrong)?.into());
        }
        _ => parsed.others.push(format!("{version} {kind}")),
    }
    Ok(())
}

/// Cuts at lines that begin with `---`: in YAML these end a document wherever they stand, inside quotes and block scalars too.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut begin, mut first_line) = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && offset > begin {
            documents.push(Document {
                text: text.get(begin..offset).unwrap_or_default(),
                before: first_line,
                format: Format::Yaml,
            });
            (begin, first_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push(Document { text: text.get(begin..).unwrap_or_default(), before: first_line, format: Format::Yaml });
    documents
}

/// JSON documents may follow each other in one file.
fn json_documents(text: &str) -> Result<Vec<Document<'_>>, Broken> {
    let mut documents = Vec::new();
    let mut begin = 0;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    while let Some(value) = values.next() {
        let end = values.byte_offset();
        let before = text.get(..begin).unwrap_or_default().matches('\n').count();
        if let Err(error) = value {
            let message = error.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
            return Err(Broken { line: error.line().max(1), message });
        }
        documents.push(Document { text: text.get(begin..end).unwrap_or_default(), before, format: Format::Json });
        begin = end;
    }
    Ok(documents)
}

/// The parser's own limits are for small configurations. Here the size of a file bounds what it can hold; what aliases may multiply stays bounded by default.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 64 << 20, max_nodes: 64 << 20 },
        with_snippet: false,
    }
}
