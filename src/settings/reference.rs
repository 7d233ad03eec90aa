//! `docs/configuration.md` has every setting, with the defaults that the code has. With `UPDATE_DOCS=1` its tables are written anew.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Arg;
use config::{Effect, FIELDS, field_of};

use super::kube_proxy::idle_flags;
use super::live::{self, is_live};
use super::{Given, command};

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")
}

fn given() -> Given {
    Given::new(["kube-ipvs", "run"].map(Into::into).into(), "run")
}

fn arguments() -> Vec<Arg> {
    command().find_subcommand("run").unwrap().get_arguments().filter(|argument| !argument.is_hide_set()).cloned().collect()
}

fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn default(argument: &Arg) -> String {
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { String::new() } else { format!("`{}`", values.join(",")) }
}

fn help(argument: &Arg) -> String {
    let help = cell(&argument.get_long_help().or_else(|| argument.get_help()).unwrap().to_string());
    let words: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter_map(|value| Some(format!("`{}`: {}", value.get_name(), cell(&value.get_help()?.to_string()))))
        .collect();
    if words.is_empty() { help } else { format!("{help}. {}", words.join("; ")) }
}

/// The names that kube-proxy has for a flag, where they are others.
fn names(argument: &Arg) -> String {
    let long = argument.get_long().unwrap();
    let aliases = argument.get_all_aliases().unwrap_or_default();
    let mut names = format!("`--{long}`");
    for alias in aliases {
        write!(names, ", `--{alias}`").unwrap();
    }
    names
}

/// The tables, by name.
fn tables() -> Vec<(&'static str, String)> {
    let own: Vec<_> = given().own_flags().collect();
    let mut settings = String::from("| flag | field | default | changes | meaning |\n| --- | --- | --- | --- | --- |\n");
    let mut command_line = String::from("| flag | default | meaning |\n| --- | --- | --- |\n");
    for argument in arguments() {
        let Some(long) = argument.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
        let (names, default, help) = (names(&argument), default(&argument), help(&argument));
        if own.iter().any(|flag| flag == long) {
            let changes = if is_live(long) { "live" } else { "restart" };
            writeln!(settings, "| {names} | `{}` | {default} | {changes} | {help} |", field_of(long)).unwrap();
        } else {
            writeln!(command_line, "| {names} | {default} | {help} |").unwrap();
        }
    }
    let mut fields = String::from("| field | default | becomes |\n| --- | --- | --- |\n");
    for field in FIELDS {
        let default = if field.default.is_empty() { String::new() } else { format!("`{}`", field.default) };
        let becomes = match field.effect {
            Effect::Flag(flag) => format!("`--{flag}`"),
            Effect::FlagUnlessZero(flag) => format!("`--{flag}`, unless it is zero"),
            Effect::None(_, reason) => format!("nothing: {}", cell(reason)),
            Effect::Read if field.path == "mode" => "nothing: it has to be empty or `ipvs`".to_owned(),
            Effect::Read => "an IPv6 address moves the defaults of the next two to `[::]` and `[::1]`".to_owned(),
        };
        writeln!(fields, "| `{}` | {default} | {becomes} |", field.path).unwrap();
    }
    let mut idle = String::from("| flag | why it does nothing |\n| --- | --- |\n");
    let mut flags: Vec<_> = idle_flags().collect();
    flags.sort_by_key(|flag| flag.name);
    for flag in flags {
        writeln!(idle, "| `--{}` | {} |", flag.name, cell(flag.reason)).unwrap();
    }
    vec![("settings", settings), ("command-line", command_line), ("kube-proxy", fields), ("idle", idle)]
}

#[test]
fn the_documentation_has_every_flag_and_field_with_its_default() {
    let mut text = std::fs::read_to_string(file()).unwrap();
    let update = std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == OsStr::new("1"));
    for (name, table) in tables() {
        let (begin, end) = (format!("<!-- table: {name} -->\n"), format!("<!-- end: {name} -->\n"));
        let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{begin}"));
        let (documented, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{end}"));
        if update {
            text = [before, &begin, &table, &end, after].concat();
        } else {
            for line in table.lines() {
                assert!(documented.contains(line), "docs/configuration.md lacks this; write it with UPDATE_DOCS=1:\n{line}");
            }
            assert_eq!(documented.lines().count(), table.lines().count(), "docs/configuration.md has too much in the table {name}");
        }
    }
    if update {
        std::fs::write(file(), text).unwrap();
    }
}

#[test]
fn what_takes_effect_at_once_is_a_setting() {
    let all: Vec<_> = arguments().iter().filter_map(|argument| argument.get_long().map(str::to_owned)).collect();
    for flag in live::ALL {
        assert!(all.iter().any(|known| known == flag), "{flag}");
    }
}

#[test]
fn every_field_of_kube_proxy_leads_to_a_flag_that_takes_its_default() {
    for field in FIELDS {
        let Some(flag) = field.flag() else { continue };
        let token = format!("--{flag}={}", field.default);
        // Nothing but an empty text is what no flag takes.
        if !field.default.is_empty() {
            let read = command().try_get_matches_from(["kube-ipvs", "run", &token]);
            assert!(read.is_ok(), "{token}: {}", read.unwrap_err());
        }
    }
}

#[test]
fn every_own_field_is_the_spelling_of_its_flag() {
    for flag in given().own_flags() {
        assert_eq!(config::flag_of(&field_of(&flag)), flag);
    }
}
