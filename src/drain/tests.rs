use std::num::NonZeroU32;
use std::slice::from_ref;

use super::*;
use model::{Family, Scheduler};

const LIMITS: Limits =
    Limits { connections: Duration::from_secs(900), datagrams: Duration::from_secs(2), vanished: Duration::from_secs(10) };

fn key(protocol: Protocol) -> VirtualServerKey {
    VirtualServerKey::address("10.96.0.1".parse().unwrap(), protocol, 80)
}

fn real(host: u8) -> RealServerKey {
    RealServerKey::new(std::net::Ipv4Addr::new(10, 244, 0, host).into(), 8080)
}

fn state(protocol: Protocol, hosts: &[u8]) -> State {
    let mut server = VirtualServer::new(Scheduler::RR, Family::V4);
    server.real_servers.extend(hosts.iter().map(|host| (real(*host), RealServer::default())));
    State { virtual_servers: [(key(protocol), server)].into(), ..State::default() }
}

fn weights(state: &State, protocol: Protocol) -> Vec<(RealServerKey, u32)> {
    state.virtual_servers[&key(protocol)].real_servers.iter().map(|(real, server)| (*real, server.weight)).collect()
}

/// Frontends that are desired, by the virtual servers that serve them. Everything is ours, but for one address.
struct Desired(Vec<(VirtualServerKey, VirtualServerKey)>);

const FOREIGN: &str = "192.0.2.1";
const TAKEN: &str = "192.0.2.2";

impl Surroundings for Desired {
    fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
        self.0.iter().find(|(of, _)| of == key).map(|(_, frontend)| *frontend)
    }

    fn is_ours(&self, key: &VirtualServerKey) -> bool {
        !key.to_string().contains(FOREIGN)
    }

    fn is_taken(&self, frontend: &VirtualServerKey) -> bool {
        frontend.to_string().contains(TAKEN)
    }

    fn were_desired(&self) -> bool {
        true
    }

    fn standing(&self, _: &VirtualServerKey, _: &RealServerKey) -> Option<Standing> {
        None
    }

    fn parting(&self, _: &VirtualServerKey) -> Option<Parting<'_>> {
        None
    }
}

/// A Service over TCP that [`itself`] is.
#[derive(Clone)]
struct Followed {
    second: Standing,
    terminating: Vec<RealServerKey>,
    drain_timeout: Option<Duration>,
    were_desired: bool,
}

impl Followed {
    fn with(second: Standing) -> Self {
        Self { second, terminating: Vec::new(), drain_timeout: None, were_desired: true }
    }
}

impl Surroundings for Followed {
    fn frontend(&self, key: &VirtualServerKey) -> Option<VirtualServerKey> {
        itself().frontend(key)
    }

    fn is_ours(&self, _: &VirtualServerKey) -> bool {
        true
    }

    fn is_taken(&self, _: &VirtualServerKey) -> bool {
        false
    }

    fn were_desired(&self) -> bool {
        self.were_desired
    }

    fn standing(&self, _: &VirtualServerKey, asked: &RealServerKey) -> Option<Standing> {
        Some(if *asked == real(2) { self.second } else { Standing::Present })
    }

    fn parting(&self, _: &VirtualServerKey) -> Option<Parting<'_>> {
        Some(Parting { drain_timeout: self.drain_timeout, terminating: &self.terminating })
    }
}

/// When the second real server goes that has connections to its end, after these seconds in which `lives` are seen.
fn lasts(lives: &[Followed]) -> Duration {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let held = state(Protocol::Tcp, &[1, 2]);
    for (seconds, life) in (0..).zip(lives) {
        let mut desired = state(Protocol::Tcp, if life.terminating.is_empty() { &[1] } else { &[1, 2] });
        drains.keep_leaving(&mut desired, &held, life, start + Duration::from_secs(seconds));
    }
    let goes = |seconds: &u64| {
        drains.let_go(key(Protocol::Tcp), &counted(2, 1), None, start + Duration::from_secs(*seconds)).contains(&real(2))
    };
    Duration::from_secs((0..2000).find(goes).unwrap())
}

#[test]
fn e1_who_vanishes_has_less_time_than_who_ends_or_is_not_ready() {
    let [present, terminating, gone] = [Standing::Present, Standing::Terminating, Standing::Gone].map(Followed::with);
    let vanished = |seconds| LIMITS.vanished + Duration::from_secs(seconds);
    assert_eq!(lasts(from_ref(&gone)), vanished(0));
    assert_eq!(lasts(&[present.clone(), gone.clone(), gone.clone()]), vanished(1), "from when it vanished");
    assert_eq!(lasts(&[terminating.clone(), gone.clone()]), LIMITS.connections);
    assert_eq!(lasts(&[present.clone(), terminating.clone(), gone.clone()]), LIMITS.connections);
    assert_eq!(lasts(&[gone.clone(), present.clone()]), LIMITS.connections, "between two slices it is in neither");
    assert_eq!(lasts(from_ref(&present)), LIMITS.connections);
    let stranded = Followed::with(Standing::Stranded);
    assert_eq!(lasts(&[present.clone(), stranded.clone(), gone.clone()]), vanished(1), "from when its node was not ready");
    assert_eq!(lasts(&[terminating.clone(), stranded.clone()]), vanished(1), "it will not come to its end there");
    assert_eq!(lasts(&[stranded, present]), LIMITS.connections, "its node is back");

    let last_one = Followed { terminating: vec![real(2)], ..Followed::with(Standing::Terminating) };
    assert_eq!(lasts(&[last_one, gone.clone()]), LIMITS.connections + CHECK, "it served while it terminated");
    let at_start = Followed { were_desired: false, ..gone.clone() };
    assert_eq!(lasts(&[at_start, gone]), LIMITS.connections, "nobody knows how it went");
}

#[test]
fn a2_a_service_says_how_long_its_connections_are_kept_and_is_remembered() {
    let asked = Duration::from_secs(60);
    let sixty = Followed { drain_timeout: Some(asked), ..Followed::with(Standing::Terminating) };
    assert_eq!(lasts(from_ref(&sixty)), asked);
    let vanished = Followed { second: Standing::Gone, ..sixty.clone() };
    assert_eq!(lasts(&[vanished]), LIMITS.vanished);

    // The Service is gone by the time that its connections are to be kept.
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (udp, datagrams_counted) = (key(Protocol::Udp), counted(2, 9));
    let (key, held) = frontend("10.96.0.9", 80);
    drains.keep_leaving(&mut held.clone(), &held, &sixty, start);
    kept(&mut drains, &held, &NOTHING, start);
    let counted = [1, 2].map(|host| (real(host), RealServerCounters { active: 1, ..RealServerCounters::default() })).into();
    assert!(drains.let_go(key, &counted, None, start + asked - CHECK).is_empty());
    assert_eq!(drains.let_go(key, &counted, None, start + asked).len(), 2);

    let datagrams = state(Protocol::Udp, &[1, 2]);
    drains.keep_leaving(&mut state(Protocol::Udp, &[1]), &datagrams, &sixty, start);
    let gone = drains.let_go(udp, &datagrams_counted, None, start + LIMITS.datagrams);
    assert_eq!(gone, [real(2)].into(), "datagrams are not connections");
}

/// All that a test wants.
fn itself() -> Desired {
    Desired([Protocol::Tcp, Protocol::Udp].map(|protocol| (key(protocol), key(protocol))).into())
}

fn counted(host: u8, active: u32) -> BTreeMap<RealServerKey, RealServerCounters> {
    [(real(host), RealServerCounters { active, ..RealServerCounters::default() })].into()
}

#[test]
fn a2_who_leaves_stays_with_weight_0_until_its_connections_end_or_its_deadline_passes() {
    let start = Instant::now();
    let mut drains = Drains::new(LIMITS);
    let mut desired = state(Protocol::Tcp, &[1]);
    drains.keep_leaving(&mut desired, &state(Protocol::Tcp, &[1, 2, 3]), &itself(), start);
    assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0), (real(3), 0)]);
    assert_eq!((drains.len(), drains.next_check()), (2, Some(start + CHECK)));

    let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), None, start + CHECK);
    assert_eq!(gone, [real(3)].into(), "3 has no connections");
    let gone = drains.let_go(key(Protocol::Tcp), &counted(2, 5), None, start + LIMITS.connections);
    assert_eq!(gone, [real(2)].into(), "2 has no time left");
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

#[test]
fn a3_who_is_desired_again_does_not_leave() {
    let start = Instant::now();
    let mut drains = Drains::new(LIMITS);
    let held = state(Protocol::Tcp, &[1, 2]);
    drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, &itself(), start);
    let mut desired = state(Protocol::Tcp, &[1, 2]);
    drains.keep_leaving(&mut desired, &held, &itself(), start + CHECK);
    assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 1)]);
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

#[test]
fn who_is_desired_with_weight_0_does_not_leave() {
    let start = Instant::now();
    let mut drains = Drains::new(LIMITS);
    let held = state(Protocol::Tcp, &[1, 2]);
    let without_2 = || {
        let mut desired = state(Protocol::Tcp, &[1, 2]);
        desired.virtual_servers.get_mut(&key(Protocol::Tcp)).unwrap().real_servers.get_mut(&real(2)).unwrap().weight = 0;
        desired
    };
    drains.keep_leaving(&mut without_2(), &held, &itself(), start);
    assert_eq!((drains.len(), drains.next_check()), (0, None));

    // It left before it was given that weight: its drain ends, and it stays.
    drains.keep_leaving(&mut state(Protocol::Tcp, &[1]), &held, &itself(), start);
    let mut desired = without_2();
    drains.keep_leaving(&mut desired, &held, &itself(), start + CHECK);
    assert!(drains.let_go(key(Protocol::Tcp), &BTreeMap::new(), None, start + LIMITS.connections).is_empty());
    assert_eq!(weights(&desired, Protocol::Tcp), [(real(1), 1), (real(2), 0)]);
}

#[test]
fn a4_a_deadline_runs_from_the_first_time_and_not_anew_with_every_pass() {
    let start = Instant::now();
    let mut drains = Drains::new(LIMITS);
    let held = state(Protocol::Udp, &[1, 2]);
    for seconds in 0..2 {
        drains.keep_leaving(&mut state(Protocol::Udp, &[1]), &held, &itself(), start + Duration::from_secs(seconds));
    }
    assert_eq!(drains.let_go(key(Protocol::Udp), &counted(2, 9), None, start + LIMITS.datagrams), [real(2)].into());
}

#[test]
fn i1_behind_a_mark_the_frontend_has_the_protocol() {
    let start = Instant::now();
    let mark = VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(7).unwrap() };
    for (protocol, goes) in [(Protocol::Udp, true), (Protocol::Tcp, false)] {
        let mut drains = Drains::new(LIMITS);
        let behind_mark = |hosts| {
            let mut state = state(protocol, hosts);
            state.virtual_servers = state.virtual_servers.into_values().map(|server| (mark, server)).collect();
            state
        };
        let surroundings = Desired(vec![(mark, key(protocol))]);
        drains.keep_leaving(&mut behind_mark(&[1]), &behind_mark(&[1, 2]), &surroundings, start);
        let gone = drains.let_go(mark, &counted(2, 9), None, start + LIMITS.datagrams);
        assert_eq!(gone.contains(&real(2)), goes, "{protocol}");
    }
}

const NOTHING: Desired = Desired(Vec::new());

fn mark(number: u32) -> VirtualServerKey {
    VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(number).unwrap() }
}

/// A frontend at `address` with a VIP, its members in sets, and two real servers.
fn frontend(address: &str, port: u16) -> (VirtualServerKey, State) {
    let address: IpAddr = address.parse().unwrap();
    let key = VirtualServerKey::address(address, Protocol::Tcp, port);
    let mut server = VirtualServer::new(Scheduler::RR, Family::V4);
    server.real_servers.extend([1, 2].map(|host| (real(host), RealServer::default())));
    let mut state = State { virtual_servers: [(key, server)].into(), ..State::default() };
    state.vips.insert(Vip::new(address, Via::Route), None);
    let everyone = "203.0.113.0/24".parse().unwrap();
    for (role, member) in [
        (Role::ClusterIp, Member::IpPort(address, Protocol::Tcp, port)),
        (Role::SourceRange, Member::IpPortNet(address, Protocol::Tcp, port, everyone)),
        (Role::Vips, Member::Ip(address)),
    ] {
        state.sets.entry(Set::new(role, Family::V4)).or_default().members.insert(member);
    }
    (key, state)
}

fn merged(mut one: State, other: State) -> State {
    one.virtual_servers.extend(other.virtual_servers);
    one.vips.extend(other.vips);
    for (set, state) in other.sets {
        one.sets.entry(set).or_default().members.extend(state.members);
    }
    one
}

/// The sets alone, and empty: what is desired of a frontend that is deleted.
fn deleted(held: &State) -> State {
    State { sets: held.sets.keys().map(|set| (*set, Default::default())).collect(), ..State::default() }
}

fn kept(drains: &mut Drains, held: &State, surroundings: &Desired, now: Instant) -> State {
    let mut desired = deleted(held);
    drains.keep_leaving(&mut desired, held, surroundings, now);
    desired
}

#[test]
fn a5_a_frontend_that_is_deleted_stays_reachable_with_weight_0_until_its_connections_end() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (key, held) = frontend("10.96.0.9", 80);
    let mut wanted = held.clone();
    wanted.virtual_servers.get_mut(&key).unwrap().real_servers.values_mut().for_each(|real| real.weight = 0);
    assert_eq!(kept(&mut drains, &held, &NOTHING, start), wanted);

    let counted = |first: u32, second: u32| -> BTreeMap<_, _> {
        let counters = |active| RealServerCounters { active, inactive: 1, ..RealServerCounters::default() };
        [(real(1), counters(first)), (real(2), counters(second))].into()
    };
    let mut look = |half_closed: &[u8], at: Duration| {
        assert!(drains.needs_look(key, &counted(1, 0), start + at));
        let half_closed = half_closed.iter().map(|host| (key, real(*host))).collect();
        drains.let_go(key, &counted(1, 0), Some(&half_closed), start + at)
    };
    assert!(look(&[1, 2], CHECK).is_empty(), "the second one's are half closed");
    assert!(look(&[1], CHECK + LOOK).is_empty(), "they were closed just now");
    let mut at = CHECK + LOOK + CLOSED;
    assert!(look(&[1, 2], at).is_empty(), "the last list was not complete");
    at += LOOK;
    assert!(look(&[1], at).is_empty(), "they were closed just now");
    assert!(!drains.needs_look(key, &counted(1, 0), start + at + CHECK));
    let ended = start + at + CLOSED;
    assert!(drains.needs_look(key, &counted(1, 0), ended));
    assert!(drains.let_go(key, &counted(1, 0), None, ended).is_empty(), "nobody could look");
    assert_eq!(drains.let_go(key, &counted(1, 0), Some(&[(key, real(1))].into()), ended), [real(2)].into());
    let ended = ended + CHECK;
    assert_eq!(drains.let_go(key, &BTreeMap::new(), None, ended), [real(1)].into());

    // All of it goes together, and is looked at for that.
    let scope = drains.scope(&held);
    let mut staying = held.restricted_to(&scope);
    assert_eq!(staying.sets, held.sets);
    assert_eq!(staying.vips, held.vips);
    staying.virtual_servers.insert(key, VirtualServer::new(Scheduler::RR, Family::V4));
    assert_eq!(kept(&mut drains, &staying, &NOTHING, ended), deleted(&held));
    assert_eq!((drains.len(), drains.next_check()), (0, None));
    assert!(drains.scope(&held).is_empty());
}

#[test]
fn a5_a_frontend_outlives_real_servers_whose_clients_are_still_to_be_told() {
    // What the kernel counts when time is up, what is half closed of that, and whether somebody is to be told.
    for (active, inactive, half_closed, told) in
        [(1, 0, false, true), (0, 1, true, true), (0, 1, false, false), (0, 0, false, false)]
    {
        let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
        let (key, held) = frontend("10.96.0.9", 80);
        kept(&mut drains, &held, &NOTHING, start);
        let counters = RealServerCounters { active, inactive, ..RealServerCounters::default() };
        let counted = [1, 2].map(|host| (real(host), counters)).into();
        let half_closed = if half_closed { [1, 2].map(|host| (key, real(host))).into() } else { HalfClosed::default() };
        let over = start + LIMITS.connections;
        assert_eq!(drains.let_go(key, &counted, Some(&half_closed), over), [real(1), real(2)].into());

        let mut staying = held.clone();
        staying.virtual_servers.insert(key, VirtualServer::new(Scheduler::RR, Family::V4));
        let left = |told| if told { staying.clone() } else { deleted(&held) };
        assert_eq!(kept(&mut drains, &staying, &NOTHING, over), left(told), "{counters:?}");
        assert_eq!(drains.next_check().is_some(), told, "{counters:?}");
        if told {
            assert!(drains.virtual_servers().is_empty(), "nothing is left to be counted");
            assert_eq!(held.restricted_to(&drains.scope(&held)).vips, held.vips);
            assert_eq!(kept(&mut drains, &staying, &NOTHING, over + TOLD - CHECK), left(true));
        }
        assert_eq!(kept(&mut drains, &staying, &NOTHING, over + TOLD), left(false));
        assert_eq!((drains.len(), drains.next_check()), (0, None));
    }
}

#[test]
fn a5_nobody_is_told_of_the_end_of_datagrams() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let held = state(Protocol::Udp, &[1, 2]);
    let key = key(Protocol::Udp);
    kept(&mut drains, &held, &NOTHING, start);
    let counted = [1, 2].map(|host| (real(host), RealServerCounters { inactive: 1, ..RealServerCounters::default() })).into();
    let over = start + LIMITS.datagrams;
    assert_eq!(drains.let_go(key, &counted, None, over).len(), 2);
    assert_eq!(kept(&mut drains, &state(Protocol::Udp, &[]), &NOTHING, over), State::default());
}

#[test]
fn a5_a_frontend_that_is_wanted_again_has_its_weights_back_and_does_not_leave() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (key, held) = frontend("10.96.0.9", 80);
    kept(&mut drains, &held, &NOTHING, start);
    let mut desired = held.clone();
    drains.keep_leaving(&mut desired, &held, &Desired(vec![(key, key)]), start + CHECK);
    assert_eq!(desired, held);
    assert_eq!((drains.len(), drains.next_check()), (0, None));
    assert!(drains.scope(&held).is_empty());
}

#[test]
fn k2_what_others_take_away_while_it_leaves_takes_its_vip_and_members_along() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (_, held) = frontend("10.96.0.9", 80);
    kept(&mut drains, &held, &NOTHING, start);
    let flushed = State { virtual_servers: BTreeMap::new(), ..held.clone() };
    drains.forget_missing(&flushed);
    assert_eq!(kept(&mut drains, &flushed, &NOTHING, start + CHECK), deleted(&held));
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

#[test]
fn a5_what_could_not_be_looked_at_counts_as_open() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (key, held) = frontend("10.96.0.9", 80);
    kept(&mut drains, &held, &NOTHING, start);
    let closing = RealServerCounters { inactive: 1, ..RealServerCounters::default() };
    let counted = [1, 2].map(|host| (real(host), closing)).into();
    for seconds in 1..100 {
        assert!(drains.let_go(key, &counted, None, start + Duration::from_secs(seconds)).is_empty());
    }
    assert_eq!(drains.let_go(key, &counted, None, start + LIMITS.connections).len(), 2);
}

#[test]
fn d5_f4_what_others_have_is_given_up_at_once() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (_, held) = frontend(TAKEN, 80);
    assert_eq!(kept(&mut drains, &held, &NOTHING, start), deleted(&held));
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

#[test]
fn d5_f4_what_others_take_while_it_leaves_goes_as_a_whole() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (key, held) = frontend(TAKEN, 80);
    // By somebody who does not know yet that the address is another's.
    drains.keep_leaving(&mut deleted(&held), &held, &Followed::with(Standing::Present), start);
    assert!(drains.scope(&held).virtual_servers.contains(&key));

    // A change that is about something else, and then the next count.
    kept(&mut drains, &State::default(), &NOTHING, start);
    let scope = drains.scope(&held);
    assert_eq!(held.restricted_to(&scope), held, "all of it goes together");
    assert_eq!(kept(&mut drains, &held, &NOTHING, start), deleted(&held));
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

#[test]
fn a5_a_vip_stays_for_as_long_as_one_of_its_frontends_leaves() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (http, held) = frontend("10.96.0.9", 80);
    let (https, other) = frontend("10.96.0.9", 443);
    kept(&mut drains, &merged(held, other.clone()), &NOTHING, start);
    assert_eq!(drains.let_go(http, &BTreeMap::new(), None, start + CHECK).len(), 2);
    // A change that is about the VIP alone.
    let about_vip = State { vips: other.vips.clone(), ..State::default() };
    assert_eq!(kept(&mut drains, &about_vip, &NOTHING, start).vips, other.vips);
    assert_eq!(drains.let_go(https, &BTreeMap::new(), None, start + CHECK).len(), 2);
}

#[test]
fn k1_what_is_not_ours_does_not_leave() {
    let mut drains = Drains::new(LIMITS);
    let (_, held) = frontend(FOREIGN, 80);
    assert_eq!(kept(&mut drains, &held, &NOTHING, Instant::now()), deleted(&held));
    assert_eq!((drains.len(), drains.next_check()), (0, None));
}

/// A frontend with a virtual server behind a mark beside its own.
fn with_mark(number: u32) -> (VirtualServerKey, State) {
    let (key, mut held) = frontend("10.96.0.9", 80);
    let (VirtualServerKey::Address { address, .. }, VirtualServerKey::Mark { mark: of, .. }) = (key, mark(number)) else {
        panic!("other keys")
    };
    let behind = held.virtual_servers[&key].clone();
    held.virtual_servers.insert(mark(number), behind);
    let member = Member::IpPortMark(address, Protocol::Tcp, 80, of);
    held.sets.entry(Set::new(Role::InCluster, Family::V4)).or_default().members.insert(member);
    (key, held)
}

#[test]
fn a5_behind_a_mark_a_frontend_leaves_alike_unless_it_goes_on_without() {
    let start = Instant::now();
    let (key, held) = with_mark(7);
    let mut drains = Drains::new(LIMITS);
    let desired = kept(&mut drains, &held, &NOTHING, start);
    assert!(desired.virtual_servers.contains_key(&mark(7)) && desired.sets == held.sets);

    let mut drains = Drains::new(LIMITS);
    let desired = kept(&mut drains, &held, &Desired(vec![(key, key)]), start);
    assert!(!desired.virtual_servers.contains_key(&mark(7)), "callers inside go to the frontend's own virtual server");
}

#[test]
fn a5_a_mark_that_another_frontend_has_does_not_lead_there() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (_, held) = with_mark(7);
    kept(&mut drains, &held, &NOTHING, start);
    let mut desired = deleted(&held);
    desired.virtual_servers.insert(mark(7), VirtualServer::new(Scheduler::RR, Family::V4));
    let (other, _) = frontend("10.96.0.8", 80);
    drains.keep_leaving(&mut desired, &held, &Desired(vec![(mark(7), other)]), start + CHECK);
    assert!(desired.sets[&Set::new(Role::InCluster, Family::V4)].members.is_empty());
    assert_eq!(desired.virtual_servers[&mark(7)].real_servers.len(), 2, "its connections go on");
}

#[test]
fn a5_k2_what_leaves_is_ours_though_somebody_has_emptied_the_sets_that_told_so() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let (key, held) = frontend(FOREIGN, 80);
    // Its sets tell that it is ours, until they are emptied.
    drains.keep_leaving(&mut deleted(&held), &held, &Followed::with(Standing::Present), start);
    let mut emptied = held.clone();
    emptied.sets.values_mut().for_each(|set| set.members.clear());
    let left = kept(&mut drains, &emptied, &NOTHING, start + CHECK);
    assert_eq!((left.virtual_servers[&key].real_servers.len(), left.vips), (2, held.vips.clone()));

    // Of others nobody has seen that they leave.
    assert_eq!(kept(&mut Drains::new(LIMITS), &emptied, &NOTHING, start), deleted(&held));
}

#[test]
fn a2_f2_who_could_not_be_deleted_is_deleted_with_the_next_count() {
    let (start, mut drains) = (Instant::now(), Drains::new(LIMITS));
    let held = state(Protocol::Tcp, &[1, 2]);
    let drop_second = |drains: &mut Drains, at| {
        let mut desired = state(Protocol::Tcp, &[1]);
        drains.keep_leaving(&mut desired, &held, &itself(), at);
    };
    drop_second(&mut drains, start);
    let over = start + LIMITS.connections;
    assert_eq!(drains.let_go(key(Protocol::Tcp), &counted(2, 1), None, over), [real(2)].into());
    // The kernel has refused, and a pass over everything comes before the next count.
    drains.keep_refused(&held);
    drop_second(&mut drains, over + CHECK);
    assert_eq!(drains.let_go(key(Protocol::Tcp), &counted(2, 1), None, over + CHECK), [real(2)].into());
    drains.keep_refused(&state(Protocol::Tcp, &[1]));
    assert_eq!(drains.len(), 0);
}
