//! The HTTP servers: health and metrics over TCP, names over the control socket.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tracing::{debug, info, warn};

/// The answer to a request.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    /// A header beyond those that every answer has.
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
}

impl Answer {
    /// A JSON document.
    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self { status, content_type: "application/json", body: body.to_string().into_bytes(), header: None }
    }

    /// A line of text.
    pub(crate) fn text(status: StatusCode, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes(), header: None }
    }
}

/// How long a client may take over its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How large a request's head may be, in bytes. Nobody has a reason to send more than a path and a few headers.
const HEAD_LIMIT: usize = 16 * 1024;
/// Connections served at a time. Those beyond it wait in the listen queue, which a probe's few never notice.
const CONNECTIONS: usize = 64;
/// How long to wait before trying again to listen on an address that is taken.
const RETRY: Duration = Duration::from_secs(5);

/// Serves GET requests on `address`, for as long as the process lives. `answer` gets the path and the address that was called.
///
/// An address that cannot be listened on is retried: an agent whose health port is taken still proxies.
pub(crate) async fn serve<F, R>(address: SocketAddr, what: &'static str, answer: F)
where
    F: Fn(String, IpAddr) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(%address, %error, "cannot serve {what}; trying again every {} s", RETRY.as_secs());
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(%address, "serving {what}");
    let next = async || {
        let (stream, _) = listener.accept().await?;
        // On a socket for both families an IPv4 address comes in its IPv6 form.
        let called = stream.local_addr()?.ip().to_canonical();
        Ok((stream, called))
    };
    accept(next, answer).await;
}

/// A listener on the control socket at `path`, which only root can use: mode 0600 in a directory of mode 0700.
///
/// # Errors
/// When the directory or the socket cannot be made.
pub(crate) fn control_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let cannot = || format!("cannot make the control socket {}", path.display());
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).with_context(cannot)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).with_context(cannot)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(cannot),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(cannot)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(cannot)?;
    Ok(listener)
}

/// Serves GET requests on the control socket, for as long as the process lives.
pub(crate) async fn serve_control<F, R>(listener: UnixListener, answer: F)
where
    F: Fn(String) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    accept(async || listener.accept().await.map(|(stream, _)| (stream, ())), move |path, ()| answer(path)).await;
}

/// Answers whoever `next` brings, with what it says of where they have called.
async fn accept<S, C, F, R>(next: impl AsyncFn() -> std::io::Result<(S, C)>, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    C: Copy + 'static,
    F: Fn(String, C) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match next().await {
            Ok((stream, called)) => {
                let answer = answer.clone();
                tokio::task::spawn_local(async move {
                    connection(stream, move |path| answer(path, called)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: waiting lets some be closed.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection<S, F, R>(stream: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(String) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(&request, answer).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

async fn respond<F, R>(request: &Request<Incoming>, answer: F) -> Response<Full<Bytes>>
where
    F: Fn(String) -> R,
    R: Future<Output = Answer>,
{
    let allowed = matches!(*request.method(), Method::GET | Method::HEAD);
    let answer = if allowed {
        answer(request.uri().path().to_owned()).await
    } else {
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here")
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Some((name, value)) = answer.header {
        response.headers_mut().insert(name, value);
    }
    if !allowed {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
