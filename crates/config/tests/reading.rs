//! Files as there are, and as there should not be.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

use config::{Configuration, Document, Problem, read};
use proptest::prelude::*;

/// What kubeadm puts into its ConfigMap, with IPVS chosen.
const KUBEADM: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: true
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: ipvs
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: \"\"
  rootHnsEndpointName: \"\"
  sourceVip: \"\"
";

fn kube_proxy(fields: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}")
}

fn own(fields: &str) -> String {
    format!("apiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIPVSConfiguration\n{fields}")
}

fn settings(configuration: &Configuration) -> Vec<(&str, String)> {
    configuration.settings.iter().map(|setting| (setting.flag.as_str(), setting.values.join(","))).collect()
}

fn value(text: &str, flag: &str) -> Option<String> {
    let configuration = read(text.as_bytes()).unwrap();
    settings(&configuration).into_iter().find(|(name, _)| *name == flag).map(|(_, value)| value)
}

fn problems(text: &str) -> Vec<String> {
    read(text.as_bytes()).unwrap_err().iter().map(Problem::to_string).collect()
}

#[test]
fn kubeadms_file_is_taken_as_it_is_and_without_a_word() {
    let configuration = read(KUBEADM.as_bytes()).unwrap();
    assert_eq!((&configuration.remarks, &configuration.idle), (&Vec::new(), &Vec::new()));
    let mut settings = settings(&configuration);
    settings.retain(|(_, value)| value != "false");
    let expected = [
        ("kubeconfig", "/var/lib/kube-proxy/kubeconfig.conf"),
        ("ipvs-strict-arp", "true"),
        ("cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"),
        // What kube-proxy does without any.
        ("nodeport-addresses", "all"),
        ("conntrack-udp-timeout", "0s"),
        ("conntrack-udp-timeout-stream", "0s"),
    ];
    assert_eq!(settings, expected.map(|(flag, value)| (flag, value.to_owned())));
}

#[test]
fn fields_become_flags_and_know_their_lines() {
    let text = kube_proxy(
        "ipvs:\n  scheduler: mh\n  excludeCIDRs:\n  - 192.0.2.0/24\n  - 2001:db8::/32\n  tcpTimeout: 15m\nlogging: {verbosity: 4}\n",
    );
    let configuration = read(text.as_bytes()).unwrap();
    let setting = |flag: &str| configuration.settings.iter().find(|setting| setting.flag == flag).unwrap();
    assert_eq!((setting("scheduler").line, setting("scheduler").field.as_str()), (4, "ipvs.scheduler"));
    assert_eq!(setting("exclude-cidrs").values, ["192.0.2.0/24", "2001:db8::/32"]);
    assert_eq!(setting("ipvs-tcp-timeout").values, ["15m0s"]);
    assert_eq!((setting("v").line, setting("v").values.join("")), (9, "4".to_owned()));
}

#[test]
fn an_ipv6_bind_address_moves_the_ports_that_are_not_placed() {
    let text = kube_proxy("bindAddress: \"::\"\nmetricsBindAddress: 0.0.0.0\n");
    assert_eq!(value(&text, "healthz-bind-address").as_deref(), Some("[::]:10256"));
    assert_eq!(value(&text, "metrics-bind-address").as_deref(), Some("0.0.0.0:10249"));
    assert_eq!(value(&kube_proxy("bindAddress: \"::\"\n"), "metrics-bind-address").as_deref(), Some("[::1]:10249"));
    assert_eq!(value(&kube_proxy("bindAddress: 0.0.0.0\n"), "metrics-bind-address"), None);
    assert_eq!(value(&kube_proxy("nodePortAddresses: [primary]\n"), "nodeport-addresses").as_deref(), Some("primary"));
}

#[test]
fn unknown_and_duplicate_fields_are_remarks_and_the_last_value_counts() {
    let text = kube_proxy("mode: ipvs\nipvs: {scheduler: rr, sheduler: lc}\nudpIdleTimeout: 250ms\nipvs:\n  scheduler: wlc\n");
    let configuration = read(text.as_bytes()).unwrap();
    assert_eq!(value(&text, "scheduler").as_deref(), Some("wlc"));
    let remarks: Vec<_> = configuration.remarks.iter().map(Problem::to_string).collect();
    assert_eq!(
        remarks,
        [
            "line 4: ipvs.sheduler: is no field of a KubeProxyConfiguration; it is ignored",
            "line 5: udpIdleTimeout: is no field of a KubeProxyConfiguration; it is ignored",
            "line 6: ipvs: is there twice; the last one counts",
        ]
    );
}

#[test]
fn what_has_no_effect_is_named_when_it_has_a_value() {
    let text =
        kube_proxy("winkernel: {networkName: nat}\niptables: {syncPeriod: 30s, minSyncPeriod: 0s}\nclientConnection: {qps: 50}\n");
    let configuration = read(text.as_bytes()).unwrap();
    let idle: Vec<_> = configuration.idle.iter().map(|(field, _)| *field).collect();
    assert_eq!(idle, ["clientConnection.qps", "iptables.syncPeriod", "winkernel.networkName"]);
}

#[test]
fn all_problems_are_told_at_once_with_line_field_value_and_what_is_allowed() {
    let text = kube_proxy(
        "mode: nftables\nbindAddress: localhost\niptables: {masqueradeBit: 32, masqueradeAll: \"true\"}\nipvs:\n  syncPeriod: 30\n  excludeCIDRs:\n  - 10.0.0.1\nnodePortAddresses: [primary, 10.0.0.0/8]\noomScoreAdj: -2000\ndetectLocalMode: Magic\nmetricsBindAddress: 127.0.0.1:0\nconntrack: 5\nfeatureGates: {A: 1}\n",
    );
    assert_eq!(
        problems(&text),
        [
            "line 3: mode: is \"nftables\"; kube-ipvs serves with IPVS alone: set it to ipvs, or keep kube-proxy for this mode",
            "line 4: bindAddress: is \"localhost\"; expected an IP address such as 0.0.0.0 or ::",
            "line 5: iptables.masqueradeAll: is \"true\"; expected true or false",
            "line 5: iptables.masqueradeBit: is 32; expected a whole number from 0 to 31",
            "line 7: ipvs.syncPeriod: is 30; expected a duration such as 30s, 1m30s or 0s",
            "line 9: ipvs.excludeCIDRs: is \"10.0.0.1\"; expected a list of networks such as [10.0.0.0/8, \"fd00::/8\"]",
            "line 10: nodePortAddresses: is \"primary\"; expected a list of networks such as [192.0.2.0/24], or [primary]",
            "line 11: oomScoreAdj: is -2000; expected a whole number from -1000 to 1000",
            "line 12: detectLocalMode: is \"Magic\"; expected one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            "line 13: metricsBindAddress: is \"127.0.0.1:0\"; expected IP:PORT such as 127.0.0.1:10249 or [::]:10249",
            "line 14: conntrack: is 5; expected fields",
            "line 15: featureGates: is 1; expected names, each with true or false",
        ]
    );
}

#[test]
fn fields_that_contradict_each_other_are_problems() {
    assert!(problems(&kube_proxy("ipvs: {minSyncPeriod: 31s}\n"))[0].contains("longer than ipvs.syncPeriod"));
    assert!(
        problems(&kube_proxy("detectLocalMode: BridgeInterface\n"))[0].starts_with("line 3: detectLocal.bridgeInterface: is empty")
    );
    assert!(problems(&kube_proxy("clusterCIDR: 10.0.0.0/16,10.1.0.0/16\n"))[0].contains("one of each family"));
    assert!(read(kube_proxy("clusterCIDR: 10.0.0.0/16,10.1.0.0/16\ndetectLocalMode: NodeCIDR\n").as_bytes()).is_ok());
}

#[test]
fn documents_are_told_apart_and_both_may_be_in_one_file() {
    let text = format!(
        "{}---\n{}",
        own("drainTimeout: 5m\nclusterCidr: [10.0.0.0/8, fd00::/8]\nexcludeCidrs: []\nmasqueradeAll: true\n"),
        kube_proxy("mode: ipvs\n")
    );
    let configuration = read(text.as_bytes()).unwrap();
    let of_own: Vec<_> = configuration.settings.iter().filter(|setting| setting.document == Document::KubeIpvs).collect();
    assert_eq!(
        of_own.iter().map(|setting| setting.flag.as_str()).collect::<Vec<_>>(),
        ["drain-timeout", "cluster-cidr", "exclude-cidrs", "masquerade-all"]
    );
    assert_eq!(of_own[1].values, ["10.0.0.0/8", "fd00::/8"]);
    assert!(of_own[2].values.is_empty());
    assert_eq!(configuration.settings[0].document, Document::KubeProxy);
    for (wrong, word) in [
        ("", "no document"),
        ("# nothing\n---\n", "no document"),
        ("mode: ipvs\n", "apiVersion and kind"),
        ("[1]\n", "is a list"),
        ("apiVersion: v1\nkind: ConfigMap\n", "KubeProxyConfiguration"),
        (&own("a: 1\na: 2\n"), "twice"),
        (&own("a: {b: 1}\n"), "a mapping"),
        (&own("a: [[1]]\n"), "a list"),
        (&format!("{0}---\n{0}", own("")), "before this one"),
    ] {
        let found = problems(wrong);
        assert!(found[0].contains(word), "{wrong:?}: {found:?}");
    }
}

#[test]
fn json_is_yaml() {
    let text = r#"{"kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "mode": "ipvs", "ipvs": {"scheduler": "lc"}}"#;
    assert_eq!(value(text, "scheduler").as_deref(), Some("lc"));
}

#[test]
fn what_is_hostile_is_refused_in_time() {
    assert!(problems(&"a".repeat(2 << 20))[0].contains("larger than 1 MiB"));
    assert!(read(b"\xff\xfe").unwrap_err()[0].message.contains("UTF-8"));
    assert!(read("[".repeat(100_000).as_bytes()).is_err());
    assert!(read("{a: ".repeat(50_000).as_bytes()).is_err());
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    assert!(read(own(&bomb).as_bytes()).is_err());
}

/// Reads a file that may be anything; how many settings there are in it.
fn amount(bytes: &[u8]) -> usize {
    match read(bytes) {
        Ok(configuration) => configuration.settings.len(),
        Err(problems) => {
            assert!(!problems.is_empty(), "a file that cannot be read has something wrong with it");
            0
        }
    }
}

#[test]
fn what_the_fuzzer_begins_with_and_has_found_is_read_whole_and_cut() {
    testkit::read_whole_and_cut("config", &[("both", 7), ("kubeadm", 10)], amount).unwrap();
}

#[test]
fn changes_of_what_the_fuzzer_begins_with_are_read_or_refused() {
    testkit::read_changed("config", any::<u8>(), amount).unwrap();
    testkit::read_changed("config", prop::sample::select(b"\n -:#&*|>{}[]'\"\\,!0x".to_vec()), amount).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Err(problems) = read(&bytes) {
            prop_assert!(!problems.is_empty());
        }
    }

    #[test]
    fn any_change_to_a_file_is_read_or_refused(at in 0..KUBEADM.len(), with in "[-:{}\\[\\]&*!|>'\"%@` a-z0-9\n]{0,6}", cut in 0..20_usize) {
        let end = (at + cut).min(KUBEADM.len());
        let text = [&KUBEADM[..at], &with, &KUBEADM[end..]].concat();
        match read(text.as_bytes()) {
            Ok(configuration) => for setting in configuration.settings { prop_assert!(!setting.flag.is_empty()); },
            Err(problems) => for problem in problems { prop_assert!(problem.line >= 1 && !problem.message.is_empty()); },
        }
    }
}
