//! Figures on their way out: one line each, which `cargo xtask bench` collects.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a line with a figure begins with; `cargo xtask bench` looks for it.
const MARKER: &str = "@@figure ";

/// Prints figures of clusters of one size.
pub(crate) struct Figures {
    services: u32,
}

/// What a figure is held to.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// At most so many times the reference.
    Times(f64),
    /// At most so many times the reference and 200 µs.
    TimesAndLatency(f64),
    /// At least so many times faster than the reference.
    Faster(f64),
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// At least this, in the figure's unit.
    AtLeast(f64),
    /// Nothing: it explains others.
    None,
}

impl Figures {
    pub(crate) const fn new(services: u32) -> Self {
        Self { services }
    }

    /// A time in milliseconds, beside what it is compared with.
    pub(crate) fn time(
        &self,
        scenario: &str,
        measure: &str,
        time: Duration,
        reference: Option<(&str, Duration)>,
        goal: Goal,
    ) -> Result<()> {
        let reference = reference.map(|(name, time)| (name, millis(time)));
        self.print(scenario, measure, "ms", millis(time), reference, goal)
    }

    /// Any other number, as it is.
    pub(crate) fn number(&self, scenario: &str, measure: &str, unit: &str, value: f64, goal: Goal) -> Result<()> {
        self.print(scenario, measure, unit, value, None, goal)
    }

    fn print(
        &self,
        scenario: &str,
        measure: &str,
        unit: &str,
        value: f64,
        reference: Option<(&str, f64)>,
        goal: Goal,
    ) -> Result<()> {
        let goal = match goal {
            Goal::Times(times) => json!({"times": times}),
            Goal::TimesAndLatency(times) => json!({"times": times, "plus": 0.2}),
            Goal::Faster(times) => json!({"faster": times}),
            Goal::AtMost(most) => json!({"at_most": most}),
            Goal::AtLeast(least) => json!({"at_least": least}),
            Goal::None => Value::Null,
        };
        let figure = json!({
            "services": self.services,
            "scenario": scenario,
            "measure": measure,
            "unit": unit,
            "value": value,
            "reference": reference.map(|(name, value)| json!({"name": name, "value": value})),
            "goal": goal,
        });
        writeln!(std::io::stdout().lock(), "{MARKER}{figure}").context("cannot print a figure")
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The middle one.
pub(crate) fn median(times: &mut [Duration]) -> Result<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("nothing was measured")
}
