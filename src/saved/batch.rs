//! Changes that have yet to be written. Later ones of an object replace earlier ones, so there are never more than there are objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Event, Kind, Object};

/// What an object is called among those of its kind: `namespace/name`, or `name`.
pub(super) type Name = Box<str>;

/// What is to be done to what is saved: first leave out what the listings do not name, then the changes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    /// The names in the last complete listing.
    pub(super) listed: BTreeMap<Kind, BTreeSet<Name>>,
    /// Objects that are there, and `None` for those that are not.
    pub(super) changes: BTreeMap<(Kind, Name), Option<Object>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.changes.is_empty()
    }

    /// Adds what has come after it.
    pub(super) fn extend(&mut self, later: Self) {
        for (kind, names) in later.listed {
            self.list(kind, names);
        }
        self.changes.extend(later.changes);
    }

    fn list(&mut self, kind: Kind, names: BTreeSet<Name>) {
        self.changes.retain(|(changed, name), _| *changed != kind || names.contains(name));
        self.listed.insert(kind, names);
    }
}

/// Makes batches of what is told.
#[derive(Debug, Default)]
pub(super) struct Collector {
    batch: Batch,
    /// The names in listings that are not complete.
    under_way: BTreeMap<Kind, BTreeSet<Name>>,
}

impl Collector {
    pub(super) fn note(&mut self, event: Event) {
        match event {
            Event::Listing(kind) => drop(self.under_way.insert(kind, BTreeSet::new())),
            Event::Listed(kind) => {
                if let Some(names) = self.under_way.remove(&kind) {
                    self.batch.list(kind, names);
                }
            }
            Event::Applied(object) => {
                let Some(name) = name(&object) else { return };
                let kind = object.kind();
                if let Some(names) = self.under_way.get_mut(&kind) {
                    names.insert(name.clone());
                }
                self.batch.changes.insert((kind, name), Some(object));
            }
            Event::Deleted(object) => {
                let Some(name) = name(&object) else { return };
                let kind = object.kind();
                if let Some(names) = self.under_way.get_mut(&kind) {
                    names.remove(&name);
                }
                self.batch.changes.insert((kind, name), None);
            }
            Event::Trouble { .. } => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(super) fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }
}

/// `None` for an object that no API server would have taken: its name could not be told from others in the files.
fn name(object: &Object) -> Option<Name> {
    let metadata = object.metadata();
    let name = metadata.name.as_deref().filter(|name| !name.is_empty())?;
    let whole = metadata.namespace.as_ref().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    (!whole.contains('\n')).then(|| whole.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved::format::tests::service;

    #[test]
    fn later_changes_replace_earlier_and_listings_end_what_they_do_not_name() {
        let mut collector = Collector::default();
        for event in [
            Event::Applied(service("before", 1)),
            Event::Deleted(service("gone", 1)),
            Event::Listing(Kind::Service),
            Event::Applied(service("given-up", 1)),
            Event::Listing(Kind::Service),
            Event::Applied(service("kept", 1)),
            Event::Applied(service("deleted", 1)),
            Event::Deleted(service("deleted", 1)),
            Event::Listed(Kind::Service),
            Event::Applied(service("kept", 2)),
            Event::Applied(service("after", 1)),
        ] {
            collector.note(event);
        }
        let batch = collector.take();
        assert!(collector.is_empty());
        assert_eq!(batch.listed, BTreeMap::from([(Kind::Service, BTreeSet::from(["shop/kept".into()]))]));
        let changes = ["after", "kept"]
            .map(|name| ((Kind::Service, format!("shop/{name}").into()), Some(service(name, if name == "kept" { 2 } else { 1 }))));
        assert_eq!(batch.changes, BTreeMap::from(changes));

        let mut unwritten = Batch::default();
        unwritten.changes.insert((Kind::Service, "shop/old".into()), Some(service("old", 1)));
        unwritten.changes.insert((Kind::Service, "shop/after".into()), None);
        unwritten.extend(batch);
        assert_eq!(unwritten.changes.keys().map(|(_, name)| &**name).collect::<Vec<_>>(), ["shop/after", "shop/kept"]);
        assert!(unwritten.changes.values().all(Option::is_some));
    }
}
