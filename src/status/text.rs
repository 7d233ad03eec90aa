//! The table as ipvsadm prints it, with what there is to say behind each line.

use std::io::{self, Write};
use std::net::SocketAddr;

use model::{Family, Flags, TrafficCounters, TrafficRates, VirtualServerConfig, VirtualServerKey};

use super::view::{Behind, Drift, RealRow, View, VirtualRow, in_words};

/// Which columns a table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Forwarding method, weight and connections.
    #[default]
    Plain,
    /// What has been counted.
    Stats,
    /// What is counted a second.
    Rate,
    /// The limits of connections.
    Thresholds,
    /// Templates of persistence.
    PersistentConnections,
}

/// How much a line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Notes {
    /// What ipvsadm says.
    None,
    /// Names, and what is out of the ordinary.
    #[default]
    Short,
    /// All there is.
    Wide,
}

/// What a table looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) columns: Columns,
    pub(crate) notes: Notes,
    /// Whether numbers are written in full.
    pub(crate) exact: bool,
}

impl Style {
    /// Prints the version of IPVS, the head of the table and all rows.
    pub(crate) fn print(self, out: &mut impl Write, view: &View) -> io::Result<()> {
        writeln!(out, "IP Virtual Server version {} (size={})", view.version, view.connection_table_size)?;
        self.print_head(out)?;
        view.virtual_servers.iter().try_for_each(|row| self.print_row(out, row))
    }

    pub(crate) fn print_head(self, out: &mut impl Write) -> io::Result<()> {
        let first = "Prot LocalAddress:Port";
        let numbers =
            |out: &mut dyn Write, [a, b, c, d, e]: [&str; 5]| writeln!(out, "{first:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}");
        match self.columns {
            Columns::Plain => {
                writeln!(out, "{first} Scheduler Flags")?;
                return writeln!(out, "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn");
            }
            Columns::Stats => numbers(out, ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"])?,
            Columns::Rate => numbers(out, ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"])?,
            Columns::Thresholds => {
                writeln!(out, "{first:<33} {:<10} {:<10} {:<10} {:<10}", "Uthreshold", "Lthreshold", "ActiveConn", "InActConn")?;
            }
            Columns::PersistentConnections => {
                writeln!(out, "{first:<33} {:<9} {:<11} {:<10} {:<10}", "Weight", "PersistConn", "ActiveConn", "InActConn")?;
            }
        }
        writeln!(out, "  -> RemoteAddress:Port")
    }

    /// Prints a virtual server, a line, and its real servers, a line each.
    pub(crate) fn print_row(self, out: &mut impl Write, row: &VirtualRow) -> io::Result<()> {
        let name = local_address(row.key);
        match self.columns {
            Columns::Plain | Columns::Thresholds | Columns::PersistentConnections => {
                write!(out, "{name} {}{}", row.config.scheduler, flags(&row.config, row.key.family()))?;
            }
            Columns::Stats => write!(out, "{name:<33}{}", self.counted(row.traffic))?,
            Columns::Rate => write!(out, "{name:<33}{}", self.rated(row.rates))?,
        }
        let notes = notes_of_virtual(row, self.notes);
        if notes.is_empty() {
            writeln!(out)?;
        } else {
            writeln!(out, " ({})", notes.join(", "))?;
        }
        row.real_servers.iter().try_for_each(|real| self.print_real(out, real))
    }

    fn print_real(self, out: &mut impl Write, row: &RealRow) -> io::Result<()> {
        let RealRow { server, connections, .. } = row;
        write!(out, "  -> {:<28}", row.key.to_string())?;
        let (active, inactive) = (connections.active, connections.inactive);
        match self.columns {
            Columns::Plain => {
                let forwarding = server.forwarding.to_string();
                write!(out, " {forwarding:<7} {:<6} {active:<10} {inactive:<10}", server.weight)?;
            }
            Columns::Stats => write!(out, "{}", self.counted(row.traffic))?,
            Columns::Rate => {
                let TrafficRates { connections, packets_in, packets_out, bytes_in, bytes_out } = row.rates;
                write!(
                    out,
                    " {connections:>8} {packets_in:>8} {packets_out:>8}{}{}",
                    self.number(bytes_in),
                    self.number(bytes_out)
                )?;
            }
            Columns::Thresholds => {
                write!(out, " {:<10} {:<10} {active:<10} {inactive:<10}", server.upper_threshold, server.lower_threshold)?;
            }
            Columns::PersistentConnections => {
                write!(out, " {:<9} {:<11} {active:<10} {inactive:<10}", server.weight, connections.persistent)?;
            }
        }
        let notes = notes_of_real(row, self.notes);
        if notes.is_empty() { writeln!(out) } else { writeln!(out, " {}", notes.join(", ")) }
    }

    fn counted(self, traffic: TrafficCounters) -> String {
        let TrafficCounters { connections, packets_in, packets_out, bytes_in, bytes_out } = traffic;
        [connections, packets_in, packets_out, bytes_in, bytes_out].map(|number| self.number(number)).concat()
    }

    fn rated(self, rates: TrafficRates) -> String {
        let TrafficRates { connections, packets_in, packets_out, bytes_in, bytes_out } = rates;
        [connections, packets_in, packets_out, bytes_in, bytes_out].map(|number| self.number(number)).concat()
    }

    /// A number in a column of nine, as ipvsadm shortens it.
    fn number(self, number: u64) -> String {
        const MILLION: u64 = 1_000_000;
        if self.exact {
            return format!(" {number:>8}");
        }
        match number {
            0..=99_999_999 => format!("{number:>9}"),
            100_000_000..=999_999_999 => format!("{:>8}K", number / 1_000),
            1_000_000_000..=99_999_999_999 => format!("{:>8}M", number / MILLION),
            100_000_000_000..=99_999_999_999_999 => format!("{:>8}G", number / (1_000 * MILLION)),
            _ => format!("{:>8}T", number / (MILLION * MILLION)),
        }
    }
}

/// The first column; ipvsadm pads the protocol to four, and reads a mark as a signed number.
fn local_address(key: VirtualServerKey) -> String {
    match key {
        VirtualServerKey::Address { address, port, protocol } => format!("{protocol:<4} {}", SocketAddr::new(address, port)),
        VirtualServerKey::Mark { family: Family::V4, mark } => format!("FWM  {}", mark.get().cast_signed()),
        VirtualServerKey::Mark { family: Family::V6, mark } => format!("FWM  {} IPv6", mark.get().cast_signed()),
    }
}

fn notes_of_virtual(row: &VirtualRow, notes: Notes) -> Vec<String> {
    let mut said = Vec::new();
    if notes == Notes::None {
        return said;
    }
    match &row.behind {
        Behind::Service(service) => {
            said.push(service.to_string());
            said.extend(service.frontend.filter(|_| notes == Notes::Wide).map(|frontend| format!("in-cluster {frontend}")));
        }
        Behind::Leaving => said.push("leaving".to_owned()),
        Behind::Foreign => said.push("foreign".to_owned()),
        Behind::Unnamed | Behind::Unknown => {}
    }
    said.extend(row.drift.as_ref().map(|drift| drift_note(drift, notes)));
    said
}

fn notes_of_real(row: &RealRow, notes: Notes) -> Vec<String> {
    let mut said = Vec::new();
    if notes == Notes::None {
        return said;
    }
    match (&row.pod, &row.node, notes) {
        (Some(pod), Some(node), Notes::Wide) => said.push(format!("{pod} on {node}")),
        (Some(pod), ..) => said.push(pod.clone()),
        (None, Some(node), _) => said.push(format!("on {node}")),
        (None, None, _) => {}
    }
    said.extend(row.draining.map(|left| format!("draining {}", in_words(left))));
    said.extend(row.drift.as_ref().map(|drift| drift_note(drift, notes)));
    said
}

fn drift_note(drift: &Drift, notes: Notes) -> String {
    match (drift, notes) {
        (Drift::Otherwise(_), Notes::Short | Notes::None) => "drifted".to_owned(),
        _ => format!("drifted: {drift}"),
    }
}

/// The `Flags` column, with a space before each.
pub(crate) fn flags(config: &VirtualServerConfig, family: Family) -> String {
    let mut text = String::new();
    let of_scheduler: Vec<_> = [(Flags::SCHED_1, 1), (Flags::SCHED_2, 2), (Flags::SCHED_3, 3)]
        .into_iter()
        .filter(|(flag, _)| config.flags.contains(*flag))
        .map(|(_, number)| match (config.scheduler.as_str(), number) {
            (scheduler @ ("sh" | "mh"), 1) => format!("{scheduler}-fallback"),
            (scheduler @ ("sh" | "mh"), 2) => format!("{scheduler}-port"),
            (_, number) => format!("flag-{number}"),
        })
        .collect();
    if !of_scheduler.is_empty() {
        text.push_str(&format!(" ({})", of_scheduler.join(",")));
    }
    if let Some(seconds) = config.persistence {
        text.push_str(&format!(" persistent {seconds}"));
        if config.granularity != family.bits() {
            text.push_str(&format!(" mask {}", family.mask(config.granularity)));
        }
    }
    if config.flags.contains(Flags::ONE_PACKET) {
        text.push_str(" ops");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{kernel_table, told};

    fn printed(style: Style) -> String {
        let mut text = Vec::new();
        style.print(&mut text, &join(kernel_table(), Some(&told()), Some(Sets::new()))).unwrap();
        // What ipvsadm pads is not seen at the end of a line.
        String::from_utf8(text).unwrap().lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[test]
    fn the_table_reads_like_ipvsadms_with_names() {
        insta::assert_snapshot!(printed(Style::default()));
    }

    #[test]
    fn the_wide_table_says_all_there_is() {
        insta::assert_snapshot!(printed(Style { notes: Notes::Wide, ..Style::default() }));
    }

    #[test]
    fn counts_have_ipvsadms_columns() {
        insta::assert_snapshot!(printed(Style { columns: Columns::Stats, ..Style::default() }));
    }

    #[test]
    fn rates_have_ipvsadms_columns() {
        insta::assert_snapshot!(printed(Style { columns: Columns::Rate, ..Style::default() }));
    }

    #[test]
    fn large_numbers_are_shortened_as_ipvsadm_does() {
        let number = |number| Style::default().number(number);
        assert_eq!(number(99_999_999), " 99999999");
        assert_eq!(number(100_000_000), "  100000K");
        assert_eq!(number(1_000_000_000), "    1000M");
        assert_eq!(number(100_000_000_000), "     100G");
        assert_eq!(number(100_000_000_000_000), "     100T");
        let exact = Style { exact: true, ..Style::default() };
        assert_eq!((exact.number(7), exact.number(100_000_000)), ("        7".to_owned(), " 100000000".to_owned()));
    }
}
