//! What became of calls.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::Value;

use crate::{Process, Result};

/// One call's outcome.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer, or why there is none: `refused`, `reset`, `timeout`, `unreachable`, or the kernel's words.
    pub outcome: std::result::Result<Answer, String>,
    /// How long the call took.
    pub took: Duration,
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub name: String,
    /// The server's own address.
    pub local: IpAddr,
    /// The caller's address and port as the server sees them.
    pub peer: SocketAddr,
}

impl Reply {
    /// Reads a line of `probe call`.
    fn parse(line: &str) -> Result<Self> {
        Self::read(&json(line)?, line)
    }

    fn read(value: &Value, line: &str) -> Result<Self> {
        let text =
            |field: &str| value.get(field).and_then(Value::as_str).with_context(|| format!("probe printed no {field:?}: {line}"));
        let ms = value.get("ms").and_then(Value::as_f64).with_context(|| format!("probe printed no \"ms\": {line}"))?;
        let outcome = if value.get("ok") == Some(&Value::Bool(true)) {
            Ok(Answer { name: text("name")?.to_owned(), local: text("local")?.parse()?, peer: text("peer")?.parse()? })
        } else {
            Err(text("error")?.to_owned())
        };
        Ok(Self { outcome, took: Duration::from_secs_f64(ms / 1000.0) })
    }

    /// Reads the output of `probe series`: the replies of each of `count` series.
    pub(crate) fn parse_series(output: &str, count: usize) -> Result<Vec<Vec<Self>>> {
        let mut series = vec![Vec::new(); count];
        for line in output.lines() {
            let value = json(line)?;
            let number = value.get("series").and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
            let replies = number.and_then(|number| series.get_mut(number)).with_context(|| format!("no such series: {line}"))?;
            replies.push(Self::read(&value, line)?);
        }
        Ok(series)
    }

    /// Reads the output of `probe call`; an unfinished last line is left out.
    pub(crate) fn parse_all(output: &str) -> Result<Vec<Self>> {
        output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(Self::parse).collect()
    }
}

fn json(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("probe printed no JSON: {line}"))
}

/// The answers of calls that must all be answered.
///
/// # Errors
/// Names the first call that failed.
pub fn answers(replies: Vec<Reply>) -> Result<Vec<Answer>> {
    let total = replies.len();
    let number = |(at, reply): (usize, Reply)| reply.outcome.map_err(|error| anyhow!("call {} of {total} failed: {error}", at + 1));
    replies.into_iter().enumerate().map(number).collect()
}

/// How many calls each server answered.
#[must_use]
pub fn shares(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(answer.name.as_str()).or_default() += 1;
    }
    shares
}

/// Calls that go on in the background until they are stopped.
#[derive(Debug)]
pub struct Calls(pub(crate) Process);

impl Calls {
    /// The outcomes so far.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn so_far(&self) -> Result<Vec<Reply>> {
        Reply::parse_all(&self.0.output()?)
    }

    /// Stops calling; all outcomes.
    ///
    /// # Errors
    /// When they cannot be read, or the process had ended before.
    pub fn stop(mut self) -> Result<Vec<Reply>> {
        if let Some(status) = self.0.ended()? {
            anyhow::bail!("the calls in the background had ended ({status}):\n{}", self.0.output()?);
        }
        self.0.kill()?;
        self.so_far()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_line_by_line() {
        let replies = Reply::parse_all(concat!(
            r#"{"ok":true,"name":"a","local":"10.244.1.2","peer":"10.244.1.3:4711","ms":1.5}"#,
            "\n",
            r#"{"ok":false,"error":"refused","ms":0.25}"#,
            "\n",
            r#"{"ok":fal"#
        ))
        .unwrap();
        assert_eq!(replies.len(), 2);
        let answer = replies[0].outcome.clone().unwrap();
        assert_eq!((answer.name.as_str(), answer.peer.port()), ("a", 4711));
        assert_eq!(replies[1].outcome, Err("refused".to_owned()));
        assert_eq!(replies[1].took, Duration::from_micros(250));
        assert_eq!(answers(replies).unwrap_err().to_string(), "call 2 of 2 failed: refused");
    }
}
