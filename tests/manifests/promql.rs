//! Which metrics and labels an expression of Prometheus asks for.

use std::collections::BTreeSet;

/// What an expression names.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Asked {
    pub(crate) metrics: BTreeSet<String>,
    pub(crate) labels: BTreeSet<String>,
}

/// Words that are no metrics.
const WORDS: [&str; 9] = ["and", "or", "unless", "sum", "max", "min", "avg", "count", "topk"];

/// Reads an expression as far as it takes to know its names. Durations have no names in them, functions are followed by a parenthesis.
pub(crate) fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = expression;
    let mut braces = false;
    while let Some(first) = rest.chars().next() {
        let end_of = |is_part: fn(char) -> bool| rest.find(|character| !is_part(character)).unwrap_or(rest.len());
        match first {
            '"' => rest = rest[1..].split_once('"').unwrap().1,
            '[' => rest = rest.split_once(']').unwrap().1,
            '{' | '}' => {
                braces = first == '{';
                rest = &rest[1..];
            }
            '0'..='9' => rest = &rest[end_of(|character| character.is_ascii_alphanumeric() || character == '.')..],
            'a'..='z' | 'A'..='Z' | '_' => {
                let (word, after) = rest.split_at(end_of(|character| character.is_ascii_alphanumeric() || character == '_'));
                rest = after;
                if braces {
                    asked.labels.insert(word.to_owned());
                } else if matches!(word, "by" | "without") {
                    let (list, after) = after.trim_start()[1..].split_once(')').unwrap();
                    asked.labels.extend(list.split(',').map(|label| label.trim().to_owned()));
                    rest = after;
                } else if !after.trim_start().starts_with('(') && !WORDS.contains(&word) {
                    asked.metrics.insert(word.to_owned());
                }
            }
            other => rest = &rest[other.len_utf8()..],
        }
    }
    asked
}

#[test]
fn names_are_found_where_they_are() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let expression =
        "histogram_quantile(0.99, sum by (instance, le) (rate(a_b_bucket{job=~\"x|y\", z!=\"{}\"}[5m]))) > 1e3 or vector(0) and c";
    assert_eq!(asked(expression), Asked { metrics: set(&["a_b_bucket", "c"]), labels: set(&["instance", "le", "job", "z"]) });
}
