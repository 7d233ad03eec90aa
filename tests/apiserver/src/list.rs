//! Lists: resource versions, pages and their continue tokens.

use crate::json::Json;
use crate::request::Query;
use crate::resource::Resource;
use crate::selector::Selection;
use crate::status::Failure;
use crate::store::{Key, Object, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt::Write as _;

/// Where the next page begins and at which version it is read.
#[derive(Debug, PartialEq)]
struct Token {
    /// −1 asks for the present state: the rest of a listing whose own version is forgotten.
    version: i64,
    start: String,
}

/// What `resourceVersion` and `resourceVersionMatch` ask for.
enum At {
    /// The present, and `limit` counts.
    MostRecent,
    /// Whatever a cache holds; caches ignore `limit`.
    Any,
    NotOlderThan(u64),
    Exact(u64),
}

impl Token {
    fn encode(&self) -> String {
        // Go writes the NUL that ends the start key as an escape, as serde_json does.
        let start = Json::from(self.start.as_str());
        URL_SAFE_NO_PAD.encode(format!(r#"{{"v":"meta.k8s.io/v1","rv":{},"start":{start}}}"#, self.version))
    }

    fn decode(text: &str) -> Option<Self> {
        let json: Json = std::str::from_utf8(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?.parse().ok()?;
        let Some(Json::Number(version)) = json.get("rv") else { return None };
        (json.str_at(&["v"]) == Some("meta.k8s.io/v1"))
            .then_some(Self { version: version.as_i64()?, start: json.str_at(&["start"])?.to_owned() })
    }
}

/// The version a list must have reached before it can be answered, if it names one.
pub(crate) fn least_version(query: &Query) -> Result<Option<u64>, Failure> {
    Ok(match at(query)? {
        At::NotOlderThan(version) | At::Exact(version) => Some(version),
        At::MostRecent | At::Any => None,
    })
}

fn at(query: &Query) -> Result<At, Failure> {
    let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    if !query.get("continue").is_empty() {
        if !matching.is_empty() {
            return Err(Failure::invalid_options(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(version, "" | "0") {
            return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
        }
        return Ok(At::MostRecent);
    }
    if version.is_empty() {
        return match matching {
            "" => Ok(At::MostRecent),
            _ => Err(Failure::invalid_options(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
        };
    }
    let number = version.parse::<u64>().map_err(|_| Failure::bad_resource_version(version))?;
    match (number, matching) {
        (0, "Exact") => Err(Failure::invalid_options(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        (0, _) => Ok(At::Any),
        (_, "Exact") => Ok(At::Exact(number)),
        // Without a match, a version with a limit meant exactly that version long before the parameter existed.
        (_, "") if !matches!(query.get("limit"), "" | "0") => Ok(At::Exact(number)),
        (_, "" | "NotOlderThan") => Ok(At::NotOlderThan(number)),
        (_, other) => {
            Err(Failure::invalid_options("resourceVersionMatch", &format!("supported values: Exact, NotOlderThan, not {other}")))
        }
    }
}

/// Answers a list from what the store holds now. The caller has waited for [`least_version`].
pub(crate) fn list(store: &Store, resource: Resource, selection: &Selection, query: &Query) -> Result<String, Failure> {
    let at = at(query)?;
    let limit = match (&at, query.get("limit")) {
        (At::Any, _) | (_, "") => None,
        (_, text) => text
            .parse::<usize>()
            .map(|limit| (limit > 0).then_some(limit))
            .map_err(|_| Failure::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))?,
    };
    let mut start = String::new();
    let (version, mut objects) = match query.get("continue") {
        "" => match at {
            At::MostRecent | At::Any => store.list(resource),
            At::NotOlderThan(least) => match store.list(resource) {
                (version, _) if version < least => return Err(Failure::too_large_resource_version(least, version)),
                found => found,
            },
            At::Exact(exact) if exact > store.version() => return Err(Failure::too_large_resource_version(exact, store.version())),
            At::Exact(exact) => (exact, store.list_at(resource, exact).map_err(|_| Failure::expired_list())?),
        },
        text => {
            let token =
                Token::decode(text).ok_or_else(|| Failure::bad_request("continue key is not valid: illegal base64 data"))?;
            start = token.start;
            match u64::try_from(token.version) {
                Err(_) => store.list(resource),
                Ok(version) => match store.list_at(resource, version) {
                    Ok(objects) => (version, objects),
                    Err(_) => return Err(Failure::expired_continue(Token { version: -1, start }.encode())),
                },
            }
        }
    };
    objects.retain(|(_, object)| selection.matches(resource, object));
    if !start.is_empty() {
        let start = start.trim_start_matches('/');
        objects.retain(|(key, _)| relative(key, selection).as_str() >= start);
    }
    let remaining = limit.map_or(0, |limit| objects.len().saturating_sub(limit));
    if let Some(limit) = limit {
        objects.truncate(limit);
    }
    let next = objects.last().filter(|_| remaining > 0).map(|(key, _)| {
        let version = i64::try_from(version).unwrap_or(-1);
        Token { version, start: format!("/{}\0", relative(key, selection)) }.encode()
    });
    Ok(body(resource, version, next.as_deref(), remaining, selection, &objects))
}

/// The key as seen from the listing: without the namespace when only one is listed.
fn relative(key: &Key, selection: &Selection) -> String {
    match &selection.namespace {
        Some(namespace) => {
            key.strip_prefix(namespace.as_str()).map_or(key.as_str(), |rest| rest.trim_start_matches('/')).to_owned()
        }
        None => key.clone(),
    }
}

fn body(
    resource: Resource,
    version: u64,
    next: Option<&str>,
    remaining: usize,
    selection: &Selection,
    objects: &[(Key, Object)],
) -> String {
    let mut body = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"{version}""#,
        resource.kind(),
        resource.api_version()
    );
    if let Some(next) = next {
        let _ = write!(body, r#","continue":"{next}""#);
        // How many remain is known only where nothing has to be filtered.
        if !selection.narrows() {
            let _ = write!(body, r#","remainingItemCount":{remaining}"#);
        }
    }
    body.push_str(r#"},"items":["#);
    for (index, (_, object)) in objects.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(body, "{comma}{object}");
    }
    body.push_str("]}\n");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_token_reads_and_writes_the_same() {
        let recorded = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MzYwLCJzdGFydCI6Ii93ZWItYWZmaW5pdHlcdTAwMDAifQ";
        let token = Token::decode(recorded).unwrap();
        assert_eq!(token, Token { version: 360, start: "/web-affinity\0".to_owned() });
        assert_eq!(token.encode(), recorded);
    }
}
