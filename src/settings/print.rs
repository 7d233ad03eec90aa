//! `kube-ipvs config`: what holds, as a file that would say the same, with where each value comes from.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use config::Document;

use super::merge::{Effective, Given, Origin};
use crate::print_line;

/// Prints what holds.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn show(given: &Given) -> anyhow::Result<()> {
    let effective = given.effective()?;
    crate::run::config(&effective.run, "node")?;
    effective.log_level()?;
    print_line(&print(&effective, given.own_flags()).trim_end())
}

/// Writes to a file what holds, as kube-proxy has it.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(effective: &Effective, path: &Path) -> anyhow::Result<()> {
    // JSON is YAML.
    let mut text = serde_json::to_string_pretty(&effective.as_kube_proxy_has_it()).context("cannot print the configuration")?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("--write-config-to {}", path.display()))
}

/// The configuration as a `KubeIPVSConfiguration`, with a comment to each value; of the flags `own`.
fn print(effective: &Effective, own: impl Iterator<Item = String>) -> String {
    let document = Document::KubeIpvs;
    let mut text = format!("apiVersion: {}\nkind: {document}\n", document.api_version());
    for flag in own {
        let Some(value) = effective.value(&flag) else { continue };
        let words: Vec<_> = value.words.iter().map(|word| scalar(word)).collect();
        let written = match words.as_slice() {
            [word] => word.clone(),
            words => format!("[{}]", words.join(", ")),
        };
        let origin = match &value.origin {
            Origin::Flag => format!("--{flag}"),
            Origin::Environment => "environment".to_owned(),
            Origin::Default => "default".to_owned(),
            Origin::File { line, field } => {
                let name = effective.run.config.as_deref().and_then(Path::file_name).unwrap_or_default();
                format!("{}, line {line}: {field}", name.to_string_lossy())
            }
        };
        // Nobody reads it before it is whole, and a String always has room.
        let _ = writeln!(text, "{}: {written} # {origin}", config::field_of(&flag));
    }
    text
}

/// A word such that it is read again as the same word.
fn scalar(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "./-_+".contains(c);
    let is_word = word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(is_plain);
    let has_meaning =
        ["yes", "no", "on", "off", "y", "n", "null", "inf", "nan"].iter().any(|known| word.eq_ignore_ascii_case(known));
    let is_number = word.parse::<i64>().is_ok_and(|number| number.to_string() == word);
    // With a unit behind it, it is no number.
    let is_duration = config::parse_duration(word).is_some() && !is_number;
    if (is_word && !has_meaning) || is_number || is_duration { word.to_owned() } else { serde_json::Value::from(word).to_string() }
}
