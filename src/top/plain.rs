//! The same as text, for pipes and for terminals that cannot move their cursor.

use std::io::{self, Write};

use super::figures::short;
use super::sample::{Load, Sample, Service, SortBy};

const COLUMNS: &str = "SERVICE                                   SERVERS  ACTIVE   INACT  CONN/S   PKT/S  BYTE/S STATE";

/// Prints a look: the whole node in a line, then a line for each Service whose name has `filter` in it.
pub(crate) fn print(out: &mut impl Write, sample: &Sample, sort: SortBy, filter: &str) -> io::Result<()> {
    let totals = &sample.totals;
    match &sample.agent {
        Some((node, version)) => write!(out, "{node}, agent {version}: ")?,
        None => write!(out, "no agent: ")?,
    }
    writeln!(
        out,
        "{} virtual servers ({} foreign), {} real servers ({} draining), {} drifted",
        totals.virtual_servers, totals.foreign, totals.real_servers, totals.draining, totals.drifted
    )?;
    let filter = filter.to_lowercase();
    let mut services: Vec<_> = sample.services.iter().filter(|service| service.name.to_lowercase().contains(&filter)).collect();
    sort.sort(false, &mut services);
    writeln!(out, "{COLUMNS}")?;
    services.into_iter().try_for_each(|service| print_service(out, service))
}

fn print_service(out: &mut impl Write, service: &Service) -> io::Result<()> {
    let Load { active, inactive, connections, .. } = service.load;
    let servers = format!("{}/{}", service.live(), service.servers.len());
    let state = service.state();
    let line = format!(
        "{:<41} {servers:>7} {active:>7} {inactive:>7} {:>7} {:>7} {:>7} {state}",
        service.name,
        short(connections),
        short(service.load.packets()),
        short(service.load.bytes()),
    );
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{kernel_table, told};
    use std::time::Instant;

    fn printed(filter: &str) -> String {
        let view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        let mut text = Vec::new();
        print(&mut text, &Sample::new(&view, Instant::now(), None), SortBy::Active, filter).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_look_as_text() {
        insta::assert_snapshot!(printed(""));
    }

    #[test]
    fn a_filter_leaves_lines_out() {
        assert_eq!(printed("SHOP").lines().count(), 3);
    }
}
