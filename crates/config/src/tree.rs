//! YAML → a tree whose nodes know their lines.
//!
//! Types that serde derives stop at the first mistake, and cannot say on which line a value is that is well-formed and makes no sense.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::problem::Problem;

/// A value and the line it begins on, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What JSON has, and in YAML what means the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that is no integer, or too large for one.
    Number(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, keys that are there twice included.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) line: usize,
    pub(crate) key: String,
    pub(crate) node: Node,
}

impl Value {
    /// What it is, for a sentence about what it should have been.
    pub(crate) fn describe(&self) -> String {
        /// Characters of a text that are quoted.
        const MAX_QUOTE: usize = 60;
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(text) if text.chars().count() <= MAX_QUOTE => format!("{text:?}"),
            Self::Text(text) => format!("{:?}…", text.chars().take(MAX_QUOTE).collect::<String>()),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// The documents of a file; those without anything are left out.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, Problem> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| line(location.line()));
        let message = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
        let message = message.lines().next().unwrap_or_default();
        let message = message.split(" at line ").next().unwrap_or_default().trim_start_matches("error: ");
        Problem::new(line, "", format!("this is not YAML: {message}"))
    })?;
    Ok(documents.into_iter().map(Node::from).filter(|node| node.value != Value::Null).collect())
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: line(spanned.referenced.line()), value: spanned.value }
    }
}

/// The parser counts from 1, and has 0 for what it does not know.
fn line(line: impl TryInto<usize>) -> usize {
    line.try_into().unwrap_or(1).max(1)
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "of a number that large no field takes the last digits, or the first")]
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    #[expect(clippy::cast_precision_loss, reason = "of a number that large no field takes the last digits, or the first")]
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    #[expect(clippy::cast_precision_loss, reason = "of a number that large no field takes the last digits, or the first")]
    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(Value::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            entries.push(Entry { line: line(key.referenced.line()), key: key.value, node: value.into() });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> Vec<(usize, &str, usize, String)> {
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        entries.iter().map(|entry| (entry.line, entry.key.as_str(), entry.node.line, entry.node.value.describe())).collect()
    }

    #[test]
    fn each_value_knows_its_line_in_the_file_and_duplicates_stay() {
        let text = "# first\n---\na: 1\nb:\n  - x\n  - y\n---\n---\n{\"c\": \"text\",\n \"c\": true, \"d\": null}\n";
        let documents = documents(text).unwrap();
        assert_eq!(documents.len(), 2, "{documents:?}");
        assert_eq!(map(&documents[0])[0], (3, "a", 3, "1".to_owned()));
        let Value::Map(entries) = &documents[0].value else { panic!() };
        let Value::List(items) = &entries[1].node.value else { panic!() };
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [5, 6]);
        let second = map(&documents[1]);
        assert_eq!(second[0], (9, "c", 9, "\"text\"".to_owned()));
        assert_eq!(second[1], (10, "c", 10, "true".to_owned()));
        assert_eq!(second[2].3, "nothing");
    }

    #[test]
    fn what_is_no_yaml_is_said_with_its_line() {
        let problem = documents("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(problem.line >= 2, "{problem}");
        assert!(problem.to_string().contains("not YAML"), "{problem}");
    }
}
