//! From nothing to everything enforced: interface, datapath, proxy, objects, endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use namegate_dns_proxy::{Config, Limits, Proxy, ResolverSlot, Services, StartError, Timeouts};
use namegate_egress_bpf::datapath::{Datapath, Options, ProxySettings, Settings};
use namegate_policy::identity::Identity;
use namegate_policy::object::Object;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::books::{Books, Shelf};
use super::inbox::Inbox;
use super::objects::{FirstRead, Objects};
use super::windows::Windows;
use super::work::Agent;
use super::{Asked, thrift};
use crate::admin::Phase;
use crate::apply::{Apply, EndpointRow, Unknown};
use crate::audit::AuditLog;
use crate::cli::AgentArgs;
use crate::cni::desk::Waiting;
use crate::dns::{DnsAudit, LessonDesk};
use crate::endpoints::{Wanted, Watcher};
use crate::hooks::HookReport;
use crate::link::{self, ProxyLink};
use crate::lock::AgentLock;
use crate::metrics::Counted;
use crate::remembered::{Keeper, Restored};
use crate::resolvers::{self, ResolverGroup};
use crate::source::Changes;
use crate::state::{Behind, Event, State};
use crate::{clock, flows, ready_file, remembered, uninstall};

/// Pictures of the node that wait for the state's owner at most.
const TOWNS_MAX: usize = 4;

/// Differences of the objects that wait at most.
const CHANGES_MAX: usize = 4;

/// Starts everything; when it returns, what the objects say is enforced. Nothing on the node is
/// touched before they are read.
pub(super) async fn start(
    args: &AgentArgs,
    log: AuditLog,
    Asked { questions, demands, shared, sockets, read }: Asked,
    lock: &mut AgentLock,
) -> anyhow::Result<Agent> {
    let (source, first) = match read {
        Some(read) => read,
        None => Objects::read(args, &shared.watches, lock).await?,
    };
    let FirstRead { changes, has_problems, node_name, is_remembered } = first;
    let objects = changes.upserts.len();
    let is_in_cluster = node_name.is_some();
    let reporting = source.report(node_name.clone(), args);
    let (daemon_set, following) = source.follow_daemon_set(args).unzip();
    let refused = changes.problems.iter().filter(|problem| !problem.is_foreign()).count();
    shared.metrics.refused(refused as u64);

    let mut watcher = Watcher::new().context("cannot follow the node's interfaces")?;
    let handle = watcher.handle().clone();
    let name = &args.node.link_name;
    let link =
        link::ensure(&handle, name, (args.proxy_ipv4, args.proxy_ipv6), &args.sysctl_dir).await?;
    let (datapath, events) = open_datapath(args, &link)?;

    // Set once: nobody else starts this agent.
    let _ = shared.kernel.set(datapath.reader().context("cannot read the kernel's maps")?);
    let registry = Arc::clone(&shared.registry);
    let shelf = Arc::new(Shelf::default());
    let teacher = Arc::clone(&shelf);
    let (learner, lessons) = LessonDesk::new(move |lessons| teacher.teach(lessons));
    let proxy = Proxy::start(
        Config {
            timeouts: Timeouts {
                attempt: args.dns_timeout / Timeouts::default().attempts.max(1),
                upstream_tcp: args.dns_timeout,
                ..Timeouts::default()
            },
            limits: Limits {
                client_rate: Some(args.dns_client_rate).filter(|rate| *rate > 0),
                client_new_names: Some(args.dns_new_names).filter(|names| *names > 0),
                ..Limits::default()
            },
            workers: NonZeroUsize::new(args.dns_workers),
            shuffles_case: args.dns_random_case,
            ..Config::default()
        },
        Services {
            clients: Arc::clone(&registry) as _,
            learner: Arc::new(learner),
            log: Arc::new(Counted {
                lookups: Arc::clone(&shared.metrics.lookups),
                log: DnsAudit(log.clone()),
            }),
        },
    )
    .await
    .context("cannot start the DNS proxy")?;
    let _ = shared.proxy.set((proxy.counters(), proxy.stages()));
    proxy.adopt(sockets).await;

    let earlier = datapath.inherited().iter().chain(datapath.endpoints());
    let inherited: BTreeMap<u32, EndpointRow> =
        earlier.map(|(index, entry)| (*index, entry.into())).collect();
    let mut enforced = datapath.attached().clone();
    enforced.extend(inherited.keys());
    let tables: BTreeSet<u32> = datapath.tables().collect();
    let agent_is_first = enforced.is_empty();
    if datapath.is_taken_over() {
        tracing::info!(endpoints = inherited.len(), "taking over from an earlier agent");
    }
    let leftovers = datapath.addresses().context("cannot read the addresses of pods")?;
    let former: BTreeMap<IpAddr, Identity> =
        leftovers.iter().filter_map(|(address, who)| Some((*address, (*who)?))).collect();
    let leftover_names = datapath.names().context("cannot read the learned addresses")?;
    let classes = leftover_names.values().map(|entry| entry.class.max(entry.live_class));
    let first_class = classes.max().unwrap_or(0).saturating_add(1);
    let remembered_path = remembered::path(&args.node.run_dir());
    let keeper = Keeper::start(remembered_path.clone(), registry.learned().clone())
        .context("cannot start the thread that keeps what is learned")?;
    let (wanted, wanted_seen) = watch::channel(Arc::new(Wanted::new()));
    let state = State::new(super::settings(args, &link, node_name)?)
        .with_learned(registry.learned().clone())
        .with_pattern_seed(RandomState::new().hash_one(std::process::id()))
        .with_search(resolvers::search_domains(&super::resolv_conf()))
        .with_former(former.clone());
    let state = if is_remembered {
        // An interface without programs is another one of the same number.
        let (here, earlier) = (datapath.attached(), datapath.inherited());
        let stayed = inherited
            .iter()
            .filter(|(index, _)| here.contains(index) || earlier.contains_key(index));
        let behind = |row: &EndpointRow| Behind { addresses: row.addresses.clone(), mac: row.mac };
        state.confined_to(stayed.map(|(index, row)| (*index, behind(row))).collect())
    } else {
        state
    };
    let is_judged_here = !tables.is_empty();
    let numbers = datapath.numbers().context("cannot read the numbers that flows carry")?;
    let mut apply = Apply::new(datapath, inherited, tables, first_class).above(numbers);
    if is_judged_here {
        apply = apply.with_former(former);
    }
    let mut books = Box::new(Books::new(state, apply, Arc::clone(&registry)));
    let mut agent = Agent {
        shelf,
        log: log.clone(),
        proxy,
        proxy_slots: BTreeMap::new(),
        listen: Listen {
            ipv4: IpAddr::V4(args.proxy_ipv4),
            ipv6: link.ipv6.map(IpAddr::V6),
            port: args.dns_port,
            groups: args.resolver_groups.clone(),
        },
        keeper,
        retry_from: Instant::now(),
        events_lost: 0,
        wanted,
        inbox: Inbox::new(demands, questions, lessons),
        metrics: Arc::clone(&shared.metrics),
        waiting: Waiting::default(),
        windows: Windows::default(),
        tasks: following.into_iter().collect(),
        records: None,
        reporting,
        daemon_set,
        hooks: HookReport::default(),
        ready_file: args.ready_file.clone(),
        phase: shared.phase.clone(),
        pulse: shared.pulse.clone(),
        wall: clock::WallWatch::begin(),
    };

    let now = clock::monotonic_now();
    if let Some((_, view)) = &mut agent.reporting {
        view.note(&changes);
    }
    let mut effects = books.state.handle(Event::Objects(namespaces_first(changes)), now);
    books.state.forget_former();
    let wanted_first = effects.wanted.clone().unwrap_or_default();
    let town = watcher.look(&wanted_first).await.context("cannot look at the node's interfaces")?;
    effects.absorb(books.state.handle(Event::Town(town), now));
    match remembered::restore(&remembered_path, &mut books.state) {
        Ok(Restored { leases: 0, unreadable: 0 }) => {}
        Ok(Restored { leases, unreadable }) => {
            tracing::info!(
                count = leases,
                unreadable,
                "learned addresses of an earlier agent are kept"
            );
        }
        Err(error) => tracing::warn!(%error, "what an earlier agent learned cannot be read"),
    }
    let identities: Vec<Identity> = books.state.tables().keys().copied().collect();
    for identity in identities {
        if let Some(effect) = books.state.table_effect(identity) {
            effects.tables.insert(identity, effect);
        }
    }
    // What an earlier agent knew and this one does not.
    for address in leftovers.into_keys() {
        effects.ipcache.entry(address).or_insert(None);
    }
    // In a cluster no refused policy hides a pod, and what no pod's object names is closed.
    let unknown = if has_problems && !is_in_cluster && !agent_is_first {
        tracing::warn!("endpoints of an earlier agent that no object names stay as they were");
        Unknown::Stay
    } else {
        effects.absorb(books.state.inherit(&enforced));
        Unknown::Go
    };
    agent.apply_first(&mut books, effects, unknown).await?;
    agent.proxy.forget_adopted().await;
    Agent::forget_names(&mut books, leftover_names.into_keys());

    let (send, changes) = mpsc::channel(CHANGES_MAX);
    agent.inbox.changes = changes;
    let kept = send.clone();
    agent.tasks.push(source.follow(send).unwrap_or_else(|| keep_open(kept)));
    let (send, towns) = mpsc::channel(TOWNS_MAX);
    agent.inbox.towns = towns;
    agent.tasks.push(tokio::spawn(watcher.follow(wanted_seen, send)));
    let records = flows::follow(events, log);
    agent.records =
        Some(records.context("cannot start the thread that reads the kernel's events")?);
    agent.tasks.extend(args.chain().map(|chain| tokio::spawn(chain.keep(shared.cni.clone()))));
    thrift::give_back();
    // Whoever reads the log may ask at once.
    if let Some(path) = &args.ready_file {
        ready_file::write(path, std::iter::empty())
            .with_context(|| format!("cannot write --ready-file {}", path.display()))?;
    }
    agent.pulse.beat();
    agent.phase.enter(Phase::Enforcing);
    tracing::info!(
        objects,
        policies = books.state.policy_count(),
        endpoints = books.state.endpoints().len(),
        resolvers = agent.proxy_slots.len(),
        "enforcing"
    );
    agent.shelf.lay(books);
    Ok(agent)
}

/// The same changes in an order in which each pod has its identity at once: its namespace's labels
/// are part of it.
fn namespaces_first(mut changes: Changes) -> Changes {
    changes.upserts.sort_by_key(|object| !matches!(**object, Object::Namespace(_)));
    changes
}

/// Keeps the channel of a source that tells nothing more open.
fn keep_open(changes: mpsc::Sender<Changes>) -> JoinHandle<()> {
    tokio::spawn(async move { changes.closed().await })
}

fn open_datapath(
    args: &AgentArgs,
    link: &ProxyLink,
) -> anyhow::Result<(Datapath, namegate_egress_bpf::datapath::Events)> {
    let options = Options { attach_point: args.attach.point(), ..args.sizes.options(&args.node) };
    let (mut datapath, events) =
        Datapath::open(&options).context("cannot load the kernel program")?;
    datapath.check_attach(link.index).context("cannot attach the kernel program")?;
    let [egress, ingress] = datapath.program_tags();
    tracing::info!(
        attach = %datapath.attach_point().as_str(),
        tags = %format_args!("{egress:016x}/{ingress:016x}"),
        "the kernel program is loaded"
    );
    datapath
        .configure(&Settings {
            proxy: Some(ProxySettings {
                ifindex: link.index,
                mac: link.mac,
                v4: args.proxy_ipv4,
                v6: link.ipv6.unwrap_or(args.proxy_ipv6),
                port: args.dns_port,
            }),
            judges_other_protocols: false,
        })
        .context("cannot configure the kernel program")?;
    let ranges = args.pod_cidrs.iter().chain(&args.service_cidrs);
    let ranges = ranges.map(|net| (*net, Identity::UNMANAGED)).collect();
    datapath.set_ranges(&ranges).context("cannot write the cluster's ranges")?;
    Ok((datapath, events))
}

/// What was on the node before this agent: a start that fails removes the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    has_pins: bool,
    has_link: bool,
}

impl Before {
    pub(super) async fn look(args: &AgentArgs) -> anyhow::Result<Self> {
        let has_pins = args.node.pin_dir.exists();
        let has_link = uninstall::has_link(&args.node).await?;
        Ok(Self { has_pins, has_link })
    }

    /// Removes what a failed start made.
    pub(super) async fn restore(self, args: &AgentArgs) {
        let pins = if self.has_pins { Ok(()) } else { uninstall::remove_pins(&args.node) };
        let link = if self.has_link { Ok(()) } else { uninstall::remove_link(&args.node).await };
        for error in [pins, link].into_iter().filter_map(Result::err) {
            tracing::error!(error = %format!("{error:#}"), "the node is not as it was");
        }
    }
}

/// Where the proxy listens.
#[derive(Clone, Debug)]
pub(super) struct Listen {
    pub(super) ipv4: IpAddr,
    pub(super) ipv6: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) groups: Vec<ResolverGroup>,
}

impl Listen {
    /// The proxy's slot for a resolver; `None` where the node has none of the resolver's family.
    pub(super) fn slot(&self, slot: u8, resolver: IpAddr) -> Option<ResolverSlot> {
        let address = if resolver.is_ipv4() { Some(self.ipv4) } else { self.ipv6 }?;
        let alternatives = self.groups.iter().flat_map(|group| group.alternatives(resolver));
        Some(ResolverSlot {
            slot,
            resolver: SocketAddr::new(resolver, 53),
            alternatives: alternatives.map(|address| SocketAddr::new(address, 53)).collect(),
            listen: vec![SocketAddr::new(address, self.port + u16::from(slot))],
        })
    }
}

/// Makes the proxy stand in for exactly these resolvers; says which slots could not be filled.
pub(super) async fn update_proxy(
    proxy: &Proxy,
    listen: &Listen,
    held: &mut BTreeMap<u8, IpAddr>,
    wanted: &BTreeMap<u8, IpAddr>,
) -> BTreeMap<u8, StartError> {
    let mut failures = BTreeMap::new();
    let gone: Vec<u8> = held
        .iter()
        .filter(|(slot, resolver)| wanted.get(slot) != Some(resolver))
        .map(|(slot, _)| *slot)
        .collect();
    for slot in gone {
        proxy.remove_resolver(slot).await;
        held.remove(&slot);
    }
    for (&slot, &resolver) in wanted {
        if held.contains_key(&slot) {
            continue;
        }
        let Some(place) = listen.slot(slot, resolver) else { continue };
        match proxy.add_resolver(place).await {
            Ok(()) => {
                held.insert(slot, resolver);
            }
            Err(error) => {
                failures.insert(slot, error);
            }
        }
    }
    failures
}
