//! The real client against the double, over a socket.

use super::*;
use crate::source::Object;
use apiserver::{ApiServer, Fault, Json, Mishap, Options, Received, Resource, Verb};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Long enough for the slowest machine; only failures wait for it.
const LONG: Duration = Duration::from_secs(30);

pub(super) fn hasty() -> Tuning {
    Tuning {
        page_size: 3,
        watch_seconds: 200..=200,
        patience: Duration::from_secs(5),
        backoff: (Duration::from_millis(20), Duration::from_millis(100)),
        apart: Duration::from_millis(20),
        all_nodes: true,
        proxy_name: None,
    }
}

fn service(name: &str, port: u16) -> Json {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "managedFields": [{"manager": "test"}]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
    });
    object.into()
}

fn node(name: &str) -> Json {
    serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).into()
}

async fn server(options: Options) -> ApiServer {
    let server = ApiServer::start(options).await.unwrap();
    server.apply(node("node-1")).unwrap();
    server.apply(node("node-2")).unwrap();
    server
}

async fn client(server: &ApiServer) -> Client {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig()).unwrap();
    connect(Some(&path), &[], &Freshness::new()).await.unwrap()
}

/// An agent, and what it notes of its watches.
async fn noted(server: &ApiServer, tuning: Tuning) -> (Agent, Freshness) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig()).unwrap();
    let freshness = Freshness::new();
    (Agent::noting(connect(Some(&path), &[], &freshness).await.unwrap(), tuning, freshness.clone()), freshness)
}

/// What the agent knows from the events, kept as its index keeps it.
struct Agent {
    events: mpsc::Receiver<Event>,
    objects: BTreeMap<String, Object>,
    /// What the listing under way has named, per kind.
    under: BTreeMap<Kind, BTreeSet<String>>,
    listed: BTreeMap<Kind, usize>,
    troubles: Vec<String>,
    told: Vec<String>,
    task: JoinHandle<()>,
}

impl Agent {
    async fn start(server: &ApiServer, tuning: Tuning) -> Self {
        Self::with(client(server).await, tuning)
    }

    fn with(client: Client, tuning: Tuning) -> Self {
        Self::noting(client, tuning, Freshness::new())
    }

    fn noting(client: Client, tuning: Tuning, freshness: Freshness) -> Self {
        let source = ApiSource::new(client, "node-1".to_owned(), tuning, freshness);
        let (sender, events) = mpsc::channel(1);
        let task = tokio::spawn(async move { source.run(sender).await });
        let (objects, under, listed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { events, objects, under, listed, troubles: Vec::new(), told: Vec::new(), task }
    }

    async fn next(&mut self) {
        let event = timeout(LONG, self.events.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing more is told after {:#?}", self.told)).unwrap();
        match event {
            Event::Listing(kind) => {
                self.told.push(format!("listing {kind}"));
                self.under.insert(kind, BTreeSet::new());
            }
            Event::Applied(object) => {
                self.told.push(format!("applied {object}"));
                assert_eq!(object.metadata().managed_fields, None);
                if let Some(named) = self.under.get_mut(&object.kind()) {
                    named.insert(object.to_string());
                }
                self.objects.insert(object.to_string(), object);
            }
            Event::Deleted(object) => {
                self.told.push(format!("deleted {object}"));
                self.objects.remove(&object.to_string());
            }
            Event::Listed(kind) => {
                self.told.push(format!("listed {kind}"));
                let named = self.under.remove(&kind).unwrap();
                self.objects.retain(|name, object| object.kind() != kind || named.contains(name));
                *self.listed.entry(kind).or_default() += 1;
            }
            Event::Trouble { message, .. } => {
                self.told.push(format!("trouble {message}"));
                self.troubles.push(message);
            }
        }
    }

    async fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            self.next().await;
        }
    }

    async fn until_all_are_listed(&mut self) {
        self.until(|agent| agent.listed.len() == Kind::ALL.len()).await;
    }

    fn names(&self, kind: Kind) -> Vec<&str> {
        self.objects
            .iter()
            .filter(|(_, object)| object.kind() == kind)
            .map(|(name, _)| name.rsplit(['/', ' ']).next().unwrap())
            .collect()
    }

    fn port(&self, name: &str) -> Option<i32> {
        match self.objects.get(&format!("Service shop/{name}"))? {
            Object::Service(service) => service.spec.as_ref()?.ports.as_ref()?.first().map(|port| port.port),
            _ => None,
        }
    }

    fn told_of(&self, kind: Kind) -> Vec<&str> {
        let named = |line: &&str| line.split(' ').nth(1) == Some(&kind.to_string());
        self.told.iter().map(String::as_str).filter(named).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn eventually(what: &str, reached: impl Fn() -> bool) {
    let wait = async {
        while !reached() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn asked(server: &ApiServer, verb: Verb, resource: Resource) -> Vec<Received> {
    server.requests().into_iter().filter(|request| request.asks == Some((verb, resource))).collect()
}

#[tokio::test]
async fn streaming_lists_come_first_and_are_enough() {
    let server = server(Options::default()).await;
    for number in 0..10 {
        server.apply(service(&format!("web-{number}"), 80)).unwrap();
    }
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    assert_eq!(agent.names(Kind::Service).len(), 10);
    assert_eq!(agent.names(Kind::Node), ["node-1", "node-2"]);
    let told = agent.told_of(Kind::Service);
    assert_eq!((told.len(), told[0], told[11]), (12, "listing Service", "listed Service"));
    assert!(server.requests().iter().all(|request| request.asks.unwrap().0 == Verb::Watch));
    let [watch] = &asked(&server, Verb::Watch, Resource::Services)[..] else { panic!("one watch is enough") };
    assert_eq!(watch.param("sendInitialEvents"), "true");
    assert_eq!(watch.param("labelSelector"), "!service.kubernetes.io/service-proxy-name");
    assert_eq!(watch.param("fieldSelector"), "spec.clusterIP!=None");
    assert_eq!((watch.param("allowWatchBookmarks"), watch.param("timeoutSeconds")), ("true", "200"));
    assert_eq!(asked(&server, Verb::Watch, Resource::EndpointSlices)[0].param("labelSelector"), "!service.kubernetes.io/headless");
    assert_eq!(asked(&server, Verb::Watch, Resource::Nodes)[0].param("fieldSelector"), "");
    assert_eq!(agent.troubles, [""; 0]);
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_read_in_pages_from_then_on() {
    let server = server(Options { streaming_lists: false, ..Options::default() }).await;
    for number in 0..10 {
        server.apply(service(&format!("web-{number}"), 80)).unwrap();
    }
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    assert_eq!(agent.names(Kind::Service).len(), 10);
    let pages = asked(&server, Verb::List, Resource::Services);
    assert_eq!(pages.len(), 4);
    assert!(pages.iter().all(|page| page.param("limit") == "3" && page.param("resourceVersion").is_empty()));
    assert!(pages[0].param("continue").is_empty() && pages[1..].iter().all(|page| !page.param("continue").is_empty()));
    assert_eq!(agent.troubles, [""; 0], "nothing is wrong with an older server");

    // Listing again does not try streaming again.
    let streams =
        |server: &ApiServer| server.requests().iter().filter(|request| request.param("sendInitialEvents") == "true").count();
    let before = streams(&server);
    eventually("the watch is open", || server.open_watches(Resource::Services) == 1).await;
    server.fail_watches(Resource::Services, 410);
    agent.until(|agent| agent.listed[&Kind::Service] == 2).await;
    assert_eq!(streams(&server), before);
}

#[tokio::test]
async fn a_listing_is_complete_or_not_told_as_such() {
    let server = server(Options { streaming_lists: false, ..Options::default() }).await;
    for number in 0..7 {
        server.apply(service(&format!("web-{number}"), 80)).unwrap();
    }
    // The first page arrives, the second does not, and then its second half does not.
    for fault in [Fault::Delay(Duration::ZERO), Fault::Status(500), Fault::Delay(Duration::ZERO), Fault::CutLine(0)] {
        server.fail_next(Verb::List, Resource::Services, 1, fault);
    }
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    let told = agent.told_of(Kind::Service);
    let attempt = ["listing Service", "applied Service shop/web-0", "applied Service shop/web-1", "applied Service shop/web-2"];
    // The streaming list that the server could not do was the first attempt.
    assert_eq!(told[0], "listing Service");
    assert_eq!(told[1..5], attempt);
    assert_eq!(told[5..9], attempt);
    assert_eq!(told[9..13], attempt);
    assert_eq!((told[17], told.len()), ("listed Service", 18));
    assert_eq!(agent.troubles.len(), 2, "{:?}", agent.troubles);
    assert!(
        agent.troubles[0].starts_with("cannot list services: the API server answers 500 InternalError: "),
        "{:?}",
        agent.troubles
    );
}

#[tokio::test]
async fn changes_are_told_as_they_happen() {
    let server = server(Options::default()).await;
    server.apply(service("web", 80)).unwrap();
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    let begin = agent.told.len();
    server.apply(service("db", 5432)).unwrap();
    server.apply(service("web", 81)).unwrap();
    // Another proxy takes it over: for this one it is gone.
    let labelled = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "10.96.0.1"},
        "metadata": {"namespace": "shop", "name": "web", "labels": {"service.kubernetes.io/service-proxy-name": "other"}},
    });
    server.apply(labelled).unwrap();
    server.delete(Resource::Services, "shop", "db");
    agent.until(|agent| agent.told.len() == begin + 4).await;
    let told = ["applied Service shop/db", "applied Service shop/web", "deleted Service shop/web", "deleted Service shop/db"];
    assert_eq!(agent.told[begin..], told);
}

#[tokio::test]
async fn bookmarks_keep_a_quiet_watch_from_expiring() {
    let options = Options { bookmark_seconds: 1, second: Duration::from_millis(20), ..Options::default() };
    let server = server(options).await;
    server.apply(service("web", 80)).unwrap();
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    server.advance_to(5_000);
    // More bookmarks than one come in this time; they cannot be seen in the events, so their effect is looked for.
    sleep(Duration::from_millis(500)).await;
    server.compact();
    server.end_watches(Resource::Services);
    eventually("the watch is opened again", || asked(&server, Verb::Watch, Resource::Services).len() == 2).await;
    assert_eq!(asked(&server, Verb::Watch, Resource::Services)[1].param("resourceVersion"), "5000");
    server.apply(service("web", 81)).unwrap();
    agent.until(|agent| agent.port("web") == Some(81)).await;
    assert_eq!(agent.listed[&Kind::Service], 1, "nothing had to be listed again");
}

#[tokio::test]
async fn an_expired_version_leads_to_a_listing_that_finds_deletions() {
    // As an ERROR line inside a 200, which is how the server says it, and as the status of the answer.
    for status in [None, Some(Fault::Status(410))] {
        for streaming_lists in [true, false] {
            let server = server(Options { streaming_lists, ..Options::default() }).await;
            server.apply(service("web", 80)).unwrap();
            server.apply(service("db", 5432)).unwrap();
            let mut agent = Agent::start(&server, hasty()).await;
            agent.until_all_are_listed().await;
            eventually("the watch is open", || server.open_watches(Resource::Services) == 1).await;
            // Something happens while nothing is watched: during the request that is told of the expiry, or during the listing that follows.
            let expired = status.clone();
            let meanwhile = match (&expired, streaming_lists) {
                (None, _) | (Some(_), true) => Verb::Watch,
                (Some(_), false) => Verb::List,
            };
            if let Some(fault) = expired {
                server.fail_next(Verb::Watch, Resource::Services, 1, fault);
            }
            server.fail_next(meanwhile, Resource::Services, 1, Fault::Delay(Duration::from_millis(300)));
            let requests =
                || asked(&server, Verb::Watch, Resource::Services).len() + asked(&server, Verb::List, Resource::Services).len();
            let delayed = requests() + 1 + usize::from(status.is_some());
            server.cut_watches(Resource::Services);
            eventually("asked again", || requests() == delayed).await;
            server.delete(Resource::Services, "shop", "db");
            server.apply(service("new", 1)).unwrap();
            server.compact();
            agent.until(|agent| agent.names(Kind::Service) == ["new", "web"]).await;
            assert_eq!(agent.troubles, [""; 0], "an expired version is nothing to worry about");
            server.apply(service("web", 81)).unwrap();
            agent.until(|agent| agent.port("web") == Some(81)).await;
        }
    }
}

#[tokio::test]
async fn a_410_status_leads_to_a_listing() {
    let server = server(Options::default()).await;
    server.apply(service("web", 80)).unwrap();
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    server.fail_next(Verb::Watch, Resource::Services, 1, Fault::Status(410));
    server.end_watches(Resource::Services);
    agent.until(|agent| agent.listed[&Kind::Service] == 2).await;
    assert_eq!(agent.troubles, [""; 0]);
}

#[tokio::test]
async fn j10_history_that_is_lost_under_open_watches_is_waited_after_and_a_start_waits_for_nothing() {
    // Of waits that are spread over a day, one in some hundred thousand is over within the time that this test takes.
    let tuning = || Tuning { apart: Duration::from_secs(24 * 60 * 60), ..hasty() };
    for streaming_lists in [true, false] {
        let server = server(Options { streaming_lists, ..Options::default() }).await;
        for number in 0..7 {
            server.apply(service(&format!("web-{number}"), 80)).unwrap();
        }
        let pages = if streaming_lists { Verb::Watch } else { Verb::List };
        server.fail_next(pages, Resource::Services, 1, Fault::Status(410));
        let mut agent = Agent::start(&server, tuning()).await;
        agent.until_all_are_listed().await;

        eventually("the watch is open", || server.open_watches(Resource::Services) == 1).await;
        let asked = || asked(&server, Verb::Watch, Resource::Services).len() + asked(&server, Verb::List, Resource::Services).len();
        let before = asked();
        server.fail_watches(Resource::Services, 410);
        eventually("the watch has ended", || server.open_watches(Resource::Services) == 0).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(asked(), before, "it was listed again at once");
        assert_eq!(agent.troubles, [""; 0]);
    }
}

#[tokio::test]
async fn whatever_breaks_every_change_arrives() {
    let faults = [
        (Fault::Status(500), 1),
        (Fault::Status(429), 1),
        (Fault::Status(503), 1),
        (Fault::Disconnect, 1),
        (Fault::CutLine(0), 0),
        (Fault::ErrorLine(500), 1),
    ];
    for (fault, troubles) in faults {
        let server = server(Options::default()).await;
        server.apply(service("web", 1)).unwrap();
        let mut agent = Agent::start(&server, hasty()).await;
        agent.until_all_are_listed().await;
        let begin = agent.told_of(Kind::Service).len();
        server.fail_next(Verb::Watch, Resource::Services, 1, fault.clone());
        server.end_watches(Resource::Services);
        for port in 2..=6 {
            server.apply(service("web", port)).unwrap();
        }
        server.delete(Resource::Services, "shop", "web");
        agent.until(|agent| agent.names(Kind::Service).is_empty()).await;
        // Each change once and in order: neither lost nor told again, though the connection broke in the middle of them.
        let told = &agent.told_of(Kind::Service)[begin..];
        assert_eq!(told, [vec!["applied Service shop/web"; 5], vec!["deleted Service shop/web"]].concat(), "{fault:?}");
        assert_eq!(agent.troubles.len(), troubles, "{fault:?}: {:?}", agent.troubles);
        assert_eq!(agent.listed[&Kind::Service], 1, "{fault:?}");
    }
}

#[tokio::test]
async fn j10_a_server_that_is_never_well_is_followed_all_the_same() {
    let server = server(Options::default()).await;
    server.apply(service("db", 5432)).unwrap();
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    let mut port = 0;
    for round in 0..3 {
        for mishap in Mishap::ALL {
            if matches!(mishap, Mishap::Expired | Mishap::CutList) {
                // Only who watches can be told that history is gone, and after a failure it watches again no sooner than it may.
                eventually("the watch is open", || server.open_watches(Resource::Services) == 1).await;
            }
            server.befall(mishap);
            port += 1;
            server.apply(service("web", port)).unwrap();
            // What it has not been told by then comes after a later mishap.
            let _ = timeout(Duration::from_millis(100), agent.until(|agent| agent.port("web") == Some(port.into()))).await;
        }
        if round == 1 {
            server.delete(Resource::Services, "shop", "db");
        }
    }
    server.befall(Mishap::End);
    agent.until(|agent| agent.port("web") == Some(port.into()) && agent.names(Kind::Service) == ["web"]).await;
    // Each of the three rounds takes the history away twice; a list that broke off does not count.
    assert!(agent.listed[&Kind::Service] > 3, "listed {} times", agent.listed[&Kind::Service]);
}

#[tokio::test]
async fn a_watch_cut_in_the_middle_of_a_line_goes_on() {
    let server = server(Options::default()).await;
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    for port in 1..=5 {
        eventually("the watch is open", || server.open_watches(Resource::Services) == 1).await;
        server.cut_watches(Resource::Services);
        server.apply(service("web", port)).unwrap();
        agent.until(|agent| agent.port("web") == Some(port.into())).await;
    }
    assert_eq!(agent.listed[&Kind::Service], 1);
}

#[tokio::test]
async fn a_refusal_says_what_to_grant() {
    let server = server(Options { token: Some("secret".to_owned()), ..Options::default() }).await;
    server.apply(service("web", 80)).unwrap();
    server.forbid(Verb::Watch, Resource::Services);
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until(|agent| agent.listed.len() == 2 && !agent.troubles.is_empty()).await;
    assert_eq!(
        agent.troubles[0],
        "kube-ipvs may not watch services: grant `apiGroups: [\"\"], resources: [\"services\"], verbs: [\"list\", \"watch\"]` in its ClusterRole \
         (services is forbidden: User \"system:serviceaccount:kube-system:kube-ipvs\" cannot watch resource \"services\" in API group \"\" at the \
         cluster scope)"
    );
    assert!(!agent.listed.contains_key(&Kind::Service));
    server.allow(Verb::Watch, Resource::Services);
    agent.until_all_are_listed().await;
    assert_eq!(agent.names(Kind::Service), ["web"]);
}

#[tokio::test]
async fn unknown_credentials_are_named() {
    let server = server(Options::default()).await;
    server.fail_next(Verb::Watch, Resource::Nodes, 1, Fault::Status(401));
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    assert_eq!(
        agent.troubles,
        [
            "the API server does not know kube-ipvs (401 when it asked to watch nodes): renew the token or client certificate of its kubeconfig or service account"
        ]
    );
}

#[tokio::test]
async fn watches_of_many_nodes_do_not_end_in_step() {
    let source =
        ApiSource::new(client(&server(Options::default()).await).await, "node-1".to_owned(), Tuning::default(), Freshness::new());
    let timeouts: BTreeSet<u32> = (0..200).filter_map(|_| source.config(Kind::Node, true).timeout).collect();
    assert!(timeouts.len() > 10 && timeouts.iter().all(|timeout| (240..=290).contains(timeout)), "{timeouts:?}");
}

#[tokio::test]
async fn only_the_own_node_is_asked_for_where_others_are_not_wanted() {
    let server = server(Options::default()).await;
    let mut agent = Agent::start(&server, Tuning { all_nodes: false, ..hasty() }).await;
    agent.until_all_are_listed().await;
    assert_eq!(agent.names(Kind::Node), ["node-1"]);
    assert_eq!(asked(&server, Verb::Watch, Resource::Nodes)[0].param("fieldSelector"), "metadata.name=node-1");
}

#[tokio::test]
async fn an_unknown_node_is_named() {
    let server = ApiServer::start(Options::default()).await.unwrap();
    server.apply(node("node-2")).unwrap();
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    agent.until(|agent| !agent.troubles.is_empty()).await;
    assert!(
        agent.troubles[0].starts_with("there is no Node node-1: ") && agent.troubles[0].contains("--node-name"),
        "{:?}",
        agent.troubles
    );
    server.apply(node("node-1")).unwrap();
    agent.until(|agent| agent.names(Kind::Node) == ["node-1", "node-2"]).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let tuning = || Tuning { patience: Duration::from_millis(300), ..hasty() };
    // A streaming list that never ends, as from a server that does not know the parameter.
    let silent = server(Options::default()).await;
    silent.apply(service("web", 80)).unwrap();
    silent.fail_next(Verb::Watch, Resource::Services, 1, Fault::Silent);
    let mut agent = Agent::start(&silent, tuning()).await;
    agent.until_all_are_listed().await;
    assert_eq!(agent.troubles, ["the API server has sent nothing for 0.3 s while listing services; trying again"]);
    assert!(!asked(&silent, Verb::List, Resource::Services).is_empty());

    // A request that is never answered, in pages.
    let dead = server(Options { streaming_lists: false, ..Options::default() }).await;
    dead.fail_next(Verb::List, Resource::Nodes, 1, Fault::NoAnswer);
    let mut agent = Agent::start(&dead, tuning()).await;
    agent.until_all_are_listed().await;
    assert_eq!(agent.troubles, ["the API server has sent nothing for 0.3 s while listing nodes; trying again"]);
}

#[tokio::test]
async fn a_watch_without_a_word_is_opened_again() {
    let server = server(Options::default()).await;
    // kube allows a watch its timeout and 5 s more.
    let mut agent = Agent::start(&server, Tuning { watch_seconds: 1..=1, ..hasty() }).await;
    agent.until_all_are_listed().await;
    server.fail_next(Verb::Watch, Resource::Services, 1, Fault::Silent);
    server.end_watches(Resource::Services);
    eventually("the silent watch is open", || asked(&server, Verb::Watch, Resource::Services).len() >= 2).await;
    server.apply(service("web", 80)).unwrap();
    agent.until(|agent| agent.port("web") == Some(80)).await;
    assert_eq!(agent.listed[&Kind::Service], 1);
}

#[tokio::test]
async fn streaming_lists_that_end_early_are_given_up() {
    let server = server(Options::default()).await;
    server.apply(service("web", 80)).unwrap();
    server.fail_next(Verb::Watch, Resource::Services, 20, Fault::CutLine(1));
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until(|agent| agent.listed.contains_key(&Kind::Service)).await;
    let tried =
        asked(&server, Verb::Watch, Resource::Services).iter().filter(|watch| watch.param("sendInitialEvents") == "true").count();
    assert_eq!(tried, 4);
    assert_eq!(agent.names(Kind::Service), ["web"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for() {
    let gone = server(Options::default()).await;
    let client = client(&gone).await;
    let listen = gone.url().trim_start_matches("http://").parse().unwrap();
    drop(gone);
    let mut agent = Agent::with(client, hasty());
    agent.until(|agent| agent.troubles.len() >= 3).await;
    assert!(
        agent.troubles[0].starts_with("cannot watch ") && agent.troubles[0].contains("onnection refused"),
        "{:?}",
        agent.troubles
    );
    let mut back = None;
    for _ in 0..100 {
        match ApiServer::start(Options { listen, ..Options::default() }).await {
            Ok(server) => {
                back = Some(server);
                break;
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    back.as_ref().unwrap().apply(service("web", 80)).unwrap();
    agent.until(|agent| agent.listed.len() == 3 && agent.names(Kind::Service) == ["web"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_trouble_and_no_more() {
    let server = server(Options::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig().replace("http://", "https://")).unwrap();
    let mut agent = Agent::with(connect(Some(&path), &[], &Freshness::new()).await.unwrap(), hasty());
    agent.until(|agent| !agent.troubles.is_empty()).await;
    assert!(
        agent.troubles[0].starts_with("cannot watch ") && agent.troubles[0].ends_with("; trying again"),
        "{:?}",
        agent.troubles
    );
    println!("{}", agent.troubles[0]);
}

#[tokio::test]
async fn j10_bookmarks_of_quiet_watches_are_signs_of_life() {
    // Bookmarks are sent by the protocol's clock, which a test makes run faster.
    let quick = Options { bookmark_seconds: 1, second: Duration::from_millis(20), ..Options::default() };
    let server = server(quick).await;
    let (agent, freshness) = noted(&server, hasty()).await;
    let mut agent = agent;
    agent.until_all_are_listed().await;
    let told = agent.told.len();
    for _ in 0..3 {
        let then = std::time::Instant::now();
        eventually("bookmarks are noted", || freshness.ages(then).values().all(Duration::is_zero)).await;
    }
    assert_eq!((agent.told.len(), agent.events.len()), (told, 0), "nothing was told");
}

#[tokio::test]
async fn j10_watches_without_bookmarks_are_known_to_be_good_when_they_end_and_not_when_they_fail() {
    let server = server(Options::default()).await;
    let (mut agent, freshness) = noted(&server, hasty()).await;
    agent.until_all_are_listed().await;
    let then = std::time::Instant::now();
    sleep(Duration::from_millis(50)).await;
    assert!(freshness.ages(std::time::Instant::now()).values().all(|age| *age >= Duration::from_millis(50)), "nothing is heard");
    server.cut_watches(Resource::Nodes);
    eventually("the watch is open again", || asked(&server, Verb::Watch, Resource::Nodes).len() >= 2).await;
    server.fail_next(Verb::Watch, Resource::EndpointSlices, 2, Fault::ErrorLine(500));
    server.end_watches(Resource::Services);
    eventually("an end is noted", || freshness.ages(then)[&Kind::Service].is_zero()).await;
    assert!(!freshness.ages(then)[&Kind::Node].is_zero(), "a watch that breaks is no sign of life");
    server.cut_watches(Resource::EndpointSlices);
    agent.until(|agent| agent.troubles.iter().filter(|trouble| trouble.contains("500")).count() == 2).await;
    assert!(!freshness.ages(then)[&Kind::EndpointSlice].is_zero(), "nor is one that answers with an error");
}

#[tokio::test]
async fn j10_where_one_api_server_dies_another_goes_on() {
    let (one, two) = (server(Options::default()).await, server(Options::default()).await);
    // Both tell of the same cluster, so the second knows the versions of the first.
    for server in [&one, &two] {
        server.apply(service("web", 80)).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    // What is configured is a VIP that nobody serves yet.
    std::fs::write(&path, one.kubeconfig().replace(&one.url(), "http://192.0.2.1:1")).unwrap();
    let endpoints = [&one, &two].map(|server| server.url().parse().unwrap());
    let client = connect(Some(&path), &endpoints, &Freshness::new()).await.unwrap();
    let mut agent = Agent::with(client, hasty());
    agent.until_all_are_listed().await;
    let watched = [Resource::Services, Resource::EndpointSlices, Resource::Nodes];
    let open = |server: &ApiServer| watched.map(|resource| server.open_watches(resource)).iter().sum::<usize>();
    let (used, spare) = if open(&one) > 0 { (one, two) } else { (two, one) };
    assert_eq!((open(&used), open(&spare)), (3, 0), "one of them at a time");

    drop(used);
    spare.apply(service("web", 81)).unwrap();
    agent.until(|agent| agent.port("web") == Some(81)).await;
    eventually("all watches have moved", || open(&spare) == 3).await;
    spare.delete(Resource::Services, "shop", "web");
    agent.until(|agent| agent.names(Kind::Service).is_empty()).await;
}

#[tokio::test]
async fn credentials_are_not_sent_unencrypted() {
    let server = server(Options::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server.kubeconfig().replace("http://", "https://")).unwrap();
    let endpoints = ["https://192.0.2.1:6443".parse().unwrap(), "http://192.0.2.2:8080".parse().unwrap()];
    let error = connect(Some(&path), &endpoints, &Freshness::new()).await.map(drop).unwrap_err().to_string();
    assert!(error.starts_with("--api-endpoints: credentials would go to http://192.0.2.2:8080 unencrypted"), "{error}");
}

#[tokio::test]
async fn the_source_ends_with_its_listener() {
    let server = server(Options::default()).await;
    let mut agent = Agent::start(&server, hasty()).await;
    agent.until_all_are_listed().await;
    agent.events.close();
    timeout(LONG, &mut agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let absent = directory.path().join("absent");
    let error = connect(Some(&absent), &[], &Freshness::new()).await.map(drop).unwrap_err().to_string();
    assert_eq!(error, format!("kubeconfig {} cannot be used: No such file or directory (os error 2)", absent.display()));
    let broken = at("broken", "clusters: [");
    let error = connect(Some(&broken), &[], &Freshness::new()).await.map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&format!("kubeconfig {} cannot be used: ", broken.display())), "{error}");
    let empty = at("empty", "apiVersion: v1\nkind: Config\n");
    let error = connect(Some(&empty), &[], &Freshness::new()).await.map(drop).unwrap_err().to_string();
    assert!(error.ends_with("it needs a current-context whose cluster and user it defines"), "{error}");
    let error = connect(None, &[], &Freshness::new()).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("pass --kubeconfig PATH, or --manifests PATH"), "{error}");
}
