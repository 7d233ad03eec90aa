//! The agent between the API server's double and a mailbox: what becomes of objects that cannot be served.

use super::*;
use crate::captured::Log;
use crate::events::tests::{client, hasty};
use crate::events::{self, Writer};
use crate::freshness::Freshness;
use crate::mailbox::Letter;
use crate::saved::Keeper;
use crate::source::api::{ApiSource, Tuning};
use apiserver::{ApiServer, Json, Options, Resource, Verb};
use desired::ServiceName;
use std::time::Duration;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

const NODE: &str = "node-1";
/// Only failures wait for it.
const LONG: Duration = Duration::from_secs(30);

struct Running {
    mailbox: Mailbox,
    metrics: Metrics,
    news: News,
    tasks: Vec<JoinHandle<()>>,
    _network: watch::Sender<Network>,
}

impl Running {
    async fn start(server: &ApiServer) -> Self {
        let (metrics, mailbox, news) = (Metrics::new().unwrap(), Mailbox::default(), News::default());
        let client = client(server).await;
        let (reports, writer) = events::channel(client.clone(), NODE.to_owned(), hasty(), metrics.clone());
        let register = Register::new(metrics.clone(), Some(reports));
        let options = RuleOptions { random_fully: true };
        let mut agent = Agent::new(Config::new(NODE), options, mailbox.clone(), register, news.clone(), metrics.clone(), None);
        let (sender, events) = mpsc::channel(16);
        let (network, followed) = watch::channel(Network::default());
        let (_, lacking_schedulers) = watch::channel(BTreeSet::new());
        let (_, asks) = mpsc::channel(1);
        let (_, config) = watch::channel(Config::new(NODE));
        let mut sources =
            Sources { events, network: followed, sockets: Sockets::follow(LONG).unwrap(), lacking_schedulers, config, asks };
        let backoff = (Duration::from_millis(20), Duration::from_millis(100));
        let tuning = Tuning { backoff, apart: Duration::ZERO, ..Tuning::default() };
        let source = ApiSource::new(client, NODE.to_owned(), tuning, Freshness::new());
        let tasks = vec![
            tokio::spawn(async move { source.run(sender).await }),
            tokio::spawn(Writer::run(writer)),
            spawn_local(async move { agent.follow(&mut sources).await }),
        ];
        Self { mailbox, metrics, news, tasks, _network: network }
    }

    /// Waits until the reconciler has been told of all of these Services.
    async fn told(&self, wanted: &[&str]) {
        let mut told = BTreeSet::new();
        self.until(|| {
            let letter = self.mailbox.take(Duration::ZERO).unwrap_or_default();
            told.extend(letter.services.into_keys().chain(letter.arriving.into_keys()).map(|name| name.name().to_owned()));
            wanted.iter().all(|name| told.contains(*name))
        })
        .await;
    }

    async fn until(&self, mut done: impl FnMut() -> bool) {
        let wait = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, wait).await.unwrap();
    }

    fn count(&self, result: &str) -> u64 {
        self.metrics.events.with_label_values(&[result]).get()
    }

    fn problems(&self, reason: &str) -> i64 {
        self.metrics.problems.with_label_values(&[reason]).get()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn service(name: &str, external_ip: &str) -> Json {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": "10.96.0.1", "externalIPs": [external_ip], "ports": [{"port": 80}]},
    });
    object.into()
}

async fn server() -> ApiServer {
    let server = ApiServer::start(Options::default()).await.unwrap();
    server.apply(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})).unwrap();
    server
}

/// What the role allows is what the agent asks, and no more.
#[tokio::test]
async fn the_role_allows_what_is_asked_and_no_more() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rule {
        api_groups: Vec<String>,
        resources: Vec<String>,
        verbs: Vec<String>,
    }
    let manifest = include_str!("../../manifests/base/rbac.yaml");
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).unwrap();
    let role = objects.into_iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    let rules: Vec<Rule> = serde_json::from_value(role["rules"].clone()).unwrap();
    let mut allowed = BTreeSet::new();
    for Rule { api_groups, resources, verbs } in &rules {
        for (group, resource) in api_groups.iter().flat_map(|group| resources.iter().map(move |resource| (group, resource))) {
            allowed.extend(verbs.iter().map(|verb| format!("{verb} {group}/{resource}")));
        }
    }

    let mut asked = BTreeSet::new();
    // Servers that cannot stream a list are asked for pages, which is another verb.
    for streaming in [true, false] {
        LocalSet::new()
            .run_until(async {
                let server = ApiServer::start(Options::default()).await.unwrap();
                server.set_streaming_lists(streaming);
                server.apply(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})).unwrap();
                // So that there is something to tell.
                for (name, address) in [("one", "10.96.0.1"), ("two", "10.96.0.2")] {
                    let service = serde_json::json!({
                        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
                        "spec": {"clusterIP": address, "ports": [{"port": 70_000}]},
                    });
                    server.apply(service).unwrap();
                }
                let running = Running::start(&server).await;
                running.told(&["one", "two"]).await;
                running.until(|| running.count("written") == 2).await;
                running
                    .until(|| {
                        [Resource::Services, Resource::EndpointSlices, Resource::Nodes]
                            .iter()
                            .all(|of| server.open_watches(*of) > 0)
                    })
                    .await;
                running.tasks.iter().for_each(JoinHandle::abort);
                asked.extend(server.requests().iter().map(asked_for));
            })
            .await;
    }
    assert_eq!(asked, allowed);
}

/// The verb, API group and resource of a request, as RBAC judges it.
fn asked_for(request: &apiserver::Received) -> String {
    let path = request.target.split('?').next().unwrap().trim_start_matches('/');
    let mut parts = path.split('/');
    let group = match parts.next().unwrap() {
        "api" => "",
        "apis" => parts.next().unwrap(),
        other => panic!("/{other} is for no resource"),
    };
    let parts: Vec<_> = parts.skip(1).collect();
    let parts = if let ["namespaces", _, rest @ ..] = &parts[..] { rest } else { &parts[..] };
    let verb = match (&*request.method, parts) {
        ("GET", [_]) if request.param("watch") == "true" => "watch",
        ("GET", [_]) => "list",
        ("GET", [_, _]) => "get",
        ("POST", [_]) => "create",
        other => panic!("{other:?}: no verb that a role has to allow"),
    };
    format!("{verb} {group}/{}", parts[0])
}

#[tokio::test]
async fn a_bad_service_is_one_event_however_often_it_is_listed() {
    let test = async {
        let server = server().await;
        server.apply(service("web", "nowhere")).unwrap();
        let log = Log::capture();
        let agent = Running::start(&server).await;
        agent.told(&["web"]).await;
        agent.until(|| agent.count("written") == 1).await;
        assert_eq!((agent.problems("InvalidField"), log.lines("reason=InvalidField").len()), (1, 1));

        // What the watches knew is forgotten, so all is listed again; and the Service changes in what is not its mistake.
        let lists = |server: &ApiServer| server.requests().iter().filter(|one| one.param("sendInitialEvents") == "true").count();
        let before = lists(&server);
        server.compact();
        server.fail_watches(Resource::Services, 410);
        agent.until(|| lists(&server) > before).await;
        let mut changed = service("web", "nowhere");
        let spec = r#"{"clusterIP":"10.96.0.1","externalIPs":["nowhere"],"ports":[{"port":80}],"sessionAffinity":"ClientIP"}"#;
        changed.set("spec", spec.parse().unwrap());
        server.apply(changed).unwrap();
        server.apply(service("last", "192.0.2.1")).unwrap();
        agent.told(&["web", "last"]).await;

        let events = server.objects(Resource::Events);
        assert_eq!(events.len(), 1, "{events:?}");
        let field = |path: &[&str]| events[0].str_at(path).unwrap();
        assert_eq!((field(&["reason"]), field(&["type"]), field(&["regarding", "name"])), ("InvalidField", "Warning", "web"));
        assert_eq!(
            field(&["note"]),
            "spec.externalIPs[0] is \"nowhere\", which is no IP address, and is not served; name one that clients can call"
        );
        assert_eq!((agent.count("written"), agent.count("repeated"), log.lines("reason=InvalidField").len()), (1, 0, 1));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_the_reconciler_finds_out_is_reported_the_same_way() {
    let test = async {
        let server = server().await;
        server.apply(service("web", "192.0.2.1")).unwrap();
        let agent = Running::start(&server).await;
        agent.told(&["web"]).await;
        let web = ServiceName::new("shop", "web");
        let conflict = desired::Problem::new(desired::Reason::Conflict, "Service shop/web", "spec.externalIPs", "claims too much");
        agent.news.post(Origin::Others, [(web.clone(), Box::from([conflict]))]);
        agent.until(|| agent.count("written") == 1).await;
        assert_eq!(agent.problems("Conflict"), 1);
        assert_eq!(server.objects(Resource::Events)[0].str_at(&["note"]), Some("spec.externalIPs claims too much"));
        agent.news.post(Origin::Others, [(web, Box::default())]);
        agent.until(|| agent.problems("Conflict") == 0).await;
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn where_events_are_forbidden_one_line_says_so_and_all_else_goes_on() {
    let test = async {
        let server = server().await;
        server.forbid(Verb::Create, Resource::Events);
        for number in 0..10 {
            server.apply(service(&format!("bad-{number}"), "nowhere")).unwrap();
        }
        let log = Log::capture();
        let agent = Running::start(&server).await;
        agent.until(|| agent.count("failed") == 10).await;
        assert_eq!(agent.problems("InvalidField"), 10);
        assert_eq!(log.lines("Kubernetes Events cannot be written").len(), 1);
        assert_eq!(log.lines("reason=InvalidField").len(), 10);
        server.apply(service("good", "192.0.2.1")).unwrap();
        agent.told(&["good"]).await;
        assert_eq!(agent.metrics.trouble.with_label_values(&["services"]).get(), 0);
    };
    LocalSet::new().run_until(test).await;
}

/// What a source tells that lists these objects, and no others.
fn listing(services: &[&Json]) -> Vec<Event> {
    let services =
        services.iter().map(|service| Event::Applied(Object::Service(serde_json::from_str(&service.to_string()).unwrap())));
    let begun = Kind::ALL.map(Event::Listing).into_iter();
    begun.chain(services).chain(Kind::ALL.map(Event::Listed)).collect()
}

#[tokio::test]
async fn j10_what_was_saved_is_served_when_nothing_is_told_and_until_everything_is() {
    let directory = tempfile::tempdir().unwrap();
    let (web, db) = (service("web", "192.0.2.1"), service("db", "192.0.2.2"));
    let open = || Keeper::open(directory.path(), NODE.to_owned(), Metrics::new().unwrap()).unwrap();
    let (keeper, kept) = open();
    assert!(kept.is_none());
    listing(&[&web, &db]).into_iter().for_each(|event| keeper.note(event));
    drop(keeper);

    LocalSet::new()
        .run_until(async {
            let (metrics, mailbox, freshness) = (Metrics::new().unwrap(), Mailbox::default(), Freshness::new());
            let register = Register::new(metrics.clone(), None);
            let options = RuleOptions { random_fully: true };
            let (keeper, kept) = open();
            let memory = Memory { keeper, kept, freshness: freshness.clone(), patience: Duration::from_millis(50) };
            let agent = Agent::new(Config::new(NODE), options, mailbox.clone(), register, News::default(), metrics.clone(), None);
            let mut agent = agent.remembering(memory);
            let (sender, events) = mpsc::channel(16);
            let (_network, followed) = watch::channel(Network::default());
            let (_, lacking_schedulers) = watch::channel(BTreeSet::new());
            let (_, asks) = mpsc::channel(1);
            let (_, config) = watch::channel(Config::new(NODE));
            let mut sources =
                Sources { events, network: followed, sockets: Sockets::follow(LONG).unwrap(), lacking_schedulers, config, asks };
            let task = spawn_local(async move { agent.follow(&mut sources).await });
            let next = async || {
                let wait = async {
                    loop {
                        if let Some(letter) = mailbox.take(Duration::ZERO) {
                            break letter;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::time::timeout(LONG, wait).await.unwrap()
            };
            let services = |letter: &Letter| {
                letter.services.iter().map(|(name, fragment)| (name.name().to_owned(), fragment.is_some())).collect::<Vec<_>>()
            };

            sender.send(Event::Listing(Kind::Service)).await.unwrap();
            let letter = next().await;
            assert_eq!(services(&letter), [("db".to_owned(), true), ("web".to_owned(), true)]);
            assert!(!letter.complete, "nothing may be removed for it");
            assert_eq!((metrics.serves_saved.get(), freshness.saved().is_some()), (1, true));

            for event in listing(&[&web]) {
                sender.send(event).await.unwrap();
            }
            let mut letter = next().await;
            while !letter.complete {
                letter = next().await;
            }
            assert_eq!((metrics.serves_saved.get(), freshness.saved()), (0, None));
            drop(sender);
            task.await.unwrap();
        })
        .await;
    // The names of what is gone came with one letter or another; what is saved is what was told last.
    let kept = open().1.unwrap();
    let names: Vec<_> = kept.objects.iter().map(|object| object.metadata().name.clone().unwrap()).collect();
    assert_eq!(names, ["web"]);
}

/// An agent that is told things one by one.
fn told_by_hand() -> (Agent, Mailbox) {
    let (metrics, mailbox) = (Metrics::new().unwrap(), Mailbox::default());
    let register = Register::new(metrics.clone(), None);
    let options = RuleOptions { random_fully: true };
    (Agent::new(Config::new(NODE), options, mailbox.clone(), register, News::default(), metrics, None), mailbox)
}

impl Agent {
    fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.take(event));
        self.send();
    }
}

fn web(name: &str) -> Event {
    let object = serde_json::json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    Event::Applied(Object::Service(serde_json::from_value(object).unwrap()))
}

fn slice(service: &str, number: u8) -> Event {
    let object = serde_json::json!({
        "metadata": {"namespace": "shop", "name": format!("{service}-{number}"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.244.0.{number}")]}],
    });
    Event::Applied(Object::EndpointSlice(serde_json::from_value(object).unwrap()))
}

fn names<'a>(fragments: impl IntoIterator<Item = &'a ServiceName>) -> Vec<&'a str> {
    fragments.into_iter().map(ServiceName::name).collect()
}

#[test]
fn services_are_told_of_while_others_are_still_listed_and_served_when_all_are() {
    let (mut agent, mailbox) = told_by_hand();
    let letter = || mailbox.take(Duration::ZERO).unwrap_or_default();
    agent.hear([Event::Listing(Kind::Service), Event::Listing(Kind::EndpointSlice), Event::Listing(Kind::Node)]);
    agent.hear([slice("first", 1), web("first"), slice("last", 5), web("second"), web("late"), web("kubernetes")]);
    let before = letter();
    assert!(before.arriving.is_empty() && before.services.is_empty(), "the Node is not known yet");

    agent.hear([Event::Listed(Kind::Node)]);
    assert_eq!(names(letter().arriving.keys()), ["first"]);
    agent.hear([slice("second", 2), slice("headless", 4)]);
    let more = letter();
    assert_eq!((names(more.arriving.keys()), more.complete), (vec!["second"], false));
    agent.hear([web("last"), Event::Listed(Kind::Service)]);
    assert_eq!(names(letter().arriving.keys()), ["last"]);

    // Another slice of one that was told of, and a Service that has none: both come with the rest.
    agent.hear([slice("second", 3), Event::Listed(Kind::EndpointSlice)]);
    let last = letter();
    assert!(last.complete && last.arriving.is_empty());
    assert_eq!(names(last.services.keys()), ["headless", "kubernetes", "late", "second"]);
    assert_eq!(last.services.iter().find(|(name, _)| name.name() == "second").map(|(_, fragment)| fragment.is_some()), Some(true));
}

#[test]
fn what_others_need_to_come_up_does_not_arrive_with_the_rest() {
    let (mut agent, mailbox) = told_by_hand();
    let api = serde_json::json!({"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}});
    let endpoint = serde_json::json!({
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 6443}], "endpoints": [{"addresses": ["172.18.0.9"]}],
    });
    agent.hear(Kind::ALL.map(Event::Listing));
    let api = Event::Applied(Object::Service(serde_json::from_value(api).unwrap()));
    let endpoint = Event::Applied(Object::EndpointSlice(serde_json::from_value(endpoint).unwrap()));
    agent.hear([api, Event::Listed(Kind::Service), Event::Listed(Kind::Node), endpoint]);
    assert!(mailbox.take(Duration::ZERO).is_none());
    agent.hear([Event::Listed(Kind::EndpointSlice)]);
    assert_eq!(names(mailbox.take(Duration::ZERO).unwrap().urgent.keys()), ["kubernetes"]);
}
