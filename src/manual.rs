//! What is made from the command line itself: completions for shells, and man pages. Both commands are for packages, and hidden.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

use crate::settings::command;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kube-ipvs completion bash >/etc/bash_completion.d/kube-ipvs")]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kube-ipvs man /usr/local/share/man/man8")]
pub(crate) struct Man {
    /// The directory for the pages, which is made if it is not there
    directory: PathBuf,
}

/// Prints the completions for a shell.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn complete(arguments: &Completion) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command(), "kube-ipvs", &mut script);
    crate::printed(io::Write::write_all(&mut io::stdout(), &script), "the completions")
}

/// Writes a page for the program and one for each command: `kube-ipvs.8`, `kube-ipvs-status.8`, ….
///
/// # Errors
/// When the directory cannot be written to.
pub(crate) fn write(arguments: &Man) -> anyhow::Result<()> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut command = command().disable_help_subcommand(true);
    // Gives commands their names in pages, such as kube-ipvs-status.
    command.build();
    let commands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    for page in std::iter::once(command).chain(commands) {
        // Section 8 is for administrators' programs (man-pages(7)).
        let path = directory.join(format!("{}.8", page.get_display_name().unwrap_or_else(|| page.get_name())));
        let mut text = Vec::new();
        let made = clap_mangen::Man::new(page).section("8").render(&mut text).and_then(|()| fs::write(&path, text));
        made.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().unwrap();
        write(&Man { directory: directory.path().join("man8") }).unwrap();
        for subject in command().get_subcommands().filter(|subject| !subject.is_hide_set()) {
            let path = directory.path().join(format!("man8/kube-ipvs-{}.8", subject.get_name()));
            let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(page.contains(".SH OPTIONS") && page.contains("Examples:"), "{page}");
        }
        let page = fs::read_to_string(directory.path().join("man8/kube-ipvs.8")).unwrap();
        assert!(page.contains("Exit codes") && page.contains("kube\\-ipvs\\-explain(8)"), "{page}");
    }

    #[test]
    fn completions_know_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "kube-ipvs", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("explain") && script.contains("cluster-cidr"), "{shell}");
        }
    }

    /// What `--help` shows as examples is what the program takes.
    #[test]
    fn every_command_has_examples_and_they_are_right() {
        for subject in command().get_subcommands() {
            let help = subject.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("  kube-ipvs ")).collect();
            assert!(help.contains("Examples:\n") && !examples.is_empty(), "{}: {help}", subject.get_name());
            for example in examples {
                // Up to a comment, a pipe or a file.
                let words =
                    example.split([' ']).take_while(|word| !word.starts_with(['#', '|', '>'])).filter(|word| !word.is_empty());
                let words: Vec<_> = ["kube-ipvs"].into_iter().chain(words).collect();
                assert_eq!(words.get(1).copied(), Some(subject.get_name()), "{example}");
                command().try_get_matches_from(words).unwrap_or_else(|error| panic!("{example}: {error}"));
            }
        }
    }
}
