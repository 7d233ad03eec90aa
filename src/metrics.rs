//! What Prometheus scrapes. The only file that knows the metrics library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// The agent's metrics. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// For metrics that kube-proxy has as well, under its names: dashboards and alerts that know those go on working.
    upstream: Registry,
    pub(crate) no_local_endpoints: IntGaugeVec,
    syncs: IntCounterVec,
    sync_duration: Histogram,
    /// By [`Phase`], in its order.
    phases: [Counter; Phase::ALL.len()],
    last_success: Gauge,
    pub(crate) objects: IntGaugeVec,
    pub(crate) refused: IntGauge,
    pub(crate) problems: IntGaugeVec,
    pub(crate) events: IntCounterVec,
    pub(crate) repairs: IntCounterVec,
    pub(crate) trouble: IntCounterVec,
    pub(crate) source_synced: IntGaugeVec,
    staleness: GaugeVec,
    pub(crate) serves_saved: IntGauge,
    saved_at: Gauge,
    pub(crate) save_errors: IntCounter,
    lacking_schedulers: IntGaugeVec,
    flushes: IntCounterVec,
    stale_flows: IntCounter,
}

/// What a pass over the kernel's state was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The first, which adopts what is there.
    Start,
    /// A change of Kubernetes objects or of the node's addresses.
    Change,
    /// A comparison of everything, to find what others changed and to try again what was refused.
    Audit,
    /// A comparison with a part that was read again, because something of it had been found missing.
    Repair,
}

/// What a change goes through, from the API server's bytes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// JSON or YAML to objects.
    Decode,
    /// Objects to desired state.
    Desired,
    /// Desired and observed state to a plan.
    Plan,
    /// A plan to messages, and what is made of their answers.
    Encode,
    /// Messages and packet rules with the kernel.
    Kernel,
    /// Reading the kernel's state.
    Observe,
}

impl Phase {
    const ALL: [Self; 6] = [Self::Decode, Self::Desired, Self::Plan, Self::Encode, Self::Kernel, Self::Observe];

    const fn label(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Desired => "desired",
            Self::Plan => "plan",
            Self::Encode => "encode",
            Self::Kernel => "kernel",
            Self::Observe => "observe",
        }
    }
}

impl Pass {
    const fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Audit => "audit",
            Self::Repair => "repair",
        }
    }
}

impl Metrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("kube_ipvs".to_owned()), None)?;
        let upstream = Registry::new_custom(Some("kubeproxy".to_owned()), None)?;
        let seconds = prometheus::exponential_buckets(0.000_1, 4.0, 10)?;
        let phases = CounterVec::new(
            Opts::new(
                "phase_seconds_total",
                "Time spent, by phase: decoding objects, working out what is desired, planning, encoding messages, waiting for the kernel, \
                 reading its state.",
            ),
            &["phase"],
        )?;
        let phases = register(&registry, phases)?;
        Ok(Self {
            phases: Phase::ALL.map(|phase| phases.with_label_values(&[phase.label()])),
            no_local_endpoints: register(
                &upstream,
                IntGaugeVec::new(
                    Opts::new(
                        "sync_proxy_rules_no_local_endpoints_total",
                        "Services with a Local traffic policy that have endpoints, but none on this node.",
                    ),
                    &["ip_family", "traffic_policy"],
                )?,
            )?,
            syncs: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("syncs_total", "Passes over the kernel's state, by what they were for and how they went."),
                    &["pass", "result"],
                )?,
            )?,
            sync_duration: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("sync_duration_seconds", "Time from taking up a pass to the kernel holding its result.")
                        .buckets(seconds),
                )?,
            )?,
            last_success: register(
                &registry,
                Gauge::new(
                    "last_success_timestamp_seconds",
                    "Unix time of the last pass after which the kernel held all that was desired.",
                )?,
            )?,
            objects: register(
                &registry,
                IntGaugeVec::new(Opts::new("objects", "Objects the kernel holds for this agent, by kind."), &["kind"])?,
            )?,
            refused: register(
                &registry,
                IntGauge::new(
                    "refused_objects",
                    "Objects that are desired and that the kernel does not take; the log names them.",
                )?,
            )?,
            problems: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "object_problems",
                        "Parts of Kubernetes objects that cannot be served as they are, by reason; the log and Events name them.",
                    ),
                    &["reason"],
                )?,
            )?,
            events: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("events_total", "Problems that were to be reported as Kubernetes Events, by what became of that."),
                    &["result"],
                )?,
            )?,
            repairs: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("repairs_total", "Steps that were taken to undo changes made by others, by stage."),
                    &["stage"],
                )?,
            )?,
            trouble: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("source_trouble_total", "Times a kind of object could not be read, by kind."),
                    &["kind"],
                )?,
            )?,
            source_synced: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "source_synced",
                        "1 once a kind of object has been listed completely and while it is followed, by kind.",
                    ),
                    &["kind"],
                )?,
            )?,
            staleness: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "source_staleness_seconds",
                        "Time since a kind of object was last known to be as the API server has it, by kind: since the last change, bookmark, \
                         complete list or orderly end of its watch.",
                    ),
                    &["kind"],
                )?,
            )?,
            serves_saved: register(
                &registry,
                IntGauge::new(
                    "serves_saved_state",
                    "1 while what is served was saved by an earlier run, because the API server has not told everything since the start.",
                )?,
            )?,
            saved_at: register(
                &registry,
                Gauge::new("saved_state_timestamp_seconds", "Unix time at which state was last saved (--state-dir).")?,
            )?,
            save_errors: register(
                &registry,
                IntCounter::new("save_errors_total", "Attempts at saving state that failed (--state-dir); the log says why.")?,
            )?,
            lacking_schedulers: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "lacking_schedulers",
                        "1 for a scheduler that is asked for and that the kernel does not have, by name.",
                    ),
                    &["scheduler"],
                )?,
            )?,
            flushes: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("flow_flushes_total", "Times the node's UDP flows were searched for stale ones, by how that went."),
                    &["result"],
                )?,
            )?,
            stale_flows: register(
                &registry,
                IntCounter::new(
                    "stale_flows_total",
                    "UDP flows the kernel was told to forget because they led to a real server that is gone, or to none.",
                )?,
            )?,
            registry,
            upstream,
        })
    }

    /// Counts a pass that took `duration`; `success` when the kernel took all of it.
    pub(crate) fn count_pass(&self, pass: Pass, duration: Duration, success: bool) {
        self.syncs.with_label_values(&[pass.label(), if success { "success" } else { "error" }]).inc();
        self.sync_duration.observe(duration.as_secs_f64());
    }

    /// Notes that `phase` has taken so long.
    pub(crate) fn count_phase(&self, phase: Phase, duration: Duration) {
        for counter in Phase::ALL.iter().zip(&self.phases).filter(|(one, _)| **one == phase).map(|(_, counter)| counter) {
            counter.inc_by(duration.as_secs_f64());
        }
    }

    /// Notes whether the kernel has the scheduler called `name`. One that it has is nothing to show.
    pub(crate) fn note_scheduler(&self, name: &str, offered: bool) {
        if offered {
            // It fails for a name that is not shown, which is as it should be.
            let _ = self.lacking_schedulers.remove_label_values(&[name]);
        } else {
            self.lacking_schedulers.with_label_values(&[name]).set(1);
        }
    }

    /// Counts a search for stale flows, with how many were found; `None` when it failed.
    pub(crate) fn count_flush(&self, found: Option<usize>) {
        self.flushes.with_label_values(&[if found.is_some() { "success" } else { "error" }]).inc();
        self.stale_flows.inc_by(found.unwrap_or_default() as u64);
    }

    /// Notes that the kernel now holds all that is desired.
    pub(crate) fn count_complete(&self) {
        self.last_success.set(unix_seconds());
    }

    /// Notes that all that was told is saved.
    pub(crate) fn count_saved(&self) {
        self.saved_at.set(unix_seconds());
    }

    /// Notes for how long nothing has been heard of a kind of object.
    pub(crate) fn note_staleness(&self, kind: &str, age: Duration) {
        self.staleness.with_label_values(&[kind]).set(age.as_secs_f64());
    }

    /// The exposition text, in version 0.0.4 of the format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        for registry in [&self.registry, &self.upstream] {
            TextEncoder::new().encode(&registry.gather(), &mut text)?;
        }
        Ok(text)
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_counts_add_up() {
        let metrics = Metrics::new().unwrap();
        metrics.count_pass(Pass::Start, Duration::from_millis(3), true);
        metrics.count_complete();
        metrics.count_phase(Phase::Plan, Duration::from_millis(1500));
        metrics.count_phase(Phase::Plan, Duration::from_millis(1000));
        metrics.count_pass(Pass::Change, Duration::from_millis(1), false);
        metrics.count_flush(Some(3));
        metrics.count_flush(None);
        metrics.note_scheduler("mh", true);
        metrics.note_scheduler("new", false);
        metrics.note_scheduler("found", false);
        metrics.note_scheduler("found", true);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("kube_ipvs_stale_flows_total 3\n"), "{text}");
        assert!(text.contains("kube_ipvs_phase_seconds_total{phase=\"plan\"} 2.5\n"), "{text}");
        assert!(text.contains("kube_ipvs_phase_seconds_total{phase=\"kernel\"} 0\n"), "{text}");
        let lacking: Vec<_> = text.lines().filter(|line| line.starts_with("kube_ipvs_lacking_schedulers")).collect();
        assert_eq!(lacking, ["kube_ipvs_lacking_schedulers{scheduler=\"new\"} 1"]);
        assert!(text.contains("kube_ipvs_flow_flushes_total{result=\"error\"} 1\n"), "{text}");
        assert!(text.contains("kube_ipvs_syncs_total{pass=\"start\",result=\"success\"} 1"), "{text}");
        assert!(text.contains("kube_ipvs_syncs_total{pass=\"change\",result=\"error\"} 1"), "{text}");
        assert!(text.contains("kube_ipvs_sync_duration_seconds_count 2"), "{text}");
        assert!(!text.contains("kube_ipvs_last_success_timestamp_seconds 0\n"), "{text}");
    }
}
