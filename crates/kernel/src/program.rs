//! Other people's programs, run to their end or stopped.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// How long a program may take: many times what reading or writing the rules of a large node does, and the wait for a lock.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `program` to its end and returns what it printed.
pub(crate) fn run(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    run_within(PATIENCE, program, arguments, input)
}

fn run_within(patience: Duration, program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Error::missing_tool(program, format!("not found in PATH; install the {} package", package(program))),
        _ => Error::io(program, error),
    };
    let deadline = Instant::now() + patience;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let (Some(input), Some(mut stdin)) = (input.map(str::to_owned), child.stdin.take()) {
        // A program that stops reading has a reason, and says it on its standard error.
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let outputs = [child.stdout.take().map(collect), child.stderr.take().map(collect)];
    let [printed, said] = outputs.map(|output| {
        let left = deadline.saturating_duration_since(Instant::now());
        output.and_then(|output| output.recv_timeout(left).ok())
    });
    let (Some(printed), Some(said)) = (printed, said) else {
        stop(child);
        return Err(Error::tool(program, format!("did not end within {} s and was stopped", patience.as_secs())));
    };
    let status = child.wait().map_err(failed)?;
    let printed = printed.map_err(failed)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&printed).into_owned());
    }
    let said = said.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Error::tool(program, format!("failed ({status}): {said}")))
}

/// The package that has `program`, by the name that most distributions give it.
fn package(program: &str) -> &'static str {
    if program == "modprobe" { "kmod" } else { "iptables" }
}

/// Reads to the end on a thread of its own.
fn collect(mut output: impl Read + Send + 'static) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.read_to_end(&mut bytes).map(|_| bytes);
        sender.send(read)
    });
    receiver
}

/// Kills it, and leaves the wait for its end to a thread: a program that is stuck in the kernel ends when that lets go of it.
fn stop(mut child: Child) {
    let _ = child.kill();
    thread::spawn(move || child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let error = run("iptables-of-no-node", &[], None).unwrap_err();
        assert!(error.is_missing_tool());
        assert_eq!(error.to_string(), "iptables-of-no-node: not found in PATH; install the iptables package");
    }

    #[test]
    fn what_a_program_says_is_passed_on() {
        let error = run("sh", &["-c", "echo 'line 3 failed' >&2; exit 2"], None).unwrap_err();
        assert_eq!(error.to_string(), "sh: failed (exit status: 2): line 3 failed");
        assert_eq!(run("cat", &[], Some("*nat\n")).unwrap(), "*nat\n");
    }

    #[test]
    fn j8_a_program_that_does_not_end_is_stopped() {
        let begun = Instant::now();
        let error = run_within(Duration::from_millis(200), "sleep", &["60"], None).unwrap_err();
        assert!(error.to_string().starts_with("sleep: did not end within"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
