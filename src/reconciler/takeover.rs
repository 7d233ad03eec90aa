//! What kube-proxy in IPVS mode has left: taken over at the start, and removed once it is replaced.

use super::*;

/// How long nf_tables may take to let go of sets, on a busy node, after the rules that asked them were removed.
const LET_GO: Duration = Duration::from_secs(10);

/// How many audits look whether what was removed has come back: on its way out, or on a node where nobody has ended it, kube-proxy puts it there
/// again.
const LOOKS: u8 = 3;

/// How often what cannot be read or removed is tried again.
const TRIES: u32 = 5;

/// kube-proxy, which was here before.
pub(super) struct Predecessor {
    stage: Stage,
    /// Before that there is nothing to do about it; nor is there before all that is to take its place is there.
    due: Instant,
    /// How often something has come in between, after each of which there is more patience.
    setbacks: u32,
}

enum Stage {
    /// It could not be read or taken over what it has left.
    Unknown,
    /// What it has left can be removed.
    Replaced(Leftovers),
    /// Its rules are gone, and have not let go yet of the sets that they asked.
    LettingGo(Leftovers),
    /// All of it is gone. It is looked so many times more whether that stays so, and nothing has come beside what it listed.
    Gone { listed: Leftovers, looks: u8 },
}

impl Reconciler {
    /// Looks whether kube-proxy was here before, and makes those of its virtual servers ours that none of the sets lists which we have in
    /// common.
    pub(super) fn take_over(&mut self, observed: &mut State) {
        match self.kernel.find_kube_proxy() {
            Ok(found) => match found.mode() {
                Mode::None => {}
                Mode::Iptables => warn!("{OTHER_MODE}"),
                Mode::Ipvs => {
                    info!("taking over from kube-proxy in IPVS mode");
                    self.succeed_to(found, observed, 0);
                }
            },
            Err(error) => {
                warn!(%error, "cannot look for what kube-proxy has left; it stays until that can be read");
                self.wait_for(Stage::Unknown, 0);
            }
        }
    }

    fn succeed_to(&mut self, leftovers: Leftovers, observed: &mut State, setbacks: u32) {
        let plan = taking_over(&leftovers, observed);
        let report = self.kernel.apply(&plan);
        report.apply_to(&plan, observed);
        match report.failures.first() {
            None => self.predecessor = Some(Predecessor { stage: Stage::Replaced(leftovers), due: Instant::now(), setbacks }),
            Some(Failure { step, error }) => {
                warn!(%step, %error, "cannot take over node ports; what kube-proxy has left stays until that works");
                self.wait_for(Stage::Unknown, setbacks);
            }
        }
    }

    /// Removes what kube-proxy has left, once all that is to take its place is there.
    pub(super) fn succeed(&mut self) {
        let (now, complete) = (Instant::now(), self.complete);
        let replaced = complete && self.observed.as_ref().is_some_and(|observed| observed.rules == self.rules);
        let Some(predecessor) = self.predecessor.take_if(|predecessor| replaced && predecessor.due <= now) else { return };
        let Predecessor { stage, setbacks, .. } = predecessor;
        match stage {
            Stage::Unknown => self.read_again(setbacks),
            Stage::Replaced(leftovers) => self.remove(leftovers, false, setbacks),
            Stage::LettingGo(leftovers) => self.remove(leftovers, true, setbacks),
            Stage::Gone { listed, looks } => self.look_again(listed, looks, setbacks),
        }
    }

    fn remove(&mut self, mut leftovers: Leftovers, has_waited: bool, setbacks: u32) {
        match self.kernel.remove_kube_proxy(&mut leftovers) {
            Ok(()) => {
                info!("removed what kube-proxy has left: its packet rules, and the sets that only they asked");
                self.wait_for(Stage::Gone { listed: leftovers, looks: LOOKS }, setbacks);
            }
            // Once: after that it is others who ask them.
            Err(error) if error.is_in_use() && !has_waited => {
                debug!(%error, "not all that kube-proxy has left can be removed yet");
                self.wait_for(Stage::LettingGo(leftovers), setbacks);
            }
            Err(error) => match self.kernel.find_kube_proxy() {
                Ok(found) if found.has_more_rules_than(&leftovers) => self.succeed_again(found, setbacks),
                _ if setbacks < TRIES && !error.is_in_use() => {
                    warn!(%error, "cannot remove all that kube-proxy has left; trying again");
                    self.wait_for(Stage::Replaced(leftovers), setbacks + 1);
                }
                _ => warn!(%error, "cannot remove all that kube-proxy has left; it is not needed and does no harm"),
            },
        }
    }

    /// Makes good what could not be read or taken over before.
    fn read_again(&mut self, setbacks: u32) {
        match self.kernel.find_kube_proxy() {
            Ok(found) if found.mode() == Mode::Ipvs => self.succeed_late(found, setbacks + 1),
            Ok(_) => debug!("kube-proxy in IPVS mode has left nothing"),
            Err(error) if setbacks < TRIES => {
                debug!(%error, "cannot look yet for what kube-proxy has left");
                self.wait_for(Stage::Unknown, setbacks + 1);
            }
            Err(error) => warn!(%error, "cannot look for what kube-proxy has left; it stays until the next start"),
        }
    }

    /// Begins anew with what has been put back.
    fn succeed_again(&mut self, found: Leftovers, setbacks: u32) {
        warn!(
            "kube-proxy has put back what was removed of it, so it was still running on this node, or is: each of the two removes what the other \
             wants; end it if it runs. What it has put back is taken over and removed again"
        );
        self.succeed_late(found, setbacks + 1);
        // Not at once, over and over again.
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.due += patience(setbacks);
        }
    }

    /// Takes over after the first pass: what becomes ours by that, the next one compares with what is desired.
    fn succeed_late(&mut self, found: Leftovers, setbacks: u32) {
        if let Some(mut observed) = self.observed.take() {
            self.succeed_to(found, &mut observed, setbacks);
            self.observed = Some(observed);
        }
        self.audits.doubt();
        self.audits.no_later_than(Instant::now());
    }

    /// Looks whether what was removed has come back. Of one that ended in the midst of what it did, it may be virtual servers without the sets that
    /// list them.
    fn look_again(&mut self, listed: Leftovers, looks: u8, setbacks: u32) {
        match self.kernel.find_kube_proxy() {
            Ok(found) if found.is_there() => self.succeed_again(found, setbacks),
            Ok(_) if self.observed.as_ref().is_some_and(|observed| !taking_over(&listed, observed).is_empty()) => {
                self.succeed_late(listed, setbacks + 1);
            }
            Ok(_) if looks > 1 => self.wait_for(Stage::Gone { listed, looks: looks - 1 }, setbacks),
            Ok(_) => debug!("what kube-proxy had left has not come back"),
            Err(error) if setbacks < TRIES => {
                debug!(%error, "cannot look whether what kube-proxy has left has come back");
                self.wait_for(Stage::Gone { listed, looks }, setbacks + 1);
            }
            Err(error) => warn!(%error, "cannot look whether what kube-proxy has left has come back"),
        }
    }

    /// Goes on with the first audit after a while, and has one come then.
    fn wait_for(&mut self, stage: Stage, setbacks: u32) {
        let due = Instant::now() + patience(setbacks);
        // An audit of its own only where there is something to do.
        if !matches!(stage, Stage::Gone { .. }) {
            self.audits.no_later_than(due);
        }
        self.predecessor = Some(Predecessor { stage, due, setbacks });
    }
}

/// From 10 seconds to one minute.
fn patience(setbacks: u32) -> Duration {
    LET_GO * (1 + setbacks.min(TRIES))
}
