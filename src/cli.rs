//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use desired::{InterfacePattern, PortRange, parse_duration};
use ipnetwork::IpNetwork;
use model::Scheduler;

use crate::exit::Exit;
use crate::settings::KubeProxy;
use crate::source::api::Endpoint;
use crate::status::Status;
use crate::top::Top;
use crate::{check, explain, manual, plan_command};

/// Programs the Linux IPVS load balancer from Kubernetes Services.
#[derive(Debug, Parser)]
#[command(name = "kube-ipvs", version, about, after_help = Exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep this node's IPVS table as the Services say, until stopped
    Run(Box<Run>),
    /// Print the configuration that `run` would have with the same flags, and where each value comes from
    #[command(after_help = "Examples:
  kube-ipvs config --config /var/lib/kube-proxy/config.conf
  kube-ipvs config --cluster-cidr 10.244.0.0/16 --scheduler mh")]
    Config(Box<Run>),
    /// Print the kernel's IPVS table, with the Service behind each virtual server
    Status(Box<Status>),
    /// Show Services by what they carry, live, and the servers of each
    Top(Top),
    /// Print what `run` would change in the kernel and which Service asks for it; changes nothing
    Plan(Box<plan_command::Arguments>),
    /// Say in words what becomes of connections to an address or a Service on this node; changes nothing
    Explain(Box<explain::Arguments>),
    /// Look whether this node has what `run` needs and all is as it should be, with the remedy for what is not; changes nothing
    Check(Box<check::Arguments>),
    /// Load kernel modules and set sysctls, which `run` can do without where this has been done: the one part that takes a privileged container. Takes the flags of `run`, and its --config
    #[command(after_help = "Examples:
  kube-ipvs init                     # in an init container, or on the host at boot")]
    Init(Box<Run>),
    /// Remove what an agent has put on this node, and nothing else
    Cleanup(Cleanup),
    /// Print completions for a shell
    #[command(hide = true)]
    Completion(manual::Completion),
    /// Write man pages
    #[command(hide = true)]
    Man(manual::Man),
}

/// Where everything is found that all commands need to agree on.
pub(crate) const CONTROL_SOCKET: &str = "/run/kube-ipvs/kube-ipvs.sock";

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kube-ipvs run                                    # in a pod, with its service account
  kube-ipvs run --kubeconfig /etc/kube-ipvs/kubeconfig --cluster-cidr 10.244.0.0/16
  kube-ipvs run --manifests ./services --node-name node-1 --once")]
pub(crate) struct Run {
    /// A file with a KubeProxyConfiguration as kube-proxy has it, a KubeIPVSConfiguration, or both; followed as it changes. Flags count before
    /// it, the second document before the first (docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) source: Source,

    /// This node's name in the cluster; the host name, in lower case, unless given
    #[arg(long, env = "NODE_NAME", alias = "hostname-override", value_name = "NAME")]
    pub(crate) node_name: Option<String>,

    /// Synchronise once and exit; with 5 if an object was refused or could not be read
    #[arg(long)]
    pub(crate) once: bool,

    /// How often to compare everything the kernel holds with what is desired, and repair it
    #[arg(long, alias = "ipvs-sync-period", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub(crate) audit_period: Duration,

    /// The most of one core, in percent, that may go into these comparisons: where each takes longer than its share of --audit-period, which is so
    /// from some thousands of Services on, the next comes later. 0 for no limit
    #[arg(long, default_value = "0.4", value_name = "PERCENT", value_parser = percent)]
    pub(crate) max_audit_cpu: f64,

    /// How often to look whether other tools have emptied the IPVS table or a set, of which the kernel tells nobody; 0s for never. It asks for a
    /// handful of entries, whatever there is; single ones that others change are for the audit
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration_or_never)]
    pub(crate) check_period: Duration,

    /// URLs at which API servers are reached directly, tried in turn when one of them cannot be called; with the credentials, the root
    /// certificate and the server name of the kubeconfig or the service account. The Service default/kubernetes, which is served by this
    /// agent, is then not needed to reach them. Unless given, the one URL that is configured there
    #[arg(long, value_delimiter = ',', value_name = "URL,…", conflicts_with = "manifests")]
    pub(crate) api_endpoints: Vec<Endpoint>,

    /// How long the API server may tell nothing (a quiet one sends a bookmark about every minute) before /healthz and health check node ports
    /// fail, and how old what was saved may be (--state-dir); 0s for ever. What was told before is served either way
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = duration_or_never)]
    pub(crate) max_staleness: Duration,

    /// A directory to save in what the API server has told, at most once a second. A start to which the API server does not answer within 5 s
    /// adds to the kernel what is missing there of what was saved, and removes nothing until everything has been listed. Unless given, nothing
    /// is saved
    #[arg(long, value_name = "PATH", conflicts_with = "manifests")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Where to serve /healthz and /livez; empty for nowhere
    #[arg(long, default_value = "0.0.0.0:10256", value_name = "IP:PORT", value_parser = Bind::healthz)]
    pub(crate) healthz_bind_address: Bind,

    /// Where to serve /metrics; empty for nowhere
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "IP:PORT", value_parser = Bind::metrics)]
    pub(crate) metrics_bind_address: Bind,

    /// What /metrics tells of connections, packets and bytes, which are read from the kernel when it is asked for, at most once a second
    #[arg(long, default_value = "services", value_name = "DETAIL")]
    pub(crate) traffic_metrics: TrafficMetrics,

    /// How many real servers have counters of their own (with --traffic-metrics real-servers); the number of those left out is a metric as well
    #[arg(long, default_value_t = 1000, value_name = "NUMBER")]
    pub(crate) traffic_metrics_limit: usize,

    /// Serve a page with Services, their real servers and what they carry at / of the metrics address, for a browser. Whoever can reach that
    /// address can see it
    #[arg(long)]
    pub(crate) status_page: bool,

    /// The socket on which other subcommands ask what this agent knows; empty for none
    #[arg(long, default_value = CONTROL_SOCKET, value_name = "PATH", value_parser = path_or_none)]
    pub(crate) control_socket: PathBuf,

    /// On SIGTERM or SIGINT, remove all that this agent has put on the node (as `kube-ipvs cleanup` does) instead of leaving it to
    /// serve; not for a DaemonSet, whose next version takes over what is there
    #[arg(long)]
    pub(crate) cleanup_on_exit: bool,

    /// How log lines look
    #[arg(long, alias = "logging-format", default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or directives as in `kube_ipvs=debug,kube=info`
    #[arg(long, default_value = "info", value_name = "FILTER")]
    pub(crate) log_level: String,

    // Last, because their headings hold for every flag after them.
    #[command(flatten)]
    pub(crate) proxy: Proxy,

    #[command(flatten)]
    pub(crate) kube_proxy: KubeProxy,
}

/// Where Services, EndpointSlices and Nodes come from. Without either flag: the API server of the cluster this pod runs in.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(crate) struct Source {
    /// The kubeconfig file that leads to the API server
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// A YAML or JSON file, or a directory of them, to take objects from instead of an API server; followed as files change
    #[arg(long, value_name = "PATH")]
    pub(crate) manifests: Option<PathBuf>,
}

/// How Services are proxied.
#[derive(Args, Debug)]
#[command(next_help_heading = "Proxying")]
pub(crate) struct Proxy {
    /// The scheduler of Services that do not ask for one by annotation, as ipvsadm -s takes it; where the kernel lacks it, rr
    #[arg(long, alias = "ipvs-scheduler", default_value = "rr", value_name = "NAME")]
    pub(crate) scheduler: Scheduler,

    /// How VIPs are made local to the node
    #[arg(long, default_value = "route", value_name = "HOW")]
    pub(crate) vip_binding: VipBinding,

    /// The node addresses that node ports are served on: `primary` (the Node's own), `all`, or networks and interfaces (`eth0`, or `eth+`
    /// for all that begin so) whose addresses are followed as they change
    #[arg(
        long,
        default_value = "primary",
        value_delimiter = ',',
        value_name = "primary|all|CIDR|INTERFACE,…",
        value_parser = NodePortAddress::parse
    )]
    pub(crate) nodeport_addresses: Vec<NodePortAddress>,

    /// Who has a node port on which a process of this node listens already; the Service gets a problem either way
    #[arg(long, default_value = "service", value_name = "WHO")]
    pub(crate) occupied_node_ports: Occupied,

    /// The ports that the API server hands out as node ports (its --service-node-port-range)
    #[arg(long, alias = "service-node-port-range", default_value_t = PortRange::NODE_PORTS, value_name = "PORT-PORT")]
    pub(crate) node_port_range: PortRange,

    /// Networks whose addresses Services may take as external IPs or load balancer addresses although they are those of another Node, of
    /// the API server or of a default gateway, or in a pod network; without it such an address is refused, since the node could not reach
    /// that machine any more
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub(crate) allow_external_cidrs: Vec<IpNetwork>,

    /// Serve the Services that have this value in the label service.kubernetes.io/service-proxy-name, and no others; without it those that
    /// do not have the label
    #[arg(long, value_name = "NAME", value_parser = label_value)]
    pub(crate) service_proxy_name: Option<String>,

    /// Networks whose load balancer addresses are left to the load balancer: callers inside the cluster go through it too
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub(crate) load_balancer_exclude_cidrs: Vec<IpNetwork>,

    /// Which Nodes to watch at an API server (of manifests all are read). The addresses of other Nodes are needed to refuse Services that would take them; in a cluster of thousands
    /// that is one object per Node every five minutes, which `own` saves, and other Nodes' addresses are then not protected
    #[arg(long, default_value = "all", value_name = "WHICH")]
    pub(crate) watch_nodes: WatchNodes,

    /// Whether VIPs answer pings
    #[arg(long, default_value = "answer", value_name = "HOW")]
    pub(crate) vip_ping: VipPing,

    /// How long a real server that leaves may keep its connections of TCP and SCTP, unless the annotation kube-ipvs.io/drain-timeout of its
    /// Service says otherwise
    #[arg(long, default_value = "15m", value_name = "DURATION", value_parser = duration)]
    pub(crate) drain_timeout: Duration,

    /// How long a real server that leaves may keep its connections, at most, whose endpoint is gone without having been terminating before
    /// or is on a Node that is not ready (which takes --watch-nodes all): it is probably dead, and its clients are told so by a reset when
    /// they send next
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) vanished_drain_timeout: Duration,

    /// How long a real server that leaves may still answer datagrams
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) udp_drain_timeout: Duration,

    /// How long the kernel keeps a TCP connection without packets; 0s leaves that as it is, which is 15 minutes unless somebody has changed
    /// it. The default outlives the keepalive of Linux, which begins after 2 hours and gives up 12 minutes later
    #[arg(long, default_value = "2h15m", value_name = "DURATION", value_parser = seconds)]
    pub(crate) ipvs_tcp_timeout: u32,

    /// How long the kernel keeps a TCP connection after a FIN; 0s leaves that as it is, which is 2 minutes unless somebody has changed it
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = seconds)]
    pub(crate) ipvs_tcpfin_timeout: u32,

    /// How long a client of UDP without packets stays with its real server; 0s leaves that as it is, which is 5 minutes unless somebody has
    /// changed it
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = seconds)]
    pub(crate) ipvs_udp_timeout: u32,

    /// Accept packets to VIPs and node ports ahead of the rest of the INPUT chain, for hosts whose firewall drops by default
    #[arg(long)]
    pub(crate) open_input: bool,

    /// Serve node ports of TCP and UDP on 127.0.0.1 and [::1] as well, through a relay in this process
    #[arg(long)]
    pub(crate) localhost_nodeports: bool,

    /// What becomes of what kube-proxy in IPVS mode has left on the node and the agent has no use for: its chains, the sets that only it
    /// has, virtual servers of node ports on addresses where the agent serves none. What both have is taken over either way
    #[arg(long, default_value = "remove", value_name = "WHAT")]
    pub(crate) kube_proxy_leftovers: KubeProxyLeftovers,

    /// Networks in which no virtual server is ever removed, whoever made it
    #[arg(long, alias = "ipvs-exclude-cidrs", value_delimiter = ',', value_name = "CIDR,…")]
    pub(crate) exclude_cidrs: Vec<IpNetwork>,

    /// The pod networks of the whole cluster; callers from elsewhere are masqueraded (with --detect-local-mode ClusterCIDR). Without it
    /// nothing tells pods from others, and to policy Local pods are callers from outside
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    pub(crate) cluster_cidr: Vec<IpNetwork>,

    /// How callers that are pods of this cluster are told from others
    #[arg(long, default_value = "ClusterCIDR", value_name = "MODE")]
    pub(crate) detect_local_mode: DetectLocalMode,

    /// The bridge that pods are on (with --detect-local-mode BridgeInterface)
    #[arg(long, alias = "pod-bridge-interface", value_name = "NAME")]
    pub(crate) bridge_interface: Option<String>,

    /// What the names of pods' interfaces begin with (with --detect-local-mode InterfaceNamePrefix)
    #[arg(long, alias = "pod-interface-name-prefix", value_name = "PREFIX")]
    pub(crate) interface_name_prefix: Option<String>,

    /// Masquerade every caller of a ClusterIP
    #[arg(long)]
    pub(crate) masquerade_all: bool,

    /// The source ports that masqueraded callers get: none of --node-port-range; the longer part of 1024-65535 beside that unless given
    #[arg(long, value_name = "PORT-PORT")]
    pub(crate) masquerade_port_range: Option<PortRange>,

    /// Leave a load balancer address open in a family for which loadBalancerSourceRanges has no network, as kube-proxy does, instead of
    /// closing it
    #[arg(long)]
    pub(crate) source_ranges_per_family: bool,

    /// Which bit of the packet mark says "masquerade"
    #[arg(long, alias = "iptables-masquerade-bit", default_value_t = 14, value_name = "0-31", value_parser = clap::value_parser!(u8).range(0..=31))]
    pub(crate) masquerade_bit: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrafficMetrics {
    /// Nothing
    Off,
    /// Those of each port of a Service
    Services,
    /// Those of its real servers as well, which takes a question to the kernel for each virtual server
    RealServers,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum VipBinding {
    /// A local host route each on kube-ipvs0: nothing on the node takes a VIP for an address of its own
    Route,
    /// An address each on kube-ipvs0, as kube-proxy does
    Address,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Occupied {
    /// The Service, as with kube-proxy: the process gets no calls from outside
    Service,
    /// The process: the node port is not served on the addresses where it listens
    Process,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KubeProxyLeftovers {
    /// It goes when everything is served; connections to virtual servers that go are drained first
    Remove,
    /// It stays, and is in force beside the agent's own
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WatchNodes {
    /// All of them
    All,
    /// Only the one the agent runs on
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VipPing {
    /// Those that are bound answer
    Answer,
    /// They are refused, as kube-proxy does
    Refuse,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DetectLocalMode {
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    #[value(name = "NodeCIDR")]
    NodeCidr,
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

/// A value of a Kubernetes label, which becomes part of a selector.
fn label_value(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    let is_value = ends.iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    if is_value && text.len() <= 63 && text.bytes().all(inner) {
        return Ok(text.to_owned());
    }
    Err("expected the value of a label: 1 to 63 ASCII letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        .to_owned())
}

/// One value of `--nodeport-addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodePortAddress {
    Primary,
    All,
    Network(IpNetwork),
    Interface(InterfacePattern),
}

impl NodePortAddress {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            _ => {
                text.parse().map(Self::Network).or_else(|_| text.parse().map(Self::Interface)).map_err(|_| {
                    "expected primary, all, networks such as 192.0.2.0/24, or interfaces such as eth0 or eth+".to_owned()
                })
            }
        }
    }
}

/// An address to listen on, or nowhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bind(pub(crate) Option<SocketAddr>);

impl Bind {
    fn healthz(text: &str) -> Result<Self, String> {
        Self::parse(text, config::HEALTHZ_PORT)
    }

    fn metrics(text: &str) -> Result<Self, String> {
        Self::parse(text, config::METRICS_PORT)
    }

    fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        config::parse_bind(text, default_port)
            .map(|address| Self(Some(address)))
            .ok_or_else(|| "expected IP:PORT such as 127.0.0.1:10249 or [::]:10256".to_owned())
    }
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kube-ipvs cleanup                  # when no agent runs any more
  kube-ipvs cleanup --hand-over      # when kube-proxy in IPVS mode has taken over
  kube-ipvs cleanup --kube-proxy     # with what kube-proxy in IPVS mode has left")]
pub(crate) struct Cleanup {
    /// Remove what is left of kube-proxy's IPVS mode as well: its chains, sets and virtual servers, by the names that it gives them
    #[arg(long, conflicts_with = "hand_over")]
    pub(crate) kube_proxy: bool,

    /// Leave what kube-proxy in IPVS mode has taken over: virtual servers by address, sets with its names, addresses on kube-ipvs0
    #[arg(long)]
    pub(crate) hand_over: bool,

    /// Networks in which no virtual server is removed, as with `run`
    #[arg(long, alias = "ipvs-exclude-cidrs", value_delimiter = ',', value_name = "CIDR,…")]
    pub(crate) exclude_cidrs: Vec<IpNetwork>,

    /// The socket by which to see whether an agent runs, beside which nothing is removed; empty for not looking
    #[arg(long, default_value = CONTROL_SOCKET, value_name = "PATH", value_parser = path_or_none)]
    pub(crate) control_socket: PathBuf,

    /// Remove everything although an agent runs, which will put it back
    #[arg(long)]
    pub(crate) force: bool,
}

impl Cleanup {
    /// What `run --cleanup` asks for, which with kube-proxy means its own traces too.
    pub(crate) fn of(run: &Run) -> Self {
        Self {
            kube_proxy: true,
            hand_over: false,
            exclude_cidrs: run.proxy.exclude_cidrs.clone(),
            control_socket: run.control_socket.clone(),
            force: false,
        }
    }
}

/// A path, or the empty one: clap's own parser takes an empty value for a missing one.
pub(crate) fn path_or_none(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// Reads a duration that is above zero.
fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a duration above zero such as 30s, 500ms or 1m30s".to_owned())
}

/// Reads a duration in whole seconds, as IPVS has its time-outs.
fn seconds(text: &str) -> Result<u32, String> {
    // The kernel counts in ticks, of which a kernel has at most 1,000 a second, and takes no more than an int of them (`ip_vs_set_timeout`).
    const MOST: u32 = i32::MAX.unsigned_abs() / 1000;
    parse_duration(text)
        .filter(|duration| duration.subsec_nanos() == 0)
        .and_then(|duration| u32::try_from(duration.as_secs()).ok())
        .filter(|seconds| *seconds <= MOST)
        .ok_or_else(|| "expected whole seconds, at most 24 days, such as 900s or 2h15m, or 0s to leave it as it is".to_owned())
}

/// Reads a duration, or `0s`.
fn duration_or_never(text: &str) -> Result<Duration, String> {
    if text == "0s" { Ok(Duration::ZERO) } else { duration(text).map_err(|error| format!("{error}, or 0s for never")) }
}

/// A part of the whole, in percent.
fn percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "expected a number of percent from 0 to 100, such as 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_can_be_switched_off_is_by_an_empty_value() {
        let off = ["--control-socket", "", "--healthz-bind-address", "", "--metrics-bind-address="];
        let cli = Cli::try_parse_from(["kube-ipvs", "run"].iter().chain(&off)).unwrap();
        let Command::Run(run) = cli.command else { panic!("another command") };
        assert!(run.control_socket.as_os_str().is_empty());
        assert!(run.healthz_bind_address.0.is_none() && run.metrics_bind_address.0.is_none());
    }

    #[test]
    fn durations_are_read_as_kubectl_writes_them() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "30", "s", "-1s", "0s", "1y", "99999999999999999999h", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_period_may_be_never() {
        assert_eq!(duration_or_never("0s"), Ok(Duration::ZERO));
        assert_eq!(duration_or_never("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration_or_never("0").unwrap_err().contains("0s for never"));
    }

    #[test]
    fn a6_time_outs_are_whole_seconds_and_may_be_left_alone() {
        assert_eq!(seconds("0s"), Ok(0));
        assert_eq!(seconds("2h15m"), Ok(8_100));
        assert_eq!(seconds("1000ms"), Ok(1));
        for wrong in ["", "0", "1500ms", "25h600h", "600h", "-1s"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_invalid_value_names_the_flag_and_what_is_allowed() {
        let wrong = |arguments: &[&str]| Cli::try_parse_from(["kube-ipvs", "run"].iter().chain(arguments)).unwrap_err().to_string();
        let message = wrong(&["--vip-binding", "magic"]);
        assert!(message.contains("--vip-binding") && message.contains("route, address"), "{message}");
        let message = wrong(&["--nodeport-addresses", "eth0/8"]);
        assert!(message.contains("--nodeport-addresses") && message.contains("primary, all, networks such as"), "{message}");
        let message = wrong(&["--nodeport-addresses", "192.0.2.300"]);
        assert!(message.contains("or interfaces such as eth0"), "{message}");
        let message = wrong(&["--masquerade-port-range", "70000"]);
        assert!(message.contains("--masquerade-port-range") && message.contains("such as 32768-65535"), "{message}");
        let message = wrong(&["--scheduler", "much too long a name"]);
        assert!(message.contains("--scheduler") && message.contains("rr, wlc or mh"), "{message}");
        let message = wrong(&["--manifests", "a", "--kubeconfig", "b"]);
        assert!(message.contains("cannot be used with"), "{message}");
    }
}
