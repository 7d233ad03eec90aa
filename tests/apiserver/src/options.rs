//! How a double is set up.

use crate::tls::Tls;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How a double is set up. The default listens on a free port, lets everyone in and can do streaming lists.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bearer token that is let in. Without one everybody is.
    pub token: Option<String>,
    /// The certificates to speak TLS with. Without any it is plain HTTP.
    pub tls: Option<Tls>,
    /// Who the token belongs to, as messages name it.
    pub user: String,
    /// Whether `sendInitialEvents` works.
    pub streaming_lists: bool,
    /// Seconds between two bookmarks.
    pub bookmark_seconds: u32,
    /// How long a second of the protocol takes (`timeoutSeconds`, `bookmark_seconds`), so that tests need not wait for real ones.
    pub second: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token: None,
            tls: None,
            user: "system:serviceaccount:kube-system:kube-ipvs".to_owned(),
            streaming_lists: true,
            bookmark_seconds: 60,
            second: Duration::from_secs(1),
        }
    }
}
