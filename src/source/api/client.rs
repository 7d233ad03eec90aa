//! The connection to the API server: kube's client on a connector that notices dead peers.

use crate::pace::Pace;
use anyhow::{Context as _, Result, anyhow};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tower::ServiceBuilder;

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

/// A client for the cluster that `kubeconfig` names, or for the one this pod runs in.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().map_err(|error| {
            anyhow!("this is not a pod with a service account ({error}): pass --kubeconfig PATH, or --manifests PATH to run without a cluster")
        })?,
    };
    client(config).context("the API client cannot be set up")
}

async fn from_file(path: &Path) -> Result<Config> {
    let name = path.display();
    let kubeconfig =
        Kubeconfig::read_from(path).map_err(|error| anyhow!("kubeconfig {name} cannot be used: {}", innermost(&error)))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|error| {
        anyhow!("kubeconfig {name} cannot be used: {error}; it needs a current-context whose cluster and user it defines")
    })
}

fn client(mut config: Config) -> Result<Client> {
    if config.cluster_url.scheme_str() == Some("http") || config.accept_invalid_certs {
        // No certificate will be checked. Without a list, be it empty, rustls insists on the system's, of which a small image has none.
        config.root_cert.get_or_insert_default();
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    let hyper: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
        .build(config.rustls_https_connector_with_connector(connector).context(
        "TLS needs the API server's root certificate: name a certificate-authority in the kubeconfig, or install ca-certificates",
    )?);
    let pace = Arc::new(Pace::new(WATCH_INTERVAL, WATCH_BURST));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(tower::service_fn(move |request: hyper::Request<Body>| {
            let (hyper, pace) = (hyper.clone(), pace.clone());
            async move {
                if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    sleep_until(pace.next(Instant::now())).await;
                }
                let answer = tokio::time::timeout(HEADERS_TIMEOUT, hyper.request(request)).await;
                answer
                    .map_err(|_| tower::BoxError::from(format!("no answer within {} s", HEADERS_TIMEOUT.as_secs())))?
                    .map_err(tower::BoxError::from)
            }
        }));
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
