//! Connections, one by one, as they are read: of millions no more is in memory than one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use kernel::Connection;
use model::{Protocol, RealServerKey, VirtualServerKey};
use serde::Serialize;

use super::filter::Filter;
use super::view::{View, VirtualRow};

/// Which rows connections belong to, by what clients call.
pub(crate) struct Directory<'a> {
    rows: BTreeMap<VirtualServerKey, &'a VirtualRow>,
    filter: &'a Filter,
}

/// A connection for programs. The names of fields are part of the interface.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document<'a> {
    protocol: &'a str,
    state: &'a str,
    expires_seconds: u32,
    client: SocketAddr,
    virtual_server: SocketAddr,
    real_server: SocketAddr,
    service: Option<String>,
    pod: Option<&'a str>,
    node: Option<&'a str>,
}

/// What is known of who talks to whom.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends<'a> {
    row: Option<&'a VirtualRow>,
    real: RealEnd<'a>,
}

#[derive(Clone, Copy, Debug, Default)]
struct RealEnd<'a> {
    pod: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> Directory<'a> {
    pub(crate) fn new(view: &'a View, filter: &'a Filter) -> Self {
        // Those behind marks have the same frontend as the ones by address, and the same Service.
        let rows = view.virtual_servers.iter().map(|row| (row.frontend(), row)).collect();
        Self { rows, filter }
    }

    /// Who the ends of `connection` are, if it is one that is asked for.
    pub(crate) fn find(&self, connection: &Connection) -> Option<Ends<'a>> {
        let (called, answers) = (connection.virtual_server, connection.real_server);
        let key = Protocol::from_name(&connection.protocol)
            .map(|protocol| VirtualServerKey::address(called.ip(), protocol, called.port()));
        let real = RealServerKey::new(answers.ip(), answers.port());
        let row = key.and_then(|key| self.rows.get(&key)).copied();
        let wanted = match row {
            Some(row) => self.filter.keeps_frontend(row),
            // A template of persistence, or a virtual server that is gone: of no Service that could be asked for.
            None => {
                !self.filter.needs_agent()
                    && self.filter.key.is_none_or(|wanted| Some(wanted) == key)
                    && self.filter.vip.is_none_or(|vip| vip == called.ip())
            }
        };
        let wanted = wanted && self.filter.endpoint.is_none_or(|pattern| pattern.matches(&real));
        let place = row.and_then(|row| row.real_servers.iter().find(|row| row.key == real));
        let real = place.map(|place| RealEnd { pod: place.pod.as_deref(), node: place.node.as_deref() });
        wanted.then(|| Ends { row, real: real.unwrap_or_default() })
    }
}

/// Prints the head of the list.
pub(crate) fn print_head(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "IPVS connection entries")?;
    writeln!(out, "pro expire {:<11} {:<18} {:<18} destination", "state", "source", "virtual")
}

/// Prints a connection as ipvsadm does, with the names of its ends behind.
pub(crate) fn print(out: &mut impl Write, connection: &Connection, ends: &Ends<'_>) -> io::Result<()> {
    let Connection { protocol, client, virtual_server, real_server, state, expires, .. } = connection;
    let expires = format!("{:02}:{:02}", expires / 60, expires % 60);
    let (client, virtual_server) = (client.to_string(), virtual_server.to_string());
    write!(out, "{protocol:<3} {expires:<6} {state:<11} {client:<18} {virtual_server:<18} {real_server}")?;
    let service = ends.row.and_then(VirtualRow::service).map(ToString::to_string);
    let names: Vec<_> = service.into_iter().chain(ends.real.pod.or(ends.real.node).map(str::to_owned)).collect();
    if names.is_empty() { writeln!(out) } else { writeln!(out, " ({})", names.join(" ")) }
}

impl<'a> Document<'a> {
    pub(crate) fn of(connection: &'a Connection, ends: &Ends<'a>) -> Self {
        Self {
            protocol: &connection.protocol,
            state: &connection.state,
            expires_seconds: connection.expires,
            client: connection.client,
            virtual_server: connection.virtual_server,
            real_server: connection.real_server,
            service: ends.row.and_then(VirtualRow::service).map(ToString::to_string),
            pod: ends.real.pod,
            node: ends.real.node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{kernel_table, told};
    use kernel::Connections;

    const LIST: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0AF40103 C350 0A60000A 0050 0AF40102 1F90 ESTABLISHED    8099
TCP 0AF40103 C351 0A60000A 0050 0AF40103 1F90 FIN_WAIT        119
TCP C6336407 D431 CB007107 0050 0AF40102 1F90 TIME_WAIT        61
UDP 0AF40103 C350 C0000201 0035 C0000202 0035 UDP             299
";

    fn printed(filter: &Filter) -> String {
        let view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        let directory = Directory::new(&view, filter);
        let mut text = Vec::new();
        print_head(&mut text).unwrap();
        for connection in Connections::of(LIST.as_bytes()) {
            let connection = connection.unwrap();
            if let Some(ends) = directory.find(&connection) {
                print(&mut text, &connection, &ends).unwrap();
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn connections_read_like_ipvsadms_with_names() {
        insta::assert_snapshot!(printed(&Filter::default()));
    }

    #[test]
    fn connections_are_filtered_by_either_end() {
        let of_pod = printed(&Filter { endpoint: Some("10.244.1.3".parse().unwrap()), ..Filter::default() });
        assert!(of_pod.lines().count() == 3 && of_pod.contains("FIN_WAIT"), "{of_pod}");
        let of_service = printed(&Filter { service: Some("web".parse().unwrap()), ..Filter::default() });
        assert!(of_service.lines().count() == 5 && !of_service.contains("UDP"), "{of_service}");
        let of_vip = printed(&Filter { vip: Some("192.0.2.1".parse().unwrap()), ..Filter::default() });
        assert!(of_vip.lines().count() == 3 && of_vip.contains("UDP"), "{of_vip}");
    }
}
