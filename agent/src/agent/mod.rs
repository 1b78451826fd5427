//! The running agent: everything wired together, and the order of start and end.

mod books;
mod inbox;
mod objects;
mod start;
mod windows;
mod work;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use futures_util::future::OptionFuture;
use namegate_policy::name::DnsName;
use namegate_policy::opening::{ClusterRanges, RebindingGuard, Window};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::{self, Context as Shared, Desk, Phase, Question, Routers, Server};
use crate::audit::AuditLog;
use crate::cli::{AgentArgs, Guard};
use crate::cni::desk::Demand;
use crate::link::ProxyLink;
use crate::lock::AgentLock;
use crate::map::{self, Map};
use crate::registry::Registry;
use crate::resolvers;
use crate::state::Settings;
use crate::{cni, preflight, uninstall};

/// Runs until SIGINT or SIGTERM.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    let hosts = args.map.hosts()?;
    preflight::check(&args.node.pin_dir, args.manifests.is_some())?;
    if let Some(path) = &args.ready_file {
        // What an agent that crashed left says nothing about this one.
        uninstall::remove_file(path)?;
    }
    let lock = AgentLock::take(&args.node.run_dir())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("namegate")
        .build()
        .context("cannot start the runtime")?;
    let registry = Arc::new(Registry::default());
    let (log, writer) = AuditLog::start(&args.audit.config(), Arc::clone(&registry))?;
    let (desk, questions) = Desk::new();
    let shared = Shared::new(desk, registry, log.clone());
    let (cni_routes, demands) = cni::desk::routes();
    let map = hosts.is_some().then(|| objects::node_name(&args)).transpose()?;
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
        tokio::join!(recent, hits, sharing, OptionFuture::from(drawn));
    };
    let server = Server::start(&args.places(), routers, beside)?;
    let outcome = runtime.block_on(serve(&args, log, Asked { questions, demands, shared }));
    drop(server);
    runtime.shutdown_background();
    writer.close();
    if let Some(path) = &args.ready_file {
        uninstall::remove_file(path)?;
    }
    if args.detach_on_exit {
        uninstall::remove_file(lock.path())?;
        uninstall::remove_empty(&args.node.run_dir());
    }
    outcome
}

/// The agent's side of its socket.
#[derive(Debug)]
struct Asked {
    questions: mpsc::Receiver<Question>,
    demands: mpsc::Receiver<Demand>,
    shared: Shared,
}

async fn serve(args: &AgentArgs, log: AuditLog, asked: Asked) -> anyhow::Result<()> {
    // Before anything is changed on the node, so that an early signal leaves nothing behind.
    let mut signals = Signals::new()?;
    let before = start::Before::look(args).await?;
    let phase = asked.shared.phase.clone();
    let started = tokio::select! {
        started = start::start(args, log, asked) => started,
        name = signals.next() => {
            tracing::info!(signal = name, "ended while starting");
            before.restore(args).await;
            return Ok(());
        }
    };
    let mut agent = match started {
        Ok(agent) => agent,
        Err(error) => {
            before.restore(args).await;
            return Err(error);
        }
    };
    let name = agent.work(&mut signals).await?;
    phase.enter(Phase::Ending);
    tracing::info!(signal = name, "ending");
    agent.end(args).await
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
