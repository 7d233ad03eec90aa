//! The program as a user meets it: help, mistakes, exit codes. What it does to a kernel with IPVS is tested in the guest.
//!
//! Whatever could get as far as changing the network runs in a network namespace of its own, so these tests are safe as root on a
//! machine whose kernel has IPVS.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kube-ipvs");
/// What `setpriv` calls `CAP_NET_ADMIN`.
const NET_ADMIN: &str = "net_admin";
const README: &str = include_str!("../README.md");

/// The commands that `--help` lists.
const COMMANDS: [&str; 9] = ["run", "config", "status", "top", "plan", "explain", "check", "init", "cleanup"];

/// How a run of the program ended, and what it wrote.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn run(command: &mut Command) -> Self {
        // What the surroundings of the tests might say to the program.
        for name in ["NODE_NAME", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
            command.env_remove(name);
        }
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Fails the test unless the program ended with `code` and complained in all of these words.
    fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in:\n{}", self.stderr);
        }
    }
}

fn kube_ipvs(arguments: &[&str]) -> Ended {
    Ended::run(Command::new(PROGRAM).args(arguments))
}

/// The same, with all capabilities over a network namespace that nothing else is in. Also tells whether its kernel has IPVS, as seen
/// by another way than the program's: a kernel that loads the module when it is asked for it has it by then.
fn kube_ipvs_in_namespace(arguments: &[&str]) -> (Ended, bool) {
    const MARK: &str = "this kernel has /proc/net/ip_vs\n";
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = format!(r#""$0" "$@"; code=$?; if test -e /proc/net/ip_vs; then printf '{MARK}' >&2; fi; exit $code"#);
    let mut ended = Ended::run(command.args(["--net", "sh", "-c", &script, PROGRAM]).args(arguments));
    let has_ipvs = ended.stderr.ends_with(MARK);
    ended.stderr = ended.stderr.replace(MARK, "");
    (ended, has_ipvs)
}

/// The same, without the capability called `missing`.
fn kube_ipvs_without(missing: &str, arguments: &[&str]) -> Ended {
    // A user who is not root has none to begin with.
    if !is_root() {
        return kube_ipvs(arguments);
    }
    // Root gets what is in either of these sets when a program is executed (capabilities(7)).
    let mut command = Command::new("setpriv");
    command.args([&format!("--inh-caps=-{missing}"), &format!("--bounding-set=-{missing}"), PROGRAM]);
    Ended::run(command.args(arguments))
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    ids.split_whitespace().nth(1) == Some("0")
}

/// An empty directory for manifests.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn help(of: &str) -> String {
    let ended = kube_ipvs(&[of, "--help"]);
    ended.expect(0, &[]);
    assert_eq!(ended.stderr, "");
    ended.stdout
}

/// The words of a text that are flags, without dashes.
fn flags(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn help_has_every_exit_code_that_the_readme_has() {
    let ended = kube_ipvs(&["--help"]);
    ended.expect(0, &[]);
    let (_, listed) = ended.stdout.split_once("Exit codes:\n").unwrap();
    let of_help: BTreeSet<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let of_readme: BTreeSet<_> = README
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .filter(|cell| cell.parse::<u8>().is_ok())
        .collect();
    assert_eq!(of_help, of_readme);
    assert!(of_help.contains("0") && of_help.len() > 3, "{of_help:?}");
}

#[test]
fn every_flag_of_the_readme_exists() {
    let of_program = COMMANDS.map(help).concat();
    let of_program = flags(&of_program);
    let of_xtask = BTreeSet::from(["shell", "host", "tier"]);
    let unknown: Vec<_> = flags(README).into_iter().filter(|flag| !of_program.contains(flag) && !of_xtask.contains(flag)).collect();
    assert!(unknown.is_empty(), "the README names flags that do not exist: {unknown:?}");
}

#[test]
fn defaults_are_those_of_the_readme() {
    let help = help("run");
    for (default, in_readme) in [
        ("0.0.0.0:10256", "`0.0.0.0:10256/healthz`"),
        ("127.0.0.1:10249", "`127.0.0.1:10249/metrics`"),
        ("/run/kube-ipvs/kube-ipvs.sock", "`/run/kube-ipvs/kube-ipvs.sock`"),
        ("30s", "`--audit-period` (30 s)"),
        ("primary", "`--nodeport-addresses primary`"),
    ] {
        assert!(README.contains(in_readme), "{in_readme}");
        assert!(help.contains(&format!("[default: {default}]")), "{default}");
    }
}

#[test]
fn help_of_each_command_has_examples_that_parse() {
    for command in COMMANDS {
        let help = help(command);
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        assert!(examples.lines().count() > 0, "{examples}");
        for example in examples.lines() {
            let words = example.split(['#', '|', '>']).next().unwrap();
            let arguments: Vec<_> = words.split_whitespace().skip(1).chain(["--help"]).collect();
            assert!(words.trim_start().starts_with("kube-ipvs "), "{example}");
            kube_ipvs(&arguments).expect(0, &[]);
        }
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let ended = kube_ipvs(&["--version"]);
    ended.expect(0, &[]);
    assert_eq!(ended.stdout, concat!("kube-ipvs ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn no_command_and_an_unknown_one_are_mistakes() {
    kube_ipvs(&[]).expect(2, &["Usage: kube-ipvs <COMMAND>", "run", "status"]);
    kube_ipvs(&["rum"]).expect(2, &["'rum'", "'run'"]);
}

#[test]
fn an_unknown_flag_is_named_with_one_like_it() {
    kube_ipvs(&["run", "--manifest", "x"]).expect(2, &["'--manifest'", "'--manifests'"]);
    kube_ipvs(&["status", "--json"]).expect(2, &["'--json'"]);
}

#[test]
fn an_invalid_value_names_its_flag_and_what_is_allowed() {
    for (flag, value, allowed) in [
        ("--vip-binding", "magic", "route, address"),
        ("--detect-local-mode", "Magic", "ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"),
        ("--nodeport-addresses", "eth0/24", "primary, all, networks such as 192.0.2.0/24, or interfaces such as eth0 or eth+"),
        ("--occupied-node-ports", "nobody", "service, process"),
        ("--vip-ping", "maybe", "answer, refuse"),
        ("--ipvs-tcp-timeout", "1500ms", "whole seconds, at most 24 days"),
        ("--ipvs-udp-timeout", "601h", "or 0s to leave it as it is"),
        ("--kube-proxy-leftovers", "sell", "remove, keep"),
        ("--watch-nodes", "some", "all, own"),
        ("--allow-external-cidrs", "everything", "--allow-external-cidrs"),
        ("--load-balancer-exclude-cidrs", "everything", "--load-balancer-exclude-cidrs"),
        ("--masquerade-port-range", "2-1", "such as 32768-65535"),
        ("--scheduler", "far too long a name", "rr, wlc or mh"),
        ("--masquerade-bit", "32", "0..=31"),
        ("--audit-period", "30", "30s, 500ms or 1m30s"),
        ("--audit-period", "0s", "above zero"),
        ("--healthz-bind-address", "localhost:10256", "IP:PORT such as 127.0.0.1:10249"),
        ("--metrics-bind-address", "10249", "IP:PORT such as 127.0.0.1:10249"),
        ("--log-format", "xml", "text, json"),
        ("--log-level", "verbose", "off, error, warn, info, debug or trace"),
        ("--log-level", "kube=loud", "off, error, warn, info, debug or trace"),
    ] {
        kube_ipvs(&["run", flag, value]).expect(2, &[flag, value, allowed]);
    }
    kube_ipvs(&["run", "--cluster-cidr", "10.244.0.0/33"]).expect(2, &["--cluster-cidr", "10.244.0.0/33"]);
    kube_ipvs(&["status", "--output", "xml"]).expect(2, &["--output", "xml", "text, wide, json, yaml"]);
}

#[test]
fn flags_that_do_not_go_together_are_named() {
    kube_ipvs(&["run", "--manifests", "a", "--kubeconfig", "b"]).expect(2, &["--manifests", "--kubeconfig", "cannot be used with"]);
    kube_ipvs(&["run", "--once", "--cleanup-on-exit"]).expect(2, &["--once", "--cleanup-on-exit", "cannot be used with"]);
    kube_ipvs(&["cleanup", "--kube-proxy", "--hand-over"]).expect(2, &["--kube-proxy", "--hand-over", "cannot be used with"]);
    kube_ipvs(&["run", "--detect-local-mode", "BridgeInterface"]).expect(2, &["--bridge-interface is needed"]);
    kube_ipvs(&["run", "--detect-local-mode", "InterfaceNamePrefix"]).expect(2, &["--interface-name-prefix is needed"]);
    kube_ipvs(&["run", "--nodeport-addresses", "primary,192.0.2.0/24"]).expect(2, &["--nodeport-addresses", "stand alone"]);
    kube_ipvs(&["run", "--nodeport-addresses", "all,eth0"]).expect(2, &["--nodeport-addresses", "stand alone"]);
    kube_ipvs(&["run", "--masquerade-port-range", "32000-40000"])
        .expect(2, &["--masquerade-port-range 32000-40000", "--node-port-range 30000-32767", "choose ports beside it"]);
    kube_ipvs(&["run", "--node-port-range", "1-65535"]).expect(2, &["--node-port-range 1-65535", "choose a smaller one"]);
    kube_ipvs(&["run", "--detect-local-mode", "BridgeInterface", "--bridge-interface", "a b"])
        .expect(2, &["--bridge-interface", "\"a b\""]);
}

#[test]
fn kube_proxys_names_of_flags_work() {
    let arguments = "run --manifests /nonexistent --hostname-override node-1 --ipvs-scheduler rr --ipvs-sync-period 30s \
        --ipvs-exclude-cidrs 192.0.2.0/24 --ipvs-tcp-timeout 0s --ipvs-tcpfin-timeout 2m --ipvs-udp-timeout 300s --cluster-cidr 10.244.0.0/16 --detect-local-mode BridgeInterface --pod-bridge-interface cni0 \
        --pod-interface-name-prefix veth --masquerade-all --iptables-masquerade-bit 14 --nodeport-addresses primary \
        --healthz-bind-address 0.0.0.0:10256 --metrics-bind-address 127.0.0.1:10249";
    // All of them were understood when the first complaint is about the path.
    kube_ipvs(&arguments.split_whitespace().collect::<Vec<_>>()).expect(2, &["--manifests /nonexistent"]);
}

/// What kubeadm puts into the ConfigMap of kube-proxy, with IPVS chosen.
const KUBEADM: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', kubeconfig: /nonexistent/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null}
healthzBindAddress: ''
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: '', strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, verbosity: 0}
metricsBindAddress: ''
mode: ipvs
nodePortAddresses: null
";

#[test]
fn kube_proxys_command_and_file_work_unchanged() {
    let directory = directory();
    let file = directory.path().join("config.conf");
    fs::write(&file, KUBEADM).unwrap();
    let as_kube_proxy = directory.path().join("kube-proxy");
    std::os::unix::fs::symlink(PROGRAM, &as_kube_proxy).unwrap();
    let arguments = [format!("--config={}", file.display()), "--hostname-override=node-1".to_owned()];
    // All of it was understood when the first complaint is about the kubeconfig that the file names.
    Ended::run(Command::new(&as_kube_proxy).args(&arguments)).expect(2, &["/nonexistent/kubeconfig.conf"]);
    Ended::run(Command::new(PROGRAM).args(&arguments)).expect(2, &["/nonexistent/kubeconfig.conf"]);

    let written = directory.path().join("written.conf");
    Ended::run(Command::new(&as_kube_proxy).args(&arguments).arg("--write-config-to").arg(&written)).expect(0, &[]);
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(written).unwrap()).unwrap();
    assert_eq!(written["hostnameOverride"], "node-1");
    assert_eq!(written["conntrack"]["maxPerCore"], 32768);
    assert_eq!(written["metricsBindAddress"], "127.0.0.1:10249");

    fs::write(&file, KUBEADM.replace("mode: ipvs", "mode: iptables\nkind2: x").replace("strictARP: false", "strictARP: maybe"))
        .unwrap();
    let ended = Ended::run(Command::new(PROGRAM).args(&arguments));
    ended.expect(
        2,
        &[
            "config.conf, line 12: mode: is \"iptables\"; kube-ipvs serves with IPVS alone",
            "line 9: ipvs.strictARP: is \"maybe\"; expected true or false",
        ],
    );
}

#[test]
fn config_prints_a_file_that_says_the_same_and_where_each_value_comes_from() {
    let directory = directory();
    let file = directory.path().join("config.conf");
    fs::write(&file, KUBEADM).unwrap();
    let printed =
        kube_ipvs(&["config", "--config", text(&file), "--drain-timeout", "5m", "--nodeport-addresses", "eth0,192.0.2.0/24"]);
    printed.expect(0, &[]);
    for line in [
        "drainTimeout: 5m # --drain-timeout",
        "nodeportAddresses: [eth0, \"192.0.2.0/24\"] # --nodeport-addresses",
        "clusterCidr: \"10.244.0.0/16\" # config.conf, line 5: clusterCIDR",
        "auditPeriod: 30s # default",
    ] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "{line}:\n{}", printed.stdout);
    }
    fs::write(&file, &printed.stdout).unwrap();
    let again = kube_ipvs(&["config", "--config", text(&file)]);
    again.expect(0, &[]);
    let values = |text: &str| text.lines().map(|line| line.split(" # ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&again.stdout), values(&printed.stdout));
    kube_ipvs(&["config", "--nodeport-addresses", "all,eth0"]).expect(2, &["stand alone"]);
}

#[test]
fn manifests_that_are_not_there_are_named_even_where_nothing_else_would_work() {
    let missing = directory().path().join("missing");
    let ended = kube_ipvs_without(NET_ADMIN, &["run", "--manifests", text(&missing)]);
    ended.expect(2, &["--manifests", text(&missing), "No such file or directory", ".yaml"]);
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named_with_the_reason() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("text"), "no kubeconfig\n").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("no-context"), "apiVersion: v1\nkind: Config\nclusters: []\n").unwrap();
    fs::write(
        path("no-cluster"),
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: b, user: c}}]\n",
    )
    .unwrap();
    for (name, reason) in [
        ("missing", "No such file or directory"),
        ("", "Is a directory"),
        ("text", "line 1"),
        ("empty", ""),
        ("no-context", "current-context"),
        ("no-cluster", "cluster"),
    ] {
        let path = path(name);
        kube_ipvs_without(NET_ADMIN, &["run", "--kubeconfig", text(&path)]).expect(2, &["kubeconfig", text(&path), reason]);
    }
}

#[test]
fn without_a_source_outside_of_a_cluster_both_sources_are_offered() {
    kube_ipvs_without(NET_ADMIN, &["run"]).expect(2, &["--kubeconfig PATH", "--manifests PATH"]);
}

#[test]
fn a_missing_capability_has_a_code_of_its_own() {
    let remedy = ["CAP_NET_ADMIN", "run as root, or add NET_ADMIN to the container's capabilities"];
    let directory = directory();
    kube_ipvs_without(NET_ADMIN, &["run", "--manifests", text(directory.path())]).expect(4, &remedy);
    let status = kube_ipvs_without(NET_ADMIN, &["status"]);
    status.expect(4, &remedy);
    assert_eq!(status.stdout, "", "no half of a table");
    kube_ipvs_without(NET_ADMIN, &["cleanup"]).expect(4, &remedy);
}

/// For `plan`, 2 says that there are changes.
#[test]
fn a_plan_that_cannot_be_made_never_ends_as_if_there_were_changes() {
    kube_ipvs(&["plan", "--manifests", "a", "--kubeconfig", "b"]).expect(1, &["cannot be used with"]);
    let missing = directory().path().join("missing");
    let ended = kube_ipvs_without(NET_ADMIN, &["plan", "--manifests", text(&missing)]);
    ended.expect(1, &["--manifests", text(&missing), "No such file or directory"]);
    assert_eq!(ended.stdout, "", "no half of a plan");
    kube_ipvs(&["plan", "--against", "manifests", "--kubeconfig", "b"]).expect(1, &["--against manifests", "--manifests PATH"]);
    kube_ipvs(&["plan", "--against", "cluster", "--manifests", "a"])
        .expect(1, &["--against cluster", "--manifests a leads elsewhere"]);
    kube_ipvs(&["plan", "--against", "cluster"]).expect(1, &["--kubeconfig PATH"]);
    kube_ipvs(&["plan", "--against", "files"]).expect(1, &["--against <WHAT>", "manifests, cluster"]);
    kube_ipvs(&["plan", "--nodeport-addresses", "primary,192.0.2.0/24"]).expect(1, &["--nodeport-addresses", "stand alone"]);
    kube_ipvs(&["plan", "--help"]).expect(0, &[]);
}

#[test]
fn a_check_goes_through_everything_and_says_what_to_do() {
    let directory = directory();
    fs::write(directory.path().join("node.yaml"), "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n").unwrap();
    let arguments = ["check", "--node-name", "node-1", "--manifests", text(directory.path()), "--control-socket", ""];
    let ended = kube_ipvs_without(NET_ADMIN, &arguments);
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    for line in [
        "fail  capability CAP_NET_ADMIN: this process lacks the capability: run as root, or add NET_ADMIN",
        "warn  agent: none answers",
        "warn  pod networks: nothing tells pods from callers",
        "ok    API server: not asked",
        "fail  drift: it is not known what is desired, or what the kernel holds: CAP_NET_ADMIN",
    ] {
        assert!(ended.stdout.lines().any(|said| said.starts_with(line)), "no line {line:?} in\n{}", ended.stdout);
    }
    assert!(ended.stdout.lines().last().is_some_and(|last| last.ends_with(" fail")), "{}", ended.stdout);
}

#[test]
fn an_explanation_is_asked_for_by_address_or_service() {
    kube_ipvs(&["explain"]).expect(2, &["<ADDRESS[:PORT]|SERVICE>"]);
    kube_ipvs(&["explain", "10.96.0.300:80"]).expect(2, &["10.96.0.300:80", "such as 10.96.0.10:80", "shop/web:http"]);
}

#[test]
fn cleanup_beside_an_agent_is_refused() {
    let directory = directory();
    let socket = directory.path().join("socket");
    let _agent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let arguments = ["cleanup", "--control-socket", text(&socket)];
    kube_ipvs_without(NET_ADMIN, &arguments).expect(1, &["an agent is running", text(&socket), "--force"]);
    kube_ipvs_without(NET_ADMIN, &[&arguments[..], &["--force"]].concat()).expect(4, &["CAP_NET_ADMIN"]);
}

#[test]
fn the_capability_that_iptables_needs_is_missed_before_iptables_is() {
    let directory = directory();
    let ended = kube_ipvs_without("net_raw", &["run", "--manifests", text(directory.path())]);
    ended.expect(4, &["this process lacks the capability"]);
    if is_root() {
        ended.expect(4, &["CAP_NET_RAW", "add NET_RAW to the container's capabilities"]);
    }
}

/// A kernel either has IPVS or it does not; where these tests run is not theirs to choose, and in both cases there is a right answer.
#[test]
fn status_prints_a_table_or_says_that_the_kernel_has_none() {
    let nowhere = directory().path().join("socket");
    let arguments = ["status", "--control-socket", text(&nowhere)];
    let (ended, has_ipvs) = kube_ipvs_in_namespace(&arguments);
    if has_ipvs {
        ended.expect(0, &["no names, drains or drift: no agent answers on", text(&nowhere)]);
        assert!(ended.stdout.starts_with("IP Virtual Server version "), "{}", ended.stdout);
        assert_eq!(ended.stdout.lines().count(), 3, "a namespace is born with an empty table: {}", ended.stdout);
    } else {
        ended.expect(3, &["IPVS: this kernel does not have it", "modprobe ip_vs", "CONFIG_IP_VS"]);
        assert_eq!(ended.stdout, "", "no half of a table");
    }
}

#[test]
fn run_works_or_says_that_the_kernel_has_no_ipvs() {
    let directory = directory();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n";
    fs::write(directory.path().join("node.yaml"), node).unwrap();
    let arguments = ["run", "--once", "--node-name", "node-1", "--manifests", text(directory.path())];
    let (ended, has_ipvs) = kube_ipvs_in_namespace(&arguments);
    if has_ipvs {
        assert!(!ended.stderr.contains("IPVS: this kernel does not have it"), "{}", ended.stderr);
        assert_ne!(ended.code, Some(4), "{}", ended.stderr);
    } else {
        ended.expect(3, &["IPVS: this kernel does not have it", "modprobe ip_vs", "CONFIG_IP_VS"]);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(PROGRAM).args(["run", "--help"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
}
