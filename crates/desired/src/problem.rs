//! What is wrong with an object, said so that its author can mend it.

use std::fmt;

/// How many problems of one object are kept; the rest is counted. An object can be a megabyte of nonsense.
const MAX_PER_OBJECT: usize = 16;

/// How much of a wrong text is repeated to its author.
const MAX_QUOTED: usize = 64;

/// A part of an object that is not served, and why. Everything else of the object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object, such as `Service shop/web`.
    pub object: Box<str>,
    /// The field, such as `spec.ports[1].port`.
    pub field: Box<str>,
    /// What is wrong with the field and what to do, to be read after the field's name.
    pub message: Box<str>,
}

impl Problem {
    pub(crate) fn new(object: &str, field: &str, message: &str) -> Self {
        Self { object: object.into(), field: field.into(), message: message.into() }
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

    pub(crate) fn add(&mut self, field: impl AsRef<str>, message: impl AsRef<str>) {
        if self.list.len() < MAX_PER_OBJECT {
            self.list.push(Problem::new(&self.object, field.as_ref(), message.as_ref()));
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Box<[Problem]> {
        if self.more > 0 {
            self.list.push(Problem::new(&self.object, "the object", &format!("has {} more such problems", self.more)));
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
    fn a_quoted_text_stays_on_its_line() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"x".repeat(1000)).chars().count(), MAX_QUOTED + 3);
    }
}
