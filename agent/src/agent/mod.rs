//! The running agent: everything wired together, and the order of start and end.

mod books;
mod inbox;
mod objects;
mod start;
mod thrift;
mod windows;
mod work;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::Router;
use futures_util::future::OptionFuture;
use namegate_dns_proxy::Sockets;
use namegate_policy::name::DnsName;
use namegate_policy::opening::{ClusterRanges, RebindingGuard, Window};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::objects::{Objects, Read};
use self::work::Summons;
use crate::admin::{self, Context as Shared, Desk, Phase, Question, Routers, Server};
use crate::audit::AuditLog;
use crate::cli::{AgentArgs, Guard};
use crate::cni::desk::Demand;
use crate::kubernetes::WatchHealth;
use crate::link::ProxyLink;
use crate::lock::AgentLock;
use crate::map::{self, Map};
use crate::registry::Registry;
use crate::resolvers;
use crate::state::Settings;
use crate::succession::{self, Former, Heir, Heirs, Place};
use crate::{cni, preflight, uninstall};

/// How old what was read beside another agent may be when its place is taken.
const CURRENT: Duration = Duration::from_secs(10);

/// How long what is left of an agent's work may take to end before it begins again.
const TERM_END: Duration = Duration::from_secs(5);

/// Runs until SIGINT or SIGTERM. An agent that handed over to one that did not come to enforce begins
/// again.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    args.map.hosts()?;
    preflight::check(&args.node.pin_dir, args.manifests.is_some())?;
    // What an agent that crashed left says nothing about this one.
    not_ready(&args)?;
    let (mut signals, mut sockets) = (None, None);
    loop {
        // One for each term: nothing of the last is under way in the next.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("namegate")
            .build()
            .context("cannot start the runtime")?;
        let begun = runtime.block_on(async {
            // Before anything is changed on the node, so that an early signal leaves nothing behind.
            let signals = match &mut signals {
                Some(signals) => signals,
                none => none.insert(Signals::new()?),
            };
            let seat = take_seat(&args, sockets.take(), signals).await?;
            anyhow::Ok(seat.map(|seat| (seat, signals)))
        });
        let ended = match begun {
            Ok(Some((seat, signals))) => serve_term(&args, &runtime, seat, signals),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let Ok(Some(given_back)) = ended else {
            runtime.shutdown_background();
            return ended.map(drop);
        };
        sockets = Some(given_back);
        runtime.shutdown_timeout(TERM_END);
    }
}

/// Takes back that this agent is ready.
fn not_ready(args: &AgentArgs) -> anyhow::Result<()> {
    args.ready_file.as_deref().map_or(Ok(()), uninstall::remove_file)
}

/// What an agent has once the node is its own.
struct Seat {
    place: Place,
    watches: WatchHealth,
    /// What was read while another agent had the node.
    read: Option<Read>,
}

/// Takes the node; `None` where a signal came first. `sockets` are those of an agent that had it before.
async fn take_seat(
    args: &AgentArgs,
    sockets: Option<Vec<Sockets>>,
    signals: &mut Signals,
) -> anyhow::Result<Option<Seat>> {
    let watches = WatchHealth::default();
    tokio::select! {
        taken = take_place(args, sockets, &watches) => {
            let (place, read) = taken?;
            Ok(Some(Seat { place, watches, read }))
        }
        name = signals.next() => {
            tracing::info!(signal = name, "ended while another agent had the node");
            Ok(None)
        }
    }
}

async fn take_place(
    args: &AgentArgs,
    sockets: Option<Vec<Sockets>>,
    watches: &WatchHealth,
) -> anyhow::Result<(Place, Option<Read>)> {
    let run_dir = args.node.run_dir();
    let alone = |lock, sockets| (Place { lock, sockets, former: None }, None);
    if let Some(sockets) = sockets {
        return Ok(alone(succession::wait_for_lock(&run_dir).await?, sockets));
    }
    if !args.take_over {
        return Ok(alone(AgentLock::take(&run_dir)?, Vec::new()));
    }
    // Lookups wait for a start, and not for a reading of the cluster before it.
    let read = tokio::select! {
        biased;
        lock = succession::wait_for_lock(&run_dir) => return Ok(alone(lock?, Vec::new())),
        read = Objects::read_beside(args, watches) => read?,
    };
    let read_at = Instant::now();
    let mut place = succession::succeed(&run_dir).await?;
    // Whoever had to wait reads again: what is in force by now may be newer.
    let mut read = read.filter(|_| read_at.elapsed() < CURRENT);
    if let Some((objects, _)) = &mut read {
        objects.settle(args, &mut place.lock)?;
    }
    Ok((place, read))
}

/// The work of an agent from taking the node to its end, and the sockets of lookups where it is to
/// begin again.
fn serve_term(
    args: &AgentArgs,
    runtime: &Runtime,
    Seat { place: Place { mut lock, sockets, former }, watches, read }: Seat,
    signals: &mut Signals,
) -> anyhow::Result<Option<Vec<Sockets>>> {
    let hosts = args.map.hosts()?;
    let registry = Arc::new(Registry::default());
    let (log, writer) = AuditLog::start(&args.audit.config(), Arc::clone(&registry))?;
    let (desk, questions) = Desk::new();
    let shared = Shared { watches, ..Shared::new(desk, registry, log.clone()) };
    let (cni_routes, demands) = cni::desk::routes();
    let map = hosts.is_some().then(|| objects::node_name(args)).transpose()?;
    let map = map.map(|name| Map::new(shared.clone(), name, map::Limits::default()));
    let routers = Routers {
        // Plugins of an earlier agent's list ask here.
        socket: admin::router(shared.clone()).merge(cni_routes.clone()),
        cni: admin::health_router(shared.clone()).merge(cni_routes),
        scrape: admin::scrape_router(shared.clone()),
        map: map
            .clone()
            .zip(hosts)
            .map_or_else(Router::new, |(map, hosts)| map::router(map, hosts)),
    };
    let recent = shared.recent.clone().keep(shared.log.listen());
    let hits = shared.clone().follow_hits();
    let sharing = admin::follow_shared(shared.clone());
    let drawn = map.map(|map| map.follow(shared.log.listen()));
    let beside = async {
        tokio::join!(
            recent,
            hits,
            sharing,
            thrift::give_back_once_settled(),
            OptionFuture::from(drawn)
        );
    };
    let server = Server::start(&args.places(), routers, beside)?;
    let asked = Asked { questions, demands, shared, sockets, read };
    let outcome = runtime.block_on(serve(args, log, asked, (&mut lock, former), signals));
    drop(server);
    writer.close();
    if let Ok(Ending::HandedOver(heir, sockets)) = outcome {
        drop(lock);
        return runtime.block_on(pass_on(args, heir, sockets, signals));
    }
    not_ready(args)?;
    if args.detach_on_exit || matches!(outcome, Ok(Ending::Detached)) {
        uninstall::remove_file(lock.path())?;
        uninstall::remove_empty(&args.node.run_dir());
    }
    outcome.map(|_| None)
}

/// Passes the node on and waits to be ended; gives the sockets back where the next agent did not come
/// to enforce.
async fn pass_on(
    args: &AgentArgs,
    heir: Heir,
    sockets: Vec<Sockets>,
    signals: &mut Signals,
) -> anyhow::Result<Option<Vec<Sockets>>> {
    let seated = tokio::task::spawn_blocking(move || {
        (heir.seat(&sockets, succession::START_LIMIT), sockets)
    });
    let (seated, sockets) = tokio::select! {
        outcome = seated => outcome.context("handing over broke off")?,
        name = signals.next() => {
            tracing::info!(signal = name, "ended while handing over");
            not_ready(args)?;
            return Ok(None);
        }
    };
    if let Err(error) = seated {
        tracing::error!(error = %format!("{error:#}"), "the next agent does not go on: this one does");
        return Ok(Some(sockets));
    }
    drop(sockets);
    // Not before: a pod that is not ready is deleted by its DaemonSet, be the next one ready or not.
    not_ready(args)?;
    // Whoever started this agent would start it again if it ended by itself.
    tracing::info!("another agent goes on; waiting to be ended");
    let name = signals.next().await;
    tracing::info!(signal = name, "ending");
    Ok(None)
}

/// The agent's side of its socket.
#[derive(Debug)]
struct Asked {
    questions: mpsc::Receiver<Question>,
    demands: mpsc::Receiver<Demand>,
    shared: Shared,
    /// What an agent that handed over left.
    sockets: Vec<Sockets>,
    /// What was read meanwhile.
    read: Option<Read>,
}

/// How the work ends.
enum Ending {
    /// For good.
    Ended,
    /// For good, with the node as it was found.
    Detached,
    /// Another agent goes on, once it has the lock and these.
    HandedOver(Heir, Vec<Sockets>),
}

async fn serve(
    args: &AgentArgs,
    log: AuditLog,
    asked: Asked,
    (lock, mut former): (&mut AgentLock, Option<Former>),
    signals: &mut Signals,
) -> anyhow::Result<Ending> {
    let before = start::Before::look(args).await?;
    let phase = asked.shared.phase.clone();
    let wanted_back = OptionFuture::from(former.as_mut().map(Former::wants_back));
    let started = tokio::select! {
        started = start::start(args, log, asked, lock) => started,
        Some(()) = wanted_back => Err(anyhow!(succession::GOES_ON)),
        name = signals.next() => {
            tracing::info!(signal = name, "ended while starting");
            before.restore(args).await;
            return Ok(Ending::Ended);
        }
    };
    let mut agent = match started {
        Ok(agent) => agent,
        Err(error) => {
            before.restore(args).await;
            return Err(error);
        }
    };
    if let Some(former) = former {
        former.relieve().await?;
    }
    let mut heirs = Heirs::listen(&args.node.run_dir())?;
    let summons = agent.work(signals, &mut heirs).await?;
    phase.enter(Phase::Ending);
    match summons {
        Summons::Signal(name) => {
            tracing::info!(signal = name, "ending");
            let detaches = args.detach_on_exit || agent.is_last();
            agent.end(args, detaches).await?;
            Ok(if detaches { Ending::Detached } else { Ending::Ended })
        }
        Summons::Heir(heir) => {
            tracing::info!("handing over to another agent");
            let sockets = agent.end(args, false).await?;
            Ok(Ending::HandedOver(heir, sockets))
        }
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// The node's resolver configuration, which pods inherit from; nothing where there is none.
fn resolv_conf() -> String {
    std::fs::read_to_string("/etc/resolv.conf").unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the node's /etc/resolv.conf");
        String::new()
    })
}

fn settings(
    args: &AgentArgs,
    link: &ProxyLink,
    node_name: Option<Arc<str>>,
) -> anyhow::Result<Settings> {
    let cluster_domain = DnsName::parse(&args.cluster_domain)
        .with_context(|| format!("--cluster-domain {:?}", args.cluster_domain))?;
    let mut known = args.resolvers.clone();
    known.extend(args.resolver_groups.iter().flat_map(|group| group.members()));
    match std::fs::read_to_string(resolvers::PORT_RANGE) {
        Ok(text) if resolvers::are_ports_few(&text) => tracing::warn!(
            range = text.trim(),
            "net.ipv4.ip_local_port_range leaves fewer than 4096 ports: forged DNS answers are easier to guess; widen it"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot read {}", resolvers::PORT_RANGE),
    }
    known.extend(resolvers::name_servers(&resolv_conf()));
    let mut own_addresses = BTreeSet::from([IpAddr::V4(args.proxy_ipv4)]);
    own_addresses.extend(link.ipv6.map(IpAddr::V6));
    Ok(Settings {
        cluster_domain,
        ranges: ClusterRanges {
            nodes: args.node_cidrs.clone(),
            pods: args.pod_cidrs.clone(),
            services: args.service_cidrs.clone(),
        },
        guard: match args.rebinding_guard {
            Guard::Standard => RebindingGuard::Relaxed,
            Guard::Strict => RebindingGuard::Strict,
        },
        window: Window { min_ttl: args.min_ttl, grace: args.ttl_grace },
        resolvers: known,
        own_addresses,
        has_ipv6: link.ipv6.is_some(),
        node_name,
    })
}
