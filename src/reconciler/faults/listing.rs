//! What the kernel holds, as other people's tools print it.

use std::process::Command;

const COMMANDS: [&[&str]; 6] = [
    &["ipvsadm", "-Sn"],
    &["ipset", "save"],
    // 71 is the protocol number of this project's routes.
    &["ip", "-4", "route", "show", "table", "local", "proto", "71"],
    &["ip", "-6", "route", "show", "table", "local", "proto", "71"],
    &["iptables-save"],
    &["ip6tables-save"],
];

/// All lines in order, without what differs from time to time: counters, how long ago it was, the seed and the size of hashes.
pub(super) fn listing() -> Vec<String> {
    let mut listing: Vec<_> = COMMANDS.iter().flat_map(|command| settled(command)).collect();
    listing.sort_unstable();
    listing
}

/// As soon as it is the same twice in a row: in other namespaces there are other tests, and when they change their virtual servers meanwhile, the kernel lists
/// some of ours twice or not at all.
fn settled(command: &[&str]) -> Vec<String> {
    let mut last = lines(command);
    loop {
        let next = lines(command);
        if next == last {
            return next;
        }
        last = next;
    }
}

fn lines(command: &[&str]) -> Vec<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{}: {}", command[0], without_chance(line))).collect()
}

fn without_chance(line: &str) -> String {
    let mut words: Vec<_> = line.split_whitespace().filter(|word| !(word.starts_with('[') && word.ends_with(']'))).collect();
    for name in ["initval", "hashsize"] {
        if let Some(at) = words.iter().position(|word| *word == name) {
            words.drain(at..(at + 2).min(words.len()));
        }
    }
    words.join(" ")
}
