//! Everything that is not served as it is written, whoever finds it out: reported once when it appears, in the log, as a metric and,
//! where there is an API server, as a Kubernetes Event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use desired::{Problem, Reason, ServiceName};
use tracing::warn;

use crate::events::Events;
use crate::metrics::Metrics;

/// What a problem is a problem of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A Service, whose slices count as parts of it.
    Service(ServiceName),
    /// This node's Node.
    Node,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Node => f.write_str("Node"),
        }
    }
}

/// Where problems come from. Each tells all it has to say of a subject, and knows nothing of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// What the objects themselves say.
    Objects,
    /// What Services want of each other.
    Others,
    /// What the kernel did not take.
    Kernel,
}

/// The problems there are.
pub(crate) struct Register {
    problems: BTreeMap<(Subject, Origin), BTreeSet<Problem>>,
    metrics: Metrics,
    /// `None` where nobody takes Events.
    events: Option<Events>,
}

impl Register {
    /// Without problems yet.
    pub(crate) fn new(metrics: Metrics, events: Option<Events>) -> Self {
        for reason in Reason::ALL {
            metrics.problems.with_label_values(&[reason.as_str()]).set(0);
        }
        Self { problems: BTreeMap::new(), metrics, events }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Replaces what `origin` has to say of `subject`. What it has not said before is reported.
    pub(crate) fn set(&mut self, subject: Subject, origin: Origin, problems: &[Problem]) {
        let key = (subject, origin);
        let before = self.problems.remove(&key).unwrap_or_default();
        if before.is_empty() && problems.is_empty() {
            return;
        }
        let after: BTreeSet<_> = problems.iter().cloned().collect();
        for problem in after.difference(&before) {
            self.metrics.problems.with_label_values(&[problem.reason.as_str()]).inc();
            warn!(reason = %problem.reason, subject = %key.0, %problem, "an object cannot be served as it is");
            if let Some(events) = &self.events {
                events.report(&key.0, problem);
            }
        }
        for problem in before.difference(&after) {
            self.metrics.problems.with_label_values(&[problem.reason.as_str()]).dec();
        }
        if !after.is_empty() {
            self.problems.insert(key, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_counted_by_reason_while_they_last() {
        let metrics = Metrics::new().unwrap();
        let mut register = Register::new(metrics.clone(), None);
        let count = |reason: Reason| metrics.problems.with_label_values(&[reason.as_str()]).get();
        let web = || Subject::Service(ServiceName::new("shop", "web"));
        let problem = |reason, message: &str| Problem::new(reason, "Service shop/web", "spec", message);
        let odd = [problem(Reason::InvalidField, "is odd"), problem(Reason::InvalidField, "is odd")];
        let taken = [problem(Reason::Conflict, "is taken"), problem(Reason::Conflict, "is taken as well")];

        register.set(web(), Origin::Objects, &odd);
        register.set(web(), Origin::Others, &taken);
        assert_eq!((count(Reason::InvalidField), count(Reason::Conflict)), (1, 2), "said twice is one problem");
        register.set(web(), Origin::Objects, &odd);
        register.set(web(), Origin::Others, &taken[1..]);
        assert_eq!((count(Reason::InvalidField), count(Reason::Conflict)), (1, 1));
        register.set(web(), Origin::Objects, &[]);
        register.set(web(), Origin::Others, &[]);
        register.set(Subject::Node, Origin::Objects, &[]);
        assert_eq!((count(Reason::InvalidField), count(Reason::Conflict), register.is_empty()), (0, 0, true));
    }
}
