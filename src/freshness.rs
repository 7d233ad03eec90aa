//! How old what is known of the cluster may be: when the source was last heard of, and whether it has been heard of at all.
//!
//! A watch that is quiet is as good as one that is busy. What tells a quiet one from a dead one are bookmarks, which API servers send about
//! once a minute, and watches that end when they should.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::source::Kind;

/// When each kind was last known to be as the API server has it. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Freshness(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// Counts from the start for what has never been heard of.
    heard: BTreeMap<Kind, Instant>,
    saved: Option<Saved>,
}

/// What is served until the API server answers for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    /// When it was last changed.
    pub(crate) at: SystemTime,
}

impl Saved {
    /// How old it is by now. A clock that was set back makes it no older than it is.
    fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.at).unwrap_or_default()
    }

    /// Says that it is older than `limit`; never with a limit of zero.
    pub(crate) fn stale(&self, limit: Duration) -> Option<String> {
        let is_stale = !limit.is_zero() && self.age() > limit;
        is_stale.then(|| format!("{self}, which is longer than --max-staleness ({} s)", limit.as_secs_f32()))
    }
}

/// How old it is by now.
impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.age().as_secs();
        write!(f, "the API server has not told everything since the start; served is what was saved {age} s ago")
    }
}

impl Freshness {
    /// Of a source that is asked from now on.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let heard = Kind::ALL.into_iter().map(|kind| (kind, now)).collect();
        Self(Arc::new(Mutex::new(Known { heard, saved: None })))
    }

    /// Notes that what is known of `kind` is what the API server has.
    pub(crate) fn note(&self, kind: Kind) {
        self.lock().heard.insert(kind, Instant::now());
    }

    /// Notes that what was saved is served, or no longer.
    pub(crate) fn note_saved(&self, saved: Option<Saved>) {
        self.lock().saved = saved;
    }

    /// What was saved, if that is served.
    pub(crate) fn saved(&self) -> Option<Saved> {
        self.lock().saved
    }

    /// How long each kind has not been heard of.
    pub(crate) fn ages(&self, now: Instant) -> BTreeMap<Kind, Duration> {
        self.lock().heard.iter().map(|(kind, then)| (*kind, now.saturating_duration_since(*then))).collect()
    }

    /// Says what is older than `limit`; nothing is with a limit of zero.
    pub(crate) fn stale(&self, now: Instant, limit: Duration) -> Option<String> {
        let unheard_of = self.unheard_of(now, limit).filter(|_| !limit.is_zero());
        unheard_of.map(|unheard_of| format!("{unheard_of}, which is longer than --max-staleness ({} s)", limit.as_secs_f32()))
    }

    /// Says what has not been heard of for longer than `limit`.
    pub(crate) fn unheard_of(&self, now: Instant, limit: Duration) -> Option<String> {
        let (kind, age) = self.ages(now).into_iter().max_by_key(|(_, age)| *age)?;
        let (resource, seconds) = (kind.resource(), age.as_secs());
        (age > limit).then(|| format!("the API server has told nothing of {resource} for {seconds} s"))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Instants that are replaced one by one are never half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j10_the_oldest_kind_says_how_stale_all_is() {
        let (limit, begin) = (Duration::from_secs(60), Instant::now());
        let freshness = Freshness::new();
        assert_eq!(freshness.stale(begin + limit, limit), None, "what is asked for the first time has as long to answer");
        let late = Instant::now() + limit + Duration::from_millis(1);
        assert_eq!(freshness.stale(late, Duration::ZERO), None, "there is no limit unless there is one");
        let reason = freshness.stale(late, limit).unwrap();
        assert!(
            reason.contains("has told nothing of") && reason.ends_with("for 60 s, which is longer than --max-staleness (60 s)"),
            "{reason}"
        );

        let known = freshness.ages(late);
        std::thread::sleep(Duration::from_millis(2));
        freshness.note(Kind::Service);
        freshness.note(Kind::Node);
        let ages = freshness.ages(late);
        assert!(ages[&Kind::Service] < known[&Kind::Service] && ages[&Kind::Node] < known[&Kind::Node]);
        assert_eq!(ages[&Kind::EndpointSlice], known[&Kind::EndpointSlice]);
        assert!(freshness.stale(late, limit).unwrap().contains("nothing of endpointslices for 60 s"));
        freshness.note(Kind::EndpointSlice);
        assert_eq!(freshness.stale(late, limit), None);
    }
}
