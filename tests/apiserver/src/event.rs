//! What the API server asks of an Event that is created through `events.k8s.io/v1` (`ValidateEventCreate` in
//! `pkg/apis/core/validation/events.go`).

use crate::json::Json;

/// The limits of `note`, `reason` and `action`, and `reportingInstance`, in bytes.
const MAX_NOTE: usize = 1024;
const MAX_WORD: usize = 128;

/// What is wrong with a field, as `causes` have it.
#[derive(Debug, PartialEq)]
pub(crate) struct Cause {
    pub(crate) reason: &'static str,
    pub(crate) field: &'static str,
    pub(crate) message: String,
}

impl Cause {
    fn required(field: &'static str) -> Self {
        Self { reason: "FieldValueRequired", field, message: "Required value".to_owned() }
    }

    fn invalid(field: &'static str, value: &str, why: &str) -> Self {
        Self { reason: "FieldValueInvalid", field, message: format!("Invalid value: {}: {why}", Json::from(value)) }
    }
}

/// Everything that is wrong with `event`, which is to be in `namespace`.
pub(crate) fn causes(event: &Json, namespace: &str) -> Vec<Cause> {
    let text = |path: &[&str]| event.str_at(path).unwrap_or_default();
    let mut causes = Vec::new();
    let regarding = text(&["regarding", "namespace"]);
    let fits = if regarding.is_empty() { matches!(namespace, "default" | "kube-system") } else { regarding == namespace };
    if !fits {
        causes.push(Cause::invalid("involvedObject.namespace", regarding, "does not match event.namespace"));
    }
    for (field, limit) in
        [("reportingController", usize::MAX), ("reportingInstance", MAX_WORD), ("action", MAX_WORD), ("reason", MAX_WORD)]
    {
        match text(&[field]) {
            "" => causes.push(Cause::required(field)),
            value if value.len() > limit => causes.push(too_long(field, limit)),
            _ => {}
        }
    }
    if text(&["note"]).len() > MAX_NOTE {
        causes.push(too_long("message", MAX_NOTE));
    }
    if text(&["eventTime"]).is_empty() {
        causes.push(Cause::required("eventTime"));
    }
    let kind = text(&["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        causes.push(Cause::invalid("type", "", &format!("has invalid value: {kind}")));
    }
    causes
}

fn too_long(field: &'static str, limit: usize) -> Cause {
    Cause::invalid(field, "", &format!("can have at most {limit} characters"))
}
