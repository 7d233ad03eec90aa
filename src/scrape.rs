//! What the metrics address answers: what was counted on the way, and what is looked up when somebody asks.

use std::time::Instant;

use hyper::StatusCode;
use tokio::sync::watch;

use crate::cli::{Run, TrafficMetrics};
use crate::control::Desk;
use crate::freshness::Freshness;
use crate::health::Health;
use crate::http::Answer;
use crate::metrics::Metrics;
use crate::pages::Pages;
use crate::probes::Probes;
use crate::status_page::StatusPage;
use crate::traffic::{Detail, Traffic};

/// What is answered from. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Scraped {
    metrics: Metrics,
    freshness: Option<Freshness>,
    health: watch::Receiver<Health>,
    /// `None` where nobody wants it.
    traffic: Option<Traffic>,
    pages: Pages,
    /// `None` unless it is asked for.
    status_page: Option<StatusPage>,
}

impl Scraped {
    pub(crate) fn new(arguments: &Run, desk: &Desk, metrics: &Metrics, probes: &Probes, pages: Pages) -> Self {
        let detail = match arguments.traffic_metrics {
            TrafficMetrics::Off => None,
            TrafficMetrics::Services => Some(Detail { real_servers: 0 }),
            TrafficMetrics::RealServers => Some(Detail { real_servers: arguments.traffic_metrics_limit }),
        };
        Self {
            metrics: metrics.clone(),
            freshness: probes.reliance.freshness.clone(),
            health: probes.reliance.health.clone(),
            traffic: detail.map(|detail| Traffic::new(detail, desk.reconciler.clone(), metrics.clone())),
            pages,
            status_page: arguments.status_page.then(|| StatusPage::new(desk.clone())),
        }
    }

    /// The answer to a request for `path`.
    pub(crate) async fn answer(self, path: String) -> Answer {
        if let Some(page) = self.pages.answer(&path) {
            return page;
        }
        if let Some(page) = &self.status_page
            && let Some(answer) = page.answer(&path).await
        {
            return answer;
        }
        match &*path {
            "/metrics" => match self.text().await {
                Ok(body) => Answer { status: StatusCode::OK, content_type: "text/plain; version=0.0.4", body, header: None },
                Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot render metrics: {error}")),
            },
            _ => Answer::text(StatusCode::NOT_FOUND, "try /metrics, /proxyMode or /configz"),
        }
    }

    async fn text(&self) -> prometheus::Result<Vec<u8>> {
        let traffic = match &self.traffic {
            Some(traffic) => traffic.text().await,
            None => std::sync::Arc::default(),
        };
        let now = Instant::now();
        for (kind, age) in self.freshness.iter().flat_map(|freshness| freshness.ages(now)) {
            self.metrics.note_staleness(kind.resource(), age);
        }
        let since = self.health.borrow().differing.as_ref().map(|differing| differing.since);
        self.metrics.note_differing(since.map_or_else(Default::default, |since| now.saturating_duration_since(since)));
        let mut text = self.metrics.render()?;
        text.extend_from_slice(&traffic);
        Ok(text)
    }
}
