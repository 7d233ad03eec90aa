//! What an annotation says about how long connections to endpoints that leave are kept.

use std::time::Duration;

use crate::annotation::{Annotation, first_of};
use crate::duration::parse_duration;
use crate::object;
use crate::problem::{Problems, quoted};

const DRAIN_TIMEOUT: Annotation = Annotation("kube-ipvs.io/drain-timeout");

/// How long those of `object` are kept, which is above zero; `None` for as long as those of other Services.
pub(crate) fn parse(object: &object::Service, problems: &mut Problems) -> Option<Duration> {
    let (annotation, text) = first_of(object, [DRAIN_TIMEOUT])?;
    let duration = parse_duration(text).filter(|duration| !duration.is_zero());
    if duration.is_none() {
        problems.add(
            annotation.to_string(),
            format!("is {}, which is no duration above zero such as 30s, 90m or 1h30m; the default holds", quoted(text)),
        );
    }
    duration
}
