//! The side of the control socket that asks.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Query;

/// How long the agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More than this is no answer of ours: 128 MiB hold a million real servers.
const ANSWER_LIMIT: usize = 128 << 20;

/// Asks the agent behind `socket`.
///
/// # Errors
/// When nobody answers in time, or not in words that this version understands.
pub(crate) fn ask<T: DeserializeOwned>(socket: &Path, query: Query) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = async {
        let stream = UnixStream::connect(socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong with the connection, the request says as well.
        tokio::spawn(connection);
        let request = Request::get(query.path()).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::ensure!(
            status != StatusCode::NOT_FOUND,
            "the agent is of another version and does not know {}; use the kube-ipvs that it runs with",
            query.path()
        );
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        anyhow::ensure!(status.is_success(), "the agent answered {status}: {}", String::from_utf8_lossy(&body).trim_end());
        Ok(body)
    };
    let body = runtime.block_on(async { tokio::time::timeout(TIMEOUT, answer).await.context("the agent takes too long")? })?;
    serde_json::from_slice(&body).with_context(|| format!("the agent's answer to {} makes no sense", query.path()))
}
