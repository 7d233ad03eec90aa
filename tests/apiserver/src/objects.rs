//! Objects on their way into the store: keys, names, and the metadata a server adds.

use crate::event;
use crate::json::Json;
use crate::resource::Resource;
use crate::status::Failure;
use crate::store::{Object, Store};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// An object that the double cannot hold.
#[derive(Debug, PartialEq)]
pub struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// `namespace/name`; objects without a namespace are in `default`.
pub(crate) fn key(resource: Resource, namespace: Option<&str>, name: &str) -> String {
    match (resource.namespaced(), namespace) {
        (true, namespace) => format!("{}/{name}", namespace.unwrap_or("default")),
        (false, _) => name.to_owned(),
    }
}

/// Writes `object` as `kubectl apply` would: new, or in place of what has its name.
pub(crate) fn apply(store: &Store, mut object: Json) -> Result<Object, Unusable> {
    let resource = Resource::of_object(&object).ok_or_else(|| {
        let kind = object.str_at(&["kind"]).unwrap_or("no kind");
        let version = object.str_at(&["apiVersion"]).unwrap_or("no apiVersion");
        Unusable(format!("{kind} of {version} is not served: only {} are", Resource::ALL.map(Resource::kind).join(", ")))
    })?;
    let key = prepare(resource, &mut object)?;
    Ok(store.write(resource, &key, |version, before| finish(resource, object, version, before)))
}

/// Puts in `object` just as it is, version and all.
pub(crate) fn load(store: &Store, resource: Resource, mut object: Json) -> Result<(), Unusable> {
    let key = prepare(resource, &mut object)?;
    let version = object.str_at(&["metadata", "resourceVersion"]).and_then(|text| text.parse().ok());
    let version = version.ok_or_else(|| Unusable(format!("{key} has no metadata.resourceVersion")))?;
    store.load(resource, &key, version, object);
    Ok(())
}

/// Answers a PATCH with a JSON merge patch (RFC 7386). A strategic merge patch is the same where it merges no lists.
pub(crate) fn patch(store: &Store, resource: Resource, key: &str, name: &str, patch: &Json) -> Result<Object, Failure> {
    let mut object =
        store.get(resource, key).map(|object| Json::clone(&object)).ok_or_else(|| Failure::not_found(resource, name))?;
    object.merge(patch);
    object.remove("kind");
    object.remove("apiVersion");
    Ok(store.write(resource, key, |version, before| finish(resource, object, version, before)))
}

/// Answers a POST.
pub(crate) fn create(store: &Store, resource: Resource, namespace: &str, mut object: Json) -> Result<Object, Failure> {
    object.remove("kind");
    object.remove("apiVersion");
    let generate = object.str_at(&["metadata", "generateName"]).map(str::to_owned);
    let name = match (object.str_at(&["metadata", "name"]), &generate) {
        (Some(name), _) if !name.is_empty() => name.to_owned(),
        (_, Some(generate)) => format!("{generate}{}", suffix(store.version())),
        _ => return Err(Failure::invalid_name(resource, "", "metadata.name", "")),
    };
    if let Some(generate) = generate.as_deref().filter(|generate| !is_prefix_of_name(generate)) {
        return Err(Failure::invalid_name(resource, &name, "metadata.generateName", generate));
    }
    if !is_subdomain(&name) {
        return Err(Failure::invalid_name(resource, &name, "metadata.name", &name));
    }
    if resource == Resource::Events {
        let causes = event::causes(&object, namespace);
        if !causes.is_empty() {
            return Err(Failure::invalid(resource, &name, &causes));
        }
    }
    let key = key(resource, Some(namespace), &name);
    if store.get(resource, &key).is_some() {
        return Err(Failure::already_exists(resource, &name));
    }
    if let Some(metadata) = object.entry("metadata") {
        metadata.set("name", Json::String(name));
        metadata.set("namespace", namespace.into());
    }
    Ok(store.write(resource, &key, |version, before| finish(resource, object, version, before)))
}

fn prepare(resource: Resource, object: &mut Json) -> Result<String, Unusable> {
    object.remove("kind");
    object.remove("apiVersion");
    let Some(name) = object.str_at(&["metadata", "name"]).map(str::to_owned).filter(|name| !name.is_empty()) else {
        return Err(Unusable(format!("a {} has no metadata.name", resource.kind())));
    };
    let namespace = object.str_at(&["metadata", "namespace"]).map(str::to_owned);
    if resource.namespaced()
        && namespace.is_none()
        && let Some(metadata) = object.entry("metadata")
    {
        metadata.set("namespace", "default".into());
    }
    Ok(key(resource, namespace.as_deref(), &name))
}

/// Adds what a server adds to every object; an object that was there keeps its identity, and one that was exported elsewhere brings it.
fn finish(resource: Resource, mut object: Json, version: u64, before: Option<&Json>) -> Json {
    let kept = |field: &str| {
        let of = |object: &Json| object.at(&["metadata", field]).cloned();
        before.and_then(of).or_else(|| of(&object))
    };
    let uid = kept("uid").unwrap_or_else(|| Json::String(uid(resource, version)));
    let created = kept("creationTimestamp").unwrap_or_else(|| Json::String(timestamp()));
    if let Some(metadata) = object.entry("metadata") {
        metadata.set("uid", uid);
        metadata.set("resourceVersion", Json::String(version.to_string()));
        metadata.set("creationTimestamp", created);
    }
    object
}

/// Unique because versions are, and the same in every run.
fn uid(resource: Resource, version: u64) -> String {
    format!("00000000-0000-4000-8{:03}-{version:012x}", resource as u8)
}

/// Five characters of the alphabet Kubernetes uses, which has no vowels.
fn suffix(version: u64) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut number = version.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let digit = || {
        let letter = ALPHABET.get(usize::try_from(number % 27).unwrap_or(0)).copied().unwrap_or(b'x');
        number /= 27;
        char::from(letter)
    };
    std::iter::repeat_with(digit).take(5).collect()
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            let bytes = label.as_bytes();
            alphanumeric(bytes.first())
                && alphanumeric(bytes.last())
                && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        })
}

/// A prefix is checked with its trailing dash taken away, as the suffix will follow it.
fn is_prefix_of_name(prefix: &str) -> bool {
    is_subdomain(&prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |stem| format!("{stem}a")))
}

/// Now, in RFC 3339 with whole seconds.
fn timestamp() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, counted in 400-year eras that begin on 1 March (Howard Hinnant's chrono algorithms).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_kubernetes_does() {
        for (name, right) in [("web", true), ("web.0-a", true), ("web.", false), ("-a", false), ("A", false), ("", false)] {
            assert_eq!(is_subdomain(name), right, "{name}");
        }
        assert!(is_prefix_of_name("web-") && !is_prefix_of_name("web."));
    }

    #[test]
    fn apply_keeps_the_identity_of_what_was_there() {
        let store = Store::new();
        let object: Json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}"#.parse().unwrap();
        let first = apply(&store, object.clone()).unwrap();
        let second = apply(&store, object).unwrap();
        assert_eq!(first.str_at(&["metadata", "uid"]), second.str_at(&["metadata", "uid"]));
        assert_ne!(first.str_at(&["metadata", "resourceVersion"]), second.str_at(&["metadata", "resourceVersion"]));
        assert_eq!(second.str_at(&["metadata", "namespace"]), Some("default"));
    }
}
