//! The reconciler on a kernel that fails: some of what is said to it is lost, refused, interrupted, cut or out of order. Afterwards it
//! holds what is desired, and no virtual server that had a live real server all the time was ever without one.

mod life;
mod line;
mod listing;
mod served;

use std::any::type_name_of_val;
use std::ffi::OsString;
use std::process::Command;
use std::sync::Arc;

use kernel::supported_families;

pub(super) use self::life::Life;
use self::life::lasting;
use self::line::{Ailment, Faults, KINDS, Line};
use self::listing::listing;
use self::served::{Served, answer_as_real_servers, forbidden};
use super::*;

/// At least so many. More follow until every fault has been made.
const CHANGES: usize = 150;
const MOST_CHANGES: usize = 10 * CHANGES;

/// So many changes are made while the kernel fails. Then it does not, until the reconciler has come round: one that never knows what the
/// kernel holds does nothing, and so nothing wrong.
const SPELL: usize = 10;

/// Until something has happened that must happen. Only failures wait for it.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a reconciler is told that has no more than its life and the kernel, and no patience.
pub(super) fn settings(config: Config) -> Settings {
    let tuning = Tuning {
        scheduler: Scheduler::RR,
        excluded: Vec::new(),
        audit: audits::Pace { period: Duration::from_secs(2), share: 0.0 },
        check_period: Duration::from_millis(200),
        timeouts: Timeouts { tcp: 0, tcp_fin: 0, udp: 0 },
        drain: Limits { connections: Duration::from_secs(1), datagrams: Duration::from_secs(1), vanished: Duration::from_secs(1) },
        sysctls: Vec::new(),
    };
    Settings { config, tuning, take_over: false, stuck_after: crate::health::STUCK }
}

/// A reconciler in a network namespace of its own, and what it has been told.
struct Scene {
    context: String,
    life: Life,
    mailbox: Mailbox,
    running: Running,
    /// Another way to the kernel, which never fails.
    kernel: Kernel,
}

impl Scene {
    /// With the Services that last in the kernel. `prepare` gets the reconciler's way there.
    fn begin(context: String, seed: u64, prepare: impl FnOnce(&mut Kernel)) -> Self {
        let families = supported_families();
        let config = Config { families: families.clone(), ..Config::new("node") };
        let mut kernel = Kernel::open(&families).unwrap();
        prepare(&mut kernel);
        let mailbox = Mailbox::default();
        let running = spawn(kernel, settings(config.clone()), mailbox.clone(), News::default(), Metrics::new().unwrap()).unwrap();
        let mut scene = Self { context, life: Life::new(config, seed), mailbox, running, kernel: Kernel::open(&families).unwrap() };
        scene.life.post(&scene.mailbox);
        scene.comes_round();
        scene.is_as_desired(|_| {});
        scene
    }

    fn change(&mut self) {
        self.life.change();
        self.life.post(&self.mailbox);
        thread::sleep(self.life.pause());
    }

    /// Waits until the reconciler takes the kernel to be as desired.
    fn comes_round(&self) {
        let begun = Instant::now();
        let health = || self.running.health.borrow().clone();
        while health().unhealthy(Instant::now()).is_some() || health().differing.is_some() {
            assert!(begun.elapsed() < PATIENCE, "{}: does not come round: {:?}", self.context, health());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the kernel is as desired; `look` looks at it all the time.
    fn is_as_desired(&mut self, mut look: impl FnMut(&str)) {
        let desired = self.life.desired();
        let begun = Instant::now();
        loop {
            look(&self.context);
            let left = plan(&desired, &self.kernel.observe().unwrap(), &Ownership::Node { excluded: &[] });
            if left.is_empty() {
                return println!("{}: as desired after {:?}", self.context, begun.elapsed());
            }
            assert!(begun.elapsed() < PATIENCE, "{}: the kernel still differs:\n{left}", self.context);
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn end(self) {
        self.mailbox.post(|letter| letter.stop = true);
        self.running.thread.join().unwrap();
    }
}

/// A life in which each kind of fault is made `percent` times of a hundred.
fn live(percent: u64, seed: u64) {
    let faults = Arc::new(Faults::new(seed, forbidden(&lasting(&supported_families()))));
    let context = format!("{percent} %, seed {seed}");
    let mut scene = Scene::begin(context.clone(), seed, |kernel| kernel.interfere(|| Box::new(Line::new(faults.clone()))));
    let mut served = Served::connect(lasting(&supported_families()));
    let mut changes = 0;
    // However slow the machine is: until every fault has been made, and not to a reconciler that is too busy to do anything.
    let enough = |changes: usize| changes >= CHANGES && faults.made().len() == KINDS && faults.carried() > changes / SPELL;
    while !enough(changes) && changes < MOST_CHANGES {
        faults.make(percent);
        for _ in 0..SPELL {
            scene.change();
            changes += 1;
            served.ensure_untouched(&format!("{context}, change {changes}"));
        }
        faults.make(0);
        scene.comes_round();
    }
    let (made, carried) = (faults.made(), faults.carried());
    println!("{context}: {changes} changes, {carried} batches carried out at least in part, {made:?}");
    scene.is_as_desired(|context| served.ensure_untouched(context));
    served.ensure_all_answer(&context);
    assert_eq!(faults.forbidden_sent(), [""; 0], "{context}");
    assert_eq!(made.len(), KINDS, "{context}: not every fault was made");
    assert!(carried > changes / SPELL, "{context}: the reconciler did nothing while the kernel failed");

    let (listing, undisturbed) = (listing(), undisturbed(changes));
    let is_there = |start: &str| listing.iter().any(|line| line.starts_with(start));
    assert!(
        is_there("ipvsadm: -A ") && is_there("ipvsadm: -a ") && is_there("ipset: add ") && is_there("ip: local "),
        "{listing:#?}"
    );
    let only =
        |lines: &[String], others: &[String]| lines.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>();
    let (more, less) = (only(&listing, &undisturbed), only(&undisturbed, &listing));
    assert!(listing == undisturbed, "{context}: not what a kernel that does not fail holds: more {more:#?}, less {less:#?}");
    scene.end();
}

/// A life in which every socket stops working, in one way after the other, and things change meanwhile.
fn outlive_sockets(seed: u64) {
    /// One for changes of IPVS and one for what real servers there are, for sets and for routes. Flows are not looked at.
    const SOCKETS: usize = 4;
    let faults = Arc::new(Faults::new(seed, forbidden(&lasting(&supported_families()))));
    let context = "sockets that stop working".to_owned();
    let mut scene = Scene::begin(context, seed, |kernel| kernel.interfere(|| Box::new(Line::new(faults.clone()))));
    let mut served = Served::connect(lasting(&supported_families()));
    for ailment in [Ailment::Deaf, Ailment::Babbling] {
        for turn in 0..3 {
            scene.context = format!("{ailment:?} sockets, turn {turn}");
            let before = faults.replaced();
            faults.infect(ailment);
            let begun = Instant::now();
            while faults.replaced() < before + SOCKETS {
                assert!(begun.elapsed() < PATIENCE, "{}: {} were replaced", scene.context, faults.replaced() - before);
                scene.change();
                served.ensure_untouched(&scene.context);
            }
            println!("{}: replaced after {:?}", scene.context, begun.elapsed());
            scene.is_as_desired(|context| served.ensure_untouched(context));
            scene.comes_round();
            assert_eq!(faults.replaced(), before + SOCKETS, "{}: once is enough", scene.context);
        }
    }
    served.ensure_all_answer("at last");
    assert_eq!(faults.forbidden_sent(), [""; 0]);
    scene.end();
}

/// Set in the process that is to run one test inside of its namespace.
const INSIDE: &str = "KUBE_IPVS_IN_NAMESPACE";
/// Set in the process that is to make so many changes on a kernel that does not fail, and to list what that holds.
const UNDISTURBED: &str = "KUBE_IPVS_UNDISTURBED";
/// What is before each line of that.
const LISTED: &str = "listed ";

/// Runs `body`, the closure that a test consists of, in a network namespace of its own: starts this program again inside of one, to run
/// just the test that was called. `seed` is that of its life.
pub(super) fn isolated(seed: u64, body: impl FnOnce()) {
    testkit::tell_panics();
    if std::env::var_os(INSIDE).is_some() {
        answer_as_real_servers();
        if let Ok(changes) = std::env::var(UNDISTURBED) {
            let mut scene = Scene::begin("undisturbed".to_owned(), seed, |_| {});
            for _ in 0..changes.parse().unwrap() {
                scene.life.change();
                // Which counts as one of its random numbers.
                scene.life.pause();
            }
            scene.life.post(&scene.mailbox);
            scene.is_as_desired(|_| {});
            listing().iter().for_each(|line| println!("{LISTED}{line}"));
            return scene.end();
        }
        return body();
    }
    let name = type_name_of_val(&body).trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").unwrap();
    println!("{}", said_by(name, &[(INSIDE, name.into())]));
}

/// What another process says that runs the test `name` with these variables in a network namespace of its own.
fn said_by(name: &str, variables: &[(&str, OsString)]) -> String {
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .envs(variables.iter().cloned())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
    said
}

/// What a kernel holds that has not failed, after so many changes of the same life.
fn undisturbed(changes: usize) -> Vec<String> {
    let name = std::env::var(INSIDE).unwrap();
    let said = said_by(&name, &[(UNDISTURBED, changes.to_string().into())]);
    said.lines().filter_map(|line| line.strip_prefix(LISTED)).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_few_faults_cost_nothing() {
    isolated(1, || live(1, 1));
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_some_faults_cost_nothing() {
    isolated(2, || live(4, 2));
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j7_f2_in_guest_many_faults_cost_nothing() {
    isolated(3, || live(10, 3));
}

#[test]
#[ignore = "needs a kernel with IPVS; the guest tier runs it"]
fn j8_in_guest_sockets_that_stop_working_are_replaced() {
    isolated(4, || outlive_sockets(4));
}
