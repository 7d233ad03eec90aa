//! The chart, rendered by Helm's own engine.

use serde_json::{Value, json};

use crate::{kustomized, objects, only, root, run, takes_the_arguments, text, tool};

/// Renders, as `helm template` does, values checked by the schema included: Helm's engine as a library for Python.
const RENDER: &str = r#"
import json, sys
import helm_python
values = json.load(sys.stdin)
chart = helm_python.Chart.load(sys.argv[1])
chart.validate_schema(values)
rendered = chart.render(values, name="kube-ipvs", namespace="kube-system")
json.dump({name: text for name, text in rendered.items() if not name.endswith(".txt")}, sys.stdout)
"#;

/// The objects of the chart with these values, or what Helm says against them.
fn rendered(values: &Value) -> Result<Vec<Value>, String> {
    let chart = root().join("manifests/helm/kube-ipvs");
    let output = run(tool("HELM_PYTHON").args(["-c", RENDER]).arg(chart), values.to_string().as_bytes());
    if !output.status.success() {
        return Err(text(&output));
    }
    let files: serde_json::Map<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    let objects = files.iter().flat_map(|(name, text)| objects::documents(text.as_str().unwrap(), name)).collect::<Vec<_>>();
    objects.iter().for_each(|object| objects::check("the chart", object));
    takes_the_arguments("the chart", only("DaemonSet", &objects));
    Ok(objects)
}

/// What Helm adds and names otherwise.
fn comparable(mut object: Value) -> Value {
    object["metadata"].as_object_mut().unwrap().remove("labels");
    if object["kind"] == "DaemonSet" {
        object["spec"].as_object_mut().unwrap().remove("selector");
        let template = object["spec"]["template"].as_object_mut().unwrap();
        template.remove("metadata");
        let spec = template["spec"].as_object_mut().unwrap();
        for containers in ["containers", "initContainers"] {
            for container in spec[containers].as_array_mut().unwrap() {
                container.as_object_mut().unwrap().remove("imagePullPolicy");
                for list in ["env", "ports", "volumeMounts"] {
                    if let Some(list) = container[list].as_array_mut() {
                        list.sort_by_key(|item| item["name"].to_string());
                    }
                }
            }
        }
        spec["volumes"].as_array_mut().unwrap().sort_by_key(|volume| volume["name"].to_string());
    }
    object
}

fn assert_same(chart: &[Value], overlay: &str) {
    let overlay = kustomized(&root().join("manifests").join(overlay));
    for kind in ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"] {
        assert_eq!(comparable(only(kind, chart).clone()), comparable(only(kind, &overlay).clone()), "{kind}");
    }
}

#[test]
fn the_chart_has_what_the_manifests_have() {
    assert_same(&rendered(&json!({})).unwrap(), "base");
    assert_same(&rendered(&json!({"apiServer": {"kubeconfigConfigMap": "kube-proxy"}})).unwrap(), "overlays/kubeadm");
    assert_same(&rendered(&json!({"apiServer": {"host": "127.0.0.1", "port": 6444}})).unwrap(), "overlays/k3s");
    let migration = json!({"apiServer": {"kubeconfigConfigMap": "kube-proxy"}, "nodeSelector": {"kube-ipvs": "true"}});
    assert_same(&rendered(&migration).unwrap(), "overlays/migration");
    let dual_stack = json!({"apiServer": {"kubeconfigConfigMap": "kube-proxy"}, "healthz": {"bindAddress": "[::]:10256"}});
    assert_same(&rendered(&dual_stack).unwrap(), "overlays/dual-stack");
}

#[test]
fn everything_can_be_set() {
    let enabled = json!({"enabled": true});
    let objects = rendered(&json!({
        "image": {"repository": "registry.example/kube-ipvs", "tag": "1", "pullPolicy": "Always", "pullSecrets": ["key"]},
        "apiServer": {"host": "fd00::1", "port": 443},
        "detectLocalMode": "ClusterCIDR", "clusterCIDR": ["10.244.0.0/16", "fd00:244::/56"], "logFormat": "text",
        "extraArgs": ["--scheduler=wlc", "--state-dir=/run/kube-ipvs/state"],
        "healthz": {"bindAddress": "[::]:20256"}, "metrics": {"bindAddress": "0.0.0.0:20249"},
        "init": {"enabled": false}, "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
        "priorityClassName": "", "nodeSelector": {"a": "b"}, "tolerations": [], "podAnnotations": {"c": "d"}, "podLabels": {"e": "f"},
        "maxUnavailable": 2, "serviceAccount": {"name": "proxy"},
        "monitoring": {"podMonitor": enabled, "rules": enabled, "dashboard": enabled, "labels": {"release": "prometheus"}},
    }))
    .unwrap();
    let spec = &only("DaemonSet", &objects)["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "registry.example/kube-ipvs:1");
    let arguments = container["args"].as_array().unwrap();
    for argument in ["--cluster-cidr=10.244.0.0/16,fd00:244::/56", "--scheduler=wlc", "--healthz-bind-address=[::]:20256"] {
        assert!(arguments.contains(&argument.into()), "{argument} is not in {arguments:?}");
    }
    assert_eq!((&container["ports"][0]["containerPort"], &container["ports"][1]["containerPort"]), (&20256.into(), &20249.into()));
    assert!(spec["initContainers"].is_null() && spec["priorityClassName"].is_null() && spec["tolerations"].is_null());
    assert_eq!(only("ClusterRoleBinding", &objects)["subjects"][0]["name"], "proxy");
    for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
        assert_eq!(only(kind, &objects)["metadata"]["labels"]["release"], "prometheus", "{kind}");
    }
    let none = rendered(&json!({"serviceAccount": {"create": false, "name": "there"}, "rbac": {"create": false}})).unwrap();
    assert_eq!(none.len(), 1);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (values, named) in [
        (json!({"imgae": {}}), "imgae"),
        (json!({"detectLocalMode": "clustercidr"}), "detectLocalMode"),
        (json!({"clusterCIDR": ["10.244.0.0"]}), "clusterCIDR"),
        (json!({"extraArgs": ["scheduler=rr"]}), "extraArgs"),
        (json!({"apiServer": {"host": "192.0.2.1", "kubeconfigConfigMap": "kube-proxy"}}), "apiServer"),
        (json!({"apiServer": {"port": 0}}), "port"),
        (json!({"healthz": {"bindAddress": "10256"}}), "healthz"),
        (json!({"resources": {"request": {}}}), "resources"),
        (json!({"monitoring": {"podMonitor": {"enabled": true}}}), "metrics.bindAddress"),
    ] {
        let complaint = rendered(&values).map(|objects| objects.len()).unwrap_err();
        assert!(complaint.contains(named), "{values}: {complaint}");
    }
}
