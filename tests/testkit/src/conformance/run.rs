//! Runs the cases of a file side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::conformance::case::{Case, HealthCheck, Kind, Step};
use crate::conformance::compare::{self, Objects, compare};
use crate::conformance::node::{Node, place};
use crate::conformance::observed::Observed;
use crate::conformance::packet_rules;
use crate::{Family, Result};

/// How long the agent may take to bring about what a step wants, after it has read the step's changes. A real server of UDP that leaves stays
/// for two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's default `--metrics-bind-address`.
const METRICS: &str = "127.0.0.1:10249";

/// The cases of a file, with those among them whose difference is intended.
pub struct Suite {
    cases: Vec<Value>,
    /// Defect and reason by case.
    intended: BTreeMap<String, (String, String)>,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel is as the case says.
    Agree,
    /// It is not, and the defect of kube-proxy's that is named here is why.
    Intended {
        /// The defect's number and the reason.
        because: String,
    },
    /// It is not, for these differences.
    Disagree(Vec<String>),
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    agree: usize,
    intended: usize,
    disagree: usize,
}

impl Summary {
    /// Whether there was a case, and none that disagrees.
    #[must_use]
    pub fn is_good(self) -> bool {
        self.disagree == 0 && self.agree + self.intended > 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agree, intended, disagree } = self;
        write!(formatter, "conformance: {agree} agree, {intended} intended differences, {disagree} disagree")
    }
}

impl Suite {
    /// Reads a file of cases and the list of intended differences: an object of case ids, each with `defect` and `reason`.
    ///
    /// # Errors
    /// When one of them is not what it should be as a whole. A single broken case is not that.
    pub fn read(cases: &str, intended: &str) -> Result<Self> {
        let file: Value = serde_json::from_str(cases).context("the file of cases is no JSON")?;
        if let Some(version) = file.get("schema_version").filter(|version| **version != 1) {
            bail!("the file of cases has schema_version {version}; this program knows 1");
        }
        let cases = file.get("cases").unwrap_or(&file).as_array().context("the file has no list of cases")?.clone();
        let list: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(intended)
            .context("the list of intended differences is not of the form {ID: {\"defect\": …, \"reason\": …}}")?;
        let mut intended = BTreeMap::new();
        for (id, mut entry) in list {
            let mut part = |key: &str| {
                entry
                    .remove(key)
                    .filter(|text| !text.is_empty())
                    .with_context(|| format!("the intended difference {id} has no {key}"))
            };
            intended.insert(id.clone(), (part("defect")?, part("reason")?));
        }
        Ok(Self { cases, intended })
    }

    /// Runs the cases whose ids contain one of `filters` (all when there is none), `jobs` at a time, and tells `report` of each, in the order of the
    /// file.
    pub fn run(&self, filters: &[String], jobs: usize, mut report: impl FnMut(&str, &Verdict, Duration)) -> Summary {
        let chosen: Vec<(String, &Value)> = self.cases.iter().enumerate().map(|(number, case)| (id(number, case), case)).collect();
        let chosen: Vec<_> =
            chosen.into_iter().filter(|(id, _)| filters.is_empty() || filters.iter().any(|filter| id.contains(filter))).collect();
        let next = AtomicUsize::new(0);
        let mut summary = Summary::default();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                let (sender, next, chosen) = (sender.clone(), &next, &chosen);
                scope.spawn(move || {
                    while let Some((number, (id, case))) = {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        chosen.get(number).map(|case| (number, case))
                    } {
                        let start = std::time::Instant::now();
                        let verdict = self.verdict(id, case);
                        // The receiver lives until all threads have ended.
                        let _ = sender.send((number, verdict, start.elapsed()));
                    }
                });
            }
            drop(sender);
            let mut waiting = BTreeMap::new();
            let mut due = 0;
            for (number, verdict, took) in receiver {
                waiting.insert(number, (verdict, took));
                while let Some((verdict, took)) = waiting.remove(&due) {
                    let id = chosen.get(due).map_or("", |(id, _)| id.as_str());
                    match verdict {
                        Verdict::Agree => summary.agree += 1,
                        Verdict::Intended { .. } => summary.intended += 1,
                        Verdict::Disagree(_) => summary.disagree += 1,
                    }
                    report(id, &verdict, took);
                    due += 1;
                }
            }
        });
        summary
    }

    fn verdict(&self, id: &str, case: &Value) -> Verdict {
        // One broken case must not stop the others, whatever is broken about it.
        let result =
            catch_unwind(AssertUnwindSafe(|| run(case))).unwrap_or_else(|_| Err(anyhow::anyhow!("this program failed at it")));
        let intended = self.intended.get(id);
        match (result, intended) {
            (Err(error), _) => Verdict::Disagree(vec![format!("{error:#}")]),
            (Ok(differences), None) if differences.is_empty() => Verdict::Agree,
            (Ok(differences), Some((defect, _))) if differences.is_empty() => {
                Verdict::Disagree(vec![format!("it agrees, and is listed as an intended difference ({defect})")])
            }
            (Ok(_), Some((defect, reason))) => Verdict::Intended { because: format!("{defect}: {reason}") },
            (Ok(differences), None) => Verdict::Disagree(differences),
        }
    }
}

fn id(number: usize, case: &Value) -> String {
    case.get("id").and_then(Value::as_str).map_or_else(|| format!("case {number}, which has no id"), str::to_owned)
}

/// How the kernel comes out of `case` differently from what it says.
fn run(case: &Value) -> Result<Vec<String>> {
    let case = Case::read(case).context("this case cannot be read")?;
    let mut differences = case.unknown.clone();
    if case.config.only == Some(Family::V6) {
        bail!("config.families: the agent cannot be told to leave out IPv4");
    }
    let [first, then @ ..] = case.steps.as_slice() else { bail!("there is nothing to do") };
    let mut node = Node::new(&case)?;
    node.connect_before(&case.pre).context("needs connections")?;
    let mut objects = Objects::new();
    let mut deleted = BTreeSet::new();
    let has_connections = case.pre.virtual_servers.iter().any(|server| server.connections().next().is_some());
    let keeps_running = !then.is_empty() || first.needs_running_agent() || has_connections;

    for (number, step) in case.steps.iter().enumerate() {
        node.change(step)?;
        for object in &step.upserts {
            objects.insert(object.name.clone(), object.value.clone());
        }
        step.deletions.iter().for_each(|name| drop(objects.remove(name)));
        match (number, keeps_running) {
            (0, false) => node.synchronise()?,
            (0, true) => node.start_agent()?,
            _ => node.let_read(),
        }
        deleted.retain(|id| !step.flows.iter().any(|flow| flow.id == *id));
        deleted.extend(step.wanted.flows_deleted.iter().cloned());
        let look = |observed: &Observed| look(&case, step, &node, &objects, &deleted, observed);
        for difference in node.settle(!step.wanted.rules.is_empty(), PATIENCE, look)? {
            differences.push(if then.is_empty() { difference } else { format!("step {number}: {difference}") });
        }
    }
    Ok(differences)
}

fn look(
    case: &Case,
    step: &Step,
    node: &Node,
    objects: &Objects,
    deleted: &BTreeSet<String>,
    observed: &Observed,
) -> Result<Vec<String>> {
    let wanted = &step.wanted;
    let mut differences = compare::differences(wanted, observed, objects)?;
    for (family, rules) in &wanted.rules {
        differences.extend(packet_rules::differences(*family, rules, observed, case.config.random_fully));
    }
    let gone = node.flows.ports().iter().filter(|(_, port)| !observed.flows.contains(port)).map(|(id, _)| id.clone()).collect();
    differences.extend(compare("flows deleted", deleted, &gone));
    if step.needs_running_agent() {
        differences.extend(health_checks(wanted.health_checks.as_slice(), objects, node)?);
        differences.extend(no_local_endpoints(&wanted.no_local_endpoints, node)?);
    }
    Ok(differences)
}

/// The servers of health check node ports: those that are wanted answer, and others that a Service names do not.
fn health_checks(wanted: &[HealthCheck], objects: &Objects, node: &Node) -> Result<Vec<String>> {
    let named = objects.iter().filter(|((kind, ..), _)| *kind == Kind::Service);
    let named = named
        .filter_map(|(_, service)| service.pointer("/spec/healthCheckNodePort")?.as_u64())
        .filter_map(|port| u16::try_from(port).ok());
    let closed: BTreeSet<u16> = named.filter(|port| *port > 0 && !wanted.iter().any(|check| check.port == *port)).collect();
    let mut requests: Vec<_> = wanted.iter().map(|check| (place(node.address(check.family), check.port), "/")).collect();
    requests.extend(closed.iter().map(|port| (place(node.address(Family::V4), *port), "/")));
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let answers = node.fetch(&requests)?;
    ensure!(answers.len() == requests.len(), "{} answers to {} requests", answers.len(), requests.len());
    let (open, closed_answers) = answers.split_at_checked(wanted.len()).context("answers are missing")?;

    let mut differences = Vec::new();
    for (check, answer) in wanted.iter().zip(open) {
        let place = place(node.address(check.family), check.port);
        let status = if check.local_endpoints > 0 { "HTTP/1.1 200" } else { "HTTP/1.1 503" };
        let body: Value = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default();
        let part = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let service = format!("{}/{}", part("/service/namespace"), part("/service/name"));
        let count = body.get("localEndpoints").and_then(Value::as_u64);
        if !answer.starts_with(status) || service != check.service || count != Some(check.local_endpoints) {
            let first = answer.lines().next().unwrap_or_default();
            differences.push(format!(
                "health check {place}: wanted {status}, {} and {} endpoints; the answer is {first:?} {body}",
                check.service, check.local_endpoints
            ));
        }
    }
    for (port, answer) in closed.iter().zip(closed_answers) {
        if !answer.starts_with("error: cannot connect") {
            differences
                .push(format!("health check port {port} answers, and should not: {:?}", answer.lines().next().unwrap_or_default()));
        }
    }
    Ok(differences)
}

/// The metric of this name, whatever it is prefixed with, by family and policy.
fn no_local_endpoints(wanted: &[(Family, String, u64)], node: &Node) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let answer = node.fetch(&[(METRICS.to_owned(), "/metrics")])?.concat();
    let mut differences = Vec::new();
    for (family, policy, count) in wanted {
        let says = |line: &str| {
            let (name, rest) = line.split_once('{')?;
            let (labels, value) = rest.split_once('}')?;
            let has = |value: &str| labels.to_lowercase().contains(&format!("=\"{}\"", value.to_lowercase()));
            (name.contains("no_local_endpoints") && has(&family.to_string()) && has(policy)).then(|| value.trim().to_owned())
        };
        match answer.lines().find_map(says) {
            None => differences.push(format!("no_local_endpoints of {family}, {policy}: the agent has no such metric")),
            Some(value) if value != count.to_string() => {
                differences.push(format!("no_local_endpoints of {family}, {policy}: wanted {count}, is {value}"));
            }
            Some(_) => {}
        }
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_broken_as_a_whole_is_refused_with_a_sentence() {
        let error = |cases: &str, intended: &str| format!("{:#}", Suite::read(cases, intended).map(|_| ()).unwrap_err());
        assert!(error("{", "{}").contains("no JSON"));
        assert!(error("{\"schema_version\": 2, \"cases\": []}", "{}").contains("schema_version 2"));
        assert!(error("{\"cases\": 3}", "{}").contains("no list of cases"));
        assert!(error("[]", "{\"x\": {\"defect\": \"C1\"}}").contains("has no reason"));
    }

    #[test]
    fn broken_cases_disagree_and_the_others_go_on() {
        let suite = Suite::read("{\"cases\": [7, {\"id\": \"x\"}]}", "{}").unwrap();
        let mut told = Vec::new();
        let summary = suite.run(&[], 2, |id, verdict, _| told.push((id.to_owned(), verdict.clone())));
        assert_eq!(summary.to_string(), "conformance: 0 agree, 0 intended differences, 2 disagree");
        assert!(!summary.is_good());
        assert_eq!(told.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["case 0, which has no id", "x"]);
        assert!(matches!(&told[1].1, Verdict::Disagree(reasons) if reasons[0].contains("no node")));
    }
}
