//! Which objects are the agent's business: kube-proxy's selectors, as text for the API server and as predicates for files.

use super::{Kind, Object};
use std::collections::BTreeMap;

/// A Service with this label is served by another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// An EndpointSlice with this label belongs to a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Label and field selector of a watch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Selectors {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// `node_name` is the one Node wanted, if not all are.
pub(super) fn selectors(kind: Kind, node_name: Option<&str>) -> Selectors {
    match kind {
        Kind::Service => Selectors { labels: Some(format!("!{PROXY_NAME}")), fields: Some("spec.clusterIP!=None".to_owned()) },
        Kind::EndpointSlice => Selectors { labels: Some(format!("!{HEADLESS}")), fields: None },
        Kind::Node => Selectors { labels: None, fields: node_name.map(|name| format!("metadata.name={name}")) },
    }
}

/// What [`selectors`] select, for objects that no API server has selected. All Nodes: in files they cost nothing.
pub(super) fn selects(object: &Object) -> bool {
    let labelled =
        |label: &str| object.metadata().labels.as_ref().is_some_and(|labels: &BTreeMap<_, _>| labels.contains_key(label));
    match object {
        Object::Service(service) => {
            let headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
            !headless && !labelled(PROXY_NAME)
        }
        Object::EndpointSlice(_) => !labelled(HEADLESS),
        Object::Node(_) => true,
    }
}
