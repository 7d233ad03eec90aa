//! What must never be taken away, however short it is: by connections that are held, and by what the kernel would begin anew.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use model::{RealServerKey, VirtualServerKey};
use wire::Batch;
use wire::ipvs::Ipvs;

use super::line::payloads;

/// Where real servers listen.
const PORT: u16 = 8080;

/// Only failures wait for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Gives this network namespace addresses, all that may be a real server's included, and has them answered: whoever sends a byte gets it back.
pub(super) fn answer_as_real_servers() {
    for command in [
        "link set lo up",
        // Without an address of its own a node has no table of them, and IPVS refuses every real server then.
        "-4 address add 192.0.2.10/32 dev lo",
        "-6 address add 2001:db8::10/128 dev lo nodad",
        "-4 route add local 10.244.0.0/16 dev lo",
        "-6 route add local fd00:244::/64 dev lo",
    ] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
    }
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
            });
        }
    });
}

/// The virtual servers that must have a live real server at any time.
pub(super) struct Served {
    lasting: Vec<Lasting>,
    looks: usize,
}

struct Lasting {
    key: VirtualServerKey,
    real: RealServerKey,
    /// A connection that is held all the time.
    connection: TcpStream,
    /// What the kernel has counted: the connections of the virtual server, and the packets for the real server.
    counted: (u64, u64),
}

impl Served {
    /// Connects to each; their real servers are the only ones they have yet, and so the first that they were given.
    pub(super) fn connect(lasting: Vec<(VirtualServerKey, RealServerKey)>) -> Self {
        let connect = |(key, real): (VirtualServerKey, RealServerKey)| {
            let VirtualServerKey::Address { address, port, .. } = key else { panic!("{key} has no address") };
            let connection = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE);
            let connection = connection.unwrap_or_else(|error| panic!("{key}: {error}"));
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            Lasting { key, real, connection, counted: (0, 0) }
        };
        let mut served = Self { lasting: lasting.into_iter().map(connect).collect(), looks: 0 };
        served.ensure_all_answer("at first");
        // The kernel adds up what it has counted every two seconds (`ip_vs_estimation`, net/netfilter/ipvs/ip_vs_est.c).
        let begun = Instant::now();
        while served.lasting.iter().any(|lasting| lasting.counted.0 == 0 || lasting.counted.1 == 0) {
            assert!(begun.elapsed() < PATIENCE, "connections are not counted");
            thread::sleep(Duration::from_millis(100));
            served.ensure_untouched("at first");
        }
        served
    }

    /// Fails if one of them has been without its real server, and be it between two looks: a virtual server that is made again counts from the
    /// beginning, and a real server that is added again comes before all others (`list_add_rcu` in `__ip_vs_update_dest`), though it
    /// goes on counting where the kernel has kept it.
    pub(super) fn ensure_untouched(&mut self, context: &str) {
        let table = kernel::read_table().unwrap();
        for Lasting { key, real, counted, .. } in &mut self.lasting {
            let listing = table.virtual_servers.iter().find(|listing| listing.key == *key);
            let listing = listing.unwrap_or_else(|| panic!("{context}: {key} is gone"));
            let last = listing.real_servers.last();
            let last = last.filter(|last| last.key == *real && last.server.weight > 0);
            let last = last.unwrap_or_else(|| panic!("{context}: {key} has been without {real}: {:?}", listing.real_servers));
            let counts = (listing.traffic.connections, last.traffic.packets_in);
            assert!(
                counts.0 >= counted.0 && counts.1 >= counted.1,
                "{context}: {key} has begun anew: {counts:?} after {counted:?}"
            );
            *counted = counts;
        }
        self.looks += 1;
        let turn = self.looks % self.lasting.len();
        self.lasting[turn].ensure_answers(context);
    }

    pub(super) fn ensure_all_answer(&mut self, context: &str) {
        self.lasting.iter_mut().for_each(|lasting| lasting.ensure_answers(context));
    }
}

impl Lasting {
    fn ensure_answers(&mut self, context: &str) {
        let mut byte = [b'?'];
        let answered = self.connection.write_all(&byte).and_then(|()| self.connection.read_exact(&mut byte));
        answered.unwrap_or_else(|error| panic!("{context}: the connection to {}: {error}", self.key));
    }
}

/// The payloads of requests that would take something from them.
pub(super) fn forbidden(lasting: &[(VirtualServerKey, RealServerKey)]) -> BTreeMap<Vec<u8>, String> {
    // The number of the family is not in the payload.
    let codec = Ipvs::new(0x20);
    let mut forbidden = BTreeMap::new();
    for (key, real) in lasting {
        let mut batch = Batch::default();
        codec.del_service(&mut batch, 1, key).unwrap();
        codec.del_dest(&mut batch, 2, key, real).unwrap();
        codec.set_dest(&mut batch, 3, key, real, &model::RealServer { weight: 0, ..model::RealServer::DEFAULT }).unwrap();
        let names = [format!("delete {key}"), format!("delete {real} of {key}"), format!("drain {real} of {key}")];
        forbidden.extend(payloads(batch.as_bytes()).zip(names));
    }
    forbidden
}
