//! The API server: whether it answers, whether it lets this process see what it has to, and whether the two agree about the time.

use std::time::{Duration, SystemTime};

use desired::Config;
use http_body_util::BodyExt;
use hyper::header::DATE;
use hyper::{Request, Response};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::jiff::fmt::rfc2822;
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};

use super::finding::Finding;
use crate::cli::WatchNodes;
use crate::freshness::Freshness;
use crate::metrics::Requests;
use crate::source::Kind;
use crate::source::api::connect_to;
use crate::survey::Subject;

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than a request takes, and less than matters to a certificate or a token.
const SKEW: Duration = Duration::from_secs(5);
/// Tokens and leases are judged by the minute.
const LARGE_SKEW: Duration = Duration::from_secs(60);

const ACCESS: &str = "API server";
const CLOCK: &str = "clock";

pub(super) fn inspect(subject: Subject<'_>, config: &Config, findings: &mut Vec<Finding>) {
    if subject.run.source.manifests.is_some() {
        return findings.push(Finding::ok(ACCESS, "not asked: objects come from --manifests"));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return findings.push(Finding::error(ACCESS, error)),
    };
    runtime.block_on(ask(subject, config, findings));
}

async fn ask(subject: Subject<'_>, config: &Config, findings: &mut Vec<Finding>) {
    let (kubeconfig, master) = (subject.run.source.kubeconfig.as_deref(), subject.run.kube_proxy.master.as_ref());
    let requests = match Requests::new() {
        Ok(requests) => requests,
        Err(error) => return findings.push(Finding::error(ACCESS, error)),
    };
    let client = match connect_to(kubeconfig, master, &subject.run.api_endpoints, &Freshness::new(), &requests).await {
        Ok(client) => client,
        Err(error) => return findings.push(Finding::error(ACCESS, format_args!("{error:#}"))),
    };
    match within(version(&client)).await {
        Err(error) => {
            let remedy = "see the server's URL in the kubeconfig or the service account, and --api-endpoints";
            return findings.push(Finding::fail(ACCESS, format_args!("it cannot be asked: {error}"), remedy));
        }
        Ok((version, date)) => {
            findings.push(Finding::ok(ACCESS, format_args!("{version} answers")));
            findings.push(clock(date, SystemTime::now()));
        }
    }
    let mut needed: Vec<_> =
        Kind::ALL.into_iter().flat_map(|kind| ["list", "watch"].map(|verb| (kind.group(), kind.resource(), verb))).collect();
    needed.push(("events.k8s.io", "events", "create"));
    for (group, resource, verb) in needed {
        findings.push(match within(may(&client, group, resource, verb)).await {
            Ok(allowed) => access(group, resource, verb, allowed),
            Err(error) => Finding::warn(
                format!("RBAC {verb} {resource}"),
                format_args!("it cannot be asked: {error}"),
                "the log of the agent says whether it is refused",
            ),
        });
    }
    if subject.run.proxy.watch_nodes == WatchNodes::Own {
        findings.push(Finding::ok("RBAC", format_args!("with --watch-nodes own, only the Node {} is asked for", config.node_name)));
    }
}

async fn within<T>(asking: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => anyhow::bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}

/// The server's version, and its time.
async fn version(client: &Client) -> anyhow::Result<(String, Option<SystemTime>)> {
    let response: Response<Body> = client.send(Request::get("/version").body(Body::empty())?).await?;
    let status = response.status();
    anyhow::ensure!(status.is_success(), "it answers {status}");
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).and_then(read_date);
    let body = response.into_body().collect().await?.to_bytes();
    let version: serde_json::Value = serde_json::from_slice(&body)?;
    Ok((version.get("gitVersion").and_then(|version| version.as_str()).unwrap_or("a server without a version").to_owned(), date))
}

fn read_date(text: &str) -> Option<SystemTime> {
    rfc2822::parse(text).ok().map(|time| time.timestamp().into())
}

fn clock(server: Option<SystemTime>, own: SystemTime) -> Finding {
    let Some(server) = server else { return Finding::ok(CLOCK, "the API server does not say what time it has") };
    let (skew, word) = match own.duration_since(server) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let text = format!("{} s {word} the API server's", skew.as_secs());
    let remedy =
        "see whether chrony or systemd-timesyncd runs on both: certificates, tokens and the age of objects are judged by it";
    match skew {
        skew if skew >= LARGE_SKEW => Finding::fail(CLOCK, text, remedy),
        skew if skew >= SKEW => Finding::warn(CLOCK, text, remedy),
        _ => Finding::ok(CLOCK, "within 5 s of the API server's"),
    }
}

/// Whether this process may `verb` all objects of `resource`.
async fn may(client: &Client, group: &str, resource: &str, verb: &str) -> anyhow::Result<bool> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn access(group: &str, resource: &str, verb: &str, allowed: bool) -> Finding {
    let check = format!("RBAC {verb} {resource}");
    if allowed {
        return Finding::ok(check, "allowed");
    }
    let remedy = format!(
        "grant `apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]` in the ClusterRole (manifests/base/rbac.yaml)"
    );
    if verb == "create" {
        return Finding::warn(check, "not allowed: problems with Services are in the agent's log and metrics alone", remedy);
    }
    Finding::fail(check, "not allowed: an agent cannot see what it is to serve", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_by_the_servers_date() {
        let server = read_date("Sat, 21 Nov 2026 20:00:00 GMT").unwrap();
        let later = |seconds| server + Duration::from_secs(seconds);
        assert_eq!(clock(Some(server), later(3)), Finding::ok(CLOCK, "within 5 s of the API server's"));
        assert!(clock(Some(server), later(7)).to_string().starts_with("warn  clock: 7 s ahead of the API server's"));
        assert!(clock(Some(later(90)), server).to_string().starts_with("fail  clock: 90 s behind the API server's"));
        assert!(clock(None, server).to_string().starts_with("ok"));
        assert_eq!(read_date("yesterday"), None);
    }

    #[test]
    fn a_refusal_says_what_to_grant() {
        let said = access("discovery.k8s.io", "endpointslices", "watch", false).to_string();
        assert!(said.starts_with("fail  RBAC watch endpointslices: not allowed") && said.contains("verbs: [\"watch\"]"), "{said}");
        assert!(access("events.k8s.io", "events", "create", false).to_string().starts_with("warn"));
        assert_eq!(access("", "nodes", "list", true), Finding::ok("RBAC list nodes", "allowed"));
    }
}
