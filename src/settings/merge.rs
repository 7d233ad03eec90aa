//! Flags, documents and defaults, merged.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, FromArgMatches};
use config::{Document, Problem, Setting};
use tracing::{info, warn};

use super::command;
use super::kube_proxy::idle_flags;
use crate::cli::Run;
use crate::exit::{Ending, Exit};
use crate::logs;

/// What a file cannot decide: what the process is to do, and where the file is.
const COMMAND_LINE_ONLY: [&str; 14] = [
    "config",
    "manifests",
    "once",
    "cleanup",
    "init-only",
    "write-config-to",
    "proxy-mode",
    "healthz-port",
    "metrics-port",
    // Of the commands that look at what `run` would do.
    "output",
    "against",
    "from",
    "strict",
    "host-root",
];

/// How much of a file is read, in bytes: one more than the largest that makes sense.
const READ_LIMIT: u64 = (1 << 20) + 1;

/// The command line of `run` or `config`, to be merged with the file whenever that changes.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    command: Command,
    /// With the program and the subcommand.
    arguments: Vec<OsString>,
    /// Which subcommand that is.
    name: String,
}

/// What holds in the end.
#[derive(Debug)]
pub(crate) struct Effective {
    pub(crate) run: Run,
    /// The values by flag, in the order of `--help`; flags without a value and a default are not there.
    pub(crate) values: Vec<(String, Value)>,
    /// What is strange in the file and does no harm, in sentences.
    pub(crate) remarks: Vec<String>,
    /// What is given and has no effect, each with the reason.
    pub(crate) idle: Vec<(String, &'static str)>,
    /// The flags that a `KubeIPVSConfiguration` can have.
    own: BTreeSet<String>,
}

/// A flag's values, in the words of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) words: Vec<String>,
    pub(crate) origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Environment,
    File { line: usize, field: String },
    Default,
}

impl Given {
    /// Of a command line that clap has read as `run` or `config`.
    pub(crate) fn new(arguments: Vec<OsString>, name: &str) -> Self {
        Self { command: command(), arguments, name: name.to_owned() }
    }

    /// Reads the file, if there is one, and merges it with the command line.
    ///
    /// # Errors
    /// All that is wrong with the file, a line each.
    pub(crate) fn effective(&self) -> anyhow::Result<Effective> {
        let of_flags = self.parse(&[])?;
        let path: Option<&PathBuf> = of_flags.get_one("config");
        let Some(path) = path else { return self.finish(&of_flags, &[], Vec::new(), Vec::new()) };
        let (mut configuration, mut problems) = config::read_what_there_is(&read(path)?);
        let settings = self.effective_settings(&of_flags, std::mem::take(&mut configuration.settings), &mut problems);
        if !problems.is_empty() {
            problems.sort();
            return Err(complaints(path, &problems));
        }
        let remarks = configuration.remarks.iter().map(|remark| format!("{}, {remark}", path.display())).collect();
        let idle = configuration.idle.iter().map(|(field, reason)| ((*field).to_owned(), *reason)).collect();
        let merged = self.parse(&settings)?;
        self.finish(&merged, &settings, remarks, idle)
    }

    /// The settings of the file that hold, one for a flag, and none for a flag that is given.
    fn effective_settings(&self, given: &ArgMatches, settings: Vec<Setting>, problems: &mut Vec<Problem>) -> Vec<Setting> {
        let known: BTreeSet<_> = self.own_flags().collect();
        let is_given = |flag: &str| {
            let id = flag.replace('-', "_");
            [flag, &id].iter().any(|id| {
                let source = given.try_contains_id(id).ok().and_then(|_| given.value_source(id));
                source.is_some_and(|source| source != ValueSource::DefaultValue)
            })
        };
        let mut holding: BTreeMap<String, Setting> = BTreeMap::new();
        for setting in settings {
            if setting.document == Document::KubeIpvs && !known.contains(&setting.flag) {
                problems.push(unknown(&setting, &known));
                continue;
            }
            if let Some(message) = self.complaint(&setting) {
                problems.push(Problem::new(setting.line, &setting.field, message));
            }
            if !is_given(&setting.flag) {
                // The documents come in the order of their precedence.
                holding.insert(setting.flag.clone(), setting);
            }
        }
        let ruled_out: &[(&str, &[&str])] = &[
            ("manifests", &["kubeconfig", "master", "api-endpoints", "state-dir"]),
            ("once", &["state-dir", "cleanup-on-exit"]),
            // Both are about what is logged.
            ("v", &["log-level"]),
            ("log-level", &["v"]),
        ];
        for (flag, others) in ruled_out.iter().filter(|(flag, _)| is_given(flag)) {
            let on = given.try_get_one::<bool>(flag).ok().flatten() != Some(&false);
            others.iter().filter(|_| on).for_each(|other| _ = holding.remove(*other));
        }
        // A list that is empty on purpose has done its work: what another document says of it is gone.
        holding.into_values().filter(|setting| !setting.values.is_empty()).collect()
    }

    /// What clap has to say of a setting by itself.
    fn complaint(&self, setting: &Setting) -> Option<String> {
        if setting.values.is_empty() {
            return None;
        }
        let arguments = self.arguments.iter().take(2).cloned().chain([token(setting)]);
        let error = self.command.clone().try_get_matches_from(arguments).err()?;
        let reason = match error.kind() {
            ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(words)) if !words.is_empty() => format!("expected one of {}", words.join(", ")),
                _ => "expected a value".to_owned(),
            },
            ErrorKind::ValueValidation => std::error::Error::source(&error)?.to_string(),
            // Something is missing, or does not go together with something else: that is for the whole to show.
            _ => return None,
        };
        Some(format!("is {:?}; {reason}", setting.values.join(",")))
    }

    /// The flags that a `KubeIPVSConfiguration` can have.
    pub(crate) fn own_flags(&self) -> impl Iterator<Item = String> {
        let arguments = self.command.find_subcommand(&self.name).into_iter().flat_map(Command::get_arguments);
        let own = arguments.filter(|argument| !argument.is_hide_set() && argument.get_id() != "v");
        own.filter_map(|argument| argument.get_long()).filter(|flag| !COMMAND_LINE_ONLY.contains(flag)).map(str::to_owned)
    }

    fn parse(&self, settings: &[Setting]) -> anyhow::Result<ArgMatches> {
        let (head, tail) = self.arguments.split_at_checked(2).unwrap_or((&self.arguments, &[]));
        let arguments = head.iter().cloned().chain(settings.iter().map(token)).chain(tail.iter().cloned());
        let mut matches = self.command.clone().try_get_matches_from(arguments).map_err(|error| {
            let text = error.render().to_string();
            Ending::error(Exit::Usage, text.trim_start_matches("error: ").trim_end().to_owned())
        })?;
        matches.remove_subcommand().map(|(_, matches)| matches).ok_or_else(|| Ending::error(Exit::Usage, "there is no subcommand"))
    }

    fn finish(
        &self,
        matches: &ArgMatches,
        settings: &[Setting],
        remarks: Vec<String>,
        mut idle: Vec<(String, &'static str)>,
    ) -> anyhow::Result<Effective> {
        let run = Run::from_arg_matches(matches)?;
        check(&run)?;
        let is_field = |flag: &str| settings.iter().any(|setting| setting.flag == flag);
        let flags = idle_flags().filter(|flag| run.kube_proxy.idle.0.contains(&flag.name) && !is_field(flag.name));
        idle.extend(flags.map(|flag| (format!("--{}", flag.name), flag.reason)));
        let gates = run.kube_proxy.feature_gates.iter().filter(|gate| !gate.starts_with("AllowServiceExternalIPs="));
        idle.extend(gates.map(|gate| (format!("feature gate {gate}"), "the agent does not have it")));
        let from_file: BTreeMap<_, _> = settings.iter().map(|setting| (setting.flag.as_str(), setting)).collect();
        let mut values = Vec::new();
        for argument in self.command.find_subcommand(&self.name).into_iter().flat_map(Command::get_arguments) {
            let (id, Some(flag)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
            let (Ok(Some(words)), Some(source)) = (matches.try_get_raw(id), matches.value_source(id)) else { continue };
            let words = words.map(|word| word.to_string_lossy().into_owned()).collect();
            let origin = match (from_file.get(flag), source) {
                (Some(Setting { line, field, .. }), _) => Origin::File { line: *line, field: field.clone() },
                (None, ValueSource::CommandLine) => Origin::Flag,
                (None, ValueSource::EnvVariable) => Origin::Environment,
                (None, _) => Origin::Default,
            };
            values.push((flag.to_owned(), Value { words, origin }));
        }
        Ok(Effective { run, values, remarks, idle, own: self.own_flags().collect() })
    }
}

impl Effective {
    /// The values of a flag.
    pub(crate) fn value(&self, flag: &str) -> Option<&Value> {
        self.values.iter().find(|(name, _)| name == flag).map(|(_, value)| value)
    }

    /// What to log, as `--log-level` has it, which counts before kube-proxy's number.
    ///
    /// # Errors
    /// When that says nothing that makes sense.
    pub(crate) fn log_level(&self) -> anyhow::Result<&str> {
        let is_default = self.value("log-level").is_none_or(|value| value.origin == Origin::Default);
        let level = match self.run.kube_proxy.v {
            Some(0..4) if is_default => "info",
            Some(4..6) if is_default => "debug",
            Some(6..) if is_default => "trace",
            _ => self.run.log_level.as_str(),
        };
        logs::filter(level).map(|_| level)
    }

    /// Logs what is strange, and what has no effect, each once.
    pub(crate) fn log(&self) {
        self.remarks.iter().for_each(|remark| warn!("{remark}"));
        if !self.idle.is_empty() {
            let list: Vec<_> = self.idle.iter().map(|(name, reason)| format!("{name} ({reason})")).collect();
            info!("what is set and has no effect here: {}", list.join("; "));
        }
    }

    /// The flags whose values differ from those of `before`.
    pub(crate) fn changes_since(&self, before: &Self) -> BTreeSet<String> {
        let words = |effective: &Self| -> BTreeMap<String, Vec<String>> {
            effective.values.iter().map(|(flag, value)| (flag.clone(), value.words.clone())).collect()
        };
        let (now, then) = (words(self), words(before));
        now.keys().chain(then.keys()).filter(|flag| now.get(*flag) != then.get(*flag)).cloned().collect()
    }

    /// The same as a `KubeIPVSConfiguration`, whose values are words.
    pub(crate) fn as_fields(&self) -> serde_json::Value {
        let document = Document::KubeIpvs;
        let head = [("apiVersion", document.api_version()), ("kind", document.kind())];
        let head = head.map(|(key, value)| (key.to_owned(), value.into()));
        let own = self.values.iter().filter(|(flag, _)| self.own.contains(flag)).map(|(flag, value)| {
            let words = match value.words.as_slice() {
                [word] => word.as_str().into(),
                words => words.into(),
            };
            (config::field_of(flag), words)
        });
        serde_json::Value::Object(head.into_iter().chain(own).collect())
    }

    /// The same as kube-proxy would say it.
    pub(crate) fn as_kube_proxy_has_it(&self) -> serde_json::Value {
        config::kube_proxy_configuration(|flag| {
            let words = self.value(flag)?.words.clone();
            let given = words.iter().any(|word| !word.is_empty());
            given.then_some(words)
        })
    }
}

/// Refuses switches that are on and do not go together: clap would refuse them when they are off as well.
fn check(run: &Run) -> anyhow::Result<()> {
    let flags = &run.kube_proxy;
    let both =
        |one: (&str, bool), other: (&str, bool)| (one.1 && other.1).then(|| format!("{} cannot be used with {}", one.0, other.0));
    let once = ("--once", run.once);
    let [cleanup, init] = [("--cleanup", flags.cleanup), ("--init-only", flags.init_only)];
    let write = ("--write-config-to", flags.write_config_to.is_some());
    let kept = ("--state-dir", run.state_dir.is_some());
    let pairs =
        [(once, ("--cleanup-on-exit", run.cleanup_on_exit)), (kept, once), (cleanup, init), (cleanup, write), (init, write)];
    match pairs.into_iter().find_map(|(one, other)| both(one, other)) {
        None => Ok(()),
        Some(sentence) => Err(Ending::error(Exit::Usage, sentence)),
    }
}

/// The setting as an argument.
fn token(setting: &Setting) -> OsString {
    format!("--{}={}", setting.flag, setting.values.join(",")).into()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(READ_LIMIT).read_to_end(&mut bytes));
    read.map_err(|error| Ending::error(Exit::Usage, format!("--config {} cannot be read: {error}", path.display())))?;
    Ok(bytes)
}

fn complaints(path: &Path, problems: &[Problem]) -> anyhow::Error {
    let sentences: Vec<_> = problems.iter().map(|problem| format!("{}, {problem}", path.display())).collect();
    Ending::error(Exit::Usage, sentences.join("\n"))
}

fn unknown(setting: &Setting, known: &BTreeSet<String>) -> Problem {
    let near = known.iter().min_by_key(|flag| distance(flag, &setting.flag)).filter(|flag| distance(flag, &setting.flag) <= 3);
    let message = match near {
        Some(flag) => format!("is no setting; did you mean {}?", config::field_of(flag)),
        None if COMMAND_LINE_ONLY.contains(&setting.flag.as_str()) => {
            format!("is decided on the command line alone, with --{}", setting.flag)
        }
        None => "is no setting; `kube-ipvs config` prints all there are".to_owned(),
    };
    Problem::new(setting.line, &setting.field, message)
}

/// How many letters have to be changed, added or left out to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut costs: Vec<usize> = (0..=other.chars().count()).collect();
    for (row, left) in one.chars().enumerate() {
        let mut diagonal = row;
        let mut beside = row + 1;
        for (cost, right) in costs.iter_mut().skip(1).zip(other.chars()) {
            let cheapest = (diagonal + usize::from(left != right)).min(beside + 1).min(*cost + 1);
            diagonal = std::mem::replace(cost, cheapest);
            beside = cheapest;
        }
        if let Some(first) = costs.first_mut() {
            *first = row + 1;
        }
    }
    costs.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
