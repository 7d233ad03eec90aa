//! What is wrong with a file.

use std::fmt;

/// One thing that is wrong, or strange, and on which line of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// The field's path, as `ipvs.scheduler`; empty for what is about a document as a whole.
    pub field: String,
    /// What is the matter and what would do, to be read after the field.
    pub message: String,
}

impl Problem {
    /// `message` about `field` on `line`.
    #[must_use]
    pub fn new(line: usize, field: &str, message: impl Into<String>) -> Self {
        Self { line, field: field.to_owned(), message: message.into() }
    }
}

/// As a line that begins with what is to be found: `line 3: ipvs.scheduler: …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, field, message } = self;
        write!(f, "line {line}: ")?;
        if field.is_empty() { f.write_str(message) } else { write!(f, "{field}: {message}") }
    }
}
