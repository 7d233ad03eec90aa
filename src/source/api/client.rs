//! The connection to the API server: kube's client on a connector that notices dead peers.

use super::bookmarks::{self, Observed, Timed};
use super::connections::{Connections, files};
use super::endpoints::{Endpoint, Endpoints};
use super::proxy::{Connector, Proxies};
use super::token::TokenFile;
use crate::freshness::Freshness;
use crate::metrics::Requests;
use crate::pace::Pace;
use anyhow::{Context as _, Result, anyhow, bail};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tower::ServiceBuilder;
use tower::util::MapRequestLayer;

/// Without it, an API server that vanishes (its machine dies, a firewall forgets the connection) leaves its watches silent until their timeout.
/// 15 s idle and three unanswered probes 5 s apart: half a minute, as kube-proxy's HTTP/2 pings take.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// API servers end requests other than watches after 60 s; headers come at once or, for a list, when it is ready.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(65);

/// A watch may end at once for good reasons; kube opens it again without a pause. A server or proxy that ends every watch at once is asked
/// once a second after a handful of attempts.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_BURST: u32 = 10;

/// How long a connection may take where there is another server to go on to. One across a continent takes a fraction of a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for the cluster that `kubeconfig` names, or for the one this pod runs in, at the URL of `master` if there is one. Its requests go to the `endpoints` instead of the server
/// that is named there, if there are any. What its watches say of how well they are is noted in `freshness`, and all that it asks in `requests`.
pub(crate) async fn connect_to(
    kubeconfig: Option<&Path>,
    master: Option<&Endpoint>,
    endpoints: &[Endpoint],
    freshness: &Freshness,
    requests: &Requests,
) -> Result<Client> {
    let mut proxy_url = None;
    let mut config = match (kubeconfig, Config::incluster(), master) {
        (Some(path), ..) => {
            let (config, proxy) = from_file(path).await?;
            proxy_url = proxy;
            config
        }
        (None, Ok(config), _) => config,
        // As kube-proxy has it: an API server that asks for nothing, as one on the same machine may.
        (None, Err(_), Some(master)) => Config::new(master.root()),
        (None, Err(error), None) => bail!(
            "this is not a pod with a service account ({error}): pass --kubeconfig PATH, or --manifests PATH to run without a cluster"
        ),
    };
    if let Some(master) = master {
        if config.cluster_url.scheme_str() == Some("https") && !master.is_encrypted() {
            bail!("--master: credentials would go to {master} unencrypted; begin it with https:// as the cluster's own URL does");
        }
        config.cluster_url = master.root();
    }
    redirect(&mut config, endpoints)?;
    let proxies = Proxies::new(proxy_url.as_deref())?;
    client(config, Endpoints::new(endpoints.to_vec()), freshness.clone(), proxies, requests.clone())
        .context("the API client cannot be set up")
}

#[cfg(test)]
pub(crate) async fn connect(kubeconfig: Option<&Path>, endpoints: &[Endpoint], freshness: &Freshness) -> Result<Client> {
    connect_to(kubeconfig, None, endpoints, freshness, &Requests::new()?).await
}

/// What a kubeconfig says, and the proxy that it names.
async fn from_file(path: &Path) -> Result<(Config, Option<String>)> {
    let name = path.display();
    let kubeconfig =
        Kubeconfig::read_from(path).map_err(|error| anyhow!("kubeconfig {name} cannot be used: {}", innermost(&error)))?;
    let (proxy, authority) = (proxy_url(&kubeconfig), authority(&kubeconfig));
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|error| {
        anyhow!("kubeconfig {name} cannot be used: {error}; it needs a current-context whose cluster and user it defines")
    })?;
    // kube reads it again where it is a pod's, and so it is to be with any other.
    config.root_cert_file = authority.filter(|_| config.root_cert.is_some());
    Ok((config, proxy))
}

/// The `proxy-url` of the current context's cluster. kube's own answer does not tell it from what the environment says.
fn proxy_url(kubeconfig: &Kubeconfig) -> Option<String> {
    cluster(kubeconfig)?.proxy_url.clone().filter(|url| !url.is_empty())
}

/// The file with the authority that the server's certificate is of, unless that is written out.
fn authority(kubeconfig: &Kubeconfig) -> Option<PathBuf> {
    let cluster = cluster(kubeconfig).filter(|cluster| cluster.certificate_authority_data.is_none())?;
    cluster.certificate_authority.as_ref().map(PathBuf::from)
}

fn cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let context = kubeconfig.contexts.iter().find(|context| Some(&context.name) == kubeconfig.current_context.as_ref())?;
    let name = &context.context.as_ref()?.cluster;
    kubeconfig.clusters.iter().find(|cluster| &cluster.name == name)?.cluster.as_ref()
}

/// Prepares for servers other than the one that is configured. Their certificates have to hold for its name: that they have in common.
fn redirect(config: &mut Config, endpoints: &[Endpoint]) -> Result<()> {
    if endpoints.is_empty() {
        return Ok(());
    }
    let is_encrypted = config.cluster_url.scheme_str() == Some("https");
    if let Some(plain) = endpoints.iter().find(|endpoint| is_encrypted && !endpoint.is_encrypted()) {
        bail!("--api-endpoints: credentials would go to {plain} unencrypted; begin it with https:// as the cluster's own URL does");
    }
    if config.tls_server_name.is_none() {
        let host = config.cluster_url.host().map(|host| host.trim_matches(['[', ']']).to_owned());
        config.tls_server_name = host;
    }
    config.connect_timeout = Some(config.connect_timeout.map_or(CONNECT_TIMEOUT, |timeout| timeout.min(CONNECT_TIMEOUT)));
    Ok(())
}

fn client(mut config: Config, endpoints: Endpoints, freshness: Freshness, proxies: Proxies, requests: Requests) -> Result<Client> {
    if config.cluster_url.scheme_str() == Some("http") || config.accept_invalid_certs {
        // No certificate will be checked. Without a list, be it empty, rustls insists on the system's, of which a small image has none.
        config.root_cert.get_or_insert_default();
    }
    // A token that is given as such counts before one in a file.
    let token_file = config.auth_info.token_file.take().filter(|_| config.auth_info.token.is_none());
    let token_file = token_file.map(|path| TokenFile::open(path.into())).transpose()?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    let connector = Connector { direct: connector, proxies };
    let secured = config.clone();
    let connections = Connections::open(files(&config), move || {
        let connector = secured.rustls_https_connector_with_connector(connector.clone()).context(
            "TLS needs the API server's root certificate: name a certificate-authority in the kubeconfig, or install ca-certificates",
        )?;
        Ok(HyperClient::builder(TokioExecutor::new()).build(connector))
    })?;
    let pace = Pace::new(WATCH_INTERVAL, WATCH_BURST);
    let sender = Arc::new(Sender { connections, endpoints, pace, freshness, requests });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .option_layer(token_file.map(|file| MapRequestLayer::new(move |request| file.authorize(request))))
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(tower::service_fn(move |request| {
            let sender = sender.clone();
            async move { sender.send(request).await }
        }));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Sends requests that are complete but for the server they go to.
struct Sender<C> {
    connections: Connections<C>,
    endpoints: Endpoints,
    pace: Pace,
    freshness: Freshness,
    requests: Requests,
}

impl<C: Connect + Clone + Send + Sync + 'static> Sender<C> {
    async fn send(&self, request: Request<Body>) -> Result<Response<Observed>, tower::BoxError> {
        let kind = bookmarks::watched(&request);
        if kind.is_some() {
            sleep_until(self.pace.next(Instant::now())).await;
        }
        let (parts, body) = request.into_parts();
        let mut attempts = self.endpoints.attempts();
        loop {
            attempts = attempts.saturating_sub(1);
            let mut parts = parts.clone();
            let (called, uri) = self.endpoints.route(&parts.uri);
            parts.uri = uri;
            // Only a stream cannot be sent twice, and kube sends none.
            let body = body.try_clone().ok_or("a request that is a stream")?;
            let (method, host) = (parts.method.to_string(), parts.uri.authority().map(ToString::to_string).unwrap_or_default());
            let begun = Instant::now();
            let answer = timeout(HEADERS_TIMEOUT, self.connections.client().request(Request::from_parts(parts, body))).await;
            let code = answer.as_ref().ok().and_then(|answer| answer.as_ref().ok()).map(|answer| answer.status().as_u16());
            self.requests.count(&method, &host, code);
            match answer {
                Ok(Ok(answer)) => {
                    if answer.status().is_server_error() {
                        self.endpoints.leave(called, &answer.status());
                    }
                    let timed = kind.is_none().then(|| Timed { requests: self.requests.clone(), method, host, begun });
                    return Ok(bookmarks::observed(kind, answer, &self.freshness, timed));
                }
                Ok(Err(error)) => {
                    self.endpoints.leave(called, &innermost(&error));
                    // Nothing has been sent, so nothing is asked for twice.
                    if !error.is_connect() || attempts == 0 {
                        return Err(error.into());
                    }
                }
                Err(_) => {
                    let reason = format!("no answer within {} s", HEADERS_TIMEOUT.as_secs());
                    self.endpoints.leave(called, &reason);
                    return Err(reason.into());
                }
            }
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod ways;
