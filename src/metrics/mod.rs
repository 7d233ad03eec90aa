//! What Prometheus scrapes. The only directory that knows the metrics library; docs/metrics.md lists all that it has.

mod group;
mod process;
mod requests;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Family;
use prometheus::core::Collector as _;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, TextEncoder,
};

pub(crate) use requests::Requests;
pub(crate) use upstream::Upstream;

use group::{Group, Registered};
use process::Process;

/// The agent's metrics. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Metrics {
    group: Registered,
    pub(crate) upstream: Upstream,
    requests: Requests,
    process: Process,
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
    pub(crate) audit_interval: Gauge,
    pub(crate) saved_at: Gauge,
    pub(crate) save_errors: IntCounter,
    lacking_schedulers: IntGaugeVec,
    flushes: IntCounterVec,
    stale_flows: IntCounter,
    drains: IntCounterVec,
    drifts: IntCounterVec,
    differing: Gauge,
    traffic_reads: IntCounterVec,
    reloads: IntCounterVec,
    reloaded: IntGauge,
    reloaded_at: Gauge,
}

/// How a reading of the kernel's traffic counters went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Done,
    /// It failed.
    Failed,
    /// It took too long, and older numbers were told.
    Late,
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
    /// All metrics at zero, of an agent that serves both families.
    #[cfg(test)]
    pub(crate) fn new() -> prometheus::Result<Self> {
        Self::of(Family::ALL.into(), Requests::new()?)
    }

    /// All metrics at zero, for an agent that serves `families` and whose client counts its requests in `requests`.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub(crate) fn of(families: BTreeSet<Family>, requests: Requests) -> prometheus::Result<Self> {
        let mut group = Group::new(Some("kube_ipvs"))?;
        let upstream = Upstream::new(families)?;
        let seconds = prometheus::exponential_buckets(0.000_1, 4.0, 10)?;
        let phases = group.add(CounterVec::new(
            Opts::new(
                "phase_seconds_total",
                "Time spent, by phase: decoding objects, working out what is desired, planning, encoding messages, waiting for the kernel, \
                 reading its state.",
            ),
            &["phase"],
        ))?;
        let build = group.add(IntGaugeVec::new(Opts::new("build_info", "1, for the version of this program."), &["version"]))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let reloads = group.add(IntCounterVec::new(
            Opts::new(
                "config_reloads_total",
                "Times the configuration file was read again because it had changed, by how that went.",
            ),
            &["result"],
        ))?;
        for success in [true, false] {
            reloads.with_label_values(&[result(success)]).inc_by(0);
        }
        let reloaded = group.add(IntGauge::new(
            "config_last_reload_successful",
            "1 while what the configuration file says could be read; 0 while it could not, and what it said before holds.",
        ))?;
        // What is read at the start is in force, or there is no agent.
        reloaded.set(1);
        let reloaded_at = group.add(Gauge::new(
            "config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration was last read, and could be.",
        ))?;
        reloaded_at.set(unix_seconds());
        Ok(Self {
            reloads,
            reloaded,
            reloaded_at,
            phases: Phase::ALL.map(|phase| phases.with_label_values(&[phase.label()])),
            no_local_endpoints: upstream.no_local_endpoints.clone(),
            syncs: group.add(IntCounterVec::new(
                    Opts::new("syncs_total", "Passes over the kernel's state, by what they were for and how they went."),
                    &["pass", "result"],
                ))?,
            sync_duration: group.add(Histogram::with_opts(
                    HistogramOpts::new("sync_duration_seconds", "Time from taking up a pass to the kernel holding its result.")
                        .buckets(seconds),
                ))?,
            last_success: group.add(Gauge::new(
                    "last_success_timestamp_seconds",
                    "Unix time of the last pass after which the kernel held all that was desired.",
                ))?,
            objects: group.add(IntGaugeVec::new(Opts::new("objects", "Objects the kernel holds for this agent, by kind."), &["kind"]))?,
            refused: group.add(IntGauge::new(
                    "refused_objects",
                    "Objects that are desired and that the kernel does not take; the log names them.",
                ))?,
            problems: group.add(IntGaugeVec::new(
                    Opts::new(
                        "object_problems",
                        "Parts of Kubernetes objects that cannot be served as they are, by reason; the log and Events name them.",
                    ),
                    &["reason"],
                ))?,
            events: group.add(IntCounterVec::new(
                    Opts::new("events_total", "News that was to be told as Kubernetes Events, by what became of that."),
                    &["result"],
                ))?,
            repairs: group.add(IntCounterVec::new(
                    Opts::new("repairs_total", "Steps that were taken to undo changes made by others, by stage."),
                    &["stage"],
                ))?,
            trouble: group.add(IntCounterVec::new(
                    Opts::new("source_trouble_total", "Times a kind of object could not be read, by kind."),
                    &["kind"],
                ))?,
            source_synced: group.add(IntGaugeVec::new(
                    Opts::new(
                        "source_synced",
                        "1 once a kind of object has been listed completely and while it is followed, by kind.",
                    ),
                    &["kind"],
                ))?,
            staleness: group.add(GaugeVec::new(
                    Opts::new(
                        "source_staleness_seconds",
                        "Time since a kind of object was last known to be as the API server has it, by kind: since the last change, bookmark, \
                         complete list or orderly end of its watch.",
                    ),
                    &["kind"],
                ))?,
            serves_saved: group.add(IntGauge::new(
                    "serves_saved_state",
                    "1 while what is served was saved by an earlier run, because the API server has not told everything since the start.",
                ))?,
            audit_interval: group.add(Gauge::new(
                "audit_interval_seconds",
                "From one comparison with the kernel to the next: --audit-period, or longer where they take more than --max-audit-cpu.",
            ))?,
            saved_at: group.add(Gauge::new("saved_state_timestamp_seconds", "Unix time at which state was last saved as a start can use it (--state-dir)."))?,
            save_errors: group.add(IntCounter::new("save_errors_total", "Attempts at saving state that failed (--state-dir); the log says why."))?,
            lacking_schedulers: group.add(IntGaugeVec::new(
                    Opts::new(
                        "lacking_schedulers",
                        "1 for a scheduler that is asked for and that the kernel does not have, by name.",
                    ),
                    &["scheduler"],
                ))?,
            flushes: group.add(IntCounterVec::new(
                    Opts::new("flow_flushes_total", "Times the node's UDP flows were searched for stale ones, by how that went."),
                    &["result"],
                ))?,
            stale_flows: group.add(IntCounter::new(
                    "stale_flows_total",
                    "UDP flows the kernel was told to forget because they led to a real server that is gone, or to none.",
                ))?,
            drains: group.add(IntCounterVec::new(
                Opts::new("drains_total", "Real servers that have left, by whether they still had active connections (`cut`) or not (`finished`)."),
                &["result"],
            ))?,
            drifts: group.add(IntCounterVec::new(
                Opts::new("drifts_total", "Passes that found the kernel other than it had been left, by what they were for."),
                &["pass"],
            ))?,
            differing: group.add(Gauge::new(
                "differing_seconds",
                "For how long the kernel has held something else than what is desired; 0 while it holds just that.",
            ))?,
            traffic_reads: group.add(IntCounterVec::new(
                Opts::new("traffic_reads_total", "Times the kernel's traffic counters were to be read for a scrape, by how that went."),
                &["result"],
            ))?,
            process: Process::new()?,
            group: group.finish(),
            upstream,
            requests,
        })
    }

    /// Counts a pass that took `duration`; `success` when the kernel took all of it.
    pub(crate) fn count_pass(&self, pass: Pass, duration: Duration, success: bool) {
        self.syncs.with_label_values(&[pass.label(), result(success)]).inc();
        self.sync_duration.observe(duration.as_secs_f64());
        self.upstream.count_pass(duration);
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

    /// Counts a search for stale flows of `family`, with how many were found; `None` when it failed.
    pub(crate) fn count_flush(&self, family: Family, duration: Duration, found: Option<usize>) {
        self.upstream.count_flow_search(family, duration, found.unwrap_or_default());
        self.flushes.with_label_values(&[result(found.is_some())]).inc();
        self.stale_flows.inc_by(found.unwrap_or_default() as u64);
    }

    /// Notes that the kernel now holds all that is desired.
    pub(crate) fn count_complete(&self) {
        self.last_success.set(unix_seconds());
    }

    /// Notes that all that was told is saved, and as much as a start needs.
    pub(crate) fn count_saved(&self) {
        self.saved_at.set(unix_seconds());
    }

    /// Notes that the configuration file was read again.
    pub(crate) fn count_reload(&self, success: bool) {
        self.reloads.with_label_values(&[result(success)]).inc();
        self.reloaded.set(success.into());
        if success {
            self.reloaded_at.set(unix_seconds());
        }
    }

    /// Counts a real server that has left, and that had active connections or not.
    pub(crate) fn count_drain(&self, cut: bool) {
        self.drains.with_label_values(&[if cut { "cut" } else { "finished" }]).inc();
    }

    /// Counts a pass that found what others have changed.
    pub(crate) fn count_drift(&self, pass: Pass) {
        self.drifts.with_label_values(&[pass.label()]).inc();
    }

    /// How many repairs there have been, by stage.
    pub(crate) fn repairs_by_stage(&self) -> BTreeMap<String, u64> {
        let families = self.repairs.collect();
        let labels = families.iter().flat_map(MetricFamily::get_metric).flat_map(Metric::get_label);
        let count = |stage: &str| (stage.to_owned(), self.repairs.with_label_values(&[stage]).get());
        labels.map(|stage| count(stage.value())).collect()
    }

    /// Notes for how long the kernel and what is desired have differed; zero while they do not.
    pub(crate) fn note_differing(&self, elapsed: Duration) {
        self.differing.set(elapsed.as_secs_f64());
    }

    /// Counts a reading of the kernel's traffic counters.
    pub(crate) fn count_reading(&self, reading: Reading) {
        let label = match reading {
            Reading::Done => "success",
            Reading::Failed => "error",
            Reading::Late => "late",
        };
        self.traffic_reads.with_label_values(&[label]).inc();
    }

    /// Notes for how long nothing has been heard of a kind of object.
    pub(crate) fn note_staleness(&self, kind: &str, age: Duration) {
        self.staleness.with_label_values(&[kind]).set(age.as_secs_f64());
    }

    fn groups(&self) -> [&Registered; 4] {
        [&self.group, &self.upstream.group, &self.requests.group, &self.process.group]
    }

    /// The exposition text, in version 0.0.4 of the format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        self.process.update();
        let mut text = Vec::new();
        for group in self.groups() {
            TextEncoder::new().encode(&group.registry.gather(), &mut text)?;
        }
        Ok(text)
    }
}

const fn result(success: bool) -> &'static str {
    if success { "success" } else { "error" }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
