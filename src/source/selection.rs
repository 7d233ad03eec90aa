//! Which objects are the agent's business: kube-proxy's selectors, as text for the API server and as predicates for files.

use super::{Kind, Object};
use desired::object::label::{HEADLESS, PROXY_NAME};
use std::collections::BTreeMap;

/// Label and field selector of a watch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Selectors {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// `node_name` is the one Node wanted, if not all are; `proxy_name` the agent's own, if it has one.
pub(super) fn selectors(kind: Kind, node_name: Option<&str>, proxy_name: Option<&str>) -> Selectors {
    match kind {
        Kind::Service => {
            let label = proxy_name.map_or_else(|| format!("!{PROXY_NAME}"), |name| format!("{PROXY_NAME}={name}"));
            Selectors { labels: Some(label), fields: Some("spec.clusterIP!=None".to_owned()) }
        }
        Kind::EndpointSlice => Selectors { labels: Some(format!("!{HEADLESS}")), fields: None },
        Kind::Node => Selectors { labels: None, fields: node_name.map(|name| format!("metadata.name={name}")) },
    }
}

/// What [`selectors`] select, for objects that no API server has selected. All Nodes: in files they cost nothing.
pub(super) fn selects(object: &Object, proxy_name: Option<&str>) -> bool {
    let label = |label: &str| object.metadata().labels.as_ref().and_then(|labels: &BTreeMap<_, _>| labels.get(label));
    match object {
        Object::Service(service) => {
            let headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
            !headless && label(PROXY_NAME).map(String::as_str) == proxy_name
        }
        Object::EndpointSlice(_) => label(HEADLESS).is_none(),
        Object::Node(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(labels: &serde_json::Value) -> Object {
        let object = json!({"metadata": {"name": "web", "labels": labels}, "spec": {"clusterIP": "10.96.0.10"}});
        Object::Service(Box::new(serde_json::from_value(object).unwrap()))
    }

    #[test]
    fn a_proxy_with_a_name_serves_those_that_name_it_and_one_without_the_others() {
        let plain = service(&json!({}));
        let ours = service(&json!({PROXY_NAME: "blue"}));
        let others = service(&json!({PROXY_NAME: "green"}));
        assert_eq!([&plain, &ours, &others].map(|object| selects(object, None)), [true, false, false]);
        assert_eq!([&plain, &ours, &others].map(|object| selects(object, Some("blue"))), [false, true, false]);
        let labels = |name| selectors(Kind::Service, None, name).labels.unwrap();
        assert_eq!(labels(None), "!service.kubernetes.io/service-proxy-name");
        assert_eq!(labels(Some("blue")), "service.kubernetes.io/service-proxy-name=blue");
    }
}
