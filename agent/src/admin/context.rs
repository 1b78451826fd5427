//! What the handlers share, and the counts of one moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use namegate_dns_proxy::Counters;
use namegate_dns_proxy::stages::Stages;
use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::{DatapathError, Fill, Reader};
use namegate_policy::rule::PolicyRef;

use super::hits::HitBook;
use super::{Desk, Failure, Phase, PhaseCell, Pulse, Recent, View};
use crate::audit::AuditLog;
use crate::cni::Standing;
use crate::kubernetes::WatchHealth;
use crate::metrics::{Metrics, PolicyReading, Readings};
use crate::registry::Registry;

/// Policies that have counters of their own at most; the others are left out.
const POLICIES_MAX: usize = 1_000;

/// How often policies' hits are read when nobody asks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the handlers of all resources share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Asks the state's owner.
    pub desk: Desk,
    /// How far the agent is.
    pub phase: PhaseCell,
    /// When the state's owner turned last.
    pub pulse: Pulse,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Endpoints, pods, tables and learned names.
    pub registry: Arc<Registry>,
    /// The records of decisions.
    pub log: AuditLog,
    /// What the kernel counts and remembers, once the program is loaded.
    pub kernel: Arc<OnceLock<Reader>>,
    /// What the proxy counts, once it runs.
    pub proxy: Arc<OnceLock<(Arc<Counters>, Arc<Stages>)>>,
    /// How often policies decided.
    pub hits: Arc<HitBook>,
    /// The latest records of decisions.
    pub recent: Recent,
    /// Which kinds of objects are followed.
    pub watches: WatchHealth,
    /// How the CNI plugin stands on the node.
    pub cni: Standing,
    /// How many addresses were shared at the last look.
    pub shared: Arc<AtomicU64>,
    /// When the agent began.
    pub began: Instant,
}

impl Context {
    /// Nothing counted, no kernel and no proxy yet.
    pub fn new(desk: Desk, registry: Arc<Registry>, log: AuditLog) -> Self {
        Self {
            desk,
            phase: PhaseCell::default(),
            pulse: Pulse::new(),
            metrics: Arc::default(),
            registry,
            log,
            kernel: Arc::default(),
            proxy: Arc::default(),
            hits: Arc::default(),
            recent: Recent::new(),
            watches: WatchHealth::default(),
            cni: Standing::default(),
            shared: Arc::default(),
            began: Instant::now(),
        }
    }

    /// Reads from the kernel on a thread that may take its time; `None` before the program is loaded.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader) -> Result<T, DatapathError> + Send + 'static,
    ) -> Result<Option<T>, Failure> {
        let kernel = Arc::clone(&self.kernel);
        let looked = tokio::task::spawn_blocking(move || kernel.get().map(look).transpose());
        match looked.await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => {
                Err(Failure::Broken(format!("cannot read the kernel's maps: {error}")))
            }
            Err(error) => {
                Err(Failure::Broken(format!("reading the kernel's maps broke off: {error}")))
            }
        }
    }

    /// Adds to [`Self::hits`] what policies decided since the last look.
    pub(super) async fn count_hits(&self) -> Result<(), Failure> {
        let (book, registry) = (Arc::clone(&self.hits), Arc::clone(&self.registry));
        self.read(move |kernel| {
            let origins = |table, direction, clause| {
                registry.origins(table, matches!(direction, Direction::Egress), clause)
            };
            book.add(kernel.hits()?, origins, SystemTime::now());
            Ok(())
        })
        .await
        .map(Option::unwrap_or_default)
    }

    /// Keeps [`Self::hits`] up to date for as long as the agent enforces, so that little is lost where a
    /// table is replaced. Takes a hundredth of a processor at most.
    pub async fn follow_hits(self) {
        loop {
            let began = Instant::now();
            if self.phase.now() == Phase::Enforcing
                && let Err(error) = self.count_hits().await
            {
                tracing::warn!(%error, "what policies decided is not counted");
            }
            tokio::time::sleep(LOOK_EVERY.max(began.elapsed() * 99)).await;
        }
    }

    /// The counts of this moment. What the state's owner would have to be asked is missing until the
    /// agent enforces.
    pub(super) async fn readings(&self) -> Result<Readings, Failure> {
        let mut readings = Readings::default();
        if let Some((counters, stages)) = self.proxy.get() {
            readings.proxy = counters.snapshot();
            readings.stages = stages.each().map(|(stage, took)| (stage, took.into())).to_vec();
        }
        let counted = self.read(|kernel| Ok((kernel.counters()?, kernel.flow_fill()?))).await?;
        if self.phase.now() == Phase::Enforcing {
            readings.is_enforcing = true;
            self.count_hits().await?;
            let known = self.desk.ask(look).await?;
            let Known { policies, fill } = known.put(&mut readings);
            self.hits.retain(|policy| policies.binary_search(policy).is_ok());
            readings.policies = self.policies(&policies);
            readings.fill = fill.map_err(Failure::Broken)?;
        }
        readings.watches =
            self.watches.each().into_iter().map(|(kind, why)| (kind, why.is_none())).collect();
        (readings.cni_plugin, readings.unguarded) = (self.cni.is_in_place(), self.cni.unguarded());
        readings.shared_addresses = self.shared.load(Ordering::Relaxed);
        let audit = self.log.counts();
        readings.suppressed = audit.suppressed;
        readings.lost = BTreeMap::from([("queue", audit.lost_queue), ("sink", audit.lost_sink)]);
        if let Some((counters, flows)) = counted {
            readings.lost.insert("kernel", counters.events_lost.values().sum());
            readings.packets = counters;
            readings.fill.push(flows);
        }
        Ok(readings)
    }

    fn policies(&self, policies: &[PolicyRef]) -> Vec<PolicyReading> {
        let mut hits: BTreeMap<(PolicyRef, Direction), u64> = BTreeMap::new();
        for policy in policies.iter().take(POLICIES_MAX) {
            // Told from the start, so that one that never matched can be asked for.
            hits.insert((policy.clone(), Direction::Egress), 0);
        }
        for ((origin, direction), tally) in self.hits.tallies() {
            let key = (origin.policy, direction);
            if hits.contains_key(&key) || hits.len() < 2 * POLICIES_MAX {
                *hits.entry(key).or_default() += tally.hits;
            }
        }
        let reading = |((policy, direction), hits): ((PolicyRef, Direction), u64)| PolicyReading {
            kind: policy.kind.to_string(),
            namespace: policy.namespace.unwrap_or_default(),
            name: policy.name,
            direction,
            hits,
        };
        hits.into_iter().map(reading).collect()
    }
}

/// What only the state's owner knows.
struct Known {
    policies: Vec<PolicyRef>,
    fill: Result<Vec<Fill>, String>,
}

/// A count of the state, with what is no count.
struct Counted {
    readings: Readings,
    known: Known,
}

impl Counted {
    fn put(self, readings: &mut Readings) -> Known {
        let Self { readings: counted, known } = self;
        let (proxy, stages) =
            (std::mem::take(&mut readings.proxy), std::mem::take(&mut readings.stages));
        *readings = Readings { is_enforcing: true, proxy, stages, ..counted };
        known
    }
}

fn look(view: View<'_>) -> Counted {
    let state = view.state;
    let mut policies: Vec<PolicyRef> =
        state.policies().map(|policy| policy.reference.clone()).collect();
    policies.sort_unstable();
    policies.dedup();
    let learned = state.learned().read();
    let evictions = learned.identities().map(|identity| learned.evictions(identity)).sum();
    let endpoints = BTreeMap::from([
        ("enforced", state.endpoints().len() as u64),
        ("waiting", state.waiting_pods().len() as u64),
    ]);
    let readings = Readings {
        endpoints,
        identities: state.tables().len() as u64,
        policy_count: policies.len() as u64,
        resolvers: view.resolvers.len() as u64,
        failures: view.failures.len() as u64,
        learned_names: learned.name_count() as u64,
        learned_addresses: learned.address_count() as u64,
        evictions,
        hooks: BTreeMap::from([
            ("displaced", view.hooks.displaced),
            ("detached", view.hooks.detached),
            ("repaired", view.hooks.repaired),
        ]),
        hooks_failing: view.hooks.lacking().count() as u64,
        ..Readings::default()
    };
    let fill = (view.fill)(state.address_count(), learned.address_count());
    Counted { readings, known: Known { policies, fill: fill.map_err(|error| error.to_string()) } }
}
