//! Alerts and the dashboard ask for metrics that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::{directory, documents, promql};

/// Labels that a scrape adds, and that of buckets.
const OF_EVERYTHING: [&str; 3] = ["instance", "job", "le"];

/// The metrics that docs/metrics.md lists, which a test of the agent compares with the code: by name, the type and the labels.
fn metrics() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = fs::read_to_string(directory().join("../docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
        (cells[0].clone(), (cells[1].clone(), cells[2].split(", ").map(str::to_owned).collect()))
    });
    rows.collect()
}

fn check(what: &str, expression: &str) {
    let metrics = metrics();
    let asked = promql::asked(expression);
    assert!(!asked.metrics.is_empty(), "{what} asks for nothing: {expression}");
    let mut labels: BTreeSet<String> = OF_EVERYTHING.map(str::to_owned).into();
    for name in &asked.metrics {
        let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let found = metrics.get(name).filter(|(kind, _)| kind != "histogram");
        let found = found.or_else(|| metrics.get(of_histogram?).filter(|(kind, _)| kind == "histogram"));
        let (kind, of_metric) = found.unwrap_or_else(|| panic!("{what} asks for {name}, which there is not: {expression}"));
        let is_rated = ["rate(", "increase("].iter().any(|function| expression.contains(&format!("{function}{name}")));
        assert_eq!(is_rated, kind != "gauge", "{what}: {name} is a {kind}: {expression}");
        labels.extend(of_metric.iter().cloned());
    }
    let unknown: Vec<_> = asked.labels.difference(&labels).collect();
    assert!(unknown.is_empty(), "{what} asks for labels {unknown:?}: {expression}");
}

#[test]
fn every_alert_asks_for_metrics_that_there_are() {
    let rule = documents(&directory().join("components/monitoring/rules.yaml")).remove(0);
    let rules = rule["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 5);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        check(name, rule["expr"].as_str().unwrap());
        assert!(rule["annotations"]["summary"].as_str().unwrap().ends_with('.'), "{name}");
        assert!(!rule["annotations"]["description"].as_str().unwrap().is_empty(), "{name}");
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("critical" | "warning" | "info")), "{name}");
    }
}

#[test]
fn every_panel_asks_for_metrics_that_there_are() {
    let text = fs::read_to_string(directory().join("components/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        assert!(places.insert((panel["gridPos"]["y"].as_u64(), panel["gridPos"]["x"].as_u64())), "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions += 1;
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            check(title, &expression);
            // What a legend names is what is left of the labels.
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
                let asked = promql::asked(&expression);
                let of_metrics = asked.metrics.iter().filter_map(|name| metrics().remove(name)).flat_map(|(_, labels)| labels);
                assert!(
                    asked.labels.contains(label) || of_metrics.collect::<Vec<_>>().contains(&label.to_owned()),
                    "{title}: {label} in {expression}"
                );
            }
        }
    }
    assert!(expressions > 20, "{expressions}");
    for variable in dashboard["templating"]["list"].as_array().unwrap().iter().filter(|variable| variable["type"] == "query") {
        let query = variable["definition"].as_str().unwrap();
        let (metric, label) = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap().split_once(", ").unwrap();
        let (_, labels) = metrics().remove(metric).unwrap_or_else(|| panic!("{query}"));
        assert!(labels.contains(label) || OF_EVERYTHING.contains(&label), "{query}");
    }
}
