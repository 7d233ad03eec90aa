//! The resources served: their paths, their kinds, and what their field selectors may name.

use crate::json::Json;

/// A resource the double serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `services` of the core group.
    Services,
    /// `endpointslices.discovery.k8s.io`
    EndpointSlices,
    /// `nodes` of the core group.
    Nodes,
    /// `events.events.k8s.io`
    Events,
    /// `pods` of the core group.
    Pods,
    /// `configmaps` of the core group.
    ConfigMaps,
    /// `daemonsets.apps`
    DaemonSets,
}

impl Resource {
    pub(crate) const ALL: [Resource; 7] = [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::Nodes,
        Resource::Events,
        Resource::Pods,
        Resource::ConfigMaps,
        Resource::DaemonSets,
    ];

    /// The name in paths, in RBAC rules and in messages.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Resource::Services => "services",
            Resource::EndpointSlices => "endpointslices",
            Resource::Nodes => "nodes",
            Resource::Events => "events",
            Resource::Pods => "pods",
            Resource::ConfigMaps => "configmaps",
            Resource::DaemonSets => "daemonsets",
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::Events => "Event",
            Resource::Pods => "Pod",
            Resource::ConfigMaps => "ConfigMap",
            Resource::DaemonSets => "DaemonSet",
        }
    }

    /// The API group, empty for the core group.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes | Resource::Pods | Resource::ConfigMaps => "",
            Resource::EndpointSlices => "discovery.k8s.io",
            Resource::Events => "events.k8s.io",
            Resource::DaemonSets => "apps",
        }
    }

    pub(crate) fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    pub(crate) fn namespaced(self) -> bool {
        self != Resource::Nodes
    }

    /// The resource whose objects are of `kind`.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }

    /// The resource called `plural` in paths and RBAC rules.
    #[must_use]
    pub fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.plural() == plural)
    }

    pub(crate) fn of(group: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.group() == group && resource.plural() == plural)
    }

    pub(crate) fn of_object(object: &Json) -> Option<Self> {
        let (version, kind) = (object.str_at(&["apiVersion"])?, object.str_at(&["kind"])?);
        Self::ALL.into_iter().find(|resource| resource.kind() == kind && resource.api_version() == version)
    }

    /// The value a field selector compares with, or `None` for a field the API server does not index.
    pub(crate) fn field<'a>(self, object: &'a Json, field: &str) -> Option<&'a str> {
        let path: &[&str] = match (self, field) {
            (_, "metadata.name") => &["metadata", "name"],
            (resource, "metadata.namespace") if resource.namespaced() => &["metadata", "namespace"],
            (Resource::Services, "spec.clusterIP") => &["spec", "clusterIP"],
            (Resource::Services, "spec.type") => &["spec", "type"],
            (Resource::Pods, "spec.nodeName") => &["spec", "nodeName"],
            _ => return None,
        };
        Some(object.str_at(path).unwrap_or_default())
    }

    /// What a bookmark carries besides its resourceVersion: the kind's empty value, as the API server prints it.
    pub(crate) fn empty_body(self) -> &'static str {
        match self {
            Resource::Services => r#","spec":{},"status":{"loadBalancer":{}}"#,
            Resource::EndpointSlices => r#","addressType":"","endpoints":null,"ports":null"#,
            Resource::Nodes => concat!(
                r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","systemUUID":"","#,
                r#""bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","#,
                r#""operatingSystem":"","architecture":""}}"#
            ),
            Resource::Events => r#","eventTime":null,"regarding":{}"#,
            Resource::Pods => r#","spec":{"containers":null},"status":{}"#,
            Resource::ConfigMaps => "",
            Resource::DaemonSets => concat!(
                r#","spec":{"selector":null,"template":{"metadata":{},"spec":{"containers":null}},"updateStrategy":{}},"#,
                r#""status":{"currentNumberScheduled":0,"numberMisscheduled":0,"desiredNumberScheduled":0,"numberReady":0}"#
            ),
        }
    }
}
