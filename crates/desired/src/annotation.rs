//! The annotations of Services.

use std::fmt;

use crate::object;

/// The key of an annotation; shown as the field it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Annotation(pub(crate) &'static str);

impl Annotation {
    pub(crate) fn of(self, object: &object::Service) -> Option<&str> {
        object.metadata.annotations.as_ref()?.get(self.0).map(|text| text.trim())
    }
}

impl fmt::Display for Annotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata.annotations[{}]", self.0)
    }
}

/// The text of the first of `annotations` that `object` has, with its name; one that is empty counts as not there.
pub(crate) fn first_of<const N: usize>(object: &object::Service, annotations: [Annotation; N]) -> Option<(Annotation, &str)> {
    annotations.into_iter().find_map(|annotation| Some((annotation, annotation.of(object).filter(|text| !text.is_empty())?)))
}
