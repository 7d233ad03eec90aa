//! The chart without Helm: its values and their schema are about the same things, and it has what the base has.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::{directory, documents};

fn chart() -> std::path::PathBuf {
    directory().join("helm/kube-ipvs")
}

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap()
}

/// The paths of values: `image.repository`, …; those of free maps and lists end where these begin.
fn paths(value: &Value, path: &str) -> BTreeSet<String> {
    match value {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .flat_map(|(name, value)| paths(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }))
            .collect(),
        _ => [path.to_owned()].into(),
    }
}

fn schema_paths(root: &Value, schema: &Value, path: &str) -> BTreeSet<String> {
    let schema = schema["$ref"].as_str().map_or(schema, |to| root.pointer(to.trim_start_matches('#')).unwrap());
    let properties = schema["properties"].as_object().into_iter().flatten();
    let below: BTreeSet<_> = properties
        .flat_map(|(name, schema)| {
            schema_paths(root, schema, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") })
        })
        .collect();
    if below.is_empty() { [path.to_owned()].into() } else { below }
}

#[test]
fn every_value_is_in_the_schema_and_every_property_is_a_value() {
    let (values, schema) = (documents(&chart().join("values.yaml")).remove(0), schema());
    // Of amounts the schema knows no names, and Helm itself adds `global`.
    let cut = |path: String| path.split_once(".requests").map_or(path.clone(), |(before, _)| format!("{before}.requests"));
    let written: BTreeSet<_> = paths(&values, "").into_iter().map(cut).collect();
    let mut known = schema_paths(&schema, &schema, "");
    known.retain(|path| path != "global" && !path.ends_with(".limits"));
    assert_eq!(written, known);
}

#[test]
fn templates_use_values_that_there_are_and_all_of_them() {
    let values = paths(&documents(&chart().join("values.yaml")).remove(0), "");
    let templates: Vec<_> = fs::read_dir(chart().join("templates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let text: String = templates.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let used: BTreeSet<_> = text
        .split(".Values.")
        .skip(1)
        .map(|rest| {
            rest.split(|character: char| !(character.is_ascii_alphanumeric() || character == '.')).next().unwrap().to_owned()
        })
        .collect();
    for path in &used {
        assert!(values.iter().any(|value| value == path || value.starts_with(&format!("{path}."))), "there is no value {path}");
    }
    for value in &values {
        assert!(used.iter().any(|path| value == path || value.starts_with(&format!("{path}."))), "nothing uses {value}");
    }
}

#[test]
fn alerts_and_the_dashboard_are_the_same_as_without_helm() {
    for name in ["dashboard.json", "rules.yaml", "podmonitor.yaml"] {
        let of_component = directory().join("components/monitoring").join(name);
        assert_eq!(fs::read(chart().join("files").join(name)).unwrap(), fs::read(of_component).unwrap(), "{name}");
    }
}

/// The lines of a mapping called `name`, without what is around it and how far it is indented.
fn block<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim() != name);
    let head = lines.next().unwrap_or_else(|| panic!("there is no {name}"));
    lines.take_while(|line| indent(line) > indent(head)).map(str::trim).collect()
}

#[test]
fn the_agent_is_probed_as_without_helm() {
    let read = |path: &str| fs::read_to_string(directory().join(path)).unwrap();
    let (base, template) = (read("base/daemonset.yaml"), read("helm/kube-ipvs/templates/daemonset.yaml"));
    for probe in ["readinessProbe:", "livenessProbe:"] {
        assert_eq!(block(&template, probe), block(&base, probe), "{probe}");
    }
}
