//! The command line of `kube-ipvs status`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use desired::parse_duration;
use model::{Family, Protocol, VirtualServerKey};

use super::filter::{EndpointPattern, Filter, ServicePattern};
use super::text::Columns;
use crate::cli::CONTROL_SOCKET;

#[derive(Args, Debug)]
#[command(after_help = "Options that ipvsadm has mean what they do there, so that `kube-ipvs status -Ln --stats` works.

Examples:
  kube-ipvs status
  kube-ipvs status --rate --sort=bytes --watch
  kube-ipvs status --service shop/web -o wide
  kube-ipvs status --drifted                       # what is not as the agent wants it
  kube-ipvs status -c --endpoint 10.244.1.7        # who is connected to a pod
  kube-ipvs status -o json | jq '.virtualServers[].service'")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line, each of which may be given or not")]
pub(crate) struct Status {
    /// The columns to print
    #[command(flatten)]
    pub(crate) columns: ColumnFlags,

    /// Print connections, one a line, as they are read
    #[arg(short = 'c', long, conflicts_with_all = ["ColumnFlags", "sort", "no_servers", "draining", "drifted"])]
    pub(crate) connection: bool,

    /// Print how long idle connections are kept, in seconds, and nothing else
    #[arg(long, conflicts_with_all = ["ColumnFlags", "connection", "sort", "Filters"])]
    pub(crate) timeout: bool,

    /// Print numbers in full instead of thousands (K), millions (M) and so on
    #[arg(long)]
    pub(crate) exact: bool,

    /// Print addresses and ports alone, and ask no agent for names
    #[arg(short, long)]
    pub(crate) numeric: bool,

    /// Print exactly what `ipvsadm -Ln` does, in its order and without anything of ours
    #[arg(long, conflicts_with_all = ["output", "sort", "namespace", "service", "draining", "drifted", "endpoint", "vip", "no_servers"])]
    pub(crate) ipvsadm: bool,

    /// In which order to print virtual servers; without a value by address
    #[arg(long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "address", default_value = "address")]
    pub(crate) sort: SortBy,

    #[command(flatten)]
    pub(crate) filters: Filters,

    /// How to print the table
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,

    /// Print again and again, so often; without a value every 2s
    #[arg(
        short,
        long,
        value_name = "PERIOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = period,
        conflicts_with = "timeout"
    )]
    pub(crate) watch: Option<Duration>,

    /// The running agent's socket, which knows Services, pods and what is desired
    #[arg(long, default_value = CONTROL_SOCKET, value_name = "PATH")]
    pub(crate) control_socket: PathBuf,

    /// Nothing: listing is what this command does, and ipvsadm wants to be told
    #[arg(short = 'L', short_alias = 'l', long, hide = true)]
    pub(crate) list: bool,
}

/// Which columns to print; those of `ipvsadm -Ln` unless told otherwise.
#[derive(Args, Debug)]
#[group(id = "ColumnFlags", multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line, of which one may be given")]
pub(crate) struct ColumnFlags {
    /// Print what has been counted since each was made: connections, packets and bytes
    #[arg(long)]
    stats: bool,

    /// Print the rates that the kernel estimates over the last seconds: connections, packets and bytes a second
    #[arg(long)]
    rate: bool,

    /// Print the limits of connections
    #[arg(long)]
    thresholds: bool,

    /// Print templates of persistence
    #[arg(long)]
    persistent_conn: bool,
}

/// What to print; everything unless told otherwise, and what is asked for several times over must all be so.
#[derive(Args, Debug)]
#[group(id = "Filters", multiple = true)]
#[command(next_help_heading = "Filters")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line, each of which may be given or not")]
pub(crate) struct Filters {
    /// The virtual server of TCP at this address
    #[arg(short, long, value_name = "ADDRESS:PORT", group = "Frontend")]
    tcp_service: Option<SocketAddr>,

    /// The virtual server of UDP at this address
    #[arg(short, long, value_name = "ADDRESS:PORT", group = "Frontend")]
    udp_service: Option<SocketAddr>,

    /// The virtual server of SCTP at this address
    #[arg(long, value_name = "ADDRESS:PORT", group = "Frontend")]
    sctp_service: Option<SocketAddr>,

    /// The virtual server for packets with this firewall mark
    #[arg(short, long, value_name = "MARK", group = "Frontend")]
    fwmark_service: Option<NonZeroU32>,

    /// With -f: the one for IPv6
    #[arg(short = '6', long, requires = "fwmark_service")]
    ipv6: bool,

    /// Services of this namespace
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "numeric")]
    namespace: Option<String>,

    /// One Service; of any namespace, unless that is named
    #[arg(long, value_name = "[NAMESPACE/]NAME", conflicts_with = "numeric")]
    service: Option<ServicePattern>,

    /// Virtual servers at this address, whatever their port
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<IpAddr>,

    /// Virtual servers with this real server, or one of this address
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    endpoint: Option<EndpointPattern>,

    /// Virtual servers that serve nobody: they have no real server, or none that takes new connections
    #[arg(long)]
    no_servers: bool,

    /// Virtual servers with real servers that are leaving
    #[arg(long)]
    draining: bool,

    /// Virtual servers that are not in the kernel as the agent wants them, for longer than a moment
    #[arg(long, conflicts_with = "numeric")]
    drifted: bool,
}

/// In which order virtual servers come. By numbers the largest is first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// By address, port and protocol, those behind marks last
    #[default]
    Address,
    /// By Service, those without one last
    Name,
    /// By active connections
    Connections,
    /// By new connections a second
    Rate,
    /// By packets a second, both ways
    Packets,
    /// By bytes a second, both ways
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// The columns of ipvsadm -Ln, and the names behind
    Text,
    /// The same, with nodes, what a mark is for, and what has drifted how
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

impl ColumnFlags {
    pub(crate) const fn columns(&self) -> Columns {
        match self {
            Self { stats: true, .. } => Columns::Stats,
            Self { rate: true, .. } => Columns::Rate,
            Self { thresholds: true, .. } => Columns::Thresholds,
            Self { persistent_conn: true, .. } => Columns::PersistentConnections,
            _ => Columns::Plain,
        }
    }
}

impl Filters {
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            key: self.key(),
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            vip: self.vip,
            endpoint: self.endpoint,
            no_servers: self.no_servers,
            draining: self.draining,
            drifted: self.drifted,
        }
    }

    fn key(&self) -> Option<VirtualServerKey> {
        let at = |protocol| move |address: SocketAddr| VirtualServerKey::address(address.ip(), protocol, address.port());
        let family = if self.ipv6 { Family::V6 } else { Family::V4 };
        let behind_mark = self.fwmark_service.map(|mark| VirtualServerKey::Mark { family, mark });
        let tcp = self.tcp_service.map(at(Protocol::Tcp));
        tcp.or_else(|| self.udp_service.map(at(Protocol::Udp)))
            .or_else(|| self.sctp_service.map(at(Protocol::Sctp)))
            .or(behind_mark)
    }
}

/// A tenth of a second is as often as anybody can read, and reading the table of a large node takes as long.
fn period(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|period| *period >= Duration::from_millis(100))
        .ok_or_else(|| "expected a duration of at least 100ms, such as 2s or 500ms".to_owned())
}
