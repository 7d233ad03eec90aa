//! kube-proxy's flags, so that a DaemonSet written for it works as it is.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Id};
use config::{Effect, FIELDS, Kind};

use crate::source::api::Endpoint;

/// Flags that have with kube-proxy the meaning that they have here.
#[derive(Args, Debug)]
#[command(next_help_heading = "As kube-proxy has them")]
pub(crate) struct KubeProxy {
    /// What to log, as a number: below 4 is `--log-level info`, 4 and 5 debug, above that trace
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub(crate) v: Option<u32>,

    /// The API server's URL, instead of the one that the kubeconfig or the service account names
    #[arg(long, value_name = "URL")]
    pub(crate) master: Option<Endpoint>,

    /// Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2: then no other node answers for a VIP, as MetalLB in layer 2 mode needs it
    #[arg(long)]
    pub(crate) ipvs_strict_arp: bool,

    /// Connections that the node can track, for each processor; 0 leaves what there is. It is raised, and never lowered
    #[arg(long, default_value = "32768", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub(crate) conntrack_max_per_core: u32,

    /// Connections that the node can track, at least; ignored when --conntrack-max-per-core is 0
    #[arg(long, default_value = "131072", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub(crate) conntrack_min: u32,

    /// How long a TCP connection without packets is tracked; 0s leaves what there is
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = super::parsers::seconds)]
    pub(crate) conntrack_tcp_timeout_established: Duration,

    /// How long a TCP connection that one side has closed is tracked; 0s leaves what there is
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = super::parsers::seconds)]
    pub(crate) conntrack_tcp_timeout_close_wait: Duration,

    /// Track TCP connections although packets are out of their window
    #[arg(long)]
    pub(crate) conntrack_tcp_be_liberal: bool,

    /// How long a UDP flow is tracked that had no answer; 0s leaves what there is
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = super::parsers::seconds)]
    pub(crate) conntrack_udp_timeout: Duration,

    /// How long a UDP flow with answers is tracked; 0s leaves what there is
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = super::parsers::seconds)]
    pub(crate) conntrack_udp_timeout_stream: Duration,

    /// How unlikely the kernel is to end this process for want of memory, from -1000 for never to 1000
    #[arg(long, default_value = "-999", value_name = "NUMBER", allow_hyphen_values = true, value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub(crate) oom_score_adj: i16,

    /// End with 1 when /healthz or /metrics cannot be served, instead of trying again
    #[arg(long)]
    pub(crate) bind_address_hard_fail: bool,

    /// Kubernetes' feature gates. AllowServiceExternalIPs=false leaves out all external IPs; the others do nothing here
    #[arg(long, value_delimiter = ',', value_name = "NAME=BOOL,…", value_parser = super::parsers::gate)]
    pub(crate) feature_gates: Vec<String>,

    /// Empty or ipvs: there is no other mode
    #[arg(long, value_name = "MODE", value_parser = super::parsers::mode)]
    pub(crate) proxy_mode: Option<String>,

    /// Do what `kube-ipvs init` does, and end
    #[arg(long)]
    pub(crate) init_only: bool,

    /// Do what `kube-ipvs cleanup` does, and end
    #[arg(long)]
    pub(crate) cleanup: bool,

    /// Write the configuration to a file as kube-proxy has it, and end
    #[arg(long, value_name = "PATH")]
    pub(crate) write_config_to: Option<PathBuf>,

    /// The port of /healthz, 0 for none: --healthz-bind-address is meant
    #[arg(long, value_name = "PORT", hide = true)]
    pub(crate) healthz_port: Option<u16>,

    /// The port of /metrics, 0 for none: --metrics-bind-address is meant
    #[arg(long, value_name = "PORT", hide = true)]
    pub(crate) metrics_port: Option<u16>,

    #[command(flatten)]
    pub(crate) idle: Idle,
}

/// Flags of kube-proxy that are accepted and do nothing: those that were given, without dashes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Idle(pub(crate) Vec<&'static str>);

/// A flag that does nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleFlag {
    pub(crate) name: &'static str,
    is_switch: bool,
    /// Why it does nothing.
    pub(crate) reason: &'static str,
}

const LOG_FILES: &str = "the agent logs to standard error";

/// Flags that no field of a `KubeProxyConfiguration` has.
const WITHOUT_FIELD: &[IdleFlag] = &[
    IdleFlag { name: "bind-address", is_switch: false, reason: "kube-proxy binds nothing to it either" },
    IdleFlag { name: "boot-id-file", is_switch: false, reason: "no machine statistics are kept" },
    IdleFlag { name: "machine-id-file", is_switch: false, reason: "no machine statistics are kept" },
    IdleFlag { name: "proxy-port-range", is_switch: false, reason: "kube-proxy has no userspace mode any more" },
    IdleFlag { name: "windows-run-as-service", is_switch: true, reason: "it is for Windows" },
    IdleFlag { name: "add-dir-header", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "alsologtostderr", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "log-backtrace-at", is_switch: false, reason: LOG_FILES },
    IdleFlag { name: "log-dir", is_switch: false, reason: LOG_FILES },
    IdleFlag { name: "log-file", is_switch: false, reason: LOG_FILES },
    IdleFlag { name: "log-file-max-size", is_switch: false, reason: LOG_FILES },
    IdleFlag { name: "logtostderr", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "one-output", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "skip-headers", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "skip-log-headers", is_switch: true, reason: LOG_FILES },
    IdleFlag { name: "stderrthreshold", is_switch: false, reason: LOG_FILES },
];

/// All flags that are accepted and do nothing.
pub(crate) fn idle_flags() -> impl Iterator<Item = IdleFlag> {
    let of_fields = FIELDS.iter().filter_map(|field| match field.effect {
        Effect::None(Some(name), reason) => Some(IdleFlag { name, is_switch: field.kind == Kind::Switch, reason }),
        _ => None,
    });
    of_fields.chain(WITHOUT_FIELD.iter().copied())
}

impl Args for Idle {
    fn augment_args(command: Command) -> Command {
        idle_flags().fold(command, |command, flag| {
            let parser = if flag.is_switch { ValueParser::bool() } else { ValueParser::string() };
            let argument = Arg::new(flag.name).long(flag.name).hide(true).value_parser(parser).help(flag.reason);
            command.arg(if flag.is_switch { argument.action(ArgAction::SetTrue) } else { argument.allow_hyphen_values(true) })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }

    fn group_id() -> Option<Id> {
        None
    }
}

impl clap::FromArgMatches for Idle {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |flag: &IdleFlag| {
            matches.value_source(flag.name).is_some_and(|source| source != clap::parser::ValueSource::DefaultValue)
        };
        Ok(Self(idle_flags().filter(given).map(|flag| flag.name).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
