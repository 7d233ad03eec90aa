//! What is said of the node as a whole in Kubernetes Events: trouble that lasts, and its end.
//!
//! The log and the metrics have all of it at once. Events are for those who look at a Node, and every node of a large cluster may have the same trouble:
//! what passes by itself is left out, and what comes again and again is said now and then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use crate::events::{Events, Happening};
use crate::health;
use crate::metrics::Metrics;
use crate::reliance::Reliance;

/// How often there is a look.
const INTERVAL: Duration = Duration::from_secs(5);
/// For how long nothing need have been heard of a kind of object before that is said, unless `--max-staleness` says otherwise: several times what a quiet
/// watch of a server without bookmarks lasts.
const STALE: Duration = Duration::from_secs(600);
/// The least time between two troubles of a kind that are said.
const PAUSE: Duration = Duration::from_secs(600);
/// The same for repairs: who changes things all the time is not to fill the API server with it.
const PAUSE_OF_REPAIRS: Duration = Duration::from_secs(3600);
/// Repairs come in bursts, which are one piece of news.
const BURST: Duration = Duration::from_secs(10);

/// Where all that can be seen is to be seen.
pub(crate) struct Signs {
    pub(crate) reliance: Reliance,
    pub(crate) metrics: Metrics,
}

/// Says what there is to say for as long as the process lives.
pub(crate) async fn follow(signs: Signs, events: Events) {
    let mut watcher = Watcher::new(Instant::now());
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        for (happening, note) in watcher.look(now, &signs.seen(now)) {
            events.tell(happening, note);
        }
    }
}

impl Signs {
    fn seen(&self, now: Instant) -> Seen {
        let Reliance { health, freshness, max_staleness } = &self.reliance;
        let limit = *max_staleness.borrow();
        let limit = if limit.is_zero() { STALE } else { limit };
        Seen {
            unhealthy: health.borrow().unhealthy(now),
            stale: freshness.as_ref().and_then(|freshness| freshness.unheard_of(now, limit)),
            repairs: self.metrics.repairs_by_stage(),
        }
    }
}

/// What one look shows.
#[derive(Default)]
struct Seen {
    unhealthy: Option<String>,
    stale: Option<String>,
    /// How many there have been since the start, by stage.
    repairs: BTreeMap<String, u64>,
}

/// What has been said.
struct Watcher {
    begun: Instant,
    health: Trouble,
    staleness: Trouble,
    repairs: Repairs,
}

impl Watcher {
    fn new(now: Instant) -> Self {
        Self { begun: now, health: Trouble::default(), staleness: Trouble::default(), repairs: Repairs::default() }
    }

    /// What is to be said `now`.
    fn look(&mut self, now: Instant, seen: &Seen) -> Vec<(Happening, String)> {
        let Self { begun, health, staleness, repairs } = self;
        // A start takes its time; health knows how long the kernel may differ later.
        let has_settled = now.saturating_duration_since(*begun) >= health::LIMIT;
        let unhealthy = seen.unhealthy.as_deref().filter(|_| has_settled);
        let of_health = health.look(now, unhealthy).map(|change| match change {
            Change::Begun(reason) => (Happening::OutOfSync, reason.to_owned()),
            Change::Over => (Happening::InSync, "the kernel holds again what is desired".to_owned()),
        });
        let of_objects = staleness.look(now, seen.stale.as_deref()).map(|change| match change {
            Change::Begun(reason) => (Happening::StaleObjects, format!("{reason}; what was known before is served")),
            Change::Over => (Happening::FreshObjects, "the API server tells of all kinds of objects again".to_owned()),
        });
        let of_repairs = repairs.look(now, &seen.repairs).map(|note| (Happening::Repaired, note));
        [of_health, of_objects, of_repairs].into_iter().flatten().collect()
    }
}

/// A trouble that comes and goes.
#[derive(Default)]
struct Trouble {
    /// Whether it is there and has been said.
    is_known: bool,
    said: Option<Instant>,
}

enum Change<'a> {
    Begun(&'a str),
    Over,
}

impl Trouble {
    fn look<'a>(&mut self, now: Instant, trouble: Option<&'a str>) -> Option<Change<'a>> {
        match trouble {
            Some(reason) if !self.is_known && is_due(self.said, PAUSE, now) => {
                *self = Self { is_known: true, said: Some(now) };
                Some(Change::Begun(reason))
            }
            None if self.is_known => {
                self.is_known = false;
                Some(Change::Over)
            }
            _ => None,
        }
    }
}

#[derive(Default)]
struct Repairs {
    /// How many there had been when they were last said.
    told: BTreeMap<String, u64>,
    said: Option<Instant>,
    /// When the first was seen that has not been said.
    since: Option<Instant>,
}

impl Repairs {
    fn look(&mut self, now: Instant, repairs: &BTreeMap<String, u64>) -> Option<String> {
        let untold = |(stage, count): (&String, &u64)| {
            let count = count.saturating_sub(self.told.get(stage).copied().unwrap_or_default());
            (count > 0).then(|| format!("{stage}: {count}"))
        };
        let untold: Vec<_> = repairs.iter().filter_map(untold).collect();
        if untold.is_empty() {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < BURST || !is_due(self.said, PAUSE_OF_REPAIRS, now) {
            return None;
        }
        *self = Self { told: repairs.clone(), said: Some(now), since: None };
        Some(format!(
            "brought back what others had changed, or what the kernel had refused before, in so many steps: {}; the agent's log names them",
            untold.join(", ")
        ))
    }
}

fn is_due(said: Option<Instant>, pause: Duration, now: Instant) -> bool {
    said.is_none_or(|said| now.saturating_duration_since(said) >= pause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured::Log;
    use crate::events;
    use crate::events::tests::{client, hasty};
    use crate::freshness::Freshness;
    use crate::health::{Health, Life};
    use apiserver::{ApiServer, Options, Resource};
    use tokio::sync::watch;

    /// What is said when this is seen at these seconds after the start.
    fn said(looks: &[(u64, Seen)]) -> Vec<(u64, Happening, String)> {
        let begun = Instant::now();
        let mut watcher = Watcher::new(begun);
        let look = |(second, seen): &(u64, Seen)| {
            let said = watcher.look(begun + Duration::from_secs(*second), seen);
            said.into_iter().map(|(happening, note)| (*second, happening, note)).collect::<Vec<_>>()
        };
        looks.iter().flat_map(look).collect()
    }

    fn unhealthy(reason: &str) -> Seen {
        Seen { unhealthy: Some(reason.to_owned()), ..Seen::default() }
    }

    #[test]
    fn trouble_is_said_when_it_lasts_and_when_it_is_over() {
        let well = Seen::default;
        let said = said(&[
            (0, unhealthy("the first synchronisation has not finished")),
            (55, unhealthy("the first synchronisation has not finished")),
            (60, unhealthy("the kernel differs")),
            (65, unhealthy("the kernel differs still")),
            (70, well()),
            (75, well()),
            // So soon after it is no news, and neither is its end.
            (100, unhealthy("again")),
            (105, well()),
            (660, unhealthy("later")),
        ]);
        let said: Vec<_> = said.iter().map(|(second, happening, note)| (*second, *happening, &**note)).collect();
        assert_eq!(
            said,
            [
                (60, Happening::OutOfSync, "the kernel differs"),
                (70, Happening::InSync, "the kernel holds again what is desired"),
                (660, Happening::OutOfSync, "later")
            ]
        );
    }

    #[test]
    fn repairs_are_said_by_the_burst_and_once_an_hour() {
        let repairs = |vips, sets| {
            let counts = [("VIPs".to_owned(), vips), ("sets".to_owned(), sets)];
            Seen { repairs: counts.into(), ..Seen::default() }
        };
        let said = said(&[
            (0, repairs(0, 0)),
            (5, repairs(1, 0)),
            (10, repairs(5, 2)),
            (15, repairs(6, 2)),
            (20, repairs(6, 2)),
            (1_000, repairs(6, 9)),
            (3_614, repairs(6, 9)),
            (3_615, repairs(6, 10)),
            (9_000, repairs(6, 10)),
        ]);
        let said: Vec<_> = said.iter().map(|(second, happening, note)| (*second, *happening, &**note)).collect();
        let [(15, Happening::Repaired, first), (3_615, Happening::Repaired, second)] = said[..] else { panic!("{said:?}") };
        assert!(first.contains("steps: VIPs: 6, sets: 2;") && second.contains("steps: sets: 8;"), "{first}, {second}");
    }

    /// From a refused watch and a kernel that differs to what kubectl shows for the Node.
    #[tokio::test]
    async fn a_nodes_lasting_troubles_are_events_on_the_node() {
        let server = ApiServer::start(Options::default()).await.unwrap();
        server.apply(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})).unwrap();
        let metrics = Metrics::new().unwrap();
        let (events, writer) = events::channel(client(&server).await, "node-1".to_owned(), hasty(), metrics.clone());
        let writing = tokio::spawn(writer.run());
        let (freshness, begun) = (Freshness::new(), Instant::now());
        let limit = Duration::from_secs(100);
        // The clock of this test is ahead of that by which it is known how long nothing was heard of the thread.
        let life = Life { patience: limit * 10, ..Life::default() };
        let (health, seen_health) = watch::channel(Health { synced_once: true, life, ..Health::default() });
        let reliance = Reliance { health: seen_health, freshness: Some(freshness), max_staleness: watch::channel(limit).1 };
        let signs = Signs { reliance, metrics: metrics.clone() };
        let mut watcher = Watcher::new(begun);
        let mut look = |after: Duration| {
            let now = begun + after;
            for (happening, note) in watcher.look(now, &signs.seen(now)) {
                events.tell(happening, note);
            }
        };
        let log = Log::capture();
        events.tell(Happening::Starting, "kube-ipvs".to_owned());
        health.send_modify(|health| {
            health.note(begun, Err("could not add virtual server TCP 10.96.0.1:80: no such scheduler".to_owned()));
        });
        metrics.repairs.with_label_values(&["VIPs"]).inc_by(3);
        look(Duration::from_secs(1));
        look(Duration::from_secs(61));
        look(Duration::from_secs(121));
        health.send_modify(|health| health.note(begun + Duration::from_secs(122), Ok(())));
        look(Duration::from_secs(123));
        drop(events);
        writing.await.unwrap();
        assert!(log.lines("").is_empty(), "{:?}", log.lines(""));

        let events = server.objects(Resource::Events);
        let mut said = BTreeMap::new();
        for event in &events {
            let text = |path: &[&str]| event.str_at(path).unwrap().to_owned();
            // By which `kubectl describe node` looks for them.
            assert_eq!((text(&["regarding", "kind"]), text(&["regarding", "name"])), ("Node".to_owned(), "node-1".to_owned()));
            assert_eq!(text(&["regarding", "uid"]), "node-1");
            assert_eq!((event.str_at(&["regarding", "namespace"]), text(&["metadata", "namespace"])), (None, "default".to_owned()));
            said.insert(text(&["reason"]), (text(&["type"]), text(&["note"])));
        }
        assert_eq!(
            said.keys().map(String::as_str).collect::<Vec<_>>(),
            ["InSync", "OutOfSync", "Repaired", "StaleObjects", "Starting"]
        );
        assert_eq!((events.len(), &*said["Starting"].0, &*said["InSync"].0), (5, "Normal", "Normal"));
        assert!(said["OutOfSync"].1.ends_with("for 61 s: could not add virtual server TCP 10.96.0.1:80: no such scheduler"));
        assert!(said["StaleObjects"].1.contains("has told nothing of") && said["StaleObjects"].1.contains("for 121 s"), "{said:?}");
        assert_eq!((&*said["Repaired"].0, said["Repaired"].1.contains("VIPs: 3")), ("Warning", true));
    }
}
