//! What we write, we read: properties of every message that has something in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;

use ipnetwork::IpNetwork;
use model::{
    Direction, Family, Flags, Flow, ForwardingMethod, Member, Protocol, RealServer, RealServerCounters, RealServerKey, Scheduler,
    SetKind, VirtualServerConfig, VirtualServerKey,
};
use proptest::prelude::*;
use proptest::sample::select;
use wire::ipset::{AdtList, Ipset};
use wire::ipvs::{Dest, Ipvs, Service, Statistics, Timeouts};
use wire::rtnl::{LocalRoute, RouteFilter};
use wire::{Attributes, Batch, Body, Decoded, Malformed, Messages, conntrack, genl, ipset, ipvs, rtnl};

/// Appends one message, checks its header, and gives its payload to `read`.
fn through<T>(kind: u16, write: impl FnOnce(&mut Batch, u32) -> Result<(), Malformed>, read: impl FnOnce(&[u8]) -> T) -> T {
    let mut batch = Batch::default();
    write(&mut batch, 0xfeed).unwrap();
    assert_eq!(batch.len() % 4, 0);
    let mut messages = Messages::new(batch.as_bytes());
    let message = messages.next().unwrap().unwrap();
    assert!(messages.next().is_none());
    assert_eq!((message.kind, message.seq, message.flags & 1), (kind, 0xfeed, 1));
    let Body::Data(payload) = message.body else { panic!("an answer: {message:?}") };
    read(payload)
}

fn known<T>(decoded: Result<Decoded<T>, Malformed>) -> T {
    match decoded.unwrap() {
        Decoded::Known(value) => value,
        Decoded::Foreign(foreign) => panic!("foreign: {foreign}"),
    }
}

/// A handle in the protocol version that the kernel speaks.
fn sets() -> Ipset {
    through(0x601, ipset::get_protocol, ipset::parse_protocol).unwrap()
}

fn family() -> impl Strategy<Value = Family> {
    select(&Family::ALL[..])
}

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<Ipv4Addr>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<Ipv6Addr>().prop_map(IpAddr::from).boxed(),
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    family().prop_flat_map(address)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(&Protocol::ALL[..])
}

fn key() -> impl Strategy<Value = VirtualServerKey> {
    prop_oneof![
        (any_address(), protocol(), any::<u16>())
            .prop_map(|(address, protocol, port)| VirtualServerKey::address(address, protocol, port)),
        (family(), any::<NonZeroU32>()).prop_map(|(family, mark)| VirtualServerKey::Mark { family, mark }),
    ]
}

fn config(family: Family) -> impl Strategy<Value = VirtualServerConfig> {
    ("[a-z0-9_-]{1,15}", any::<u32>(), any::<Option<NonZeroU32>>(), 0..=family.bits()).prop_map(
        |(scheduler, flags, persistence, granularity)| VirtualServerConfig {
            scheduler: Scheduler::new(&scheduler).unwrap(),
            flags: Flags::from_bits_truncate(flags),
            persistence,
            granularity,
        },
    )
}

fn service() -> impl Strategy<Value = (VirtualServerKey, VirtualServerConfig)> {
    key().prop_flat_map(|key| (Just(key), config(key.family())))
}

fn real_server() -> impl Strategy<Value = RealServer> {
    (0..5u32, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(forwarding, weight, upper_threshold, lower_threshold)| {
        RealServer { forwarding: ForwardingMethod::from_number(forwarding).unwrap(), weight, upper_threshold, lower_threshold }
    })
}

fn member(kind: SetKind, family: Family) -> BoxedStrategy<Member> {
    let parts = (address(family), protocol(), any::<u16>(), address(family), 1..=family.bits(), 1..=u32::MAX);
    parts
        .prop_map(move |(ip, protocol, port, ip2, prefix, mark)| match kind {
            SetKind::HashIp => Member::Ip(ip),
            SetKind::HashIpPort => Member::IpPort(ip, protocol, port),
            SetKind::HashIpPortIp => Member::IpPortIp(ip, protocol, port, ip2),
            SetKind::HashIpPortNet => {
                let host = IpNetwork::new(ip2, prefix).unwrap();
                Member::IpPortNet(ip, protocol, port, IpNetwork::new(host.network(), prefix).unwrap())
            }
            SetKind::HashIpPortMark => Member::IpPortMark(ip, protocol, port, NonZeroU32::new(mark).unwrap()),
        })
        .boxed()
}

fn set_kind() -> impl Strategy<Value = SetKind> {
    select(&[SetKind::HashIp, SetKind::HashIpPort, SetKind::HashIpPortIp, SetKind::HashIpPortNet, SetKind::HashIpPortMark][..])
}

fn members() -> impl Strategy<Value = (SetKind, Vec<Member>)> {
    (set_kind(), family()).prop_flat_map(|(kind, family)| (Just(kind), prop::collection::vec(member(kind, family), 0..40)))
}

fn local_route() -> impl Strategy<Value = LocalRoute> {
    family()
        .prop_flat_map(|family| (address(family), any::<u32>(), prop::option::of(address(family))))
        .prop_map(|(address, link, source)| LocalRoute { address, link, source })
}

proptest! {
    #[test]
    fn a_service((key, config) in service()) {
        let ipvs = Ipvs::new(32);
        let desired = Service { key, config, statistics: Statistics::default() };
        let is_desired = |payload: &[u8]| known(ipvs::parse_service(payload)) == desired;
        prop_assert!(through(32, |batch, seq| ipvs.new_service(batch, seq, &key, &config), is_desired));
        prop_assert!(through(32, |batch, seq| ipvs.set_service(batch, seq, &key, &config), is_desired));
        // A key alone is no service.
        for write in [Ipvs::del_service, Ipvs::get_service, Ipvs::get_dests] {
            let refused = |payload: &[u8]| ipvs::parse_service(payload).unwrap_err();
            let error = through(32, |batch, seq| write(ipvs, batch, seq, &key), refused);
            prop_assert_eq!(error.to_string(), "an IPVS service comes without a scheduler");
        }
    }

    #[test]
    fn a_dest_of_either_family(service in key(), address in any_address(), port: u16, server in real_server()) {
        let ipvs = Ipvs::new(32);
        let key = RealServerKey::new(address, port);
        let desired = Dest { key, server, connections: RealServerCounters::default(), statistics: Statistics::default() };
        let is_desired = |payload: &[u8]| known(ipvs::parse_dest(payload, service.family())) == desired;
        prop_assert!(through(32, |batch, seq| ipvs.new_dest(batch, seq, &service, &key, &server), is_desired));
        prop_assert!(through(32, |batch, seq| ipvs.set_dest(batch, seq, &service, &key, &server), is_desired));
        let refused = |payload: &[u8]| ipvs::parse_dest(payload, service.family()).unwrap_err();
        let error = through(32, |batch, seq| ipvs.del_dest(batch, seq, &service, &key), refused);
        prop_assert_eq!(error.to_string(), "an IPVS dest comes without a forwarding method");
    }

    #[test]
    fn timeouts(tcp: u32, tcp_fin: u32, udp: u32) {
        let timeouts = Timeouts { tcp, tcp_fin, udp };
        let read = through(32, |batch, seq| Ipvs::new(32).set_timeouts(batch, seq, timeouts), ipvs::parse_timeouts);
        prop_assert_eq!(read, Ok(timeouts));
    }

    #[test]
    fn a_set(name in "[A-Za-z0-9:-]{1,31}", kind in set_kind(), family in family(), revision: u8, hashsize: u32, maxelem: u32) {
        through(
            0x602,
            |batch, seq| sets().create(batch, seq, &name, kind, family, revision, hashsize, maxelem),
            |payload| {
                let set = ipset::parse_set(payload).unwrap();
                let header = set.header.unwrap();
                assert_eq!((set.name, header.kind(), header.family), (&*name, Some(kind), Some(family)));
                assert_eq!((header.revision, header.hashsize, header.maxelem), (revision, Some(hashsize), Some(maxelem)));
                assert_eq!((header.references, header.elements, header.is_extended), (0, None, false));
            },
        );
    }

    #[test]
    fn a_list_of_members((kind, members) in members()) {
        let mut list = AdtList::new(kind);
        for member in &members {
            list.push(member).unwrap();
        }
        prop_assert_eq!((list.kind(), list.len() as usize, list.is_empty()), (kind, members.len(), members.is_empty()));
        for (command, write) in [(0x609, Ipset::add_list as fn(_, &mut _, _, &_, &_) -> _), (0x60a, Ipset::del_list)] {
            let read: Vec<_> = through(
                command,
                |batch, seq| write(sets(), batch, seq, "KUBE-CLUSTER-IP", &list),
                |payload| ipset::parse_set(payload).unwrap().members().map(known).collect(),
            );
            prop_assert_eq!(&read, &members);
        }
        list.clear();
        prop_assert!(list.is_empty());
    }

    #[test]
    fn a_single_member((_, members) in members()) {
        for member in members {
            for (command, write) in [(0x609, Ipset::add as fn(_, &mut _, _, &_, &_) -> _), (0x60a, Ipset::del)] {
                let read = through(
                    command,
                    |batch, seq| write(sets(), batch, seq, "KUBE-CLUSTER-IP", &member),
                    |payload| {
                        let data = Attributes::new(&payload[4..], "a request").map(Result::unwrap).find(|attribute| attribute.kind == 7);
                        known(ipset::parse_member(data.unwrap().value))
                    },
                );
                prop_assert_eq!(read, member);
            }
        }
    }

    #[test]
    fn names(name in "[A-Za-z0-9:-]{1,31}", other in "[A-Za-z0-9:-]{1,31}") {
        let set_name = |payload: &[u8]| ipset::parse_set(payload).unwrap().name.to_owned();
        prop_assert_eq!(&through(0x603, |batch, seq| sets().destroy(batch, seq, &name), set_name), &name);
        prop_assert_eq!(&through(0x604, |batch, seq| sets().flush(batch, seq, &name), set_name), &name);
        let list = |batch: &mut Batch, seq| sets().list(batch, seq, &name, ipset::ListScope::Headers);
        prop_assert_eq!(&through(0x607, list, set_name), &name);
        let second = |payload: &[u8]| Attributes::new(&payload[4..], "").map(Result::unwrap).last().unwrap().text().unwrap().to_owned();
        prop_assert_eq!(&through(0x606, |batch, seq| sets().swap(batch, seq, &name, &other), second), &other);
    }

    #[test]
    fn a_link(name in "[a-z0-9-]{1,15}") {
        let link = through(16, |batch, seq| rtnl::new_dummy(batch, seq, &name), rtnl::parse_link).unwrap();
        prop_assert_eq!(link.is_up(), true);
        prop_assert_eq!((link.name, link.kind.as_deref(), link.index), (name.clone(), Some("dummy"), 0));
        prop_assert_eq!(through(18, |batch, seq| rtnl::get_link(batch, seq, &name), rtnl::parse_link).unwrap().name, name);
    }

    #[test]
    fn an_address(link: u32, address in any_address()) {
        for (kind, write) in [(20, rtnl::new_address as fn(&mut _, _, _, _) -> _), (21, rtnl::del_address)] {
            let read = known(through(kind, |batch, seq| write(batch, seq, link, address), rtnl::parse_address));
            prop_assert_eq!((read.link, read.address, read.prefix, read.scope), (link, address, Family::of(address).bits(), 0));
        }
    }

    #[test]
    fn a_local_route(route in local_route()) {
        for (kind, write) in
            [(24, rtnl::add_local_route as fn(&mut _, _, &_) -> _), (24, rtnl::prepend_local_route), (24, rtnl::replace_local_route), (25, rtnl::del_local_route)]
        {
            let read = known(through(kind, |batch, seq| write(batch, seq, &route), rtnl::parse_route));
            prop_assert_eq!(read.ours(), Some(route));
        }
    }

    #[test]
    fn a_route_query(address in any_address(), family in family(), protocol: Option<u8>, link: Option<u32>) {
        let read = known(through(26, |batch, seq| rtnl::get_route_to(batch, seq, address), rtnl::parse_route));
        prop_assert_eq!((read.destination, read.prefix, read.ours()), (address, Family::of(address).bits(), None));
        let filter = RouteFilter { family, protocol, link };
        let read = known(through(26, |batch, seq| rtnl::get_routes(batch, seq, filter), rtnl::parse_route));
        prop_assert_eq!((Family::of(read.destination), read.protocol, read.link), (family, protocol.unwrap_or(0), link));
        prop_assert_eq!(read.table, rtnl::TABLE_LOCAL);
    }
}

#[test]
fn a_list_says_when_it_is_full_and_still_fits_a_message() {
    let ip = IpAddr::from(Ipv6Addr::LOCALHOST);
    let member = Member::IpPortIp(ip, Protocol::Sctp, 1, ip);
    let mut list = AdtList::new(SetKind::HashIpPortIp);
    while list.push(&member).is_ok() {}
    let len = list.len();
    assert!((600..1000).contains(&len), "{len} members");
    assert_eq!(list.push(&member), Err(ipset::Full));
    assert_eq!(list.len(), len);
    let name = "a-name-that-takes-all-31-bytes--";
    let mut batch = Batch::default();
    let error = sets().add_list(&mut batch, 1, name, &list).unwrap_err();
    assert!(error.to_string().contains("cannot be the name of a set: a name has 1 to 31 bytes"), "{error}");
    assert!(batch.is_empty());
    let read = through(
        0x609,
        |batch, seq| sets().add_list(batch, seq, &name[..31], &list),
        |payload| ipset::parse_set(payload).unwrap().members().map(known).filter(|read| *read == member).count(),
    );
    assert_eq!(read, len as usize);
}

#[test]
fn a_refused_list_says_which_member_it_was() {
    let mut list = AdtList::new(SetKind::HashIp);
    list.push(&Member::Ip(Ipv4Addr::LOCALHOST.into())).unwrap();
    let request = |line: u32| {
        through(
            0x609,
            |batch, seq| sets().add_list(batch, seq, "s", &list),
            |payload| {
                // The kernel writes the line of the refused member over the one of the message.
                let mut payload = payload.to_vec();
                let at =
                    payload.windows(4).position(|header| header == [8u16.to_ne_bytes(), 0x4009u16.to_ne_bytes()].concat()).unwrap();
                payload.splice(at + 4..at + 8, line.to_be_bytes());
                ipset::failed_entry(&payload)
            },
        )
    };
    assert_eq!((request(0), request(1), request(1250)), (None, Some(0), Some(1249)));
}

#[test]
fn names_that_the_kernel_would_cut_short_are_refused() {
    let mut batch = Batch::default();
    for name in ["", "sixteen-letters-", "a\0b"] {
        for error in [
            rtnl::new_dummy(&mut batch, 1, name).unwrap_err(),
            rtnl::get_link(&mut batch, 1, name).unwrap_err(),
            genl::get_family(&mut batch, 1, name).unwrap_err(),
        ] {
            assert!(error.to_string().contains("a name has 1 to 15 bytes and no NUL"), "{error}");
        }
    }
    assert!(sets().swap(&mut batch, 1, "a", "").is_err());
    assert!(batch.is_empty());
}

fn direction(family: Family) -> impl Strategy<Value = Direction> {
    let end = || (address(family), any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port));
    (end(), end()).prop_map(|(source, destination)| Direction { source, destination })
}

proptest! {
    #[test]
    fn conntrack_entries(
        (original, reply) in family().prop_flat_map(|family| (direction(family), direction(family))),
        protocol in protocol(),
        zone: u16,
        id: Option<u32>,
    ) {
        let entry = conntrack::Entry { flow: Flow { protocol, original, reply, zone }, id };
        let read = through(0x102, |batch, seq| conntrack::delete_entry(batch, seq, &entry), conntrack::parse_entry);
        prop_assert_eq!(known(read), entry);
    }
}
