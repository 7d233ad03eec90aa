//! Replays what was recorded from a real kube-apiserver against the double: the same requests, the double holding the same objects.
//!
//! Status, headers and bodies are compared byte for byte, except for what cannot repeat:
//! - the times in front of watch lines, and how often a bookmark repeats unchanged (a real server may send its last bookmark twice);
//! - the random suffix of a generated name.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "what does not fit fails the test")]

use apiserver::{ApiServer, Fault, Json, Options, Resource, Verb};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Recorded seconds pass this fast; slow enough that the order of changes and bookmarks is not in doubt on a busy machine.
const SECOND: Duration = Duration::from_millis(200);

fn brisk() -> Options {
    Options { second: SECOND, ..Options::default() }
}

struct Recording {
    request: String,
    status: String,
    /// `name: value`, sorted.
    headers: Vec<String>,
    /// Lines without the times.
    body: Vec<String>,
}

fn recording(name: &str) -> Recording {
    let path = format!("{}/recordings/{name}.http", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let (request, rest) = text.split_once("\n\n").unwrap();
    let (head, body) = rest.split_once("\n\n").unwrap();
    let mut head = head.lines();
    let status = head.next().unwrap().to_owned();
    let mut headers: Vec<String> = head.map(str::to_owned).collect();
    headers.sort();
    let body = body.lines().filter(|line| !line.is_empty() && !line.starts_with("# +")).map(str::to_owned).collect();
    Recording { request: request.trim().to_owned(), status, headers, body }
}

fn recorded_objects(name: &str) -> Vec<Json> {
    items(&std::fs::read_to_string(format!("{}/../recorded/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap())
}

fn items(list: &str) -> Vec<Json> {
    match list.parse::<Json>().unwrap().get("items") {
        Some(Json::Array(items)) => items.clone(),
        other => panic!("no items: {other:?}"),
    }
}

fn set_version(object: &mut Json, version: &str) {
    let Json::Object(members) = object else { panic!("not an object: {object}") };
    let metadata = members.iter_mut().find(|(name, _)| name == "metadata");
    metadata.unwrap().1.set("resourceVersion", version.into());
}

fn name(object: &Json) -> &str {
    object.str_at(&["metadata", "name"]).unwrap()
}

/// A double that holds the objects of a recorded list, as they were, and around them those that the list's selectors left out.
async fn holding(resource: Resource, list: &str, all: &str, options: Options) -> ApiServer {
    let server = ApiServer::start(options).await.unwrap();
    let listed = if list.is_empty() { Vec::new() } else { items(&recording(list).body.concat()) };
    for mut object in recorded_objects(all) {
        if !listed.iter().any(|listed| name(listed) == name(&object)) {
            // Recorded later than the list, but only there to be left out of it: its version must not be later.
            set_version(&mut object, "100");
            server.load(resource, object).unwrap();
        }
    }
    for object in listed {
        server.load(resource, object).unwrap();
    }
    server
}

struct Reply {
    status: String,
    headers: Vec<String>,
    body: String,
}

/// Sends a request over a socket of its own and reads to the end of the answer.
async fn send(server: &ApiServer, request: &str, extra: &str) -> Reply {
    let address = server.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let message = format!("{request} HTTP/1.1\r\nHost: double\r\nConnection: close\r\n{extra}\r\n");
    stream.write_all(message.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, mut rest) = text.split_once("\r\n\r\n").unwrap();
    let mut head = head.split("\r\n");
    let status = head.next().unwrap().to_owned();
    let recorded = ["Cache-Control", "Content-Type", "Transfer-Encoding"];
    let mut headers: Vec<String> =
        head.filter(|line| recorded.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect();
    headers.sort();
    let mut body = String::new();
    if headers.iter().any(|header| header == "Transfer-Encoding: chunked") {
        loop {
            let (size, tail) = rest.split_once("\r\n").unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            body.push_str(&tail[..size]);
            rest = &tail[size + 2..];
        }
    } else {
        body.push_str(rest);
    }
    Reply { status, headers, body }
}

fn assert_replays(reply: &Reply, recording: &Recording) {
    assert_eq!(reply.status, recording.status);
    assert_eq!(reply.headers, recording.headers);
    let mut lines: Vec<&str> = reply.body.lines().collect();
    let mut recorded: Vec<&str> = recording.body.iter().map(String::as_str).collect();
    for lines in [&mut lines, &mut recorded] {
        lines.dedup_by(|a, b| a == b && a.starts_with(r#"{"type":"BOOKMARK""#));
    }
    assert_eq!(lines.len(), recorded.len(), "{lines:#?}");
    for (line, recorded) in lines.iter().zip(&recorded) {
        let differs = line.bytes().zip(recorded.bytes()).position(|(a, b)| a != b).unwrap_or(line.len().min(recorded.len()));
        let around = |text: &str| {
            String::from_utf8_lossy(&text.as_bytes()[differs.saturating_sub(60)..text.len().min(differs + 60)]).into_owned()
        };
        assert!(line == recorded, "at byte {differs}:\n{}\n{}", around(line), around(recorded));
    }
}

async fn assert_list_replays(file: &str, server: &ApiServer) {
    let recording = recording(file);
    assert_replays(&send(server, &recording.request, "").await, &recording);
}

#[tokio::test]
async fn lists_with_the_selectors_of_the_agent() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(360);
    assert_list_replays("list-services", &server).await;

    let server = holding(Resource::EndpointSlices, "list-endpointslices", "endpointslices", brisk()).await;
    server.advance_to(360);
    assert_list_replays("list-endpointslices", &server).await;
}

#[tokio::test]
async fn lists_by_label_value_and_by_name() {
    let server = holding(Resource::EndpointSlices, "list-endpointslices-web", "endpointslices", brisk()).await;
    server.advance_to(368);
    assert_list_replays("list-endpointslices-web", &server).await;

    let server = holding(Resource::Nodes, "list-node", "nodes", brisk()).await;
    server.advance_to(360);
    assert_list_replays("list-node", &server).await;
}

#[tokio::test]
async fn pages_and_their_tokens() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(360);
    assert_list_replays("list-services-page-1", &server).await;
    assert_list_replays("list-services-page-2", &server).await;
}

#[tokio::test]
async fn a_page_is_read_at_the_version_of_the_first() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(360);
    let recorded = recording("list-services-page-2");
    server.delete(Resource::Services, "shop", "web-close");
    assert_replays(&send(&server, &recorded.request, "").await, &recorded);
}

#[tokio::test]
async fn version_zero_ignores_the_limit() {
    let server = holding(Resource::Services, "list-services-rv0", "services", brisk()).await;
    server.advance_to(416);
    assert_list_replays("list-services-rv0", &server).await;
}

#[tokio::test]
async fn an_expired_token_gets_one_that_works() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(500);
    server.compact();
    let recorded = recording("list-services-expired-continue");
    let reply = send(&server, &recorded.request, "").await;
    assert_replays(&reply, &recorded);

    let status: Json = reply.body.parse().unwrap();
    let token = status.str_at(&["metadata", "continue"]).unwrap();
    let rest = send(&server, &format!("GET /api/v1/namespaces/shop/services?limit=7&continue={token}"), "").await;
    assert_eq!(name(&items(&rest.body)[0]), "web-close");
}

#[tokio::test]
async fn an_exact_version_before_everything_is_empty() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    assert_list_replays("list-exact-expired", &server).await;
    server.compact();
    let request = recording("list-exact-expired").request;
    assert_eq!(send(&server, &request, "").await.status, "HTTP/1.1 410 Gone");
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    for file in ["bad-field-selector", "bad-resource-version", "not-found"] {
        assert_list_replays(file, &server).await;
    }
}

#[tokio::test]
async fn strangers_are_told_so() {
    let server = ApiServer::start(Options { token: Some("right".to_owned()), ..Options::default() }).await.unwrap();
    let unauthorized = recording("unauthorized");
    assert_replays(&send(&server, &unauthorized.request, "Authorization: Bearer wrong\r\n").await, &unauthorized);
    assert_list_replays("forbidden-anonymous", &server).await;
    let known = send(&server, &unauthorized.request, "Authorization: Bearer right\r\n").await;
    assert_eq!(known.status, "HTTP/1.1 200 OK");

    server.forbid(Verb::List, Resource::EndpointSlices);
    let refused = send(&server, "GET /apis/discovery.k8s.io/v1/endpointslices", "Authorization: Bearer right\r\n").await;
    assert!(refused.body.contains(
        r#"User \"system:serviceaccount:kube-system:kube-ipvs\" cannot list resource \"endpointslices\" in API group \"discovery.k8s.io\" at the cluster scope"#
    ));
}

#[tokio::test]
async fn events_are_checked_stored_and_listed() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    let recorded = recording("create-event");
    let with = |generate_name: &str, fields: &str| {
        let body = format!(
            r#"{{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{{"generateName":"{generate_name}"}},"reason":"Refused",{fields}}}"#
        );
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let rest = r#""action":"Serving","type":"Warning","eventTime":"2026-01-01T00:00:00.000000Z","reportingController":"kube-ipvs",
        "reportingInstance":"node-1","regarding":{"kind":"Service","namespace":"shop","name":"web"}"#;
    let post = |generate_name: &str| with(generate_name, rest);
    // The body ends the message, so nothing may follow it: `send` adds an empty line that the server does not read.
    let mut reply = send(&server, &recorded.request, &post("web.")).await;
    let generated = reply.body.split("Event \\\"web.").nth(1).unwrap()[..5].to_owned();
    reply.body = reply.body.replace(&generated, "85kv2");
    assert_replays(&reply, &recorded);

    let reply = send(&server, &recorded.request, &post("web-")).await;
    assert_eq!(reply.status, "HTTP/1.1 201 Created");
    let events = server.objects(Resource::Events);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].str_at(&["reason"]), events[0].str_at(&["metadata", "namespace"])), (Some("Refused"), Some("shop")));

    let wrong = [
        (rest.replace("shop", "bank"), "involvedObject.namespace: Invalid value: \\\"bank\\\": does not match event.namespace"),
        (rest.replace("Serving", ""), "action: Required value"),
        (rest.replace("node-1", &"n".repeat(129)), "reportingInstance: Invalid value: \\\"\\\": can have at most 128 characters"),
        (format!(r#"{rest},"note":"{}""#, "x".repeat(1025)), "message: Invalid value: \\\"\\\": can have at most 1024 characters"),
        (rest.replace("2026-01-01T00:00:00.000000Z", ""), "eventTime: Required value"),
        (rest.replace("Warning", "Alarm"), "type: Invalid value: \\\"\\\": has invalid value: Alarm"),
    ];
    for (fields, complaint) in wrong {
        let reply = send(&server, &recorded.request, &with("web-", &fields)).await;
        assert_eq!(reply.status, "HTTP/1.1 422 Unprocessable Entity", "{fields}");
        assert!(reply.body.contains(complaint), "{}", reply.body);
    }
    assert_eq!(server.objects(Resource::Events).len(), 1);
}

#[tokio::test]
async fn a_version_ahead_opens_a_watch_and_refuses_a_list() {
    let server = ApiServer::start(brisk()).await.unwrap();
    assert_list_replays("future-resource-version", &server).await;
    let reply = send(&server, "GET /api/v1/services?resourceVersion=99999999&resourceVersionMatch=NotOlderThan", "").await;
    assert_eq!(reply.status, "HTTP/1.1 504 Gateway Timeout");
    assert!(
        reply.body.contains(r#""message":"Timeout: Too large resource version: 99999999, current: 1","reason":"Timeout""#),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn changes_are_watched_and_leaving_a_selector_is_a_deletion() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(360);
    let recorded = recording("watch-services");
    let object = |line: usize| recorded.body[line].parse::<Json>().unwrap().get("object").unwrap().clone();
    let (reply, ()) = tokio::join!(send(&server, &recorded.request, ""), async {
        tokio::time::sleep(SECOND).await;
        server.load(Resource::Services, object(0)).unwrap();
        server.load(Resource::Services, object(1)).unwrap();
        // The object gets the label that the selector excludes; it is not deleted before 365.
        let mut labelled = object(1);
        if let Json::Object(members) = &mut labelled {
            for (_, metadata) in members.iter_mut().filter(|(name, _)| name == "metadata") {
                metadata.set("resourceVersion", "364".into());
                metadata.set("labels", r#"{"service.kubernetes.io/service-proxy-name":"other"}"#.parse().unwrap());
            }
        }
        server.load(Resource::Services, labelled).unwrap();
        server.delete(Resource::Services, "shop", "fresh");
    });
    assert_replays(&reply, &recorded);
}

#[tokio::test]
async fn a_flip_of_readiness_is_two_changes() {
    let server = holding(Resource::EndpointSlices, "list-endpointslices-web", "endpointslices", brisk()).await;
    server.advance_to(368);
    let recorded = recording("watch-endpointslices-readiness-flip");
    let object = |line: usize| recorded.body[line].parse::<Json>().unwrap().get("object").unwrap().clone();
    let (reply, ()) = tokio::join!(send(&server, &recorded.request, ""), async {
        tokio::time::sleep(SECOND).await;
        server.load(Resource::EndpointSlices, object(0)).unwrap();
        server.load(Resource::EndpointSlices, object(1)).unwrap();
        server.advance_to(400);
    });
    assert_replays(&reply, &recorded);
}

#[tokio::test]
async fn bookmarks_come_each_minute_and_before_the_end() {
    let server = holding(
        Resource::Services,
        "list-services",
        "services",
        Options { second: Duration::from_millis(40), ..Options::default() },
    )
    .await;
    server.advance_to(410);
    let recorded = recording("watch-bookmark-periodic");
    let reply = send(&server, &recorded.request, "").await;
    assert_replays(&reply, &recorded);
    assert_eq!(reply.body.lines().count(), 2);
}

#[tokio::test]
async fn an_expired_watch_fails_inside_a_success() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(440);
    server.compact_to(431);
    assert_list_replays("watch-expired", &server).await;
}

#[tokio::test]
async fn streaming_lists_end_with_the_annotated_bookmark() {
    let server = holding(Resource::Services, "list-services", "services", brisk()).await;
    server.advance_to(401);
    assert_list_replays("watch-initial-events", &server).await;
}

#[tokio::test]
async fn a_server_without_streaming_lists_says_so() {
    let server = ApiServer::start(Options { streaming_lists: false, ..Options::default() }).await.unwrap();
    assert_list_replays("watch-initial-events-unsupported", &server).await;
}

#[tokio::test]
async fn every_recording_is_replayed() {
    let here = include_str!("recordings.rs");
    let files = std::fs::read_dir(format!("{}/recordings", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let files = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|extension| extension == "http"));
    let names: Vec<String> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 22);
    for name in names {
        assert!(here.contains(&format!("\"{name}\"")), "{name} is not replayed");
    }
}

#[tokio::test]
async fn faults_happen_once_each_and_in_order() {
    let server = holding(Resource::Services, "", "services", brisk()).await;
    server.fail_next(Verb::List, Resource::Services, 2, Fault::Status(429));
    server.fail_next(Verb::List, Resource::Services, 1, Fault::ErrorLine(410));
    let request = "GET /api/v1/services";
    for status in ["HTTP/1.1 429 Too Many Requests", "HTTP/1.1 429 Too Many Requests", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK"] {
        assert_eq!(send(&server, request, "").await.status, status);
    }
    assert_eq!(server.requests().iter().filter(|request| request.asks == Some((Verb::List, Resource::Services))).count(), 4);
}

#[tokio::test]
async fn remaining_items_are_counted_where_nothing_is_filtered() {
    let server = holding(Resource::Services, "", "services", brisk()).await;
    let reply = send(&server, "GET /api/v1/services?limit=7", "").await;
    assert!(reply.body.contains(r#","remainingItemCount":11},"items""#), "{}", &reply.body[..200]);
}

#[tokio::test]
async fn discovery_names_every_resource() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    for (path, part) in [
        ("/version", r#""major":"1""#),
        ("/api", r#""versions":["v1"]"#),
        ("/apis", r#""groupVersion":"discovery.k8s.io/v1""#),
        ("/api/v1", r#""name":"services""#),
        ("/apis/discovery.k8s.io/v1", r#""name":"endpointslices""#),
        ("/apis/events.k8s.io/v1", r#""name":"events""#),
    ] {
        let reply = send(&server, &format!("GET {path}"), "").await;
        assert_eq!(reply.status, "HTTP/1.1 200 OK", "{path}");
        assert!(reply.body.parse::<Json>().is_ok() && reply.body.contains(part), "{path}: {}", reply.body);
    }
}
