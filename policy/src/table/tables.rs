//! The owner of the tables of a node's identities, which does as little as a change asks for.
//!
//! A policy is resolved against the cluster once for all identities that it selects, and again when
//! a selector of its means others or something else that it names changed. A table is put together
//! from resolved policies. So a pod of a known identity changes nothing here; one of an unknown
//! identity changes the policies that mean it, and in the tables of those whom these select the sets
//! of the clauses concerned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::depend::{self, Dependency};
use super::ladder::{Selecting, climb, sort};
use super::names::NamePolicies;
use super::resolve::{Resolved, Resolver};
use super::selectors::{SelectorId, Selectors};
use super::{Clause, PolicyTable, TableError};
use crate::dns::ClusterNames;
use crate::identity::{Identity, IdentitySet};
use crate::inventory::Inventory;
use crate::name::DnsName;
use crate::object::{Object, ObjectKind, ObjectRef};
use crate::pattern::PatternSeed;
use crate::resource::PodRef;
use crate::rule::{Direction, Peer, Peers, Policy, PolicyKind, PolicyRef, ServiceRef};

/// Objects in, tables of governed identities out.
///
/// Objects are taken by [`Tables::upsert`] and [`Tables::remove`]; [`Tables::settle`] says what
/// follows for pods and addresses; then [`Tables::govern`] and [`Tables::release`] say whose tables
/// matter, and [`Tables::rebuild`] says which are others.
#[derive(Debug)]
pub struct Tables {
    cluster: Arc<ClusterNames>,
    seed: PatternSeed,
    inventory: Inventory,
    policies: BTreeMap<PolicyRef, Known>,
    selectors: Selectors,
    dependents: BTreeMap<Dependency, BTreeSet<PolicyRef>>,
    /// Addresses of pods and nodes outside the cluster's ranges.
    outside: BTreeSet<IpAddr>,
    name_policies: NamePolicies,
    built: BTreeMap<Identity, Arc<PolicyTable>>,
    errors: BTreeMap<Identity, TableError>,
    next_wording: u64,
    reworded: BTreeSet<PolicyRef>,
    stale: BTreeMap<Identity, Cause>,
}

/// A policy and what follows from it.
#[derive(Debug)]
struct Known {
    /// The object that the policy is.
    object: Arc<Object>,
    wording: u64,
    /// One for each of [`Known::words`].
    parts: Vec<KnownPart>,
    /// The selectors of its peers.
    selectors: Vec<SelectorId>,
    dependencies: BTreeSet<Dependency>,
}

impl Known {
    fn policy(&self) -> Option<&Policy> {
        match &*self.object {
            Object::Policy(policy) => Some(policy),
            Object::Namespace(_)
            | Object::Pod(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Node(_)
            | Object::CidrGroup(_) => None,
        }
    }

    /// What the policy says, a subject at a time.
    fn words(&self) -> impl Iterator<Item = &Policy> {
        self.policy().into_iter().flat_map(Policy::parts)
    }
}

#[derive(Debug)]
struct KnownPart {
    subject: SelectorId,
    resolved: Resolved,
}

/// Why a table is put together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// What its policies mean is another.
    Cluster,
    /// Its policies are others.
    Policies,
}

/// What objects changed, as far as it is no matter of tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterChanges {
    /// Pods that came, went or are others.
    pub pods: BTreeSet<PodRef>,
    /// Addresses that somebody else may have, or somebody at all.
    pub addresses: BTreeSet<IpAddr>,
}

/// How a table differs from what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// By anything.
    Replaced,
    /// Only by these identities, which came to or went from the peers of clauses. Everything else,
    /// the clauses' positions among it, is as it was.
    Members(BTreeSet<Identity>),
}

impl Tables {
    /// Nothing known.
    pub fn new(cluster: Arc<ClusterNames>) -> Self {
        Self {
            cluster,
            seed: PatternSeed::default(),
            inventory: Inventory::default(),
            policies: BTreeMap::new(),
            selectors: Selectors::default(),
            dependents: BTreeMap::new(),
            outside: BTreeSet::new(),
            name_policies: NamePolicies::default(),
            built: BTreeMap::new(),
            errors: BTreeMap::new(),
            next_wording: 0,
            reworded: BTreeSet::new(),
            stale: BTreeMap::new(),
        }
    }

    /// Keys the hash of patterns. To be said before the first table is built.
    #[must_use]
    pub fn with_seed(self, seed: PatternSeed) -> Self {
        Self { seed, ..self }
    }

    /// The suffixes that pods search besides the cluster's own (EP-7). To be said before the first
    /// table is built.
    #[must_use]
    pub fn with_search(self, search: Vec<DnsName>) -> Self {
        let cluster = Arc::new(ClusterNames { search, ..ClusterNames::clone(&self.cluster) });
        Self { cluster, ..self }
    }

    /// The identities that an earlier owner gave to addresses, to go on from. To be said before the
    /// first object, and taken back by [`Tables::forget_former`] after those that there are.
    #[must_use]
    pub fn with_former(mut self, former: BTreeMap<IpAddr, Identity>) -> Self {
        self.inventory.continue_from(former);
        self
    }

    /// Ends what [`Tables::with_former`] began.
    pub fn forget_former(&mut self) {
        self.inventory.forget_former();
    }

    /// Adds or replaces an object. Policies are large, and kept as they are.
    pub fn upsert(&mut self, object: &Arc<Object>) {
        let inventory = &mut self.inventory;
        match &**object {
            Object::Namespace(namespace) => inventory.upsert_namespace(namespace.clone()),
            Object::Pod(pod) => inventory.upsert_pod(pod.clone()),
            Object::Service(service) => inventory.upsert_service(service.clone()),
            Object::EndpointSlice(slice) => inventory.upsert_slice(slice.clone()),
            Object::Node(node) => inventory.upsert_node(node.clone()),
            Object::CidrGroup(group) => inventory.upsert_cidr_group(group.clone()),
            Object::Policy(policy) => self.upsert_policy(object, policy),
        }
    }

    /// Removes an object.
    pub fn remove(&mut self, object: &ObjectRef) {
        let name = &object.name;
        let namespace = object.namespace.clone().unwrap_or_default();
        match object.kind {
            ObjectKind::Namespace => self.inventory.remove_namespace(name),
            ObjectKind::Node => self.inventory.remove_node(name),
            ObjectKind::CidrGroup => self.inventory.remove_cidr_group(name),
            ObjectKind::Pod => {
                self.inventory.remove_pod(&PodRef { namespace, name: Arc::clone(name) });
            }
            ObjectKind::Service => {
                self.inventory.remove_service(&ServiceRef { namespace, name: Arc::clone(name) });
            }
            ObjectKind::EndpointSlice => self.inventory.remove_slice(&namespace, name),
            ObjectKind::Policy(kind) => {
                let namespace = object.namespace.clone();
                self.remove_policy(&PolicyRef { kind, namespace, name: Arc::clone(name) });
            }
        }
    }

    /// Works out what the objects taken since the last call mean for policies.
    pub fn settle(&mut self) -> ClusterChanges {
        let changes = self.inventory.take_changes();
        let mut affected = BTreeSet::new();
        for &identity in &changes.identities {
            let labels = self.inventory.identities().labels(identity);
            self.selectors.set(identity, labels, &mut affected);
        }
        let outside = self.update_outside(&changes.addresses);
        for touched in depend::of_changes(&changes, outside) {
            affected.extend(self.dependents.get(&touched).into_iter().flatten().cloned());
        }
        let reworded = std::mem::take(&mut self.reworded);
        for reference in affected.difference(&reworded) {
            self.resolve(reference, Cause::Cluster);
        }
        for reference in &reworded {
            self.resolve(reference, Cause::Policies);
        }
        ClusterChanges { pods: changes.pods, addresses: changes.addresses }
    }

    /// Keeps a table for `identity` from the next [`Tables::rebuild`] on.
    pub fn govern(&mut self, identity: Identity) {
        if !self.built.contains_key(&identity) {
            self.stale.insert(identity, Cause::Policies);
        }
    }

    /// Keeps no table for `identity` any more.
    pub fn release(&mut self, identity: Identity) {
        self.built.remove(&identity);
        self.errors.remove(&identity);
        self.stale.remove(&identity);
    }

    /// Puts together what [`Tables::settle`] found to be others, and says which tables differ.
    pub fn rebuild(&mut self) -> BTreeMap<Identity, TableChange> {
        let mut changes = BTreeMap::new();
        for (identity, cause) in std::mem::take(&mut self.stale) {
            let table = match self.assemble(identity) {
                Ok(table) => {
                    self.errors.remove(&identity);
                    table
                }
                Err(error) if self.errors.get(&identity) == Some(&error) => continue,
                Err(error) => {
                    let culprit = culprit(&error);
                    self.errors.insert(identity, error);
                    PolicyTable::closed(identity, culprit, &self.cluster)
                }
            };
            let known = self.built.get(&identity);
            let change =
                known.map_or(Some(TableChange::Replaced), |known| compare(known, &table, cause));
            if let Some(change) = change {
                self.built.insert(identity, Arc::new(table));
                changes.insert(identity, change);
            }
        }
        self.name_policies.sweep();
        changes
    }

    /// The tables of governed identities, as of the last [`Tables::rebuild`].
    pub fn built(&self) -> &BTreeMap<Identity, Arc<PolicyTable>> {
        &self.built
    }

    /// The identities whose rules cannot be compiled, and why; their tables are closed.
    pub fn errors(&self) -> impl Iterator<Item = (Identity, &TableError)> {
        self.errors.iter().map(|(identity, error)| (*identity, error))
    }

    /// The cluster as it is known.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Every policy in force.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().filter_map(Known::policy)
    }

    /// Whom `policy` selects: one set for each of its subjects.
    pub fn selected(&self, policy: &PolicyRef) -> Vec<Arc<IdentitySet>> {
        let parts = self.policies.get(policy).map_or(&[][..], |known| &known.parts);
        parts.iter().map(|part| self.selectors.members(part.subject)).collect()
    }

    fn upsert_policy(&mut self, object: &Arc<Object>, policy: &Policy) {
        let reference = policy.reference.clone();
        if self.policies.get(&reference).and_then(Known::policy) == Some(policy) {
            return;
        }
        self.remove_policy(&reference);
        let selectors = &mut self.selectors;
        let parts = policy.parts().map(|part| KnownPart {
            subject: selectors.hold(&part.subject, &reference),
            resolved: Resolved::default(),
        });
        let parts = parts.collect();
        let held = peers(policy).filter_map(|peer| match peer {
            Peer::Workloads(workloads) => Some(selectors.hold(workloads, &reference)),
            Peer::Cidr(_)
            | Peer::CidrGroups(_)
            | Peer::Fqdn(_)
            | Peer::Entity(_)
            | Peer::Service(_)
            | Peer::Services(_)
            | Peer::Nodes(_) => None,
        });
        let held = held.collect();
        let dependencies = depend::of_policy(policy);
        for dependency in &dependencies {
            let dependents = self.dependents.entry(dependency.clone()).or_default();
            dependents.insert(reference.clone());
        }
        let wording = self.next_wording;
        self.next_wording += 1;
        self.reworded.insert(reference.clone());
        let object = Arc::clone(object);
        let known = Known { object, wording, parts, selectors: held, dependencies };
        self.policies.insert(reference, known);
    }

    fn remove_policy(&mut self, reference: &PolicyRef) {
        let Some(known) = self.policies.remove(reference) else { return };
        for part in &known.parts {
            mark(&mut self.stale, &self.built, &self.selectors, part.subject, Cause::Policies);
        }
        let subjects = known.parts.iter().map(|part| part.subject);
        for id in subjects.chain(known.selectors) {
            self.selectors.let_go(id, reference);
        }
        for dependency in known.dependencies {
            if let Some(dependents) = self.dependents.get_mut(&dependency) {
                dependents.remove(reference);
                if dependents.is_empty() {
                    self.dependents.remove(&dependency);
                }
            }
        }
    }

    /// Resolves a policy again, and marks the tables that it is part of where that says another
    /// thing.
    fn resolve(&mut self, reference: &PolicyRef, cause: Cause) {
        let Some(known) = self.policies.get_mut(reference) else { return };
        let resolver = Resolver {
            inventory: &self.inventory,
            names: &self.cluster,
            members: &self.selectors,
            outside: &self.outside,
        };
        let resolved: Vec<Resolved> = known.words().map(|words| resolver.policy(words)).collect();
        for (part, resolved) in known.parts.iter_mut().zip(resolved) {
            if cause == Cause::Policies || part.resolved != resolved {
                part.resolved = resolved;
                mark(&mut self.stale, &self.built, &self.selectors, part.subject, cause);
            }
        }
    }

    /// Keeps count of addresses outside the cluster's ranges; says whether there are others.
    fn update_outside(&mut self, addresses: &BTreeSet<IpAddr>) -> bool {
        let ranges = &self.cluster.ranges;
        let mut is_other = false;
        for address in addresses {
            if ranges.iter().any(|range| range.contains(address)) {
                continue;
            }
            is_other |= if self.inventory.is_known_address(*address) {
                self.outside.insert(*address)
            } else {
                self.outside.remove(address)
            };
        }
        is_other
    }

    fn assemble(&mut self, identity: Identity) -> Result<PolicyTable, TableError> {
        let labels = self
            .inventory
            .identities()
            .labels(identity)
            .ok_or(TableError::UnknownIdentity(identity.number()))?;
        let mut selecting = Vec::new();
        for known in self.policies.values() {
            for (index, (part, policy)) in known.parts.iter().zip(known.words()).enumerate() {
                if self.selectors.selects(part.subject, identity) {
                    let wording = (known.wording, index);
                    selecting.push(Selecting { policy, resolved: &part.resolved, wording });
                }
            }
        }
        sort(&mut selecting);
        let egress = climb(&selecting, labels, Direction::Egress)?;
        let ingress = climb(&selecting, labels, Direction::Ingress)?;
        let names = self.name_policies.of(&selecting, &egress, &self.cluster, self.seed);
        Ok(PolicyTable {
            identity,
            egress: egress.into_iter().map(|step| step.clause).collect(),
            ingress: ingress.into_iter().map(|step| step.clause).collect(),
            names,
        })
    }
}

/// Marks the tables of those whom `subject` selects.
fn mark(
    stale: &mut BTreeMap<Identity, Cause>,
    built: &BTreeMap<Identity, Arc<PolicyTable>>,
    selectors: &Selectors,
    subject: SelectorId,
    cause: Cause,
) {
    for &identity in built.keys().filter(|identity| selectors.selects(subject, **identity)) {
        let marked = stale.entry(identity).or_insert(cause);
        *marked = cause.max(*marked);
    }
}

fn compare(old: &PolicyTable, new: &PolicyTable, cause: Cause) -> Option<TableChange> {
    let is_shaped = |old: &[Clause], new: &[Clause]| {
        old.len() == new.len() && old.iter().zip(new).all(|(a, b)| a.is_shaped_like(b))
    };
    let is_same_shape = Arc::ptr_eq(&old.names, &new.names)
        && is_shaped(&old.egress, &new.egress)
        && is_shaped(&old.ingress, &new.ingress);
    if !is_same_shape {
        return Some(TableChange::Replaced);
    }
    let mut members = BTreeSet::new();
    let olds = old.egress.iter().chain(&old.ingress);
    for (old, new) in olds.zip(new.egress.iter().chain(&new.ingress)) {
        let (old, new) = (&old.peers.identities, &new.peers.identities);
        if !Arc::ptr_eq(old, new) {
            members.extend(old.differences(new));
        }
    }
    match cause {
        _ if members.is_empty() => None,
        Cause::Cluster => Some(TableChange::Members(members)),
        Cause::Policies => Some(TableChange::Replaced),
    }
}

fn peers(policy: &Policy) -> impl Iterator<Item = &Peer> {
    policy.parts().flat_map(|part| &part.rules).flat_map(|rule| match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    })
}

fn culprit(error: &TableError) -> PolicyRef {
    match error {
        TableError::TooManyClauses { policy, .. } => policy.clone(),
        TableError::UnknownIdentity(_) => {
            let (namespace, name) = (None, "unknown".into());
            PolicyRef { kind: PolicyKind::NetworkPolicy, namespace, name }
        }
    }
}
