//! Several API servers that are reached directly, one of which is called at a time.

use super::backoff::random_in;
use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where an API server is reached: `https://192.0.2.1:6443`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    scheme: Scheme,
    authority: Authority,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || "expected URLs of API servers without a path, such as https://192.0.2.1:6443".to_owned();
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let is_root = uri.path().trim_matches('/').is_empty() && uri.query().is_none();
        let parts = uri.into_parts();
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority))
                if is_root && (scheme == Scheme::HTTPS || scheme == Scheme::HTTP) && !authority.as_str().contains('@') =>
            {
                Ok(Self { scheme, authority })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl Endpoint {
    pub(super) fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Its URL.
    pub(super) fn root(&self) -> Uri {
        self.uri(&Uri::from_static("/"))
    }

    /// The same request to this server.
    fn uri(&self, request: &Uri) -> Uri {
        let mut parts = request.clone().into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // Only one without a path has no such form, and this one had a scheme before.
        Uri::from_parts(parts).unwrap_or_else(|_| request.clone())
    }
}

/// The API servers, and which of them is called.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    called: AtomicUsize,
}

impl Endpoints {
    /// Begins with any of them, so that a cluster's nodes do not all go to the first.
    pub(super) fn new(all: Vec<Endpoint>) -> Self {
        let last = u32::try_from(all.len().saturating_sub(1)).unwrap_or(0);
        let called = usize::try_from(random_in(&(0..=last))).unwrap_or(0);
        Self { all, called: AtomicUsize::new(called) }
    }

    /// How often a request is worth trying: at each of them, or once at the only server there is.
    pub(super) fn attempts(&self) -> usize {
        self.all.len().max(1)
    }

    /// Where `request` goes at present, and by which of the servers that is.
    pub(super) fn route(&self, request: &Uri) -> (usize, Uri) {
        let called = self.called.load(Ordering::Relaxed);
        (called, self.all.get(called).map_or_else(|| request.clone(), |endpoint| endpoint.uri(request)))
    }

    /// Goes on to the next server, unless another request has done so already.
    pub(super) fn leave(&self, failed: usize, reason: &dyn fmt::Display) {
        let next = failed.saturating_add(1).checked_rem(self.all.len()).unwrap_or(0);
        if next != failed
            && self.called.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && let (Some(failed), Some(next)) = (self.all.get(failed), self.all.get(next))
        {
            tracing::warn!("API server {failed} cannot be used ({reason}); going on with {next}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_of_servers() {
        let endpoint: Endpoint = "https://192.0.2.1:6443/".parse().unwrap();
        assert_eq!(endpoint.to_string(), "https://192.0.2.1:6443");
        let routed = endpoint.uri(&"https://10.96.0.1/api/v1/services?watch=true".parse().unwrap());
        assert_eq!(routed, "https://192.0.2.1:6443/api/v1/services?watch=true");
        let v6: Endpoint = "https://[2001:db8::1]:6443".parse().unwrap();
        assert_eq!(v6.uri(&"https://10.96.0.1/version".parse().unwrap()), "https://[2001:db8::1]:6443/version");
        for wrong in [
            "",
            "192.0.2.1:6443",
            "ftp://192.0.2.1",
            "https://192.0.2.1/path",
            "https://a@192.0.2.1",
            "https://",
            "/path",
            "https://a?b",
        ] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_failure_is_left_once_and_after_the_last_comes_the_first() {
        let all = ["https://a", "https://b", "https://c"].map(|url| url.parse().unwrap());
        let endpoints = Endpoints { all: all.to_vec(), called: AtomicUsize::new(1) };
        let called = || endpoints.called.load(Ordering::Relaxed);
        endpoints.leave(1, &"refused");
        assert_eq!(called(), 2);
        endpoints.leave(1, &"refused");
        assert_eq!(called(), 2, "what another request has left already");
        endpoints.leave(2, &"refused");
        assert_eq!(called(), 0);

        let none = Endpoints::new(Vec::new());
        let request: Uri = "https://10.96.0.1/version".parse().unwrap();
        none.leave(0, &"refused");
        assert_eq!((none.attempts(), none.route(&request)), (1, (0, request.clone())));
        let begun: std::collections::BTreeSet<_> = (0..100).map(|_| Endpoints::new(all.to_vec()).route(&request).0).collect();
        assert_eq!(begun.len(), 3);
    }
}
