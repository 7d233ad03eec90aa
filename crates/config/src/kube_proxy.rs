//! The `KubeProxyConfiguration`, read as kube-proxy reads it: what it does not know is a remark, what makes no sense is a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::document::{Document, Found, Setting};
use crate::duration::parse_duration;
use crate::field::{Effect, FIELDS, Field, HEALTHZ_PORT, METRICS_PORT};
use crate::kind::Kind;
use crate::problem::Problem;
use crate::tree::{Entry, Value};

/// The fields that have a value, by path: the line and the value.
type Given = BTreeMap<&'static str, (usize, Vec<String>)>;

/// Reads the document that begins on `line`.
pub(crate) fn read(line: usize, entries: &[Entry], found: &mut Found) {
    let mut given = Given::new();
    walk("", entries, &mut given, found);
    check(&given, found);
    default(line, &mut given);
    for field in FIELDS {
        let Some((line, values)) = given.remove(field.path) else { continue };
        if is_idle(field, &values) {
            found.configuration.idle.extend(reason(field).map(|reason| (field.path, reason)));
        }
        let zero = matches!(field.effect, Effect::FlagUnlessZero(_) | Effect::None(..)) && is_zero(field.kind, &values);
        if let Some(flag) = field.flag().filter(|_| !zero) {
            let (field, flag) = (field.path.to_owned(), flag.to_owned());
            found.configuration.settings.push(Setting { document: Document::KubeProxy, line, field, flag, values });
        }
    }
}

fn walk(prefix: &str, entries: &[Entry], given: &mut Given, found: &mut Found) {
    let mut seen = BTreeSet::new();
    for Entry { line, key, node } in entries {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if !seen.insert(key) {
            found.configuration.remarks.push(Problem::new(*line, &path, "is there twice; the last one counts"));
        }
        if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
            match field.kind.read(node) {
                Ok(Some(values)) => _ = given.insert(field.path, (*line, values)),
                Ok(None) => _ = given.remove(field.path),
                Err((line, message)) => found.problems.push(Problem::new(line, &path, message)),
            }
        } else if FIELDS.iter().any(|field| field.path.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.'))) {
            match &node.value {
                Value::Map(entries) => walk(&path, entries, given, found),
                Value::Null => {}
                other => found.problems.push(Problem::new(node.line, &path, format!("is {}; expected fields", other.describe()))),
            }
        } else if !(prefix.is_empty() && matches!(key.as_str(), "apiVersion" | "kind")) {
            found.configuration.remarks.push(Problem::new(*line, &path, "is no field of a KubeProxyConfiguration; it is ignored"));
        }
    }
}

/// What single fields cannot tell.
fn check(given: &Given, found: &mut Found) {
    let one = |path: &str| given.get(path).and_then(|(line, values)| Some((*line, values.first()?.as_str())));
    let mut wrong = |line, path: &str, message: String| found.problems.push(Problem::new(line, path, message));
    if let Some((line, mode)) = one("mode").filter(|(_, mode)| *mode != "ipvs") {
        let message = format!("is {mode:?}; kube-ipvs serves with IPVS alone: set it to ipvs, or keep kube-proxy for this mode");
        wrong(line, "mode", message);
    }
    let duration = |path: &str| {
        one(path).and_then(|(line, text)| Some((line, parse_duration(text)?))).filter(|(_, duration)| !duration.is_zero())
    };
    let period = duration("ipvs.syncPeriod").map_or(std::time::Duration::from_secs(30), |(_, period)| period);
    if let Some((line, _)) = duration("ipvs.minSyncPeriod").filter(|(_, least)| *least > period) {
        wrong(line, "ipvs.minSyncPeriod", "is longer than ipvs.syncPeriod; expected at most that".to_owned());
    }
    let mode = one("detectLocalMode").map_or("ClusterCIDR", |(_, mode)| mode);
    for (of_mode, path) in
        [("BridgeInterface", "detectLocal.bridgeInterface"), ("InterfaceNamePrefix", "detectLocal.interfaceNamePrefix")]
    {
        if let Some((line, _)) = one("detectLocalMode").filter(|(_, mode)| *mode == of_mode && !given.contains_key(path)) {
            wrong(line, path, format!("is empty; with detectLocalMode {of_mode} it is needed"));
        }
    }
    if let Some((line, networks)) = given.get("clusterCIDR").filter(|_| mode == "ClusterCIDR") {
        let is_v4 = |network: &String| network.parse::<IpNetwork>().is_ok_and(|network| network.is_ipv4());
        let of_v4 = networks.iter().filter(|network| is_v4(network)).count();
        if of_v4 > 1 || networks.len() - of_v4 > 1 {
            wrong(*line, "clusterCIDR", format!("is {:?}; expected one network, or one of each family", networks.join(",")));
        }
    }
    if let Some((line, address)) = one("bindAddress").filter(|(_, address)| !is_unspecified(address)) {
        let message =
            format!("is {address}, of which only the family counts; see --nodeport-addresses for where node ports are served");
        found.configuration.remarks.push(Problem::new(line, "bindAddress", message));
    }
}

/// What kube-proxy does where nothing is said, and this agent by itself would not.
fn default(line: usize, given: &mut Given) {
    let is_v6 = given
        .get("bindAddress")
        .and_then(|(_, values)| values.first()?.parse().ok())
        .is_some_and(|address: IpAddr| address.is_ipv6());
    if is_v6 {
        given.entry("healthzBindAddress").or_insert_with(|| (line, vec![format!("[::]:{HEALTHZ_PORT}")]));
        given.entry("metricsBindAddress").or_insert_with(|| (line, vec![format!("[::1]:{METRICS_PORT}")]));
    }
    given.entry("nodePortAddresses").or_insert_with(|| (line, vec!["all".to_owned()]));
}

fn is_unspecified(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

/// Whether somebody may think that it does something.
fn is_idle(field: &Field, values: &[String]) -> bool {
    let is_default = values.first().is_some_and(|value| values.len() == 1 && value == field.default);
    matches!(field.effect, Effect::None(..)) && !is_default && !is_zero(field.kind, values)
}

const fn reason(field: &Field) -> Option<&'static str> {
    match field.effect {
        Effect::None(_, reason) => Some(reason),
        _ => None,
    }
}

/// Go has zero where nothing was given, and kubeadm writes it out.
fn is_zero(kind: Kind, values: &[String]) -> bool {
    let zero = match kind {
        Kind::Duration | Kind::Nanoseconds => "0s",
        Kind::Integer(..) | Kind::Number | Kind::Quantity => "0",
        _ => return false,
    };
    values.iter().all(|value| value == zero)
}
