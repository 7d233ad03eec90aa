//! Label and field selectors, as far as the agent and kubectl use them: `key`, `!key`, `key=value`, `key==value`, `key!=value`.

use crate::json::Json;
use crate::resource::Resource;
use crate::status::Failure;

/// Which objects a request is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) namespace: Option<String>,
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Exists,
    Absent,
    Equals(String),
    Differs(String),
}

impl Selection {
    pub(crate) fn parse(resource: Resource, namespace: Option<String>, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = terms(labels)?;
        let fields = terms(fields)?;
        for term in &fields {
            if resource.field(&Json::Null, &term.key).is_none() {
                return Err(Failure::bad_request(format!("field label not supported: {}", term.key)));
            }
            if matches!(term.test, Test::Exists | Test::Absent) {
                return Err(Failure::bad_request(format!("invalid selector: '{}'; can't understand '{}'", term.key, term.key)));
            }
        }
        Ok(Self { namespace, labels, fields })
    }

    /// Whether labels or fields narrow the selection; the API server then cannot say how many items remain.
    pub(crate) fn narrows(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    pub(crate) fn matches(&self, resource: Resource, object: &Json) -> bool {
        let in_namespace =
            self.namespace.as_deref().is_none_or(|namespace| object.str_at(&["metadata", "namespace"]) == Some(namespace));
        in_namespace
            && self.labels.iter().all(|term| term.test.holds(object.str_at(&["metadata", "labels", &term.key])))
            && self.fields.iter().all(|term| term.test.holds(resource.field(object, &term.key)))
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Equals(wanted) => value == Some(wanted),
            // A missing label differs from every value.
            Test::Differs(unwanted) => value != Some(unwanted),
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, Failure> {
    text.split(',').map(str::trim).filter(|term| !term.is_empty()).map(term).collect()
}

fn term(text: &str) -> Result<Term, Failure> {
    let (key, test) = if let Some((key, value)) = text.split_once("!=") {
        (key, Test::Differs(value.trim().to_owned()))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Test::Equals(value.trim().to_owned()))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    if key.is_empty() || key.contains(['(', ')', '!', '=', ' ']) {
        return Err(Failure::bad_request(format!(
            "unable to parse requirement: found '{text}', expected: a key with '=', '!=' or '!'"
        )));
    }
    Ok(Term { key: key.to_owned(), test })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(labels: &str, cluster_ip: &str) -> Json {
        let text =
            format!(r#"{{"metadata":{{"name":"a","namespace":"n","labels":{labels}}},"spec":{{"clusterIP":"{cluster_ip}"}}}}"#);
        text.parse().unwrap()
    }

    fn selects(labels: &str, fields: &str, object: &Json) -> bool {
        Selection::parse(Resource::Services, None, labels, fields).unwrap().matches(Resource::Services, object)
    }

    #[test]
    fn each_form_selects() {
        let object = service(r#"{"app":"web"}"#, "10.0.0.1");
        for (labels, fields, selected) in [
            ("app", "", true),
            ("!app", "", false),
            ("!other", "", true),
            ("app=web,!other", "", true),
            ("app==db", "", false),
            ("app!=db", "", true),
            ("other!=db", "", true),
            ("", "spec.clusterIP!=None", true),
            ("", "metadata.name=b", false),
            ("", "metadata.name=a,spec.clusterIP!=10.0.0.1", false),
        ] {
            assert_eq!(selects(labels, fields, &object), selected, "{labels} {fields}");
        }
        assert!(!selects("", "spec.clusterIP!=None", &service("{}", "None")));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (labels, fields) in [("a in (b)", ""), ("", "spec.nonsense=x"), ("", "metadata.name")] {
            assert_eq!(Selection::parse(Resource::Services, None, labels, fields).unwrap_err().code, 400, "{labels} {fields}");
        }
    }
}
