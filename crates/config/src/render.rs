//! Settings → a `KubeProxyConfiguration`.

use serde_json::{Map, Value, json};

use crate::document::Document;
use crate::field::FIELDS;
use crate::kind::Kind;

/// The `KubeProxyConfiguration` that says, as far as one can, what the flags say: `value` tells for the name of a flag, without dashes, which
/// values it has. Every field is there.
///
/// ```
/// let configuration = config::kube_proxy_configuration(|flag| (flag == "scheduler").then(|| vec!["wlc".to_owned()]));
/// assert_eq!(configuration["ipvs"]["scheduler"], "wlc");
/// assert_eq!(configuration["metricsBindAddress"], "127.0.0.1:10249");
/// ```
#[must_use]
pub fn kube_proxy_configuration(value: impl Fn(&str) -> Option<Vec<String>>) -> Value {
    let mut root = Map::new();
    root.insert("apiVersion".to_owned(), Document::KubeProxy.api_version().into());
    root.insert("kind".to_owned(), Document::KubeProxy.kind().into());
    for field in FIELDS {
        let given = field.flag().and_then(&value).and_then(|values| field.kind.write(&values));
        let written = given.unwrap_or_else(|| default(field.kind, field.default));
        insert(&mut root, field.path, written);
    }
    Value::Object(root)
}

fn default(kind: Kind, text: &str) -> Value {
    let values: Vec<_> = (!text.is_empty()).then(|| text.to_owned()).into_iter().collect();
    // Of fields that take a text the empty one, of lists `null`, as Go has it.
    match kind {
        Kind::Gates if values.is_empty() => json!({}),
        Kind::Networks | Kind::NodePortAddresses | Kind::Patterns if values.is_empty() => Value::Null,
        _ => kind.write(&values).unwrap_or(Value::Null),
    }
}

fn insert(map: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => _ = map.insert(path.to_owned(), value),
        Some((head, rest)) => {
            if let Value::Object(inner) = map.entry(head).or_insert_with(|| json!({})) {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Effect, Setting, read};

    #[test]
    fn what_is_written_is_read_again_without_a_remark() {
        let configuration = kube_proxy_configuration(|_| None);
        let read = read(configuration.to_string().as_bytes()).unwrap();
        assert_eq!((read.remarks, read.idle), (Vec::new(), Vec::new()));
        for Setting { flag, values, .. } in read.settings {
            let field = FIELDS.iter().find(|field| field.flag() == Some(&flag)).unwrap();
            assert_eq!(values.join(","), if flag == "nodeport-addresses" { "all" } else { field.default }, "{flag}");
        }
    }

    #[test]
    fn every_field_has_a_default_that_it_takes() {
        for field in FIELDS {
            let written = default(field.kind, field.default);
            let expected = match field.kind {
                Kind::Networks | Kind::NodePortAddresses | Kind::Patterns => written.is_null(),
                _ => !written.is_null(),
            };
            assert!(expected, "{}: {written}", field.path);
            assert!(!matches!(field.effect, Effect::Read) || matches!(field.path, "mode" | "bindAddress"));
        }
    }
}
