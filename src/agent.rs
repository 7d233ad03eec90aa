//! The asynchronous heart of the agent: what the sources tell goes into the index, and what that changes goes to the reconciler.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use desired::{Config, Fragment, Index, NodeFacts, Place, Priority, RuleOptions, ServiceName};
use model::Scheduler;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::changes::{self, Changes};
use crate::control::{AskAgent, Endpoint, Endpoints};
use crate::eligibility::Eligibility;
use crate::freshness::{Freshness, Saved};
use crate::health_check::HealthChecks;
use crate::listeners::Sockets;
use crate::local_policies::LocalPolicies;
use crate::mailbox::{Mailbox, NodeSettings};
use crate::metrics::{Metrics, Phase};
use crate::news::{Found, News};
use crate::node::Network;
use crate::register::{Origin, Register, Subject};
use crate::relay::Relays;
use crate::saved::{Keeper, Kept};
use crate::source::{Event, Kind, Object, decoding, indexing};

/// Follows the sources until told to stop.
pub(crate) struct Agent {
    index: Index,
    options: RuleOptions,
    mailbox: Mailbox,
    metrics: Metrics,
    /// What the reconciler has not been told.
    changes: Changes,
    started: SystemTime,
    /// The kinds that have been listed completely. Nothing is sent to the reconciler before all have been.
    listed: BTreeSet<Kind>,
    /// What was last said of the node, and what followed from which facts.
    node: Option<(NodeFacts, NodeSettings)>,
    /// Whether the reconciler has been told that it knows everything.
    complete: bool,
    register: Register,
    local_policies: LocalPolicies,
    /// What the reconciler finds out.
    news: News,
    /// How often a source was in trouble.
    troubles: usize,
    /// What this process serves itself, unless there is only one synchronisation.
    servers: Option<Servers>,
    /// What saves what is told, if that is wanted.
    memory: Option<Memory>,
    /// Whether what was saved is served.
    on_saved: bool,
    /// Whom to tell what the Node object says of traffic.
    eligibility: watch::Sender<Eligibility>,
}

/// What was told before, and what is to be remembered of what is told.
pub(crate) struct Memory {
    pub(crate) keeper: Keeper,
    pub(crate) kept: Option<Kept>,
    pub(crate) freshness: Freshness,
    /// How long the API server may take to tell everything before what was saved is served.
    pub(crate) patience: Duration,
}

/// Where an API server is well it takes less than a second for thousands of Services.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Where what the agent follows comes from.
pub(crate) struct Sources {
    /// The source of objects.
    pub(crate) events: mpsc::Receiver<Event>,
    /// The addresses of this node's interfaces, and its gateways.
    pub(crate) network: watch::Receiver<Network>,
    /// The sockets on which this node's processes listen.
    pub(crate) sockets: Sockets,
    /// The schedulers that are asked for and that the kernel lacks.
    pub(crate) lacking_schedulers: watch::Receiver<BTreeSet<Scheduler>>,
    /// What the operator decides, as it changes.
    pub(crate) config: watch::Receiver<Config>,
    /// What is asked on the control socket.
    pub(crate) asks: mpsc::Receiver<AskAgent>,
}

/// What this process serves itself, where the kernel cannot.
pub(crate) struct Servers {
    /// Health check node ports.
    pub(crate) checks: HealthChecks,
    /// Node ports on loopback addresses, if they are wanted.
    pub(crate) relays: Option<Relays>,
}

impl Agent {
    pub(crate) fn new(
        config: Config,
        options: RuleOptions,
        mailbox: Mailbox,
        register: Register,
        news: News,
        metrics: Metrics,
        servers: Option<Servers>,
    ) -> Self {
        for kind in Kind::ALL {
            metrics.source_synced.with_label_values(&[kind.resource()]).set(0);
        }
        Self {
            local_policies: LocalPolicies::new(metrics.no_local_endpoints.clone(), config.families.iter().copied()),
            index: Index::new(config),
            options,
            mailbox,
            metrics,
            changes: Changes::default(),
            started: SystemTime::now(),
            listed: BTreeSet::new(),
            node: None,
            complete: false,
            register,
            news,
            troubles: 0,
            servers,
            memory: None,
            on_saved: false,
            eligibility: watch::Sender::new(Eligibility::Unknown),
        }
    }

    /// The same agent, which tells what the Node object says of traffic.
    pub(crate) fn telling(mut self, eligibility: watch::Sender<Eligibility>) -> Self {
        self.eligibility = eligibility;
        self
    }

    /// The same agent, with a memory. What it remembers is in the index from now on, as if it had been listed, so that the first complete listings
    /// replace it.
    pub(crate) fn remembering(mut self, mut memory: Memory) -> Self {
        if let Some(kept) = &mut memory.kept {
            let objects = std::mem::take(&mut kept.objects);
            let begun = Kind::ALL.into_iter().map(Event::Listing);
            let ended = Kind::ALL.into_iter().map(Event::Listed);
            for event in begun.chain(objects.into_iter().map(Event::Applied)).chain(ended) {
                self.apply(&event);
            }
        }
        self.memory = Some(memory);
        self
    }

    /// Whether anything could not be read, or served as it is written, as far as that is known by now.
    pub(crate) fn has_complaints(&mut self) -> bool {
        let news = self.news.take();
        self.note(news);
        self.troubles > 0 || !self.register.is_empty()
    }

    /// Follows `sources`; returns when the source of objects has ended.
    pub(crate) async fn follow(&mut self, sources: &mut Sources) {
        let Sources { events, network, sockets, lacking_schedulers, config, asks } = sources;
        self.set_network(network.borrow_and_update().clone());
        self.index.set_listeners(sockets.listeners.borrow_and_update().clone());
        let news = self.news.clone();
        let patience = self.memory.as_ref().map(|memory| memory.patience);
        let lost_patience = sleep(patience.unwrap_or_default());
        tokio::pin!(lost_patience);
        let mut patient = patience.is_some();
        loop {
            let mut begun = None;
            tokio::select! {
                found = news.wait() => self.note(found),
                Some(ask) = asks.recv() => {
                    self.answer(ask);
                    continue;
                }
                () = &mut lost_patience, if patient => {
                    patient = false;
                    self.serve_saved();
                }
                event = events.recv() => match event {
                    Some(event) => {
                        begun = Some(Instant::now());
                        self.take(event);
                    }
                    None => return,
                },
                changed = network.changed() => {
                    if changed.is_err() {
                        // The thread that follows addresses is gone, and with it the way to notice the next change.
                        warn!("this node's addresses are no longer followed; restart to pick up changes");
                        return;
                    }
                    self.set_network(network.borrow_and_update().clone());
                }
                Ok(()) = sockets.listeners.changed() => self.index.set_listeners(sockets.listeners.borrow_and_update().clone()),
                // The reconciler outlives this task; when it does not, the process ends.
                Ok(()) = lacking_schedulers.changed() => {
                    self.index.set_lacking_schedulers(lacking_schedulers.borrow_and_update().clone());
                }
                Ok(()) = config.changed() => {
                    self.index.set_config(config.borrow_and_update().clone());
                    // The packet rules follow from it too.
                    self.node = None;
                }
            }
            let begun = begun.unwrap_or_else(Instant::now);
            // What else has come by now makes one letter with it.
            while let Ok(event) = events.try_recv() {
                self.take(event);
            }
            if self.index.take_new_node_ports() {
                sockets.read_again();
            }
            self.send();
            self.metrics.count_phase(Phase::Desired, begun.elapsed());
            self.metrics.count_phase(Phase::Decode, decoding::take_time());
        }
    }

    fn set_network(&mut self, Network { addresses, gateways }: Network) {
        self.index.set_interfaces(addresses);
        self.index.set_gateways(gateways);
    }

    fn take(&mut self, event: Event) {
        self.apply(&event);
        match &event {
            Event::Listing(_) => {}
            Event::Applied(object) | Event::Deleted(object) => self.count(object),
            Event::Listed(kind) => {
                self.metrics.source_synced.with_label_values(&[kind.resource()]).set(1);
                if self.listed.insert(*kind) {
                    info!(kind = kind.resource(), "listed");
                }
            }
            Event::Trouble { kind, message } => {
                let resource = kind.map_or("all", Kind::resource);
                warn!(kind = resource, "{message}");
                self.metrics.trouble.with_label_values(&[resource]).inc();
                self.troubles += 1;
            }
        }
        if let Some(Memory { keeper, .. }) = &self.memory {
            keeper.note(event);
        }
    }

    /// Counts the change of an object.
    fn count(&mut self, object: &Object) {
        match object {
            Object::Service(_) => {
                self.metrics.upstream.count_service();
                self.changes.add_service();
            }
            Object::EndpointSlice(slice) => {
                if self.metrics.upstream.count_slice(changes::family(slice)) {
                    self.changes.add_slice();
                }
            }
            Object::Node(_) => {}
        }
    }

    fn apply(&mut self, event: &Event) {
        if let Event::Applied(Object::Node(node)) = event
            && node.metadata.name.as_deref() == Some(&*self.index.config().node_name)
        {
            let eligibility = Eligibility::of(node);
            self.eligibility.send_if_modified(|known| std::mem::replace(known, eligibility.clone()) != eligibility);
        }
        let taken = indexing::take(&mut self.index, event);
        match (event, taken) {
            (Event::Applied(Object::EndpointSlice(slice)), Ok(true)) => self.changes.note_trigger(slice, self.started),
            (Event::Deleted(Object::EndpointSlice(slice)), _) => self.changes.forget_triggers(slice),
            (_, Ok(_)) => {}
            (_, Err(problem)) => warn!(%problem, "an object is left out"),
        }
    }

    fn has_listed_all(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// Serves what was saved, if there is something and the API server has not told everything.
    fn serve_saved(&mut self) {
        let has_listed_all = self.has_listed_all();
        let Some(Memory { kept: Some(Kept { at, .. }), freshness, .. }) = self.memory.as_ref().filter(|_| !has_listed_all) else {
            return;
        };
        let saved = Saved { at: *at };
        warn!("{saved}; nothing is removed until everything has been listed");
        freshness.note_saved(Some(saved));
        self.metrics.serves_saved.set(1);
        self.on_saved = true;
    }

    fn leave_saved(&mut self) {
        info!("everything has been listed; what was saved is not needed any more");
        if let Some(memory) = &self.memory {
            memory.freshness.note_saved(None);
        }
        self.metrics.serves_saved.set(0);
        self.on_saved = false;
    }

    /// Tells the reconciler what has changed, once everything has been listed or what was saved has to do.
    fn send(&mut self) {
        let listed = self.has_listed_all();
        if !(listed || self.on_saved) {
            self.send_arriving();
            return;
        }
        if listed && self.on_saved {
            self.leave_saved();
        }
        let node = self.changed_node();
        let node_changed = node.is_some();
        let dirty = self.index.take_dirty();
        let changes = std::mem::take(&mut self.changes);
        if dirty.is_empty() && !node_changed && self.complete == listed {
            // They make no difference to the kernel.
            changes.finish(false, &self.metrics.upstream);
            return;
        }
        self.metrics.upstream.note_queued();
        let fragments = self.fragments(dirty);
        let (urgent, rest): (Vec<_>, Vec<_>) =
            fragments.into_iter().partition(|(name, _)| self.index.priority(name) != Priority::Rest);
        self.mailbox.post(|letter| {
            letter.urgent.extend(urgent);
            letter.services.extend(rest);
            if node.is_some() {
                letter.node = node;
            }
            letter.complete = listed;
            letter.changes.extend(changes);
        });
        self.complete = listed;
    }

    /// Has the reconciler take in what can be told while Services and slices are still listed: what is left to do when the last one has come is the kernel's
    /// part. Where there is something saved, that is served first.
    fn send_arriving(&mut self) {
        // The node's addresses and zone are in what every Service comes to.
        let known = self.listed.contains(&Kind::Node);
        if !known || self.memory.as_ref().is_some_and(|memory| memory.kept.is_some()) {
            return;
        }
        let arriving = self.index.take_arriving();
        if !arriving.is_empty() {
            let fragments = self.fragments(arriving);
            self.mailbox.post(|letter| letter.arriving.extend(fragments));
        }
    }

    /// What these Services want of the node now, with everybody told here who has to know.
    fn fragments(&mut self, names: impl IntoIterator<Item = ServiceName>) -> Vec<(ServiceName, Option<Fragment>)> {
        let fragment_of = |name| {
            let fragment = self.index.fragment(&name);
            (name, fragment)
        };
        let fragments: Vec<_> = names.into_iter().map(fragment_of).collect();
        for (name, fragment) in &fragments {
            let problems = fragment.as_ref().map_or(&[][..], Fragment::problems);
            self.register.set(Subject::Service(name.clone()), Origin::Objects, problems);
            self.local_policies.set(name, fragment.as_ref().map(Fragment::without_local_endpoints).unwrap_or_default());
            if let Some(Servers { checks, relays }) = &mut self.servers {
                checks.set(name, fragment.as_ref());
                if let Some(relays) = relays {
                    relays.set(name, fragment.as_ref());
                }
            }
        }
        fragments
    }

    /// What is to be said of the node, if it is not what was said last. Most changes are about Services, and what follows from the node is not
    /// worked out again for each of them.
    fn changed_node(&mut self) -> Option<NodeSettings> {
        self.register.set(Subject::Node, Origin::Objects, self.index.node_problems());
        let (config, facts) = (self.index.config(), self.index.facts());
        if self.node.as_ref().is_some_and(|(known, _)| known == facts) {
            return None;
        }
        let settings = NodeSettings::of(&self.index, self.options);
        if self.node.is_none() {
            for family in config.families.iter().filter(|family| !settings.sources.contains_key(family)) {
                warn!(%family, "no address of the Node object is on an interface of this node; it serves no node ports on its primary address");
            }
        }
        let changed = self.node.as_ref().is_none_or(|(_, said)| *said != settings);
        self.node = Some((facts.clone(), settings.clone()));
        changed.then_some(settings)
    }

    fn answer(&self, ask: AskAgent) {
        // Whoever asked may have gone.
        match ask {
            AskAgent::Endpoints(ask) => _ = ask.send(self.endpoints()),
        }
    }

    fn endpoints(&self) -> Endpoints {
        let endpoint = |place: Place<'_>| Endpoint { address: place.address, pod: place.pod, node: place.node.map(str::to_owned) };
        let of_service = |name: &ServiceName| (name.to_string(), self.index.places(name).map(endpoint).collect());
        Endpoints { services: self.index.services().map(of_service).collect() }
    }

    fn note(&mut self, found: Found) {
        for ((service, origin), problems) in found {
            self.register.set(Subject::Service(service), origin, &problems);
        }
    }
}

#[cfg(test)]
mod tests;
