//! One figure, and what it is held to.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a line with a figure begins with.
const MARKER: &str = "@@figure ";

#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) services: u64,
    pub(crate) scenario: String,
    pub(crate) measure: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
    /// What it is compared with: its name and its value in the same unit.
    reference: Option<(String, f64)>,
    goal: Option<Goal>,
}

/// See `Goal` of the program `bench`.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// At most so many times the reference, and so much on top.
    Times(f64, f64),
    /// At least so many times faster than the reference.
    Faster(f64),
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

/// Reads a line of the console; `None` when there is no figure in it.
pub(crate) fn parse(line: &str) -> Option<Result<Figure>> {
    line.strip_prefix(MARKER).map(|figure| read(figure).with_context(|| format!("a broken figure: {figure}")))
}

fn read(text: &str) -> Result<Figure> {
    let value: Value = serde_json::from_str(text)?;
    let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_f64);
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let goal = None
        .or(number("/goal/times").map(|times| Goal::Times(times, number("/goal/plus").unwrap_or_default())))
        .or(number("/goal/faster").map(Goal::Faster))
        .or(number("/goal/at_most").map(Goal::AtMost))
        .or(number("/goal/at_least").map(Goal::AtLeast));
    Ok(Figure {
        services: value.pointer("/services").and_then(Value::as_u64).context("no services")?,
        scenario: text("/scenario").context("no scenario")?,
        measure: text("/measure").context("no measure")?,
        unit: text("/unit").context("no unit")?,
        value: number("/value").context("no value")?,
        reference: text("/reference/name").zip(number("/reference/value")),
        goal,
    })
}

impl Figure {
    /// How many times the reference it is; `None` without one.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.reference.as_ref().map(|(_, reference)| self.value / reference)
    }

    /// Whether it reaches its goal; `None` when it has none.
    pub(crate) fn reaches_goal(&self) -> Option<bool> {
        let reference = self.reference.as_ref().map(|(_, reference)| *reference);
        Some(match self.goal? {
            Goal::Times(times, plus) => self.value <= reference? * times + plus,
            Goal::Faster(times) => self.value * times <= reference?,
            Goal::AtMost(most) => self.value <= most,
            Goal::AtLeast(least) => self.value >= least,
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "services": self.services,
            "scenario": self.scenario,
            "measure": self.measure,
            "unit": self.unit,
            "value": self.value,
            "reference": self.reference.as_ref().map(|(name, value)| json!({"name": name, "value": value})),
            "ratio": self.ratio(),
            "goal": self.goal.map(|goal| goal.to_string()),
            "reached": self.reaches_goal(),
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (services, scenario, measure, value, unit) = (self.services, &self.scenario, &self.measure, self.value, &self.unit);
        write!(out, "{services:>8}  {scenario:<32} {measure:<33} {value:>12.3} {unit:<4}")?;
        match (&self.reference, self.ratio()) {
            (Some((_, reference)), Some(ratio)) => write!(out, " {reference:>12.3} {ratio:>6.2}x")?,
            _ => write!(out, " {:>12} {:>7}", "", "")?,
        }
        match (self.goal, self.reaches_goal()) {
            (Some(goal), Some(true)) => write!(out, "  {goal}: reached"),
            (Some(goal), Some(false)) => write!(out, "  {goal}: MISSED"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(times, 0.0) => write!(out, "<= {times} x"),
            Self::Times(times, plus) => write!(out, "<= {times} x + {plus} ms"),
            Self::Faster(times) => write!(out, "{times} x faster"),
            Self::AtMost(most) => write!(out, "<= {most:.4}"),
            Self::AtLeast(least) => write!(out, ">= {least:.4}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, goal: &str) -> Figure {
        let text = format!(
            r#"@@figure {{"services":1000,"scenario":"burst","measure":"latency","unit":"ms","value":{value},"reference":{{"name":"floor","value":2.0}},"goal":{goal}}}"#
        );
        parse(&text).unwrap().unwrap()
    }

    #[test]
    fn goals_are_about_the_reference_or_the_value() {
        assert_eq!(figure(3.0, r#"{"times":1.5}"#).reaches_goal(), Some(true));
        assert_eq!(figure(3.1, r#"{"times":1.5}"#).reaches_goal(), Some(false));
        assert_eq!(figure(3.1, r#"{"times":1.5,"plus":0.2}"#).reaches_goal(), Some(true));
        assert_eq!(figure(0.4, r#"{"faster":5.0}"#).reaches_goal(), Some(true));
        assert_eq!(figure(0.5, r#"{"faster":5.0}"#).reaches_goal(), Some(false));
        assert_eq!(figure(0.5, r#"{"at_most":0.4}"#).reaches_goal(), Some(false));
        assert_eq!(figure(0.5, "null").reaches_goal(), None);
    }

    #[test]
    fn other_lines_are_no_figures_and_broken_ones_are_errors() {
        assert!(parse("guest: some modules were not loaded").is_none());
        assert!(parse(r#"@@figure {"services":1000}"#).unwrap().is_err());
    }
}
