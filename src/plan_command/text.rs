//! For people: a line for each change, `+` for what comes, `~` for what is edited in place, `-` for what goes, and after `#` why.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::document::{Change, Counts, Document, Kind};

pub(super) fn print(out: &mut impl Write, document: &Document) -> io::Result<()> {
    let Counts { add, edit, remove } = document.counts;
    if document.is_empty() {
        writeln!(out, "nothing to do on node {}", document.node)?;
    } else {
        writeln!(out, "on node {}: {add} to add, {edit} to edit, {remove} to remove", document.node)?;
    }
    for section in &document.sections {
        writeln!(out, "\n{}", section.title)?;
        section.changes.iter().try_for_each(|change| print_change(out, change))?;
    }
    print_list(out, "virtual servers of other tools, which stay", document.foreign_virtual_servers.iter())?;
    print_list(out, "what is not served as it is written", document.problems.iter())
}

fn print_change(out: &mut impl Write, change: &Change) -> io::Result<()> {
    let sign = match change.kind {
        Kind::Add => '+',
        Kind::Edit => '~',
        Kind::Remove => '-',
    };
    write!(out, "  {sign} {}  # {}", change.text, change.reason)?;
    // With parts, each says for itself who asks for it; and a reason that names the Service need not be repeated.
    if change.parts.is_empty() && !change.services.iter().any(|service| change.reason.contains(service)) {
        print_services(out, " (", &change.services, ")")?;
    }
    writeln!(out)?;
    for part in &change.parts {
        write!(out, "      {}", part.text)?;
        print_services(out, "  # ", &part.services, "")?;
        writeln!(out)?;
    }
    Ok(())
}

fn print_services(out: &mut impl Write, before: &str, services: &BTreeSet<String>, after: &str) -> io::Result<()> {
    if services.is_empty() {
        return Ok(());
    }
    let services: Vec<_> = services.iter().map(String::as_str).collect();
    write!(out, "{before}{}{after}", services.join(", "))
}

fn print_list<'a>(out: &mut impl Write, title: &str, mut lines: impl ExactSizeIterator<Item = &'a String>) -> io::Result<()> {
    if lines.len() == 0 {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    lines.try_for_each(|line| writeln!(out, "  {line}"))
}
