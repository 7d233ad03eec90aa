//! HTTP requests from inside a node's namespace.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

use crate::Result;

const PATIENCE: Duration = Duration::from_secs(30);

/// Requests `path` from `place`, such as `127.0.0.1:10249`; the whole answer, or `error: ` and why there is none.
#[must_use]
pub fn fetch(place: &str, path: &str) -> String {
    try_fetch(place, path).unwrap_or_else(|error| format!("error: {error:#}"))
}

fn try_fetch(place: &str, path: &str) -> Result<String> {
    let address: SocketAddr = place.parse().context("no address and port")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("no timeout")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n").context("cannot ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
