//! What an agent that starts on this node now would find, and what it would make of it. Nothing is changed by looking.
//!
//! It goes the same way as an agent: the same sources, the same index and ledger, the same adoption of what is there. What differs is that it ends
//! where an agent begins to carry out.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context;
use desired::{Config, Fragment, Index, Ledger, RuleOptions};
use kernel::sysctl::{self, Outcome, Sysctl};
use kernel::{Kernel, Leftovers, Mode, Timeouts};
use model::{Family, State};
use plan::{Order, Plan, plan};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::alignment::{Whole, taking_over};
use crate::cli::{KubeProxyLeftovers, Proxy, Run};
use crate::drain::Drains;
use crate::exit::{Ending, Exit, kernel_ending};
use crate::mailbox::NodeSettings;
use crate::metrics::{Metrics, Requests};
use crate::reconciler::Tuning;
use crate::run::{self, Followed};
use crate::schedulers::Schedulers;
use crate::source::{Event, Kind, Object, indexing, unknown_node};
use crate::{listeners, node};

/// What rules of kube-proxy's other mode for iptables mean, whoever sees them.
pub(crate) const OTHER_MODE: &str = "kube-proxy in iptables mode has packet rules on this node, which may translate what is meant for IPVS; \
     stop it and run `kube-proxy --cleanup`";

/// Which node is looked at, against which objects, with which decisions: what `kube-ipvs run` would be told.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) run: &'a Run,
}

/// What the sources tell at one time.
pub(crate) struct Objects {
    pub(crate) index: Index,
    /// What could not be read, or has no name to know it by.
    pub(crate) troubles: BTreeSet<String>,
}

/// What was found, and what would be made of it.
pub(crate) struct Survey {
    pub(crate) index: Index,
    pub(crate) ledger: Ledger,
    pub(crate) kernel: Kernel,
    /// What the kernel holds.
    pub(crate) observed: State,
    /// What it is to hold.
    pub(crate) desired: State,
    /// What makes virtual servers of kube-proxy ours, before anything else.
    pub(crate) adoption: Plan,
    /// What is left to do after that.
    pub(crate) plan: Plan,
    /// What kube-proxy has left, and is removed when all is served.
    pub(crate) leftovers: Leftovers,
    pub(crate) settings: Vec<Setting>,
    /// What of the objects is not served as it is written, in sentences.
    pub(crate) problems: BTreeSet<String>,
}

/// A setting of the kernel that an agent sets.
#[derive(Debug)]
pub(crate) enum Setting {
    Sysctl {
        sysctl: Sysctl,
        from: String,
    },
    /// For how long idle connections are kept.
    Timeouts {
        from: Timeouts,
        to: Timeouts,
    },
}

impl Subject<'_> {
    /// The operator's decisions, and this node's name.
    ///
    /// # Errors
    /// When decisions exclude each other, or the node has no name.
    pub(crate) fn config(self) -> anyhow::Result<Config> {
        run::config(self.run, &node::name(self.run.node_name.as_deref())?)
    }

    /// Reads all objects once, and this node's network.
    ///
    /// # Errors
    /// When the source makes no sense or cannot be read, or the node's addresses or sockets cannot. Unknown is not absent.
    pub(crate) fn objects(self, config: Config) -> anyhow::Result<Objects> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let mut objects = Objects { index: Index::new(config), troubles: BTreeSet::new() };
        LocalSet::new().block_on(&runtime, self.listed(&mut objects))?;
        let network = node::network()?;
        objects.index.set_interfaces(network.addresses);
        objects.index.set_gateways(network.gateways);
        objects.index.set_listeners(listeners::read().context("cannot read what this node's processes listen on")?);
        Ok(objects)
    }

    /// Takes in all that the source lists.
    async fn listed(self, objects: &mut Objects) -> anyhow::Result<()> {
        let (sender, mut events) = mpsc::channel(run::EVENTS);
        let node_name = objects.index.config().node_name.to_string();
        let Followed { source, client, .. } = run::source(self.run, &node_name, sender, &Requests::new()?).await?;
        let mut listed = BTreeSet::new();
        let mut has_own_node = false;
        let taking = async {
            while let Some(event) = events.recv().await {
                match &event {
                    Event::Trouble { kind: Some(kind), message } if !listed.contains(kind) => {
                        return Err(Ending::error(Exit::Failure, message.trim_end_matches("; trying again")));
                    }
                    Event::Trouble { message, .. } => _ = objects.troubles.insert(message.clone()),
                    Event::Applied(Object::Node(node)) => {
                        has_own_node |= node.metadata.name.as_deref() == Some(node_name.as_str());
                    }
                    Event::Listed(kind) => _ = listed.insert(*kind),
                    _ => {}
                }
                if let Err(problem) = indexing::take(&mut objects.index, &event) {
                    objects.troubles.insert(problem.to_string());
                }
                if listed.len() == Kind::ALL.len() {
                    return Ok(());
                }
            }
            Err(Ending::error(Exit::Failure, "the source of objects has ended"))
        };
        tokio::select! {
            taken = taking => taken?,
            () = source => return Err(Ending::error(Exit::Failure, "the source of objects has ended")),
        }
        // Manifests need not have a Node at all.
        if client.is_some() && !has_own_node {
            objects.troubles.insert(unknown_node(&node_name));
        }
        Ok(())
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// When objects or the kernel cannot be read in full, with the exit code that `run` would have.
    pub(crate) fn survey(self) -> anyhow::Result<Survey> {
        let ending = |error: kernel::Error| kernel_ending(&error);
        let Objects { mut index, troubles: mut problems } = self.objects(self.config()?)?;
        let mut kernel = Kernel::open(&index.config().families).map_err(ending)?;
        let observed = kernel.observe().map_err(ending)?;
        let leftovers = kernel.find_kube_proxy().map_err(ending)?;
        let mut held = observed.clone();
        let takes_over = self.run.proxy.kube_proxy_leftovers == KubeProxyLeftovers::Remove && leftovers.mode() == Mode::Ipvs;
        let adoption = if takes_over { taking_over(&leftovers, &observed) } else { Plan::default() };
        adoption.steps().for_each(|step| step.apply_to(&mut held));

        let mut ledger = Ledger::new(index.config());
        ledger.adopt(&held);
        let random_fully = kernel.claims_random_fully().map_err(ending)?;
        let NodeSettings { rules, sources } = NodeSettings::of(&index, RuleOptions { random_fully });
        for family in Family::ALL {
            ledger.set_source(family, sources.get(&family).copied());
        }
        for service in index.take_dirty() {
            ledger.set(&service, index.fragment(&service));
        }

        let (lacking, lacking_schedulers) = watch::channel(BTreeSet::new());
        let metrics = Metrics::of(index.config().families.clone(), Requests::new()?).context("cannot register metrics")?;
        let mut schedulers = Schedulers::new(index.config().scheduler, lacking, metrics);
        let tuning = run::tuning(self.run);
        let mut drains = Drains::new(tuning.drain);
        let whole = Whole { ledger: &ledger, rules: &rules, excluded: &tuning.excluded };
        let offers = |scheduler| kernel.offers(scheduler);
        let desired = whole.desired(&held, &mut schedulers, offers, &mut drains, false, Instant::now());
        let order = Order::of_node(&index.config().node_name);
        let plan = plan(&desired, &held, &whole.ownership()).in_order(order, &desired);

        if leftovers.mode() == Mode::Iptables {
            problems.insert(OTHER_MODE.to_owned());
        }
        index.set_lacking_schedulers(lacking_schedulers.borrow().clone());
        problems.extend(index.node_problems().iter().map(ToString::to_string));
        for service in index.services() {
            let fragment = index.fragment(service);
            problems.extend(fragment.iter().flat_map(Fragment::problems).map(ToString::to_string));
        }
        problems.extend(ledger.take_problems().iter().flat_map(|(_, problems)| problems.iter()).map(ToString::to_string));
        let settings = settings(&mut kernel, &tuning).map_err(ending)?;
        Ok(Survey { index, ledger, kernel, observed, desired, adoption, plan, leftovers, settings, problems })
    }
}

impl Survey {
    /// Whether an agent would remove what kube-proxy has left.
    pub(crate) fn removes_leftovers(&self, proxy: &Proxy) -> bool {
        let removes = proxy.kube_proxy_leftovers == KubeProxyLeftovers::Remove && self.leftovers.mode() == Mode::Ipvs;
        removes && !self.leftovers.is_empty()
    }
}

fn settings(kernel: &mut Kernel, tuning: &Tuning) -> Result<Vec<Setting>, kernel::Error> {
    let mut settings = Vec::new();
    for sysctl in sysctl::NEEDED.iter().chain(&tuning.sysctls) {
        match sysctl.check() {
            Outcome::Wrong { is, .. } if sysctl.is_settable() => {
                settings.push(Setting::Sysctl { sysctl: sysctl.clone(), from: is });
            }
            _ => {}
        }
    }
    settings.extend(kernel.differing_timeouts(tuning.timeouts)?.map(|(from, to)| Setting::Timeouts { from, to }));
    Ok(settings)
}
