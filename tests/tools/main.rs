//! What other people's tools make of manifests, chart, scripts, alerts and metrics: kubectl, Helm's own engine, shellcheck and promtool.
//!
//! They are not on every machine, so this is no part of a plain `cargo test`: `cargo xtask test --tier tools` gets them and runs this.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod helm;
mod migration;
#[path = "../manifests/objects.rs"]
mod objects;
mod promtool;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program that the environment names under `variable`.
fn tool(variable: &str) -> Command {
    let path = std::env::var_os(variable);
    Command::new(path.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test --tier tools`")))
}

/// Runs a program with `input`.
fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A program that does not read it all has its reasons, and says them.
    let writer = std::thread::spawn(move || stdin.write_all(&input).map_err(drop));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The objects of a kustomization.
fn kustomized(directory: &Path) -> Vec<Value> {
    let output = run(tool("KUBECTL").arg("kustomize").arg(directory), b"");
    assert!(output.status.success(), "{}: {}", directory.display(), text(&output));
    // What is deprecated is on its way out.
    assert!(output.stderr.is_empty(), "{}: {}", directory.display(), text(&output));
    objects::documents(&String::from_utf8(output.stdout).unwrap(), &directory.display().to_string())
}

fn overlays() -> Vec<PathBuf> {
    let mut overlays: Vec<_> =
        fs::read_dir(root().join("manifests/overlays")).unwrap().map(|entry| entry.unwrap().path()).collect();
    overlays.sort();
    assert!(!overlays.is_empty());
    overlays
}

fn only<'a>(kind: &str, objects: &'a [Value]) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "one {kind}");
    object
}

/// Fails unless the program takes what the container gives it: then its first complaint is about the flag that is added here.
fn takes_the_arguments(origin: &str, daemon_set: &Value) {
    let arguments = daemon_set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "run", "{origin}");
    let run = |arguments: &[&str], more: &[&str]| {
        run(Command::new(env!("CARGO_BIN_EXE_kube-ipvs")).args(arguments).args(more).env_clear(), b"")
    };
    let refused = text(&run(&arguments, &["--no-such-flag"]));
    assert!(refused.contains("unexpected argument '--no-such-flag'"), "{origin}: {refused}");
    // Without a cluster the next is that there is none.
    let output = run(&arguments, &[]);
    let complaint = text(&output);
    assert_eq!(output.status.code(), Some(2), "{origin}: {complaint}");
    assert!(complaint.contains("kubeconfig"), "{origin}: {complaint}");
}

#[test]
fn every_overlay_renders_to_objects_that_the_api_has_and_arguments_that_the_program_has() {
    for overlay in overlays() {
        let (origin, objects) = (overlay.display().to_string(), kustomized(&overlay));
        objects.iter().for_each(|object| objects::check(&origin, object));
        takes_the_arguments(&origin, only("DaemonSet", &objects));
    }
}

/// A component that patched nothing would be found by nobody else.
#[test]
fn every_component_makes_the_difference_that_it_is_for() {
    let daemon_set = |overlay: &str| only("DaemonSet", &kustomized(&root().join("manifests/overlays").join(overlay))).clone();
    let container = |object: &Value| object["spec"]["template"]["spec"]["containers"][0].clone();
    let has_argument = |object: &Value, argument: &str| container(object)["args"].as_array().unwrap().contains(&argument.into());
    let (kubeadm, k3s) = (daemon_set("kubeadm"), daemon_set("k3s"));
    assert!(has_argument(&kubeadm, "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf"));
    assert!(
        container(&kubeadm)["volumeMounts"].as_array().unwrap().iter().any(|mount| mount["mountPath"] == "/var/lib/kube-proxy")
    );
    let variables = container(&k3s)["env"].clone();
    let variable =
        |name: &str| variables.as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap()["value"].clone();
    assert_eq!((variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")), ("127.0.0.1".into(), "6444".into()));
    assert!(variables.as_array().unwrap().iter().any(|variable| variable["name"] == "NODE_NAME"));
    assert!(has_argument(&daemon_set("dual-stack"), "--healthz-bind-address=[::]:10256"));
    assert_eq!(daemon_set("migration")["spec"]["template"]["spec"]["nodeSelector"]["kube-ipvs"], "true");
    let monitored = daemon_set("monitoring");
    assert!(has_argument(&monitored, "--metrics-bind-address=0.0.0.0:10249"));
    assert!(container(&monitored)["ports"].as_array().unwrap().iter().any(|port| port["name"] == "metrics"));
    let kinds: Vec<_> =
        kustomized(&root().join("manifests/overlays/monitoring")).iter().map(|object| object["kind"].to_string()).collect();
    for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
        assert!(kinds.contains(&format!("\"{kind}\"")), "{kinds:?}");
    }
}

/// kubectl applies the patch to what kubeadm installs, as far as a DaemonSet has to be for that.
#[test]
fn the_patch_for_kube_proxy_keeps_it_off_labelled_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = r#"{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [{"name": "kube-proxy"}]}}}}"#;
    fs::write(directory.path().join("kube-proxy.json"), proxy).unwrap();
    let patch = root().join("manifests/components/migration/kube-proxy.yaml");
    fs::copy(patch, directory.path().join("patch.yaml")).unwrap();
    fs::write(
        directory.path().join("kustomization.yaml"),
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [kube-proxy.json]\npatches: [{path: patch.yaml}]\n",
    )
    .unwrap();
    let spec = only("DaemonSet", &kustomized(directory.path()))["spec"]["template"]["spec"].clone();
    assert_eq!(spec["containers"][0]["name"], "kube-proxy");
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0], serde_json::json!({"key": "kube-ipvs", "operator": "DoesNotExist"}));
}
