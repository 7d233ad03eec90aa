//! The way to the API server: straight, or through an HTTP proxy.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Result, bail};
use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

/// Which proxy is in between, and for which servers.
#[derive(Clone, Debug)]
pub(super) struct Proxies {
    matcher: Arc<Matcher>,
    /// Whether it is for servers on this machine as well.
    loopback: bool,
}

impl Proxies {
    /// By a kubeconfig's `proxy-url`, which counts alone and for all, or else by the variables `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    /// As with kubectl, those are not meant for this machine itself.
    ///
    /// # Errors
    /// When the proxy is of a kind that cannot be used.
    pub(super) fn new(of_kubeconfig: Option<&str>) -> Result<Self> {
        match of_kubeconfig {
            Some(url) => Self::of(Matcher::builder().all(url).build(), true),
            None => Self::of(Matcher::from_env(), false),
        }
    }

    fn of(matcher: Matcher, loopback: bool) -> Result<Self> {
        let proxies = Self { matcher: Arc::new(matcher), loopback };
        for server in ["https://api.invalid", "http://api.invalid"] {
            let proxy = proxies.matcher.intercept(&Uri::from_static(server));
            if let Some(proxy) = proxy.filter(|proxy| proxy.uri().scheme_str() != Some("http")) {
                bail!("the proxy {} cannot be used: it has to be an HTTP proxy, whose URL begins with http://", proxy.uri());
            }
        }
        Ok(proxies)
    }

    /// The proxy on the way to `server`, with what it asks for.
    fn on_the_way(&self, server: &Uri) -> Option<(Uri, Option<hyper::header::HeaderValue>)> {
        let host = server.host()?.trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let proxy = self.matcher.intercept(server).filter(|_| self.loopback || !is_here)?;
        Some((proxy.uri().clone(), proxy.basic_auth().cloned()))
    }
}

/// Connects, through a proxy where there is one.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) direct: HttpConnector,
    pub(super) proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        match self.proxies.on_the_way(&server) {
            None => {
                let connecting = self.direct.call(server);
                Box::pin(async move { Ok(connecting.await?) })
            }
            Some((proxy, authorization)) => {
                let tunnel = Tunnel::new(proxy, self.direct.clone());
                let mut tunnel = match authorization {
                    Some(value) => tunnel.with_auth(value),
                    None => tunnel,
                };
                let connecting = tunnel.call(server);
                Box::pin(async move { Ok(connecting.await?) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_for_other_machines_and_a_kubeconfigs_proxy_is_for_all() {
        let variables = Matcher::builder().https("http://proxy.example:3128").no("10.96.0.0/12,.svc,api.example").build();
        let proxies = Proxies::of(variables, false).unwrap();
        let proxy =
            |proxies: &Proxies, server: &str| proxies.on_the_way(&server.parse().unwrap()).map(|(proxy, _)| proxy.to_string());
        assert_eq!(proxy(&proxies, "https://192.0.2.1:6443/api").as_deref(), Some("http://proxy.example:3128/"));
        for direct in [
            "https://10.96.0.1:443",
            "https://kubernetes.default.svc",
            "https://api.example:6443",
            "https://127.0.0.1:6443",
            "https://[::1]:6443",
            "https://localhost:6443",
            "http://192.0.2.1",
        ] {
            assert_eq!(proxy(&proxies, direct), None, "{direct}");
        }
        let own = Proxies::new(Some("http://user:secret@proxy.example:3128")).unwrap();
        assert!(proxy(&own, "https://127.0.0.1:6443").is_some() && proxy(&own, "https://10.96.0.1").is_some());
        let (_, authorization) = own.on_the_way(&Uri::from_static("https://192.0.2.1")).unwrap();
        assert_eq!(authorization.unwrap(), "Basic dXNlcjpzZWNyZXQ=");
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named() {
        let error = Proxies::new(Some("socks5://proxy.example:1080")).unwrap_err().to_string();
        assert!(error.contains("proxy.example:1080") && error.contains("http://"), "{error}");
    }
}
