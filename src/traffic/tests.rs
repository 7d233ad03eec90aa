use kernel::RealServerTraffic;
use model::{Protocol, RealServerCounters, RealServerKey, TrafficCounters};
use tokio::task::LocalSet;

use super::*;

fn key(vip: &str) -> VirtualServerKey {
    VirtualServerKey::address(vip.parse().unwrap(), Protocol::Tcp, 80)
}

fn owned(vip: &str, service: &str) -> Owned {
    Owned { key: key(vip), service: ServiceName::new("shop", service), port: "http".into() }
}

const fn traffic(connections: u64) -> TrafficCounters {
    TrafficCounters {
        connections,
        packets_in: 3 * connections,
        packets_out: 2 * connections,
        bytes_in: 300 * connections,
        bytes_out: 40 * connections,
    }
}

fn counted(vip: &str, connections: u64) -> Counted {
    Counted { key: key(vip), traffic: traffic(connections), real_servers: Vec::new() }
}

fn real(host: u8, active: u32, connections: u64) -> RealServerTraffic {
    RealServerTraffic {
        key: RealServerKey::new([10, 244, 1, host].into(), 8080),
        connections: RealServerCounters { active, inactive: 1, persistent: 0 },
        traffic: traffic(connections),
    }
}

fn lines(accounts: &Accounts, name: &str) -> Vec<String> {
    let text = String::from_utf8(text::written(accounts)).unwrap();
    text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

/// Something of everything, for what is said about all metrics.
pub(crate) fn sample() -> Vec<u8> {
    let mut accounts = Accounts::default();
    accounts.keep_real_servers(1);
    let server = Counted { real_servers: vec![real(2, 1, 2), real(3, 0, 3)], ..counted("10.96.0.10", 5) };
    accounts.take_in(&[owned("10.96.0.10", "web")], &[server]);
    text::written(&accounts)
}

#[test]
fn counters_of_a_port_are_those_of_all_its_addresses_and_never_go_back() {
    let mut accounts = Accounts::default();
    let both = [owned("10.96.0.10", "web"), owned("172.18.0.2", "web")];
    let connections = |accounts: &Accounts| lines(accounts, "kube_ipvs_service_connections_total");
    let of_web = |count: u64| vec![format!("{{service_namespace=\"shop\",service_name=\"web\",service_port=\"http\"}} {count}")];
    accounts.take_in(&both, &[counted("10.96.0.10", 5), counted("172.18.0.2", 2)]);
    assert_eq!(connections(&accounts), of_web(7));
    // One is made anew, by who repairs a table that was emptied.
    accounts.take_in(&both, &[counted("10.96.0.10", 6), counted("172.18.0.2", 1)]);
    assert_eq!(connections(&accounts), of_web(9));
    // One is gone and comes back.
    accounts.take_in(&both, &[counted("10.96.0.10", 6)]);
    assert_eq!(connections(&accounts), of_web(9));
    accounts.take_in(&both, &[counted("10.96.0.10", 6), counted("172.18.0.2", 4)]);
    assert_eq!(connections(&accounts), of_web(13));
    assert_eq!(
        lines(&accounts, "kube_ipvs_service_bytes_total{service_namespace=\"shop\",service_name=\"web\",service_port=\"http\","),
        ["direction=\"in\"} 3900", "direction=\"out\"} 520"]
    );
}

#[test]
fn who_gets_an_address_gets_none_of_what_another_has_counted_there() {
    let mut accounts = Accounts::default();
    accounts.take_in(&[owned("10.96.0.10", "old")], &[counted("10.96.0.10", 5)]);
    // The Service is gone, and its virtual server drains.
    accounts.take_in(&[], &[counted("10.96.0.10", 5)]);
    assert!(lines(&accounts, "kube_ipvs_service_connections_total").is_empty());
    accounts.take_in(&[owned("10.96.0.10", "young")], &[counted("10.96.0.10", 6)]);
    assert_eq!(
        lines(&accounts, "kube_ipvs_service_connections_total"),
        ["{service_namespace=\"shop\",service_name=\"young\",service_port=\"http\"} 1"]
    );
    // What others have made is nobody's.
    accounts.take_in(&[owned("10.96.0.10", "young")], &[counted("10.96.0.10", 6), counted("192.0.2.1", 70)]);
    assert_eq!(lines(&accounts, "kube_ipvs_service_connections_total").len(), 1);
}

#[test]
fn real_servers_are_as_many_as_may_be_and_stay_the_same_ones() {
    let mut accounts = Accounts::default();
    accounts.keep_real_servers(2);
    let owners = [owned("10.96.0.10", "web")];
    let with = |reals: &[RealServerTraffic]| vec![Counted { real_servers: reals.to_vec(), ..counted("10.96.0.10", 0) }];
    let hosts = |accounts: &Accounts| accounts.real_servers().keys().map(|(_, real)| real.address.to_string()).collect::<Vec<_>>();
    accounts.take_in(&owners, &with(&[real(3, 1, 1), real(4, 0, 1)]));
    // One that sorts before them does not take their place.
    accounts.take_in(&owners, &with(&[real(2, 1, 1), real(3, 2, 4), real(4, 0, 1)]));
    assert_eq!((hosts(&accounts), accounts.left_out()), (vec!["10.244.1.3".to_owned(), "10.244.1.4".to_owned()], 1));
    let of_three = "{service_namespace=\"shop\",service_name=\"web\",service_port=\"http\",real_server=\"10.244.1.3:8080\"";
    assert_eq!(lines(&accounts, &format!("kube_ipvs_real_server_connections_total{of_three}")), ["} 4"]);
    assert_eq!(
        lines(&accounts, &format!("kube_ipvs_real_server_connections{of_three}")),
        [",state=\"active\"} 2", ",state=\"inactive\"} 1"]
    );
    accounts.take_in(&owners, &with(&[real(2, 1, 1), real(4, 0, 1)]));
    assert_eq!((hosts(&accounts), accounts.left_out()), (vec!["10.244.1.2".to_owned(), "10.244.1.4".to_owned()], 0));
}

#[test]
fn names_that_no_api_server_has_checked_break_no_line() {
    let mut accounts = Accounts::default();
    let odd = Owned { key: key("10.96.0.10"), service: ServiceName::new("a\"b", "c\\d\ne"), port: "".into() };
    accounts.take_in(&[odd], &[counted("10.96.0.10", 1)]);
    assert_eq!(
        lines(&accounts, "kube_ipvs_service_connections_total"),
        ["{service_namespace=\"a\\\"b\",service_name=\"c\\\\d\\ne\",service_port=\"\"} 1"]
    );
}

/// A [`Traffic`] whose reconciler answers at once, with one port.
fn answered() -> (Traffic, Metrics) {
    let (mailbox, metrics) = (Mailbox::default(), Metrics::new().unwrap());
    let reconciler = mailbox.clone();
    std::thread::spawn(move || {
        while let Some(letter) = reconciler.take(Duration::from_secs(20)) {
            for ask in letter.owners {
                let _ = ask.send(vec![owned("10.96.0.10", "web")]);
            }
        }
    });
    (Traffic::new(Detail { real_servers: 0 }, mailbox, metrics.clone()), metrics)
}

fn told(metrics: &Metrics, result: &str) -> bool {
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    text.contains(&format!("kube_ipvs_traffic_reads_total{{result=\"{result}\"}} 1\n"))
}

async fn reading(count: u64, after: Duration, owners: Owners, mut reader: Box<Reader>) -> Option<(Box<Reader>, Result<(), Error>)> {
    tokio::time::sleep(after).await;
    reader.accounts.take_in(&owners, &[counted("10.96.0.10", count)]);
    Some((reader, Ok(())))
}

fn has(text: &[u8], count: u64) -> bool {
    String::from_utf8(text.to_vec()).unwrap().contains(&format!("service_port=\"http\"}} {count}\n"))
}

#[tokio::test]
async fn scrapes_in_quick_succession_read_once() {
    let (traffic, metrics) = answered();
    LocalSet::new()
        .run_until(async {
            let long = Duration::from_secs(60);
            let first = traffic.text_by(long, long, |owners, reader| reading(5, Duration::ZERO, owners, reader)).await;
            assert!(has(&first, 5));
            let second = traffic.text_by(long, long, |owners, reader| reading(6, Duration::ZERO, owners, reader)).await;
            assert!(has(&second, 5));
            assert!(told(&metrics, "success"));
            let third = traffic.text_by(Duration::ZERO, long, |owners, reader| reading(6, Duration::ZERO, owners, reader)).await;
            assert!(has(&third, 6));
        })
        .await;
}

#[tokio::test]
async fn a_kernel_that_takes_its_time_holds_up_no_scrape_and_loses_nothing() {
    let (traffic, metrics) = answered();
    LocalSet::new()
        .run_until(async {
            let (soon, long) = (Duration::from_millis(5), Duration::from_secs(60));
            let late = traffic
                .text_by(Duration::ZERO, soon, |owners, reader| reading(5, Duration::from_millis(300), owners, reader))
                .await;
            assert!(late.is_empty() && told(&metrics, "late"));
            // It still reads, and is not asked twice.
            let busy = traffic.text_by(Duration::ZERO, long, |owners, reader| reading(9, Duration::ZERO, owners, reader)).await;
            assert!(busy.is_empty());
            while traffic.lock().text.is_empty() {
                tokio::time::sleep(soon).await;
            }
            assert!(has(&traffic.lock().text, 5) && told(&metrics, "success"));
            let next = traffic.text_by(Duration::ZERO, long, |owners, reader| reading(7, Duration::ZERO, owners, reader)).await;
            assert!(has(&next, 7));
        })
        .await;
}
