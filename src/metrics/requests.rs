//! Requests to the API server, as every client of Kubernetes counts them.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Result};

use super::group::{Group, Registered};

/// What client-go has. The longest it takes an API server to give up is a minute.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// The code of a request that was not answered; client-go's word.
const NO_ANSWER: &str = "<error>";

/// Requests to the API server by what became of them. Cloning shares the counts.
#[derive(Clone)]
pub(crate) struct Requests {
    pub(super) group: Registered,
    answers: IntCounterVec,
    durations: HistogramVec,
}

impl Requests {
    /// None yet.
    pub(crate) fn new() -> Result<Self> {
        let mut group = Group::new(None)?;
        Ok(Self {
            answers: group.add(IntCounterVec::new(
                Opts::new("rest_client_requests_total", "Requests to the API server, by code, method and host."),
                &["code", "method", "host"],
            ))?,
            durations: group.add(HistogramVec::new(
                HistogramOpts::new(
                    "rest_client_request_duration_seconds",
                    "Time from a request to the API server to the end of its answer, watches left out.",
                )
                .buckets(BUCKETS.to_vec()),
                &["verb", "host"],
            ))?,
            group: group.finish(),
        })
    }

    /// Counts a request that was answered with `code`, or not at all.
    pub(crate) fn count(&self, method: &str, host: &str, code: Option<u16>) {
        let code = code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        self.answers.with_label_values(&[&*code, method, host]).inc();
    }

    /// Notes how long a request took that was no watch.
    pub(crate) fn note_duration(&self, method: &str, host: &str, duration: Duration) {
        self.durations.with_label_values(&[method, host]).observe(duration.as_secs_f64());
    }
}
