use super::*;
use crate::cli::DetectLocalMode;
use std::time::Duration;

fn write(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn given(file: &tempfile::NamedTempFile, flags: &str) -> Given {
    let arguments = format!("kube-ipvs run --config {} {flags}", file.path().display());
    Given::new(arguments.split_whitespace().map(OsString::from).collect(), "run")
}

fn effective(text: &str, flags: &str) -> Effective {
    given(&write(text), flags).effective().unwrap()
}

fn wrong(text: &str, flags: &str) -> String {
    given(&write(text), flags).effective().unwrap_err().to_string()
}

const KUBE_PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OWN: &str = "apiVersion: kube-ipvs.io/v1alpha1\nkind: KubeIPVSConfiguration\n";

#[test]
fn a_flag_counts_before_our_document_before_kube_proxys_before_the_default() {
    let both =
        format!("{KUBE_PROXY}ipvs: {{scheduler: wlc, excludeCIDRs: [10.0.0.0/8]}}\n---\n{OWN}scheduler: mh\nexcludeCidrs: []\n");
    let scheduler = |text: &str, flags| effective(text, flags).run.proxy.scheduler.to_string();
    assert_eq!(scheduler(&both, "--scheduler lc"), "lc");
    assert_eq!(scheduler(&both, "--ipvs-scheduler lc"), "lc");
    assert_eq!(scheduler(&both, ""), "mh");
    assert_eq!(scheduler(&format!("{KUBE_PROXY}ipvs: {{scheduler: wlc}}\n"), ""), "wlc");
    assert_eq!(scheduler(KUBE_PROXY, ""), "rr");
    assert!(effective(&both, "").run.proxy.exclude_cidrs.is_empty(), "a list that is empty on purpose");
    // A switch that is given as off is given.
    let on = format!("{KUBE_PROXY}iptables: {{masqueradeAll: true}}\n");
    assert!(effective(&on, "").run.proxy.masquerade_all);
    assert!(!effective(&on, "--masquerade-all=false").run.proxy.masquerade_all);
}

#[test]
fn each_value_knows_where_it_comes_from() {
    let effective = effective(&format!("{KUBE_PROXY}ipvs:\n  scheduler: wlc\n"), "--drain-timeout 1m");
    let origin = |flag: &str| effective.value(flag).unwrap().origin.clone();
    assert_eq!(origin("scheduler"), Origin::File { line: 4, field: "ipvs.scheduler".to_owned() });
    assert_eq!(origin("drain-timeout"), Origin::Flag);
    assert_eq!(origin("vip-ping"), Origin::Default);
    assert_eq!(effective.as_kube_proxy_has_it()["ipvs"]["scheduler"], "wlc");
}

#[test]
fn a_file_may_complete_what_flags_begin() {
    let file = format!("{KUBE_PROXY}detectLocal: {{bridgeInterface: cni0}}\n");
    let effective = effective(&file, "--detect-local-mode BridgeInterface");
    assert!(matches!(effective.run.proxy.detect_local_mode, DetectLocalMode::BridgeInterface));
    assert_eq!(effective.run.proxy.bridge_interface.as_deref(), Some("cni0"));
    let masquerade = crate::run::config(&effective.run, "node").unwrap().masquerade;
    assert!(matches!(masquerade.detect_local, desired::DetectLocal::BridgeInterface(_)));
}

#[test]
fn flags_rule_out_what_does_not_go_with_them() {
    let file = format!("{KUBE_PROXY}clientConnection: {{kubeconfig: /a}}\n---\n{OWN}stateDir: /b\ncleanupOnExit: true\n");
    let of_manifests = effective(&file, "--manifests /c").run;
    assert!(of_manifests.source.kubeconfig.is_none() && of_manifests.state_dir.is_none() && of_manifests.cleanup_on_exit);
    assert!(!effective(&file, "--once").run.cleanup_on_exit);
    assert!(effective(&file, "--once=false").run.cleanup_on_exit);
    assert_eq!(effective(&file, "").run.source.kubeconfig.unwrap(), Path::new("/a"));
}

#[test]
fn what_is_logged_is_said_by_word_or_by_kube_proxys_number() {
    let number = format!("{KUBE_PROXY}logging: {{verbosity: 4, format: json}}\n");
    let word = format!("{number}---\n{OWN}logLevel: warn\n");
    let level = |text: &str, flags| effective(text, flags).log_level().unwrap().to_owned();
    assert_eq!(level(KUBE_PROXY, ""), "info");
    assert_eq!(level(&number, ""), "debug");
    assert_eq!(level(&number, "--v=2"), "info");
    assert_eq!(level(&number, "-v 9"), "trace");
    assert_eq!(level(&number, "--log-level error"), "error");
    assert_eq!(level(&word, ""), "warn");
    assert_eq!(level(&word, "--v=4"), "debug");
    assert!(given(&write(KUBE_PROXY), "--log-level loud").effective().unwrap().log_level().is_err());
}

#[test]
fn our_document_is_strict_and_says_all_that_is_wrong_with_what_is_allowed() {
    let message = wrong(
        &format!(
            "{KUBE_PROXY}mode: iptables\n---\n{OWN}drainTimeot: 5m\nvipPing: maybe\nonce: true\nudpDrainTimeout: soon\nkubeApiQps: 5\n"
        ),
        "",
    );
    let lines: Vec<_> = message.lines().map(|line| line.split_once(", ").unwrap().1).collect();
    assert_eq!(
        lines,
        [
            "line 3: mode: is \"iptables\"; kube-ipvs serves with IPVS alone: set it to ipvs, or keep kube-proxy for this mode",
            "line 7: drainTimeot: is no setting; did you mean drainTimeout?",
            "line 8: vipPing: is \"maybe\"; expected one of answer, refuse",
            "line 9: once: is decided on the command line alone, with --once",
            "line 10: udpDrainTimeout: is \"soon\"; expected a duration above zero such as 30s, 500ms or 1m30s",
            "line 11: kubeApiQps: is no setting; `kube-ipvs config` prints all there are",
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let arguments = ["kube-ipvs", "run", "--config", "/nonexistent/file"].map(OsString::from);
    let message = Given::new(arguments.into(), "run").effective().unwrap_err().to_string();
    assert!(message.starts_with("--config /nonexistent/file cannot be read: "), "{message}");
}

#[test]
fn what_has_no_effect_is_named_once() {
    let file = format!("{KUBE_PROXY}clientConnection: {{qps: 50}}\nfeatureGates: {{A: true, AllowServiceExternalIPs: false}}\n");
    let effective = effective(&file, "--profiling --skip-headers=true");
    let idle: Vec<_> = effective.idle.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(idle, ["clientConnection.qps", "--profiling", "--skip-headers", "feature gate A=true"]);
    assert!(!crate::run::config(&effective.run, "node").unwrap().external_ips);
}

#[test]
fn only_what_changes_counts_as_changed() {
    let file = write(&format!("{OWN}drainTimeout: 5m\nclusterCidr: [10.0.0.0/8]\n"));
    let given = given(&file, "--vip-ping refuse");
    let before = given.effective().unwrap();
    std::fs::write(file.path(), format!("{OWN}\n# moved\nclusterCidr: 10.0.0.0/8\nvipPing: answer\nudpDrainTimeout: 1s\n"))
        .unwrap();
    let after = given.effective().unwrap();
    assert_eq!(after.changes_since(&before), BTreeSet::from(["drain-timeout".to_owned(), "udp-drain-timeout".to_owned()]));
    assert_eq!(after.run.proxy.udp_drain_timeout, Duration::from_secs(1));
}

#[test]
fn letters_are_counted() {
    assert_eq!(distance("", "abc"), 3);
    assert_eq!(distance("kitten", "sitting"), 3);
    assert_eq!(distance("same", "same"), 0);
}
