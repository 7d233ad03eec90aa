//! The real client against the double, over a socket.

use super::report::{MAX_NAME, MAX_NOTE, cut};
use super::*;
use crate::captured::Log;
use crate::freshness::Freshness;
use crate::source::api::connect;
use apiserver::{ApiServer, Fault, Json, Options, Resource, Verb};
use desired::{Reason, ServiceName};

pub(crate) fn hasty() -> Tuning {
    Tuning {
        burst: 100,
        patience: Duration::from_secs(20),
        retries: vec![Duration::from_millis(20), Duration::from_millis(20)],
        ..Tuning::default()
    }
}

pub(crate) async fn client(server: &ApiServer) -> Client {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig()).unwrap();
    connect(Some(&path), &[], &Freshness::new()).await.unwrap()
}

/// A server with Service `shop/web` and node `node-1`.
async fn server() -> ApiServer {
    let server = ApiServer::start(Options::default()).await.unwrap();
    for object in [
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"web"}}"#,
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"other"}}"#,
        r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-1"}}"#,
    ] {
        server.apply(object.parse::<Json>().unwrap()).unwrap();
    }
    server
}

fn web() -> Subject {
    Subject::Service(ServiceName::new("shop", "web"))
}

fn problem(reason: Reason, message: &str) -> Problem {
    Problem::new(reason, "Service shop/web", "spec.externalIPs[0]", message)
}

fn uid(server: &ApiServer, resource: Resource, name: &str) -> String {
    let objects = server.objects(resource);
    let object = objects.iter().find(|object| object.str_at(&["metadata", "name"]) == Some(name)).unwrap();
    object.str_at(&["metadata", "uid"]).unwrap().to_owned()
}

/// How often each thing became of reports.
fn outcomes(metrics: &Metrics) -> Vec<(Outcome, u64)> {
    let count = |outcome: Outcome| metrics.events.with_label_values(&[outcome.label()]).get();
    Outcome::ALL.into_iter().map(|outcome| (outcome, count(outcome))).filter(|(_, count)| *count > 0).collect()
}

/// Reports all of this as the agent of `node`, and waits until it has been dealt with.
async fn report(server: &ApiServer, node: &str, tuning: Tuning, reports: &[(Subject, Problem)]) -> Metrics {
    let metrics = Metrics::new().unwrap();
    let (events, writer) = channel(client(server).await, node.to_owned(), tuning, metrics.clone());
    reports.iter().for_each(|(subject, problem)| events.report(subject, problem));
    drop(events);
    writer.run().await;
    metrics
}

#[tokio::test]
async fn a_problem_becomes_an_event_with_all_that_kubectl_and_the_api_ask_for() {
    let server = server().await;
    let slice = Problem::new(Reason::InvalidField, "EndpointSlice shop/web-1", "ports[0].port", "is 70000");
    let node = Problem::new(Reason::InvalidField, "Node node-1", "spec.podCIDRs[0]", "is odd");
    let reports = [(web(), problem(Reason::Conflict, "is taken")), (web(), slice), (Subject::Node, node)];
    let metrics = report(&server, "node-1", hasty(), &reports).await;
    assert_eq!(outcomes(&metrics), [(Outcome::Written, 3)]);

    let mut events = server.objects(Resource::Events);
    events.sort_by_key(|event| event.str_at(&["note"]).map(str::to_owned));
    let notes: Vec<_> = events.iter().map(|event| event.str_at(&["note"]).unwrap()).collect();
    assert_eq!(
        notes,
        ["EndpointSlice shop/web-1: ports[0].port is 70000", "spec.externalIPs[0] is taken", "spec.podCIDRs[0] is odd"],
        "the object's own name is where the note is read"
    );
    let [_, conflict, of_node] = &events[..] else { panic!("{events:?}") };
    for (path, value) in [
        (&["metadata", "namespace"][..], "shop"),
        (&["type"], "Warning"),
        (&["reason"], "Conflict"),
        (&["reportingController"], "kube-ipvs"),
        (&["reportingInstance"], "node-1"),
        (&["regarding", "apiVersion"], "v1"),
        (&["regarding", "kind"], "Service"),
        (&["regarding", "namespace"], "shop"),
        (&["regarding", "name"], "web"),
        (&["regarding", "uid"], &uid(&server, Resource::Services, "web")),
    ] {
        assert_eq!(conflict.str_at(path), Some(value), "{path:?}");
    }
    let place = |path: &[&str]| of_node.str_at(path);
    assert_eq!((place(&["metadata", "namespace"]), place(&["regarding", "namespace"])), (Some("default"), None));
    assert_eq!((place(&["regarding", "kind"]), place(&["regarding", "name"])), (Some("Node"), Some("node-1")));
    assert_eq!(place(&["regarding", "uid"]), Some("node-1"), "where kubectl describe node looks for it");
}

#[tokio::test]
async fn what_is_said_again_by_a_restarted_agent_or_another_node_is_one_event() {
    let server = server().await;
    let of_objects = problem(Reason::Conflict, "is taken");
    let of_node = problem(Reason::KernelRefused, "is refused");
    let reports = [(web(), of_objects), (web(), of_node)];
    let first = report(&server, "node-1", hasty(), &reports).await;
    assert_eq!(outcomes(&first), [(Outcome::Written, 2)]);
    let again = report(&server, "node-1", hasty(), &reports).await;
    assert_eq!(outcomes(&again), [(Outcome::Repeated, 2)]);
    let elsewhere = report(&server, "node-2", hasty(), &reports).await;
    assert_eq!(outcomes(&elsewhere), [(Outcome::Written, 1), (Outcome::Repeated, 1)], "what one kernel refuses, another may not");

    // Another object of the same name has its own Events.
    server.delete(Resource::Services, "shop", "web");
    server
        .apply(r#"{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"shop","name":"web"}}"#.parse::<Json>().unwrap())
        .unwrap();
    let recreated = report(&server, "node-1", hasty(), &reports).await;
    assert_eq!(outcomes(&recreated), [(Outcome::Written, 2)]);
}

/// A start is one each time. Who fails again and again for one reason has failed once; kube-proxy's words are kept where it has one.
#[tokio::test]
async fn what_happens_to_the_node_is_told_in_its_words() {
    let server = server().await;
    for _ in 0..2 {
        let metrics = Metrics::new().unwrap();
        let (events, writer) = channel(client(&server).await, "node-1".to_owned(), hasty(), metrics.clone());
        events.tell(Happening::Starting, "kube-ipvs 0.1.0".to_owned());
        let taken = "cannot serve a health check node port on [::]:30000: in use".to_owned();
        events.tell_of(web(), Happening::FailedToStartServiceHealthcheck, taken);
        drop(events);
        writer.run().await;
        last_words(client(&server).await, "node-1".to_owned(), "the kernel lacks ip_vs".to_owned()).await;
    }
    let mut told: Vec<_> = server.objects(Resource::Events);
    told.sort_by_key(|event| event.str_at(&["reason"]).map(str::to_owned));
    let field = |name: &'static str| told.iter().map(move |event| event.str_at(&[name]).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(field("reason"), ["Failed", "FailedToStartServiceHealthcheck", "Starting", "Starting"]);
    assert_eq!(field("type"), ["Warning", "Warning", "Normal", "Normal"]);
    assert_eq!(told[0].str_at(&["note"]), Some("the kernel lacks ip_vs"));
    assert_eq!(told[1].str_at(&["regarding", "uid"]), Some(&*uid(&server, Resource::Services, "web")));
}

#[tokio::test]
async fn last_words_are_not_insisted_on() {
    let server = server().await;
    server.forbid(Verb::Create, Resource::Events);
    last_words(client(&server).await, "node-1".to_owned(), "the kernel lacks ip_vs".to_owned()).await;
    server.allow(Verb::Create, Resource::Events);
    server.fail_next(Verb::Create, Resource::Events, 1, Fault::NoAnswer);
    let begun = Instant::now();
    last_words(client(&server).await, "node-1".to_owned(), "the kernel lacks ip_vs".to_owned()).await;
    assert!(begun.elapsed() >= LAST_WORDS);
    assert_eq!(server.objects(Resource::Events), []);
}

#[tokio::test]
async fn of_an_object_that_is_gone_there_is_nothing_to_say() {
    let server = server().await;
    server.delete(Resource::Services, "shop", "web");
    let metrics = report(&server, "node-1", hasty(), &[(web(), problem(Reason::Conflict, "is taken"))]).await;
    assert_eq!(outcomes(&metrics), [(Outcome::Outdated, 1)]);
    assert_eq!(server.objects(Resource::Events), []);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_logged_once() {
    let server = server().await;
    let log = Log::capture();
    let reports: Vec<_> = (0..20).map(|number| (web(), problem(Reason::Conflict, &number.to_string()))).collect();
    server.fail_next(Verb::Create, Resource::Events, 1, Fault::Status(503));
    server.fail_next(Verb::Create, Resource::Events, 1, Fault::Disconnect);
    let metrics = report(&server, "node-1", hasty(), &reports).await;
    assert_eq!(outcomes(&metrics), [(Outcome::Written, 20)]);
    assert_eq!(log.lines("WARN").len(), 2, "{:?}", log.lines(""));

    let log = Log::capture();
    server.forbid(Verb::Create, Resource::Events);
    let other: Vec<_> = (20..40).map(|number| (web(), problem(Reason::Conflict, &number.to_string()))).collect();
    let asked = server.requests().len();
    let metrics = report(&server, "node-1", hasty(), &other).await;
    assert_eq!(outcomes(&metrics), [(Outcome::Failed, 20)]);
    assert_eq!(server.requests().len() - asked, 40, "once each, for the uid and for the Event");
    let lines = log.lines("");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("events.events.k8s.io is forbidden") && lines[0].contains("has to allow `create`"), "{}", lines[0]);
    assert_eq!(server.objects(Resource::Events).len(), 20);
}

#[tokio::test]
async fn a_flood_passes_at_its_pace_and_keeps_nobody_waiting() {
    let server = server().await;
    let metrics = Metrics::new().unwrap();
    let tuning = Tuning { queue: 100, burst: 5, interval: Duration::from_secs(3600), ..hasty() };
    let (events, writer) = channel(client(&server).await, "node-1".to_owned(), tuning, metrics.clone());
    for number in 0..10_000 {
        events.report(&web(), &problem(Reason::Conflict, &number.to_string()));
    }
    assert_eq!(outcomes(&metrics), [(Outcome::Dropped, 9_900)]);
    let writer = tokio::spawn(writer.run());
    let all_at_once = async {
        while server.objects(Resource::Events).len() < 5 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), all_at_once).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(server.requests().iter().filter(|request| request.method == "POST").count(), 5);
    writer.abort();
}

#[tokio::test]
async fn the_longest_names_and_sentences_are_cut_to_what_the_api_takes() {
    let server = server().await;
    // 253 bytes, so made that the cut falls on a dot.
    let name = format!("{}.{}", "n".repeat(235), "m".repeat(17));
    assert_eq!(name.len(), MAX_NAME);
    server.apply(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).unwrap();
    let long = Problem::new(Reason::InvalidField, "Node", "spec", &"ß".repeat(2_000));
    let metrics = report(&server, &name, hasty(), &[(Subject::Node, long)]).await;
    assert_eq!(outcomes(&metrics), [(Outcome::Written, 1)]);
    let events = server.objects(Resource::Events);
    let note = events[0].str_at(&["note"]).unwrap();
    assert!(note.len() <= MAX_NOTE && note.len() > MAX_NOTE - 4 && note.ends_with("ß…"), "{note}");
    assert_eq!(events[0].str_at(&["reportingInstance"]), Some(&name[..128]));
    assert!(events[0].str_at(&["metadata", "name"]).unwrap().starts_with("nnn"));
}

#[test]
fn a_cut_is_no_longer_than_asked_for_and_leaves_short_texts_alone() {
    assert_eq!((cut("straße", 5), cut("straße", 6), cut("straße", 7), cut("straße", 100)), ("stra", "straß", "straße", "straße"));
}
