//! The fields of a `KubeProxyConfiguration`, v1alpha1, as of Kubernetes 1.36.

use crate::kind::Kind;

/// A field of a `KubeProxyConfiguration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it is, as `ipvs.scheduler`.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its value where none is given, in the words of a command line; empty for none.
    pub default: &'static str,
    /// What becomes of it.
    pub effect: Effect,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is the same as this flag of `kube-ipvs run`, without the dashes.
    Flag(&'static str),
    /// The same; and zero, which Go cannot tell from nothing, is no value.
    FlagUnlessZero(&'static str),
    /// It is accepted and changes nothing, for this reason. kube-proxy has this flag for it, if any.
    None(Option<&'static str>, &'static str),
    /// It is looked at when the file is read, and not needed later.
    Read,
}

impl Field {
    /// The flag of the same meaning, without the dashes.
    #[must_use]
    pub const fn flag(&self) -> Option<&'static str> {
        match self.effect {
            Effect::Flag(flag) | Effect::FlagUnlessZero(flag) => Some(flag),
            Effect::None(flag, _) => flag,
            Effect::Read => None,
        }
    }

    const fn new(path: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Self {
        Self { path, kind, default, effect }
    }
}

/// The port of the health server unless another is given.
pub const HEALTHZ_PORT: u16 = 10256;
/// The port of the metrics server unless another is given.
pub const METRICS_PORT: u16 = 10249;

const COUNT: Kind = Kind::Integer(0, i32::MAX as i64);

const REQUESTS: &str = "the agent paces its few requests itself";
const ENCODING: &str = "the agent reads JSON";
const LOGS: &str = "the agent writes each line at once to standard error";
const IPTABLES: &str = "it is for the iptables mode";
const NFTABLES: &str = "it is for the nftables mode";
const WINDOWS: &str = "it is for Windows";

use Effect::{Flag, FlagUnlessZero, None as Nothing, Read};

/// All fields, in the order in which kube-proxy writes them.
pub const FIELDS: &[Field] = &[
    Field::new("featureGates", Kind::Gates, "", Flag("feature-gates")),
    Field::new("clientConnection.kubeconfig", Kind::Text, "", Flag("kubeconfig")),
    Field::new("clientConnection.acceptContentTypes", Kind::Text, "", Nothing(None, ENCODING)),
    Field::new(
        "clientConnection.contentType",
        Kind::Text,
        "application/vnd.kubernetes.protobuf",
        Nothing(Some("kube-api-content-type"), ENCODING),
    ),
    Field::new("clientConnection.qps", Kind::Number, "5", Nothing(Some("kube-api-qps"), REQUESTS)),
    Field::new("clientConnection.burst", COUNT, "10", Nothing(Some("kube-api-burst"), REQUESTS)),
    Field::new("logging.format", Kind::OneOf(&["text", "json"]), "text", Flag("log-format")),
    Field::new("logging.flushFrequency", Kind::Nanoseconds, "5s", Nothing(Some("log-flush-frequency"), LOGS)),
    Field::new("logging.verbosity", COUNT, "0", FlagUnlessZero("v")),
    Field::new(
        "logging.vmodule",
        Kind::Patterns,
        "",
        Nothing(Some("vmodule"), "it names files of kube-proxy's source; see --log-level"),
    ),
    Field::new("logging.options.text.splitStream", Kind::Switch, "false", Nothing(Some("log-text-split-stream"), LOGS)),
    Field::new("logging.options.text.infoBufferSize", Kind::Quantity, "0", Nothing(Some("log-text-info-buffer-size"), LOGS)),
    Field::new("logging.options.json.splitStream", Kind::Switch, "false", Nothing(Some("log-json-split-stream"), LOGS)),
    Field::new("logging.options.json.infoBufferSize", Kind::Quantity, "0", Nothing(Some("log-json-info-buffer-size"), LOGS)),
    Field::new("hostnameOverride", Kind::Text, "", Flag("node-name")),
    Field::new("bindAddress", Kind::Address, "0.0.0.0", Read),
    Field::new("healthzBindAddress", Kind::Bind(HEALTHZ_PORT), "0.0.0.0:10256", Flag("healthz-bind-address")),
    Field::new("metricsBindAddress", Kind::Bind(METRICS_PORT), "127.0.0.1:10249", Flag("metrics-bind-address")),
    Field::new("bindAddressHardFail", Kind::Switch, "false", Flag("bind-address-hard-fail")),
    Field::new("enableProfiling", Kind::Switch, "false", Nothing(Some("profiling"), "there is no Go runtime to profile")),
    Field::new(
        "showHiddenMetricsForVersion",
        Kind::Text,
        "",
        Nothing(Some("show-hidden-metrics-for-version"), "no metric is hidden"),
    ),
    Field::new("mode", Kind::Text, "ipvs", Read),
    Field::new("iptables.masqueradeBit", Kind::Integer(0, 31), "14", Flag("masquerade-bit")),
    Field::new("iptables.masqueradeAll", Kind::Switch, "false", Flag("masquerade-all")),
    Field::new(
        "iptables.localhostNodePorts",
        Kind::Switch,
        "true",
        Nothing(Some("iptables-localhost-nodeports"), "it is for the iptables mode; see --localhost-nodeports"),
    ),
    Field::new("iptables.syncPeriod", Kind::Duration, "0s", Nothing(Some("iptables-sync-period"), IPTABLES)),
    Field::new("iptables.minSyncPeriod", Kind::Duration, "0s", Nothing(Some("iptables-min-sync-period"), IPTABLES)),
    Field::new("ipvs.syncPeriod", Kind::Duration, "30s", FlagUnlessZero("audit-period")),
    Field::new(
        "ipvs.minSyncPeriod",
        Kind::Duration,
        "0s",
        Nothing(Some("ipvs-min-sync-period"), "a change costs what it changes, and is applied at once"),
    ),
    Field::new("ipvs.scheduler", Kind::Text, "", Flag("scheduler")),
    Field::new("ipvs.excludeCIDRs", Kind::Networks, "", Flag("exclude-cidrs")),
    Field::new("ipvs.strictARP", Kind::Switch, "false", Flag("ipvs-strict-arp")),
    Field::new("ipvs.tcpTimeout", Kind::Duration, "0s", FlagUnlessZero("ipvs-tcp-timeout")),
    Field::new("ipvs.tcpFinTimeout", Kind::Duration, "0s", FlagUnlessZero("ipvs-tcpfin-timeout")),
    Field::new("ipvs.udpTimeout", Kind::Duration, "0s", FlagUnlessZero("ipvs-udp-timeout")),
    Field::new("nftables.masqueradeBit", Kind::Integer(0, 31), "14", Nothing(None, NFTABLES)),
    Field::new("nftables.masqueradeAll", Kind::Switch, "false", Nothing(None, NFTABLES)),
    Field::new("nftables.syncPeriod", Kind::Duration, "0s", Nothing(None, NFTABLES)),
    Field::new("nftables.minSyncPeriod", Kind::Duration, "0s", Nothing(None, NFTABLES)),
    Field::new("winkernel.networkName", Kind::Text, "", Nothing(None, WINDOWS)),
    Field::new("winkernel.sourceVip", Kind::Text, "", Nothing(None, WINDOWS)),
    Field::new("winkernel.enableDSR", Kind::Switch, "false", Nothing(None, WINDOWS)),
    Field::new("winkernel.rootHnsEndpointName", Kind::Text, "", Nothing(None, WINDOWS)),
    Field::new("winkernel.forwardHealthCheckVip", Kind::Switch, "false", Nothing(None, WINDOWS)),
    Field::new(
        "detectLocalMode",
        Kind::OneOf(&["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]),
        "ClusterCIDR",
        Flag("detect-local-mode"),
    ),
    Field::new("detectLocal.bridgeInterface", Kind::Text, "", Flag("bridge-interface")),
    Field::new("detectLocal.interfaceNamePrefix", Kind::Text, "", Flag("interface-name-prefix")),
    Field::new("clusterCIDR", Kind::JoinedNetworks, "", Flag("cluster-cidr")),
    Field::new("nodePortAddresses", Kind::NodePortAddresses, "", Flag("nodeport-addresses")),
    Field::new("oomScoreAdj", Kind::Integer(-1000, 1000), "-999", Flag("oom-score-adj")),
    Field::new("conntrack.maxPerCore", COUNT, "32768", Flag("conntrack-max-per-core")),
    Field::new("conntrack.min", COUNT, "131072", Flag("conntrack-min")),
    Field::new("conntrack.tcpEstablishedTimeout", Kind::Duration, "24h0m0s", Flag("conntrack-tcp-timeout-established")),
    Field::new("conntrack.tcpCloseWaitTimeout", Kind::Duration, "1h0m0s", Flag("conntrack-tcp-timeout-close-wait")),
    Field::new("conntrack.tcpBeLiberal", Kind::Switch, "false", Flag("conntrack-tcp-be-liberal")),
    Field::new("conntrack.udpTimeout", Kind::Duration, "0s", Flag("conntrack-udp-timeout")),
    Field::new("conntrack.udpStreamTimeout", Kind::Duration, "0s", Flag("conntrack-udp-timeout-stream")),
    Field::new(
        "configSyncPeriod",
        Kind::Duration,
        "15m0s",
        Nothing(Some("config-sync-period"), "objects are watched, and listed again where a watch may have missed something"),
    ),
    Field::new("portRange", Kind::Text, "", Nothing(None, "kube-proxy has no userspace mode any more")),
    Field::new("windowsRunAsService", Kind::Switch, "false", Nothing(None, WINDOWS)),
];
