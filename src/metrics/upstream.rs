//! What kube-proxy measures as well, under its names and with its labels, buckets and meaning: dashboards and alerts that know those go on
//! working.
//!
//! kube-proxy has a proxier for each family, which synchronise apart. Here a pass is about all families at once, and counts for each.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use model::Family;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Result};

use super::group::{Group, Registered};

/// The metrics of kube-proxy's IPVS mode. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(super) group: Registered,
    families: BTreeSet<Family>,
    pub(super) no_local_endpoints: IntGaugeVec,
    sync_duration: HistogramVec,
    last_queued: GaugeVec,
    last: GaugeVec,
    services: Changes,
    slices: Changes,
    restore_failures: IntCounterVec,
    programming: HistogramVec,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    flow_search_duration: HistogramVec,
    flows_deleted: IntCounterVec,
}

/// How many changes of a kind of object there were, and are waiting.
#[derive(Clone)]
struct Changes {
    total: IntCounter,
    pending: IntGauge,
}

const FAMILY: &[&str] = &["ip_family"];

impl Upstream {
    /// All at zero, for an agent that serves `families`.
    pub(super) fn new(families: BTreeSet<Family>) -> Result<Self> {
        let mut group = Group::new(Some("kubeproxy"))?;
        // From a millisecond to sixteen seconds.
        let passes = prometheus::exponential_buckets(0.001, 2.0, 15)?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), FAMILY)
        };
        let mut changes = |what: &str, of: &str| -> Result<Changes> {
            let name = |suffix: &str| format!("sync_proxy_rules_{what}_changes_{suffix}");
            Ok(Changes {
                total: group.add(IntCounter::new(name("total"), format!("Changes of {of} that were told.")))?,
                pending: group.add(IntGauge::new(name("pending"), format!("Changes of {of} that are not in the kernel yet.")))?,
            })
        };
        let services = changes("service", "Services, once for each family that is served")?;
        let slices = changes("endpoint", "EndpointSlices")?;
        let upstream = Self {
            services,
            slices,
            no_local_endpoints: group.add(IntGaugeVec::new(
                Opts::new(
                    "sync_proxy_rules_no_local_endpoints_total",
                    "Services with a Local traffic policy that have endpoints, but none on this node.",
                ),
                &["ip_family", "traffic_policy"],
            ))?,
            sync_duration: group.add(histogram(
                "sync_proxy_rules_duration_seconds",
                "Time from taking up a pass over the kernel's state to the kernel holding its result.",
                &passes,
            ))?,
            last_queued: group.add(GaugeVec::new(
                Opts::new("sync_proxy_rules_last_queued_timestamp_seconds", "Unix time at which a pass was last asked for."),
                FAMILY,
            ))?,
            last: group.add(GaugeVec::new(
                Opts::new(
                    "sync_proxy_rules_last_timestamp_seconds",
                    "Unix time at which the last pass ended that left nothing unknown; single objects may have been refused.",
                ),
                FAMILY,
            ))?,
            restore_failures: group.add(IntCounterVec::new(
                Opts::new("sync_proxy_rules_iptables_restore_failures_total", "Times that packet rules could not be written."),
                FAMILY,
            ))?,
            programming: group.add(histogram(
                "network_programming_duration_seconds",
                "Time from the change of a pod or Service that an EndpointSlice's last-change-trigger-time names to the kernel holding it.",
                &programming_buckets(),
            ))?,
            healthz: group.add(IntCounterVec::new(Opts::new("proxy_healthz_total", "Answers of /healthz, by code."), &["code"]))?,
            livez: group.add(IntCounterVec::new(Opts::new("proxy_livez_total", "Answers of /livez, by code."), &["code"]))?,
            flow_search_duration: group.add(histogram(
                "conntrack_reconciler_sync_duration_seconds",
                "Time that a search of the node's UDP flows for stale ones took.",
                &passes,
            ))?,
            flows_deleted: group.add(IntCounterVec::new(
                Opts::new("conntrack_reconciler_deleted_entries_total", "UDP flows that the kernel was told to forget."),
                FAMILY,
            ))?,
            group: group.finish(),
            families,
        };
        for family in upstream.labels() {
            upstream.restore_failures.with_label_values(&[&family]);
            upstream.flows_deleted.with_label_values(&[&family]);
        }
        Ok(upstream)
    }

    fn labels(&self) -> impl Iterator<Item = String> {
        self.families.iter().map(ToString::to_string)
    }

    pub(super) fn count_pass(&self, duration: Duration) {
        for family in self.labels() {
            self.sync_duration.with_label_values(&[&family]).observe(duration.as_secs_f64());
        }
    }

    /// Notes that something is to be done.
    pub(crate) fn note_queued(&self) {
        for family in self.labels() {
            self.last_queued.with_label_values(&[&family]).set(super::unix_seconds());
        }
    }

    /// Notes that all that was asked for has been tried, and that it is known what the kernel holds.
    pub(crate) fn note_synced(&self) {
        for family in self.labels() {
            self.last.with_label_values(&[&family]).set(super::unix_seconds());
        }
    }

    /// Counts the change of a Service, which waits from now on.
    pub(crate) fn count_service(&self) {
        self.services.total.inc_by(self.families.len() as u64);
        self.services.pending.inc();
    }

    /// Counts the change of an EndpointSlice of `family`, which waits from now on. Returns whether it counts.
    pub(crate) fn count_slice(&self, family: Option<Family>) -> bool {
        let counts = family.is_some_and(|family| self.families.contains(&family));
        if counts {
            self.slices.total.inc();
            self.slices.pending.inc();
        }
        counts
    }

    /// Notes that so many changes do not wait any more.
    pub(crate) fn note_done(&self, services: u32, slices: u32) {
        self.services.pending.sub(services.into());
        self.slices.pending.sub(slices.into());
    }

    /// Counts a failure to write packet rules.
    pub(crate) fn count_restore_failure(&self, family: Family) {
        self.restore_failures.with_label_values(&[&family.to_string()]).inc();
    }

    /// Notes that the kernel now holds what a change at `trigger` led to.
    pub(crate) fn count_programmed(&self, family: Family, trigger: SystemTime) {
        // The trigger is by another machine's clock, which may be ahead.
        let took = SystemTime::now().duration_since(trigger).unwrap_or_default();
        self.programming.with_label_values(&[&family.to_string()]).observe(took.as_secs_f64());
    }

    /// Counts an answer of `/healthz` or `/livez`.
    pub(crate) fn count_probe(&self, path: &str, code: u16) {
        let counter = match path {
            "/healthz" => &self.healthz,
            "/livez" => &self.livez,
            _ => return,
        };
        counter.with_label_values(&[&code.to_string()]).inc();
    }

    /// Counts a search of the UDP flows of `family` that found so many stale ones.
    pub(crate) fn count_flow_search(&self, family: Family, duration: Duration, found: usize) {
        let family = family.to_string();
        self.flow_search_duration.with_label_values(&[&family]).observe(duration.as_secs_f64());
        self.flows_deleted.with_label_values(&[&family]).inc_by(found as u64);
    }
}

/// Kubernetes' own for this measure: fine below a minute, which is what its service level is about. The bucket for nothing at all is where
/// clocks that differ end up.
fn programming_buckets() -> Vec<f64> {
    let whole = |seconds: std::ops::RangeInclusive<u32>, step| seconds.step_by(step).map(f64::from);
    [0.0, 0.25, 0.5].into_iter().chain(whole(1..=59, 1)).chain(whole(60..=115, 5)).chain(whole(120..=300, 30)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_are_upstreams() {
        let buckets = programming_buckets();
        assert_eq!(buckets.len(), 81);
        assert_eq!(buckets[..5], [0.0, 0.25, 0.5, 1.0, 2.0]);
        assert_eq!(buckets[60..64], [58.0, 59.0, 60.0, 65.0]);
        assert_eq!(buckets[73..], [115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0]);
    }
}
