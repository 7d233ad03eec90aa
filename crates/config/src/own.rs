//! The `KubeIPVSConfiguration`: its fields are flags, in the spelling of Kubernetes' fields.

use std::collections::BTreeMap;

use crate::document::{Document, Found, Setting};
use crate::problem::Problem;
use crate::tree::{Entry, Node, Value};

/// The flag that a field is about: `drainTimeout` is `drain-timeout`. Whether there is such a flag is another question.
#[must_use]
pub fn flag_of(field: &str) -> String {
    let mut flag = String::with_capacity(field.len() + 4);
    for letter in field.chars() {
        if letter.is_ascii_uppercase() {
            flag.push('-');
        }
        flag.push(letter.to_ascii_lowercase());
    }
    flag
}

/// The field that is about a flag.
///
/// ```
/// assert_eq!(config::field_of("ipvs-tcp-timeout"), "ipvsTcpTimeout");
/// assert_eq!(config::flag_of("ipvsTcpTimeout"), "ipvs-tcp-timeout");
/// ```
#[must_use]
pub fn field_of(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut field = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        field.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        field.push_str(letters.as_str());
    }
    field
}

pub(crate) fn read(entries: &[Entry], found: &mut Found) {
    let mut settings: BTreeMap<&str, Setting> = BTreeMap::new();
    for Entry { line, key, node } in entries.iter().filter(|entry| !matches!(entry.key.as_str(), "apiVersion" | "kind")) {
        if let Some(before) = settings.get(key.as_str()) {
            found.problems.push(Problem::new(*line, key, format!("is there twice: line {} has it too", before.line)));
            continue;
        }
        match values(node) {
            Ok(Some(values)) => {
                let (document, flag) = (Document::KubeIpvs, flag_of(key));
                settings.insert(key, Setting { document, line: *line, field: key.clone(), flag, values });
            }
            Ok(None) => {}
            Err(node) => {
                let message = format!("is {}; expected a value, or a list of values", node.value.describe());
                found.problems.push(Problem::new(node.line, key, message));
            }
        }
    }
    let mut settings: Vec<_> = settings.into_values().collect();
    settings.sort_by_key(|setting| setting.line);
    found.configuration.settings.extend(settings);
}

fn values(node: &Node) -> Result<Option<Vec<String>>, &Node> {
    match &node.value {
        Value::Null => Ok(None),
        Value::List(items) => items.iter().map(|item| word(item).ok_or(item)).collect::<Result<_, _>>().map(Some),
        _ => word(node).map(|word| Some(vec![word])).ok_or(node),
    }
}

/// A value in the words of a command line, if it is a single one.
fn word(node: &Node) -> Option<String> {
    match &node.value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Integer(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::Text(text) => Some(text.clone()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}
