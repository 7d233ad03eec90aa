//! Connections in the name of what is in files, which others replace: the kubelet's certificate lives for a year, some for an hour.
//!
//! TLS says who the client is once per connection, so other files mean other connections. Watches that are on go on with theirs: the server ends them within
//! minutes.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use hyper_util::client::legacy::Client as HyperClient;
use kube::Config;
use kube::client::Body;
use tracing::{info, warn};

/// Makes a client by what is in the files.
type Build<C> = Box<dyn Fn() -> Result<HyperClient<C, Body>> + Send + Sync>;

/// A client that is as new as its files.
pub(super) struct Connections<C> {
    files: Vec<PathBuf>,
    build: Build<C>,
    held: Mutex<Held<C>>,
}

struct Held<C> {
    client: HyperClient<C, Body>,
    /// The files that were last tried.
    tried: Vec<Stamp>,
}

/// What tells that a file may have changed, through symlinks: its inode, its size, and when it was written, in seconds and nanoseconds.
type Stamp = Option<(u64, u64, i64, i64)>;

/// The files from which `config` has the client's certificate and key, and the authority it trusts.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let of_client = [&config.auth_info.client_certificate, &config.auth_info.client_key].into_iter().flatten().map(PathBuf::from);
    of_client.chain(config.root_cert_file.clone()).collect()
}

impl<C: Clone> Connections<C> {
    /// Makes the first client.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn open(
        files: Vec<PathBuf>,
        build: impl Fn() -> Result<HyperClient<C, Body>> + Send + Sync + 'static,
    ) -> Result<Self> {
        // Before they are read: what comes in between is read again.
        let tried = stamps(&files);
        let client = build()?;
        Ok(Self { files, build: Box::new(build), held: Mutex::new(Held { client, tried }) })
    }

    /// The client for the next request. Files that cannot be used, as a certificate whose key has not come yet, leave the one before.
    pub(super) fn client(&self) -> HyperClient<C, Body> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != held.tried {
            let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            match (self.build)() {
                Ok(client) => {
                    info!("connecting anew to the API server, by what is now in {files}");
                    held.client = client;
                }
                Err(error) => warn!("what is now in {files} cannot be used, and what was before counts: {error:#}"),
            }
            held.tried = stamps;
        }
        held.client.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}
