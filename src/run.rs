//! `kube-ipvs run`: puts the parts together, and takes them apart in order.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;

use anyhow::Context;
use desired::{
    Config, DetectLocal, InterfaceName, MarkBit, Masquerade, NodePortAddresses, OccupiedNodePorts, PortRange, RuleOptions,
};
use kernel::sysctl;
use kernel::{Kernel, Timeouts, supported_families};
use kube::Client;
use model::Via;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tracing::{debug, info, warn};

use crate::agent::{Agent, Memory, PATIENCE, Servers, Sources};
use crate::cleanup::KubeProxy;
use crate::cli::{
    Bind, Cleanup, DetectLocalMode, KubeProxyLeftovers, NodePortAddress, Occupied, Proxy, Run, VipBinding, VipPing, WatchNodes,
};
use crate::control::Desk;
use crate::drain::Limits;
use crate::eligibility::Eligibility;
use crate::events::{Events, Happening};
use crate::exit::{Ending, Exit, kernel_ending};
use crate::freshness::Freshness;
use crate::health::{Health, STUCK};
use crate::health_check::HealthChecks;
use crate::http;
use crate::listeners::Sockets;
use crate::logs::Logs;
use crate::mailbox::Mailbox;
use crate::metrics::{Metrics, Requests};
use crate::news::News;
use crate::pages::Pages;
use crate::probes::Probes;
use crate::reconciler::audits::Pace;
use crate::reconciler::{self, Running, Settings, Tuning};
use crate::register::Register;
use crate::relay::Relays;
use crate::reliance::Reliance;
use crate::saved::Keeper;
use crate::scrape::Scraped;
use crate::settings::{self, Effective, Given, Origin};
use crate::source::Event;
use crate::source::api::{self, ApiSource, connect_to};
use crate::source::manifests::ManifestSource;
use crate::{cleanup, events, init, node, node_events, node_sysctls, removals, sysctls};

/// Events that may wait before whoever reads the API server has to.
pub(crate) const EVENTS: usize = 1024;
/// Questions on the control socket that may wait before whoever asks one more is sent away.
const QUESTIONS: usize = 16;

/// Runs until a signal comes or, with `--once`, until the first synchronisation has been tried.
///
/// # Errors
/// When something is missing that nothing works without.
pub(crate) fn start(given: &Given) -> anyhow::Result<Option<Exit>> {
    let effective = given.effective()?;
    let flags = &effective.run.kube_proxy;
    if flags.init_only {
        return init::run(&effective.run);
    }
    if flags.cleanup {
        return cleanup::run(&Cleanup::of(&effective.run)).map(|()| None);
    }
    if let Some(path) = &flags.write_config_to {
        return settings::write(&effective, path).map(|()| None);
    }
    let logs = Logs::to_stderr(effective.run.log_format, effective.log_level()?)?;
    effective.log();
    run(given, effective, logs)
}

fn run(given: &Given, effective: Effective, logs: Logs) -> anyhow::Result<Option<Exit>> {
    let effective = Rc::new(effective);
    let arguments = &effective.run;
    let node_name = node::name(arguments.node_name.as_deref())?;
    let config = config(arguments, &node_name)?;
    if config.masquerade.detect_local == DetectLocal::None {
        warn!("no --cluster-cidr: callers from outside the cluster are not masqueraded, and answers to them may get lost");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let tasks = LocalSet::new();
    let (sender, events) = mpsc::channel(EVENTS);
    // Before the kernel, so that a mistake on the command line is not hidden behind what the node lacks.
    let requests = Requests::new().context("cannot register metrics")?;
    let followed = tasks.block_on(&runtime, source(arguments, &node_name, sender, &requests))?;
    // A single synchronisation says by its code how it ended.
    let client = followed.client.clone().filter(|_| !arguments.once);
    let prepared = Prepared { node_name: node_name.clone(), config, followed, events, requests, runtime: &runtime, tasks: &tasks };
    let outcome = proxy(given, &effective, logs, prepared);
    if let (Err(error), Some(client)) = (&outcome, client) {
        tasks.block_on(&runtime, events::last_words(client, node_name, format!("the agent has ended: {error:#}")));
    }
    outcome
}

/// What there is before the kernel is touched.
struct Prepared<'a> {
    runtime: &'a Runtime,
    tasks: &'a LocalSet,
    node_name: String,
    config: Config,
    followed: Followed,
    events: mpsc::Receiver<Event>,
    requests: Requests,
}

/// Serves until something ends it.
fn proxy(given: &Given, effective: &Rc<Effective>, logs: Logs, prepared: Prepared<'_>) -> anyhow::Result<Option<Exit>> {
    let Prepared { runtime, tasks, node_name, config, followed, events, requests } = prepared;
    let Followed { source, client, freshness } = followed;
    let arguments = &effective.run;
    let kernel = Kernel::open(&config.families).map_err(|error| kernel_ending(&error))?;
    let random_fully = kernel.has_random_fully().map_err(|error| kernel_ending(&error))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = node_name,
        families = ?config.families,
        iptables = ?kernel.flavour(),
        random_fully,
        scheduler = %config.scheduler,
        "starting"
    );
    set_sysctls(&config, &arguments.kube_proxy);
    set_oom_score(effective);
    check_input(&kernel, &config);

    let metrics = Metrics::of(config.families.clone(), requests).context("cannot register metrics")?;
    let mailbox = Mailbox::default();
    let network = node::follow(mailbox.clone())?;
    removals::follow(&kernel, &mailbox)?;
    let sockets = Sockets::follow(arguments.audit_period)?;
    let settings = Settings {
        config: config.clone(),
        tuning: tuning(arguments),
        take_over: arguments.proxy.kube_proxy_leftovers == KubeProxyLeftovers::Remove,
        stuck_after: STUCK,
    };
    let news = News::default();
    let Running { health, lacking_schedulers, thread } =
        reconciler::spawn(kernel, settings, mailbox.clone(), news.clone(), metrics.clone())?;

    // A single synchronisation says what it has to say in its log, and does not wait for Events to be written.
    let (families, is_from_api) = (config.families.clone(), client.is_some());
    let (reports, writer) = client
        .filter(|_| !arguments.once)
        .map(|client| events::channel(client, node_name.clone(), events::Tuning::default(), metrics.clone()))
        .unzip();
    let (limit_staleness, max_staleness) = watch::channel(arguments.max_staleness);
    let reliance = Reliance { health: health.clone(), freshness: freshness.clone(), max_staleness };
    let servers = (!arguments.once).then(|| Servers {
        checks: HealthChecks::new(reliance.clone(), reports.clone()),
        relays: arguments.proxy.localhost_nodeports.then(Relays::default),
    });
    let register = Register::new(metrics.clone(), reports.clone());
    let (decide, decided) = watch::channel(config.clone());
    let (tell, told) = watch::channel(effective.clone());
    // Files need not have a Node that says something.
    let (say, eligibility) = watch::channel(if is_from_api { Eligibility::Unknown } else { Eligibility::Eligible });
    let mut agent =
        Agent::new(config, RuleOptions { random_fully }, mailbox.clone(), register, news, metrics.clone(), servers).telling(say);
    if let (Some(path), Some(freshness)) = (&arguments.state_dir, &freshness) {
        let (keeper, kept) = Keeper::open(path, selection(arguments, &node_name), metrics.clone())?;
        agent = agent.remembering(Memory { keeper, kept, freshness: freshness.clone(), patience: PATIENCE });
    }
    let apply = {
        let mailbox = mailbox.clone();
        move |effective: &Rc<Effective>| {
            let config = self::config(&effective.run, &node_name)?;
            logs.set(effective.log_level()?)?;
            mailbox.post(|letter| letter.tuning = Some(tuning(&effective.run)));
            decide.send_if_modified(|known| std::mem::replace(known, config.clone()) != config);
            limit_staleness.send_replace(effective.run.max_staleness);
            tell.send_replace(effective.clone());
            Ok(())
        }
    };
    let outcome = tasks.block_on(runtime, async {
        writer.map(|writer| spawn_local(writer.run()));
        if let Some(reports) = &reports {
            let version = env!("CARGO_PKG_VERSION");
            reports.tell(Happening::Starting, format!("kube-ipvs {version} serves Services on this node"));
            let signs = node_events::Signs { reliance: reliance.clone(), metrics: metrics.clone() };
            spawn_local(node_events::follow(signs, reports.clone()));
        }
        let probes = Probes { reliance, families, eligibility };
        let (asker, asks) = mpsc::channel(QUESTIONS);
        let desk = Desk { reconciler: mailbox.clone(), agent: asker };
        serve(arguments, desk, &metrics, probes, Pages { effective: told }, reports.as_ref())?;
        let count = {
            let metrics = metrics.clone();
            move |success| metrics.count_reload(success)
        };
        spawn_local(settings::follow(given.clone(), effective.clone(), apply, count));
        follow(
            arguments.once,
            agent,
            source,
            Sources { events, network, sockets, lacking_schedulers, config: decided, asks },
            health,
        )
        .await
    });
    mailbox.post(|letter| letter.stop = true);
    if thread.join().is_err() {
        return Err(Ending::error(Exit::Failure, "the reconciler has failed; what the kernel holds keeps serving"));
    }
    match outcome {
        // Only now that the reconciler has ended: it would repair what goes.
        Ok(None) if arguments.cleanup_on_exit => {
            let removed = cleanup::clean_up(&arguments.proxy.exclude_cidrs, KubeProxy::Absent)?;
            info!("{removed}");
        }
        Ok(None) if !arguments.once => info!("what the kernel holds keeps serving"),
        _ => {}
    }
    outcome
}

type Source = Pin<Box<dyn Future<Output = ()>>>;

/// Where the objects come from.
pub(crate) struct Followed {
    /// Tells what there is, and then every change, for as long as it is polled.
    pub(crate) source: Source,
    /// Only where that is an API server.
    pub(crate) client: Option<Client>,
    freshness: Option<Freshness>,
}

/// Prepares to follow the objects for the node called `node_name`.
///
/// # Errors
/// When what the command line says of the source makes no sense.
pub(crate) async fn source(
    arguments: &Run,
    node_name: &str,
    events: mpsc::Sender<Event>,
    requests: &Requests,
) -> anyhow::Result<Followed> {
    let invalid = |error: anyhow::Error| Ending::error(Exit::Usage, format!("{error:#}"));
    if let Some(path) = &arguments.source.manifests {
        let source =
            ManifestSource::open(path, node_name.to_owned(), arguments.proxy.service_proxy_name.clone()).map_err(invalid)?;
        info!(path = %path.display(), "following manifests");
        return Ok(Followed { source: Box::pin(source.run(events)), client: None, freshness: None });
    }
    let freshness = Freshness::new();
    let client = connect_to(
        arguments.source.kubeconfig.as_deref(),
        arguments.kube_proxy.master.as_ref(),
        &arguments.api_endpoints,
        &freshness,
        requests,
    )
    .await
    .map_err(invalid)?;
    let tuning = api::Tuning {
        all_nodes: arguments.proxy.watch_nodes == WatchNodes::All,
        proxy_name: arguments.proxy.service_proxy_name.clone(),
        ..api::Tuning::default()
    };
    let source = ApiSource::new(client.clone(), node_name.to_owned(), tuning, freshness.clone());
    Ok(Followed { source: Box::pin(async move { source.run(events).await }), client: Some(client), freshness: Some(freshness) })
}

/// Which objects are saved: those that this agent asks for.
fn selection(arguments: &Run, node_name: &str) -> String {
    let proxy = &arguments.proxy;
    json!({"node": node_name, "allNodes": proxy.watch_nodes == WatchNodes::All, "proxy": proxy.service_proxy_name}).to_string()
}

/// Starts the HTTP servers. A single synchronisation needs none.
fn serve(
    arguments: &Run,
    desk: Desk,
    metrics: &Metrics,
    probes: Probes,
    pages: Pages,
    reports: Option<&Events>,
) -> anyhow::Result<()> {
    if arguments.once {
        return Ok(());
    }
    let scraped = Scraped::new(arguments, &desk, metrics, &probes, pages);
    let flags = &arguments.kube_proxy;
    let report = |happening| {
        let reports = reports.cloned();
        move |note| {
            if let Some(reports) = reports {
                reports.tell(happening, note);
            }
        }
    };
    if let Some(address) = placed(arguments.healthz_bind_address, flags.healthz_port) {
        let listener = listener(address, "/healthz", flags.bind_address_hard_fail)?;
        let metrics = metrics.clone();
        spawn_local(http::serve(
            address,
            "health",
            listener,
            report(Happening::FailedToStartProxierHealthcheck),
            move |path, _| {
                let answer = probes.answer(&path);
                metrics.upstream.count_probe(&path, answer.status.as_u16());
                std::future::ready(answer)
            },
        ));
    }
    if let Some(address) = placed(arguments.metrics_bind_address, flags.metrics_port) {
        let listener = listener(address, "/metrics", flags.bind_address_hard_fail)?;
        let report = report(Happening::FailedToStartMetricServer);
        spawn_local(http::serve(address, "metrics", listener, report, move |path: String, _| scraped.clone().answer(path)));
    }
    if !arguments.control_socket.as_os_str().is_empty() {
        let listener = http::control_listener(&arguments.control_socket)?;
        spawn_local(http::serve_control(listener, move |path| desk.clone().answer(path)));
    }
    Ok(())
}

/// Where to listen, by the flag for the address and kube-proxy's older one for the port.
fn placed(Bind(address): Bind, port: Option<u16>) -> Option<SocketAddr> {
    match port {
        None => address,
        Some(0) => None,
        Some(port) => address.map(|address| SocketAddr::new(address.ip(), port)),
    }
}

/// The listener to begin with, if the agent is not to go on without it.
fn listener(address: SocketAddr, path: &str, hard_fail: bool) -> anyhow::Result<Option<TcpListener>> {
    let listener = hard_fail.then(|| http::listen(address)).transpose();
    listener.map_err(|error| {
        let sentence =
            format!("cannot serve {path} on {address}: {error}; with --bind-address-hard-fail the agent does not go on without");
        Ending::error(Exit::Failure, sentence)
    })
}

async fn follow(
    once: bool,
    mut agent: Agent,
    source: Source,
    mut sources: Sources,
    mut health: watch::Receiver<Health>,
) -> anyhow::Result<Option<Exit>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let tried = async {
        if once {
            let tried = health.wait_for(|health| health.synced_once || health.differing.is_some()).await;
            tried.map(|health| health.clone()).ok()
        } else {
            // The reconciler lives as long as this process.
            while health.changed().await.is_ok() {}
            None
        }
    };
    tokio::select! {
        () = agent.follow(&mut sources) => Err(Ending::error(Exit::Failure, "the source of objects has ended")),
        () = source => Err(Ending::error(Exit::Failure, "the source of objects has ended")),
        _ = terminate.recv() => {
            info!("stopped by SIGTERM");
            Ok(None)
        }
        _ = interrupt.recv() => {
            info!("stopped by SIGINT");
            Ok(None)
        }
        tried = tried => match tried {
            None => Err(Ending::error(Exit::Failure, "the reconciler has ended")),
            Some(Health { synced_once: false, differing: Some(differing), .. }) => Err(Ending::error(Exit::Failure, differing.reason)),
            Some(health) => {
                // Asked first, because it logs what the reconciler has just found out.
                let complete = !agent.has_complaints() && sources.lacking_schedulers.borrow().is_empty() && health.differing.is_none();
                Ok((!complete).then_some(Exit::Incomplete))
            }
        },
    }
}

/// What of the reconciler's work the flags shape, as long as it is not what is desired.
pub(crate) fn tuning(arguments: &Run) -> Tuning {
    let proxy = &arguments.proxy;
    Tuning {
        scheduler: proxy.scheduler,
        excluded: proxy.exclude_cidrs.clone(),
        audit: Pace { period: arguments.audit_period, share: arguments.max_audit_cpu / 100.0 },
        check_period: arguments.check_period,
        drain: Limits {
            connections: proxy.drain_timeout,
            datagrams: proxy.udp_drain_timeout,
            vanished: proxy.vanished_drain_timeout,
        },
        timeouts: Timeouts { tcp: proxy.ipvs_tcp_timeout, tcp_fin: proxy.ipvs_tcpfin_timeout, udp: proxy.ipvs_udp_timeout },
        sysctls: node_sysctls::of(&arguments.kube_proxy),
    }
}

/// What the flags say about what a node called `node_name` should hold.
///
/// # Errors
/// When they contradict each other.
pub(crate) fn config(arguments: &Run, node_name: &str) -> anyhow::Result<Config> {
    let proxy = &arguments.proxy;
    let usage = |sentence: String| Ending::error(Exit::Usage, sentence);
    let interface = |flag: &str, name: &Option<String>| {
        let Some(name) = name else { return Err(usage(format!("{flag} is needed with this --detect-local-mode"))) };
        InterfaceName::new(name).map_err(|error| usage(format!("{flag}: {error}")))
    };
    let detect_local = match proxy.detect_local_mode {
        DetectLocalMode::ClusterCidr if proxy.cluster_cidr.is_empty() => DetectLocal::None,
        DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(proxy.cluster_cidr.clone()),
        DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
        DetectLocalMode::BridgeInterface => DetectLocal::BridgeInterface(interface("--bridge-interface", &proxy.bridge_interface)?),
        DetectLocalMode::InterfaceNamePrefix => {
            DetectLocal::InterfaceNamePrefix(interface("--interface-name-prefix", &proxy.interface_name_prefix)?)
        }
    };
    let (mut networks, mut interfaces, mut alone) = (Vec::new(), Vec::new(), None);
    for address in &proxy.nodeport_addresses {
        match address {
            NodePortAddress::Primary => alone = Some(NodePortAddresses::Primary),
            NodePortAddress::All => alone = Some(NodePortAddresses::All),
            NodePortAddress::Network(network) => networks.push(*network),
            NodePortAddress::Interface(pattern) => interfaces.push(pattern.clone()),
        }
    }
    let node_port_addresses = match alone {
        None => NodePortAddresses::Listed { networks, interfaces },
        Some(choice) if proxy.nodeport_addresses.len() == 1 => choice,
        Some(_) => {
            let sentence = "--nodeport-addresses: `primary` and `all` stand alone; give one of them, or networks and interfaces";
            return Err(usage(sentence.to_owned()));
        }
    };
    if proxy.scheduler.is_none() {
        return Err(usage("--scheduler: none serves nobody; name a scheduler such as rr, wlc or mh".to_owned()));
    }
    let mark = MarkBit::new(proxy.masquerade_bit).context("--masquerade-bit is out of range")?;
    let ports = masquerade_ports(proxy).map_err(usage)?;
    Ok(Config {
        allowed_externals: proxy.allow_external_cidrs.clone(),
        proxy_name: proxy.service_proxy_name.as_deref().map(Into::into),
        excluded_load_balancers: proxy.load_balancer_exclude_cidrs.clone(),
        occupied_node_ports: match proxy.occupied_node_ports {
            Occupied::Service => OccupiedNodePorts::Service,
            Occupied::Process => OccupiedNodePorts::Process,
        },
        answer_pings: proxy.vip_ping == VipPing::Answer,
        ranges_per_family: proxy.source_ranges_per_family,
        open_input: proxy.open_input,
        external_ips: !arguments.kube_proxy.feature_gates.iter().any(|gate| gate == "AllowServiceExternalIPs=false"),
        families: supported_families(),
        scheduler: proxy.scheduler,
        masquerade: Masquerade { all: proxy.masquerade_all, mark, detect_local, ports },
        node_port_addresses,
        via: match proxy.vip_binding {
            VipBinding::Route => Via::Route,
            VipBinding::Address => Via::Address,
        },
        ..Config::new(node_name)
    })
}

/// The source ports of masqueraded callers: an answer that came to a node port would be taken for a call of it.
fn masquerade_ports(proxy: &Proxy) -> Result<PortRange, String> {
    let node_ports = proxy.node_port_range;
    match proxy.masquerade_port_range {
        Some(ports) if ports.overlaps(node_ports) => Err(format!(
            "--masquerade-port-range {ports} has ports of --node-port-range {node_ports}: answers to masqueraded callers would go to \
             node ports; choose ports beside it"
        )),
        Some(ports) => Ok(ports),
        None => node_ports.complement().ok_or_else(|| {
            format!("--node-port-range {node_ports} leaves no port above 1023 to masqueraded callers; choose a smaller one, as the API server has it")
        }),
    }
}

/// Says when the host's firewall would keep everything out. It is read once: what it is later, is for its owner to know.
fn check_input(kernel: &Kernel, config: &Config) {
    for family in config.families.iter().filter(|_| !config.open_input) {
        match kernel.flavour().input_drops(*family) {
            Ok(true) => warn!(
                %family,
                "the INPUT chain's policy is DROP: unless its rules accept VIPs and node ports, nobody can call them; see --open-input"
            ),
            Ok(false) => {}
            Err(error) => warn!(%family, %error, "cannot read the INPUT chain's policy"),
        }
    }
}

fn set_sysctls(config: &Config, flags: &settings::KubeProxy) {
    for sysctl in sysctl::NEEDED.iter().chain(&node_sysctls::of(flags)) {
        sysctls::report(sysctl, &sysctl.ensure());
    }
    if config.families.contains(&model::Family::V6) {
        sysctls::report(&sysctl::CHECKED_IPV6, &sysctl::CHECKED_IPV6.check());
    }
}

/// Says how likely the kernel is to end this process for want of memory. That may take a capability which nothing else does.
fn set_oom_score(effective: &Effective) {
    let score = effective.run.kube_proxy.oom_score_adj;
    let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) else { return };
    match effective.value("oom-score-adj") {
        Some(value) if value.origin != Origin::Default => warn!(score, %error, "cannot set oom_score_adj"),
        _ => debug!(score, %error, "cannot set oom_score_adj"),
    }
}
