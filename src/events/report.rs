//! What is said of an object, as the API takes it.

use std::time::{SystemTime, UNIX_EPOCH};

use desired::Problem;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use crate::register::Subject;

/// Who reports, as the API has it: a qualified name.
const CONTROLLER: &str = "kube-ipvs";
/// What was being done. The API wants a word, and kubectl does not show it.
const ACTION: &str = "Serving";
/// The API's limit for a note: 1 KiB.
pub(super) const MAX_NOTE: usize = 1024;
/// The API's limit for the name of a reporter.
const MAX_INSTANCE: usize = 128;
/// The API's limit for names.
pub(super) const MAX_NAME: usize = 253;
/// Where Events go that are about objects without a namespace; the API takes no other.
pub(super) const NAMESPACE_OF_NODES: &str = "default";

/// Something that is to be said of an object.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) subject: Subject,
    pub(super) reason: &'static str,
    note: String,
    tone: Tone,
    saying: Saying,
}

/// Whether somebody should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Normal,
    Warning,
}

/// What makes an Event of the same words another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saying {
    /// Nothing: every node that sees the same object says the same.
    OfAll,
    /// That another node says it.
    OfNode,
    /// That it is said at another time: nanoseconds since 1970.
    Once(u128),
}

/// What happens to this node as a whole, in one word. Those that kube-proxy has as well are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happening {
    /// The agent has started, as kube-proxy says it.
    Starting,
    /// The agent has ended, or could not begin.
    Failed,
    /// The kernel has held something else than what is desired for longer than `/healthz` forgives.
    OutOfSync,
    /// It holds what is desired again.
    InSync,
    /// Nothing has been heard of a kind of object for long.
    StaleObjects,
    /// All kinds are heard of again.
    FreshObjects,
    /// What others had changed in the kernel was undone.
    Repaired,
    /// The health port cannot be listened on.
    FailedToStartProxierHealthcheck,
    /// The metrics port cannot be listened on.
    FailedToStartMetricServer,
    /// A Service's health check node port cannot be listened on.
    FailedToStartServiceHealthcheck,
}

impl Happening {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Failed => "Failed",
            Self::OutOfSync => "OutOfSync",
            Self::InSync => "InSync",
            Self::StaleObjects => "StaleObjects",
            Self::FreshObjects => "FreshObjects",
            Self::Repaired => "Repaired",
            Self::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Self::FailedToStartMetricServer => "FailedToStartMetricServer",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Starting | Self::InSync | Self::FreshObjects => Tone::Normal,
            _ => Tone::Warning,
        }
    }

    /// Whether it is news each time. Who fails again and again, for the same reason, is one that has failed.
    const fn is_news(self) -> bool {
        matches!(self, Self::Starting | Self::InSync | Self::FreshObjects)
    }
}

impl Report {
    /// That a part of an object is not served.
    pub(super) fn of(subject: &Subject, problem: &Problem) -> Self {
        Self {
            subject: subject.clone(),
            reason: problem.reason.as_str(),
            note: note(subject, problem),
            tone: Tone::Warning,
            saying: if problem.reason.is_of_node() { Saying::OfNode } else { Saying::OfAll },
        }
    }

    /// That something has happened to this node, or on it to `subject`.
    pub(super) fn that(subject: Subject, happening: Happening, note: String) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let saying = if happening.is_news() { Saying::Once(now()) } else { Saying::OfNode };
        Self { subject, reason: happening.as_str(), note, tone: happening.tone(), saying }
    }

    /// The Event about the object that is referred to by `regarding`, told by the node called `node_name`.
    pub(super) fn event(&self, regarding: ObjectReference, node_name: &str) -> Event {
        let note = shortened(&self.note);
        Event {
            metadata: ObjectMeta {
                name: Some(self.event_name(&regarding, &note, node_name)),
                namespace: Some(regarding.namespace.clone().unwrap_or_else(|| NAMESPACE_OF_NODES.to_owned())),
                ..ObjectMeta::default()
            },
            type_: Some(format!("{:?}", self.tone)),
            reason: Some(self.reason.to_owned()),
            action: Some(ACTION.to_owned()),
            note: Some(note),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(cut(node_name, MAX_INSTANCE).to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            ..Event::default()
        }
    }

    /// The object's name and a hash of what is said of it, and of who says it, or when, where that is part of the news.
    fn event_name(&self, regarding: &ObjectReference, note: &str, node_name: &str) -> String {
        let uid = regarding.uid.as_deref().unwrap_or_default();
        let speaker = match self.saying {
            Saying::OfAll => String::new(),
            Saying::OfNode => node_name.to_owned(),
            Saying::Once(time) => format!("{node_name} {time}"),
        };
        let hash = fnv1a([uid, self.reason, note, &speaker]);
        let suffix = format!(".{hash:016x}");
        let object = cut(regarding.name.as_deref().unwrap_or_default(), MAX_NAME - suffix.len());
        // A label that is cut must not end in what a label cannot end in.
        format!("{}{suffix}", object.trim_end_matches(['-', '.']))
    }
}

/// What is to be read where the object is known: without its name.
fn note(subject: &Subject, problem: &Problem) -> String {
    let Problem { object, field, message, .. } = problem;
    let own = match subject {
        Subject::Service(_) => **object == *subject.to_string(),
        Subject::Node => true,
    };
    if own { format!("{field} {message}") } else { problem.to_string() }
}

fn shortened(note: &str) -> String {
    const ELLIPSIS: char = '…';
    if note.len() <= MAX_NOTE { note.to_owned() } else { format!("{}{ELLIPSIS}", cut(note, MAX_NOTE - ELLIPSIS.len_utf8())) }
}

/// The 64-bit FNV-1a hash (Fowler, Noll and Vo), which is the same everywhere and for ever.
fn fnv1a<const N: usize>(texts: [&str; N]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// As much of `text` as fits `bytes` without cutting a character.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    (0..=bytes).rev().find_map(|end| text.get(..end)).filter(|_| text.len() > bytes).unwrap_or(text)
}
