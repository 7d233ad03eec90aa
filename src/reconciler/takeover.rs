//! What kube-proxy in IPVS mode has left: taken over at the start, and removed once it is replaced.

use super::*;

/// How long nf_tables may take to let go of sets, on a busy node, after the rules that asked them were removed.
const LET_GO: Duration = Duration::from_secs(10);

/// What kube-proxy has left.
pub(super) struct Predecessor {
    leftovers: Leftovers,
    /// When it can be removed, as soon as all that is to take its place is there.
    due: Instant,
    /// Whether it waits for rules that are gone to let go of the sets that they asked.
    waits: bool,
}

impl Reconciler {
    /// Looks whether kube-proxy was here before, and makes those of its virtual servers ours that none of the sets lists which we have in
    /// common.
    pub(super) fn take_over(&mut self, observed: &mut State) {
        let found = match self.kernel.find_kube_proxy() {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "cannot look for what kube-proxy has left; it stays");
                return;
            }
        };
        match found.mode() {
            Mode::None => {}
            Mode::Iptables => warn!("{OTHER_MODE}"),
            Mode::Ipvs => {
                info!("taking over from kube-proxy in IPVS mode");
                let plan = taking_over(&found, observed);
                let report = self.kernel.apply(&plan);
                report.apply_to(&plan, observed);
                match report.failures.first() {
                    None => self.predecessor = Some(Predecessor { leftovers: found, due: Instant::now(), waits: false }),
                    Some(Failure { step, error }) => {
                        warn!(%step, %error, "cannot take over node ports; what kube-proxy has left stays");
                    }
                }
            }
        }
    }

    /// Removes what kube-proxy has left, once all that is to take its place is there.
    pub(super) fn succeed(&mut self) {
        let (now, complete) = (Instant::now(), self.complete);
        let replaced = complete && self.observed.as_ref().is_some_and(|observed| observed.rules == self.rules);
        let Some(mut predecessor) = self.predecessor.take_if(|predecessor| replaced && predecessor.due <= now) else { return };
        match self.kernel.remove_kube_proxy(&mut predecessor.leftovers) {
            Ok(()) => info!("removed what kube-proxy has left: its packet rules, and the sets that only they asked"),
            // Once: after that it is others who ask them.
            Err(error) if error.is_in_use() && !predecessor.waits => {
                debug!(%error, "not all that kube-proxy has left can be removed yet");
                self.audits.no_later_than(now + LET_GO);
                self.predecessor = Some(Predecessor { due: now + LET_GO, waits: true, ..predecessor });
            }
            Err(error) => warn!(%error, "cannot remove all that kube-proxy has left; it is not needed and does no harm"),
        }
    }
}
