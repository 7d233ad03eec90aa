//! What `/healthz` and `/livez` answer.
//!
//! `/healthz` asks whether the node may be relied on and is to be sent traffic at all, `/livez` whether a restart of the agent could help. It cannot help against an API server
//! that is away, nor against objects that the kernel refuses: what is known by then would only have to be learnt again. It can where the reconciler's thread is stuck.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use hyper::StatusCode;
use model::Family;
use serde::Serialize;
use tokio::sync::watch;

use crate::eligibility::Eligibility;
use crate::http::Answer;
use crate::reliance::Reliance;

/// What the answers depend on.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) reliance: Reliance,
    /// The families that are served.
    pub(crate) families: BTreeSet<Family>,
    /// What the Node object says.
    pub(crate) eligibility: watch::Receiver<Eligibility>,
}

/// An answer in kube-proxy's words and order, which some parse. The reason is ours.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, OfFamily>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Both families are in one table, and stand and fall together.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    last_updated: String,
    healthy: bool,
}

/// What Go prints for no time at all.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Probes {
    /// The answer to a request for `path`.
    pub(crate) fn answer(&self, path: &str) -> Answer {
        let ready = match path {
            "/healthz" => true,
            "/livez" => false,
            _ => return Answer::text(StatusCode::NOT_FOUND, "try /healthz or /livez"),
        };
        let health = self.reliance.health.borrow().clone();
        let (now, current) = (Instant::now(), SystemTime::now());
        let unhealthy = if ready { self.reliance.against(now) } else { health.stuck(now) };
        let against = self.eligibility.borrow().against().filter(|_| ready);
        let is_good = unhealthy.is_none() && against.is_none();
        let ago = health.last_success.map(|then| now.saturating_duration_since(then));
        let last_success = ago.and_then(|ago| current.checked_sub(ago)).and_then(rfc3339);
        let current_time = rfc3339(current).unwrap_or_else(|| NEVER.to_owned());
        let status = last_success.iter().flat_map(|last| {
            let of_family =
                |family: &Family| (name(*family), OfFamily { last_updated: last.clone(), healthy: unhealthy.is_none() });
            self.families.iter().map(of_family)
        });
        let body = Body {
            status: status.collect(),
            last_updated: if is_good { current_time.clone() } else { last_success.clone().unwrap_or_else(|| NEVER.to_owned()) },
            current_time,
            node_eligible: ready.then_some(against.is_none()),
            healthy: unhealthy.is_none(),
            reason: unhealthy.as_deref().or(against),
        };
        let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match serde_json::to_vec(&body) {
            Ok(body) => Answer { status, content_type: "application/json", body, header: None },
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot print the answer: {error}")),
        }
    }
}

/// As Kubernetes names a family.
const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn rfc3339(time: SystemTime) -> Option<String> {
    k8s_openapi::jiff::Timestamp::try_from(time).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::{Freshness, Saved};
    use crate::health::{Health, Life};
    use crate::source::Kind;
    use kernel::Pulse;
    use std::time::Duration;

    fn probes(health: watch::Receiver<Health>, freshness: Option<Freshness>, limit: Duration) -> Probes {
        Probes {
            reliance: Reliance { health, freshness, max_staleness: watch::channel(limit).1 },
            families: Family::ALL.into(),
            eligibility: watch::channel(Eligibility::Eligible).1,
        }
    }

    /// The same with another limit.
    fn limited(probes: &Probes, limit: Duration) -> Probes {
        let reliance = Reliance { max_staleness: watch::channel(limit).1, ..probes.reliance.clone() };
        Probes { reliance, ..probes.clone() }
    }

    /// The keys of a JSON object, in its order, with the values of those that are no times.
    fn shape(answer: &Answer) -> String {
        let body = String::from_utf8(answer.body.clone()).unwrap();
        let mut shape = String::new();
        let mut rest = body.as_str();
        // A time is between two quotes and begins with a digit.
        while let Some((before, after)) = rest.split_once('"') {
            let (quoted, after) = after.split_once('"').unwrap();
            shape.push_str(before);
            shape.push_str(if quoted.starts_with(|c: char| c.is_ascii_digit()) && quoted != NEVER { "time" } else { quoted });
            rest = after;
        }
        shape + rest
    }

    #[test]
    fn answers_have_kube_proxys_form() {
        let (health, health_of) = watch::channel(Health::default());
        let (node, eligibility) = watch::channel(Eligibility::Unknown);
        let probes = Probes { eligibility, ..probes(health_of, None, Duration::ZERO) };
        let reason = "reason:the first synchronisation has not finished";
        assert_eq!(
            shape(&probes.answer("/healthz")),
            format!("{{lastUpdated:{NEVER},currentTime:time,nodeEligible:false,healthy:false,{reason}}}")
        );
        let alive = probes.answer("/livez");
        assert_eq!((alive.status, shape(&alive)), (StatusCode::OK, "{lastUpdated:time,currentTime:time,healthy:true}".to_owned()));

        health.send_modify(|health| {
            health.synced_once = true;
            health.note(Instant::now(), Ok(()));
        });
        let status = "status:{IPv4:{lastUpdated:time,healthy:true},IPv6:{lastUpdated:time,healthy:true}}";
        node.send_replace(Eligibility::Leaving("the Node is being deleted"));
        let leaving = probes.answer("/healthz");
        assert_eq!(leaving.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            shape(&leaving),
            format!(
                "{{lastUpdated:time,currentTime:time,nodeEligible:false,healthy:true,{status},reason:the Node is being deleted}}"
            )
        );
        let alive = probes.answer("/livez");
        assert_eq!(
            (alive.status, shape(&alive)),
            (StatusCode::OK, format!("{{lastUpdated:time,currentTime:time,healthy:true,{status}}}"))
        );

        node.send_replace(Eligibility::Eligible);
        let well = probes.answer("/healthz");
        assert_eq!(well.status, StatusCode::OK);
        assert_eq!(shape(&well), format!("{{lastUpdated:time,currentTime:time,nodeEligible:true,healthy:true,{status}}}"));
        let body: serde_json::Value = serde_json::from_slice(&well.body).unwrap();
        assert_eq!(body["lastUpdated"], body["currentTime"], "as kube-proxy has it when all is well");
        assert_eq!(probes.answer("/").status, StatusCode::NOT_FOUND);
    }

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
        let probes = probes(health_of, Some(freshness.clone()), limit);
        std::thread::sleep(limit * 2);
        let (status, reason) = asked(&probes, "/healthz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reason.contains("has told nothing of") && reason.contains("--max-staleness"), "{reason}");
        assert_eq!(asked(&probes, "/livez"), (StatusCode::OK, String::new()));
        assert_eq!(asked(&limited(&probes, Duration::ZERO), "/healthz").0, StatusCode::OK);
        Kind::ALL.into_iter().for_each(|kind| freshness.note(kind));
        assert_eq!(asked(&limited(&probes, Duration::from_secs(60)), "/healthz").0, StatusCode::OK);
    }

    #[test]
    fn j8_liveness_fails_where_the_reconciler_is_stuck_and_nowhere_else() {
        let limit = Duration::from_secs(1);
        let pulse = Pulse::default();
        let life = Life { pulse: pulse.clone(), patience: limit * 60 };
        let (health, health_of) = watch::channel(Health { life, ..Health::default() });
        let probes = probes(health_of, None, Duration::ZERO);
        let well = (StatusCode::OK, String::new());
        assert_eq!(asked(&probes, "/livez"), well, "before the first synchronisation");
        assert_eq!(asked(&probes, "/healthz").0, StatusCode::SERVICE_UNAVAILABLE);

        let long_ago = Instant::now().checked_sub(crate::health::LIMIT * 2).unwrap();
        health.send_modify(|health| {
            health.synced_once = true;
            health.note(long_ago, Err("no such scheduler".to_owned()));
        });
        assert_eq!(asked(&probes, "/livez"), well, "what the kernel refuses it refuses after a restart as well");
        assert!(asked(&probes, "/healthz").1.contains("no such scheduler"));

        std::thread::sleep(limit);
        health.send_modify(|health| health.life.patience = limit);
        for path in ["/healthz", "/livez"] {
            let (status, reason) = asked(&probes, path);
            assert!(
                status == StatusCode::SERVICE_UNAVAILABLE && reason.contains("reconciler has been stuck for"),
                "{path}: {reason}"
            );
        }
        pulse.beat();
        assert_eq!(asked(&probes, "/livez"), well, "it gets on again");
    }

    #[test]
    fn j10_what_was_saved_is_relied_on_until_it_is_too_old() {
        let (health, health_of) = watch::channel(Health::default());
        let freshness = Freshness::new();
        let probes = probes(health_of, Some(freshness.clone()), Duration::ZERO);
        let at = SystemTime::now().checked_sub(Duration::from_secs(90)).unwrap();
        freshness.note_saved(Some(Saved { at }));
        assert!(asked(&probes, "/healthz").1.contains("first synchronisation"), "it is not in the kernel yet");
        health.send_modify(|health| {
            health.saved_once = true;
            health.note(Instant::now(), Ok(()));
        });
        let (well, limit) = ((StatusCode::OK, String::new()), Duration::from_secs(60));
        for limit in [Duration::ZERO, limit * 2] {
            assert_eq!(asked(&limited(&probes, limit), "/healthz"), well, "{limit:?}");
        }
        let (status, reason) = asked(&limited(&probes, limit), "/healthz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(reason.ends_with("served is what was saved 90 s ago, which is longer than --max-staleness (60 s)"), "{reason}");
        assert_eq!(asked(&limited(&probes, limit), "/livez"), well);

        health.send_modify(|health| health.note(Instant::now(), Err("no such scheduler".to_owned())));
        assert_eq!(asked(&probes, "/healthz"), well, "as long as upstream forgives");

        freshness.note_saved(None);
        health.send_modify(|health| {
            health.synced_once = true;
            health.note(Instant::now(), Ok(()));
        });
        assert_eq!(asked(&limited(&probes, limit), "/healthz"), well, "all has been listed");
    }
}
