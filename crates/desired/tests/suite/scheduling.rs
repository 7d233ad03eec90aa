//! Annotations about how connections are spread.

use std::collections::BTreeSet;

use desired::Config;
use insta::assert_snapshot;
use model::{Flags, Scheduler};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Node, name, service, slice};

const TCP: &str = "TCP 10.96.0.10:80";
const UDP: &str = "UDP 10.96.0.10:53";

/// A Service with a port of TCP and one of UDP.
fn annotated(annotations: Value, spec: Value) -> Value {
    let ports = json!([{"name": "", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let mut object = service("web", json!({"clusterIP": "10.96.0.10", "ports": ports}));
    object["metadata"]["annotations"] = annotations;
    let (Some(whole), Value::Object(spec)) = (object["spec"].as_object_mut(), spec) else { panic!("no objects") };
    whole.extend(spec);
    object
}

fn scheduled(default: &str, annotations: Value) -> Node {
    let mut node = Node::new(Config { scheduler: Scheduler::new(default).unwrap(), ..Config::new("node-1") });
    node.apply(&[annotated(annotations, json!({}))]);
    node
}

/// The scheduler and flags of the virtual server `key`, as in `mh 0x18`.
fn config(node: &Node, key: &str) -> String {
    let state = node.ledger.complete();
    let (_, server) = state.virtual_servers.iter().find(|(other, _)| other.to_string() == key).unwrap();
    let config = server.config;
    let persistent = config.persistence.map(|seconds| format!(" persistent {seconds}")).unwrap_or_default();
    format!("{} {:#x}{persistent}", config.scheduler, config.flags.bits())
}

/// Weights by host number of the IPv4 real servers of `key`.
fn weights(node: &Node, key: &str) -> Vec<(String, u32)> {
    let state = node.ledger.complete();
    let (_, server) = state.virtual_servers.iter().find(|(other, _)| other.to_string() == key).unwrap();
    server.real_servers.iter().map(|(real, server)| (real.address.to_string(), server.weight)).collect()
}

/// Pods `db-0` on node-1, `db-1` and `db-2` on node-2, and an endpoint that is neither a pod nor on a node.
fn endpoints() -> Value {
    let pod = |address: &str, pod: &str, node: &str| json!({"addresses": [address], "nodeName": node, "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"}});
    let list = json!([
        pod("10.244.1.2", "db-0", "node-1"),
        pod("10.244.2.2", "db-1", "node-2"),
        pod("10.244.2.3", "db-2", "node-2"),
        {"addresses": ["192.0.2.7"]},
    ]);
    slice("web-1", "web", 8080, list)
}

fn weighted(text: &str) -> Node {
    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[annotated(json!({"kube-ipvs.io/scheduler": "wrr", "kube-ipvs.io/weights": text}), json!({})), endpoints()]);
    node
}

#[test]
fn e3_the_schedulers_precedence_is_own_annotation_then_kube_routers_then_default() {
    let own = ("kube-ipvs.io/scheduler", "lc");
    let theirs = ("kube-router.io/service.scheduler", "wlc");
    let of = |annotations: &[(&str, &str)]| {
        config(&scheduled("sed", json!(annotations.iter().copied().collect::<std::collections::BTreeMap<_, _>>())), TCP)
    };
    assert_eq!(of(&[]), "sed 0x0");
    assert_eq!(of(&[theirs]), "wlc 0x0");
    assert_eq!(of(&[own]), "lc 0x0");
    assert_eq!(of(&[own, theirs]), "lc 0x0");
    assert_eq!(of(&[("kube-ipvs.io/scheduler", " "), theirs]), "wlc 0x0", "an empty annotation is none");
    assert_eq!(
        of(&[("kube-ipvs.io/scheduler", "no name"), theirs]),
        "sed 0x0",
        "what was meant is not known, but kube-router's it was not"
    );
}

#[test]
fn e2_hashing_schedulers_of_single_services_may_fall_back() {
    for (default, asked, flags, served) in [
        ("rr", "mh", None, "mh 0x18"),
        ("rr", "sh", None, "sh 0x8"),
        ("mh", "rr", None, "rr 0x0"),
        ("mh", "sh", None, "sh 0x8"),
        ("rr", "sh", Some("fallback,port"), "sh 0x18"),
        ("rr", "mh", Some("fallback"), "mh 0x8"),
        ("rr", "mh", Some("flag-2, flag-3"), "mh 0x30"),
        ("rr", "mh", Some("mh-port"), "mh 0x10"),
        ("rr", "mh", Some("none"), "mh 0x0"),
        ("mh", "", Some("fallback"), "mh 0x8"),
        ("rr", "mh", Some("fallbakc"), "mh 0x18"),
        ("rr", "mh", Some("fallback, prot"), "mh 0x8"),
        ("rr", "wlc", Some("fallback,port"), "wlc 0x0"),
    ] {
        for (scheduler, of_scheduler) in [
            ("kube-ipvs.io/scheduler", "kube-ipvs.io/scheduler-flags"),
            ("kube-router.io/service.scheduler", "kube-router.io/service.schedflags"),
        ] {
            let mut annotations = json!({scheduler: asked});
            if let Some(flags) = flags {
                annotations[of_scheduler] = flags.into();
            }
            assert_eq!(config(&scheduled(default, annotations.clone()), TCP), served, "{default} {annotations}");
        }
    }
    let both = json!({"kube-ipvs.io/scheduler-flags": "none", "kube-router.io/service.schedflags": "flag-1,flag-2"});
    assert_eq!(config(&scheduled("mh", both), TCP), "mh 0x0");
}

#[test]
fn e4_datagrams_are_scheduled_one_by_one_where_that_is_asked_for_and_can_be() {
    let asked = json!({"kube-ipvs.io/one-packet": "true", "kube-ipvs.io/scheduler": "mh"});
    let node = scheduled("rr", asked.clone());
    assert_eq!((config(&node, TCP), config(&node, UDP)), ("mh 0x18".into(), "mh 0x1c".into()));
    assert!(node.problems().is_empty());
    assert_eq!(config(&scheduled("rr", json!({"kube-ipvs.io/one-packet": "false"})), UDP), "rr 0x0");

    let mut node = Node::new(Config::new("node-1"));
    node.apply(&[annotated(asked, json!({"sessionAffinity": "ClientIP"}))]);
    assert_eq!(config(&node, UDP), "mh 0x18 persistent 10800");
    assert_snapshot!(node.problems().join("\n"), @"Service shop/web: metadata.annotations[kube-ipvs.io/one-packet] is true, but sessionAffinity ClientIP keeps a client's datagrams together, and that is served; remove one of them");
}

/// Whatever else a Service asks for.
#[test]
fn e1_affinity_holds_over_every_frontend() {
    for (affinity, seconds) in [
        (json!({"sessionAffinity": "ClientIP"}), 10_800),
        (json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}), 60),
    ] {
        for policy in ["Cluster", "Local"] {
            let mut object =
                annotated(json!({"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/weights": "node-1=2"}), affinity.clone());
            let whole = object["spec"].as_object_mut().unwrap();
            whole.insert("type".into(), "LoadBalancer".into());
            whole.insert("externalTrafficPolicy".into(), policy.into());
            whole.insert("externalIPs".into(), json!(["198.51.100.22"]));
            whole["ports"][0]["nodePort"] = 30080.into();
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.21"}]}});
            let mut node = Node::new(Config::new("node-1"));
            node.apply(&[object]);
            let servers = node.ledger.complete().virtual_servers;
            assert_eq!(servers.len(), if policy == "Local" { 12 } else { 7 });
            for (key, server) in servers {
                assert_eq!(server.config.persistence.map(u32::from), Some(seconds), "{key} with policy {policy}");
            }
        }
    }
}

#[test]
fn real_servers_have_the_weights_of_their_address_or_pod_or_node() {
    let of = |text: &str| weights(&weighted(text), TCP).into_iter().map(|(_, weight)| weight).collect::<Vec<_>>();
    assert_eq!(of(""), [1, 1, 1, 1]);
    assert_eq!(of("node-1=3"), [3, 1, 1, 1]);
    assert_eq!(of("node-1 = 3 , node-2=0,"), [3, 0, 0, 1]);
    assert_eq!(of("node/node-2=5,pod/db-2=65535"), [1, 5, 65_535, 1]);
    assert_eq!(of("10.244.2.3=7,pod/db-2=6,node-2=5,192.0.2.7=0"), [1, 5, 7, 0]);
    assert_eq!(of("db-0=9,pod/node-1=9,node/192.0.2.7=9,elsewhere=9"), [1, 1, 1, 1], "each kind of name is of its own");
    assert!(weighted("node-1=3,elsewhere=9").problems().is_empty(), "nodes and pods come and go");
}

#[test]
fn a_weight_that_changes_touches_its_own_virtual_servers_and_nothing_else() {
    let mut node = weighted("node-1=3");
    let text = |weights: &str| annotated(json!({"kube-ipvs.io/scheduler": "wrr", "kube-ipvs.io/weights": weights}), json!({}));
    node.index.apply_service(&crate::support::object(text("node-1=4"))).unwrap();
    let touched = node.ledger.set(&name("web"), node.index.fragment(&name("web")));
    assert!(touched.members.is_empty() && touched.vips.is_empty(), "{touched:?}");
    let keys: Vec<_> = touched.virtual_servers.iter().map(ToString::to_string).collect();
    assert_eq!(keys, [TCP], "the port of UDP has no endpoints");
    assert_eq!(weights(&node, TCP)[0].1, 4);
}

#[test]
fn what_is_wrong_with_annotations_is_said_and_the_rest_is_served() {
    let mut node = Node::new(Config::new("node-1"));
    let mut without_datagrams = service("plain", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}));
    without_datagrams["metadata"]["annotations"] = json!({"kube-ipvs.io/one-packet": "true", "kube-ipvs.io/scheduler": "none"});
    node.apply(&[
        annotated(
            json!({
                "kube-ipvs.io/scheduler": "sixteen-letters-",
                "kube-ipvs.io/scheduler-flags": "fallback, mh_port,\n",
                "kube-ipvs.io/one-packet": "yes",
                "kube-ipvs.io/weights": "node-1, node-1=3, node-1=4, pod/db-1=-1, node-2=65536, node-2=, =1, a/b=1, pod/=1, node-2=+2, node-2=1.5",
            }),
            json!({}),
        ),
        endpoints(),
        without_datagrams,
    ]);
    assert_eq!((config(&node, TCP), config(&node, UDP)), ("rr 0x0".into(), "rr 0x0".into()));
    assert_eq!(weights(&node, TCP).into_iter().map(|(_, weight)| weight).collect::<Vec<_>>(), [3, 1, 1, 1]);
    assert_snapshot!(node.problems().join("\n"), @r#"
    Service shop/plain: metadata.annotations[kube-ipvs.io/scheduler] is none, with which nobody is served; name a scheduler such as rr, wrr or mh, until then the default serves
    Service shop/plain: metadata.annotations[kube-ipvs.io/one-packet] is true, but the Service has no UDP port, and only datagrams can be scheduled one by one; remove it
    Service shop/web: metadata.annotations[kube-ipvs.io/scheduler] is "sixteen-letters-", which cannot be an IPVS scheduler: a name has 1 to 15 ASCII letters, digits, '_' or '-', such as rr, wrr or mh; the default serves
    Service shop/web: metadata.annotations[kube-ipvs.io/scheduler-flags] has "mh_port"; the flags are fallback (flag-1), port (flag-2), flag-3 or none, and it is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/one-packet] is "yes"; it can be true or false, and false is served
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-1", which is no NODE=WEIGHT, pod/NAME=WEIGHT or ADDRESS=WEIGHT, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-1=4" beside another weight for the same; the first counts
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "pod/db-1=-1", whose weight is no number from 0 to 65535, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-2=65536", whose weight is no number from 0 to 65535, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-2=", whose weight is no number from 0 to 65535, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "=1", which names nobody, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "a/b=1", which names nobody, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "pod/=1", which names nobody, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-2=+2", whose weight is no number from 0 to 65535, and is ignored
    Service shop/web: metadata.annotations[kube-ipvs.io/weights] has "node-2=1.5", whose weight is no number from 0 to 65535, and is ignored
    "#);
}

#[test]
fn whoever_asks_for_a_scheduler_that_the_kernel_lacks_has_a_problem_until_it_has_it() {
    let mut node = scheduled("rr", json!({"kube-router.io/service.scheduler": "mh"}));
    let mut other = service("other", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}));
    other["metadata"]["annotations"] = json!({"kube-ipvs.io/scheduler": "wlc"});
    node.apply(&[other, service("plain", json!({"clusterIP": "10.96.0.12", "ports": [{"port": 80}]}))]);
    let before = node.ledger.complete();
    let lacking = |names: &[&str]| -> BTreeSet<_> { names.iter().map(|name| Scheduler::new(name).unwrap()).collect() };

    node.index.set_lacking_schedulers(lacking(&["mh", "new"]));
    let dirty = node.index.take_dirty();
    assert_eq!(dirty, [name("web")].into());
    let touched = node.ledger.set(&name("web"), node.index.fragment(&name("web")));
    assert_eq!((node.ledger.complete(), touched.is_empty()), (before, true), "it still wants what it wants");
    assert_snapshot!(node.problems().join("\n"), @"Service shop/web: metadata.annotations[kube-router.io/service.scheduler] is mh, which this node's kernel does not have: load the module ip_vs_mh, or name another; until then the default serves");

    node.index.set_lacking_schedulers(lacking(&["new"]));
    node.sync();
    assert!(node.problems().is_empty());
    node.index.set_lacking_schedulers(lacking(&[]));
    assert!(!node.index.is_dirty());
}

proptest! {
    /// Whatever somebody writes, the Service is served, in terms that a kernel takes.
    #[test]
    fn no_text_of_an_annotation_keeps_a_service_from_being_served(
        scheduler in "[a-z]{0,3}|\\PC{0,20}",
        flags in "(fallback|port|none|flag-[0-9]|,| |\\PC){0,8}",
        one_packet in "true|false|\\PC{0,6}",
        weights in "((node-1|pod/db-1|10.244.2.3|\\PC{0,4})=([0-9]{0,6}|\\PC),?){0,6}|\\PC{0,40}",
    ) {
        let mut node = Node::new(Config::new("node-1"));
        let annotations = json!({
            "kube-ipvs.io/scheduler": scheduler,
            "kube-ipvs.io/scheduler-flags": flags,
            "kube-ipvs.io/one-packet": one_packet,
            "kube-ipvs.io/weights": weights,
        });
        node.apply(&[annotated(annotations, json!({})), endpoints()]);
        let state = node.ledger.complete();
        prop_assert_eq!(state.virtual_servers.len(), 2);
        for (key, server) in &state.virtual_servers {
            prop_assert!(!server.config.scheduler.is_none());
            prop_assert!(key.to_string() == UDP || !server.config.flags.contains(Flags::ONE_PACKET));
            prop_assert!(server.real_servers.values().all(|real| real.weight <= u32::from(u16::MAX)));
        }
        prop_assert!(node.problems().iter().all(|problem| problem.starts_with("Service shop/web: ") && !problem.contains('\n')));
    }
}
