//! Interfaces and their addresses, as they are and as they change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kernel::{Monitor, Notice, Vips};

use crate::namespace::{isolated, sh};

fn addresses(vips: &mut Vips) -> Vec<String> {
    let mut addresses: Vec<_> =
        vips.interfaces().unwrap().into_iter().map(|(interface, address)| format!("{interface} {address}")).collect();
    addresses.sort();
    addresses
}

#[test]
fn interfaces_and_their_addresses_are_listed() {
    isolated(|| {
        let mut vips = Vips::open().unwrap();
        assert_eq!(addresses(&mut vips), [""; 0], "a namespace is born with nothing but a loopback that is down");
        sh("ip link set lo up");
        sh("ip link add a-bridge.of.15c type bridge");
        sh("ip link set a-bridge.of.15c up");
        sh("ip address add 172.18.0.11/16 dev a-bridge.of.15c");
        sh("ip address add 172.18.0.12/16 dev a-bridge.of.15c");
        sh("ip address add fd00:18::11/64 dev a-bridge.of.15c nodad");
        // An address by which a tunnel's other end is told has a peer, and is still this end's.
        sh("ip address add 192.0.2.1 peer 192.0.2.2/32 dev a-bridge.of.15c");
        let listed: Vec<_> = addresses(&mut vips).into_iter().filter(|line| !line.contains("fe80:")).collect();
        assert_eq!(
            listed,
            [
                "a-bridge.of.15c 172.18.0.11",
                "a-bridge.of.15c 172.18.0.12",
                "a-bridge.of.15c 192.0.2.1",
                "a-bridge.of.15c fd00:18::11",
                "lo 127.0.0.1",
                "lo ::1",
            ]
        );
    });
}

#[test]
fn an_ipv6_address_that_cannot_be_used_yet_is_not_listed() {
    isolated(|| {
        let mut vips = Vips::open().unwrap();
        sh("ip link add one type veth peer name two");
        sh("ip link set one up");
        sh("ip link set two up");
        sh("ip address add fd00:18::11/64 dev one");
        assert!(sh("ip -6 address show dev one tentative").contains("fd00:18::11"), "its uniqueness is still being checked");
        assert!(!addresses(&mut vips).contains(&"one fd00:18::11".to_owned()));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !addresses(&mut vips).contains(&"one fd00:18::11".to_owned()) {
            assert!(Instant::now() < deadline, "never listed: {}", sh("ip -6 address show dev one"));
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// Notices as they come, from a thread that waits for them.
fn follow() -> mpsc::Receiver<Result<Notice, kernel::Error>> {
    let mut monitor = Monitor::open().unwrap();
    let (sender, notices) = mpsc::channel();
    thread::spawn(move || while sender.send(monitor.wait(Duration::from_millis(20))).is_ok() {});
    notices
}

#[test]
fn an_address_that_comes_or_goes_is_noticed() {
    isolated(|| {
        sh("ip link add eth0 type bridge");
        sh("ip link set eth0 up");
        let mut vips = Vips::open().unwrap();
        let notices = follow();
        let changes = [
            ("add 172.18.0.11/16", "eth0 172.18.0.11", true),
            ("add fd00:18::11/64 nodad", "eth0 fd00:18::11", true),
            ("del 172.18.0.11/16", "eth0 172.18.0.11", false),
            ("del fd00:18::11/64", "eth0 fd00:18::11", false),
        ];
        for (change, address, there) in changes {
            // What the bridge itself still had to say.
            while notices.recv_timeout(Duration::from_millis(300)).is_ok() {}
            let (verb, what) = change.split_once(' ').unwrap();
            sh(&format!("ip address {verb} dev eth0 {what}"));
            let notice = notices.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("{change}: not noticed")).unwrap();
            assert!(!notice.device, "{change}: kube-ipvs0 is another device");
            assert_eq!(addresses(&mut vips).contains(&address.to_owned()), there, "{change}");
        }
    });
}

#[test]
fn the_loss_of_the_vip_device_is_noticed() {
    isolated(|| {
        // What kind of device it is does not matter to a notice.
        sh("ip link add kube-ipvs0 type bridge");
        sh("ip link set kube-ipvs0 up");
        let notices = follow();
        for loss in ["ip link set kube-ipvs0 down", "ip link del kube-ipvs0"] {
            while notices.recv_timeout(Duration::from_millis(300)).is_ok() {}
            sh(loss);
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if notices.recv_timeout(left).unwrap_or_else(|_| panic!("{loss}: not noticed")).unwrap().device {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_device_of_our_name_and_another_kind_is_named_and_left_alone() {
    isolated(|| {
        sh("ip link add kube-ipvs0 type bridge");
        let families = model::Family::ALL.into();
        let error = Vips::open().unwrap().observe(&families).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the device kube-ipvs0: there is a device of that name that is no dummy device; rename or remove it"
        );
        sh("ip link show kube-ipvs0");
    });
}

#[test]
fn f2_addresses_are_read_whole_while_pods_come_and_go() {
    isolated(|| {
        for number in 0..4 {
            sh(&format!("ip link add eth{number} type bridge"));
            sh(&format!("ip link set eth{number} up"));
            sh(&format!("ip address add 172.18.{number}.11/24 dev eth{number}"));
        }
        let stable = |line: &String| line.starts_with("eth") && !line.contains("fe80:");
        let mut vips = Vips::open().unwrap();
        let before: Vec<_> = addresses(&mut vips).into_iter().filter(stable).collect();
        assert_eq!(before.len(), 4);

        let done = AtomicBool::new(false);
        let (readings, rounds, most) = thread::scope(|scope| {
            let churn = scope.spawn(|| {
                // One process makes, addresses and takes away many pods' interfaces, as fast as the kernel lets it.
                let pods: String = (0..50)
                    .map(|pod| {
                        format!(
                            "link add veth{pod} type veth peer name peer{pod}\naddress add 10.244.1.{pod}/32 dev veth{pod}\nlink set veth{pod} up\n\
                             {}",
                            if pod >= 10 { format!("link del veth{}\n", pod - 10) } else { String::new() }
                        )
                    })
                    .chain((40..50).map(|pod| format!("link del veth{pod}\n")))
                    .collect();
                let file = std::env::temp_dir().join(format!("kube-ipvs-churn-{}", std::process::id()));
                std::fs::write(&file, pods).unwrap();
                let start = Instant::now();
                let mut rounds = 0;
                while start.elapsed() < Duration::from_secs(5) {
                    sh(&format!("ip -batch {}", file.display()));
                    rounds += 1;
                }
                std::fs::remove_file(&file).unwrap();
                done.store(true, Ordering::Relaxed);
                rounds
            });
            let (mut readings, mut most) = (0, 0);
            while !done.load(Ordering::Relaxed) && !churn.is_finished() {
                let all = addresses(&mut vips);
                most = most.max(all.len());
                let after: Vec<_> = all.into_iter().filter(stable).collect();
                assert_eq!(after, before, "reading {readings}");
                readings += 1;
            }
            (readings, churn.join().unwrap(), most)
        });
        assert!(rounds > 0 && readings > 20, "{rounds} rounds of changes, {readings} readings");
        assert!(most > before.len(), "no reading ever saw a pod's interface");
    });
}
