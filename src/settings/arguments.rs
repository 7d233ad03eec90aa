//! The command line as it is given, to the one that clap reads: kube-proxy is called without a subcommand, and Go reads flags its own way.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::ValueParser;
use clap::{ArgAction, Command, CommandFactory};

use crate::cli::Cli;

/// Under this name the program is called as kube-proxy is.
const KUBE_PROXY: &str = "kube-proxy";
/// What may come first without being a flag of `run`.
const OF_PROGRAM: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// The command line that clap is to read. Flags without a subcommand are those of `run`, as is everything under the name of kube-proxy.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given = given.into_iter();
    let program = given.next().unwrap_or_else(|| "kube-ipvs".into());
    let rest: Vec<_> = given.map(|argument| as_clap_has_it(&argument)).collect();
    let first = rest.first().map(|first| first.to_string_lossy().into_owned());
    let is_kube_proxy = Path::new(&program).file_name() == Some(OsStr::new(KUBE_PROXY));
    let is_flag = |first: &str| first.starts_with('-') && (is_kube_proxy || !OF_PROGRAM.contains(&first));
    let runs = first.as_deref().map_or(is_kube_proxy, is_flag);
    [program].into_iter().chain(runs.then(|| "run".into())).chain(rest).collect()
}

/// Go's flags may have underscores for dashes, and `--version` a value.
fn as_clap_has_it(argument: &OsStr) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else { return argument.to_owned() };
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let name = name.replace('_', "-");
    match value {
        Some(_) if name == "--version" => name.into(),
        Some(value) => format!("{name}={value}").into(),
        None => name.into(),
    }
}

/// The command line's grammar: clap's of [`Cli`], and as Go has it that a switch takes `=true` and `=false` and that the last of several counts.
pub(crate) fn command() -> Command {
    let of_go = |command: Command| {
        command.args_override_self(true).mut_args(|argument| match argument.get_action() {
            ArgAction::SetTrue => argument
                .action(ArgAction::Set)
                .value_parser(ValueParser::bool())
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true),
            _ => argument,
        })
    };
    let command = Cli::command().propagate_version(true);
    ["run", "config", "init", "plan", "explain", "check"]
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, of_go))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Run;
    use clap::FromArgMatches;

    fn read(given: &str) -> Vec<String> {
        arguments(given.split(' ').map(OsString::from)).into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    fn run(given: &str) -> Run {
        let matches = command().try_get_matches_from(read(given)).unwrap();
        Run::from_arg_matches(matches.subcommand().unwrap().1).unwrap()
    }

    #[test]
    fn kube_proxys_command_runs() {
        let given = "/usr/local/bin/kube-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=node-1";
        assert_eq!(read(given)[1..], ["run", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node-1"]);
        assert_eq!(read("kube-ipvs --config=a")[1..], ["run", "--config=a"]);
        assert_eq!(read("kube-proxy")[1..], ["run"]);
        assert_eq!(read("kube-proxy --help")[1..], ["run", "--help"]);
        for other in ["kube-ipvs", "kube-ipvs --help", "kube-ipvs -V", "kube-ipvs status", "kube-proxy status"] {
            assert_eq!(read(other), other.split(' ').collect::<Vec<_>>());
        }
        assert_eq!(read("kube-proxy --version=true")[1..], ["run", "--version"]);
        assert_eq!(
            read("a run --hostname_override=a_b --nodeport_addresses c_d")[2..],
            ["--hostname-override=a_b", "--nodeport-addresses", "c_d"]
        );
    }

    #[test]
    fn switches_take_a_value_and_the_last_of_several_counts() {
        assert!(run("a run --masquerade-all").proxy.masquerade_all);
        assert!(run("a run --masquerade-all=true").proxy.masquerade_all);
        assert!(!run("a run --masquerade-all=false").proxy.masquerade_all);
        assert!(!run("a run").proxy.masquerade_all);
        assert_eq!(run("a run --v=2 --v=5").kube_proxy.v, Some(5));
        assert_eq!(run("a run -v 4").kube_proxy.v, Some(4));
        assert_eq!(run("a run --cluster-cidr 10.0.0.0/8,fd00::/8").proxy.cluster_cidr.len(), 2);
        assert_eq!(run("a run --cluster-cidr 10.0.0.0/8 --cluster-cidr fd00::/8").proxy.cluster_cidr.len(), 2, "lists grow");
    }

    #[test]
    fn every_flag_of_kube_proxy_is_taken() {
        let run = run(
            "kube-proxy --bind-address=0.0.0.0 --bind-address-hard-fail --boot-id-file=x --cleanup=false --cluster-cidr=10.244.0.0/16 \
            --config-sync-period=15m0s --conntrack-max-per-core=32768 --conntrack-min=131072 --conntrack-tcp-be-liberal \
            --conntrack-tcp-timeout-close-wait=1h0m0s --conntrack-tcp-timeout-established=24h0m0s --conntrack-udp-timeout=0s \
            --conntrack-udp-timeout-stream=0s --detect-local-mode=ClusterCIDR --feature-gates=A=true,B=false --healthz-bind-address=0.0.0.0:10256 \
            --hostname-override=a --init-only=false --iptables-localhost-nodeports=true --iptables-masquerade-bit=14 --iptables-min-sync-period=1s \
            --iptables-sync-period=30s --ipvs-exclude-cidrs=192.0.2.0/24 --ipvs-min-sync-period=1s --ipvs-scheduler=rr --ipvs-strict-arp \
            --ipvs-sync-period=30s --ipvs-tcp-timeout=0s --ipvs-tcpfin-timeout=0s --ipvs-udp-timeout=0s --kube-api-burst=10 \
            --kube-api-content-type=application/json --kube-api-qps=5 --kubeconfig=x --log-flush-frequency=5s --log-json-info-buffer-size=0 \
            --log-json-split-stream --log-text-info-buffer-size=0 --log-text-split-stream --log_backtrace_at=:0 --log_dir=x --log_file=x \
            --log_file_max_size=1800 --logging-format=text --logtostderr=true --machine-id-file=x --masquerade-all --master=https://192.0.2.1:6443 \
            --metrics-bind-address=127.0.0.1:10249 --nodeport-addresses=primary --one_output --oom-score-adj=-998 --pod-bridge-interface=cni0 \
            --pod-interface-name-prefix=veth --profiling --proxy-mode=ipvs --show-hidden-metrics-for-version=1.35 --skip_headers \
            --skip_log_headers --stderrthreshold=2 -v=2 --vmodule=a=1 --add_dir_header --alsologtostderr --healthz-port=10256 --metrics-port=10249",
        );
        assert_eq!(run.kube_proxy.oom_score_adj, -998);
        assert_eq!(
            run.kube_proxy.idle.0.len(),
            super::super::kube_proxy::idle_flags().count() - 2,
            "all but those of Windows and of long ago"
        );
    }
}
