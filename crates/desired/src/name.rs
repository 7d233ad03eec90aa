//! Names of objects, one allocation each.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::object::ObjectMeta;
use crate::problem::{Problem, Reason, quoted};

/// The namespace and name of a Service, written `namespace/name`.
///
/// Cloning shares the text. Order is that of the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

/// The longest name of an object in bytes: a DNS subdomain (RFC 1123), as the API server holds them to.
const MAX: usize = 253;

impl ServiceName {
    /// The Service called `name` in `namespace`. An empty `namespace` is `default`, as it is for kubectl.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let mut text = String::with_capacity(namespace.len() + 1 + name.len());
        text.push_str(namespace);
        text.push('/');
        text.push_str(name);
        Self(text.into())
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// The name an object of `kind` goes by.
    ///
    /// # Errors
    /// When there is no name, or one that would be ambiguous in `namespace/name`. No API server hands out such an object, but a
    /// manifest may hold one.
    pub(crate) fn of(kind: &'static str, metadata: &ObjectMeta) -> Result<Self, Problem> {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let object = || format!("{kind} {} in namespace {}", quoted(name), quoted(namespace));
        if name.is_empty() {
            return Err(Problem::new(
                Reason::InvalidField,
                &object(),
                "metadata.name",
                "is missing; give the object a name, without one it is ignored",
            ));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        let is_clear = |name: &str| !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        let is_fit = |name: &str| name.len() <= MAX && (name.bytes().all(is_plain) || is_clear(name));
        if !is_fit(name) || !is_fit(namespace) {
            return Err(Problem::new(
                Reason::InvalidField,
                &object(),
                "metadata",
                "has a name or namespace with a '/' or a space in it, or of more than 253 bytes; rename the object, as it stands it is ignored",
            ));
        }
        Ok(Self::new(namespace, name))
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceName({self})")
    }
}

/// A name that many objects refer to, one word each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(Arc<Box<str>>);

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(Arc::new(name.into()))
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

/// Shares the names that many objects refer to: thousands of slices name the same few nodes.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeSet<Name>,
    /// At how many names those that nobody refers to any more are forgotten.
    limit: usize,
}

impl Names {
    /// `name`, sharing the text of the one that is known already.
    pub(crate) fn share(&mut self, name: &str) -> Name {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|Name(name)| Arc::strong_count(name) > 1);
            // Twice what is in use, so that looking through them all stays rare.
            self.limit = (self.known.len() * 2).max(Self::FEW);
        }
        let name = Name::from(name);
        self.known.insert(name.clone());
        name
    }

    /// So many are not worth looking through.
    const FEW: usize = 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_come_back() {
        let name = ServiceName::new("shop", "web");
        assert_eq!((name.namespace(), name.name(), name.to_string().as_str()), ("shop", "web", "shop/web"));
        assert_eq!(ServiceName::new("", "web").namespace(), "default");
    }

    #[test]
    fn names_are_shared_while_they_are_in_use_and_forgotten_after() {
        let mut names = Names::default();
        let (one, again) = (names.share("node-1"), names.share("node-1"));
        assert!(Arc::ptr_eq(&one.0, &again.0));
        for number in 0..100_000 {
            names.share(&format!("gone-{number}"));
        }
        assert!(names.known.len() <= Names::FEW, "{} names are kept", names.known.len());
        assert!(Arc::ptr_eq(&one.0, &names.share("node-1").0));
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let metadata = |namespace: &str, name: &str| ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        };
        assert!(ServiceName::of("Service", &metadata("a/b", "c")).is_err());
        assert!(ServiceName::of("Service", &metadata("a", "b/c")).is_err());
        assert_eq!(
            ServiceName::of("Service", &metadata("a", "")).unwrap_err().to_string(),
            "Service \"\" in namespace \"a\": metadata.name is missing; give the object a name, without one it is ignored"
        );
    }
}
