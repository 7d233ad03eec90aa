//! Objects are read in part, and that part as the API means it.

use desired::object::{ANNOTATIONS, EndpointSlice, Node, ObjectMeta, Service};
use k8s_openapi::api::{core, discovery};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const SERVICES: &str = include_str!("../../../../tests/recorded/services.json");
const SLICES: &str = include_str!("../../../../tests/recorded/endpointslices.json");
const NODES: &str = include_str!("../../../../tests/recorded/nodes.json");

fn items(list: &str) -> Vec<Value> {
    let list: Value = serde_json::from_str(list).unwrap();
    let items = list["items"].as_array().unwrap().clone();
    assert!(items.len() > 2, "there is too little to read");
    items
}

/// Each part of `part` has to be in `whole`, but for what is left out on purpose: addresses of an endpoint beyond the first.
fn assert_within(part: &Value, whole: &Value, path: &str) {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            for (key, part) in part {
                assert_within(part, whole.get(key).unwrap_or_else(|| panic!("{path}.{key} is made up")), &format!("{path}.{key}"));
            }
        }
        (Value::Array(part), Value::Array(whole)) => {
            assert!(part.len() == whole.len() || path.ends_with(".addresses"), "{path} has {} items", part.len());
            part.iter().zip(whole).for_each(|(part, whole)| assert_within(part, whole, &format!("{path}[]")));
        }
        _ => assert_eq!(part, whole, "{path}"),
    }
}

/// What is read of each of `items`: the same as of the object decoded as a whole, and read again the same.
fn read<T, Whole>(items: &[Value]) -> Vec<T>
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
    Whole: DeserializeOwned + Serialize,
{
    let read = |item: &Value| {
        let text = item.to_string();
        let object: T = serde_json::from_str(&text).unwrap();
        let whole: Whole = serde_json::from_str(&text).unwrap();
        let saved = serde_json::to_value(&object).unwrap();
        assert_within(&saved, &serde_json::to_value(&whole).unwrap(), "");
        assert_eq!(serde_json::from_value::<T>(serde_json::to_value(&whole).unwrap()).unwrap(), object);
        assert_eq!(serde_json::from_value::<T>(saved).unwrap(), object);
        object
    };
    items.iter().map(read).collect()
}

fn annotations(metadata: &ObjectMeta) -> impl Iterator<Item = &String> {
    metadata.annotations.iter().flatten().map(|(name, _)| name)
}

#[test]
fn what_is_read_of_recorded_objects_is_what_they_say() {
    let services = read::<Service, core::v1::Service>(&items(SERVICES));
    let slices = read::<EndpointSlice, discovery::v1::EndpointSlice>(&items(SLICES));
    let nodes = read::<Node, core::v1::Node>(&items(NODES));
    // None of it would be noticed if nothing was read.
    assert!(services.iter().all(|service| service.spec.as_ref().is_some_and(|spec| spec.type_.is_some())));
    assert!(services.iter().any(|service| service.spec.as_ref().is_some_and(|spec| spec.ports.is_some())));
    assert!(
        services.iter().all(|service| service.metadata.creation_timestamp.is_some() && service.metadata.resource_version.is_some())
    );
    assert!(slices.iter().any(|slice| slice.endpoints.iter().flatten().any(|endpoint| endpoint.addresses.first().is_some())));
    assert!(slices.iter().all(|slice| slice.metadata.labels.as_ref().is_some_and(|labels| !labels.is_empty())));
    assert!(nodes.iter().all(|node| node.status.as_ref().is_some_and(|status| status.addresses.is_some())));
    let read: Vec<_> = services.iter().flat_map(|service| annotations(&service.metadata)).collect();
    assert!(!read.is_empty() && read.iter().all(|name| ANNOTATIONS.iter().any(|begin| name.starts_with(begin))), "{read:?}");
}

#[test]
fn null_is_the_same_as_nothing() {
    let bare: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": "web"}, "addressType": "IPv4"})).unwrap();
    let nulls = json!({
        "metadata": {"name": "web", "labels": null, "annotations": null, "creationTimestamp": null},
        "addressType": "IPv4", "endpoints": null, "ports": null,
    });
    assert_eq!(serde_json::from_value::<EndpointSlice>(nulls).unwrap(), bare);
    let endpoint = json!({"metadata": null, "endpoints": [{"addresses": null, "conditions": null, "hints": {"forZones": null}}]});
    let slice: EndpointSlice = serde_json::from_value(endpoint).unwrap();
    assert_eq!(slice.endpoints.unwrap()[0].addresses.first(), None);
    let service: Service = serde_json::from_value(json!({"spec": null, "status": {"loadBalancer": {"ingress": null}}})).unwrap();
    assert_eq!((service.metadata, service.spec), (ObjectMeta::default(), None));
}

#[test]
fn what_is_not_read_may_be_anything() {
    let service = json!({
        "metadata": {"name": "web", "managedFields": "nonsense", "labels": {"app": 7, "k8s-app": "kube-dns"}},
        "spec": {"selector": ["x"], "ports": [{"port": 80, "targetPort": {"newer": "than this"}}], "later": {"a": [1, 2]}},
    });
    let service: Service = serde_json::from_value(service).unwrap();
    assert_eq!(service.metadata.labels.unwrap().into_iter().collect::<Vec<_>>(), [("k8s-app".to_owned(), "kube-dns".to_owned())]);
    assert_eq!(service.spec.unwrap().ports.unwrap()[0].port, 80);
}

#[test]
fn what_is_read_must_be_what_it_should_be() {
    let port = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": "http"}]}});
    let error = serde_json::from_value::<Service>(port).unwrap_err().to_string();
    assert!(error.contains("string \"http\", expected i32"), "{error}");
    assert!(serde_json::from_value::<EndpointSlice>(json!({"endpoints": {"a": 1}})).is_err());
}
