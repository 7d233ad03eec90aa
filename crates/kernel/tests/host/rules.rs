//! Packet rules: every variant, installed by each iptables and read back.

use desired::{Config, DetectLocal, InterfaceName, MarkBit, NodeFacts, RuleOptions};
use kernel::{Flavour, Ipset, Report};
use model::{Family, Rules, Set, SetState};
use plan::{RulesChange, Step};

use crate::namespace::{isolated, sh, try_sh};

const FLAVOURS: [Flavour; 2] = [Flavour::Legacy, Flavour::Nft];

/// Every way to tell pods from others, in several spellings each, with every other choice that shows in the rules.
fn variants() -> Vec<(String, Config, RuleOptions)> {
    let cidrs = |list: &[&str]| list.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>();
    let detectors = [
        ("nothing", DetectLocal::None),
        ("one network", DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16", "fd00:10:244::/56"]))),
        (
            "networks with host bits",
            DetectLocal::ClusterCidr(cidrs(&["10.244.7.9/16", "10.1.2.3/32", "fd00:10:244::5/56", "fd00::1/128"])),
        ),
        ("networks of one family", DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16"]))),
        ("everything", DetectLocal::ClusterCidr(cidrs(&["0.0.0.0/0", "::/0"]))),
        ("the node's network", DetectLocal::NodeCidr),
        ("a bridge", DetectLocal::BridgeInterface(InterfaceName::new("cni0").unwrap())),
        ("a prefix", DetectLocal::InterfaceNamePrefix(InterfaceName::new("veth").unwrap())),
        ("the longest name", DetectLocal::InterfaceNamePrefix(InterfaceName::new("a-name.of:14@x").unwrap())),
    ];
    let mut variants = Vec::new();
    for (name, detect_local) in detectors {
        for all in [false, true] {
            for (bit, random_fully, ports) in [(14, true, "32768-65535"), (0, false, "1024-29999"), (31, true, "40000")] {
                let mut config = Config::new("node-1");
                config.masquerade.all = all;
                config.masquerade.mark = MarkBit::new(bit).unwrap();
                config.masquerade.detect_local = detect_local.clone();
                config.masquerade.ports = ports.parse().unwrap();
                (config.answer_pings, config.open_input) = (bit != 0, bit == 31);
                let words = format!("{name}, all: {all}, bit {bit}, random: {random_fully}, ports {ports}");
                variants.push((words, config, RuleOptions { random_fully }));
            }
        }
    }
    variants
}

fn facts() -> NodeFacts {
    NodeFacts {
        pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
        ..NodeFacts::default()
    }
}

/// The sets that the rules refer to.
fn make_sets() {
    let steps: Vec<_> = Family::ALL
        .into_iter()
        .flat_map(Set::of_family)
        .map(|set| Step::CreateSet { set, capacity: SetState::MIN_CAPACITY, expected: 0 })
        .collect();
    let mut report = Report::default();
    Ipset::open().unwrap().apply(&steps.iter().enumerate().collect::<Vec<_>>(), &mut report);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

/// Takes the kernel's rules to `desired`, if it takes a change.
fn reconcile(flavour: Flavour, family: Family, desired: &Rules) {
    if let Some(change) = RulesChange::between(desired, &flavour.observe(family).unwrap()) {
        flavour.apply(family, &change).unwrap();
    }
}

fn program(flavour: Flavour, family: Family) -> &'static str {
    match (flavour, family) {
        (Flavour::Nft, Family::V4) => "iptables-nft",
        (Flavour::Nft, Family::V6) => "ip6tables-nft",
        (_, Family::V4) => "iptables-legacy",
        (_, Family::V6) => "ip6tables-legacy",
    }
}

/// All rules, as the kernel has them, without what iptables-save says of the time.
fn saved(flavour: Flavour, family: Family) -> String {
    let saved = sh(&format!("{}-save", program(flavour, family)));
    saved.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

fn rules_of(family: Family) -> Rules {
    desired::rules(family, &Config::new("node-1"), &facts(), RuleOptions { random_fully: true })
}

fn every_variant_is_read_back_as_it_was_written(flavour: Flavour) {
    make_sets();
    for (words, config, options) in variants() {
        for family in Family::ALL {
            let desired = desired::rules(family, &config, &facts(), options);
            reconcile(flavour, family, &desired);
            let observed = flavour.observe(family).unwrap();
            assert_eq!(observed, desired, "{words}, {family}");
            assert_eq!(RulesChange::between(&desired, &observed), None, "there is nothing to do a second time");
        }
    }
}

#[test]
fn every_variant_is_read_back_as_it_was_written_by_legacy() {
    isolated(|| every_variant_is_read_back_as_it_was_written(Flavour::Legacy));
}

#[test]
fn every_variant_is_read_back_as_it_was_written_by_nft() {
    isolated(|| every_variant_is_read_back_as_it_was_written(Flavour::Nft));
}

#[test]
fn rules_of_others_stay_byte_for_byte() {
    isolated(|| {
        make_sets();
        for flavour in FLAVOURS {
            for family in Family::ALL {
                let program = program(flavour, family);
                for foreign in [
                    "-N DOCKER",
                    "-A FORWARD -j DOCKER",
                    "-P FORWARD DROP",
                    "-A INPUT -i lo -m comment --comment KUBE-IPVS-INPUT -j ACCEPT",
                    "-t nat -N KUBE-SERVICES",
                    "-t nat -A PREROUTING -j KUBE-SERVICES",
                    "-t nat -A KUBE-SERVICES -p tcp -m tcp --dport 443 -j RETURN",
                    "-t mangle -A PREROUTING -j MARK --set-xmark 0x1/0x1",
                    // kube-proxy's, whose name begins like ours.
                    "-N KUBE-IPVS-FILTER",
                    "-A INPUT -j KUBE-IPVS-FILTER",
                ] {
                    sh(&format!("{program} {foreign}"));
                }
                let foreign = saved(flavour, family);
                assert_eq!(flavour.observe(family).unwrap(), Rules::default(), "nothing of that is ours");

                let desired = rules_of(family);
                reconcile(flavour, family, &desired);
                assert_eq!(flavour.observe(family).unwrap(), desired);
                let with_ours = saved(flavour, family);
                for line in foreign.lines() {
                    assert!(with_ours.lines().any(|other| other == line), "{program}: {line} is gone");
                }

                reconcile(flavour, family, &Rules::default());
                assert_eq!(saved(flavour, family), foreign, "{program}");
            }
        }
    });
}

#[test]
fn what_somebody_did_to_our_rules_is_seen_and_repaired() {
    isolated(|| {
        make_sets();
        for flavour in FLAVOURS {
            for family in Family::ALL {
                let desired = rules_of(family);
                let program = program(flavour, family);
                for damage in [
                    "-t nat -F KUBE-IPVS-SERVICES",
                    "-t nat -D PREROUTING -j KUBE-IPVS-SERVICES",
                    "-t nat -A KUBE-IPVS-POSTROUTING -j RETURN",
                    "-D KUBE-IPVS-INPUT 1",
                    "-F",
                ] {
                    reconcile(flavour, family, &desired);
                    sh(&format!("{program} {damage}"));
                    assert_ne!(flavour.observe(family).unwrap(), desired, "{program} {damage}");
                    reconcile(flavour, family, &desired);
                    assert_eq!(flavour.observe(family).unwrap(), desired, "{program} {damage}");
                }
            }
        }
    });
}

#[test]
fn a_jump_that_slipped_behind_another_rule_stays_where_it_is() {
    isolated(|| {
        make_sets();
        let (flavour, family) = (Flavour::Legacy, Family::V4);
        reconcile(flavour, family, &rules_of(family));
        sh("iptables-legacy -t nat -I PREROUTING -p udp -j RETURN");
        let before = saved(flavour, family);
        reconcile(flavour, family, &rules_of(family));
        assert_eq!(saved(flavour, family), before, "two tools that both insist on being first would never come to rest");
    });
}

#[test]
fn refused_rules_leave_everything_as_it_was_and_the_error_has_the_reason() {
    isolated(|| {
        make_sets();
        for flavour in FLAVOURS {
            let family = Family::V4;
            let desired = rules_of(family);
            reconcile(flavour, family, &desired);
            let before = saved(flavour, family);
            let mut wrong = desired.clone();
            let chain = wrong.chains.keys().next_back().unwrap().clone();
            wrong.chains.get_mut(&chain).unwrap().push("-m set --match-set NO-SUCH-SET dst -j ACCEPT".to_owned());
            let error = flavour.apply(family, &RulesChange::between(&wrong, &desired).unwrap()).unwrap_err();
            assert!(error.to_string().contains("NO-SUCH-SET"), "{error}");
            assert_eq!(saved(flavour, family), before);
        }
    });
}

#[test]
fn the_probe_for_random_fully_leaves_no_trace() {
    isolated(|| {
        for flavour in FLAVOURS {
            for family in Family::ALL {
                let program = program(flavour, family);
                // The nat table comes into being with its first rule.
                sh(&format!("{program} -t nat -A POSTROUTING -o lo -j ACCEPT"));
                let before = saved(flavour, family);
                let supported = flavour.probe_random_fully(family).unwrap();
                assert_eq!(saved(flavour, family), before);
                sh(&format!("{program} -t nat -N TRY"));
                let accepted = try_sh(&format!("{program} -t nat -A TRY -j MASQUERADE --random-fully"));
                assert_eq!(supported, accepted.status.success(), "{program}");
            }
        }
    });
}

#[test]
fn j5_the_kubelets_mark_decides_which_iptables_is_used() {
    isolated(|| {
        assert_eq!(Flavour::detect().unwrap(), Flavour::Default, "a namespace without rules has no favourite");
        sh("iptables-nft -A INPUT -j ACCEPT");
        assert_eq!(Flavour::detect().unwrap(), Flavour::Nft);
        sh("iptables-legacy -A INPUT -j ACCEPT");
        sh("iptables-legacy -A INPUT -j ACCEPT");
        assert_eq!(Flavour::detect().unwrap(), Flavour::Legacy);
        sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY");
        assert_eq!(Flavour::detect().unwrap(), Flavour::Nft);
    });
}
