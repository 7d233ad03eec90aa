//! What the reconciler tells others of what it wants: programs that name virtual servers after Services.

use super::*;

impl Reconciler {
    pub(super) fn owners(&self) -> Owners {
        self.ledger.keys().filter_map(|key| self.ledger.owner(&key).map(|owner| Owned::new(key, owner))).collect()
    }

    /// Answers what is asked on the control socket.
    pub(super) fn answer(&mut self, ask: AskReconciler) {
        // Whoever asked may have gone.
        match ask {
            AskReconciler::VirtualServers(ask) => _ = ask.send(self.desired_table()),
            AskReconciler::Drains(ask) => _ = ask.send(self.drains.document(Instant::now())),
        }
    }

    fn desired_table(&mut self) -> DesiredTable {
        let scope = Scope { virtual_servers: self.ledger.keys().collect(), ..Scope::default() };
        let mut desired = self.ledger.desired(&scope);
        self.schedulers.serve(&mut desired, |scheduler| self.kernel.offers(scheduler));
        let virtual_servers = desired.virtual_servers.iter().filter_map(|(key, server)| {
            let (owner, frontend) = (self.ledger.owner(key)?, self.ledger.frontend(key)?);
            Some(DesiredVirtualServer::new(*key, frontend, &owner.service.to_string(), owner.port, server))
        });
        DesiredTable {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.settings.config.node_name.to_string(),
            stage: match (self.complete, self.on_saved) {
                (true, _) => Stage::Complete,
                (false, true) => Stage::OnSavedState,
                (false, false) => Stage::Starting,
            },
            virtual_servers: virtual_servers.collect(),
        }
    }
}
