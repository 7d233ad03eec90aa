//! The scripts that move nodes, run with the real kubectl against the double of an API server on which somebody does what controllers and kubelets do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use apiserver::{ApiServer, Json, Options, Resource};
use serde_json::{Value, json};

use crate::{root, run, text, tool};

const NODES: [&str; 3] = ["a", "b.example", "c"];
const ONTO: &str = "to-kube-ipvs.sh";
const BACK: &str = "back-to-kube-proxy.sh";

/// A cluster of kubeadm: kube-proxy in IPVS mode everywhere, and the agent where a node has the label.
struct Cluster {
    server: Arc<ApiServer>,
    /// The nodes where pods of the DaemonSet called so never become ready.
    broken: Arc<Mutex<BTreeSet<(&'static str, &'static str)>>>,
    directory: tempfile::TempDir,
    ends: Arc<AtomicBool>,
    controller: Option<JoinHandle<()>>,
}

impl Cluster {
    fn new(mode: &str) -> Self {
        let (sender, receiver) = mpsc::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let broken = Arc::new(Mutex::new(BTreeSet::new()));
        let (stops, breaks) = (Arc::clone(&ends), Arc::clone(&broken));
        let controller = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
                let server = Arc::new(ApiServer::start(Options::default()).await.unwrap());
                sender.send(Arc::clone(&server)).unwrap();
                while !stops.load(Ordering::Relaxed) {
                    control(&server, &breaks.lock().unwrap());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        let server = receiver.recv().unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        let apply = |object: Value| server.apply(object).unwrap();
        for name in NODES {
            apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}));
        }
        let configuration = format!("kind: KubeProxyConfiguration\nmode: \"{mode}\"\nipvs:\n  scheduler: \"\"\n");
        apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
            "data": {"config.conf": configuration}}));
        apply(daemon_set("kube-proxy", &json!({"kubernetes.io/os": "linux"})));
        apply(daemon_set("kube-ipvs", &json!({"kubernetes.io/os": "linux", "kube-ipvs": "true"})));
        Self { server, broken, directory, ends, controller: Some(controller) }
    }

    /// Runs a script with arguments that words are split from.
    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let kubectl = tool("KUBECTL");
        let programs = Path::new(kubectl.get_program()).parent().unwrap().to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(root().join("manifests/migration").join(script));
        command.args(arguments).env("PATH", path).env("HOME", self.directory.path());
        run(command.env("KUBECONFIG", self.directory.path().join("kubeconfig")), b"")
    }

    fn succeeds(&self, script: &str, arguments: &[&str]) -> String {
        let output = self.run(script, arguments);
        assert!(output.status.success(), "{}: {}", output.status, text(&output));
        text(&output)
    }

    /// The last thing it says when it ends with this status.
    fn stops(&self, script: &str, arguments: &[&str], code: i32) -> String {
        let output = self.run(script, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        text(&output)
    }

    fn labelled(&self) -> Vec<String> {
        let nodes = self.server.objects(Resource::Nodes);
        let labelled = nodes.iter().filter(|node| is_labelled(node));
        labelled.map(|node| node.str_at(&["metadata", "name"]).unwrap().to_owned()).collect()
    }

    fn pods(&self) -> BTreeSet<String> {
        self.server.objects(Resource::Pods).iter().map(|pod| pod.str_at(&["metadata", "name"]).unwrap().to_owned()).collect()
    }

    /// What has been asked for that changes something.
    fn changes(&self) -> Vec<String> {
        let requests = self.server.requests();
        requests
            .iter()
            .filter(|request| request.method != "GET")
            .map(|request| format!("{} {}", request.method, request.target))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(controller) = self.controller.take() {
            let _ = controller.join();
        }
    }
}

fn daemon_set(name: &str, selector: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "kube-system", "generation": 1},
        "spec": {"updateStrategy": {"type": "RollingUpdate"}, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"nodeSelector": selector, "imagePullSecrets": [{"name": "key"}],
                "containers": [{"name": name, "image": format!("registry.example/{name}:1")}]}}},
        "status": {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}})
}

fn is_labelled(node: &Json) -> bool {
    node.str_at(&["metadata", "labels", "kube-ipvs"]) == Some("true")
}

/// What the controllers do next, and the kubelets.
fn control(server: &ApiServer, broken: &BTreeSet<(&'static str, &'static str)>) {
    let name = |object: &Json| object.str_at(&["metadata", "name"]).unwrap().to_owned();
    let pods: BTreeSet<_> = server.objects(Resource::Pods).iter().map(name).collect();
    let daemon_sets = server.objects(Resource::DaemonSets);
    let is_kept_off = daemon_sets.iter().any(|object| name(object) == "kube-proxy" && object.to_string().contains("DoesNotExist"));
    for node in server.objects(Resource::Nodes) {
        let (labelled, node) = (is_labelled(&node), name(&node));
        let is_broken = |daemon_set| broken.iter().any(|(of, on)| (*of, *on) == (daemon_set, node.as_str()));
        let mut anything_ended = false;
        for (daemon_set, key, value, wanted) in [
            ("kube-proxy", "k8s-app", "kube-proxy", !(labelled && is_kept_off)),
            ("kube-ipvs", "app.kubernetes.io/name", "kube-ipvs", labelled),
        ] {
            let pod = format!("{daemon_set}-{node}");
            match (pods.contains(&pod), wanted) {
                (true, false) => {
                    server.delete(Resource::Pods, "kube-system", &pod);
                    anything_ended = true;
                }
                // Not while what it replaces is on its way out.
                (false, true) if !anything_ended => {
                    let ready = if is_broken(daemon_set) { "False" } else { "True" };
                    let object = json!({"apiVersion": "v1", "kind": "Pod",
                        "metadata": {"name": pod, "namespace": "kube-system", "labels": {key: value}},
                        "spec": {"nodeName": node, "containers": [{"name": daemon_set, "image": "x"}]},
                        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
                    server.apply(object).unwrap();
                    server.set_text(&log_of(&pod), Some("{\"message\":\"taking over from kube-proxy in IPVS mode\"}\n"));
                }
                _ => {}
            }
        }
        let is_healthy = pods.contains(&format!("kube-proxy-{node}")) && !is_broken("kube-proxy");
        server.set_text(&format!("/api/v1/nodes/{node}:10256/proxy/healthz"), is_healthy.then_some("ok"));
        let pod = format!("kube-ipvs-hand-over.{node}");
        if pods.contains(&pod) {
            let refuses = is_broken("hand-over");
            let said = if refuses {
                "kube-proxy in IPVS mode has no packet rules on this node\n"
            } else {
                "removed 4 VIPs, packet rules\n"
            };
            server.set_text(&log_of(&pod), Some(said));
            let objects = server.objects(Resource::Pods);
            let mut object = objects.into_iter().find(|object| name(object) == pod).unwrap();
            if !refuses && object.at(&["status", "phase"]).is_none() {
                object.set("kind", "Pod".into());
                object.set("apiVersion", "v1".into());
                object.set("status", json!({"phase": "Succeeded"}).into());
                server.apply(object).unwrap();
            }
        }
    }
}

fn log_of(pod: &str) -> String {
    format!("/api/v1/namespaces/kube-system/pods/{pod}/log")
}

/// Fails unless the texts are in this order.
fn ensure_in_order(said: &str, wanted: &[&str]) {
    let mut rest = said;
    for text in wanted {
        (_, rest) = rest.split_once(text).unwrap_or_else(|| panic!("{text:?} is not where it should be in:\n{said}"));
    }
}

#[test]
fn all_nodes_move_one_after_the_other_and_back() {
    let cluster = Cluster::new("ipvs");
    let said = cluster.succeeds(ONTO, &["--all", "--check", "echo checked $NODE"]);
    let steps =
        ["patch daemonset kube-proxy", "successfully rolled out", "label node a", "kube-ipvs-a has taken over", "checked a"];
    ensure_in_order(&said, &steps);
    ensure_in_order(
        &said,
        &["checked a", "label node b.example", "checked b.example", "label node c", "checked c", "no node is left"],
    );
    assert_eq!(cluster.labelled(), NODES);
    assert_eq!(cluster.pods(), NODES.iter().map(|node| format!("kube-ipvs-{node}")).collect());
    // Once more: what is done is not done again.
    let before = cluster.changes().len();
    let said = cluster.succeeds(ONTO, &["--all"]);
    assert!(said.contains("is kept off nodes with the label kube-ipvs already"), "{said}");
    assert!(cluster.changes().iter().skip(before).all(|change| change.contains("/nodes/")), "{:?}", cluster.changes());

    let said = cluster.succeeds(BACK, &["--node", "b.example", "--check", "echo checked $NODE"]);
    ensure_in_order(
        &said,
        &["label node b.example kube-ipvs-", "cleanup --hand-over", "removed 4 VIPs", "checked b.example", "with kube-ipvs: a c"],
    );
    assert_eq!(cluster.labelled(), ["a", "c"]);
    cluster.succeeds(BACK, &["--all"]);
    assert_eq!(cluster.labelled(), Vec::<String>::new());
    assert_eq!(cluster.pods(), NODES.iter().map(|node| format!("kube-proxy-{node}")).collect());
    let made = cluster.changes().into_iter().filter(|change| change.starts_with("POST ")).count();
    assert_eq!(made, NODES.len(), "{:?}", cluster.changes());
}

/// It is on the node that it is made for, and may do what the program needs there and nothing else.
#[test]
fn the_pod_that_hands_over_is_like_the_agents() {
    let cluster = Cluster::new("ipvs");
    cluster.succeeds(ONTO, &["--node", "a"]);
    cluster.broken.lock().unwrap().insert(("hand-over", "a"));
    let said = cluster.stops(BACK, &["--all", "--timeout", "1"], 1);
    ensure_in_order(&said, &["has no packet rules on this node", "what only the agent had is not removed from a after 1 s"]);
    let pods = cluster.server.objects(Resource::Pods);
    let pod = pods.iter().find(|pod| pod.str_at(&["metadata", "name"]) == Some("kube-ipvs-hand-over.a")).unwrap();
    let spec: Value = pod.at(&["spec"]).unwrap().to_string().parse().unwrap();
    let of_agent = &crate::kustomized(&root().join("manifests/base"));
    let of_agent = &crate::only("DaemonSet", of_agent)["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&spec["nodeName"], &spec["hostNetwork"], &spec["tolerations"]),
        (&json!("a"), &json!(true), &of_agent["tolerations"])
    );
    assert_eq!(
        (&container["image"], &spec["imagePullSecrets"]),
        (&json!("registry.example/kube-ipvs:1"), &json!([{"name": "key"}]))
    );
    assert_eq!(container["command"], json!(["kube-ipvs", "cleanup", "--hand-over"]));
    for part in ["securityContext", "volumeMounts"] {
        assert_eq!(container[part], of_agent["containers"][0][part], "{part}");
    }
    let volumes = of_agent["volumes"].as_array().unwrap();
    assert!(spec["volumes"].as_array().unwrap().iter().all(|volume| volumes.contains(volume)), "{spec}");
    crate::objects::check("the pod", &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}));

    // What has stopped goes on.
    cluster.broken.lock().unwrap().clear();
    cluster.succeeds(BACK, &["--node", "a"]);
    assert!(!cluster.pods().contains("kube-ipvs-hand-over.a"));
}

#[test]
fn a_step_that_fails_ends_it_before_the_next_node() {
    let cluster = Cluster::new("ipvs");
    let arguments = ["--node", "a", "--node", "b.example", "--node", "c", "--check", "[ $NODE = a ]"];
    let said = cluster.stops(ONTO, &arguments, 1);
    assert!(said.contains("the check fails on b.example, after it was moved; no further node was touched"), "{said}");
    assert!(said.contains("back-to-kube-proxy.sh --node b.example"), "{said}");
    assert_eq!(cluster.labelled(), ["a", "b.example"]);

    cluster.broken.lock().unwrap().insert(("kube-ipvs", "c"));
    let said = cluster.stops(ONTO, &["--node", "c", "--timeout", "1"], 1);
    assert!(said.contains("the agent on c is not ready after 1 s. What kube-proxy has made keeps serving"), "{said}");

    cluster.broken.lock().unwrap().insert(("kube-proxy", "a"));
    let said = cluster.stops(BACK, &["--all", "--timeout", "1"], 1);
    assert!(said.contains("kube-proxy is not ready on a after 1 s"), "{said}");
    assert_eq!(cluster.labelled(), ["b.example", "c"]);
}

#[test]
fn what_cannot_go_well_is_not_begun() {
    let refused = |cluster: &Cluster, script: &str, arguments: &[&str], sentence: &str| {
        let said = cluster.stops(script, arguments, 1);
        assert!(said.contains(sentence), "{said}");
        assert_eq!(cluster.changes(), Vec::<String>::new());
    };
    let cluster = Cluster::new("iptables");
    refused(&cluster, ONTO, &["--all"], "kube-proxy is not in IPVS mode by its ConfigMap");
    refused(&cluster, ONTO, &["--node", "a", "--node", "z", "--assume-ipvs"], "there is no node z; nothing was changed");
    refused(&cluster, BACK, &["--node", "a"], "kube-proxy is not kept off nodes with the label kube-ipvs");
    cluster.server.apply(daemon_set("kube-ipvs", &json!({"kubernetes.io/os": "linux"}))).unwrap();
    refused(&cluster, ONTO, &["--all"], "the DaemonSet kube-ipvs is not kept to nodes with the label");
    cluster.server.delete(Resource::DaemonSets, "kube-system", "kube-ipvs");
    refused(&cluster, ONTO, &["--all"], "kubectl apply -k manifests/overlays/migration");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_changes_nothing() {
    let cluster = Cluster::new("ipvs");
    let said = cluster.succeeds(ONTO, &["--all", "--dry-run", "--check", "false"]);
    let wanted = [
        "would run: kubectl --namespace kube-system patch daemonset kube-proxy",
        "would run: kubectl label node a",
        "would run the check on a",
    ];
    ensure_in_order(&said, &wanted);
    assert_eq!(cluster.changes(), Vec::<String>::new());
    cluster.succeeds(ONTO, &["--node", "c"]);
    let before = cluster.changes();
    let said = cluster.succeeds(BACK, &["--all", "--dry-run"]);
    ensure_in_order(&said, &["would run: kubectl label node c kube-ipvs-", "would run `kube-ipvs cleanup --hand-over` on c"]);
    assert_eq!(cluster.changes(), before);
}

#[test]
fn options_are_explained_and_wrong_ones_named() {
    let cluster = Cluster::new("ipvs");
    for script in [ONTO, BACK] {
        let help = cluster.succeeds(script, &["--help"]);
        for option in ["--node", "--all", "--check", "--timeout", "--dry-run"] {
            assert!(help.contains(&format!("\n  {option} ")), "{option}: {help}");
        }
        for (arguments, sentence) in [
            (&[][..], "say which nodes"),
            (&["--all", "--node", "a"], "exclude each other"),
            (&["--node"], "--node needs a value"),
            (&["--all", "--timeout", "5m"], "--timeout is a number of seconds, not '5m'"),
            (&["--now"], "there is no option --now"),
        ] {
            let said = cluster.stops(script, arguments, 2);
            assert!(said.contains(sentence) && said.contains("--help"), "{said}");
        }
    }
    assert!(cluster.server.requests().is_empty());
}

#[test]
fn scripts_are_as_shellcheck_wants_them() {
    let directory = root().join("manifests/migration");
    let mut scripts: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert_eq!(scripts.len(), 3);
    let checked = run(tool("SHELLCHECK").arg("--external-sources").args(scripts).current_dir(root()), b"");
    assert!(checked.status.success(), "{}", text(&checked));
}
