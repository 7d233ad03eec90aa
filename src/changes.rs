//! Changes on their way into the kernel: how many there are, and since when the cluster waits for them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use desired::ServiceName;
use desired::object::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use model::Family;

use crate::metrics::Upstream;

/// In which the control plane says when a pod or Service changed of which a slice's change is the consequence.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// As many are remembered; of a kernel that is busy for that long, the figures are bad enough without the rest.
const MAX_TRIGGERS: usize = 65_536;

/// Changes that were told and are not in the kernel yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    services: u32,
    slices: u32,
    /// When what changed that led to them, by Service.
    triggers: BTreeMap<ServiceName, Vec<(Family, SystemTime)>>,
    kept: usize,
}

impl Changes {
    /// Takes in the change of a Service.
    pub(crate) const fn add_service(&mut self) {
        self.services = self.services.saturating_add(1);
    }

    /// Takes in the change of a slice.
    pub(crate) const fn add_slice(&mut self) {
        self.slices = self.slices.saturating_add(1);
    }

    /// Takes note of what led to the change of a slice that makes a difference, unless that was before `since`: then it is not this process
    /// that the cluster has waited for.
    pub(crate) fn note_trigger(&mut self, slice: &EndpointSlice, since: SystemTime) {
        let trigger = slice.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGER));
        let trigger = trigger.and_then(|text| text.parse::<Timestamp>().ok()).map(SystemTime::from);
        if let (Some(trigger), Some(service), Some(family)) = (trigger, service(slice), family(slice))
            && trigger > since
            && self.kept < MAX_TRIGGERS
        {
            self.kept += 1;
            self.triggers.entry(service).or_default().push((family, trigger));
        }
    }

    /// Forgets what has led to changes of a slice's Service: a slice that is gone is not waited for.
    pub(crate) fn forget_triggers(&mut self, slice: &EndpointSlice) {
        if let Some(triggers) = service(slice).and_then(|service| self.triggers.remove(&service)) {
            self.kept = self.kept.saturating_sub(triggers.len());
        }
    }

    /// Takes in others.
    pub(crate) fn extend(&mut self, others: Self) {
        self.services = self.services.saturating_add(others.services);
        self.slices = self.slices.saturating_add(others.slices);
        if self.kept.saturating_add(others.kept) <= MAX_TRIGGERS {
            self.kept += others.kept;
            for (service, triggers) in others.triggers {
                self.triggers.entry(service).or_default().extend(triggers);
            }
        }
    }

    /// Counts them as done: in the kernel if that `holds` them, or given up until the next pass over everything.
    pub(crate) fn finish(self, holds: bool, metrics: &Upstream) {
        metrics.note_done(self.services, self.slices);
        for (family, trigger) in self.triggers.into_values().flatten().filter(|_| holds) {
            metrics.count_programmed(family, trigger);
        }
    }
}

/// The family of a slice's addresses; `None` for those that are no IP addresses.
pub(crate) fn family(slice: &EndpointSlice) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family.to_string() == slice.address_type)
}

fn service(slice: &EndpointSlice) -> Option<ServiceName> {
    let name = slice.metadata.labels.as_ref()?.get(desired::object::label::SERVICE)?;
    Some(ServiceName::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;

    fn slice(trigger: SystemTime) -> EndpointSlice {
        let trigger = Timestamp::try_from(trigger).unwrap().to_string();
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}, "annotations": {TRIGGER: trigger}},
            "addressType": "IPv4",
        }))
        .unwrap()
    }

    #[test]
    fn the_cluster_waits_from_the_trigger_until_the_kernel_holds_the_change() {
        let metrics = Metrics::new().unwrap();
        let text = || String::from_utf8(metrics.render().unwrap()).unwrap();
        let started = SystemTime::now().checked_sub(Duration::from_secs(100)).unwrap();
        let at = |seconds: u64| slice(started + Duration::from_secs(seconds));
        let mut changes = Changes::default();
        // From before the start, 10 s after it and, by a clock that is ahead, in the future.
        changes.note_trigger(&slice(started.checked_sub(Duration::from_secs(5)).unwrap()), started);
        changes.note_trigger(&at(90), started);
        changes.note_trigger(&at(200), started);
        changes.add_slice();
        assert!(metrics.upstream.count_slice(Some(Family::V4)));
        assert!(!metrics.upstream.count_slice(None));
        let mut letter = Changes::default();
        letter.extend(changes);
        assert!(text().contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 1\n"), "{}", text());
        letter.finish(true, &metrics.upstream);
        let text = text();
        let bucket = |bound: &str, count: u32| {
            format!("kubeproxy_network_programming_duration_seconds_bucket{{ip_family=\"IPv4\",le=\"{bound}\"}} {count}\n")
        };
        for line in [
            bucket("0", 1),
            bucket("9", 1),
            bucket("12", 2),
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0\n".to_owned(),
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }

    #[test]
    fn what_is_gone_or_was_not_taken_is_no_measure() {
        let metrics = Metrics::new().unwrap();
        let (now, earlier) = (SystemTime::now(), SystemTime::now().checked_sub(Duration::from_secs(60)).unwrap());
        let mut deleted = Changes::default();
        deleted.note_trigger(&slice(now), earlier);
        deleted.forget_triggers(&slice(now));
        deleted.finish(true, &metrics.upstream);
        let mut failed = Changes::default();
        failed.note_trigger(&slice(now), earlier);
        failed.finish(false, &metrics.upstream);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(!text.contains("kubeproxy_network_programming_duration_seconds_count"), "{text}");
    }
}
