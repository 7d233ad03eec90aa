//! Whether load balancers outside of the cluster are to send this node traffic, as far as its Node object says so: KEP-3836.

use desired::object::{Node, ObjectMeta};

/// A node with this taint is about to be deleted by the cluster autoscaler.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What the Node object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Eligibility {
    /// Nothing, so far.
    Unknown,
    /// Traffic may come.
    Eligible,
    /// It should not any more, for this reason.
    Leaving(&'static str),
}

impl Eligibility {
    /// By a Node object.
    pub(crate) fn of(Node { metadata: ObjectMeta { deletion_timestamp, .. }, spec, .. }: &Node) -> Self {
        let taints = spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        if deletion_timestamp.is_some() {
            Self::Leaving("the Node is being deleted")
        } else if taints.iter().any(|taint| taint.key == TO_BE_DELETED) {
            Self::Leaving("the Node has the taint ToBeDeletedByClusterAutoscaler")
        } else {
            Self::Eligible
        }
    }

    /// `None` where traffic may come, else the reason.
    pub(crate) const fn against(&self) -> Option<&'static str> {
        match self {
            Self::Unknown => Some("the Node object of this node is not known"),
            Self::Eligible => None,
            Self::Leaving(reason) => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_goes_gets_no_more_traffic() {
        let against = |metadata, spec| {
            let node: Node = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
            Eligibility::of(&node).against()
        };
        assert_eq!(against(json!({}), json!({})), None);
        let other = json!({"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]});
        assert_eq!(against(json!({}), other), None);
        let autoscaler = json!({"taints": [{"key": "a"}, {"key": TO_BE_DELETED, "value": "1700000000", "effect": "NoSchedule"}]});
        assert!(against(json!({}), autoscaler).unwrap().contains(TO_BE_DELETED));
        assert!(against(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})).unwrap().contains("being deleted"));
        assert!(Eligibility::Unknown.against().is_some());
    }
}
