//! Sets: made, filled, grown and destroyed, as `ipset` sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use ipnetwork::IpNetwork;
use kernel::{Ipset, Report};
use model::{Family, Member, Protocol, Role, Set, SetKind, SetState, State};
use plan::{Ownership, Step, plan};

use crate::namespace::{isolated, sh};

type Sets = BTreeMap<Set, SetState>;

const LOOP_BACK: Set = Set::new(Role::LoopBack, Family::V4);
const VIPS: Set = Set::new(Role::Vips, Family::V4);

/// Takes the kernel's sets to `desired`, and returns what became of that.
fn try_reconcile(ipset: &mut Ipset, desired: &Sets) -> Report {
    let sets = |sets: Sets| State { sets, ..State::default() };
    let observed = sets(ipset.observe().unwrap());
    let plan = plan(&sets(desired.clone()), &observed, &Ownership::Scope);
    let mut report = Report::default();
    let steps: Vec<_> = plan.steps().enumerate().collect();
    ipset.apply(&steps, &mut report);
    report
}

/// Takes the kernel's sets to `desired`; afterwards they are observed to be just that.
fn reconcile(ipset: &mut Ipset, desired: &Sets) {
    let report = try_reconcile(ipset, desired);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert_eq!(ipset.observe().unwrap(), *desired);
}

fn holding(members: impl IntoIterator<Item = Member>) -> SetState {
    SetState { capacity: SetState::MIN_CAPACITY, members: members.into_iter().collect() }
}

/// Members of every protocol, and with the least and greatest port, for `set`.
fn members(set: Set) -> BTreeSet<Member> {
    let addresses: [IpAddr; 2] = match set.family {
        Family::V4 => ["10.96.0.10".parse().unwrap(), "255.255.255.254".parse().unwrap()],
        Family::V6 => ["fd00:96::a".parse().unwrap(), "2001:db8::ffff:1.2.3.4".parse().unwrap()],
    };
    // The shortest and the longest prefix that the kernel has room for.
    let networks: [IpNetwork; 3] = match set.family {
        Family::V4 => ["128.0.0.0/1", "203.0.113.0/24", "203.0.113.7/32"],
        Family::V6 => ["8000::/1", "2001:db8:100::/48", "2001:db8::7/128"],
    }
    .map(|network| network.parse().unwrap());
    let mut members = BTreeSet::new();
    for address in addresses {
        for protocol in Protocol::ALL {
            for port in [1, 80, u16::MAX] {
                members.insert(match set.kind() {
                    SetKind::HashIp => Member::Ip(address),
                    SetKind::HashIpPort => Member::IpPort(address, protocol, port),
                    SetKind::HashIpPortIp => Member::IpPortIp(address, protocol, port, addresses[0]),
                    SetKind::HashIpPortNet => Member::IpPortNet(address, protocol, port, networks[usize::from(port % 3)]),
                    SetKind::HashIpPortMark => Member::IpPortMark(address, protocol, port, NonZeroU32::MAX),
                });
            }
        }
    }
    members
}

/// What `ipset save` says of a set's members, in order.
fn saved(set: &str) -> BTreeSet<String> {
    let prefix = format!("add {set} ");
    sh(&format!("ipset save {set}")).lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

/// As `ipset save` says it, which leaves out a prefix as long as the address.
fn in_words(members: &BTreeSet<Member>) -> BTreeSet<String> {
    let words = |member: &Member| match member {
        Member::IpPortNet(ip, _, _, network) if network.prefix() == Family::of(*ip).bits() => {
            member.to_string().rsplit_once('/').unwrap().0.to_owned()
        }
        _ => member.to_string(),
    };
    members.iter().map(words).collect()
}

/// `count` addresses.
fn addresses(count: u32) -> BTreeSet<Member> {
    (0..count).map(|number| Member::Ip(Ipv4Addr::from_bits(0x0a00_0001 + number).into())).collect()
}

#[test]
fn every_kind_of_member_comes_and_goes_in_both_families() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        assert_eq!(ipset.observe().unwrap(), Sets::new(), "a namespace is born without sets");
        let all: Sets = Family::ALL.into_iter().flat_map(Set::of_family).map(|set| (set, holding(members(set)))).collect();
        reconcile(&mut ipset, &all);
        for (set, state) in &all {
            assert_eq!(saved(set.name()), in_words(&state.members), "{set}");
            let header = sh(&format!("ipset save {set} -terse"));
            let family = if set.family == Family::V4 { "inet" } else { "inet6" };
            assert!(header.starts_with(&format!("create {set} {} family {family} ", set.kind().name())), "{header}");
            assert!(header.contains(" maxelem 65536"), "{header}");
        }

        let fewer: Sets = all.iter().map(|(set, state)| (*set, holding(state.members.iter().step_by(2).copied()))).collect();
        reconcile(&mut ipset, &fewer);
        for (set, state) in &fewer {
            assert_eq!(saved(set.name()), in_words(&state.members), "{set}");
        }

        reconcile(&mut ipset, &Sets::new());
        assert_eq!(sh("ipset save"), "");
    });
}

/// The kernel knows a member by what is in front of its mark.
#[test]
fn a_mark_is_replaced_in_place_and_a_member_of_another_make_is_left() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        let set = Set::new(Role::InCluster, Family::V4);
        let marked = |port, mark| Member::IpPortMark([192, 0, 2, 1].into(), Protocol::Tcp, port, NonZeroU32::new(mark).unwrap());
        reconcile(&mut ipset, &Sets::from([(set, holding([marked(80, 0x4001), marked(81, 0x4002)]))]));
        reconcile(&mut ipset, &Sets::from([(set, holding([marked(80, 0x4002), marked(82, 0x4001)]))]));
        assert_eq!(saved(set.name()), in_words(&[marked(80, 0x4002), marked(82, 0x4001)].into()));
        let grown = SetState { capacity: 131_072, members: [marked(80, 0x4003)].into() };
        reconcile(&mut ipset, &Sets::from([(set, grown)]));
        assert_eq!(saved(set.name()), in_words(&[marked(80, 0x4003)].into()));

        for foreign in ["192.0.2.1,tcp:83", "192.0.2.1,tcp:84 skbmark 0x1/0x1", "192.0.2.1,tcp:85"] {
            sh(&format!("ipset add {set} {foreign}"));
        }
        let more = SetState { capacity: 131_072, members: [marked(80, 0x4003), marked(83, 0x4004), marked(84, 0x4005)].into() };
        reconcile(&mut ipset, &Sets::from([(set, more.clone())]));
        let mut wanted = in_words(&more.members);
        wanted.insert("192.0.2.1,tcp:85".to_owned());
        assert_eq!(saved(set.name()), wanted);
    });
}

/// A set with the longest name there is.
#[test]
fn sets_of_networks_grow() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        for set in Family::ALL.map(|family| Set::new(Role::SourceRange, family)) {
            reconcile(&mut ipset, &Sets::from([(set, holding(members(set)))]));
            reconcile(&mut ipset, &Sets::from([(set, SetState { capacity: 131_072, members: members(set) })]));
            assert_eq!(saved(set.name()), in_words(&members(set)));
            reconcile(&mut ipset, &Sets::new());
        }
    });
}

#[test]
fn more_members_than_one_message_holds() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        let many = Sets::from([(VIPS, holding(addresses(20_000)))]);
        reconcile(&mut ipset, &many);
        assert_eq!(saved(VIPS.name()).len(), 20_000);
        reconcile(&mut ipset, &Sets::from([(VIPS, holding([]))]));
        assert_eq!(saved(VIPS.name()).len(), 0);
    });
}

#[test]
fn j3_a_set_grows_beyond_65536_while_a_rule_refers_to_it() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        reconcile(&mut ipset, &Sets::from([(VIPS, holding(addresses(60_000)))]));
        sh("iptables-legacy -A INPUT -m set --match-set KUBE-IPVS-IPS dst -j DROP");
        let rule = || sh("iptables-legacy-save -t filter").lines().find(|line| line.starts_with("-A ")).map(str::to_owned);
        let before = rule();

        let members = addresses(70_000);
        let grown = SetState { capacity: SetState::capacity_for(members.len()), members };
        assert_eq!(grown.capacity, 262_144);
        reconcile(&mut ipset, &Sets::from([(VIPS, grown)]));

        assert_eq!(rule(), before);
        assert_eq!(sh("ipset list -name"), "KUBE-IPVS-IPS\n", "nothing temporary is left");
        let header = sh("ipset list KUBE-IPVS-IPS -terse");
        assert!(header.contains("References: 1") && header.contains("Number of entries: 70000"), "{header}");
    });
}

#[test]
fn growing_takes_over_from_a_process_that_died_while_it_was_growing() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        reconcile(&mut ipset, &Sets::from([(VIPS, holding(addresses(3)))]));
        sh("ipset create KUBE-IPVS-GROWING hash:ip maxelem 7");
        sh("ipset add KUBE-IPVS-GROWING 192.0.2.1");
        let grown = SetState { capacity: 131_072, members: addresses(4) };
        reconcile(&mut ipset, &Sets::from([(VIPS, grown)]));
        assert_eq!(sh("ipset list -name"), "KUBE-IPVS-IPS\n");
    });
}

#[test]
fn adding_what_is_there_and_removing_what_is_not_is_no_failure() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        reconcile(&mut ipset, &Sets::from([(VIPS, holding(addresses(2)))]));
        let mut report = Report::default();
        let again = [Step::AddMembers(VIPS, addresses(3)), Step::RemoveMembers(VIPS, addresses(5)), Step::DestroySet(LOOP_BACK)];
        ipset.apply(&again.iter().enumerate().collect::<Vec<_>>(), &mut report);
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert!(saved(VIPS.name()).is_empty());
    });
}

#[test]
fn a_member_too_many_is_a_failure_that_says_so_and_stops_nothing_else() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        let full = SetState { capacity: 4, members: addresses(200) };
        let other = holding(members(LOOP_BACK));
        let report = try_reconcile(&mut ipset, &Sets::from([(VIPS, full), (LOOP_BACK, other.clone())]));
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
        let failure = &report.failures[0];
        assert!(matches!(failure.step, Step::AddMembers(VIPS, _)), "{:?}", failure.step);
        assert!(
            failure.error.to_string().starts_with("adding to the set KUBE-IPVS-IPS: the kernel refused: "),
            "{}",
            failure.error
        );
        assert!(failure.error.to_string().contains("full"), "{}", failure.error);
        assert!(report.leaves_state_unknown(), "some members are in");
        assert_eq!(ipset.observe().unwrap()[&LOOP_BACK], other);
    });
}

#[test]
fn a_set_of_our_name_with_another_layout_is_named_and_left_alone() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        sh("ipset create KUBE-LOOP-BACK hash:net");
        sh("ipset add KUBE-LOOP-BACK 10.0.0.0/8");
        let before = sh("ipset save");
        let error = ipset.observe().unwrap_err();
        assert!(error.is_missing_module(), "nothing works without");
        assert_eq!(
            error.to_string(),
            "the set KUBE-LOOP-BACK: it exists as hash:net IPv4 and has to be hash:ip,port,ip IPv4; \
             stop what made it, then run `ipset destroy KUBE-LOOP-BACK`"
        );
        assert_eq!(sh("ipset save"), before);

        sh("ipset destroy KUBE-LOOP-BACK");
        sh("ipset create KUBE-LOOP-BACK hash:ip,port,ip family inet6");
        let error = ipset.observe().unwrap_err().to_string();
        assert!(error.contains("it exists as hash:ip,port,ip IPv6 and has to be hash:ip,port,ip IPv4"), "{error}");
    });
}

#[test]
fn sets_of_others_are_not_seen_and_stay() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        sh("ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535");
        sh("ipset add KUBE-NODE-PORT-TCP 30080");
        sh("ipset create blocklist hash:net");
        let foreign = sh("ipset save");
        assert_eq!(ipset.observe().unwrap(), Sets::new());
        reconcile(&mut ipset, &Sets::from([(VIPS, holding(addresses(9)))]));
        reconcile(&mut ipset, &Sets::new());
        assert_eq!(sh("ipset save"), foreign);
    });
}

#[test]
fn a_set_that_a_rule_refers_to_is_not_destroyed_and_the_failure_says_why() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        reconcile(&mut ipset, &Sets::from([(VIPS, holding(addresses(1)))]));
        sh("iptables-legacy -A INPUT -m set --match-set KUBE-IPVS-IPS dst -j DROP");
        let report = try_reconcile(&mut ipset, &Sets::new());
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
        let sentence = report.failures[0].error.to_string();
        assert!(sentence.starts_with("destroying the set KUBE-IPVS-IPS: the kernel refused: "), "{sentence}");
        assert!(sentence.contains("in use") || sentence.contains("refer"), "{sentence}");
        sh("iptables-legacy -F INPUT");
        reconcile(&mut ipset, &Sets::new());
    });
}

#[test]
fn a_member_and_a_set_that_others_take_away_are_missed() {
    isolated(|| {
        let mut ipset = Ipset::open().unwrap();
        let all: Sets = Family::ALL.into_iter().flat_map(Set::of_family).map(|set| (set, holding(members(set)))).collect();
        reconcile(&mut ipset, &all);
        let sample: BTreeMap<Set, BTreeSet<Member>> = all.iter().map(|(set, state)| (*set, state.members.clone())).collect();
        assert!(!ipset.lacks_any(&sample).unwrap(), "members of every kind are found");
        sh("ipset del KUBE-CLUSTER-IP 10.96.0.10,tcp:80");
        assert!(ipset.lacks_any(&sample).unwrap(), "one of hundreds");
        sh("ipset add KUBE-CLUSTER-IP 10.96.0.10,tcp:80");
        assert!(!ipset.lacks_any(&sample).unwrap());
        for damage in ["ipset flush", "ipset destroy"] {
            sh(damage);
            for (set, members) in &sample {
                let one = BTreeMap::from([(*set, BTreeSet::from([*members.first().unwrap()]))]);
                assert!(ipset.lacks_any(&one).unwrap(), "{damage}: {set}");
            }
        }
        assert!(!ipset.lacks_any(&BTreeMap::new()).unwrap());
    });
}
