//! The same as text, for pipes and for terminals that cannot move their cursor.

use std::io::{self, Write};

use super::figures::{count, short};
use super::sample::{Load, Sample, Service, SortBy};

/// How much there is room for: what a terminal has that cannot say how wide it is.
const WIDTH: usize = 80;
const NAME: usize = 26;
const FIGURES: usize = 40;
const STATE: usize = WIDTH - NAME - FIGURES - 2;

/// Prints a look: the whole node in two lines, then a line for each Service whose name has `filter` in it. A name or a state that there is no room
/// for has a line of its own, as long names have with df.
pub(crate) fn print(out: &mut impl Write, sample: &Sample, sort: SortBy, filter: &str) -> io::Result<()> {
    let totals = &sample.totals;
    match &sample.agent {
        Some((node, version)) => write!(out, "{node}, agent {version}: ")?,
        None => write!(out, "no agent: ")?,
    }
    writeln!(
        out,
        "{} drifted\n{} virtual servers ({} foreign), {} real servers ({} draining)",
        totals.drifted, totals.virtual_servers, totals.foreign, totals.real_servers, totals.draining
    )?;
    let filter = filter.to_lowercase();
    let mut services: Vec<_> = sample.services.iter().filter(|service| service.name.to_lowercase().contains(&filter)).collect();
    sort.sort(false, &mut services);
    let figures = figures(["SERVERS", "ACTIVE", "INACT", "CONN/S", "PKT/S", "BYTE/S"]);
    print_line(out, "SERVICE", &figures, "STATE")?;
    services.into_iter().try_for_each(|service| print_service(out, service))
}

fn print_service(out: &mut impl Write, service: &Service) -> io::Result<()> {
    let Load { active, inactive, connections, .. } = service.load;
    let texts = [
        format!("{}/{}", service.live(), service.servers.len()),
        count(active),
        count(inactive),
        short(connections),
        short(service.load.packets()),
        short(service.load.bytes()),
    ];
    print_line(out, &service.name, &figures(texts.each_ref().map(String::as_str)), &service.state())
}

fn figures([servers, active, inactive, connections, packets, bytes]: [&str; 6]) -> String {
    format!("{servers:>7} {active:>6} {inactive:>5} {connections:>6} {packets:>5} {bytes:>6}")
}

fn print_line(out: &mut impl Write, name: &str, figures: &str, state: &str) -> io::Result<()> {
    let fits = |text: &str, width: usize| text.chars().count() <= width;
    let name = if fits(name, NAME) {
        name
    } else {
        writeln!(out, "{name}")?;
        ""
    };
    if fits(state, STATE) {
        writeln!(out, "{}", format!("{name:<NAME$} {figures} {state}").trim_end())
    } else {
        writeln!(out, "{name:<NAME$} {figures}\n  {state}")
    }
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
        assert_eq!(printed("SHOP").lines().count(), 4);
    }

    #[test]
    fn what_a_terminal_has_no_room_for_is_broken_where_a_reader_would() {
        let mut view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        for row in &mut view.virtual_servers {
            row.real_servers.iter_mut().for_each(|real| {
                real.connections = model::RealServerCounters { active: u32::MAX, inactive: u32::MAX, persistent: 0 };
                real.server.weight = 0;
            });
            row.traffic.bytes_in = u64::MAX;
        }
        let mut sample = Sample::new(&view, Instant::now(), None);
        for service in &mut sample.services {
            service.name = format!("observability/prometheus-{}", service.name);
            service.drift.push("not in the kernel".to_owned());
        }
        let mut text = Vec::new();
        print(&mut text, &sample, SortBy::Active, "").unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains("\nobservability/prometheus-shop/web:http\n"), "names are whole: {text}");
        assert!(text.contains("\n  drifted, 1 draining, no servers\n"), "{text}");
    }
}
