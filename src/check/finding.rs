//! What a check has found, and how that is printed.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    Ok,
    /// Something may not work, or will not before long.
    Warn,
    /// Something does not work.
    Fail,
}

/// One line of the report. Field names are part of the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at.
    pub(super) check: String,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

/// All of them. Field names are part of the interface.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    counts: Counts,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Counts {
    ok: usize,
    warn: usize,
    fail: usize,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, text: impl fmt::Display) -> Self {
        Self { level: Level::Ok, check: check.into(), text: text.to_string(), remedy: None }
    }

    pub(super) fn warn(check: impl Into<String>, text: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, check: check.into(), text: text.to_string(), remedy: Some(remedy.into()) }
    }

    pub(super) fn fail(check: impl Into<String>, text: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(check, text, remedy) }
    }

    /// One whose text is an error's, which says the remedy itself.
    pub(super) fn error(check: impl Into<String>, error: impl fmt::Display) -> Self {
        Self { level: Level::Fail, ..Self::ok(check, error) }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

impl fmt::Display for Finding {
    /// One line, whatever is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, check, text, remedy } = self;
        let line = match remedy {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text.clone(),
        };
        write!(f, "{level:<4}  {check}: {}", line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl Document {
    pub(super) fn of(findings: Vec<Finding>) -> Self {
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let counts = Counts { ok: count(Level::Ok), warn: count(Level::Warn), fail: count(Level::Fail) };
        Self { counts, findings }
    }

    pub(super) fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.findings.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
        let Counts { ok, warn, fail } = self.counts;
        writeln!(out, "{ok} ok, {warn} warn, {fail} fail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        let findings = vec![
            Finding::ok("kernel", "6.12.1"),
            Finding::warn("INPUT", "its policy\nis DROP", "give --open-input"),
            Finding::fail("module dummy", "there is none", "install it"),
        ];
        let document = Document::of(findings);
        let mut text = Vec::new();
        document.print(&mut text).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r"
        ok    kernel: 6.12.1
        warn  INPUT: its policy is DROP; give --open-input
        fail  module dummy: there is none; install it
        1 ok, 1 warn, 1 fail
        ");
        assert_eq!(document.worst(), Level::Fail);
        let value = serde_json::to_value(&document).unwrap();
        assert_eq!(value["findings"][1]["level"], "warn");
        assert_eq!(value["counts"]["fail"], 1);
        assert!(value["findings"][0].get("remedy").is_none());
    }
}
