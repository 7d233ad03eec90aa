//! What `/healthz` and `/livez` answer.
//!
//! `/healthz` asks whether the node may be relied on, `/livez` whether a restart of the agent could help. It cannot help against an API server
//! that is away: what is known by then would only have to be learnt again.

use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use serde_json::json;
use tokio::sync::watch;

use crate::freshness::Freshness;
use crate::health::Health;
use crate::http::Answer;

/// What the answers depend on.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) health: watch::Receiver<Health>,
    /// How old what is known may be; `None` where objects are read from files.
    pub(crate) freshness: Option<Freshness>,
    /// The age from which on the node is not to be relied on; zero for none.
    pub(crate) max_staleness: watch::Receiver<Duration>,
}

impl Probes {
    /// The answer to a request for `path`.
    pub(crate) fn answer(&self, path: &str) -> Answer {
        if !matches!(path, "/healthz" | "/livez") {
            return Answer::text(StatusCode::NOT_FOUND, "try /healthz or /livez");
        }
        let health = self.health.borrow().clone();
        let now = Instant::now();
        let reason = self.reason(&health, path == "/healthz", now);
        let ago = health.last_success.map(|then| now.saturating_duration_since(then));
        let current = SystemTime::now();
        let body = json!({
            "lastUpdated": ago.and_then(|ago| current.checked_sub(ago)).and_then(rfc3339),
            "currentTime": rfc3339(current),
            "healthy": reason.is_none(),
            "reason": reason,
        });
        Answer::json(if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
    }

    /// `None` when all is well.
    fn reason(&self, health: &Health, ready: bool, now: Instant) -> Option<String> {
        if let Some(saved) = self.freshness.as_ref().and_then(Freshness::saved).filter(|_| !health.synced_once) {
            return if ready { Some(saved.to_string()) } else { health.stuck(now) };
        }
        let stale = || self.freshness.as_ref().filter(|_| ready)?.stale(now, *self.max_staleness.borrow());
        health.unhealthy(now).or_else(stale)
    }
}

fn rfc3339(time: SystemTime) -> Option<String> {
    k8s_openapi::jiff::Timestamp::try_from(time).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::Saved;
    use crate::source::Kind;

    fn asked(probes: &Probes, path: &str) -> (StatusCode, String) {
        let answer = probes.answer(path);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["healthy"], answer.status == StatusCode::OK);
        (answer.status, body["reason"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn j10_staleness_fails_readiness_where_there_is_a_limit_and_never_liveness() {
        let (health, health_of) = watch::channel(Health { synced_once: true, ..Health::default() });
        health.send_modify(|health| health.note(Instant::now(), Ok(())));
        let freshness = Freshness::new();
        let limit = Duration::from_millis(10);
        let probes = Probes { health: health_of, freshness: Some(freshness.clone()), max_staleness: watch::channel(limit).1 };
        std::thread::sleep(limit * 2);
        let (status, reason) = asked(&probes, "/healthz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reason.contains("has told nothing of") && reason.contains("--max-staleness"), "{reason}");
        assert_eq!(asked(&probes, "/livez"), (StatusCode::OK, String::new()));
        let unlimited = Probes { max_staleness: watch::channel(Duration::ZERO).1, ..probes.clone() };
        assert_eq!(asked(&unlimited, "/healthz").0, StatusCode::OK);
        Kind::ALL.into_iter().for_each(|kind| freshness.note(kind));
        let patient = Probes { max_staleness: watch::channel(Duration::from_secs(60)).1, ..probes };
        assert_eq!(asked(&patient, "/healthz").0, StatusCode::OK);
    }

    #[test]
    fn j10_what_was_saved_is_alive_and_not_ready() {
        let (health, health_of) = watch::channel(Health::default());
        let freshness = Freshness::new();
        let probes =
            Probes { health: health_of, freshness: Some(freshness.clone()), max_staleness: watch::channel(Duration::ZERO).1 };
        assert_eq!(asked(&probes, "/livez").0, StatusCode::SERVICE_UNAVAILABLE);
        let at = SystemTime::now().checked_sub(Duration::from_secs(90)).unwrap();
        freshness.note_saved(Some(Saved { at }));
        let (status, reason) = asked(&probes, "/healthz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reason.ends_with("served is what was saved 90 s ago"), "{reason}");
        assert_eq!(asked(&probes, "/livez").0, StatusCode::OK);
        health.send_modify(|health| health.came_round = Instant::now().checked_sub(Duration::from_secs(200)));
        assert!(asked(&probes, "/livez").1.contains("stuck"));
        health.send_modify(|health| {
            health.synced_once = true;
            health.came_round = Some(Instant::now());
            health.note(Instant::now(), Ok(()));
        });
        assert_eq!(asked(&probes, "/healthz").0, StatusCode::OK, "all has been listed");
    }
}
