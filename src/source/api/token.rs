//! A bearer token that is in a file, which others replace: the kubelet does so well before the old one ends.
//!
//! kube reads it again within a minute, and takes a line's end for a part of it. A request is rare enough to read it each time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderValue};
use kube::client::Body;

/// The file, and what was last in it.
#[derive(Clone)]
pub(super) struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<HeaderValue>>,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When there is no token in it.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let token = read(&path)?;
        Ok(Self { path, last: Arc::new(Mutex::new(token)) })
    }

    /// The request with the token, as the file has it by now. A file that cannot be read is being replaced.
    pub(super) fn authorize(&self, mut request: Request<Body>) -> Request<Body> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(token) = read(&self.path) {
            *last = token;
        }
        request.headers_mut().insert(AUTHORIZATION, last.clone());
        request
    }
}

fn read(path: &PathBuf) -> Result<HeaderValue> {
    let text = std::fs::read_to_string(path).with_context(|| format!("the token file {} cannot be read", path.display()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .with_context(|| format!("what is in {} is no token", path.display()))?;
    anyhow::ensure!(!text.trim().is_empty(), "the token file {} is empty", path.display());
    value.set_sensitive(true);
    Ok(value)
}
