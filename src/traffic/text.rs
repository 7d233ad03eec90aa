//! The exposition text of the counters, in version 0.0.4 of the format.

use std::fmt::{self, Write};

use model::TrafficCounters;

use super::accounts::{Accounts, Port};

/// Something that is counted of traffic.
struct Measure {
    /// The end of the metric's name.
    name: &'static str,
    help: &'static str,
    /// The label beyond those of all, with a comma before it, and the count; several where it has several values.
    counts: &'static [(&'static str, Count)],
}

type Count = fn(&TrafficCounters) -> u64;

const MEASURES: [Measure; 3] = [
    Measure {
        name: "connections_total",
        help: "Connections that IPVS has scheduled",
        counts: &[("", |traffic| traffic.connections)],
    },
    Measure {
        name: "packets_total",
        help: "Packets from clients (in) and to them (out; only masquerading sees those)",
        counts: &[(",direction=\"in\"", |traffic| traffic.packets_in), (",direction=\"out\"", |traffic| traffic.packets_out)],
    },
    Measure {
        name: "bytes_total",
        help: "Bytes from clients (in) and to them (out; only masquerading sees those)",
        counts: &[(",direction=\"in\"", |traffic| traffic.bytes_in), (",direction=\"out\"", |traffic| traffic.bytes_out)],
    },
];

/// All of it.
pub(super) fn written(accounts: &Accounts) -> Vec<u8> {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, accounts);
    text.into_bytes()
}

fn write(out: &mut String, accounts: &Accounts) -> fmt::Result {
    for Measure { name, help, counts } in MEASURES {
        let name = format!("kube_ipvs_service_{name}");
        head(out, &name, &format!("{help}, by port of a Service."), "counter")?;
        for (port, traffic) in accounts.ports() {
            for (label, count) in counts {
                writeln!(out, "{name}{{{}{label}}} {}", Labels(port), count(traffic))?;
            }
        }
    }
    if !accounts.keeps_real_servers() {
        return Ok(());
    }
    for Measure { name, help, counts } in MEASURES {
        let name = format!("kube_ipvs_real_server_{name}");
        head(out, &name, &format!("{help}, by real server of a Service's port."), "counter")?;
        for ((port, real), account) in accounts.real_servers() {
            for (label, count) in counts {
                writeln!(out, "{name}{{{},real_server=\"{real}\"{label}}} {}", Labels(port), count(&account.traffic))?;
            }
        }
    }
    let name = "kube_ipvs_real_server_connections";
    head(
        out,
        name,
        "Connections that a real server of a Service's port has now: established TCP (active), and all others.",
        "gauge",
    )?;
    for ((port, real), account) in accounts.real_servers() {
        for (state, count) in [("active", account.connections.active), ("inactive", account.connections.inactive)] {
            writeln!(out, "{name}{{{},real_server=\"{real}\",state=\"{state}\"}} {count}", Labels(port))?;
        }
    }
    let name = "kube_ipvs_real_servers_left_out";
    head(out, name, "Real servers without counters of their own, because there are more than --traffic-metrics-limit.", "gauge")?;
    writeln!(out, "{name} {}", accounts.left_out())
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n")
}

/// The labels of a port. None of them is called like one that a scrape adds by itself.
struct Labels<'a>(&'a Port);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Port { service, name } = self.0;
        f.write_str("service_namespace=\"")?;
        escaped(f, service.namespace())?;
        f.write_str("\",service_name=\"")?;
        escaped(f, service.name())?;
        f.write_str("\",service_port=\"")?;
        escaped(f, name)?;
        f.write_char('"')
    }
}

/// Names that the API server has checked have nothing to escape; files may have anything.
fn escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        match character {
            '\\' => f.write_str("\\\\")?,
            '"' => f.write_str("\\\"")?,
            '\n' => f.write_str("\\n")?,
            other => f.write_char(other)?,
        }
    }
    Ok(())
}
