//! How many Services a policy `Local` leaves without anybody who serves them here.

use std::collections::{BTreeMap, BTreeSet};

use desired::{ServiceName, TrafficPolicy};
use model::Family;
use prometheus::IntGaugeVec;

/// Keeps a gauge of them, by family and policy, at a cost that follows the change.
pub(crate) struct LocalPolicies {
    /// The Services that a policy leaves without endpoints. Most have none, and are not in here.
    unserved: BTreeMap<ServiceName, BTreeSet<(Family, TrafficPolicy)>>,
    gauge: IntGaugeVec,
}

impl LocalPolicies {
    /// The gauge says 0 for every policy of `families`.
    pub(crate) fn new(gauge: IntGaugeVec, families: impl IntoIterator<Item = Family>) -> Self {
        for family in families {
            for policy in [TrafficPolicy::Internal, TrafficPolicy::External] {
                count(&gauge, (family, policy), 0);
            }
        }
        Self { unserved: BTreeMap::new(), gauge }
    }

    /// The policies that leave a Service without endpoints; none for one that is gone.
    pub(crate) fn set(&mut self, service: &ServiceName, policies: BTreeSet<(Family, TrafficPolicy)>) {
        let before = self.unserved.remove(service).unwrap_or_default();
        before.difference(&policies).for_each(|policy| count(&self.gauge, *policy, -1));
        policies.difference(&before).for_each(|policy| count(&self.gauge, *policy, 1));
        if !policies.is_empty() {
            self.unserved.insert(service.clone(), policies);
        }
    }
}

fn count(gauge: &IntGaugeVec, (family, policy): (Family, TrafficPolicy), change: i64) {
    let policy = match policy {
        TrafficPolicy::Internal => "internal",
        TrafficPolicy::External => "external",
    };
    gauge.with_label_values(&[&family.to_string(), policy]).add(change);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_service_counts_once_for_each_policy_while_it_is_unserved() {
        let metrics = Metrics::new().unwrap();
        let mut policies = LocalPolicies::new(metrics.no_local_endpoints.clone(), Family::ALL);
        let text = || String::from_utf8(metrics.render().unwrap()).unwrap();
        let line = |policy: &str, count: i64| {
            format!(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}} {count}\n"
            )
        };
        assert!(text().contains(&line("internal", 0)), "{}", text());
        let (one, two) = (ServiceName::new("shop", "one"), ServiceName::new("shop", "two"));
        let (internal, external) = ((Family::V4, TrafficPolicy::Internal), (Family::V4, TrafficPolicy::External));
        policies.set(&one, [internal, external].into());
        policies.set(&two, [external].into());
        policies.set(&two, [external].into());
        assert!(text().contains(&line("internal", 1)) && text().contains(&line("external", 2)), "{}", text());
        policies.set(&one, [external].into());
        policies.set(&two, BTreeSet::new());
        assert!(text().contains(&line("internal", 0)) && text().contains(&line("external", 1)), "{}", text());
    }
}
