//! The schedulers of the running kernel: which there are is found out by asking for them, and a virtual server whose scheduler is
//! lacking is served by another.
//!
//! As with a drain, this is nothing the plan has to know. What is desired is put into terms of what the kernel has before it is compared
//! with what the kernel holds, so both agree, and nothing that is known to be refused is tried again and again.

use std::collections::{BTreeMap, BTreeSet};

use model::{Flags, Scheduler, State, VirtualServerConfig};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// What is known of the kernel's schedulers.
pub(crate) struct Schedulers {
    /// The operator's choice.
    default: Scheduler,
    /// The schedulers that were asked for, and whether the kernel has them.
    known: BTreeMap<Scheduler, bool>,
    lacking: watch::Sender<BTreeSet<Scheduler>>,
    metrics: Metrics,
}

impl Schedulers {
    pub(crate) fn new(default: Scheduler, lacking: watch::Sender<BTreeSet<Scheduler>>, metrics: Metrics) -> Self {
        Self { default, known: BTreeMap::new(), lacking, metrics }
    }

    /// Takes in another choice of the operator.
    pub(crate) const fn set_default(&mut self, default: Scheduler) {
        self.default = default;
    }

    /// Asks the kernel for those schedulers of `desired` that it has not been asked for, and replaces those it lacks: by the operator's
    /// choice or, where that is lacking as well, by `rr`.
    pub(crate) fn serve(&mut self, desired: &mut State, mut offers: impl FnMut(Scheduler) -> Result<bool, kernel::Error>) {
        let wanted: BTreeSet<_> = desired.virtual_servers.values().map(|server| server.config.scheduler).collect();
        wanted.into_iter().for_each(|scheduler| self.ask(scheduler, &mut offers));
        if self.known.values().all(|offered| *offered) {
            return;
        }
        // Unless one of the two is what is lacking, nobody may have asked for it yet.
        for scheduler in [self.default, Scheduler::RR] {
            self.ask(scheduler, &mut offers);
        }
        for server in desired.virtual_servers.values_mut() {
            self.replace(&mut server.config);
        }
    }

    /// Asks again for those that were lacking, because a module may have been installed since. One that all of `desired` no longer asks
    /// for is forgotten.
    pub(crate) fn ask_again(&mut self, desired: &State, mut offers: impl FnMut(Scheduler) -> Result<bool, kernel::Error>) {
        let mut wanted: BTreeSet<_> = desired.virtual_servers.values().map(|server| server.config.scheduler).collect();
        wanted.extend([self.default, Scheduler::RR]);
        let lacking: Vec<_> = self.known.iter().filter(|(_, offered)| !**offered).map(|(scheduler, _)| *scheduler).collect();
        for scheduler in lacking {
            if !wanted.contains(&scheduler) {
                self.show(scheduler, true);
                self.known.remove(&scheduler);
                continue;
            }
            match offers(scheduler) {
                Ok(true) => {
                    info!(%scheduler, "the kernel has this scheduler now");
                    self.note(scheduler, true);
                }
                Ok(false) => {}
                Err(error) => warn!(%scheduler, %error, "cannot ask the kernel for a scheduler"),
            }
        }
    }

    /// Takes note that the kernel refused `scheduler`, which it had or seemed to have. Whether that is news, so that what was refused for
    /// it can be served by another.
    pub(crate) fn note_lacking(&mut self, scheduler: Scheduler) -> bool {
        self.known.get(&scheduler) != Some(&false) && {
            self.note(scheduler, false);
            true
        }
    }

    /// Whether the kernel has all that were asked for.
    pub(crate) fn lacks_none(&self) -> bool {
        self.known.values().all(|offered| *offered)
    }

    fn ask(&mut self, scheduler: Scheduler, offers: &mut impl FnMut(Scheduler) -> Result<bool, kernel::Error>) {
        if self.known.contains_key(&scheduler) {
            return;
        }
        match offers(scheduler) {
            Ok(offered) => self.note(scheduler, offered),
            Err(error) => warn!(%scheduler, %error, "cannot ask the kernel for a scheduler"),
        }
    }

    fn note(&mut self, scheduler: Scheduler, offered: bool) {
        self.known.insert(scheduler, offered);
        if !offered {
            warn!(
                %scheduler,
                "this kernel does not have the scheduler: load its module with `modprobe ip_vs_{scheduler}`, or choose another; until then another serves"
            );
        }
        self.show(scheduler, offered);
    }

    /// Tells others.
    fn show(&self, scheduler: Scheduler, offered: bool) {
        self.metrics.note_scheduler(scheduler.as_str(), offered);
        self.lacking.send_if_modified(|lacking| if offered { lacking.remove(&scheduler) } else { lacking.insert(scheduler) });
    }

    fn replace(&self, config: &mut VirtualServerConfig) {
        let lacks = |scheduler: Scheduler| self.known.get(&scheduler) == Some(&false);
        if !lacks(config.scheduler) {
            return;
        }
        // A kernel without even `rr` has no scheduler to speak of; what it refuses then says so.
        let Some(scheduler) = [self.default, Scheduler::RR].into_iter().find(|scheduler| !lacks(*scheduler)) else { return };
        config.scheduler = scheduler;
        // The scheduler's own flags mean other things to another.
        config.flags = scheduler.default_flags().with(config.flags.and(Flags::ONE_PACKET));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use model::{Family, Protocol, VirtualServer, VirtualServerKey};

    fn scheduler(name: &str) -> Scheduler {
        Scheduler::new(name).unwrap()
    }

    fn schedulers(default: &str) -> (Schedulers, watch::Receiver<BTreeSet<Scheduler>>) {
        let (lacking, receiver) = watch::channel(BTreeSet::new());
        (Schedulers::new(scheduler(default), lacking, Metrics::new().unwrap()), receiver)
    }

    /// A state with a virtual server of each scheduler, on ports from 1.
    fn state(names: &[&str]) -> State {
        let servers = names.iter().zip(1..).map(|(name, port)| {
            let mut server = VirtualServer::new(scheduler(name), Family::V4);
            server.config.flags = scheduler(name).default_flags().with(Flags::ONE_PACKET);
            (VirtualServerKey::address("10.96.0.1".parse().unwrap(), Protocol::Udp, port), server)
        });
        State { virtual_servers: servers.collect(), ..State::default() }
    }

    fn served(state: &State) -> Vec<(String, u32)> {
        state.virtual_servers.values().map(|server| (server.config.scheduler.to_string(), server.config.flags.bits())).collect()
    }

    /// A kernel with these schedulers, and what it was asked for.
    struct Kernel<'a> {
        has: &'a [&'a str],
        asked: RefCell<Vec<String>>,
    }

    impl<'a> Kernel<'a> {
        fn with(has: &'a [&'a str]) -> Self {
            Self { has, asked: RefCell::default() }
        }

        fn offers(&self) -> impl FnMut(Scheduler) -> Result<bool, kernel::Error> {
            |scheduler| {
                self.asked.borrow_mut().push(scheduler.to_string());
                Ok(self.has.contains(&scheduler.as_str()))
            }
        }
    }

    #[test]
    fn a_scheduler_that_the_kernel_lacks_is_replaced_by_the_default_and_asked_for_once() {
        let (mut schedulers, lacking) = schedulers("mh");
        let kernel = Kernel::with(&["rr", "mh"]);
        for _ in 0..2 {
            let mut desired = state(&["rr", "new", "new"]);
            schedulers.serve(&mut desired, kernel.offers());
            assert_eq!(served(&desired), [("rr".into(), 0x4), ("mh".into(), 0x1c), ("mh".into(), 0x1c)]);
        }
        assert_eq!(*kernel.asked.borrow(), ["new", "rr", "mh"]);
        assert_eq!(*lacking.borrow(), [scheduler("new")].into());
    }

    #[test]
    fn where_the_default_is_lacking_too_rr_serves_and_without_any_nothing_is_replaced() {
        let (mut schedulers, _lacking) = self::schedulers("mh");
        let mut desired = state(&["new", "mh"]);
        schedulers.serve(&mut desired, Kernel::with(&["rr"]).offers());
        assert_eq!(served(&desired), [("rr".into(), 0x4), ("rr".into(), 0x4)], "the flags of mh go with it");

        let (mut schedulers, _lacking) = self::schedulers("mh");
        let mut desired = state(&["new", "mh", "rr"]);
        schedulers.serve(&mut desired, Kernel::with(&[]).offers());
        assert_eq!(desired, state(&["new", "mh", "rr"]));
    }

    #[test]
    fn what_is_found_later_is_used_and_what_is_there_is_not_asked_for_again() {
        let (mut schedulers, lacking) = schedulers("rr");
        schedulers.serve(&mut state(&["rr", "wlc", "new"]), Kernel::with(&["rr", "wlc"]).offers());
        let kernel = Kernel::with(&["rr", "wlc", "new"]);
        schedulers.ask_again(&state(&["new"]), kernel.offers());
        assert_eq!(*kernel.asked.borrow(), ["new"]);
        assert!(lacking.borrow().is_empty());
        let mut desired = state(&["new"]);
        schedulers.serve(&mut desired, kernel.offers());
        assert_eq!(desired, state(&["new"]));
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_not_lacking() {
        let (mut schedulers, lacking) = schedulers("mh");
        schedulers.serve(&mut state(&["new", "newer"]), Kernel::with(&["rr"]).offers());
        let kernel = Kernel::with(&["rr"]);
        schedulers.ask_again(&state(&["newer"]), kernel.offers());
        assert_eq!(*kernel.asked.borrow(), ["mh", "newer"], "the default is asked for by everybody");
        assert_eq!(*lacking.borrow(), [scheduler("mh"), scheduler("newer")].into());
    }

    #[test]
    fn a_refusal_is_news_once() {
        let (mut schedulers, lacking) = schedulers("rr");
        schedulers.serve(&mut state(&["wlc"]), Kernel::with(&["rr", "wlc"]).offers());
        assert!(schedulers.note_lacking(scheduler("wlc")));
        assert!(!schedulers.note_lacking(scheduler("wlc")));
        assert_eq!(*lacking.borrow(), [scheduler("wlc")].into());
        let mut desired = state(&["wlc"]);
        schedulers.serve(&mut desired, Kernel::with(&["rr"]).offers());
        assert_eq!(served(&desired), [("rr".into(), 0x4)]);
    }
}
