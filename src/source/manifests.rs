//! Objects from files: a file or a directory of YAML or JSON, followed as it changes.
//!
//! The directory is looked at twice a second instead of being watched: that works the same on every file system, through the symlinks of ConfigMap
//! volumes and for any editor's way to save, and costs a few `stat` calls. A file is read again only when its stamp has changed.
//!
//! Whatever goes wrong with a file, its last good objects stay. Only a file that is gone takes its objects with it.

mod defaults;
mod document;
mod file;
#[cfg(test)]
mod reading;

use super::selection::selects;
use super::{Closed, Event, Events, Kind, Object, tell, unknown_node};
use anyhow::{Result, bail};
use file::{Found, Readable, Stamp};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// What identifies an object among its kind: namespace and name.
type Key = (Kind, String, String);

/// A file or directory of manifests, and what was last read from it.
pub(crate) struct ManifestSource {
    path: PathBuf,
    node_name: String,
    proxy_name: Option<String>,
    files: BTreeMap<PathBuf, File>,
    /// What has been told: the objects of all files, selected, each from the first file that has it.
    told: BTreeMap<Key, Object>,
    /// Objects that several files have, and a Node that none has.
    disputes: BTreeSet<String>,
    /// Troubles reported and still there, so that each is said once.
    reported: BTreeSet<String>,
    hasher: RandomState,
    /// Kinds that were met and are none of the agent's business.
    others: BTreeSet<String>,
}

/// A file as it was last seen.
#[derive(Default)]
struct File {
    /// What was read last.
    read: Option<Read>,
    /// What the last look saw.
    seen: Option<Stamp>,
    /// Whether it was missing the last time. Some editors save by taking the old file away first.
    missing: bool,
    objects: Vec<Object>,
    trouble: Option<String>,
}

/// A text that was read.
struct Read {
    stamp: Stamp,
    hash: u64,
}

/// Whether files that have just changed are read at once.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    /// At start: whatever is there.
    AtOnce,
    /// Afterwards: only what has not changed between two looks.
    Settled,
}

impl ManifestSource {
    /// # Errors
    /// There is nothing at `path`.
    pub(crate) fn open(path: &Path, node_name: String, proxy_name: Option<String>) -> Result<Self> {
        if let Err(error) = std::fs::metadata(path) {
            bail!("--manifests {}: {error}; name a file or a directory with .yaml, .yml or .json files", path.display());
        }
        Ok(Self {
            path: path.to_owned(),
            node_name,
            proxy_name,
            files: BTreeMap::new(),
            told: BTreeMap::new(),
            disputes: BTreeSet::new(),
            reported: BTreeSet::new(),
            hasher: RandomState::new(),
            others: BTreeSet::new(),
        })
    }

    /// Reads every file and tells everything: what is wrong with the files, and a listing of each kind.
    pub(crate) fn read_once(&mut self) -> Vec<Event> {
        let look = self.look(Reading::AtOnce);
        self.merge();
        let mut events = self.report(look.trouble);
        for kind in Kind::ALL {
            events.push(Event::Listing(kind));
            events.extend(
                self.told.iter().filter(|((found, ..), _)| *found == kind).map(|(_, object)| Event::Applied(object.clone())),
            );
            events.push(Event::Listed(kind));
        }
        events
    }

    /// Looks again and tells what has changed.
    pub(crate) fn read_changes(&mut self) -> Vec<Event> {
        let look = self.look(Reading::Settled);
        let changes = if look.changed { self.merge() } else { Vec::new() };
        let mut events = self.report(look.trouble);
        events.extend(changes);
        events
    }

    /// Tells everything and then every change, until nobody listens any more.
    pub(crate) async fn run(self, events: Events) {
        // Nothing is left to do when the channel is closed.
        let Err(Closed) = self.follow(&events).await;
    }

    async fn follow(mut self, events: &Events) -> Result<Infallible, Closed> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read: fn(&mut Self) -> Vec<Event> = Self::read_once;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = events.closed() => return Err(Closed),
            }
            // Large files take a while to parse, and everything else the agent serves runs on this thread.
            let look = spawn_blocking(move || {
                let told = read(&mut self);
                (self, told)
            });
            let Ok((source, told)) = look.await else { return Err(Closed) };
            self = source;
            read = Self::read_changes;
            for event in told {
                tell(events, event).await?;
            }
        }
    }

    /// Brings `files` up to date with the disk.
    fn look(&mut self, reading: Reading) -> Look {
        let found = match file::find(&self.path) {
            Ok(found) => found,
            Err(trouble) => return Look { changed: false, trouble: Some(trouble) },
        };
        let before = self.files.len();
        self.files.retain(|path, file| found.contains_key(path) || !std::mem::replace(&mut file.missing, true));
        let mut changed = self.files.len() < before;
        for (path, found) in found {
            let file = self.files.entry(path.clone()).or_default();
            file.missing = false;
            match found {
                Found::Broken(trouble) => {
                    file.trouble = Some(trouble);
                    // Whatever it is when it can be read again, it has to be read.
                    (file.read, file.seen) = (None, None);
                }
                Found::Readable(readable) => changed |= file.update(&path, &readable, reading, &self.hasher, &mut self.others),
            }
        }
        Look { changed, trouble: None }
    }

    /// Puts the objects of all files together, each from the first file by name that has it, and returns how that differs from what was told.
    fn merge(&mut self) -> Vec<Event> {
        let mut merged: BTreeMap<Key, (&Object, &Path)> = BTreeMap::new();
        let mut disputes = BTreeSet::new();
        for (path, file) in &self.files {
            for object in &file.objects {
                match merged.entry(key(object)) {
                    Entry::Vacant(entry) => _ = entry.insert((object, path)),
                    Entry::Occupied(entry) => _ = disputes.insert(twice(object, entry.get().1, path)),
                }
            }
        }
        merged.retain(|_, (object, _)| selects(object, self.proxy_name.as_deref()));
        // Files without any Node are fine; files with others and not this one are a mistake in a name.
        let mut nodes = merged.keys().filter(|(kind, ..)| *kind == Kind::Node).map(|(_, _, name)| name).peekable();
        if nodes.peek().is_some() && !nodes.any(|name| *name == self.node_name) {
            disputes.insert(unknown_node(&self.node_name));
        }
        self.disputes = disputes;

        let gone: Vec<Key> = self.told.keys().filter(|key| !merged.contains_key(*key)).cloned().collect();
        let mut events: Vec<Event> = gone.iter().filter_map(|key| self.told.remove(key)).map(Event::Deleted).collect();
        for (key, (object, _)) in merged {
            if self.told.get(&key) != Some(object) {
                self.told.insert(key, object.clone());
                events.push(Event::Applied(object.clone()));
            }
        }
        events
    }

    /// The troubles that are new.
    fn report(&mut self, trouble: Option<String>) -> Vec<Event> {
        let of_files = self.files.values().filter_map(|file| file.trouble.clone());
        let troubles: BTreeSet<String> = trouble.into_iter().chain(of_files).chain(self.disputes.iter().cloned()).collect();
        let events =
            troubles.difference(&self.reported).map(|message| Event::Trouble { kind: None, message: message.clone() }).collect();
        self.reported = troubles;
        events
    }
}

/// What a look at the files has shown.
struct Look {
    changed: bool,
    /// Why nothing could be seen.
    trouble: Option<String>,
}

impl File {
    /// Reads the file if it has changed, and says whether its objects may have.
    fn update(
        &mut self,
        path: &Path,
        found: &Readable,
        reading: Reading,
        hasher: &RandomState,
        others: &mut BTreeSet<String>,
    ) -> bool {
        let before = self.seen.replace(found.stamp.clone());
        let same_as_read = self.read.as_ref().is_some_and(|read| read.stamp == found.stamp);
        // A changed file is read when two looks in a row have seen the same: most likely nobody is writing it any more.
        let quiet = reading == Reading::AtOnce || before.as_ref() == Some(&found.stamp);
        if !quiet || (same_as_read && found.settled) {
            return false;
        }
        let contents = match found.read() {
            Ok(contents) => contents,
            Err(trouble) => {
                self.trouble = Some(trouble);
                self.read = None;
                return false;
            }
        };
        if reading == Reading::Settled && contents.stamp != found.stamp {
            return false;
        }
        let hash = hasher.hash_one(&contents.text);
        let known = self.read.replace(Read { stamp: contents.stamp, hash }).is_some_and(|read| read.hash == hash);
        if known {
            return false;
        }
        match document::objects(path, &contents.text) {
            Ok(parsed) => {
                self.objects = parsed.objects;
                self.trouble = None;
                for kind in parsed.others {
                    if !others.contains(&kind) {
                        tracing::info!(file = %path.display(), kind, "left alone: only Services, EndpointSlices and Nodes are read");
                        others.insert(kind);
                    }
                }
                true
            }
            Err(broken) => {
                let stay = if self.objects.is_empty() { "" } else { "; its last good objects stay" };
                self.trouble = Some(format!("{broken}{stay}"));
                false
            }
        }
    }
}

fn key(object: &Object) -> Key {
    let metadata = object.metadata();
    (object.kind(), metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn twice(object: &Object, first: &Path, second: &Path) -> String {
    if first == second {
        return format!("{object} is in {} twice: the first one is used; remove the other", first.display());
    }
    format!(
        "{object} is in {} and in {}: the one in {} is used; remove the other",
        first.display(),
        second.display(),
        first.display()
    )
}

#[cfg(test)]
mod tests;
