//! What a request asks for: its path, its query, and the record of it.

use crate::fault::Verb;
use crate::resource::Resource;

/// A request as the double received it.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The HTTP method.
    pub method: String,
    /// The path with its query, as sent.
    pub target: String,
    /// What it asks for; `None` for discovery and unknown paths.
    pub asks: Option<(Verb, Resource)>,
    /// The certificate that the client has shown on this connection, in DER.
    pub certificate: Option<Vec<u8>>,
    query: Query,
}

impl Received {
    pub(crate) fn new(
        method: &str,
        target: &str,
        asks: Option<(Verb, Resource)>,
        certificate: Option<Vec<u8>>,
        query: Query,
    ) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), asks, certificate, query }
    }

    /// The value of a query parameter, decoded; empty if it was not sent.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        self.query.get(name)
    }
}

/// The decoded query of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        });
        Self(pairs.collect())
    }

    /// The value of `name`, empty if it is missing: the API server makes no difference either.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), "1" | "true" | "t" | "T" | "True" | "TRUE")
    }
}

/// A path that names a resource, and perhaps a namespace and an object.
#[derive(Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
}

impl Place {
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match segments.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
            ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
            [plural] => (None, *plural, None),
            [plural, name] => (None, *plural, Some(*name)),
            _ => return None,
        };
        let resource = Resource::of(group, plural)?;
        let fits = if resource.namespaced() { namespace.is_some() || name.is_none() } else { namespace.is_none() };
        fits.then(|| Self { resource, namespace: namespace.map(decoded), name: name.map(decoded) })
    }
}

/// Undoes percent encoding and `+`; what is not a valid escape stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'%').then(|| tail.split_at_checked(2)).flatten().and_then(|(digits, tail)| {
            let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            Some((value, tail))
        });
        rest = if let Some((value, tail)) = escape {
            bytes.push(value);
            tail
        } else {
            bytes.push(if first == b'+' { b' ' } else { first });
            tail
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_places() {
        let place = Place::parse("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web").unwrap();
        assert_eq!(
            (place.resource, place.namespace.as_deref(), place.name.as_deref()),
            (Resource::EndpointSlices, Some("shop"), Some("web"))
        );
        assert!(Place::parse("/api/v1/nodes/n").is_some());
        for wrong in
            ["/api/v1/services/web", "/api/v1/namespaces/shop/nodes", "/api/v1", "/apis/discovery.k8s.io/v1/services", "/x"]
        {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=%21a%2Fb&x=1+2&broken=%zz%4&watch=1");
        assert_eq!(
            (query.get("labelSelector"), query.get("x"), query.get("broken"), query.get("none")),
            ("!a/b", "1 2", "%zz%4", "")
        );
        assert!(query.is_true("watch"));
    }
}
