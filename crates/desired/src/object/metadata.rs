//! What is read of `metadata`.

use super::{ANNOTATIONS, ObjectMeta, label};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The fields that are read. `managedFields` alone are often half of an object.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

/// Reads what there is to read.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let Metadata { name, namespace, resource_version, creation_timestamp, deletion_timestamp, labels, annotations } =
        Option::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name,
        namespace,
        resource_version,
        creation_timestamp,
        deletion_timestamp,
        labels: labels.map(|Labels(labels)| labels),
        annotations: annotations.map(|Annotations(annotations)| annotations),
        ..ObjectMeta::default()
    })
}

struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Texts(|name| label::READ.contains(&name))).map(Self)
    }
}

struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Texts(|name| ANNOTATIONS.iter().any(|begin| name.starts_with(begin)))).map(Self)
    }
}

/// Reads those entries of a map of texts whose names it says are wanted.
struct Texts(fn(&str) -> bool);

impl<'de> Visitor<'de> for Texts {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some(name) = map.next_key_seed(Wanted(self.0))? {
            match name {
                Some(name) => drop(texts.insert(name, map.next_value::<Option<String>>()?.unwrap_or_default())),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(texts)
    }
}

/// A name, if it is wanted: others need no memory.
struct Wanted(fn(&str) -> bool);

impl<'de> DeserializeSeed<'de> for Wanted {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Wanted {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok((self.0)(name).then(|| name.to_owned()))
    }
}
