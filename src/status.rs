//! `kube-ipvs status`: the kernel's table, as ipvsadm prints it, with the Services behind it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::path::Path;

use anyhow::Context;
use kernel::{Listing, Table};
use model::{Family, Flags, RealServer, RealServerCounters, RealServerKey, VirtualServerConfig, VirtualServerKey};
use serde::Serialize;

use crate::cli::{Output, Status};
use crate::control::client::ask;
use crate::control::{DesiredTable, DesiredVirtualServer, Query};
use crate::exit::kernel_ending;

/// The Service port behind each virtual server, by the text of its key.
pub(crate) type Names = BTreeMap<String, String>;

/// Prints the table.
///
/// # Errors
/// When the kernel cannot be read, or standard output cannot be written.
pub(crate) fn run(arguments: &Status) -> anyhow::Result<()> {
    let table = kernel::read_table().map_err(|error| kernel_ending(&error))?;
    let names = match names_of_agent(&arguments.control_socket) {
        Ok(names) => names,
        Err(error) => {
            // The table is worth printing without names.
            let mut stderr = io::stderr();
            let _ = writeln!(stderr, "no Service names: no agent answers on {}: {error:#}", arguments.control_socket.display());
            Names::new()
        }
    };
    let mut out = io::stdout().lock();
    let printed = match arguments.output {
        Output::Text => print_text(&mut out, &table, &names),
        Output::Json => serde_json::to_writer_pretty(&mut out, &TableDocument::of(&table, &names))
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    };
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print the table"),
    }
}

fn names_of_agent(socket: &Path) -> anyhow::Result<Names> {
    let table: DesiredTable = ask(socket, Query::VirtualServers)?;
    let name = |server: DesiredVirtualServer| {
        let port = if server.port.is_empty() { String::new() } else { format!(":{}", server.port) };
        Some((server.key.parse()?.to_string(), format!("{}{port}", server.service)))
    };
    Ok(table.virtual_servers.into_iter().filter_map(name).collect())
}

fn print_text(out: &mut impl Write, table: &Table, names: &Names) -> io::Result<()> {
    writeln!(out, "IP Virtual Server version {} (size={})", table.version, table.connection_table_size)?;
    writeln!(out, "Prot LocalAddress:Port Scheduler Flags")?;
    writeln!(out, "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn")?;
    for listing in &table.virtual_servers {
        print_virtual_server(out, listing, names.get(&listing.key.to_string()).map(String::as_str))?;
    }
    Ok(())
}

fn print_virtual_server(out: &mut impl Write, listing: &Listing, name: Option<&str>) -> io::Result<()> {
    // ipvsadm pads the protocol to four columns.
    match listing.key {
        VirtualServerKey::Address { address, port, protocol } => {
            write!(out, "{protocol:<4} {}", std::net::SocketAddr::new(address, port))?;
        }
        VirtualServerKey::Mark { family: Family::V4, mark } => write!(out, "FWM  {mark}")?,
        VirtualServerKey::Mark { family: Family::V6, mark } => write!(out, "FWM  {mark} IPv6")?,
    }
    write!(out, " {}{}", listing.config.scheduler, flags(&listing.config, listing.key.family()))?;
    match name {
        Some(name) => writeln!(out, " ({name})")?,
        None => writeln!(out)?,
    }
    for (key, server, counters) in &listing.real_servers {
        let (address, forwarding) = (key.to_string(), server.forwarding.to_string());
        writeln!(out, "  -> {address:<28} {forwarding:<7} {:<6} {:<10} {:<10}", server.weight, counters.active, counters.inactive)?;
    }
    Ok(())
}

/// The `Flags` column, with a space before each.
fn flags(config: &VirtualServerConfig, family: Family) -> String {
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
            text.push_str(&format!(" mask {}", mask(family, config.granularity)));
        }
    }
    if config.flags.contains(Flags::ONE_PACKET) {
        text.push_str(" ops");
    }
    text
}

/// As ipvsadm prints it: a netmask for IPv4, the length of a prefix for IPv6.
pub(crate) fn mask(family: Family, bits: u8) -> String {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0)).to_string(),
        Family::V6 => bits.to_string(),
    }
}

/// The table as `-o json` prints it. Field names are part of the interface.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TableDocument<'a> {
    version: &'a str,
    connection_table_size: u32,
    virtual_servers: Vec<VirtualServerDocument<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VirtualServerDocument<'a> {
    #[serde(flatten)]
    key: KeyDocument,
    scheduler: &'a str,
    /// The kernel's numbers: 4 for one-packet scheduling, 8, 16 and 32 for the scheduler's own.
    flags: u32,
    /// `null` without persistence.
    persistence_seconds: Option<u32>,
    /// `null` where no Service is known.
    service: Option<&'a str>,
    real_servers: Vec<RealServerDocument>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum KeyDocument {
    Address {
        protocol: &'static str,
        address: IpAddr,
        port: u16,
    },
    #[serde(rename_all = "camelCase")]
    Mark {
        family: String,
        firewall_mark: u32,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RealServerDocument {
    address: IpAddr,
    port: u16,
    forwarding_method: String,
    weight: u32,
    active_connections: u32,
    inactive_connections: u32,
}

impl<'a> TableDocument<'a> {
    fn of(table: &'a Table, names: &'a Names) -> Self {
        let virtual_server = |listing: &'a Listing| VirtualServerDocument {
            key: match listing.key {
                VirtualServerKey::Address { address, port, protocol } => {
                    KeyDocument::Address { protocol: protocol.name(), address, port }
                }
                VirtualServerKey::Mark { family, mark } => {
                    KeyDocument::Mark { family: family.to_string(), firewall_mark: mark.get() }
                }
            },
            scheduler: listing.config.scheduler.as_str(),
            flags: listing.config.flags.bits(),
            persistence_seconds: listing.config.persistence.map(NonZeroU32::get),
            service: names.get(&listing.key.to_string()).map(String::as_str),
            real_servers: listing.real_servers.iter().map(RealServerDocument::of).collect(),
        };
        Self {
            version: &table.version,
            connection_table_size: table.connection_table_size,
            virtual_servers: table.virtual_servers.iter().map(virtual_server).collect(),
        }
    }
}

impl RealServerDocument {
    fn of((key, server, counters): &(RealServerKey, RealServer, RealServerCounters)) -> Self {
        Self {
            address: key.address,
            port: key.port,
            forwarding_method: server.forwarding.to_string(),
            weight: server.weight,
            active_connections: counters.active,
            inactive_connections: counters.inactive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Protocol, Scheduler};

    fn table() -> Table {
        let listing = |key: VirtualServerKey, config, reals: &[(&str, u16, u32)]| Listing {
            key,
            config,
            real_servers: reals
                .iter()
                .map(|(address, port, active)| {
                    let counters = RealServerCounters { active: *active, ..RealServerCounters::default() };
                    (RealServerKey::new(address.parse().unwrap(), *port), RealServer::default(), counters)
                })
                .collect(),
            ..Listing::of(key)
        };
        let web = VirtualServerKey::address("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80);
        let web6 = VirtualServerKey::address("fd00:96::a".parse().unwrap(), Protocol::Udp, 53);
        let mark = VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(7).unwrap() };
        let mut sticky = VirtualServerConfig::new(Scheduler::new("mh").unwrap(), Family::V6);
        sticky.persistence = NonZeroU32::new(10_800);
        sticky.flags = Flags::SCHED_1.with(Flags::SCHED_2);
        Table {
            version: "1.2.1".to_owned(),
            connection_table_size: 4096,
            virtual_servers: vec![
                listing(
                    web,
                    VirtualServerConfig::new(Scheduler::RR, Family::V4),
                    &[("10.244.1.2", 8080, 3), ("10.244.1.13", 8080, 0)],
                ),
                listing(web6, sticky, &[("fd00:244:1::2", 5353, 0)]),
                listing(mark, VirtualServerConfig::new(Scheduler::RR, Family::V4), &[]),
            ],
        }
    }

    #[test]
    fn the_table_reads_like_ipvsadms_with_names() {
        let names = Names::from([("TCP 10.96.0.10:80".to_owned(), "shop/web:http".to_owned())]);
        let mut text = Vec::new();
        print_text(&mut text, &table(), &names).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r"
        IP Virtual Server version 1.2.1 (size=4096)
        Prot LocalAddress:Port Scheduler Flags
          -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
        TCP  10.96.0.10:80 rr (shop/web:http)
          -> 10.244.1.2:8080              Masq    1      3          0         
          -> 10.244.1.13:8080             Masq    1      0          0         
        UDP  [fd00:96::a]:53 mh (mh-fallback,mh-port) persistent 10800
          -> [fd00:244:1::2]:5353         Masq    1      0          0         
        FWM  7 rr
        ");
    }

    #[test]
    fn json_says_the_same() {
        let value = serde_json::to_value(TableDocument::of(&table(), &Names::new())).unwrap();
        assert_eq!(value["virtualServers"][0]["address"], "10.96.0.10");
        assert_eq!(value["virtualServers"][0]["service"], serde_json::Value::Null);
        assert_eq!(value["virtualServers"][0]["realServers"][0]["activeConnections"], 3);
        assert_eq!(value["virtualServers"][1]["persistenceSeconds"], 10_800);
        assert_eq!(value["virtualServers"][2]["firewallMark"], 7);
    }
}
