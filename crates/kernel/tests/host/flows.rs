//! Flows: forgotten one by one, as `conntrack` sees them.

use std::net::SocketAddr;

use kernel::Conntrack;
use model::{Family, Flow};

use crate::namespace::{isolated, sh};

/// Makes the entry of a client's flow, to the port `frontend` of an address that it was rewritten from.
fn insert(protocol: &str, source_port: u16, frontend: u16) {
    sh(&format!(
        "conntrack -I -p {protocol} -s 10.244.1.5 -d 10.96.0.10 --sport {source_port} --dport {frontend} -r 10.244.1.2 -q 172.18.0.2 \
         --reply-port-src 8053 --reply-port-dst {source_port} -t 100{}",
        if protocol == "tcp" { " --state ESTABLISHED" } else { "" }
    ));
}

fn count(filter: &str) -> usize {
    sh(&format!("conntrack -L {filter}")).lines().count()
}

fn to_dns(flow: &Flow) -> bool {
    flow.original.destination == SocketAddr::from(([10, 96, 0, 10], 53))
}

#[test]
fn i1_stale_flows_are_forgotten_and_no_others() {
    isolated(|| {
        // More than one batch.
        for port in 1000..1200 {
            insert("udp", port, 53);
        }
        insert("udp", 2000, 54);
        insert("tcp", 1000, 53);
        sh("conntrack -I -p udp -s fd00:244::5 -d fd00:96::10 --sport 1000 --dport 53 -t 100");
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.flush_udp(Family::V4, to_dns).unwrap(), 200);
        let left = sh("conntrack -L -f ipv4");
        assert_eq!(left.lines().count(), 2, "{left}");
        assert!(left.contains("udp      17") && left.contains("dport=54") && left.contains("tcp      6"), "{left}");
        assert_eq!(conntrack.flush_udp(Family::V4, to_dns).unwrap(), 0);
        assert_eq!(count("-f ipv6"), 1);
        assert_eq!(conntrack.flush_udp(Family::V6, |flow| flow.original.source.port() == 1000).unwrap(), 1);
        assert_eq!((count("-f ipv6"), count("-p udp"), count("-p tcp")), (0, 1, 1));
    });
}

#[test]
fn an_entry_that_is_gone_meanwhile_is_no_failure() {
    isolated(|| {
        insert("udp", 1000, 53);
        insert("udp", 1001, 53);
        let mut conntrack = Conntrack::open().unwrap();
        // Between the listing and the removal.
        let removed = conntrack.flush_udp(Family::V4, |flow| {
            if flow.original.source.port() == 1001 {
                sh("conntrack -D -p udp --sport 1001");
            }
            true
        });
        assert_eq!((removed.unwrap(), count("-p udp")), (1, 0));
    });
}

#[test]
fn the_zone_of_an_entry_is_part_of_it() {
    isolated(|| {
        insert("udp", 1000, 53);
        sh("conntrack -I -p udp -s 10.244.1.5 -d 10.96.0.10 --sport 1000 --dport 53 -t 100 -w 7");
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.flush_udp(Family::V4, |flow| flow.zone == 7).unwrap(), 1);
        let left = sh("conntrack -L -p udp");
        assert!(left.lines().count() == 1 && !left.contains("zone="), "{left}");
    });
}
