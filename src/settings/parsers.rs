//! Readers of flags' values; their errors say what is allowed.

use std::time::Duration;

use desired::parse_duration;

/// A duration in whole seconds, as sysctls have it.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| duration.subsec_nanos() == 0 && duration.as_secs() <= u64::from(i32::MAX.unsigned_abs()))
        .ok_or_else(|| "expected whole seconds such as 30s or 24h, or 0s to leave what there is".to_owned())
}

/// One of Kubernetes' feature gates, with its position.
pub(super) fn gate(text: &str) -> Result<String, String> {
    let is_gate = |(name, switch): (&str, &str)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) && switch.parse::<bool>().is_ok()
    };
    let text = text.trim();
    text.split_once('=')
        .filter(|parts| is_gate(*parts))
        .map(|_| text.to_owned())
        .ok_or_else(|| "expected NAME=true or NAME=false".to_owned())
}

/// The mode of kube-proxy that this is.
pub(super) fn mode(text: &str) -> Result<String, String> {
    match text {
        "" | "ipvs" => Ok(text.to_owned()),
        _ => Err("kube-ipvs serves with IPVS alone: give ipvs, or keep kube-proxy for this mode".to_owned()),
    }
}
