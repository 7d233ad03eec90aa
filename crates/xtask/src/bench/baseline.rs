//! What the figures were when they were last approved of. A clock that counts instructions makes them comparable between machines.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::figure::Figure;

/// How much more than the baseline a figure may be.
const TOLERANCE: f64 = 1.10;

/// The measure that is compared: what the agent itself costs. Latencies contain the double and the scheduler, and floors are the kernel's.
const MEASURE: &str = "processor time";

pub(crate) struct Place {
    pub(crate) file: PathBuf,
    /// The release that was measured.
    pub(crate) kernel: String,
}

impl Place {
    pub(crate) fn write(&self, figures: &[Figure]) -> Result<()> {
        let list: Vec<Value> = compared(figures)
            .map(|figure| json!({"services": figure.services, "scenario": figure.scenario, "unit": figure.unit, "value": figure.value}))
            .collect();
        let text = format!("{:#}\n", json!({"kernel": self.kernel, "measure": MEASURE, "figures": list}));
        fs::write(&self.file, text).with_context(|| format!("cannot write {}", self.file.display()))?;
        println!("written: {}", self.file.display());
        Ok(())
    }

    /// Prints how the figures compare; whether none of them is too high. A figure that the baseline has and the run has not is an error, and
    /// so is the reverse, for the sizes that were run.
    pub(crate) fn compare(&self, figures: &[Figure]) -> Result<bool> {
        let name = self.file.display();
        let text = fs::read_to_string(&self.file).with_context(|| format!("cannot read {name}; --update-baseline makes it"))?;
        let baseline: Value = serde_json::from_str(&text).with_context(|| format!("{name} is no JSON"))?;
        let kernel = baseline.get("kernel").and_then(Value::as_str).with_context(|| format!("{name} names no kernel"))?;
        if kernel != self.kernel {
            // Part of each figure is the kernel's work. Most releases of a series do the same, so it is worth comparing.
            println!(
                "\n{name} is about kernel {kernel} and this was {}: what is too high now may be the kernel's doing; if so, make a new one with \
                 --update-baseline",
                self.kernel
            );
        }
        let entries = baseline.get("figures").and_then(Value::as_array).with_context(|| format!("{name} has no figures"))?;
        let mut good = true;
        println!("\ncompared with {name}:");
        for figure in compared(figures) {
            let is_same = |entry: &&Value| {
                entry.get("services").and_then(Value::as_u64) == Some(figure.services)
                    && entry.get("scenario").and_then(Value::as_str) == Some(&figure.scenario)
            };
            let entry = entries.iter().find(is_same).and_then(|entry| entry.get("value")?.as_f64());
            let base = entry.with_context(|| format!("{name} has no `{}` at {} Services", figure.scenario, figure.services))?;
            let too_high = figure.value > base * TOLERANCE;
            good &= !too_high;
            let (services, scenario, change) = (figure.services, &figure.scenario, (figure.value / base - 1.0) * 100.0);
            let verdict = if too_high { "TOO HIGH" } else { "" };
            println!(
                "{services:>8}  {scenario:<32} {:>12.3} {:<4} {base:>12.3} {change:>+7.1} %  {verdict}",
                figure.value, figure.unit
            );
        }
        let sizes = |services: u64| figures.iter().any(|figure| figure.services == services);
        let of_run = |entry: &&Value| entry.get("services").and_then(Value::as_u64).is_some_and(sizes);
        if entries.iter().filter(of_run).count() != compared(figures).count() {
            bail!("{name} has figures that this run has not: make a new one with --update-baseline, and say why");
        }
        Ok(good)
    }
}

fn compared(figures: &[Figure]) -> impl Iterator<Item = &Figure> {
    figures.iter().filter(|figure| figure.measure == MEASURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::parse;

    fn figure(scenario: &str, value: f64) -> Figure {
        let text = format!(
            r#"@@figure {{"services":1000,"scenario":"{scenario}","measure":"{MEASURE}","unit":"ms","value":{value},"reference":null,"goal":null}}"#
        );
        parse(&text).unwrap().unwrap()
    }

    #[test]
    fn a_tenth_more_is_good_and_what_is_missing_is_an_error() {
        let file = std::env::temp_dir().join(format!("baseline-{}.json", std::process::id()));
        let place = Place { file, kernel: "6.1".to_owned() };
        place.write(&[figure("audit", 10.0)]).unwrap();
        assert!(place.compare(&[figure("audit", 10.9)]).unwrap());
        assert!(!place.compare(&[figure("audit", 11.1)]).unwrap());
        assert!(place.compare(&[figure("idle", 10.0)]).is_err());
        assert!(place.compare(&[figure("audit", 10.0), figure("idle", 10.0)]).is_err());
        place.write(&[figure("audit", 10.0), figure("idle", 10.0)]).unwrap();
        assert!(place.compare(&[figure("audit", 10.0)]).is_err());
        let other = Place { file: place.file.clone(), kernel: "6.12".to_owned() };
        assert!(
            other.compare(&[figure("audit", 10.0), figure("idle", 10.0)]).unwrap(),
            "another kernel is said and compared all the same"
        );
        fs::remove_file(&place.file).unwrap();
    }
}
