//! The manifests say what the API knows and the program takes, and no more than the agent needs.
//!
//! What other people's tools make of them is tested in `tests/tools`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod chart;
mod monitoring;
mod objects;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests")
}

/// All files below `directory`, templates left out: those are for Helm to read.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() && !path.ends_with("templates") { files_below(&path) } else { vec![path] }).collect()
}

fn documents(file: &Path) -> Vec<Value> {
    objects::documents(&fs::read_to_string(file).unwrap(), &file.display().to_string())
}

/// The manifests of the base, by file name.
fn manifests() -> BTreeMap<String, Vec<Value>> {
    files_below(&directory().join("base"))
        .into_iter()
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), documents(&path)))
        .collect()
}

/// The one object of this kind.
fn object<T: DeserializeOwned>(kind: &str) -> T {
    let all = manifests();
    let mut found = all.values().flatten().filter(|value| value["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "one {kind}");
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

fn pod() -> PodSpec {
    object::<DaemonSet>("DaemonSet").spec.template.spec.unwrap()
}

fn agent() -> Container {
    let containers = pod().containers;
    assert_eq!(containers.len(), 1);
    containers.into_iter().next().unwrap()
}

#[test]
fn every_field_is_one_that_the_api_has() {
    let yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let is_chart = |path: &PathBuf| path.starts_with(directory().join("helm"));
    for file in files_below(&directory()).into_iter().filter(|path| yaml(path) && !is_chart(path)) {
        let documents = documents(&file);
        assert!(!documents.is_empty(), "{} is empty", file.display());
        documents.iter().for_each(|document| objects::check(&file.display().to_string(), document));
    }
}

/// A component that no overlay has is one that nothing has rendered.
#[test]
fn every_component_is_in_an_overlay_and_every_file_in_its_component() {
    let kustomization = |directory: &Path| documents(&directory.join("kustomization.yaml")).remove(0);
    let texts =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let below = |name: &str| fs::read_dir(directory().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let used: BTreeSet<_> = below("overlays").iter().flat_map(|overlay| texts(&kustomization(overlay)["components"])).collect();
    let there: BTreeSet<_> = below("components")
        .iter()
        .map(|path| format!("../../components/{}", path.file_name().unwrap().to_str().unwrap()))
        .collect();
    assert_eq!(used, there);
    for component in below("components") {
        let kustomization = kustomization(&component);
        let mut named = texts(&kustomization["resources"]);
        named.extend(
            kustomization["patches"].as_array().into_iter().flatten().filter_map(|patch| Some(patch["path"].as_str()?.to_owned())),
        );
        named.extend(kustomization["configMapGenerator"].as_array().into_iter().flatten().flat_map(|map| texts(&map["files"])));
        // It is for a DaemonSet that is not ours, and its head says how to use it.
        named.extend(["kustomization.yaml", "kube-proxy.yaml"].map(str::to_owned));
        for file in files_below(&component) {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(named.iter().any(|other| other == name), "nothing uses {}", file.display());
        }
    }
}

#[test]
fn what_carries_a_version_carries_this_one() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(manifests()["kustomization.yaml"][0]["images"][0]["newTag"], version);
    let chart = &documents(&directory().join("helm/kube-ipvs/Chart.yaml"))[0];
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
}

/// Where a network manager takes the device for its own, VIPs go.
#[test]
fn g4_the_drop_ins_are_about_the_device_and_the_device_alone() {
    let read = |name: &str| fs::read_to_string(directory().join("node").join(name)).unwrap();
    let settings =
        |text: &str| text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        settings(&read("NetworkManager/conf.d/90-kube-ipvs.conf")),
        ["[keyfile]", "unmanaged-devices+=interface-name:kube-ipvs0"]
    );
    assert_eq!(settings(&read("systemd/network/10-kube-ipvs0.network")), ["[Match]", "Name=kube-ipvs0", "[Link]", "Unmanaged=yes"]);
    assert_eq!(settings(&read("systemd/networkd.conf.d/90-kube-ipvs.conf")), ["[Network]", "ManageForeignRoutes=no"]);
}

/// What `kube-ipvs init` does is what nodes have from files that do without it.
#[test]
fn the_files_for_nodes_have_what_init_loads_and_sets() {
    let read = |name: &str| fs::read_to_string(directory().join("node").join(name)).unwrap();
    let lines = |text: &str| {
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let modules: BTreeSet<_> = kernel::modules::NEEDED.iter().map(|module| module.name.to_owned()).collect();
    assert_eq!(lines(&read("modules-load.d/kube-ipvs.conf")), modules);
    let needed = kernel::sysctl::NEEDED.iter().map(|sysctl| format!("{} = {}", sysctl.name, sysctl.value));
    // Of those that the operator may decide on, the ones whose defaults are the same on every node.
    let timeout = |state: &str, field: &str| {
        let default = config::FIELDS.iter().find(|known| known.path == field).unwrap().default;
        format!("net.netfilter.nf_conntrack_tcp_timeout_{state} = {}", desired::parse_duration(default).unwrap().as_secs())
    };
    let timeouts =
        [timeout("established", "conntrack.tcpEstablishedTimeout"), timeout("close_wait", "conntrack.tcpCloseWaitTimeout")];
    assert_eq!(lines(&read("sysctl.d/90-kube-ipvs.conf")), needed.chain(timeouts).collect());
}

#[test]
fn the_kustomization_has_every_manifest_and_every_image() {
    let all = manifests();
    let kustomization = all["kustomization.yaml"].first().unwrap();
    let listed: BTreeSet<_> = kustomization["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let there: BTreeSet<_> = all.keys().map(String::as_str).filter(|name| *name != "kustomization.yaml").collect();
    assert_eq!(listed, there);

    let images = kustomization["images"].as_array().unwrap();
    let named: BTreeSet<_> = images.iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect();
    let pod = pod();
    let used: BTreeSet<_> = pod.init_containers.iter().flatten().chain(&pod.containers).filter_map(|c| c.image.clone()).collect();
    assert_eq!(named, used);
}

#[test]
fn the_program_takes_the_arguments() {
    let agent = agent();
    assert_eq!(agent.command.as_deref(), Some(&["kube-ipvs".to_owned()][..]));
    let arguments = agent.args.unwrap();
    assert_eq!(arguments.first().map(String::as_str), Some("run"));
    let output = Command::new(env!("CARGO_BIN_EXE_kube-ipvs"))
        .args(&arguments)
        .args(["--manifests", "/nonexistent"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    // They were all understood when the first complaint is about the path that was added to them.
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("--manifests /nonexistent"), "{complaint}");
}

#[test]
fn the_agent_is_told_its_node_and_probed_where_it_listens() {
    let agent = agent();
    let variables = agent.env.unwrap();
    let node_name = variables.iter().find(|variable| variable.name == "NODE_NAME").unwrap();
    let source = node_name.value_from.clone().unwrap().field_ref.unwrap();
    assert_eq!(source.field_path, "spec.nodeName");

    let help = Command::new(env!("CARGO_BIN_EXE_kube-ipvs")).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("env: NODE_NAME"));
    let ports = agent.ports.unwrap();
    for (probe, path) in [(agent.readiness_probe, "/healthz"), (agent.liveness_probe, "/livez")] {
        let asked = probe.unwrap().http_get.unwrap();
        assert_eq!((asked.path.as_deref(), asked.port), (Some(path), IntOrString::String("healthz".to_owned())));
    }
    let port = ports.iter().find(|port| port.name == Some("healthz".to_owned())).unwrap().container_port;
    assert!(help.contains(&format!("[default: 0.0.0.0:{port}]")), "{port}");
    let run = agent.volume_mounts.unwrap().into_iter().find(|mount| mount.name == "run").unwrap().mount_path;
    assert!(help.contains(&format!("[default: {run}/kube-ipvs.sock]")), "{run}");
}

#[test]
fn the_agent_has_the_capabilities_it_checks_for_and_no_others() {
    let pod = pod();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let context = agent().security_context.unwrap();
    assert_eq!((context.privileged, context.allow_privilege_escalation), (None, Some(false)));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN", "NET_RAW"]);
}

#[test]
fn the_role_allows_what_the_agent_watches_and_its_events_and_no_more() {
    let role: ClusterRole = object("ClusterRole");
    let mut allowed = BTreeMap::new();
    for rule in role.rules.unwrap() {
        assert_eq!((rule.non_resource_urls, rule.resource_names), (None, None));
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.clone().unwrap() {
                assert!(allowed.insert((group.clone(), resource), rule.verbs.clone()).is_none(), "each is allowed once");
            }
        }
    }
    let list_and_watch = || vec!["list".to_owned(), "watch".to_owned()];
    let watched = [("", "nodes"), ("", "services"), ("discovery.k8s.io", "endpointslices")];
    let mut needed = BTreeMap::from(watched.map(|(group, resource)| ((group.to_owned(), resource.to_owned()), list_and_watch())));
    needed.insert(("events.k8s.io".to_owned(), "events".to_owned()), vec!["create".to_owned()]);
    assert_eq!(allowed, needed);

    let binding: ClusterRoleBinding = object("ClusterRoleBinding");
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let subject = binding.subjects.unwrap().into_iter().next().unwrap();
    let account: ServiceAccount = object("ServiceAccount");
    assert_eq!((Some(subject.name.clone()), subject.namespace), (account.metadata.name, account.metadata.namespace));
    assert_eq!(pod().service_account_name, Some(subject.name));
}

#[test]
fn the_privileged_container_does_what_the_program_calls_init() {
    let init = pod().init_containers.unwrap().into_iter().next().unwrap();
    let context = init.security_context.unwrap();
    assert_eq!((context.privileged, context.read_only_root_filesystem), (Some(true), Some(true)));
    assert_eq!((init.command.unwrap(), init.args.unwrap()), (vec!["kube-ipvs".to_owned()], vec!["init".to_owned()]));
    let help = Command::new(env!("CARGO_BIN_EXE_kube-ipvs")).args(["init", "--help"]).output().unwrap();
    assert!(help.status.success(), "{help:?}");
}
