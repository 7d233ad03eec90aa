//! What is wrong with a message, in one sentence.

use std::fmt;

/// A message that cannot be read, or cannot be written because a value has no place in it.
///
/// It says which part of which message it is about. There is nothing to match on: whoever gets it from a reader has no observation,
/// and whoever gets it from a writer has a value that the kernel has no room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(Box<str>);

impl Malformed {
    pub(crate) fn new(sentence: impl Into<Box<str>>) -> Self {
        Self(sentence.into())
    }
}

/// A well-formed object of the kernel: one that [`model`] has words for, or one that it has not.
///
/// Other tools may use protocols, set types and address families that this project never makes. Such an object is not ours to touch,
/// and must not spoil the reading of those beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<T> {
    /// An object in the words of the model.
    Known(T),
    /// An object of another tool's making.
    Foreign(Foreign),
}

impl<T> Decoded<T> {
    /// The object, if the model has words for it.
    #[must_use]
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Foreign(_) => None,
        }
    }

    pub(crate) fn foreign(reason: impl Into<Box<str>>) -> Self {
        Self::Foreign(Foreign(reason.into()))
    }
}

/// Why an object has no place in the model, as a phrase for a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign(Box<str>);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Refuses a name the kernel has no room for, or that its C string would cut short.
pub(crate) fn check_name(what: &str, name: &str, max: usize) -> Result<(), Malformed> {
    if name.is_empty() || name.len() > max || name.contains('\0') {
        return Err(Malformed::new(format!("{name:?} cannot be the name of {what}: a name has 1 to {max} bytes and no NUL")));
    }
    Ok(())
}
