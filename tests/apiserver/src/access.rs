//! What somebody may do, said to themselves (`kubectl auth can-i`).

use crate::fault::Verb;
use crate::json::Json;
use crate::resource::Resource;
use crate::status::Failure;

/// Where the question is put.
pub(crate) const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// What a review asks about; `None` for what this server does not have, which nobody may see.
pub(crate) fn question(review: &Json) -> Result<Option<(Verb, Resource)>, Failure> {
    let attribute = |name| review.str_at(&["spec", "resourceAttributes", name]);
    let missing = || Failure::bad_request("spec.resourceAttributes has no verb and resource".to_owned());
    let (verb, plural) = attribute("verb").zip(attribute("resource")).ok_or_else(missing)?;
    let resource = Resource::of(attribute("group").unwrap_or_default(), plural);
    let verb = [Verb::Get, Verb::List, Verb::Watch, Verb::Create].into_iter().find(|known| known.name() == verb);
    Ok(verb.zip(resource))
}

/// The review with its answer, as the server sends it back.
pub(crate) fn answer(allowed: bool) -> String {
    format!(
        r#"{{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{{}},"spec":{{}},"status":{{"allowed":{allowed}}}}}"#
    )
}
