//! Whether the kernel holds what is desired, and whether there is an agent to see to it.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::finding::Finding;
use super::machine;
use crate::survey::{Subject, Survey};

/// How long a change may be on its way through a running agent.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

const CHECK: &str = "drift";

pub(super) fn inspect(subject: Subject<'_>, findings: &mut Vec<Finding>) {
    let control_socket = &subject.run.control_socket;
    let is_running = !control_socket.as_os_str().is_empty() && UnixStream::connect(control_socket).is_ok();
    findings.push(if is_running {
        Finding::ok("agent", format_args!("one answers on {}", control_socket.display()))
    } else {
        Finding::warn(
            "agent",
            format_args!("none answers on {}: nothing follows changes", control_socket.display()),
            "start `kube-ipvs run`, or say where its --control-socket is",
        )
    });
    let mut survey = subject.survey();
    if is_running && survey.as_ref().is_ok_and(|survey| due(survey) > 0) {
        thread::sleep(ON_ITS_WAY);
        survey = subject.survey();
    }
    match survey {
        // It says what is missing, or what the objects cannot be read for.
        Err(error) => findings
            .push(Finding::error(CHECK, format_args!("it is not known what is desired, or what the kernel holds: {error:#}"))),
        Ok(survey) => {
            findings.push(machine::mtu(survey.index.facts()));
            findings.push(drift(&survey, is_running));
            findings.push(problems(&survey));
        }
    }
}

/// How many steps the kernel is from what is desired. Sysctls and time-outs have a line of their own, or are none of the Services' business.
fn due(survey: &Survey) -> usize {
    survey.adoption.len() + survey.plan.len()
}

fn drift(survey: &Survey, is_running: bool) -> Finding {
    let first = survey.adoption.steps().chain(survey.plan.steps()).next();
    let (Some(first), steps) = (first, due(survey)) else { return Finding::ok(CHECK, "the kernel holds what is desired") };
    let text = format!("the kernel is {steps} steps from what is desired, the first of which is to {first}");
    if is_running {
        return Finding::fail(
            CHECK,
            text,
            "`kube-ipvs plan` lists them; the agent's log and /healthz say why it does not make them, and whether it has the same flags as this command",
        );
    }
    Finding::warn(CHECK, text, "`kube-ipvs plan` lists them, and `kube-ipvs run` makes them")
}

fn problems(survey: &Survey) -> Finding {
    const CHECK: &str = "objects";
    match survey.problems.first() {
        None => Finding::ok(CHECK, "all are served as they are written"),
        Some(first) => Finding::warn(
            CHECK,
            format_args!("{} problems, the first of which is: {first}", survey.problems.len()),
            "`kube-ipvs plan` lists them at its end",
        ),
    }
}
