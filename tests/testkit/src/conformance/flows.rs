//! Connections without the traffic that would make them.
//!
//! IPVS' counters cannot be set, but its own synchronisation can be spoken: a backup daemon in the node's namespace takes in connections as
//! another load balancer tells them by multicast, and counts them as active or inactive as told (`ip_vs_sync.c`, message version 1). The
//! connection table takes entries from the tool `conntrack`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use socket2::SockRef;

use crate::conformance::case::{Connections, Flow, VirtualServer};
use crate::conformance::node::{SYNCHRONISATION, ipvsadm_protocol, place};
use crate::netns::Netns;
use crate::{Protocol, Result, eventually};

/// Where `ip_vs_sync.c` sends to.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 81), 8848);

/// Connections that are to stay do so for longer than a case takes, in seconds.
const STAYS: u32 = 3600;
const GOES: u32 = 1;

/// `IP_VS_CONN_F_INACTIVE`; 0 in the lowest three bits is masquerading.
const INACTIVE: u32 = 0x100;

/// The kernel takes up messages in a thread of its own, and a connection ends a second after it is told to.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ports of clients: from here on, so many for each real server.
const FIRST_PORT: u16 = 20_000;
const GROUP_OF_PORTS: u16 = 500;

/// Connections that one message holds: it has to fit a packet.
const CHUNK: usize = 16;

/// The flows and connections of a node.
#[derive(Default)]
pub(super) struct Flows {
    /// The source port of each flow, by which it is told from others: a real table cannot hold two with the same first packet, though a
    /// case may have them.
    ports: BTreeMap<String, u16>,
    /// How many flows were ever added.
    added: u16,
    /// Each real server that was given connections, by what it is: where its clients' ports begin, and how many there are.
    clients: BTreeMap<String, (u16, u16)>,
    has_daemon: bool,
}

impl Flows {
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The source ports of the flows by their ids.
    pub(super) fn ports(&self) -> &BTreeMap<String, u16> {
        &self.ports
    }

    /// Puts flows into the connection table. One with the id of an earlier one takes its place.
    pub(super) fn add(&mut self, netns: &Netns, flows: &[Flow]) -> Result {
        let mut script = String::from("set -e\n");
        for flow in flows {
            let shift = self.added;
            self.added = self.added.checked_add(1).context("too many flows")?;
            let [(source, source_port), (destination, port)] = flow.original;
            let [(reply_source, reply_source_port), (reply_destination, reply_port)] = flow.reply;
            let source_port = source_port.checked_add(shift).context("no port is left")?;
            let reply_port = reply_port.checked_add(shift).context("no port is left")?;
            let state = match flow.protocol {
                Protocol::Tcp => " --state ESTABLISHED",
                Protocol::Udp => "",
                Protocol::Sctp => " --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
            };
            let _ = writeln!(
                script,
                "conntrack -I -p {}{state} -t {STAYS} --orig-src {source} --orig-dst {destination} --sport {source_port} --dport {port} \
                 --reply-src {reply_source} --reply-dst {reply_destination} --reply-port-src {reply_source_port} --reply-port-dst {reply_port} >/dev/null",
                flow.protocol
            );
            self.ports.insert(flow.id.clone(), source_port);
        }
        if flows.is_empty() { Ok(()) } else { netns.exec(&["sh", "-c", &script]).map(drop) }
    }

    /// Gives real servers as many connections as wanted, and waits until the kernel counts them.
    pub(super) fn connect(&mut self, netns: &Netns, wanted: &[Connections]) -> Result {
        if wanted.is_empty() {
            return Ok(());
        }
        if !self.has_daemon {
            netns.ip(&format!("link add {SYNCHRONISATION} type dummy\nlink set {SYNCHRONISATION} addrgenmode none\nlink set {SYNCHRONISATION} multicast on up\n"))?;
            netns.exec(&["ipvsadm", "--start-daemon", "backup", "--mcast-interface", SYNCHRONISATION])?;
            self.has_daemon = true;
        }
        let mut told = Vec::new();
        for real in wanted {
            let total =
                real.active.checked_add(real.inactive).filter(|total| *total < GROUP_OF_PORTS).context("too many connections")?;
            let begin = u16::try_from(self.clients.len())
                .ok()
                .and_then(|number| number.checked_mul(GROUP_OF_PORTS)?.checked_add(FIRST_PORT));
            let (begin, count) = self.clients.entry(real.key()).or_insert((begin.context("too many real servers")?, 0));
            for number in 0..total.max(*count) {
                let client = begin.checked_add(number).context("no port is left")?;
                let (flags, timeout) = match number {
                    _ if number < real.active => (0, STAYS),
                    _ if number < total => (INACTIVE, STAYS),
                    _ => (INACTIVE, GOES),
                };
                told.push(connection(real, client, flags, timeout));
            }
            *count = total;
        }
        let own = std::env::current_exe().context("cannot find this program's own path")?;
        let own = own.to_str().context("this program's path is no text")?;
        for chunk in told.chunks(CHUNK) {
            let hex: String = message(chunk)?.iter().map(|byte| format!("{byte:02x}")).collect();
            netns.exec(&[own, "synchronise", SYNCHRONISATION, &hex])?;
        }
        eventually(PATIENCE, || wanted.iter().try_for_each(|real| real.is_counted(netns)))
    }
}

impl Connections {
    fn key(&self) -> String {
        format!("{} {} {}", ipvsadm_protocol(self.protocol), place(self.vip, self.port), place(self.real.0, self.real.1))
    }

    /// A real server that has no connections is allowed to be gone.
    fn is_counted(&self, netns: &Netns) -> Result {
        let listing = netns.exec(&["ipvsadm", "-Ln", ipvsadm_protocol(self.protocol), &place(self.vip, self.port)])?;
        let real = place(self.real.0, self.real.1);
        let counted = listing.lines().find(|line| line.split_whitespace().nth(1) == Some(&real)).map(|line| {
            let mut words = line.split_whitespace().rev().map(|word| word.parse::<u16>().unwrap_or_default());
            let inactive = words.next().unwrap_or_default();
            (words.next().unwrap_or_default(), inactive)
        });
        let wanted = (self.active, self.inactive);
        ensure!(
            counted.unwrap_or_default() == wanted,
            "{real} is to have {} active and {} inactive connections; ipvsadm says {listing}",
            wanted.0,
            wanted.1
        );
        Ok(())
    }
}

impl VirtualServer {
    /// The connections of those real servers that have some.
    pub(super) fn connections(&self) -> impl Iterator<Item = Connections> {
        self.real_servers.iter().filter(|real| real.active + real.inactive > 0).map(|real| Connections {
            protocol: self.protocol,
            vip: self.address,
            port: self.port,
            real: (real.address, real.port),
            active: real.active,
            inactive: real.inactive,
        })
    }
}

/// `struct ip_vs_sync_v4` or `ip_vs_sync_v6`, in network byte order.
fn connection(real: &Connections, client_port: u16, flags: u32, timeout: u32) -> Vec<u8> {
    let (kind, client): (u8, IpAddr) = match real.vip {
        IpAddr::V4(_) => (0, [198, 18, 255, 1].into()),
        IpAddr::V6(_) => (1, [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1].into()),
    };
    // Established or, without connection, the only state there is (`IP_VS_TCP_S_ESTABLISHED`, `IP_VS_UDP_S_NORMAL`, `IP_VS_SCTP_S_ESTABLISHED`).
    let (protocol, state): (u8, u16) = match real.protocol {
        Protocol::Tcp => (6, 1),
        Protocol::Udp => (17, 0),
        Protocol::Sctp => (132, 8),
    };
    let size: u16 = if kind == 0 { 36 } else { 72 };
    let firewall_mark = 0_u32;
    let mut bytes = vec![kind, protocol];
    bytes.extend(size.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    for number in [state, client_port, real.port, real.real.1] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(firewall_mark.to_be_bytes());
    bytes.extend(timeout.to_be_bytes());
    for address in [client, real.vip, real.real.0] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes
}

/// `struct ip_vs_sync_mesg` with its connections.
fn message(connections: &[Vec<u8>]) -> Result<Vec<u8>> {
    let body = connections.concat();
    let size = u16::try_from(8 + body.len()).context("the message is too long")?;
    let count = u8::try_from(connections.len()).context("too many connections for a message")?;
    let (reserved, id, version, spare) = (0, 0, 1, [0, 0]);
    let mut bytes = vec![reserved, id];
    bytes.extend(size.to_be_bytes());
    bytes.extend([count, version]);
    bytes.extend(spare);
    bytes.extend(body);
    Ok(bytes)
}

/// Sends a message, as hexadecimal digits, to the daemon that listens on `interface` of this namespace.
///
/// # Errors
/// When that is no message or cannot be sent.
pub fn send_synchronisation(interface: &str, hex: &str) -> Result {
    let digits: Vec<char> = hex.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).context("no hexadecimal digits");
    let bytes = digits.chunks(2).map(byte).collect::<Result<Vec<_>>>()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("no socket")?;
    SockRef::from(&socket).bind_device(Some(interface.as_bytes())).with_context(|| format!("no device {interface}"))?;
    socket.send_to(&bytes, GROUP).context("cannot send")?;
    Ok(())
}
