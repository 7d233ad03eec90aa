//! What is wrong with an object, said so that its author can mend it.

use std::fmt;

/// How many problems of one object are kept; the rest is counted. An object can be a megabyte of nonsense.
const MAX_PER_OBJECT: usize = 16;

/// How much of a wrong text is repeated to its author.
const MAX_QUOTED: usize = 64;

/// A part of an object that is not served, and why. Everything else of the object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// What kind of problem it is.
    pub reason: Reason,
    /// The object, such as `Service shop/web`.
    pub object: Box<str>,
    /// The field, such as `spec.ports[1].port`.
    pub field: Box<str>,
    /// What is wrong with the field and what to do, to be read after the field's name.
    pub message: Box<str>,
}

/// What kind of problem it is, in one word. The words label metrics and are the reasons of Kubernetes Events, so they do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A field has a value that the API does not give a meaning.
    InvalidField,
    /// An older Service has the same address, port and protocol.
    Conflict,
    /// An address is not this Service's to take.
    AddressRefused,
    /// An annotation asks for a scheduler that the kernel does not have.
    UnknownScheduler,
    /// A program of the node listens on the port.
    PortInUse,
    /// All packet marks are given to other frontends.
    NoPacketMark,
    /// The kernel did not take a virtual server, or a part of it.
    KernelRefused,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::InvalidField,
        Self::Conflict,
        Self::AddressRefused,
        Self::UnknownScheduler,
        Self::PortInUse,
        Self::NoPacketMark,
        Self::KernelRefused,
    ];

    /// The word, in the form that Kubernetes has reasons in.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidField => "InvalidField",
            Self::Conflict => "Conflict",
            Self::AddressRefused => "AddressRefused",
            Self::UnknownScheduler => "UnknownScheduler",
            Self::PortInUse => "PortInUse",
            Self::NoPacketMark => "NoPacketMark",
            Self::KernelRefused => "KernelRefused",
        }
    }

    /// Whether the problem is one of this node. All other problems follow from the objects, and every node that sees those has them.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        match self {
            Self::InvalidField | Self::Conflict | Self::AddressRefused => false,
            Self::UnknownScheduler | Self::PortInUse | Self::NoPacketMark | Self::KernelRefused => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Problem {
    /// `object` is named as in `Service shop/web`; `message` is read after `field`.
    #[must_use]
    pub fn new(reason: Reason, object: &str, field: &str, message: &str) -> Self {
        Self { reason, object: object.into(), field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.object, self.field, self.message)
    }
}

impl std::error::Error for Problem {}

/// Collects the problems of one object while it is read.
#[derive(Debug)]
pub(crate) struct Problems {
    object: Box<str>,
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(crate) fn of(kind: &'static str, name: impl fmt::Display) -> Self {
        Self { object: format!("{kind} {name}").into(), list: Vec::new(), more: 0 }
    }

    /// Adds an [invalid field](Reason::InvalidField).
    pub(crate) fn add(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        self.add_for(Reason::InvalidField, field, message);
    }

    /// Adds a problem of another kind.
    pub(crate) fn add_for(&mut self, reason: Reason, field: impl AsRef<str>, message: impl AsRef<str>) {
        if self.list.len() < MAX_PER_OBJECT {
            self.list.push(Problem::new(reason, &self.object, field.as_ref(), message.as_ref()));
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Box<[Problem]> {
        if let Some(last) = self.list.last().filter(|_| self.more > 0) {
            let more = format!("has {} more such problems", self.more);
            self.list.push(Problem::new(last.reason, &self.object, "the object", &more));
        }
        self.list.into()
    }
}

/// `text` in quotes, with nothing in it that could break a line, and cut where it stops being of use.
pub(crate) fn quoted(text: &str) -> String {
    let mut characters = text.chars();
    let shown: String = characters.by_ref().take(MAX_QUOTED).collect();
    let rest = if characters.next().is_some() { "…" } else { "" };
    format!("{shown:?}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_problems_are_counted_and_not_kept() {
        let mut problems = Problems::of("Service", "shop/web");
        (0..1000).for_each(|index| problems.add(format!("spec.ports[{index}]"), "is odd"));
        let list = problems.finish();
        assert_eq!(list.len(), MAX_PER_OBJECT + 1);
        assert_eq!(list.last().unwrap().to_string(), "Service shop/web: the object has 984 more such problems");
    }

    #[test]
    fn reasons_are_words_as_kubernetes_has_them_and_differ() {
        let words: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(
            words.iter().all(|word| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphabetic)),
            "{words:?}"
        );
    }

    #[test]
    fn a_quoted_text_stays_on_its_line() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"x".repeat(1000)).chars().count(), MAX_QUOTED + 3);
    }
}
