//! Our messages against those of ipvsadm, ipset and ip, and what we read in the kernel's answers against what they printed.

use std::net::IpAddr;
use std::num::NonZeroU32;

use model::{
    Direction, Family, Flags, Flow, ForwardingMethod, Member, Protocol, RealServer, RealServerCounters, RealServerKey, Scheduler,
    SetKind, TrafficCounters, VirtualServerConfig, VirtualServerKey,
};
use wire::flags::{NLM_F_ACK, NLM_F_EXCL};
use wire::ipset::{AdtList, ListScope};
use wire::rtnl::{LocalRoute, RouteFilter};
use wire::{Batch, Body, Decoded, Malformed, conntrack, genl, ipset, ipvs, rtnl};

use crate::capture::{Recording, assert_has_more, assert_same, assert_same_but, known, objects};

/// The number that the kernel of the recording gave the IPVS family.
const IPVS: u16 = 32;

fn ipvs_recording() -> Recording {
    Recording::parse(include_str!("../golden/ipvs.txt"))
}

fn ipset_recording() -> Recording {
    Recording::parse(include_str!("../golden/ipset.txt"))
}

fn networks_and_marks_recording() -> Recording {
    Recording::parse(include_str!("../golden/ipset-networks-and-marks.txt"))
}

fn rtnl_recording() -> Recording {
    Recording::parse(include_str!("../golden/rtnl.txt"))
}

fn conntrack_recording() -> Recording {
    Recording::parse(include_str!("../golden/conntrack.txt"))
}

fn one(write: impl FnOnce(&mut Batch) -> Result<(), Malformed>) -> Batch {
    let mut batch = Batch::default();
    write(&mut batch).unwrap();
    batch
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tcp(address: &str, port: u16) -> VirtualServerKey {
    VirtualServerKey::address(ip(address), Protocol::Tcp, port)
}

fn mark(family: Family) -> VirtualServerKey {
    VirtualServerKey::Mark { family, mark: NonZeroU32::new(81920).unwrap() }
}

fn config(scheduler: &str, family: Family, persistence: Option<u32>, granularity: u8) -> VirtualServerConfig {
    VirtualServerConfig {
        persistence: persistence.and_then(NonZeroU32::new),
        granularity,
        ..VirtualServerConfig::new(Scheduler::new(scheduler).unwrap(), family)
    }
}

fn server(forwarding: ForwardingMethod, weight: u32) -> RealServer {
    RealServer { forwarding, weight, ..RealServer::default() }
}

/// A message of the IPVS family with this command.
fn command(command: u8) -> impl Fn(u16, &[u8]) -> bool {
    move |kind, payload| kind == IPVS && payload[0] == command
}

/// A message of ipset with this command.
fn set_command(command: u16) -> impl Fn(u16, &[u8]) -> bool {
    move |kind, _| kind == 0x600 | command
}

/// A message of rtnetlink with this type.
fn of_type(wanted: u16) -> impl Fn(u16, &[u8]) -> bool {
    move |kind, _| kind == wanted
}

#[test]
fn the_ipvs_family_is_asked_for_and_found_as_ipvsadm_does() {
    let recording = ipvs_recording();
    let first = "ipvsadm -A -t 10.96.0.1:80 -s rr";
    let ours = one(|batch| genl::get_family(batch, 1, ipvs::FAMILY));
    assert_same(&ours, recording.sent(first, |kind, _| kind == 16), NLM_F_ACK);
    assert_eq!(genl::parse_family(objects(&recording.received(first), 16)[0]), Ok(IPVS));

    assert_same(&one(|batch| ipvs::Ipvs::new(IPVS).get_info(batch, 1)), recording.sent(first, command(15)), NLM_F_ACK);
    let info = ipvs::parse_info(objects(&recording.received(first), IPVS)[0]).unwrap();
    assert_eq!(info, ipvs::Info { version: (1, 2, 1), connection_table_size: 4096 });
}

#[test]
fn services_are_made_and_changed_byte_for_byte_as_ipvsadm_does() {
    let recording = ipvs_recording();
    let ipvs = ipvs::Ipvs::new(IPVS);
    let v6 = tcp("fd00::1", 443);
    let sctp = VirtualServerKey::address(ip("10.96.0.2"), Protocol::Sctp, 38412);
    let udp = VirtualServerKey::address(ip("10.96.0.1"), Protocol::Udp, 53);
    let mh_port = VirtualServerConfig { flags: Flags::SCHED_2, ..config("mh", Family::V4, Some(10800), 24) };
    for (line, key, config) in [
        ("ipvsadm -A -t 10.96.0.1:80 -s rr", tcp("10.96.0.1", 80), config("rr", Family::V4, None, 32)),
        ("ipvsadm -A -u 10.96.0.1:53 -s mh -p 10800 -M 255.255.255.0 -b mh-port", udp, mh_port),
        ("ipvsadm -A --sctp-service 10.96.0.2:38412 -s wlc", sctp, config("wlc", Family::V4, None, 32)),
        ("ipvsadm -A -t [fd00::1]:443 -s rr -p 60 -M 64", v6, config("rr", Family::V6, Some(60), 64)),
        ("ipvsadm -A -f 81920 -s rr", mark(Family::V4), config("rr", Family::V4, None, 32)),
        ("ipvsadm -A -f 81920 -6 -s wlc", mark(Family::V6), config("wlc", Family::V6, None, 128)),
    ] {
        let ours = one(|batch| ipvs.new_service(batch, 1, &key, &config));
        assert_same(&ours, recording.sent(line, command(1)), NLM_F_ACK);
    }
    for (line, persistence, scheduler) in
        [("ipvsadm -E -t 10.96.0.1:80 -s wlc -p 300", Some(300), "wlc"), ("ipvsadm -E -t 10.96.0.1:80 -s rr", None, "rr")]
    {
        let ours = one(|batch| ipvs.set_service(batch, 1, &tcp("10.96.0.1", 80), &config(scheduler, Family::V4, persistence, 32)));
        assert_same(&ours, recording.sent(line, command(2)), NLM_F_ACK);
    }
    // ipvsadm repeats the settings of a service where its key is enough.
    const SETTINGS: [&[u16]; 4] = [&[1, 6], &[1, 7], &[1, 8], &[1, 9]];
    for (line, key) in [
        ("ipvsadm -D -u 10.96.0.1:53", udp),
        ("ipvsadm -D -t [fd00::1]:443", v6),
        ("ipvsadm -D -f 81920", mark(Family::V4)),
        ("ipvsadm -D -f 81920 -6", mark(Family::V6)),
    ] {
        let ours = one(|batch| ipvs.del_service(batch, 1, &key));
        assert_same_but(&ours, recording.sent(line, command(3)), NLM_F_ACK, 4, &SETTINGS);
    }
    let ours = one(|batch| ipvs.get_service(batch, 1, &tcp("10.96.0.9", 80)));
    assert_same_but(&ours, recording.sent("ipvsadm -L -n -t 10.96.0.9:80", command(4)), NLM_F_ACK, 4, &SETTINGS);
}

#[test]
fn dests_are_made_and_changed_attribute_for_attribute_as_ipvsadm_does() {
    let recording = ipvs_recording();
    let ipvs = ipvs::Ipvs::new(IPVS);
    // ipvsadm repeats the settings of the service, and tells the kernel the tunnel type, port and flags that are the default anyway.
    const NEW: [&[u16]; 7] = [&[1, 6], &[1, 7], &[1, 8], &[1, 9], &[2, 13], &[2, 14], &[2, 15]];
    let web = tcp("10.96.0.1", 80);
    let thresholds = RealServer { upper_threshold: 1000, lower_threshold: 500, ..server(ForwardingMethod::DirectRouting, 100) };
    for (line, service, dest, server) in [
        (
            "ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.2:8080 -m -w 1",
            web,
            ("10.244.1.2", 8080),
            server(ForwardingMethod::Masquerade, 1),
        ),
        ("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.3:80 -g -w 100 -x 1000 -y 500", web, ("10.244.1.3", 80), thresholds),
        ("ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.4:80 -i -w 0", web, ("10.244.1.4", 80), server(ForwardingMethod::Tunnel, 0)),
        ("ipvsadm -a -t 10.96.0.1:80 -r [fd00:1::5]:80 -i -w 3", web, ("fd00:1::5", 80), server(ForwardingMethod::Tunnel, 3)),
        (
            "ipvsadm -a -t [fd00::1]:443 -r [fd00:1::2]:8443 -m -w 2",
            tcp("fd00::1", 443),
            ("fd00:1::2", 8443),
            server(ForwardingMethod::Masquerade, 2),
        ),
        (
            "ipvsadm -a -f 81920 -r 10.244.1.2:8080 -m",
            mark(Family::V4),
            ("10.244.1.2", 8080),
            server(ForwardingMethod::Masquerade, 1),
        ),
    ] {
        let ours = one(|batch| ipvs.new_dest(batch, 1, &service, &RealServerKey::new(ip(dest.0), dest.1), &server));
        assert_same_but(&ours, recording.sent(line, command(5)), NLM_F_ACK, 4, &NEW);
    }
    let drained = RealServerKey::new(ip("10.244.1.2"), 8080);
    let ours = one(|batch| ipvs.set_dest(batch, 1, &web, &drained, &server(ForwardingMethod::Masquerade, 0)));
    let line = "ipvsadm -e -t 10.96.0.1:80 -r 10.244.1.2:8080 -m -w 0";
    assert_same_but(&ours, recording.sent(line, command(6)), NLM_F_ACK, 4, &NEW);

    // For a removal it tells them all, of which the kernel needs the key.
    let mut del = NEW.to_vec();
    del.extend([&[2u16, 3] as &[u16], &[2, 4], &[2, 5], &[2, 6]]);
    let ours = one(|batch| ipvs.del_dest(batch, 1, &web, &RealServerKey::new(ip("10.244.1.3"), 80)));
    assert_same_but(&ours, recording.sent("ipvsadm -d -t 10.96.0.1:80 -r 10.244.1.3:80", command(7)), NLM_F_ACK, 4, &del);
}

#[test]
fn lists_and_timeouts_are_asked_for_byte_for_byte_as_ipvsadm_does() {
    let recording = ipvs_recording();
    let ipvs = ipvs::Ipvs::new(IPVS);
    assert_same(&one(|batch| ipvs.get_services(batch, 1)), recording.sent("ipvsadm -Ln", command(4)), NLM_F_ACK);
    let dests = recording.sent("ipvsadm -L -n -t 10.96.0.9:80", command(8));
    // ipvsadm asks for no acknowledgement of this one, as we never do.
    assert_same(&one(|batch| ipvs.get_dests(batch, 1, &tcp("10.96.0.9", 80))), dests, NLM_F_ACK);

    let timeouts = ipvs::Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    let line = "ipvsadm -L --timeout";
    assert_same(&one(|batch| ipvs.get_timeouts(batch, 1)), recording.sent(line, command(13)), NLM_F_ACK);
    assert_eq!(ipvs::parse_timeouts(objects(&recording.received(line), IPVS)[0]), Ok(timeouts));
    let ours = one(|batch| ipvs.set_timeouts(batch, 1, timeouts));
    assert_same(&ours, recording.sent("ipvsadm --set 900 120 300", command(12)), NLM_F_ACK);
}

#[test]
fn listed_services_and_dests_are_what_ipvsadm_printed() {
    let recording = ipvs_recording();
    let received = recording.received("ipvsadm -Ln");
    let mut services = Vec::new();
    let mut dests = Vec::new();
    for payload in objects(&received, IPVS) {
        match payload[0] {
            1 => services.push(known(ipvs::parse_service(payload).unwrap())),
            // Every dest says its family, so the service's does not matter.
            5 => dests.push(known(ipvs::parse_dest(payload, Family::V4).unwrap())),
            14 => {}
            other => panic!("command {other}"),
        }
    }
    let printed: Vec<String> = services
        .iter()
        .map(|service| {
            let ipvs::Service { key, config, .. } = service;
            let persistence = config.persistence.map(|seconds| format!(" persistent {seconds}")).unwrap_or_default();
            format!("{key} {} {:#x}{persistence} /{}", config.scheduler, config.flags.bits(), config.granularity)
        })
        .collect();
    assert_eq!(
        printed,
        [
            "TCP 10.96.0.1:80 rr 0x0 /32",
            "TCP 10.96.0.9:80 rr 0x0 persistent 600 /32",
            "UDP 10.96.0.1:53 mh 0x10 persistent 10800 /24",
            "SCTP 10.96.0.2:38412 wlc 0x0 /32",
            "TCP [fd00::1]:443 rr 0x0 persistent 60 /64",
            "FWM 81920 IPv6 wlc 0x0 /128",
            "FWM 81920 rr 0x0 /32",
        ]
    );
    let printed: Vec<String> = dests
        .iter()
        .map(|dest| {
            format!(
                "{} {} {} {}/{}",
                dest.key, dest.server.forwarding, dest.server.weight, dest.connections.active, dest.connections.inactive
            )
        })
        .collect();
    assert_eq!(
        printed,
        [
            "[fd00:1::5]:80 Tunnel 3 0/0",
            "10.244.1.4:80 Tunnel 0 0/0",
            "10.244.1.2:8080 Masq 0 0/0",
            "192.168.1.1:8080 Masq 1 0/1",
            "[fd00:1::2]:8443 Masq 2 0/0",
            "10.244.1.2:8080 Masq 1 0/0",
        ]
    );
    let traffic = TrafficCounters { connections: 1, packets_in: 4, packets_out: 4, bytes_in: 216, bytes_out: 222 };
    assert_eq!((services[1].statistics.traffic().unwrap(), dests[3].statistics.traffic().unwrap()), (traffic, traffic));
    assert_eq!(dests[3].connections, RealServerCounters { active: 0, inactive: 1, persistent: 1 });
    assert_eq!(services[0].statistics.traffic().unwrap(), TrafficCounters::default());
    assert!(received.iter().all(|message| !message.is_interrupted()));
    let ends = received.iter().filter(|message| message.body == Body::Done { errno: 0, text: None }).count();
    assert_eq!(ends, 1 + services.len(), "one list of services and one of dests each");
}

#[test]
fn refusals_carry_number_and_request() {
    let recording = ipvs_recording();
    for (line, errno) in [
        ("ipvsadm -A -t 10.96.0.1:80 -s rr  # exit 255", 17),
        ("ipvsadm -A -t 10.96.0.3:80 -s nosuch  # exit 255", 2),
        ("ipvsadm -d -t 10.96.0.1:80 -r 10.244.1.99:80  # exit 255", 2),
        ("ipvsadm -D -f 81920  # exit 255", 3),
    ] {
        let received = recording.received(line);
        let Some(Body::Error { errno: found, text: None, request: Some(request) }) = received.last().map(|message| &message.body)
        else {
            panic!("{received:?}");
        };
        assert_eq!(*found, errno, "{line}");
        assert_eq!(request[..], recording.sent(line, |_, _| true)[16..], "{line}");
    }
    let rtnl = rtnl_recording();
    let received = rtnl.received("ip -6 route add local fd00::13/128 dev kube-ipvs0 table local proto 71  # exit 2");
    let Some(Body::Error { errno: 100, text: Some(text), request: Some(_) }) = received.last().map(|message| &message.body) else {
        panic!("{received:?}");
    };
    assert_eq!(text, "Nexthop device is not up");
}

#[test]
fn sets_are_made_filled_and_removed_byte_for_byte_as_ipset_does() {
    let recording = ipset_recording();
    let first = "ipset create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536";
    assert_same(&one(|batch| ipset::get_protocol(batch, 1)), recording.sent(first, set_command(1)), 0);
    let received = recording.received(first);
    let sets = ipset::parse_protocol(objects(&received, 0x601)[0]).unwrap();
    let ours = one(|batch| sets.get_type(batch, 1, SetKind::HashIpPortIp, Family::V4));
    assert_same(&ours, recording.sent(first, set_command(13)), 0);
    assert_eq!(ipset::parse_type(objects(&received, 0x60d)[0]), Ok((0, 6)));

    let ours = one(|batch| sets.create(batch, 1, "KUBE-LOOP-BACK", SetKind::HashIpPortIp, Family::V4, 6, 1024, 65536));
    assert_same(&ours, recording.sent(first, set_command(2)), NLM_F_ACK);
    let line = "ipset create KUBE-6-LOOP-BACK hash:ip,port,ip family inet6 hashsize 2048 maxelem 131072";
    let ours = one(|batch| sets.create(batch, 1, "KUBE-6-LOOP-BACK", SetKind::HashIpPortIp, Family::V6, 6, 2048, 131_072));
    assert_same(&ours, recording.sent(line, set_command(2)), NLM_F_ACK);

    let pod = Member::IpPortIp(ip("10.244.1.2"), Protocol::Tcp, 8080, ip("10.244.1.2"));
    let ours = one(|batch| sets.add(batch, 1, "KUBE-LOOP-BACK", &pod));
    let line = "ipset -exist add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2";
    assert_same(&ours, recording.sent(line, set_command(9)), NLM_F_ACK);
    // The others were recorded without -exist, which is the EXCL flag.
    let v6 = ip("fd00:1::2");
    for (line, set, member) in [
        (
            "ipset add KUBE-LOOP-BACK 10.244.1.4,sctp:38412,10.244.1.4",
            "KUBE-LOOP-BACK",
            Member::IpPortIp(ip("10.244.1.4"), Protocol::Sctp, 38412, ip("10.244.1.4")),
        ),
        (
            "ipset add KUBE-6-LOOP-BACK fd00:1::2,tcp:8443,fd00:1::2",
            "KUBE-6-LOOP-BACK",
            Member::IpPortIp(v6, Protocol::Tcp, 8443, v6),
        ),
        ("ipset add KUBE-CLUSTER-IP 10.96.0.1,tcp:443", "KUBE-CLUSTER-IP", Member::IpPort(ip("10.96.0.1"), Protocol::Tcp, 443)),
        ("ipset add KUBE-6-CLUSTER-IP fd00::1,udp:53", "KUBE-6-CLUSTER-IP", Member::IpPort(ip("fd00::1"), Protocol::Udp, 53)),
        ("ipset add KUBE-IPVS-IPS 10.96.0.1", "KUBE-IPVS-IPS", Member::Ip(ip("10.96.0.1"))),
        ("ipset add KUBE-6-IPVS-IPS fd00::1", "KUBE-6-IPVS-IPS", Member::Ip(ip("fd00::1"))),
    ] {
        let ours = one(|batch| sets.add(batch, 1, set, &member));
        assert_same(&ours, recording.sent(line, set_command(9)), NLM_F_ACK | NLM_F_EXCL);
    }
    let gone = Member::IpPortIp(ip("10.244.1.3"), Protocol::Udp, 53, ip("10.244.1.3"));
    let ours = one(|batch| sets.del(batch, 1, "KUBE-LOOP-BACK", &gone));
    let line = "ipset del KUBE-LOOP-BACK 10.244.1.3,udp:53,10.244.1.3";
    assert_same(&ours, recording.sent(line, set_command(10)), NLM_F_ACK | NLM_F_EXCL);

    let swap = one(|batch| sets.swap(batch, 1, "KUBE-IPVS-IPS", "KUBE-IPVS-IPS-new"));
    assert_same(&swap, recording.sent("ipset swap KUBE-IPVS-IPS KUBE-IPVS-IPS-new", set_command(6)), NLM_F_ACK);
    let flush = one(|batch| sets.flush(batch, 1, "KUBE-CLUSTER-IP"));
    assert_same(&flush, recording.sent("ipset flush KUBE-CLUSTER-IP", set_command(4)), NLM_F_ACK);
    let destroy = one(|batch| sets.destroy(batch, 1, "KUBE-IPVS-IPS-new"));
    assert_same(&destroy, recording.sent("ipset destroy KUBE-IPVS-IPS-new", set_command(3)), NLM_F_ACK);
    let list = one(|batch| sets.list(batch, 1, "KUBE-LOOP-BACK", ListScope::Members));
    assert_same(&list, recording.sent("ipset list KUBE-LOOP-BACK", set_command(7)), NLM_F_ACK);
}

#[test]
fn a_list_of_members_differs_from_ipset_restore_in_line_numbers_only() {
    let recording = ipset_recording();
    let line = "ipset restore -file FILE";
    let mut list = AdtList::new(SetKind::HashIpPort);
    for (address, protocol) in [("10.96.0.2", Protocol::Tcp), ("10.96.0.3", Protocol::Sctp), ("10.96.0.4", Protocol::Udp)] {
        list.push(&Member::IpPort(ip(address), protocol, 80)).unwrap();
    }
    let first = "ipset create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536";
    let sets = ipset::parse_protocol(objects(&recording.received(first), 0x601)[0]).unwrap();
    let ours = one(|batch| sets.add_list(batch, 1, "KUBE-CLUSTER-IP", &list));
    // ipset puts the line of the first member where we put 0.
    let mut theirs = recording.sent(line, set_command(9)).to_vec();
    let lineno = theirs.windows(8).position(|attribute| attribute == [8, 0, 9, 0x40, 0, 0, 0, 1]).unwrap();
    theirs[lineno + 7] = 0;
    assert_same(&ours, &theirs, NLM_F_ACK | NLM_F_EXCL);
}

#[test]
fn listed_sets_are_what_ipset_printed() {
    let recording = ipset_recording();
    let received = recording.received("ipset save");
    let mut printed = Vec::new();
    for payload in objects(&received, 0x607) {
        let set = ipset::parse_set(payload).unwrap();
        let header = set.header.unwrap();
        let size = |size: Option<u32>| size.map_or("-".to_owned(), |size| size.to_string());
        printed.push(format!(
            "create {} {} {} {} {} {:?}",
            set.name,
            header.type_name,
            header.family.map_or("-".to_owned(), |family| family.to_string()),
            size(header.hashsize),
            size(header.maxelem),
            header.kind(),
        ));
        let members: Vec<_> = set.members().collect::<Result<_, _>>().unwrap();
        assert_eq!(header.elements, u32::try_from(members.len()).ok());
        printed.extend(members.into_iter().map(|member| match member {
            wire::Decoded::Known(member) => format!("add {member}"),
            wire::Decoded::Foreign(foreign) => format!("foreign: {foreign}"),
        }));
    }
    assert_eq!(
        printed,
        [
            "create KUBE-LOOP-BACK hash:ip,port,ip IPv4 1024 65536 Some(HashIpPortIp)",
            "add 10.244.1.4,sctp:38412,10.244.1.4",
            "add 10.244.1.2,tcp:8080,10.244.1.2",
            "create KUBE-6-LOOP-BACK hash:ip,port,ip IPv6 2048 131072 Some(HashIpPortIp)",
            "add fd00:1::2,tcp:8443,fd00:1::2",
            "create KUBE-CLUSTER-IP hash:ip,port IPv4 1024 65536 Some(HashIpPort)",
            "add 10.96.0.3,sctp:80",
            "add 10.96.0.2,tcp:80",
            "add 10.96.0.4,udp:80",
            "add 10.96.0.1,tcp:443",
            "create KUBE-6-CLUSTER-IP hash:ip,port IPv6 1024 65536 Some(HashIpPort)",
            "add fd00::1,udp:53",
            "create KUBE-IPVS-IPS hash:ip IPv4 1024 65536 Some(HashIp)",
            "add 10.96.0.1",
            "create KUBE-6-IPVS-IPS hash:ip IPv6 1024 65536 Some(HashIp)",
            "add fd00::1",
            "create foreign hash:ip,port IPv4 1024 65536 None",
            "add 10.0.0.1,tcp:80 skbmark 0x14000",
            "foreign: the set member 10.0.0.2 of protocol 1",
            "create ports bitmap:port - - - None",
            "foreign: a set member without an address",
        ]
    );
    let headers = recording.received("ipset list -t KUBE-6-LOOP-BACK");
    let set = ipset::parse_set(objects(&headers, 0x607)[0]).unwrap();
    assert_eq!((set.name, set.header.unwrap().elements, set.members().count()), ("KUBE-6-LOOP-BACK", Some(1), 0));
}

#[test]
fn sets_of_networks_and_marks_are_made_and_filled_byte_for_byte_as_ipset_does() {
    let recording = networks_and_marks_recording();
    let (ranges, ranges_v6) = ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID");
    let (marks, marks_v6) = ("KUBE-IN-CLUSTER-MARK", "KUBE-6-IN-CLUSTER-MARK");
    let networks = (SetKind::HashIpPortNet, "hash:ip,port,net", "");
    let marked = (SetKind::HashIpPortMark, "hash:ip,port", " skbinfo");
    let mut protocol = None;
    for (set, (kind, type_name, with), family, family_name, revision) in [
        (ranges, networks, Family::V4, "inet", 8),
        (ranges_v6, networks, Family::V6, "inet6", 8),
        (marks, marked, Family::V4, "inet", 7),
        (marks_v6, marked, Family::V6, "inet6", 7),
    ] {
        let line = format!("ipset create {set} {type_name} family {family_name} hashsize 1024 maxelem 65536{with}");
        let received = recording.received(&line);
        let sets = *protocol.get_or_insert_with(|| ipset::parse_protocol(objects(&received, 0x601)[0]).unwrap());
        // The tool asks for the type in IPv4 whichever family the set is of.
        if family == Family::V4 {
            let ours = one(|batch| sets.get_type(batch, 1, kind, family));
            assert_same(&ours, recording.sent(&line, set_command(13)), 0);
        }
        assert_eq!(ipset::parse_type(objects(&received, 0x60d)[0]), Ok((0, revision)));
        let ours = one(|batch| sets.create(batch, 1, set, kind, family, revision, 1024, 65536));
        assert_same(&ours, recording.sent(&line, set_command(2)), NLM_F_ACK);
    }

    let sets = protocol.unwrap();
    let vip = ip("198.51.100.21");
    let range = |protocol, port, network: &str| Member::IpPortNet(vip, protocol, port, network.parse().unwrap());
    let marked = |address, protocol, port, mark| Member::IpPortMark(ip(address), protocol, port, NonZeroU32::new(mark).unwrap());
    for (command, words, set, member) in [
        (
            9,
            "add KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.21,tcp:80,203.0.113.0/24",
            ranges,
            range(Protocol::Tcp, 80, "203.0.113.0/24"),
        ),
        (
            9,
            "add KUBE-6-LOAD-BALANCER-SOURCE-CID 2001:db8::21,sctp:80,2001:db8:100::/48",
            ranges_v6,
            Member::IpPortNet(ip("2001:db8::21"), Protocol::Sctp, 80, "2001:db8:100::/48".parse().unwrap()),
        ),
        (
            9,
            "add KUBE-IN-CLUSTER-MARK 198.51.100.21,tcp:80 skbmark 0x4f59",
            marks,
            marked("198.51.100.21", Protocol::Tcp, 80, 0x4f59),
        ),
        (
            9,
            "add KUBE-6-IN-CLUSTER-MARK 2001:db8::21,udp:53 skbmark 0x80000007",
            marks_v6,
            marked("2001:db8::21", Protocol::Udp, 53, 0x8000_0007),
        ),
    ] {
        let theirs = recording.sent(&format!("ipset {words}"), set_command(command));
        assert_same(&one(|batch| sets.add(batch, 1, set, &member)), theirs, NLM_F_ACK | NLM_F_EXCL);
    }
    // Another mark for a member that is there.
    let line = "ipset -exist add KUBE-IN-CLUSTER-MARK 198.51.100.21,tcp:80 skbmark 0x7fa9";
    let ours = one(|batch| sets.add(batch, 1, marks, &marked("198.51.100.21", Protocol::Tcp, 80, 0x7fa9)));
    assert_same(&ours, recording.sent(line, set_command(9)), NLM_F_ACK);
    // The tool leaves out a prefix as long as the address, and a mark where it removes; the kernel takes both as we send them.
    let single = range(Protocol::Udp, 53, "203.0.113.7/32");
    for (line, command, ours, extra) in [
        (
            "ipset add KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.21,udp:53,203.0.113.7",
            9,
            one(|batch| sets.add(batch, 1, ranges, &single)),
            21,
        ),
        (
            "ipset del KUBE-LOAD-BALANCER-SOURCE-CIDR 198.51.100.21,udp:53,203.0.113.7",
            10,
            one(|batch| sets.del(batch, 1, ranges, &single)),
            21,
        ),
        (
            "ipset del KUBE-IN-CLUSTER-MARK 198.51.100.24,udp:53",
            10,
            one(|batch| sets.del(batch, 1, marks, &marked("198.51.100.24", Protocol::Udp, 53, 0x4001))),
            // In network byte order, says the flag.
            27 | 0x4000,
        ),
    ] {
        assert_has_more(&ours, recording.sent(line, set_command(command)), NLM_F_ACK | NLM_F_EXCL, 4, &[7, extra]);
    }
}

#[test]
fn listed_sets_of_networks_and_marks_are_what_ipset_printed() {
    let recording = networks_and_marks_recording();
    let received = recording.received("ipset save");
    let mut printed = Vec::new();
    for payload in objects(&received, 0x607) {
        let set = ipset::parse_set(payload).unwrap();
        let header = set.header.unwrap();
        printed.push(format!("create {} {:?} {:?}", set.name, header.family.unwrap(), header.kind().unwrap()));
        printed.extend(set.members().map(|member| match member.unwrap() {
            wire::Decoded::Known(member) => format!("add {member}"),
            wire::Decoded::Foreign(foreign) => format!("foreign: {foreign}"),
        }));
    }
    assert_eq!(
        printed,
        [
            "create KUBE-LOAD-BALANCER-SOURCE-CIDR V4 HashIpPortNet",
            "add 198.51.100.21,tcp:80,203.0.113.0/24",
            "foreign: a set member with flags",
            "create KUBE-6-LOAD-BALANCER-SOURCE-CID V6 HashIpPortNet",
            "add 2001:db8::21,sctp:80,2001:db8:100::/48",
            "create KUBE-IN-CLUSTER-MARK V4 HashIpPortMark",
            "foreign: a set member with a mark that is not ours",
            "add 198.51.100.21,tcp:80 skbmark 0x7fa9",
            "add 198.51.100.22,tcp:80",
            "create KUBE-6-IN-CLUSTER-MARK V6 HashIpPortMark",
            "add 2001:db8::21,udp:53 skbmark 0x80000007",
        ]
    );
}

#[test]
fn ipsets_own_errors_have_a_text() {
    let recording = ipset_recording();
    for (line, errno, text) in [
        ("ipset add KUBE-LOOP-BACK 10.244.1.2,tcp:8080,10.244.1.2  # exit 1", 4103, Some("IPSET_ERR_EXIST")),
        ("ipset swap KUBE-IPVS-IPS KUBE-6-IPVS-IPS  # exit 1", 4102, Some("IPSET_ERR_TYPE_MISMATCH")),
        ("ipset list nosuch  # exit 1", 2, None),
    ] {
        let received = recording.received(line);
        let Some(Body::Error { errno: found, .. }) = received.last().map(|message| &message.body) else { panic!("{received:?}") };
        assert_eq!(*found, errno);
        assert_eq!(ipset::error_text(*found).is_some(), text.is_some());
        assert!(text.is_none_or(|text| ipset::error_text(*found).unwrap().contains(text)));
    }
}

#[test]
fn links_and_addresses_are_made_as_ip_does() {
    let recording = rtnl_recording();
    let line = "ip link add kube-ipvs0 up type dummy";
    // ip does not mark IFLA_LINKINFO as nested.
    let mut theirs = recording.sent(line, of_type(16)).to_vec();
    let linkinfo = theirs.windows(4).position(|header| header == [0x10, 0, 18, 0]).unwrap();
    theirs[linkinfo + 3] |= 0x80;
    assert_same(&one(|batch| rtnl::new_dummy(batch, 1, "kube-ipvs0")), &theirs, NLM_F_ACK);
    let up = one(|batch| rtnl::set_up(batch, 1, 3));
    assert_same(&up, recording.sent("ip link set kube-ipvs0 up", of_type(16)), NLM_F_ACK);
    let del = one(|batch| rtnl::del_link(batch, 1, 3));
    assert_same(&del, recording.sent("ip link del kube-ipvs0", of_type(17)), NLM_F_ACK);
    // ip asks for statistics of virtual functions to be left out (IFLA_EXT_MASK).
    let line = "ip link show dev nosuch0  # exit 1";
    let get = one(|batch| rtnl::get_link(batch, 1, "nosuch0"));
    assert_same_but(&get, recording.sent(line, of_type(18)), 0, 16, &[&[29]]);
    let Body::Error { errno, .. } = recording.received(line)[0].body else { panic!("an error") };
    assert_eq!(errno, 19, "ENODEV");

    for (line, address) in
        [("ip addr add 10.96.0.10/32 dev kube-ipvs0", "10.96.0.10"), ("ip addr add fd00::10/128 dev kube-ipvs0 nodad", "fd00::10")]
    {
        let ours = one(|batch| rtnl::new_address(batch, 1, 3, ip(address)));
        assert_same(&ours, recording.sent(line, of_type(20)), NLM_F_ACK);
    }
    for (line, address) in
        [("ip addr del 10.96.0.10/32 dev kube-ipvs0", "10.96.0.10"), ("ip addr del fd00::10/128 dev kube-ipvs0", "fd00::10")]
    {
        let ours = one(|batch| rtnl::del_address(batch, 1, 3, ip(address)));
        assert_same(&ours, recording.sent(line, of_type(21)), NLM_F_ACK);
    }
}

#[test]
fn local_routes_are_made_byte_for_byte_as_ip_does() {
    let recording = rtnl_recording();
    let route = |address, source: Option<&str>| LocalRoute { address: ip(address), link: 3, source: source.map(ip) };
    let with_source = route("10.96.0.11", Some("192.168.1.1"));
    for (line, route) in [
        ("ip route add local 10.96.0.11/32 dev kube-ipvs0 table local proto 71 scope host src 192.168.1.1", with_source),
        ("ip route add local 10.96.0.12/32 dev kube-ipvs0 table local proto 71 scope host", route("10.96.0.12", None)),
        (
            "ip -6 route add local fd00::11/128 dev kube-ipvs0 table local proto 71 src fd00::10",
            route("fd00::11", Some("fd00::10")),
        ),
        ("ip -6 route add local fd00::12/128 dev kube-ipvs0 table local proto 71", route("fd00::12", None)),
    ] {
        assert_same(&one(|batch| rtnl::add_local_route(batch, 1, &route)), recording.sent(line, of_type(24)), NLM_F_ACK);
    }
    let line = "ip route replace local 10.96.0.11/32 dev kube-ipvs0 table local proto 71 scope host src 192.168.1.1";
    assert_same(&one(|batch| rtnl::replace_local_route(batch, 1, &with_source)), recording.sent(line, of_type(24)), NLM_F_ACK);
    for (line, route) in [
        ("ip route del local 10.96.0.12/32 dev kube-ipvs0 table local proto 71", route("10.96.0.12", None)),
        ("ip -6 route del local fd00::12/128 dev kube-ipvs0 table local proto 71", route("fd00::12", None)),
    ] {
        assert_same(&one(|batch| rtnl::del_local_route(batch, 1, &route)), recording.sent(line, of_type(25)), NLM_F_ACK);
    }
    let refused = rtnl::add_local_route(&mut Batch::default(), 1, &route("10.96.0.11", Some("fd00::10"))).unwrap_err();
    assert_eq!(refused.to_string(), "a route to 10.96.0.11 cannot have the source fd00::10: they must be of the same family");

    // ip sends its buffer with zeros at the end.
    let trimmed = |line: &str| {
        let mut theirs = recording.sent(line, of_type(26)).to_vec();
        let len = usize::try_from(u32::from_le_bytes(theirs[..4].try_into().unwrap())).unwrap();
        theirs.truncate(len);
        theirs
    };
    let filter = |family, protocol, link| one(|batch| rtnl::get_routes(batch, 1, RouteFilter { family, protocol, link }));
    assert_same(&filter(Family::V4, Some(71), None), &trimmed("ip -4 route show table local proto 71"), 0);
    assert_same(&filter(Family::V6, None, Some(3)), &trimmed("ip -6 route show table local dev kube-ipvs0"), 0);
    assert_same(
        &one(|batch| rtnl::get_route_to(batch, 1, ip("fd00::11"))),
        recording.sent("ip route get fd00::11", of_type(26)),
        0,
    );
}

#[test]
fn listed_links_addresses_and_routes_are_what_ip_printed() {
    let recording = rtnl_recording();
    let links: Vec<_> =
        objects(&recording.received("ip link show"), 16).into_iter().map(|payload| rtnl::parse_link(payload).unwrap()).collect();
    let names: Vec<_> =
        links.iter().map(|link| (link.index, &*link.name, link.kind.as_deref(), link.is_up(), link.is_loopback())).collect();
    let dummy = Some("dummy");
    assert_eq!(names, [(1, "lo", None, true, true), (2, "dummy0", dummy, false, false), (3, "kube-ipvs0", dummy, true, false)]);

    let addresses: Vec<_> = objects(&recording.received("ip addr show"), 20)
        .into_iter()
        .map(|payload| known(rtnl::parse_address(payload).unwrap()))
        .map(|found| (found.link, format!("{}/{}", found.address, found.prefix), found.scope, found.is_usable()))
        .collect();
    assert_eq!(
        addresses,
        [
            (1, "127.0.0.1/8".to_owned(), 254, true),
            (1, "192.168.1.1/24".to_owned(), 0, true),
            (1, "10.96.0.9/32".to_owned(), 0, true),
            (3, "10.96.0.10/32".to_owned(), 0, true),
            (1, "::1/128".to_owned(), 254, true),
            (3, "fd00::10/128".to_owned(), 0, true),
            (3, "fe80::dc69:79ff:fef1:5de7/64".to_owned(), 253, true),
        ]
    );

    let routes = |line: &str| -> Vec<_> {
        objects(&recording.received(line), 24).into_iter().map(|payload| known(rtnl::parse_route(payload).unwrap())).collect()
    };
    let local = |address: &str, source: Option<&str>| Some(LocalRoute { address: ip(address), link: 3, source: source.map(ip) });
    let ours: Vec<_> = routes("ip -4 route show table local proto 71").iter().map(rtnl::Route::ours).collect();
    assert_eq!(ours, [local("10.96.0.11", Some("192.168.1.1")), local("10.96.0.12", None)]);
    let ours: Vec<_> = routes("ip -6 route show table local dev kube-ipvs0").iter().map(rtnl::Route::ours).collect();
    assert_eq!(ours, [None, local("fd00::11", Some("fd00::10")), local("fd00::12", None), None, None]);
    let kernels = routes("ip -4 route show table local dev kube-ipvs0 type local")[0];
    assert_eq!((kernels.protocol, kernels.ours()), (2, None), "the kernel's route to an address is not ours");

    assert_eq!(routes("ip route get 10.96.0.11")[0].source, Some(ip("192.168.1.1")));
    assert_eq!(routes("ip route get fd00::11")[0].source, Some(ip("fd00::10")));
}

/// The flow of a client whose packets to `frontend` go to `server`, which sees them come from `node`.
fn udp_flow(client: &str, frontend: &str, server: &str, node: &str) -> Flow {
    let direction = |from: &str, to: &str| Direction { source: from.parse().unwrap(), destination: to.parse().unwrap() };
    Flow { protocol: Protocol::Udp, original: direction(client, frontend), reply: direction(server, node), zone: 0 }
}

fn recorded_flows() -> [Flow; 3] {
    let v4 = udp_flow("10.244.1.5:5353", "10.96.0.10:53", "10.244.1.2:8053", "172.18.0.2:40000");
    let v6 = udp_flow("[fd00:244::5]:5353", "[fd00:96::10]:53", "[fd00:244::2]:8053", "[fd00:18::2]:40000");
    let zoned = udp_flow("10.244.1.6:5354", "10.96.0.10:53", "10.96.0.10:53", "10.244.1.6:5354");
    [v4, v6, Flow { zone: 7, ..zoned }]
}

#[test]
fn flows_are_listed_and_deleted_as_conntrack_does() {
    let recording = conntrack_recording();
    let [v4, v6, zoned] = recorded_flows();
    for (line, flow) in [
        ("conntrack -D -p udp -s 10.244.1.5 -d 10.96.0.10 --sport 5353 --dport 53", v4),
        ("conntrack -D -f ipv6 -p udp -d fd00:96::10", v6),
        ("conntrack -D -p udp -w 7", zoned),
    ] {
        let ours = one(|batch| conntrack::delete_entry(batch, 1, &conntrack::Entry { flow, id: None }));
        let theirs = recording.sent(line, of_type(0x102));
        // Status, timeout, mark and what follows a TCP sequence: conntrack repeats them, and the kernel does not look at them.
        assert_same_but(&ours, theirs, NLM_F_ACK, 4, &[&[3], &[7], &[8], &[24, 1], &[24, 2], &[24, 3]]);
    }
    // Which protocol it wants, conntrack finds out by itself.
    let line = "conntrack -L -f ipv6 -p udp";
    let ours = one(|batch| conntrack::get_entries(batch, 1, Family::V6, Protocol::Udp));
    let theirs = recording.sent(line, of_type(0x101));
    assert_eq!((&ours.as_bytes()[4..8], &ours.as_bytes()[16..20]), (&theirs[4..8], &theirs[16..20]));
}

#[test]
fn flows_are_read_as_conntrack_prints_them() {
    let recording = conntrack_recording();
    let messages = recording.received("conntrack -L -p udp");
    let entries: Vec<_> = objects(&messages, 0x100).into_iter().map(|payload| conntrack::parse_entry(payload).unwrap()).collect();
    let [v4, v6, zoned] = recorded_flows();
    let foreign: Vec<_> = entries.iter().filter(|entry| matches!(entry, Decoded::Foreign(_))).collect();
    let [Decoded::Foreign(foreign)] = foreign[..] else { panic!("{foreign:?}") };
    assert_eq!(foreign.to_string(), "a conntrack entry with a zone for one direction");
    let known: Vec<_> = entries.into_iter().filter_map(Decoded::known).collect();
    let flows: Vec<_> = known.iter().map(|entry| entry.flow).collect();
    let tcp = udp_flow("10.244.1.5:1000", "10.96.0.10:80", "10.96.0.10:80", "10.244.1.5:1000");
    assert_eq!(flows, [Flow { protocol: Protocol::Tcp, ..tcp }, v6, v4, zoned]);
    assert_eq!(known[2].id, Some(0xcbb2_bd5c));
}

#[test]
fn everything_the_kernel_sent_can_be_read() {
    let recordings = [ipvs_recording(), ipset_recording(), rtnl_recording(), conntrack_recording()];
    let messages: usize = recordings
        .iter()
        .flat_map(Recording::all_received)
        .map(|datagram| wire::Messages::new(datagram).map(Result::unwrap).count())
        .sum();
    assert!(messages > 150, "{messages} messages");
    assert!(recordings.iter().flat_map(Recording::all).all(|datagram| datagram.len() >= 16));
}
