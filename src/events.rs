//! Problems as Kubernetes Events: `kubectl describe service` shows them to the Service's author, who does not read a node's log.
//!
//! An Event is news and nothing that anything depends on. So nobody waits for one: reports go into a queue that drops what does not
//! fit, and leave it at a pace that an API server does not notice, however many nodes see the same thing. The name of an Event follows
//! from what it says. Whoever says the same again, be it this agent after a restart or that of another node, is told that the Event is
//! there already, and that is that.

use std::collections::BTreeSet;
use std::time::Duration;

use desired::Problem;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::register::Subject;

/// Who reports, as the API has it: a qualified name.
const CONTROLLER: &str = "kube-ipvs";
/// What was being done when the problem was found. The API wants a word, and kubectl does not show it.
const ACTION: &str = "Serving";
/// The API's limit for a note: 1 KiB.
const MAX_NOTE: usize = 1024;
/// The API's limit for the name of a reporter.
const MAX_INSTANCE: usize = 128;
/// The API's limit for names.
const MAX_NAME: usize = 253;
/// Where Events go that are about objects without a namespace; the API takes no other.
const NAMESPACE_OF_NODES: &str = "default";

/// What can be adjusted; tests hurry.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// Reports that may wait.
    pub(crate) queue: usize,
    /// Reports that may be written at once.
    pub(crate) burst: u32,
    /// After that, one in this time.
    pub(crate) interval: Duration,
    /// How long an answer may take.
    pub(crate) patience: Duration,
    /// The waits before one that the server could not take for now is tried again.
    pub(crate) retries: Vec<Duration>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            queue: 1024,
            // As many as client-go lets pass for one object.
            burst: 25,
            interval: Duration::from_secs(1),
            patience: Duration::from_secs(15),
            retries: [1, 4, 16].map(Duration::from_secs).into(),
        }
    }
}

/// Where problems are reported. Cloning shares the queue.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Report>,
    metrics: Metrics,
}

struct Report {
    subject: Subject,
    problem: Problem,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// An Event was made.
    Written,
    /// There is one that says the same.
    Repeated,
    /// The object that it is about is gone.
    Outdated,
    /// The API server did not take it.
    Failed,
    /// Too many were waiting.
    Dropped,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Written, Self::Repeated, Self::Outdated, Self::Failed, Self::Dropped];

    const fn label(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Repeated => "repeated",
            Self::Outdated => "outdated",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Why something failed, as far as that is one reason to tell people: the HTTP status, or none where there was no answer.
type Cause = Option<u16>;

impl Events {
    /// Reports a problem; never waits.
    pub(crate) fn report(&self, subject: &Subject, problem: &Problem) {
        let report = Report { subject: subject.clone(), problem: problem.clone() };
        if self.queue.try_send(report).is_err() {
            count(&self.metrics, Outcome::Dropped);
        }
    }
}

fn count(metrics: &Metrics, outcome: Outcome) {
    metrics.events.with_label_values(&[outcome.label()]).inc();
}

/// Writes what is reported. It ends when nobody can report any more.
pub(crate) struct Writer {
    client: Client,
    node_name: String,
    tuning: Tuning,
    queue: mpsc::Receiver<Report>,
    pace: Pace,
    metrics: Metrics,
    /// The causes of failures that have been logged.
    logged: BTreeSet<Cause>,
}

/// A queue and who empties it, by writing to the API server behind `client` in the name of the node called `node_name`.
pub(crate) fn channel(client: Client, node_name: String, tuning: Tuning, metrics: Metrics) -> (Events, Writer) {
    for outcome in Outcome::ALL {
        metrics.events.with_label_values(&[outcome.label()]).inc_by(0);
    }
    let (sender, queue) = mpsc::channel(tuning.queue);
    let pace = Pace::new(tuning.interval, tuning.burst);
    let events = Events { queue: sender, metrics: metrics.clone() };
    (events, Writer { client, node_name, tuning, queue, pace, metrics, logged: BTreeSet::new() })
}

impl Writer {
    pub(crate) async fn run(mut self) {
        while let Some(report) = self.queue.recv().await {
            sleep_until(self.pace.next(Instant::now())).await;
            let outcome = self.deliver(&report).await;
            debug!(subject = %report.subject, reason = %report.problem.reason, ?outcome, "a Kubernetes Event");
            count(&self.metrics, outcome);
        }
    }

    async fn deliver(&mut self, report: &Report) -> Outcome {
        let mut waits = self.tuning.retries.clone().into_iter();
        loop {
            let (cause, sentence) = match timeout(self.tuning.patience, self.write(report)).await {
                Ok(Ok(outcome)) => {
                    self.logged.retain(|cause| !is_passing(*cause));
                    return outcome;
                }
                Ok(Err(error)) => (cause(&error), error.to_string()),
                Err(_) => (None, format!("no answer within {} s", self.tuning.patience.as_secs_f32())),
            };
            if self.logged.insert(cause) {
                let remedy = match cause {
                    Some(401 | 403) => "; the agent's role has to allow `create` for `events` in the group `events.k8s.io`",
                    _ => "",
                };
                warn!("Kubernetes Events cannot be written, and problems are in the log and the metrics alone: {sentence}{remedy}");
            }
            match waits.next().filter(|_| is_passing(cause)) {
                Some(wait) => sleep(wait).await,
                None => return Outcome::Failed,
            }
        }
    }

    async fn write(&self, Report { subject, problem }: &Report) -> kube::Result<Outcome> {
        let Some(regarding) = self.regarding(subject).await? else { return Ok(Outcome::Outdated) };
        let event = event(regarding, problem, note(subject, problem), &self.node_name);
        let namespace = event.metadata.namespace.as_deref().unwrap_or(NAMESPACE_OF_NODES);
        let created = Api::<Event>::namespaced(self.client.clone(), namespace).create(&PostParams::default(), &event).await;
        match created {
            Ok(_) => Ok(Outcome::Written),
            Err(error) => match cause(&error) {
                Some(409) => Ok(Outcome::Repeated),
                // The namespace has gone with all that was in it.
                Some(404) => Ok(Outcome::Outdated),
                _ => Err(error),
            },
        }
    }

    /// The object as an Event refers to it; `None` when it is not there any more.
    ///
    /// kubectl finds Events by the uid of their object. Problems are rare and uids are many, so it is asked for and not kept; as a list,
    /// because an agent that may watch may list, and with a selector for the name the server reads just the one object.
    async fn regarding(&self, subject: &Subject) -> kube::Result<Option<ObjectReference>> {
        let by_name = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let (kind, metadata) = match subject {
            Subject::Service(name) => ("Service", {
                let services = Api::<Service>::namespaced(self.client.clone(), name.namespace());
                services.list_metadata(&by_name(name.name())).await?.items.into_iter().next().map(|object| object.metadata)
            }),
            Subject::Node => ("Node", {
                let nodes = Api::<Node>::all(self.client.clone());
                nodes.list_metadata(&by_name(&self.node_name)).await?.items.into_iter().next().map(|object| object.metadata)
            }),
        };
        Ok(metadata.map(|ObjectMeta { name, namespace, uid, .. }| ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name,
            namespace,
            uid,
            ..ObjectReference::default()
        }))
    }
}

fn cause(error: &kube::Error) -> Cause {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether the next attempt may well succeed.
const fn is_passing(cause: Cause) -> bool {
    matches!(cause, None | Some(429 | 500..=599))
}

fn event(regarding: ObjectReference, problem: &Problem, note: String, node_name: &str) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&regarding, problem, &note, node_name)),
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| NAMESPACE_OF_NODES.to_owned())),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(problem.reason.as_str().to_owned()),
        action: Some(ACTION.to_owned()),
        note: Some(note),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(node_name, MAX_INSTANCE).to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        ..Event::default()
    }
}

/// What is to be read where the object is known: without its name.
fn note(subject: &Subject, problem: &Problem) -> String {
    const ELLIPSIS: char = '…';
    let Problem { object, field, message, .. } = problem;
    let own = match subject {
        Subject::Service(_) => **object == *subject.to_string(),
        Subject::Node => true,
    };
    let text = if own { format!("{field} {message}") } else { problem.to_string() };
    if text.len() <= MAX_NOTE { text } else { format!("{}{ELLIPSIS}", cut(&text, MAX_NOTE - ELLIPSIS.len_utf8())) }
}

/// The object's name and a hash of what is said of it, and of who says it where that is part of the news.
fn event_name(regarding: &ObjectReference, problem: &Problem, note: &str, node_name: &str) -> String {
    let uid = regarding.uid.as_deref().unwrap_or_default();
    let speaker = if problem.reason.is_of_node() { node_name } else { "" };
    let hash = fnv1a([uid, problem.reason.as_str(), note, speaker]);
    let suffix = format!(".{hash:016x}");
    let object = cut(regarding.name.as_deref().unwrap_or_default(), MAX_NAME - suffix.len());
    // A label that is cut must not end in what a label cannot end in.
    format!("{}{suffix}", object.trim_end_matches(['-', '.']))
}

/// The 64-bit FNV-1a hash (Fowler, Noll and Vo), which is the same everywhere and for ever.
fn fnv1a<const N: usize>(texts: [&str; N]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// As much of `text` as fits `bytes` without cutting a character.
fn cut(text: &str, bytes: usize) -> &str {
    (0..=bytes).rev().find_map(|end| text.get(..end)).filter(|_| text.len() > bytes).unwrap_or(text)
}

#[cfg(test)]
pub(crate) mod tests;
