//! Serves manifests as a kube-apiserver would, for kubectl and for an agent started by hand.

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Json, Mishap, Options, Resource, Verb, read_manifests};
use clap::Parser;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A double of kube-apiserver: serves Services, EndpointSlices and Nodes from files
#[derive(Parser)]
#[command(name = "apiserver")]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// A file or directory of YAML or JSON manifests, followed as it changes
    #[arg(long, value_name = "PATH")]
    manifests: Option<PathBuf>,
    /// Milliseconds between two looks at the manifests
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    interval_ms: u64,
    /// Begin after this resource version, as a server that was restarted does: what watches knew before is expired
    #[arg(long, value_name = "VERSION", default_value_t = 0)]
    resource_version: u64,
    /// What the agent may not do, as VERB:RESOURCE
    #[arg(long, value_name = "VERB:RESOURCE", value_parser = forbidden)]
    forbid: Vec<(Verb, Resource)>,
    /// What goes wrong with all watches; with several of these options one after the other, again and again: end, cut, failure, expired, cut-list,
    /// broken, busy, disconnect, half-line, late or silent
    #[arg(long, value_name = "NAME")]
    fault: Vec<Mishap>,
    /// Milliseconds from one fault to the next
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    fault_interval_ms: u64,
    /// Write a kubeconfig for this server to a file
    #[arg(long, value_name = "FILE")]
    write_kubeconfig: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server = ApiServer::start(Options { listen: arguments.listen, ..Options::default() })
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    if let Some(path) = &arguments.write_kubeconfig {
        std::fs::write(path, server.kubeconfig()).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    say(&format!("listening on {url}\ntry: kubectl --server {url} get services --all-namespaces", url = server.url()))?;

    arguments.forbid.iter().for_each(|(verb, resource)| server.forbid(*verb, *resource));
    server.advance_to(arguments.resource_version);
    server.compact();
    let mut served = BTreeMap::new();
    let mut last_complaint = String::new();
    let mut faults = arguments.fault.iter().cycle();
    let mut fault_due = Instant::now() + Duration::from_millis(arguments.fault_interval_ms);
    // The first round is before the first `await`, and so before the first request is answered.
    loop {
        if let Some(path) = &arguments.manifests
            && let Err(error) = follow(&server, path, &mut served)
        {
            let complaint = format!("{error:#}");
            if complaint != last_complaint {
                say(&complaint)?;
                last_complaint = complaint;
            }
        }
        let look = Instant::now() + Duration::from_millis(arguments.interval_ms);
        loop {
            tokio::select! {
                () = sleep_until(look) => break,
                () = sleep_until(fault_due), if !arguments.fault.is_empty() => {
                    if let Some(mishap) = faults.next() {
                        server.befall(*mishap);
                        say(&format!("fault: {mishap}"))?;
                    }
                    fault_due = Instant::now() + Duration::from_millis(arguments.fault_interval_ms);
                }
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }
}

fn forbidden(text: &str) -> Result<(Verb, Resource), String> {
    let known = |(verb, plural): (&str, &str)| {
        let verb = [Verb::Get, Verb::List, Verb::Watch, Verb::Create].into_iter().find(|known| known.name() == verb)?;
        Some((verb, Resource::of_plural(plural)?))
    };
    text.split_once(':').and_then(known).ok_or_else(|| "expected a verb and a resource such as watch:endpointslices".to_owned())
}

/// Brings the server in line with the files: what differs is written, what has gone is deleted.
fn follow(server: &ApiServer, path: &Path, served: &mut BTreeMap<[String; 3], Json>) -> Result<()> {
    let text = |object: &Json, path: &[&str]| object.str_at(path).unwrap_or_default().to_owned();
    let objects = read_manifests(path)?.into_iter().map(|object| {
        let namespace = object.str_at(&["metadata", "namespace"]).unwrap_or("default").to_owned();
        ([text(&object, &["kind"]), namespace, text(&object, &["metadata", "name"])], object)
    });
    let found: BTreeMap<[String; 3], Json> = objects.collect();
    for (identity, object) in &found {
        if served.get(identity) != Some(object)
            && let Err(error) = server.apply(object.clone())
        {
            say(&format!("left out: {error}"))?;
        }
    }
    for [kind, namespace, name] in served.keys().filter(|identity| !found.contains_key(*identity)) {
        if let Some(resource) = Resource::of_kind(kind) {
            server.delete(resource, namespace, name);
        }
    }
    *served = found;
    Ok(())
}

fn say(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}
