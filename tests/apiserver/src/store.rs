//! What the cluster holds, and the history of how it came to hold it.

use crate::json::Json;
use crate::resource::Resource;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// An object without its `kind` and `apiVersion`: lists leave them out, everything else puts them in front.
pub(crate) type Object = Arc<Json>;

/// `namespace/name`, or `name` where there is no namespace: etcd's order, which is the order of lists.
pub(crate) type Key = String;

/// One write: what the object was before, what it is after.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) resource: Resource,
    pub(crate) key: Key,
    pub(crate) before: Option<Object>,
    pub(crate) after: Option<Object>,
}

/// The objects, their versions and their history. Shared by all connections.
pub(crate) struct Store {
    state: Mutex<State>,
    latest: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// The last version whose history is forgotten.
    compacted: u64,
    objects: BTreeMap<(Resource, Key), Object>,
    history: Vec<Change>,
    /// Whether writes are kept from the watches for now.
    held: bool,
}

/// The version asked for lies before the compaction.
#[derive(Debug, PartialEq)]
pub(crate) struct Expired {
    pub(crate) floor: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        // Version 0 means "any" to clients, so a store never has it.
        Self { state: Mutex::new(State { version: 1, ..State::default() }), latest: watch::Sender::new(1) }
    }

    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// Announces each version once everything written with it can be read.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    pub(crate) fn get(&self, resource: Resource, key: &str) -> Option<Object> {
        self.lock().objects.get(&(resource, key.to_owned())).cloned()
    }

    /// Everything of `resource` now, with the version that "now" is.
    pub(crate) fn list(&self, resource: Resource) -> (u64, Vec<(Key, Object)>) {
        let state = self.lock();
        (state.version, of(&state.objects, resource))
    }

    /// Everything of `resource` as it was at `version`.
    pub(crate) fn list_at(&self, resource: Resource, version: u64) -> Result<Vec<(Key, Object)>, Expired> {
        let state = self.lock();
        if version < state.compacted {
            return Err(Expired { floor: state.compacted });
        }
        let mut objects = state.objects.clone();
        for change in state.history.iter().rev().take_while(|change| change.version > version) {
            let place = (change.resource, change.key.clone());
            match &change.before {
                Some(before) => objects.insert(place, before.clone()),
                None => objects.remove(&place),
            };
        }
        Ok(of(&objects, resource))
    }

    /// The changes of `resource` after `version`, oldest first.
    pub(crate) fn since(&self, resource: Resource, version: u64) -> Result<Vec<Change>, Expired> {
        let state = self.lock();
        if version < state.compacted {
            return Err(Expired { floor: state.compacted });
        }
        let first = state.history.partition_point(|change| change.version <= version);
        Ok(state.history.iter().skip(first).filter(|change| change.resource == resource).cloned().collect())
    }

    /// Writes an object under the next version, which `finish` puts into it.
    pub(crate) fn write(&self, resource: Resource, key: &str, finish: impl FnOnce(u64, Option<&Json>) -> Json) -> Object {
        let mut state = self.lock();
        let version = state.version + 1;
        let before = state.objects.get(&(resource, key.to_owned())).cloned();
        let after = Arc::new(finish(version, before.as_deref()));
        state.record(version, resource, key, Some(after.clone()));
        self.announce(&state);
        after
    }

    /// Writes an object that brings its own version. A version in the past (a listing loaded in the order of its names) is history that no watch sees.
    pub(crate) fn load(&self, resource: Resource, key: &str, version: u64, object: Json) {
        let mut state = self.lock();
        state.record(version, resource, key, Some(Arc::new(object)));
        self.announce(&state);
    }

    pub(crate) fn delete(&self, resource: Resource, key: &str) -> bool {
        let mut state = self.lock();
        if !state.objects.contains_key(&(resource, key.to_owned())) {
            return false;
        }
        let version = state.version + 1;
        state.record(version, resource, key, None);
        self.announce(&state);
        true
    }

    /// Moves the version on, as writes to resources that nobody here watches do.
    pub(crate) fn advance_to(&self, version: u64) {
        let mut state = self.lock();
        state.version = state.version.max(version);
        self.announce(&state);
    }

    /// Keeps writes from the watches, or lets them all go at once.
    pub(crate) fn hold(&self, held: bool) {
        let mut state = self.lock();
        state.held = held;
        self.announce(&state);
    }

    fn announce(&self, state: &State) {
        if !state.held {
            self.latest.send_replace(state.version);
        }
    }

    /// Forgets the history up to `version`.
    pub(crate) fn compact(&self, version: u64) {
        let mut state = self.lock();
        state.compacted = state.compacted.max(version.min(state.version));
        let floor = state.compacted;
        state.history.retain(|change| change.version > floor);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, version: u64, resource: Resource, key: &str, after: Option<Object>) {
        let place = (resource, key.to_owned());
        let before = match &after {
            Some(object) => self.objects.insert(place, object.clone()),
            None => self.objects.remove(&place),
        };
        let change = Change { version, resource, key: key.to_owned(), before, after };
        let position = self.history.partition_point(|earlier| earlier.version <= version);
        self.history.insert(position, change);
        self.version = self.version.max(version);
    }
}

fn of(objects: &BTreeMap<(Resource, Key), Object>, resource: Resource) -> Vec<(Key, Object)> {
    objects
        .range((resource, String::new())..)
        .take_while(|((found, _), _)| *found == resource)
        .map(|((_, key), object)| (key.clone(), object.clone()))
        .collect()
}
