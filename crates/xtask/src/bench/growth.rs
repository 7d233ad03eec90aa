//! What one change costs in a large cluster, beside the same in a small one.

use std::fmt::Write as _;

use super::figure::Figure;

/// What is to cost the same however many Services there are.
const CHANGES: [(&str, &str); 5] = [
    ("one endpoint change", "latency"),
    ("one endpoint change", "processor time"),
    ("one Service created", "latency"),
    ("one Service deleted", "latency"),
    ("one Service created and deleted", "processor time"),
];

/// So many times as much is the same.
const SAME: f64 = 1.2;

/// A line for each change and each size but the smallest; nothing where only one size was run.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for (scenario, measure) in CHANGES {
        let is_it = |figure: &&Figure| figure.scenario == scenario && figure.measure == measure;
        let Some(least) = figures.iter().filter(is_it).min_by_key(|figure| figure.services) else { continue };
        for figure in figures.iter().filter(is_it).filter(|figure| figure.services > least.services) {
            let times = figure.value / least.value;
            let verdict = if times <= SAME { "reached" } else { "MISSED" };
            let _ = writeln!(
                text,
                "{:>8}  {scenario:<32} {measure:<33} {times:>11.2}x as much as at {}  <= {SAME} x: {verdict}",
                figure.services, least.services
            );
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::parse;

    fn figure(services: u64, value: f64) -> Figure {
        let text = format!(
            r#"@@figure {{"services":{services},"scenario":"one endpoint change","measure":"latency","unit":"ms","value":{value},"reference":null,"goal":null}}"#
        );
        parse(&text).unwrap().unwrap()
    }

    #[test]
    fn a_fifth_more_is_the_same() {
        let text = table(&[figure(1000, 0.2), figure(10_000, 0.239), figure(50_000, 0.242)]);
        let lines: Vec<_> = text.trim().lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("1.20x") || lines[0].contains("1.19x"), "{text}");
        assert!(lines[0].ends_with("reached") && lines[1].ends_with("MISSED"), "{text}");
    }

    #[test]
    fn one_size_compares_with_nothing() {
        assert_eq!(table(&[figure(1000, 0.2)]), "");
    }
}
