//! The single owner of policies, endpoints, identities and learned addresses.
//!
//! [`State::handle`] takes one event and says what has to change outside. It reads no clock, does no
//! input or output and knows no map; so everything here is tested without a kernel.

mod claims;
mod desired;
mod effects;
mod look;
mod names;
mod services;
mod shared;
mod sharing;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use namegate_egress_bpf::abi::ServiceKey;
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_policy::dns::{ClauseSet, ClusterNames};
use namegate_policy::identity::Identity;
use namegate_policy::learned::{LearnError, Look, Place, Term};
use namegate_policy::name::DnsName;
use namegate_policy::opening::{ClusterRanges, NotOpened, RebindingGuard, Window};
use namegate_policy::pattern::PatternSeed;
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::ServiceRef;
use namegate_policy::table::{PolicyTable, Tables};
use namegate_policy::time::Timestamp;

use crate::cni::protocol::{Attachment, Attachments};
use crate::endpoints::{Town, Wanted};
use crate::resolvers::Slots;
use crate::source;

pub use claims::Claim;
pub use effects::{Effects, EndpointEffect, EndpointSpec, NameRules, TableEffect};
pub use shared::SharedLearned;
pub use sharing::{Sharing, find_shared};
pub use view::LocalPod;

use claims::Held;
use names::{ClusterAddresses, NameClauses, Openings};

/// Within this time, and a quarter of the grace at most, an answer that is given again extends
/// nothing: what it may be kept for is cut to what is in force, and a name that is asked a thousand
/// times a second costs one write of them.
const REPEAT: Duration = Duration::from_secs(1);

/// What the agent was told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domain whose names always resolve (EP-6).
    pub cluster_domain: DnsName,
    /// The ranges that names never open (EP-9).
    pub ranges: ClusterRanges,
    /// Whether names open private addresses.
    pub guard: RebindingGuard,
    /// How long answers open their addresses (EP-10).
    pub window: Window,
    /// Resolvers from the command line, then those of the node itself.
    pub resolvers: Vec<IpAddr>,
    /// Addresses of the agent's own interface, which are nobody's node address.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Whether the proxy listens on IPv6.
    pub has_ipv6: bool,
    /// The name of this node: its pods are the endpoints. Without one, those pods are that say by
    /// annotation where they live.
    pub node_name: Option<Arc<str>>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Objects appeared, changed or vanished, all at once.
    Objects(source::Changes),
    /// The node's interfaces are others.
    Town(Town),
    /// The CNI plugin told of pods that are being made.
    Attached(BTreeMap<PodRef, Claim>),
    /// It told that interfaces go.
    Detached(BTreeSet<Attachment>),
    /// It told which interfaces are left.
    Left(Attachments),
    /// A deadline may have passed. What is left over is told by [`State::next_deadline`].
    Tick,
    /// A look at all live flows that began at `since` found these addresses in use.
    Swept {
        /// When it began.
        since: Timestamp,
        /// Who has live flows, to where.
        in_use: BTreeSet<Place>,
    },
}

/// An answer that an identity got.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Who asked.
    pub identity: Identity,
    /// The asked name.
    pub name: DnsName,
    /// The rules that it was decided to open, by the table of then.
    pub clauses: ClauseSet,
    /// Addresses with their TTL in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// What became of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taught {
    /// Until when every opened address takes new flows; `None` where none was opened.
    pub open_until: Option<Timestamp>,
    /// Addresses that were not opened.
    pub withheld: Vec<(IpAddr, Withheld)>,
}

/// Why an address was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The name resolves, and no rule opens it.
    NoRule,
    /// Names may not open such an address.
    NotOpened(NotOpened),
}

/// Why an answer was not learned.
#[derive(Debug, thiserror::Error)]
pub enum TeachError {
    /// The identity has no table any more, or the name is refused by the one in force.
    #[error("the endpoint or its policy changed meanwhile")]
    Stale,
    /// A limit is reached.
    #[error(transparent)]
    Limit(#[from] LearnError),
}

/// Policies, endpoints, identities and learned addresses.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    tables: Tables,
    learned: SharedLearned,
    town: Town,
    endpoints: BTreeMap<u32, EndpointSpec>,
    /// Interfaces that are there although their pods are not known, with the last pod that was.
    closed: BTreeMap<u32, Option<PodRef>>,
    /// Pods whose addresses the CNI plugin told before the API server.
    claims: BTreeMap<PodRef, Held>,
    /// While objects are those that an earlier agent knew: the interfaces that it enforced, with what is
    /// behind them. Behind others may be anybody.
    confined: Option<BTreeMap<u32, Behind>>,
    ipcache: BTreeMap<IpAddr, Identity>,
    services: Arc<BTreeMap<ServiceKey, ServiceEntry>>,
    service_owners: Arc<BTreeMap<ServiceKey, ServiceRef>>,
    /// What Services had and have no more, until when it is closed.
    gone_services: BTreeMap<ServiceKey, Timestamp>,
    wanted: Arc<Wanted>,
    slots: Slots,
    troubles: BTreeSet<String>,
    /// A look at all live flows, as far as it was not worked off.
    look: Option<Look>,
    /// The latest instant that it was told.
    now: Timestamp,
}

/// What tells the pod behind an interface from another one that comes there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its MAC, where known.
    pub mac: Option<[u8; 6]>,
}

impl State {
    /// Nothing known.
    pub fn new(settings: Settings) -> Self {
        let nets = [&settings.ranges.pods, &settings.ranges.services, &settings.ranges.nodes];
        let ranges: Vec<IpNet> = nets.into_iter().flatten().copied().collect();
        let domain = settings.cluster_domain.clone();
        let cluster_names = Arc::new(ClusterNames { domain, search: Vec::new(), ranges });
        Self {
            settings,
            tables: Tables::new(cluster_names),
            learned: SharedLearned::default(),
            town: Town::default(),
            endpoints: BTreeMap::new(),
            closed: BTreeMap::new(),
            claims: BTreeMap::new(),
            confined: None,
            ipcache: BTreeMap::new(),
            services: Arc::default(),
            service_owners: Arc::default(),
            gone_services: BTreeMap::new(),
            wanted: Arc::default(),
            slots: Slots::default(),
            troubles: BTreeSet::new(),
            look: None,
            now: Timestamp::default(),
        }
    }

    /// Keys the hash that names are looked up by, against those who would choose slow ones.
    #[must_use]
    pub fn with_pattern_seed(self, seed: u64) -> Self {
        Self { tables: self.tables.with_seed(PatternSeed::new(seed)), ..self }
    }

    /// The same with what is learned kept in `learned`.
    #[must_use]
    pub fn with_learned(self, learned: SharedLearned) -> Self {
        Self { learned, ..self }
    }

    /// The same with suffixes that pods search besides the cluster's own (EP-7).
    #[must_use]
    pub fn with_search(self, search: Vec<DnsName>) -> Self {
        Self { tables: self.tables.with_search(search), ..self }
    }

    /// The same as the successor of an agent that had these identities at addresses, until
    /// [`State::forget_former`].
    #[must_use]
    pub fn with_former(self, former: BTreeMap<IpAddr, Identity>) -> Self {
        Self { tables: self.tables.with_former(former), ..self }
    }

    /// Ends what [`State::with_former`] began: to be said when the first objects are taken.
    pub fn forget_former(&mut self) {
        self.tables.forget_former();
    }

    /// The same over objects that an earlier agent knew: until it is told that they are current, pods
    /// are endpoints only behind interfaces that were theirs, and what else carries their addresses is
    /// closed.
    #[must_use]
    pub fn confined_to(self, interfaces: BTreeMap<u32, Behind>) -> Self {
        Self { confined: Some(interfaces), ..self }
    }

    /// Takes one event and says what has to change.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Effects {
        self.now = self.now.max(now);
        match event {
            Event::Objects(changes) => self.take_objects(changes),
            Event::Town(town) => self.take_town(town),
            Event::Attached(claims) => self.take_claims(claims),
            Event::Detached(gone) => self.drop_claims(|attachment| gone.contains(attachment)),
            Event::Left(left) => self.drop_claims(|found| !left.valid.contains(found)),
            Event::Tick => {
                let mut effects = self.end_some(now);
                self.end_services(&mut effects);
                effects
            }
            Event::Swept { since, in_use } => {
                // One that is not worked off stays valid, and comes to no end where others replace it.
                self.look.get_or_insert_with(|| Look::new(since, in_use));
                let mut effects = self.end_some(now);
                effects.absorb(self.forget_claims(now));
                effects
            }
        }
    }

    /// Takes on interfaces that an earlier agent enforced, once objects and interfaces are known: in a
    /// cluster, what is there and no endpoint is closed until it goes; elsewhere it is let go.
    pub fn inherit(&mut self, interfaces: &BTreeSet<u32>) -> Effects {
        let mut effects = Effects::default();
        for index in interfaces.iter().filter(|index| !self.endpoints.contains_key(index)) {
            let effect = if self.closes(*index) {
                self.closed.entry(*index).or_default();
                EndpointEffect::Close
            } else {
                EndpointEffect::Release
            };
            effects.endpoints.insert(*index, effect);
        }
        effects
    }

    /// What becomes of an answer that says nothing which is not in force already: under its name each
    /// of its addresses is fresh for as long as it would make it, give or take [`REPEAT`], and what the
    /// kernel has of an address, as `in_force` says, opens what the answer would. `None` where it has
    /// to be learned, or cannot be.
    ///
    /// Answers from the cache are like that, and those to a name that is asked all the time.
    pub fn repeated(
        &self,
        answer: &Answer,
        now: Timestamp,
        in_force: impl Fn(IpAddr) -> Option<NameRules>,
    ) -> Option<Taught> {
        let table = self.tables.built().get(&answer.identity)?;
        let clauses = NameClauses::of(&table.names, &answer.name);
        if clauses.all.is_empty() && !answer.clauses.is_empty() {
            return None;
        }
        let openings = self.openings();
        let window = self.settings.window;
        let slack = REPEAT.min(window.grace / 4);
        let learned = self.learned.read();
        let mut taught = Taught::default();
        for &(address, ttl) in &answer.addresses {
            let place = (answer.identity, address);
            let wanted = window.deadline(Duration::from_secs(u64::from(ttl)), now);
            if learned.fresh_until(place, &answer.name)?.saturating_add(slack) < wanted {
                return None;
            }
            match (openings.judge(address, &clauses), in_force(address)) {
                (Ok(opens), _) if opens.is_empty() => {
                    taught.withheld.push((address, Withheld::NoRule));
                }
                (Ok(opens), Some(rules))
                    if opens.without(&rules.fresh).is_empty() && rules.deadline > now =>
                {
                    let until = taught.open_until.unwrap_or(Timestamp::NEVER);
                    taught.open_until = Some(until.min(rules.deadline));
                }
                (Err(reason), None) => taught.withheld.push((address, Withheld::NotOpened(reason))),
                // What is in force is not what the answer would put in force.
                (Ok(_) | Err(_), _) => return None,
            }
        }
        Some(taught)
    }

    /// Learns an answer. On an error nothing changed.
    pub fn teach(
        &mut self,
        answer: &Answer,
        now: Timestamp,
    ) -> Result<(Effects, Taught), TeachError> {
        let mut effects = Effects::default();
        let taught = self.teach_into(&mut effects.names, answer, now)?;
        Ok((effects, taught))
    }

    /// Learns an answer and adds what its addresses open to `names`, which one batch of answers
    /// shares. On an error nothing changed.
    pub fn teach_into(
        &mut self,
        names: &mut BTreeMap<Place, Option<NameRules>>,
        answer: &Answer,
        now: Timestamp,
    ) -> Result<Taught, TeachError> {
        self.now = self.now.max(now);
        let table = self.tables.built().get(&answer.identity).ok_or(TeachError::Stale)?;
        let policy = Arc::clone(&table.names);
        let clauses = NameClauses::of(&policy, &answer.name);
        if clauses.all.is_empty() && !answer.clauses.is_empty() {
            return Err(TeachError::Stale);
        }
        let openings = self.openings();
        let mut taught = Taught::default();
        let mut opened: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for &(address, ttl) in &answer.addresses {
            match openings.judge(address, &clauses) {
                Ok(rules) if rules.is_empty() => taught.withheld.push((address, Withheld::NoRule)),
                Ok(_) => {}
                Err(reason) => taught.withheld.push((address, Withheld::NotOpened(reason))),
            }
            opened.entry(ttl).or_default().insert(address);
        }
        let opens_any = taught.withheld.len() < answer.addresses.len();
        let mut places: BTreeSet<Place> =
            answer.addresses.iter().map(|(address, _)| (answer.identity, *address)).collect();
        let mut learned = self.learned.write();
        for (ttl, addresses) in &opened {
            let ttl = Duration::from_secs(u64::from(*ttl));
            let deadline = self.settings.window.deadline(ttl, now);
            let term = Term { since: Some(now), deadline };
            match learned.learn(answer.identity, &answer.name, addresses, term) {
                Ok(evicted) => places.extend(evicted),
                Err(error) if opens_any => return Err(error.into()),
                // Where nothing is to be opened the name matters to records alone.
                Err(_) => {}
            }
        }
        let evicted = learned.evictions(answer.identity);
        drop(learned);
        if places.len() > answer.addresses.len() && evicted.is_power_of_two() {
            tracing::warn!(
                identity = answer.identity.number(),
                evicted,
                "learned names make room for others: those that end first are closed early"
            );
        }
        self.rewrite_into(names, places);
        let is_open = |rules: &&NameRules| !rules.fresh.is_empty();
        let own = answer.addresses.iter().map(|(address, _)| (answer.identity, *address));
        let rules = own.filter_map(|place| names.get(&place)?.as_ref());
        taught.open_until = rules.filter(is_open).map(|rules| rules.deadline).min();
        Ok(taught)
    }

    /// When there is something to end next; long ago where the last [`Event::Tick`] left something.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.look.is_some() {
            return Some(Timestamp::default());
        }
        let names = self.learned.read().next_deadline();
        names.into_iter().chain(self.next_service_end()).min()
    }

    /// The policy tables in force, by identity.
    pub fn tables(&self) -> &BTreeMap<Identity, Arc<PolicyTable>> {
        self.tables.built()
    }

    /// The endpoints, by host-side interface.
    pub fn endpoints(&self) -> &BTreeMap<u32, EndpointSpec> {
        &self.endpoints
    }

    /// The interfaces that nothing passes because their pods are not known, with the last pod that
    /// was.
    pub fn closed(&self) -> &BTreeMap<u32, Option<PodRef>> {
        &self.closed
    }

    /// The pod that has this address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&PodRef> {
        self.tables.inventory().pod_at(address).map(|(pod, _)| &pod.reference)
    }

    /// A pod.
    pub fn pod(&self, pod: &PodRef) -> Option<&Pod> {
        self.tables.inventory().pod(pod)
    }

    /// The identity of a pod.
    pub fn identity_of_pod(&self, pod: &PodRef) -> Option<Identity> {
        self.tables.inventory().identity_of(pod)
    }

    /// The resolvers by slot.
    pub fn resolvers(&self) -> BTreeMap<u8, IpAddr> {
        self.slots.iter().collect()
    }

    /// How many policies are known.
    pub fn policy_count(&self) -> usize {
        self.tables.policies().count()
    }

    /// What identities learned.
    pub fn learned(&self) -> &SharedLearned {
        &self.learned
    }

    /// Restores what an earlier agent learned for an identity; says whether there was room.
    pub fn restore(
        &mut self,
        identity: Identity,
        name: &DnsName,
        address: IpAddr,
        term: impl Into<Term>,
    ) -> bool {
        let mut learned = self.learned.write();
        learned.learn(identity, name, &BTreeSet::from([address]), term).is_ok()
    }

    /// Whether `name` opens `address` for `identity`, for as long as an answer counts; the error is why
    /// no name opens it.
    pub fn opens(
        &self,
        identity: Identity,
        address: IpAddr,
        name: &DnsName,
    ) -> Result<bool, NotOpened> {
        let Some(table) = self.tables.built().get(&identity) else { return Ok(false) };
        let rules = self.openings().judge(address, &NameClauses::of(&table.names, name))?;
        Ok(!rules.is_empty())
    }

    /// The whole of what `identity` has to have in force, for writing it anew.
    pub fn table_effect(&self, identity: Identity) -> Option<TableEffect> {
        let table = Arc::clone(self.tables.built().get(&identity)?);
        let learned = self.learned.read();
        let addresses = learned.addresses(identity);
        let names = self.openings().rules(&learned, identity, &table.names, addresses);
        Some(TableEffect { table, names })
    }

    fn openings(&self) -> Openings<'_> {
        let known = ClusterAddresses { ipcache: &self.ipcache, inventory: self.tables.inventory() };
        let (ranges, guard) = (&self.settings.ranges, self.settings.guard);
        Openings { ranges, guard, known, now: self.now }
    }
}
