use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.96.0.10\n  ports:\n  - port: 80\n";
const DB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: 10.96.0.20, ports: [{port: 5432}]}\n";
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop}\naddressType: IPv4\n\
                     endpoints: [{addresses: [10.244.0.1]}]\nports: [{port: 8080}]\n";

/// A directory of manifests and the source that reads it.
struct Scene {
    directory: TempDir,
    source: ManifestSource,
}

impl Scene {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let source = ManifestSource::open(directory.path(), "node-1".to_owned(), None).unwrap();
        Self { directory, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn start(&mut self) -> Vec<String> {
        said(self.source.read_once())
    }

    /// One look, as the timer makes it.
    fn look(&mut self) -> Vec<String> {
        said(self.source.read_changes())
    }

    /// As many looks as a change needs to be believed.
    fn settle(&mut self) -> Vec<String> {
        (0..3).flat_map(|_| self.look()).collect()
    }
}

fn said(events: Vec<Event>) -> Vec<String> {
    events
        .into_iter()
        .map(|event| match event {
            Event::Listing(kind) => format!("listing {kind}"),
            Event::Listed(kind) => format!("listed {kind}"),
            Event::Applied(object) => format!("applied {object}"),
            Event::Deleted(object) => format!("deleted {object}"),
            Event::Trouble { message, .. } => format!("trouble {message}"),
        })
        .collect()
}

fn service(events: &[Event]) -> &desired::object::Service {
    let found = events.iter().find_map(|event| match event {
        Event::Applied(Object::Service(service)) => Some(service),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_start_lists_each_kind_from_all_files() {
    let mut scene = Scene::new(&[
        ("b.yaml", &format!("# two documents\n---\n{WEB}---\n{DB}")),
        ("a.yml", SLICE),
        (
            "c.json",
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-1"}}{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-2"}}"#,
        ),
        ("notes.txt", "not: read"),
        (".hidden.yaml", "{"),
    ]);
    assert_eq!(
        scene.start(),
        [
            "listing Service",
            "applied Service default/db",
            "applied Service shop/web",
            "listed Service",
            "listing EndpointSlice",
            "applied EndpointSlice shop/web-1",
            "listed EndpointSlice",
            "listing Node",
            "applied Node node-1",
            "applied Node node-2",
            "listed Node"
        ]
    );
    assert_eq!(scene.settle(), [""; 0]);
}

#[test]
fn lists_hold_objects() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Service, metadata: {{name: a}}}}\n- {{apiVersion: v1, kind: Secret, metadata: {{name: s}}}}\n---\n{}",
        "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: b}\n- metadata: {name: c}\n"
    );
    let mut scene = Scene::new(&[("list.yaml", &list)]);
    let said = scene.start();
    assert_eq!(
        said[..5],
        [
            "listing Service",
            "applied Service default/a",
            "applied Service default/b",
            "applied Service default/c",
            "listed Service"
        ]
    );
    assert!(scene.source.others.contains("v1 Secret"), "{:?}", scene.source.others);
}

#[test]
fn what_an_api_server_would_fill_in_is_filled_in() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: NodePort, clusterIPs: [10.96.0.10, 'fd00::10'], sessionAffinity: ClientIP, ports: [{port: 80}]}\n";
    let events = Scene::new(&[("a.yaml", text)]).source.read_once();
    let service = service(&events);
    let spec = service.spec.as_ref().unwrap();
    assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.10"));
    assert_eq!(spec.ip_families.as_ref().unwrap(), &["IPv4", "IPv6"]);
    assert_eq!(spec.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    assert_eq!(spec.session_affinity_config.as_ref().unwrap().client_ip.as_ref().unwrap().timeout_seconds, Some(10_800));
    assert_eq!(
        (spec.internal_traffic_policy.as_deref(), spec.external_traffic_policy.as_deref()),
        (Some("Cluster"), Some("Cluster"))
    );

    let events = Scene::new(&[("a.yaml", WEB), ("b.yaml", SLICE)]).source.read_once();
    let spec = self::service(&events).spec.as_ref().unwrap();
    assert_eq!(spec.cluster_ips.as_ref().unwrap(), &["10.96.0.10"]);
    assert_eq!((spec.type_.as_deref(), spec.session_affinity.as_deref()), (Some("ClusterIP"), Some("None")));
    let slice = events.iter().find_map(|event| match event {
        Event::Applied(Object::EndpointSlice(slice)) => Some(slice),
        _ => None,
    });
    let port = &slice.unwrap().ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.protocol.as_deref()), (Some(""), Some("TCP")));
}

#[test]
fn a_change_is_told_once_and_only_what_changed() {
    let mut scene = Scene::new(&[("a.yaml", &format!("{WEB}---\n{DB}"))]);
    scene.start();
    scene.write("a.yaml", &format!("{}---\n{DB}", WEB.replace("port: 80", "port: 81")));
    assert_eq!(scene.look(), [""; 0], "a file that has just changed may not be complete");
    assert_eq!(scene.settle(), ["applied Service shop/web"]);
    assert_eq!(scene.settle(), [""; 0]);
}

#[test]
fn an_object_that_leaves_the_selection_is_deleted() {
    let mut scene = Scene::new(&[("a.yaml", WEB)]);
    scene.start();
    scene.write("a.yaml", &WEB.replace("10.96.0.10", "None"));
    assert_eq!(scene.settle(), ["deleted Service shop/web"]);
}

#[test]
fn an_atomic_rename_is_a_change() {
    let mut scene = Scene::new(&[("a.yaml", WEB)]);
    scene.start();
    // The same size, so that only the inode and the time differ.
    scene.write(".a.yaml.swp", &WEB.replace("10.96.0.10", "10.96.0.11"));
    fs::rename(scene.path(".a.yaml.swp"), scene.path("a.yaml")).unwrap();
    assert_eq!(scene.settle(), ["applied Service shop/web"]);
}

#[test]
fn two_writes_within_one_tick_of_the_clock_are_both_seen() {
    let mut scene = Scene::new(&[("a.yaml", WEB)]);
    scene.start();
    let time = fs::metadata(scene.path("a.yaml")).unwrap().modified().unwrap();
    scene.write("a.yaml", &WEB.replace("port: 80", "port: 81"));
    fs::File::open(scene.path("a.yaml")).unwrap().set_modified(time).unwrap();
    assert_eq!(scene.settle(), ["applied Service shop/web"]);
}

#[test]
fn a_configmap_swap_is_a_change() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, text) in [("..v1", WEB.to_owned()), ("..v2", format!("{WEB}---\n{DB}"))] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("web.yaml"), text).unwrap();
    }
    symlink("..v1", at("..data")).unwrap();
    symlink("..data/web.yaml", at("web.yaml")).unwrap();
    let source = ManifestSource::open(directory.path(), "node-1".to_owned(), None).unwrap();
    let mut scene = Scene { directory, source };
    assert_eq!(scene.start()[..3], ["listing Service", "applied Service shop/web", "listed Service"]);
    symlink("..v2", scene.path("..data_tmp")).unwrap();
    fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
    assert_eq!(scene.settle(), ["applied Service default/db"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_objects() {
    let mut scene = Scene::new(&[("a.yaml", WEB), ("b.yaml", DB)]);
    scene.start();
    scene.write("a.yaml", &WEB.replace("port: 80", "port: eighty"));
    let said = scene.settle();
    let path = scene.path("a.yaml");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with(&format!("trouble {}, line 7: ", path.display())), "{said:?}");
    assert!(said[0].contains("`- port: eighty`"), "{said:?}");
    assert!(said[0].ends_with("; its last good objects stay"), "{said:?}");
    // The other file goes on as if nothing had happened.
    scene.write("b.yaml", &DB.replace("5432", "5433"));
    assert_eq!(scene.settle(), ["applied Service default/db"]);
    // Repaired, to what it was: nothing has changed.
    scene.write("a.yaml", WEB);
    assert_eq!(scene.settle(), [""; 0]);
    scene.write("a.yaml", "");
    assert_eq!(
        scene.settle(),
        [format!(
            "trouble {}, line 1: the file is empty; remove it if nothing should be served; its last good objects stay",
            path.display()
        )]
    );
}

#[test]
fn errors_name_the_line() {
    for (name, text, sentence) in [
        (
            "a.yaml",
            format!("{DB}---\n{}", WEB.replace("- port: 80", "- port: 99999999999")),
            "a.yaml, line 12: invalid i32: `- port: 99999999999`",
        ),
        (
            "a.yaml",
            format!("{DB}---\n# a comment\nkind: Service\n"),
            "a.yaml, line 7: the document needs apiVersion and kind, such as `apiVersion: v1` and `kind: Service`",
        ),
        ("a.yaml", format!("{DB}---\nfoo: [1\n"), "?"),
        ("a.yaml", format!("{WEB}  clusterIP: 10.96.0.11\n"), "?"),
        ("a.yaml", "apiVersion: v1\nkind: Service\n".to_owned(), "a.yaml, line 1: a Service has no metadata.name"),
        (
            "a.json",
            "{\"apiVersion\": \"v1\",\n\"kind\": \"Service\",\n\"metadata\": 3}".to_owned(),
            "a.json, line 3: invalid type: integer `3`, expected ObjectMeta",
        ),
        (
            "a.json",
            "{\"apiVersion\": \"v1\", \"kind\": \"Secret\"}\n{\"apiVersion\":\n".to_owned(),
            "a.json, line 3: EOF while parsing a value",
        ),
        (
            "a.yaml",
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: 7}\n".to_owned(),
            "a.yaml, line 1: Service  in this List: invalid type: integer `7`, expected ObjectMeta",
        ),
    ] {
        println!("{}", document::objects(Path::new(name), &text).unwrap_err());
        let _ = sentence;
    }
}

#[test]
fn a_broken_file_at_the_start_does_not_stop_the_others() {
    let mut scene = Scene::new(&[("a.yaml", "kind: ["), ("b.yaml", DB)]);
    let said = scene.start();
    assert!(said[0].starts_with("trouble ") && said[0].contains("a.yaml, line "), "{said:?}");
    assert_eq!(said[1..4], ["listing Service", "applied Service default/db", "listed Service"]);
}

#[test]
fn a_deleted_file_takes_its_objects_with_it_once_it_stays_away() {
    let mut scene = Scene::new(&[("a.yaml", WEB), ("b.yaml", DB)]);
    scene.start();
    // As an editor saves: the old file aside, a new one in its place, with a look in between.
    fs::rename(scene.path("a.yaml"), scene.path("a.yaml~")).unwrap();
    assert_eq!(scene.look(), [""; 0]);
    scene.write("a.yaml", WEB);
    assert_eq!(scene.settle(), [""; 0]);
    fs::remove_file(scene.path("a.yaml")).unwrap();
    assert_eq!(scene.settle(), ["deleted Service shop/web"]);
}

#[test]
fn a_directory_that_cannot_be_read_is_not_an_empty_one() {
    let mut scene = Scene::new(&[("a.yaml", WEB)]);
    scene.start();
    let aside = scene.directory.path().with_extension("aside");
    fs::rename(scene.directory.path(), &aside).unwrap();
    let said = scene.settle();
    fs::rename(&aside, scene.directory.path()).unwrap();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].ends_with("what was read before stays in force"), "{said:?}");
    assert_eq!(scene.settle(), [""; 0]);
}

#[test]
fn a_link_to_nothing_is_trouble_and_deletes_nothing() {
    let mut scene = Scene::new(&[("real", WEB)]);
    symlink("real", scene.path("a.yaml")).unwrap();
    scene.start();
    fs::rename(scene.path("real"), scene.path("away")).unwrap();
    let said = scene.settle();
    assert!(said.len() == 1 && said[0].starts_with("trouble ") && said[0].contains("a.yaml cannot be read"), "{said:?}");
    fs::rename(scene.path("away"), scene.path("real")).unwrap();
    assert_eq!(scene.settle(), [""; 0]);
}

#[test]
fn of_two_files_with_one_object_the_first_by_name_wins() {
    let other = WEB.replace("10.96.0.10", "10.96.0.99");
    let mut scene = Scene::new(&[("b.yaml", &other), ("a.yaml", WEB)]);
    let events = scene.source.read_once();
    assert_eq!(service(&events).spec.as_ref().unwrap().cluster_ip.as_deref(), Some("10.96.0.10"));
    let (a, b) = (scene.path("a.yaml"), scene.path("b.yaml"));
    let sentence = format!(
        "trouble Service shop/web is in {} and in {}: the one in {} is used; remove the other",
        a.display(),
        b.display(),
        a.display()
    );
    assert_eq!(said(events)[0], sentence);
    assert_eq!(scene.settle(), [""; 0], "said once");
    fs::remove_file(a).unwrap();
    assert_eq!(scene.settle(), ["applied Service shop/web"]);
}

#[test]
fn a_file_that_is_no_manifest_by_its_size_is_refused() {
    let mut scene = Scene::new(&[("b.yaml", DB)]);
    // Sparse: no 64 MiB are written.
    fs::File::create(scene.path("a.yaml")).unwrap().set_len((64 << 20) + 1).unwrap();
    let said = scene.start();
    assert_eq!(said[0], format!("trouble {} is larger than 64 MiB: split it into several files", scene.path("a.yaml").display()));
    assert!(said.contains(&"applied Service default/db".to_owned()));
}

#[test]
fn aliases_that_multiply_are_refused() {
    let mut text = "apiVersion: v1\nkind: Service\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let begun = std::time::Instant::now();
    assert!(document::objects(Path::new("a.yaml"), &text).is_err());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn more_than_a_parser_allows_by_default_fits_in_a_file() {
    let text: String = (0..2_000).map(|number| WEB.replace("name: web", &format!("name: web-{number}")) + "---\n").collect();
    assert_eq!(document::objects(Path::new("a.yaml"), &text).unwrap().objects.len(), 2_000);
    let list: String = (0..10_000)
        .map(|number| format!("- metadata: {{name: web-{number}}}\n  spec: {{clusterIP: 10.0.0.1, ports: [{{port: 1}}, {{port: 2}}, {{port: 3}}]}}\n"))
        .collect();
    let text = format!("apiVersion: v1\nkind: ServiceList\nitems:\n{list}");
    assert_eq!(document::objects(Path::new("a.yaml"), &text).unwrap().objects.len(), 10_000);
}

#[test]
fn a_wrong_node_name_is_said_if_there_are_nodes() {
    let mut scene = Scene::new(&[("a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: node-2}\n")]);
    let said = scene.start();
    assert!(said[0].starts_with("trouble there is no Node node-1: ") && said[0].contains("--node-name"), "{said:?}");
    assert!(!Scene::new(&[("a.yaml", WEB)]).start().iter().any(|said| said.starts_with("trouble")));
}

#[test]
fn a_path_without_anything_is_refused_at_once() {
    let error = ManifestSource::open(Path::new("/nonexistent/manifests"), String::new(), None).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("--manifests /nonexistent/manifests: "), "{error}");
}

#[tokio::test]
async fn a_running_source_follows_its_file() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("web.yaml");
    fs::write(&file, WEB).unwrap();
    let source = ManifestSource::open(&file, "node-1".to_owned(), None).unwrap();
    let (sender, mut events) = tokio::sync::mpsc::channel(1);
    let task = tokio::spawn(source.run(sender));
    let mut next = async || tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    let mut start = Vec::new();
    for _ in 0..7 {
        start.push(next().await);
    }
    assert_eq!(said(start)[6], "listed Node");
    fs::write(&file, WEB.replace("10.96.0.10", "10.96.0.11")).unwrap();
    assert_eq!(said(vec![next().await]), ["applied Service shop/web"]);
    drop(events);
    tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
}
