//! The `Status` bodies of failures, worded as kube-apiserver words them.

use crate::event::Cause;
use crate::json::Json;
use crate::resource::Resource;
use std::fmt::Write as _;

/// A failure as the API server reports it: an HTTP status and the body that explains it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: u16,
    /// Seconds, for the Retry-After header.
    pub(crate) retry_after: Option<u32>,
    message: String,
    reason: &'static str,
    details: String,
    token: Option<String>,
}

impl Failure {
    fn of(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, retry_after: None, message: message.into(), reason, details: String::new(), token: None }
    }

    fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    pub(crate) fn unauthorized() -> Self {
        Self::of(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(user: &str, verb: &str, resource: Resource, namespace: Option<&str>) -> Self {
        let (plural, group) = (resource.plural(), resource.group());
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let place = namespace
            .map_or_else(|| "at the cluster scope".to_owned(), |namespace| format!("in the namespace {}", quoted(namespace)));
        let message = format!(
            r#"{qualified} is forbidden: User {} cannot {verb} resource "{plural}" in API group "{group}" {place}"#,
            quoted(user)
        );
        let details = if group.is_empty() {
            format!(r#"{{"kind":"{plural}"}}"#)
        } else {
            format!(r#"{{"group":"{group}","kind":"{plural}"}}"#)
        };
        Self::of(403, "Forbidden", message).with_details(details)
    }

    pub(crate) fn not_found(resource: Resource, name: &str) -> Self {
        let (plural, group) = (resource.plural(), resource.group());
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let group_detail = if group.is_empty() { String::new() } else { format!(r#""group":"{group}","#) };
        Self::of(404, "NotFound", format!("{qualified} {} not found", quoted(name)))
            .with_details(format!(r#"{{"name":{},{group_detail}"kind":"{plural}"}}"#, quoted(name)))
    }

    pub(crate) fn no_such_path() -> Self {
        Self::of(404, "NotFound", "the server could not find the requested resource").with_details("{}")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::of(405, "MethodNotAllowed", "the server does not allow this method on the requested resource").with_details("{}")
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::of(400, "BadRequest", message)
    }

    pub(crate) fn bad_resource_version(text: &str) -> Self {
        // A real server answers 500 and no reason here: the error comes from deep inside its storage layer.
        let text = quoted(text);
        Self::of(500, "", format!("resourceVersion: Invalid value: {text}: strconv.ParseUint: parsing {text}: invalid syntax"))
    }

    pub(crate) fn invalid_options(field: &str, message: &str) -> Self {
        Self::of(422, "Invalid", format!(r#"ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {message}"#)).with_details(format!(
            r#"{{"group":"meta.k8s.io","kind":"ListOptions","causes":[{{"reason":"FieldValueForbidden","message":{},"field":"{field}"}}]}}"#,
            quoted(&format!("Forbidden: {message}"))
        ))
    }

    pub(crate) fn invalid_name(resource: Resource, name: &str, field: &str, value: &str) -> Self {
        let cause = format!(
            "Invalid value: {}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            quoted(value)
        );
        let (kind, quoted_name) = (resource.kind(), quoted(name));
        Self::of(422, "Invalid", format!("{kind} {quoted_name} is invalid: {field}: {cause}")).with_details(format!(
            r#"{{"name":{quoted_name},"kind":"{kind}","causes":[{{"reason":"FieldValueInvalid","message":{},"field":"{field}"}}]}}"#,
            quoted(&cause)
        ))
    }

    pub(crate) fn invalid(resource: Resource, name: &str, causes: &[Cause]) -> Self {
        let (kind, name) = (resource.kind(), quoted(name));
        let sentences: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let sentences = match sentences.as_slice() {
            [sentence] => sentence.clone(),
            sentences => format!("[{}]", sentences.join(", ")),
        };
        let cause = |Cause { reason, field, message }: &Cause| {
            format!(r#"{{"reason":"{reason}","message":{},"field":"{field}"}}"#, quoted(message))
        };
        let causes: Vec<_> = causes.iter().map(cause).collect();
        Self::of(422, "Invalid", format!("{kind} {name} is invalid: {sentences}"))
            .with_details(format!(r#"{{"name":{name},"kind":"{kind}","causes":[{}]}}"#, causes.join(",")))
    }

    pub(crate) fn already_exists(resource: Resource, name: &str) -> Self {
        let (plural, name) = (resource.plural(), quoted(name));
        Self::of(409, "AlreadyExists", format!("{plural} {name} already exists"))
            .with_details(format!(r#"{{"name":{name},"kind":"{plural}"}}"#))
    }

    pub(crate) fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let mut failure = Self::of(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"))
            .with_details(
                r#"{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}"#,
            );
        failure.retry_after = Some(1);
        failure
    }

    pub(crate) fn expired_watch(asked: u64, floor: u64) -> Self {
        Self::of(410, "Expired", format!("too old resource version: {asked} ({floor})"))
    }

    pub(crate) fn expired_list() -> Self {
        Self::of(410, "Expired", "The resourceVersion for the provided list is too old.")
    }

    pub(crate) fn expired_continue(inconsistent: String) -> Self {
        let mut failure = Self::of(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
             parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
             token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was \
             returned and now may show up in the list.",
        );
        failure.token = Some(inconsistent);
        failure
    }

    pub(crate) fn no_streaming_lists() -> Self {
        let message =
            "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
        Self::of(500, "InternalError", message)
    }

    /// A failure made on demand.
    pub(crate) fn on_demand(code: u16) -> Self {
        match code {
            401 => Self::unauthorized(),
            410 => Self::of(410, "Expired", "too old resource version: 1 (2)"),
            429 => {
                let mut failure = Self::of(429, "TooManyRequests", "Too many requests, please try again later.")
                    .with_details(r#"{"retryAfterSeconds":1}"#);
                failure.retry_after = Some(1);
                failure
            }
            503 => Self::of(503, "ServiceUnavailable", "the server is currently unable to handle the request"),
            code => Self::of(code, "InternalError", format!("Internal error occurred: status {code} was asked for")),
        }
    }

    /// The `Status` object, in the order of members that the API server writes.
    pub(crate) fn body(&self) -> String {
        let metadata = self.token.as_ref().map_or_else(|| "{}".to_owned(), |token| format!(r#"{{"continue":{}}}"#, quoted(token)));
        let mut body = format!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{metadata},"status":"Failure","message":{}"#,
            quoted(&self.message)
        );
        if !self.reason.is_empty() {
            let _ = write!(body, r#","reason":"{}""#, self.reason);
        }
        if !self.details.is_empty() {
            let _ = write!(body, r#","details":{}"#, self.details);
        }
        let _ = write!(body, r#","code":{}}}"#, self.code);
        body
    }
}

/// `text` as a JSON string, quotes included; Go's `%q` agrees on the names that occur here.
fn quoted(text: &str) -> String {
    Json::from(text).to_string()
}
