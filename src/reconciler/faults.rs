//! The reconciler on a kernel that fails: some of what is said to it is lost, refused, interrupted, cut or out of order. Afterwards it
//! holds what is desired, and no virtual server that had a live real server all the time was ever without one.

use std::any::type_name_of_val;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use desired::{Index, RuleOptions, ServiceName};
use kernel::{Interference, supported_families};
use model::VirtualServerKey;
use serde_json::{Value, json};
use testkit::Random;

use super::*;

/// Services that are there all the time; each has a real server that is, too.
const LASTING: u64 = 12;
/// Services that come and go.
const PASSING: u64 = 12;
const CHANGES: usize = 150;

/// After the faults.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Nothing is sent, and the call says so: ENOBUFS, EPERM or EINTR.
    NotSent,
    /// The kernel refuses every message of the batch, with EBUSY or EPERM.
    Refused,
    /// A call to receive is interrupted.
    Interrupted,
    /// An answer is lost, and the call says so (ENOBUFS).
    Lost,
    /// An answer ends in the middle of a message.
    Cut,
    /// An answer comes after the one that follows it.
    Late,
    /// A part of a dump says that something changed meanwhile (NLM_F_DUMP_INTR).
    Changed,
}

const ON_SENDING: [Fault; 2] = [Fault::NotSent, Fault::Refused];
const ON_RECEIVING: [Fault; 5] = [Fault::Interrupted, Fault::Lost, Fault::Cut, Fault::Late, Fault::Changed];

const EPERM: i32 = 1;
const EINTR: i32 = 4;
const EBUSY: i32 = 16;
const ENOBUFS: i32 = 105;

/// Which faults there are and have been, for all sockets.
struct Faults {
    percent: AtomicU64,
    random: Mutex<Random>,
    made: Mutex<BTreeMap<Fault, usize>>,
}

impl Faults {
    fn below(&self, limit: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(limit)
    }

    fn choose(&self, faults: &[Fault]) -> Option<Fault> {
        if self.below(100) >= self.percent.load(Ordering::Relaxed) {
            return None;
        }
        let fault = faults[usize::try_from(self.below(faults.len() as u64)).unwrap()];
        *self.made.lock().unwrap().entry(fault).or_default() += 1;
        Some(fault)
    }
}

/// One socket's.
struct Line {
    faults: Arc<Faults>,
    /// Answers that have not been handed on.
    answers: VecDeque<Vec<u8>>,
    /// Whether the next answer is to overtake the first of them.
    late: bool,
}

impl Interference for Line {
    fn send<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        match self.faults.choose(&ON_SENDING) {
            Some(Fault::NotSent) => {
                let errors = [ENOBUFS, EPERM, EINTR];
                Err(io::Error::from_raw_os_error(errors[usize::try_from(self.faults.below(3)).unwrap()]))
            }
            Some(_) => {
                let errno = if self.faults.below(2) == 0 { EBUSY } else { EPERM };
                self.answers.extend(headers(bytes).map(|at| refusal(&bytes[at..at + 16], errno)));
                Ok(None)
            }
            None => Ok(Some(bytes)),
        }
    }

    fn receive(&mut self, received: io::Result<usize>, buffer: &mut [u8]) -> io::Result<usize> {
        match received {
            Ok(len) => self.answers.push_back(buffer[..len].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.answers.is_empty() => self.late = false,
            Err(error) => return Err(error),
        }
        let fault = self.faults.choose(&ON_RECEIVING);
        match fault {
            Some(Fault::Interrupted) => return Err(io::Error::from_raw_os_error(EINTR)),
            Some(Fault::Lost) => {
                self.answers.pop_front();
                return Err(io::Error::from_raw_os_error(ENOBUFS));
            }
            Some(Fault::Late) if self.answers.len() == 1 && !self.late => {
                self.late = true;
                return Err(io::Error::from_raw_os_error(EINTR));
            }
            _ => {}
        }
        let answer = if std::mem::take(&mut self.late) { self.answers.pop_back() } else { self.answers.pop_front() };
        let mut answer = answer.unwrap_or_default();
        match fault {
            Some(Fault::Cut) => {
                // Within a message: the kernel never leaves one out.
                let inside = headers(&answer).last().map_or(0, |last| last + 6);
                answer.truncate(inside);
            }
            Some(Fault::Changed) => {
                for at in headers(&answer).collect::<Vec<_>>() {
                    answer[at + 6] |= 0x10;
                }
            }
            _ => {}
        }
        buffer[..answer.len()].copy_from_slice(&answer);
        Ok(answer.len())
    }
}

/// Where the headers of messages are.
fn headers(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let next = |at: usize| {
        let len = u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
        Some(at + usize::try_from(len).ok()?.max(16).next_multiple_of(4))
    };
    std::iter::successors(Some(0), move |at| next(*at)).take_while(|at| at + 16 <= bytes.len())
}

/// `struct nlmsgerr` for the request with this header.
fn refusal(header: &[u8], errno: i32) -> Vec<u8> {
    let mut answer = Vec::from(36_u32.to_ne_bytes());
    answer.extend(2_u16.to_ne_bytes());
    answer.extend(0_u16.to_ne_bytes());
    answer.extend(&header[8..16]);
    answer.extend((-errno).to_ne_bytes());
    answer.extend(header);
    answer
}

fn name(number: u64) -> String {
    format!("service-{number}")
}

/// The Services of a life, as an index has them.
struct Life {
    index: Index,
    random: Random,
    fragments: BTreeMap<ServiceName, Option<desired::Fragment>>,
}

impl Life {
    fn new(config: Config, seed: u64) -> Self {
        let mut life = Self { index: Index::new(config), random: Random::new(seed), fragments: BTreeMap::new() };
        for number in 0..LASTING {
            life.add(number);
        }
        life
    }

    fn add(&mut self, number: u64) {
        let (ip, ip6) = (format!("10.96.0.{}", 10 + number), format!("fd00:96::{}", 10 + number));
        let service = json!({"metadata": {"namespace": "default", "name": name(number)},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip, ip6], "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}});
        self.index.apply_service(&serde_json::from_value(service).unwrap()).unwrap();
        for (family, net) in [("IPv4", "10.244.1."), ("IPv6", "fd00:244::1:")] {
            // The first is always there.
            let hosts = std::iter::once(1).chain((2..8).filter(|_| self.random.below(2) == 0));
            let endpoints: Vec<Value> = hosts
                .map(|host| json!({"addresses": [format!("{net}{}", 10 * number + host)], "conditions": {"ready": true, "serving": true}}))
                .collect();
            let slice = json!({"addressType": family, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
                "metadata": {"namespace": "default", "name": format!("{}-{family}", name(number)),
                    "labels": {"kubernetes.io/service-name": name(number)}}});
            self.index.apply_slice(&serde_json::from_value(slice).unwrap()).unwrap();
        }
    }

    /// Something changes: the endpoints of a Service, or one that passes is gone.
    fn change(&mut self) {
        let number = self.random.below(LASTING + PASSING);
        if number >= LASTING && self.random.below(3) == 0 {
            let metadata = |name: String| serde_json::from_value(json!({"namespace": "default", "name": name})).unwrap();
            self.index.delete_service(&metadata(name(number)));
        } else {
            self.add(number);
        }
    }

    /// What has changed since the last time, for the reconciler.
    fn post(&mut self, mailbox: &Mailbox) {
        let dirty = self.index.take_dirty();
        let fragments: Vec<_> = dirty.into_iter().map(|name| (self.index.fragment(&name), name)).collect();
        self.fragments.extend(fragments.iter().map(|(fragment, name)| (name.clone(), fragment.clone())));
        let settings = self.settings();
        mailbox.post(|letter| {
            letter.services.extend(fragments.into_iter().map(|(fragment, name)| (name, fragment)));
            letter.node = Some(settings);
            letter.complete = true;
        });
    }

    fn settings(&self) -> NodeSettings {
        let (config, facts) = (self.index.config(), self.index.facts());
        let rules = |family| desired::rules(family, config, facts, RuleOptions { random_fully: true });
        NodeSettings { rules: config.families.iter().map(|family| (*family, rules(*family))).collect(), ..NodeSettings::default() }
    }

    /// What the kernel is to hold now.
    fn desired(&self) -> State {
        let mut ledger = Ledger::new(self.index.config());
        for (name, fragment) in &self.fragments {
            ledger.set(name, fragment.clone());
        }
        State { rules: self.settings().rules, ..ledger.complete() }
    }
}

/// The virtual servers that must have a live real server at any time.
fn lasting(families: &std::collections::BTreeSet<Family>) -> Vec<(VirtualServerKey, IpAddr)> {
    let keys = |number: u64| {
        let all: [(String, String); 2] = [
            (format!("10.96.0.{}", 10 + number), format!("10.244.1.{}", 10 * number + 1)),
            (format!("fd00:96::{}", 10 + number), format!("fd00:244::1:{}", 10 * number + 1)),
        ];
        all.map(|(vip, real)| (VirtualServerKey::address(vip.parse().unwrap(), model::Protocol::Tcp, 80), real.parse().unwrap()))
    };
    (0..LASTING).flat_map(keys).filter(|(key, _)| families.contains(&key.family())).collect()
}

/// Fails if one of them has not, in the kernel's own words.
fn ensure_served(lasting: &[(VirtualServerKey, IpAddr)], context: &str) {
    let table = kernel::read_table().unwrap();
    for (key, address) in lasting {
        let listing = table.virtual_servers.iter().find(|listing| listing.key == *key);
        let listing = listing.unwrap_or_else(|| panic!("{context}: {key} is gone"));
        let real = listing.real_servers.iter().find(|real| real.key.address == *address);
        assert!(real.is_some_and(|real| real.server.weight > 0), "{context}: {key} has lost {address}: {:?}", listing.real_servers);
    }
}

fn live(percent: u64, seed: u64) {
    let context = format!("{percent} %, seed {seed}");
    let families = supported_families();
    let config = Config { families: families.clone(), ..Config::new("node") };
    let faults =
        Arc::new(Faults { percent: AtomicU64::new(0), random: Mutex::new(Random::new(seed)), made: Mutex::new(BTreeMap::new()) });
    let mut kernel = Kernel::open(&families).unwrap();
    kernel.interfere(|| Box::new(Line { faults: faults.clone(), answers: VecDeque::new(), late: false }));
    let settings = Settings {
        config: config.clone(),
        tuning: Tuning {
            scheduler: Scheduler::RR,
            excluded: Vec::new(),
            audit: audits::Pace { period: Duration::from_secs(2), share: 0.0 },
            check_period: Duration::from_millis(200),
            timeouts: Timeouts { tcp: 0, tcp_fin: 0, udp: 0 },
            drain: Limits {
                connections: Duration::from_secs(1),
                datagrams: Duration::from_secs(1),
                vanished: Duration::from_secs(1),
            },
            sysctls: Vec::new(),
        },
        take_over: false,
    };
    let mailbox = Mailbox::default();
    let running = spawn(kernel, settings, mailbox.clone(), News::default(), Metrics::new().unwrap()).unwrap();
    let mut life = Life::new(config, seed);
    life.post(&mailbox);
    let begun = Instant::now();
    while running.health.borrow().unhealthy(Instant::now()).is_some() || running.health.borrow().differing.is_some() {
        assert!(begun.elapsed() < PATIENCE, "{context}: no first synchronisation: {:?}", running.health.borrow());
        thread::sleep(Duration::from_millis(20));
    }
    let lasting = lasting(&families);
    ensure_served(&lasting, &context);

    faults.percent.store(percent, Ordering::Relaxed);
    for number in 0..CHANGES {
        life.change();
        life.post(&mailbox);
        thread::sleep(Duration::from_millis(life.random.below(60)));
        ensure_served(&lasting, &format!("{context}, change {number}"));
    }
    faults.percent.store(0, Ordering::Relaxed);
    let made = faults.made.lock().unwrap().clone();
    println!("{context}: {made:?}");

    let desired = life.desired();
    let mut clean = Kernel::open(&families).unwrap();
    let begun = Instant::now();
    loop {
        ensure_served(&lasting, &format!("{context}, afterwards"));
        let left = plan(&desired, &clean.observe().unwrap(), &Ownership::Node { excluded: &[] });
        if left.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{context}: the kernel still differs:\n{left}");
        thread::sleep(Duration::from_millis(100));
    }
    println!("{context}: as desired {:?} after the last fault", begun.elapsed());
    let listed = Command::new("ipvsadm").arg("-Sn").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| line.starts_with("-A")).count(), desired.virtual_servers.len(), "{listed}");
    mailbox.post(|letter| letter.stop = true);
    running.thread.join().unwrap();
    if percent >= 10 {
        assert_eq!(made.len(), ON_SENDING.len() + ON_RECEIVING.len(), "{context}: not every fault was made");
    }
}

/// Set in the process that is to run one test inside of its namespace.
const INSIDE: &str = "KUBE_IPVS_IN_NAMESPACE";

/// Runs `body`, the closure that a test consists of, in a network namespace of its own: starts this program again inside of one, to run
/// just the test that was called.
fn isolated(body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        // Without any address of its own a node has no table of them, and IPVS refuses every real server then.
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return body();
    }
    let name = type_name_of_val(&body).trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").unwrap();
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(INSIDE, name)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
    println!("{said}");
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_few_faults_cost_nothing() {
    isolated(|| live(1, 1));
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_some_faults_cost_nothing() {
    isolated(|| live(4, 2));
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_many_faults_cost_nothing() {
    isolated(|| live(10, 3));
}
