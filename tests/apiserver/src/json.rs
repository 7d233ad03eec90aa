//! JSON that keeps the order of its keys, so that what was recorded comes back byte for byte.
//!
//! `serde_json` can do that too, by a feature; but features are per build, and one switched on here would change how the agent prints in its own tests.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};
use serde_json::Number;
use std::fmt;
use std::str::FromStr;

/// A JSON value whose objects remember the order in which their members were written.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Any number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object, members in the order written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The member `key` of an object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value at the end of a chain of object members.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<&Json> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    /// The string at the end of a chain of object members.
    #[must_use]
    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        match self.at(path) {
            Some(Json::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Sets the member `key`, in place if it exists and at the end if not. Anything but an object stays as it is.
    pub fn set(&mut self, key: &str, value: Json) {
        if let Json::Object(members) = self {
            match members.iter_mut().find(|(name, _)| name == key) {
                Some((_, slot)) => *slot = value,
                None => members.push((key.to_owned(), value)),
            }
        }
    }

    /// The member `key` for changing, made as an empty object if it is missing.
    pub(crate) fn entry(&mut self, key: &str) -> Option<&mut Json> {
        let Json::Object(members) = self else { return None };
        if !members.iter().any(|(name, _)| name == key) {
            members.push((key.to_owned(), Json::Object(Vec::new())));
        }
        members.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Changes it as a merge patch says (RFC 7386): members are merged, `null` removes one, and everything else takes the place of what was there.
    pub(crate) fn merge(&mut self, patch: &Json) {
        let Json::Object(changes) = patch else {
            *self = patch.clone();
            return;
        };
        if !matches!(self, Json::Object(_)) {
            *self = Json::Object(Vec::new());
        }
        for (key, change) in changes {
            if *change == Json::Null {
                self.remove(key);
            } else if let Some(member) = self.entry(key) {
                member.merge(change);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Json> {
        let Json::Object(members) = self else { return None };
        let position = members.iter().position(|(name, _)| name == key)?;
        Some(members.remove(position).1)
    }
}

impl FromStr for Json {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Number(value) => Json::Number(value),
            Value::String(value) => Json::String(value),
            Value::Array(values) => Json::Array(values.into_iter().map(Json::from).collect()),
            Value::Object(members) => Json::Object(members.into_iter().map(|(name, value)| (name, value.into())).collect()),
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Json::String(text.to_owned())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(value) => value.serialize(serializer),
            Json::String(value) => serializer.serialize_str(value),
            Json::Array(values) => {
                let mut out = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    out.serialize_element(value)?;
                }
                out.end()
            }
            Json::Object(members) => {
                let mut out = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    out.serialize_entry(name, value)?;
                }
                out.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_none<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        Json::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_bytes_survive() {
        let text = r#"{"z":[1,-2,1.5,true,null],"a":{"ü ✓":"\u0000"}}"#;
        assert_eq!(text.parse::<Json>().unwrap().to_string(), text);
    }

    #[test]
    fn a_patch_merges_objects_removes_nulls_and_replaces_the_rest() {
        let mut object: Json = r#"{"a":{"x":1,"y":2},"b":[1,2],"c":"d"}"#.parse().unwrap();
        object.merge(&r#"{"a":{"x":null,"z":{"w":3}},"b":[3],"c":null,"n":null}"#.parse().unwrap());
        assert_eq!(object.to_string(), r#"{"a":{"y":2,"z":{"w":3}},"b":[3]}"#);
    }
}
