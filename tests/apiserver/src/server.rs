//! Connections, authentication, and the way from a request to its answer.

use crate::body::{Answer, LastSent, LineSender};
use crate::fault::{Fault, Faults, Interruption, Verb};
use crate::json::Json;
use crate::options::Options;
use crate::request::{Place, Query, Received};
use crate::resource::Resource;
use crate::selector::Selection;
use crate::status::Failure;
use crate::store::Store;
use crate::watch::{Watch, error, with_kind};
use crate::{access, discovery, list, objects};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The size of objects etcd accepts is 1.5 MiB; the API server refuses bodies over 3 MiB.
const MAX_BODY: usize = 3 << 20;

/// Go's HTTP server finds out the length of a body up to this size, and sends larger ones in chunks.
const MAX_WHOLE: usize = 2048;

/// How long a real server waits for a version that lies ahead before it answers 504.
const AHEAD_SECONDS: u32 = 3;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) options: Options,
    /// The bearer token that is let in.
    pub(crate) token: Mutex<Option<String>>,
    pub(crate) faults: Faults,
    /// One channel per resource; each open watch holds a receiver of it.
    pub(crate) interruptions: BTreeMap<Resource, broadcast::Sender<Interruption>>,
    pub(crate) received: Mutex<Vec<Received>>,
    pub(crate) forbidden: Mutex<Vec<(Verb, Resource)>>,
    pub(crate) streaming_lists: AtomicBool,
    /// What is answered to paths below objects: logs, and what is reached through a proxy.
    pub(crate) texts: Mutex<BTreeMap<String, String>>,
    pub(crate) last_sent: LastSent,
}

impl Shared {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            store: Store::new(),
            faults: Faults::default(),
            interruptions: Resource::ALL.into_iter().map(|resource| (resource, broadcast::Sender::new(64))).collect(),
            received: Mutex::default(),
            forbidden: Mutex::default(),
            texts: Mutex::default(),
            streaming_lists: AtomicBool::new(options.streaming_lists),
            last_sent: LastSent::default(),
            token: Mutex::new(options.token.clone()),
            options,
        }
    }

    pub(crate) fn streaming_lists(&self) -> bool {
        self.streaming_lists.load(Ordering::Relaxed)
    }
}

/// Accepts connections until dropped; its connections end with it.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    match &shared.options.tls {
                        None => connection(stream, None, shared).await,
                        Some(tls) => {
                            // Who does not trust the double, or shows no certificate, is gone by now.
                            if let Ok(stream) = tls.acceptor.accept(stream).await {
                                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                                let certificate = shown.map(|certificate| certificate.to_vec());
                                connection(stream, certificate, shared).await;
                            }
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
            // Out of descriptors, most likely: the next attempt may find some.
            Err(_) => sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, certificate: Option<Vec<u8>>, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(shared.clone(), certificate.clone(), request));
    let served =
        hyper::server::conn::http1::Builder::new().title_case_headers(true).serve_connection(TokioIo::new(stream), service);
    // A connection that breaks off is the client's business, or was asked for.
    let _ = served.await;
}

/// The error that makes hyper drop a connection without an answer.
#[derive(Debug)]
struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed on demand")
    }
}

impl std::error::Error for HangUp {}

async fn answer(shared: Arc<Shared>, certificate: Option<Vec<u8>>, request: Request<Incoming>) -> Result<Response<Answer>, HangUp> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let place = Place::parse(&path);
    let asks = place.as_ref().and_then(|place| Some((verb(request.method(), place, &query)?, place.resource)));
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let record = Received::new(request.method().as_str(), target, asks, certificate, query.clone());
    shared.received.lock().unwrap_or_else(PoisonError::into_inner).push(record);

    let fault = asks.and_then(|(verb, resource)| shared.faults.take(verb, resource));
    match fault {
        Some(Fault::Disconnect) => return Err(HangUp),
        Some(Fault::NoAnswer) => std::future::pending().await,
        Some(Fault::Delay(time)) => sleep(time).await,
        Some(Fault::Status(code)) => return Ok(refusal(&Failure::on_demand(code))),
        Some(Fault::ErrorLine(code)) => {
            let (sender, body) = Answer::lines(&shared.last_sent);
            tokio::spawn(async move { sender.send(format!("{}\n", error(&Failure::on_demand(code)))).await });
            return Ok(response(StatusCode::OK, body));
        }
        Some(Fault::Silent) => {
            let (sender, body) = Answer::lines(&shared.last_sent);
            let interruptions =
                asks.and_then(|(_, resource)| shared.interruptions.get(&resource)).map(broadcast::Sender::subscribe);
            tokio::spawn(silence(sender, interruptions));
            return Ok(response(StatusCode::OK, body));
        }
        Some(Fault::CutLine(_)) | None => {}
    }
    Ok(granted(&shared, request, place, &query, asks, fault).await.unwrap_or_else(|failure| refusal(&failure)))
}

/// Says nothing until there is an interruption, or nobody listens any more.
async fn silence(sender: LineSender, interruptions: Option<broadcast::Receiver<Interruption>>) {
    let interrupted = async {
        match interruptions {
            Some(mut interruptions) => _ = interruptions.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sender.closed() => {}
        () = interrupted => sender.cut("").await,
    }
}

async fn granted(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    place: Option<Place>,
    query: &Query,
    asks: Option<(Verb, Resource)>,
    fault: Option<Fault>,
) -> Result<Response<Answer>, Failure> {
    let user = user(shared, &request)?;
    if request.uri().path() == access::PATH && request.method() == Method::POST {
        let asked = access::question(&read(request).await?)?;
        let forbidden = shared.forbidden.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = user != ANONYMOUS && asked.is_some_and(|asked| !forbidden.contains(&asked));
        return Ok(response(StatusCode::CREATED, Answer::whole(access::answer(allowed))));
    }
    if let Some(text) = shared.texts.lock().unwrap_or_else(PoisonError::into_inner).get(request.uri().path()) {
        return Ok(response(StatusCode::OK, Answer::whole(text.clone())));
    }
    let Some(place) = place else {
        let body = discovery::answer(request.uri().path()).ok_or_else(Failure::no_such_path)?;
        return Ok(response(StatusCode::OK, Answer::whole(body)));
    };
    let Some((verb, resource)) = asks else { return Err(Failure::method_not_allowed()) };
    let forbidden = shared.forbidden.lock().unwrap_or_else(PoisonError::into_inner).contains(&(verb, resource));
    if forbidden || user == ANONYMOUS {
        return Err(Failure::forbidden(user, verb.name(), resource, place.namespace.as_deref()));
    }
    match (verb, place.name) {
        (Verb::Create, _) => {
            let namespace = place.namespace.ok_or_else(Failure::method_not_allowed)?;
            let created = objects::create(&shared.store, resource, &namespace, read(request).await?)?;
            Ok(response(StatusCode::CREATED, Answer::whole(with_kind(resource, &created))))
        }
        (Verb::Get, name) => {
            let name = name.unwrap_or_default();
            let key = place.namespace.map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
            let object = shared.store.get(resource, &key).ok_or_else(|| Failure::not_found(resource, &name))?;
            Ok(response(StatusCode::OK, Answer::whole(with_kind(resource, &object))))
        }
        (Verb::Patch, name) => {
            let name = name.unwrap_or_default();
            let key = objects::key(resource, place.namespace.as_deref(), &name);
            let patched = objects::patch(&shared.store, resource, &key, &name, &read(request).await?)?;
            Ok(response(StatusCode::OK, Answer::whole(with_kind(resource, &patched))))
        }
        (Verb::Delete, name) => {
            let name = name.unwrap_or_default();
            let key = objects::key(resource, place.namespace.as_deref(), &name);
            if !shared.store.delete(resource, &key) {
                return Err(Failure::not_found(resource, &name));
            }
            let status = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}"#;
            Ok(response(StatusCode::OK, Answer::whole(status.to_owned())))
        }
        (Verb::List, _) => {
            let selection = selection(resource, place.namespace, query)?;
            if let Some(least) = list::least_version(query)? {
                let mut versions = shared.store.versions();
                // Whether it came in time is for the list to see.
                let _ = timeout(shared.options.second * AHEAD_SECONDS, versions.wait_for(|version| *version >= least)).await;
            }
            let listing = list::list(&shared.store, resource, &selection, query)?;
            if listing.len() <= MAX_WHOLE && fault.is_none() {
                return Ok(response(StatusCode::OK, Answer::whole(listing)));
            }
            let (sender, body) = Answer::lines(&shared.last_sent);
            tokio::spawn(async move {
                match fault {
                    Some(Fault::CutLine(_)) => sender.cut(&listing).await,
                    _ => drop(sender.send(listing).await),
                }
            });
            Ok(response(StatusCode::OK, body))
        }
        (Verb::Watch, _) => {
            let selection = selection(resource, place.namespace, query)?;
            let watch = Watch::parse(shared, resource, selection, query)?;
            let (sender, body) = Answer::lines(&shared.last_sent);
            tokio::spawn(watch.run(shared.clone(), sender, fault));
            Ok(response(StatusCode::OK, body))
        }
    }
}

/// The object in a request's body.
async fn read(request: Request<Incoming>) -> Result<Json, Failure> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| Failure::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
    let text = std::str::from_utf8(&body).map_err(|error| Failure::bad_request(error.to_string()))?;
    text.parse().map_err(|error: serde_json::Error| Failure::bad_request(error.to_string()))
}

const ANONYMOUS: &str = "system:anonymous";

fn user<'a>(shared: &'a Shared, request: &Request<Incoming>) -> Result<&'a str, Failure> {
    let Some(token) = shared.token.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return Ok(&shared.options.user) };
    match request.headers().get(AUTHORIZATION) {
        None => Ok(ANONYMOUS),
        Some(value) if value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")) == Some(&token) => {
            Ok(&shared.options.user)
        }
        Some(_) => Err(Failure::unauthorized()),
    }
}

fn verb(method: &Method, place: &Place, query: &Query) -> Option<Verb> {
    match (method, &place.name) {
        (&Method::GET, Some(_)) => Some(Verb::Get),
        (&Method::GET, None) if query.is_true("watch") => Some(Verb::Watch),
        (&Method::GET, None) => Some(Verb::List),
        (&Method::POST, None) if matches!(place.resource, Resource::Events | Resource::Pods) => Some(Verb::Create),
        (&Method::PATCH, Some(_)) => Some(Verb::Patch),
        (&Method::DELETE, Some(_)) => Some(Verb::Delete),
        _ => None,
    }
}

fn selection(resource: Resource, namespace: Option<String>, query: &Query) -> Result<Selection, Failure> {
    Selection::parse(resource, namespace, query.get("labelSelector"), query.get("fieldSelector"))
}

fn refusal(failure: &Failure) -> Response<Answer> {
    let status = StatusCode::from_u16(failure.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = response(status, Answer::whole(format!("{}\n", failure.body())));
    if let Some(seconds) = failure.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn response(status: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache, private"));
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
