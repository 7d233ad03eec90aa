//! The recorded objects go through both sources, and what arrives is the same.

use super::api::{ApiSource, Tuning, connect};
use super::manifests::ManifestSource;
use super::{Event, Kind, Object};
use crate::freshness::Freshness;
use apiserver::{ApiServer, Json, Options, Resource};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

async fn from_api(node_name: &str) -> Vec<Object> {
    let server = ApiServer::start(Options::default()).await.unwrap();
    for (resource, name) in
        [(Resource::Services, "services"), (Resource::EndpointSlices, "endpointslices"), (Resource::Nodes, "nodes")]
    {
        let list: Json = std::fs::read_to_string(recorded().join(name).with_extension("json")).unwrap().parse().unwrap();
        let Some(Json::Array(items)) = list.get("items") else { panic!("{name} is not a list") };
        for item in items {
            server.load(resource, item.clone()).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let source = ApiSource::new(
        connect(Some(&kubeconfig), &[], &Freshness::new()).await.unwrap(),
        node_name.to_owned(),
        Tuning::default(),
        Freshness::new(),
    );
    let (sender, mut events) = mpsc::channel(16);
    let task = tokio::spawn(async move { source.run(sender).await });
    let (mut objects, mut listed) = (Vec::new(), 0);
    while listed < Kind::ALL.len() {
        match timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
            Event::Applied(object) => objects.push(object),
            Event::Listed(_) => listed += 1,
            Event::Listing(_) => {}
            other => panic!("{other:?}"),
        }
    }
    task.abort();
    objects
}

fn from_files(path: &Path, node_name: &str) -> Vec<Object> {
    let events = ManifestSource::open(path, node_name.to_owned(), None).unwrap().read_once();
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Applied(object) => Some(object),
            Event::Listing(_) | Event::Listed(_) => None,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn sorted(mut objects: Vec<Object>) -> Vec<Object> {
    objects.sort_by_key(ToString::to_string);
    objects
}

#[tokio::test]
async fn both_sources_tell_the_same_of_what_was_recorded() {
    let from_api = sorted(from_api("node-1").await);
    let from_files = sorted(from_files(&recorded(), "node-1"));
    let names = |objects: &[Object]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&from_api), names(&from_files));
    // 18 Services less the headless one and the one of another proxy, 17 slices less the headless one, three Nodes.
    assert_eq!(from_api.len(), 16 + 16 + 3);
    for (by_api, by_file) in from_api.iter().zip(&from_files) {
        assert_eq!(by_api, by_file);
        assert_eq!(by_api.metadata().managed_fields, None);
    }
}
