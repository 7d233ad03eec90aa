//! The thread that writes, and the way to it.

use std::collections::BTreeSet;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tracing::{info, warn};

use super::batch::{Batch, Collector};
use super::directory::{Directory, Found, Journal};
use super::format::is_complete;
use crate::metrics::Metrics;
use crate::source::{Event, Kind, Object};

/// Between two times of writing. What comes meanwhile is written together.
const PACE: Duration = Duration::from_secs(1);
/// The longest wait after disks that fail.
const LONGEST: Duration = Duration::from_secs(30);

/// How long the end of the process may wait for a disk, and how often it looks.
const GOODBYE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(2);

/// What was saved.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) objects: Vec<Object>,
    /// When.
    pub(crate) at: SystemTime,
}

/// Saves what it is told. Dropped, it writes what there is to write and ends.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    /// There is something to do.
    arrived: Condvar,
}

#[derive(Default)]
struct Told {
    collector: Collector,
    stop: bool,
}

impl Keeper {
    /// Begins to save into the directory at `path`; with what was saved there before, if that is all there was.
    ///
    /// # Errors
    /// When no thread can be made. What is wrong with the directory or the files in it is a warning.
    pub(crate) fn open(path: &Path, selection: String, metrics: Metrics) -> anyhow::Result<(Self, Option<Kept>)> {
        let directory = Directory::new(path, selection);
        let found = directory.read();
        let kept = kept(&found, path);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            directory,
            path: path.display().to_string(),
            journal: None,
            listed: found.contents.listed,
            unsaved: Batch::default(),
            failing: false,
            metrics,
        };
        let thread = thread::Builder::new().name("saver".to_owned()).spawn({
            let shared = shared.clone();
            move || writer.run(&shared)
        });
        let thread = thread.context("cannot start the thread that saves state")?;
        Ok((Self { shared, thread: Some(thread) }, kept))
    }

    /// Takes note of what a source told. Waits for nothing.
    pub(crate) fn note(&self, event: Event) {
        let mut told = self.shared.lock();
        told.collector.note(event);
        if !told.collector.is_empty() {
            self.shared.arrived.notify_one();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.arrived.notify_one();
        let Some(thread) = self.thread.take() else { return };
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < GOODBYE {
            thread::sleep(GLANCE);
        }
        if !thread.is_finished() {
            warn!("what was told last is not saved: the disk does not answer");
        } else if thread.join().is_err() {
            warn!("the thread that saves state has failed");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Told> {
        // What is not noted is missing from what is saved until it is told again.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written, and whether that is the last; waits for something, unless there is something `left`.
    fn next(&self, left: bool) -> (Batch, bool) {
        let idle = |told: &mut Told| !left && told.collector.is_empty() && !told.stop;
        let mut told = self.arrived.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        (told.collector.take(), told.stop)
    }

    /// Waits, unless it is time to stop.
    fn rest(&self, pause: Duration) {
        drop(self.arrived.wait_timeout_while(self.lock(), pause, |told| !told.stop));
    }
}

fn kept(found: &Found, path: &Path) -> Option<Kept> {
    for warning in &found.warnings {
        warn!("{warning}");
    }
    let at = found.at?;
    if !is_complete(&found.contents.listed) {
        info!(path = %path.display(), "what is saved is not complete, and not used");
        return None;
    }
    match found.contents.objects() {
        Ok(objects) => Some(Kept { objects, at }),
        Err(reason) => {
            warn!("saved state {} is ignored: {reason}", path.display());
            None
        }
    }
}

struct Writer {
    directory: Directory,
    path: String,
    /// `None` until it is known where it ends.
    journal: Option<Journal>,
    /// The kinds of which the files have a complete listing.
    listed: BTreeSet<Kind>,
    unsaved: Batch,
    failing: bool,
    metrics: Metrics,
}

impl Writer {
    fn run(mut self, shared: &Shared) {
        let mut pause = PACE;
        loop {
            let (batch, stop) = shared.next(!self.unsaved.is_empty());
            self.unsaved.extend(batch);
            pause = if self.unsaved.is_empty() || self.save() { PACE } else { (pause * 2).min(LONGEST) };
            if stop {
                return;
            }
            shared.rest(pause);
        }
    }

    /// Whether it worked.
    fn save(&mut self) -> bool {
        let saved = match self.journal.take().filter(|journal| !journal.is_full()) {
            Some(journal) => journal.add(&self.unsaved).map_err(|(journal, error)| {
                self.journal = journal;
                error
            }),
            None => self.directory.rewrite(&self.unsaved),
        };
        match saved {
            Ok(journal) => {
                self.journal = Some(journal);
                self.listed.extend(mem::take(&mut self.unsaved).listed.into_keys());
                if is_complete(&self.listed) {
                    self.metrics.count_saved();
                }
                if mem::take(&mut self.failing) {
                    info!(path = self.path, "state is saved again");
                }
                true
            }
            Err(error) => {
                self.metrics.save_errors.inc();
                if !mem::replace(&mut self.failing, true) {
                    warn!(path = self.path, %error, "state cannot be saved; trying again, and serving all the same");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured::Log;
    use crate::saved::format::tests::{listing, node, service, slice};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn open(path: &Path) -> (Keeper, Option<Kept>) {
        Keeper::open(path, "node-1".to_owned(), Metrics::new().unwrap()).unwrap()
    }

    fn objects(path: &Path) -> Option<Vec<Object>> {
        open(path).1.map(|kept| kept.objects)
    }

    fn save(path: &Path, events: impl IntoIterator<Item = Event>) {
        let (keeper, _) = open(path);
        events.into_iter().for_each(|event| keeper.note(event));
    }

    #[test]
    fn j10_what_was_told_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        assert!(objects(&path).is_none());
        save(&path, listing([service("web", 80), slice("web-1"), node("node-1")]));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("base")), mode(&path.join("journal"))), (0o700, 0o600, 0o600));
        assert_eq!(objects(&path).unwrap(), [service("web", 80), slice("web-1"), node("node-1")]);

        // A restart that is told half a list keeps the other half.
        save(&path, [Event::Listing(Kind::Service), Event::Applied(service("db", 1)), Event::Deleted(slice("web-1"))]);
        assert_eq!(objects(&path).unwrap(), [service("db", 1), service("web", 80), node("node-1")]);
        save(&path, [Event::Listing(Kind::Service), Event::Applied(service("db", 1)), Event::Listed(Kind::Service)]);
        assert_eq!(objects(&path).unwrap(), [service("db", 1), node("node-1")]);
    }

    fn contains(text: &[u8], part: &[u8]) -> bool {
        text.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn j10_a_change_costs_its_own_size() {
        let directory = tempfile::tempdir().unwrap();
        let many = (0..500).map(|number| service(&format!("service-{number}"), 80));
        let (keeper, _) = open(directory.path());
        listing([node("node-1")].into_iter().chain(many)).into_iter().for_each(|event| keeper.note(event));
        let size = |name: &str| fs::metadata(directory.path().join(name)).map_or(0, |file| file.len());
        let until = |reached: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !reached() {
                assert!(begun.elapsed() < Duration::from_secs(30));
                thread::sleep(Duration::from_millis(5));
            }
        };
        // What is told while a part of it is saved is saved after that.
        let has = |name: &str, text: &str| fs::read(directory.path().join(name)).is_ok_and(|file| contains(&file, text.as_bytes()));
        until(&|| size("journal") > 0 && (has("base", "service-499") || has("journal", "service-499")));
        let (base, journal) = (fs::read(directory.path().join("base")).unwrap(), size("journal"));
        keeper.note(Event::Applied(service("service-7", 81)));
        until(&|| size("journal") > journal);
        assert_eq!(fs::read(directory.path().join("base")).unwrap(), base);
        assert!(size("journal") - journal < 400, "{} bytes for a change", size("journal") - journal);
        drop(keeper);
        assert!(objects(directory.path()).unwrap().contains(&service("service-7", 81)));
    }

    #[test]
    fn a_journal_that_outgrows_its_base_becomes_one() {
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), listing([node("node-1")]));
        let saver = Directory::new(directory.path(), "node-1".to_owned());
        let mut journal = saver.rewrite(&Batch::default()).unwrap();
        let mut last = 0;
        while !journal.is_full() {
            let mut collector = Collector::default();
            last += 1;
            (0..2_000).for_each(|number| collector.note(Event::Applied(service(&format!("service-{number}"), last))));
            journal = journal.add(&collector.take()).unwrap();
        }
        drop(journal);
        let before = saver.read();
        assert!(!saver.rewrite(&Batch::default()).unwrap().is_full());
        let after = saver.read();
        assert_eq!((&after.contents, after.contents.objects.len()), (&before.contents, 2_001));
        assert!(after.generation > before.generation && after.warnings.is_empty());
    }

    #[test]
    fn what_is_not_all_there_was_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let open = || Keeper::open(directory.path(), "node-1".to_owned(), metrics.clone()).unwrap();
        let (keeper, kept) = open();
        assert!(kept.is_none());
        let events = listing([service("web", 80)]);
        events.into_iter().filter(|event| *event != Event::Listed(Kind::Node)).for_each(|event| keeper.note(event));
        drop(keeper);
        assert_eq!(metrics.saved_at.get(), 0.0, "a start has no use for it");

        let (keeper, kept) = open();
        assert!(kept.is_none());
        keeper.note(Event::Listing(Kind::Node));
        keeper.note(Event::Listed(Kind::Node));
        drop(keeper);
        assert!(metrics.saved_at.get() > 0.0);
        assert_eq!(objects(directory.path()).unwrap(), [service("web", 80)]);
    }

    #[test]
    fn damaged_files_are_ignored_with_a_warning_that_names_them() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base");
        save(directory.path(), listing([service("web", 80), node("node-1")]));
        fs::write(&base, b"KIPVSAVE\x03\0\0\0 from tomorrow").unwrap();
        let log = Log::capture();
        assert!(objects(directory.path()).is_none());
        let warning = format!("saved state {} is ignored: it has version 3, and this agent reads version 2", base.display());
        assert_eq!(log.lines(&warning).len(), 1, "{:?}", log.lines(""));
        // The next one is written over it.
        save(directory.path(), listing([node("node-1")]));
        assert_eq!(objects(directory.path()).unwrap(), [node("node-1")]);

        let other = Keeper::open(directory.path(), "node-2".to_owned(), Metrics::new().unwrap()).unwrap();
        assert!(other.1.is_none(), "it is that of another node");
    }

    #[test]
    fn a_disk_that_cannot_be_written_to_is_a_warning_and_a_metric() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::write(&path, b"in the way").unwrap();
        let metrics = Metrics::new().unwrap();
        let (keeper, kept) = Keeper::open(&path, "node-1".to_owned(), metrics.clone()).unwrap();
        assert!(kept.is_none());
        listing([node("node-1")]).into_iter().for_each(|event| keeper.note(event));
        drop(keeper);
        assert_eq!(metrics.save_errors.get(), 1);

        // Written as soon as there is a way.
        let (keeper, _) = Keeper::open(&path, "node-1".to_owned(), metrics.clone()).unwrap();
        listing([node("node-1")]).into_iter().for_each(|event| keeper.note(event));
        while metrics.save_errors.get() == 1 {
            thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(&path).unwrap();
        drop(keeper);
        assert_eq!(objects(&path).unwrap(), [node("node-1")]);
    }
}
