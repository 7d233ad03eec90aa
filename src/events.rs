//! News as Kubernetes Events: `kubectl describe service` shows problems to the Service's author, who does not read a node's log, and
//! `kubectl describe node` what happens to the node as a whole.
//!
//! An Event is news and nothing that anything depends on. So nobody waits for one: reports go into a queue that drops what does not
//! fit, and leave it at a pace that an API server does not notice, however many nodes see the same thing. The name of an Event follows
//! from what it says. Whoever says the same again, be it this agent after a restart or that of another node, is told that the Event is
//! there already, and that is that.

mod report;

use std::collections::BTreeSet;
use std::time::Duration;

use desired::Problem;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::register::Subject;

pub(crate) use report::Happening;
use report::{NAMESPACE_OF_NODES, Report};

/// How long the end of the process may wait for its last Event to be taken.
const LAST_WORDS: Duration = Duration::from_secs(5);

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
        self.queue(Report::of(subject, problem));
    }

    /// Says what has happened to this node; never waits.
    pub(crate) fn tell(&self, happening: Happening, note: String) {
        self.tell_of(Subject::Node, happening, note);
    }

    /// Says what has happened on this node to `subject`; never waits.
    pub(crate) fn tell_of(&self, subject: Subject, happening: Happening, note: String) {
        self.queue(Report::that(subject, happening, note));
    }

    fn queue(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            count(&self.metrics, Outcome::Dropped);
        }
    }
}

fn count(metrics: &Metrics, outcome: Outcome) {
    metrics.events.with_label_values(&[outcome.label()]).inc();
}

/// Says why the process ends, in its last seconds, and does not insist.
pub(crate) async fn last_words(client: Client, node_name: String, note: String) {
    let speaker = Speaker { client: &client, node_name: &node_name };
    match timeout(LAST_WORDS, speaker.write(&Report::that(Subject::Node, Happening::Failed, note))).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(%error, "the last Kubernetes Event was not taken"),
        Err(_) => debug!("the last Kubernetes Event was not taken within {} s", LAST_WORDS.as_secs()),
    }
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
            debug!(subject = %report.subject, reason = report.reason, ?outcome, "a Kubernetes Event");
            count(&self.metrics, outcome);
        }
    }

    async fn deliver(&mut self, report: &Report) -> Outcome {
        let mut waits = self.tuning.retries.clone().into_iter();
        loop {
            let (cause, sentence) = match timeout(self.tuning.patience, self.speaker().write(report)).await {
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

    fn speaker(&self) -> Speaker<'_> {
        Speaker { client: &self.client, node_name: &self.node_name }
    }
}

/// Writes single Events in the name of a node.
struct Speaker<'a> {
    client: &'a Client,
    node_name: &'a str,
}

impl Speaker<'_> {
    async fn write(&self, report: &Report) -> kube::Result<Outcome> {
        let Some(regarding) = self.object(&report.subject).await? else { return Ok(Outcome::Outdated) };
        let event = report.event(regarding, self.node_name);
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
    /// kubectl finds Events by the uid of their object. Of a Node it looks for the name in that place, as the kubelet and kube-proxy write it; newer ones
    /// for the uid as well. Of a Service, whose problems are rare and whose uids are many, the uid is asked for and not kept; as a list, because an agent
    /// that may watch may list, and with a selector for the name the server reads just the one object.
    async fn object(&self, subject: &Subject) -> kube::Result<Option<ObjectReference>> {
        let (kind, metadata) = match subject {
            Subject::Service(name) => ("Service", {
                let services = Api::<Service>::namespaced(self.client.clone(), name.namespace());
                let by_name = ListParams::default().fields(&format!("metadata.name={}", name.name()));
                services.list_metadata(&by_name).await?.items.into_iter().next().map(|object| object.metadata)
            }),
            Subject::Node => ("Node", {
                let name = Some(self.node_name.to_owned());
                Some(ObjectMeta { name: name.clone(), uid: name, ..ObjectMeta::default() })
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

#[cfg(test)]
pub(crate) mod tests;
