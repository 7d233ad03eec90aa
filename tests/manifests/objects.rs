//! Objects by the API's own types, strictly: a misspelt field is dropped by the API without a word.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The documents of a YAML text; empty ones left out.
pub(crate) fn documents(text: &str, origin: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{origin}: {error}"));
    all.into_iter().filter(|document| !document.is_null()).collect()
}

/// Fails for a document that has anything which its type does not have.
pub(crate) fn check(origin: &str, document: &Value) {
    match document["kind"].as_str() {
        Some("DaemonSet") => as_typed::<DaemonSet>(origin, document),
        Some("Pod") => as_typed::<Pod>(origin, document),
        Some("ServiceAccount") => as_typed::<ServiceAccount>(origin, document),
        Some("ClusterRole") => as_typed::<ClusterRole>(origin, document),
        Some("ClusterRoleBinding") => as_typed::<ClusterRoleBinding>(origin, document),
        Some("ConfigMap") => as_typed::<ConfigMap>(origin, document),
        Some("PodMonitor") => as_typed::<PodMonitor>(origin, document),
        Some("PrometheusRule") => as_typed::<PrometheusRule>(origin, document),
        // kustomize knows no mercy itself.
        Some("Kustomization" | "Component") => {
            assert!(document["apiVersion"].as_str().is_some_and(|version| version.starts_with("kustomize.config.k8s.io/")));
        }
        other => panic!("{origin}: an object of kind {other:?} that nothing here checks"),
    }
}

fn as_typed<T: DeserializeOwned + Serialize>(origin: &str, document: &Value) {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{origin}: {error}"));
    lost(origin, document, &serde_json::to_value(typed).unwrap());
}

fn lost(path: &str, written: &Value, kept: &Value) {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            for (name, value) in written {
                let path = format!("{path}.{name}");
                lost(&path, value, kept.get(name).unwrap_or_else(|| panic!("{path} is no field")));
            }
        }
        (Value::Array(written), Value::Array(kept)) => {
            assert_eq!(written.len(), kept.len(), "{path}");
            written
                .iter()
                .zip(kept)
                .enumerate()
                .for_each(|(index, (written, kept))| lost(&format!("{path}[{index}]"), written, kept));
        }
        // An amount may be written as a number, and is a text.
        (Value::Number(written), Value::String(kept)) => assert_eq!(written.to_string(), *kept, "{path}"),
        _ => assert_eq!(written, kept, "{path}"),
    }
}

/// What is used of the Prometheus operator's PodMonitor.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PodMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PodMetricsEndpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    target_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_labels: Option<Vec<String>>,
}

/// And of its PrometheusRule, whose groups are Prometheus' own.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Groups,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    pending: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}
