//! The status page: what `kube-ipvs top` shows, for a browser.
//!
//! It is plain HTML that is made here as a whole. There is no script, and nothing is loaded from anywhere: [`html`] writes it, and every text
//! that comes from the cluster goes through the one function that escapes. Whoever asks, and how often, the node is looked at once in
//! [`FRESH`].

#[cfg(test)]
mod browser;
mod html;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use crate::control::{AskAgent, AskReconciler, Desk};
use crate::http::Answer;
use crate::status::gather::{PATIENCE, SETTLING, look};
use crate::status::join::Told;
use crate::status::view::View;
use crate::top::app::{App, Page};
use crate::top::figures::Glyphs;
use crate::top::sample::{Sample, SortBy};

/// For how long one look serves all who ask. As the page asks again after twice the time, each of its looks is a new one.
const FRESH: Duration = Duration::from_secs(1);

/// Nothing may be loaded, run, framed or sent; the page's own style sheet alone is in force.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Serves the page. Cloning shares what was seen.
#[derive(Clone)]
pub(crate) struct StatusPage {
    desk: Desk,
    /// How the node is looked at.
    look: Look,
    /// The state of the view, with the looks before.
    seen: Rc<RefCell<App>>,
    /// What was heard for that. Held while somebody looks, so that the others wait for that look.
    told: Rc<tokio::sync::Mutex<Option<Heard>>>,
}

/// Sees what the kernel has, beside what was told.
type Look = fn(Option<&Told>) -> Result<View, kernel::Error>;

/// What agent and reconciler have told, and when.
struct Heard {
    at: Instant,
    told: Told,
}

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Services(SortBy),
    Servers(String),
}

impl Request {
    /// `/`, `/by/COLUMN` and `/service/NAME`, with percent signs where a name has what a path may not.
    fn of(path: &str) -> Option<Self> {
        if path == "/" {
            return Some(Self::Services(SortBy::Active));
        }
        if let Some(column) = path.strip_prefix("/by/") {
            return SortBy::ALL.into_iter().find(|sort| html::column(*sort) == column).map(Self::Services);
        }
        path.strip_prefix("/service/").and_then(html::decoded).map(Self::Servers)
    }
}

impl StatusPage {
    pub(crate) fn new(desk: Desk) -> Self {
        let app = App::new(SortBy::Active, FRESH * 2, String::new(), Glyphs::Unicode, true);
        Self { desk, look, seen: Rc::new(RefCell::new(app)), told: Rc::default() }
    }

    /// The page that `path` asks for; `None` where that is none of this.
    pub(crate) async fn answer(&self, path: &str) -> Option<Answer> {
        let request = Request::of(path)?;
        self.look().await;
        let mut app = self.seen.borrow_mut();
        let mut status = StatusCode::OK;
        match request {
            Request::Services(sort) => (app.sort, app.page) = (sort, Page::Services),
            Request::Servers(name) => {
                if app.service(&name).is_none() {
                    status = StatusCode::NOT_FOUND;
                }
                (app.sort, app.page) = (SortBy::Active, Page::Servers(name));
            }
        }
        Some(Answer {
            status,
            content_type: "text/html; charset=utf-8",
            body: html::render(&app).into_bytes(),
            header: Some((CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))),
        })
    }

    /// Looks at the node, unless that has just been done.
    async fn look(&self) {
        let mut told = self.told.lock().await;
        let before = self.seen.borrow().sample.clone();
        if before.as_ref().is_some_and(|sample| sample.at.elapsed() < FRESH) {
            return;
        }
        let seen = self.gather(&mut told).await;
        let mut app = self.seen.borrow_mut();
        match seen {
            Ok(view) => app.take(Sample::new(&view, Instant::now(), before.as_ref())),
            Err(error) => app.fail(format!("{error:#}")),
        }
    }

    async fn gather(&self, told: &mut Option<Heard>) -> anyhow::Result<View> {
        *told = self.hear(told.take()).await;
        let first = self.see(told).await?;
        if !first.has_drifted() {
            return Ok(first);
        }
        tokio::time::sleep(SETTLING).await;
        *told = self.hear(None).await;
        let mut second = self.see(told).await?;
        second.keep_lasting_drift(&first);
        Ok(second)
    }

    /// Asks for what has become too old.
    async fn hear(&self, heard: Option<Heard>) -> Option<Heard> {
        let drains = self.desk.ask_reconciler(AskReconciler::Drains).await?;
        if let Some(mut heard) = heard.filter(|heard| heard.at.elapsed() < PATIENCE) {
            heard.told.set_drains(&drains);
            return Some(heard);
        }
        let at = Instant::now();
        let table = self.desk.ask_reconciler(AskReconciler::VirtualServers).await?;
        let endpoints = self.desk.ask_agent(AskAgent::Endpoints).await?;
        Some(Heard { at, told: Told::new(table, &drains, endpoints) })
    }

    /// What the kernel has, beside what was heard. That takes a while, in which others are served.
    async fn see(&self, heard: &mut Option<Heard>) -> anyhow::Result<View> {
        let (look, told) = (self.look, heard.take());
        let (told, view) = tokio::task::spawn_blocking(move || {
            let view = look(told.as_ref().map(|heard| &heard.told));
            (told, view)
        })
        .await?;
        *heard = told;
        Ok(view?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_ask_for_pages() {
        assert_eq!(Request::of("/"), Some(Request::Services(SortBy::Active)));
        assert_eq!(Request::of("/by/bytes"), Some(Request::Services(SortBy::Bytes)));
        assert_eq!(Request::of("/service/shop/web:http"), Some(Request::Servers("shop/web:http".to_owned())));
        assert_eq!(Request::of("/service/TCP%20192.0.2.1:443"), Some(Request::Servers("TCP 192.0.2.1:443".to_owned())));
        for other in ["", "/metrics", "/proxyMode", "/by/", "/by/x", "/service/%", "/service/%zz", "/service/%ff"] {
            assert_eq!(Request::of(other), None, "{other}");
        }
    }
}
