//! Metrics, alerts and the dashboard, as Prometheus' own tool reads them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{kustomized, only, root, run, text, tool};

/// The one thing that promtool has to say of what is scraped: kube-proxy's name for a gauge, which is not ours to choose.
const OF_KUBE_PROXY: &str =
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total non-counter metrics should not have \"_total\" suffix\n";

fn scraped() -> String {
    let snapshot = fs::read_to_string(root().join("src/metrics/snapshots/kube_ipvs__metrics__tests__scraped.snap")).unwrap();
    // What comes before are the snapshot's own lines.
    let text = snapshot.splitn(3, "---\n").nth(2).unwrap();
    format!("{}\n", text.trim())
}

#[test]
fn what_is_scraped_is_as_prometheus_wants_it() {
    let checked = run(tool("PROMTOOL").args(["check", "metrics"]), scraped().as_bytes());
    assert_eq!(text(&checked), OF_KUBE_PROXY);
    // It would say so of ours.
    let broken = scraped().replace("kube_ipvs_syncs_total", "kube_ipvs_syncs");
    let checked = text(&run(tool("PROMTOOL").args(["check", "metrics"]), broken.as_bytes()));
    assert!(checked.contains("kube_ipvs_syncs counter metrics should have"), "{checked}");
}

/// Writes the alerts as Prometheus has them, without the object around.
fn write_rules(directory: &Path) {
    let objects = kustomized(&root().join("manifests/overlays/monitoring"));
    let rules = only("PrometheusRule", &objects)["spec"].to_string();
    fs::write(directory.join("rules.yaml"), rules).unwrap();
}

#[test]
fn alerts_are_rules_and_fire_when_they_should() {
    let directory = tempfile::tempdir().unwrap();
    write_rules(directory.path());
    let checked = run(tool("PROMTOOL").args(["check", "rules", "rules.yaml"]).current_dir(directory.path()), b"");
    assert!(checked.status.success() && text(&checked).contains("10 rules found"), "{}", text(&checked));
    fs::copy(root().join("tests/tools/alerts.yaml"), directory.path().join("alerts.yaml")).unwrap();
    let tested = run(tool("PROMTOOL").args(["test", "rules", "alerts.yaml"]).current_dir(directory.path()), b"");
    assert!(tested.status.success(), "{}", text(&tested));
}

/// Every alert has a case in which it fires and one in which it does not.
#[test]
fn every_alert_is_tested() {
    let directory = tempfile::tempdir().unwrap();
    write_rules(directory.path());
    let rules: Value = serde_json::from_str(&fs::read_to_string(directory.path().join("rules.yaml")).unwrap()).unwrap();
    let tests = fs::read_to_string(root().join("tests/tools/alerts.yaml")).unwrap();
    let tests: Value = serde_saphyr::from_str(&tests).unwrap();
    let cases: Vec<_> =
        tests["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let name = &rule["alert"];
        let of_rule: Vec<_> = cases.iter().filter(|case| case["alertname"] == *name).collect();
        let fires = |case: &&&&Value| case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        let firing = of_rule.iter().filter(fires).count();
        assert!(firing > 0 && firing < of_rule.len(), "{name}: {firing} of {} cases fire", of_rule.len());
    }
}

#[test]
fn the_dashboards_expressions_are_expressions() {
    let text_of_dashboard = fs::read_to_string(root().join("manifests/components/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text_of_dashboard).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.map(|target| {
        let expression = target["expr"].as_str().unwrap();
        expression.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$namespace", ".*")
    });
    let rules: Vec<_> =
        expressions.enumerate().map(|(index, expr)| json!({"record": format!("panel:{index}"), "expr": expr})).collect();
    assert!(rules.len() > 20 && !rules.iter().any(|rule| rule.to_string().contains('$')));
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("rules.yaml"), json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    let checked = run(tool("PROMTOOL").args(["check", "rules", "rules.yaml"]).current_dir(directory.path()), b"");
    assert!(checked.status.success(), "{}", text(&checked));
}
