//! A node to show: what its kernel has, and what its agent tells.

use std::num::NonZeroU32;

use kernel::{Listing, RealListing, Table};
use model::{
    Family, Flags, ForwardingMethod, Protocol, RealServer, RealServerCounters, RealServerKey, Scheduler, TrafficCounters,
    TrafficRates, VirtualServer, VirtualServerConfig, VirtualServerKey,
};

use super::join::Told;
use crate::control::{DesiredTable, DesiredVirtualServer, Drain, Drains, Endpoint, Endpoints, Stage};

/// What is behind [`web`].
pub(crate) const SHOP: &str = "shop/web:http";

/// A ClusterIP.
pub(crate) fn web() -> VirtualServerKey {
    VirtualServerKey::address("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80)
}

fn dns() -> VirtualServerKey {
    VirtualServerKey::address("fd00:96::a".parse().unwrap(), Protocol::Udp, 53)
}

fn mark() -> VirtualServerKey {
    VirtualServerKey::Mark { family: Family::V4, mark: NonZeroU32::new(16_384).unwrap() }
}

/// What the mark is for.
fn marked() -> VirtualServerKey {
    VirtualServerKey::address("203.0.113.7".parse().unwrap(), Protocol::Tcp, 80)
}

fn real(address: &str, port: u16) -> RealServerKey {
    RealServerKey::new(address.parse().unwrap(), port)
}

fn sticky() -> VirtualServerConfig {
    let mut config = VirtualServerConfig::new(Scheduler::new("mh").unwrap(), Family::V6);
    config.persistence = NonZeroU32::new(10_800);
    config.flags = Flags::SCHED_1.with(Flags::SCHED_2);
    config
}

/// In the kernel's order, which is none.
pub(crate) fn kernel_table() -> Table {
    let real_server = |key, weight, active, inactive| RealListing {
        server: RealServer { weight, ..RealServer::default() },
        connections: RealServerCounters { active, inactive, persistent: 0 },
        ..RealListing::of(key)
    };
    let mut shop = Listing::of(web());
    shop.traffic = TrafficCounters {
        connections: 812_345,
        packets_in: 123_456_789,
        packets_out: 98_765_432,
        bytes_in: 12_345_678_901,
        bytes_out: 234_567_890_123,
    };
    shop.rates = TrafficRates { connections: 3, packets_in: 40, packets_out: 41, bytes_in: 9_000, bytes_out: 12_000 };
    shop.real_servers = vec![real_server(real("10.244.1.2", 8080), 1, 3, 17), real_server(real("10.244.1.3", 8080), 0, 2, 0)];
    if let Some(first) = shop.real_servers.first_mut() {
        first.traffic = TrafficCounters { connections: 800_000, ..TrafficCounters::default() };
        first.rates = TrafficRates { connections: 3, packets_in: 40, packets_out: 41, bytes_in: 9_000, bytes_out: 12_000 };
    }
    let mut names = Listing { config: sticky(), ..Listing::of(dns()) };
    names.rates = TrafficRates { connections: 120, packets_in: 120, packets_out: 119, bytes_in: 7_200, bytes_out: 11_900 };
    names.real_servers = vec![real_server(real("fd00:244:1::2", 5353), 1, 0, 12)];
    let mut foreign = Listing::of(VirtualServerKey::address("192.0.2.1".parse().unwrap(), Protocol::Tcp, 443));
    foreign.rates.bytes_out = 1_000_000;
    foreign.real_servers = vec![real_server(real("192.0.2.10", 443), 1000, 1, 0)];
    if let Some(first) = foreign.real_servers.first_mut() {
        first.server.forwarding = ForwardingMethod::DirectRouting;
    }
    Table {
        version: "1.2.1".to_owned(),
        connection_table_size: 4096,
        virtual_servers: vec![foreign, Listing::of(mark()), names, shop],
    }
}

/// What the agent of [`kernel_table`]'s node says, which has brought it in line.
pub(crate) fn told() -> Told {
    let (table, drains, endpoints) = documents();
    Told::new(table, &drains, endpoints)
}

/// The same, as it says that on its control socket.
pub(crate) fn documents() -> (DesiredTable, Drains, Endpoints) {
    let server = |config, reals: &[RealServerKey]| VirtualServer {
        config,
        real_servers: reals.iter().map(|real| (*real, RealServer::default())).collect(),
    };
    let plain = VirtualServerConfig::new(Scheduler::RR, Family::V4);
    let web_server = server(plain, &[real("10.244.1.2", 8080)]);
    let table = DesiredTable {
        agent: "0.1.0".to_owned(),
        node: "node-1".to_owned(),
        stage: Stage::Complete,
        virtual_servers: vec![
            DesiredVirtualServer::new(web(), web(), "shop/web", "http", &web_server),
            DesiredVirtualServer::new(mark(), marked(), "shop/web", "http", &server(plain, &[])),
            DesiredVirtualServer::new(
                dns(),
                dns(),
                "kube-system/kube-dns",
                "dns",
                &server(sticky(), &[real("fd00:244:1::2", 5353)]),
            ),
        ],
    };
    let drains = Drains {
        drains: vec![Drain {
            virtual_server: web().into(),
            real_server: "10.244.1.3:8080".parse().unwrap(),
            milliseconds_left: 852_300,
            whole: false,
        }],
    };
    let endpoint = |address: &str, pod: &str, node: &str| Endpoint {
        address: address.parse().unwrap(),
        pod: Some(pod.to_owned()),
        node: Some(node.to_owned()),
    };
    let web_endpoints = vec![endpoint("10.244.1.2", "web-a", "node-1"), endpoint("10.244.1.3", "web-b", "node-2")];
    let of_dns = vec![Endpoint { pod: None, ..endpoint("fd00:244:1::2", "", "node-2") }];
    let services = [("shop/web".to_owned(), web_endpoints), ("kube-system/kube-dns".to_owned(), of_dns)].into();
    (table, drains, Endpoints { services })
}
