//! One table from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ladder::{Selecting, climb, everything, sort};
use super::names::build;
use super::resolve::{Members, Resolved, Resolver};
use super::{ClauseAction, ClauseTier, PolicyTable, TableError};
use crate::dns::{ClusterNames, NamePolicy, RefuseWith};
use crate::identity::{Identity, IdentitySet};
use crate::inventory::Inventory;
use crate::pattern::PatternSeed;
use crate::rule::{Direction, Origin, Policy, PolicyRef, Workloads};

/// What one table is built from, with nothing kept: for a look at one identity, and to hold
/// [`super::Tables`] against.
#[derive(Clone, Copy, Debug)]
pub struct TableSource<'a> {
    /// Every policy in force.
    pub policies: &'a BTreeMap<PolicyRef, Arc<Policy>>,
    /// The cluster.
    pub inventory: &'a Inventory,
    /// What lookups need to know.
    pub names: &'a Arc<ClusterNames>,
}

impl TableSource<'_> {
    /// Builds the table of `identity`.
    pub fn build(&self, identity: Identity) -> Result<PolicyTable, TableError> {
        let labels = self
            .inventory
            .identities()
            .labels(identity)
            .ok_or(TableError::UnknownIdentity(identity.number()))?;
        let known = self.inventory.known_addresses();
        let ranges = &self.names.ranges;
        let outside: BTreeSet<_> =
            known.filter(|address| !ranges.iter().any(|range| range.contains(address))).collect();
        let resolver = Resolver {
            inventory: self.inventory,
            names: self.names,
            members: self.inventory,
            outside: &outside,
        };
        let parts = self.policies.values().flat_map(|policy| policy.parts());
        let resolved: Vec<(&Policy, Resolved)> = parts
            .filter(|policy| policy.subject.matches(labels))
            .map(|policy| (policy, resolver.policy(policy)))
            .collect();
        let mut selecting: Vec<_> = (0..)
            .zip(&resolved)
            .map(|(index, (policy, resolved))| Selecting { policy, resolved, wording: (0, index) })
            .collect();
        sort(&mut selecting);
        let egress = climb(&selecting, labels, Direction::Egress)?;
        let ingress = climb(&selecting, labels, Direction::Ingress)?;
        let names = build(&selecting, &egress, self.names, PatternSeed::default());
        Ok(PolicyTable {
            identity,
            egress: egress.into_iter().map(|step| step.clause).collect(),
            ingress: ingress.into_iter().map(|step| step.clause).collect(),
            names: Arc::new(names),
        })
    }
}

impl PolicyTable {
    /// A table that drops every flow both ways because of `culprit`: the stricter side, for an
    /// identity whose rules cannot be compiled.
    pub fn closed(identity: Identity, culprit: PolicyRef, names: &Arc<ClusterNames>) -> Self {
        let origin = Origin { policy: culprit, rule: None };
        let everything =
            vec![everything(ClauseAction::Drop, ClauseTier::Admin, Arc::new([origin.clone()]))];
        let mut policy = NamePolicy::ungoverned(Arc::clone(names));
        policy.govern();
        policy.filter(origin, RefuseWith::Refused);
        Self { identity, egress: everything.clone(), ingress: everything, names: Arc::new(policy) }
    }
}

/// Every identity is looked at for every selector.
impl Members for Inventory {
    fn of(&self, workloads: &Workloads) -> Arc<IdentitySet> {
        let known = self.identities().iter();
        let meant = known.filter(|(_, labels)| workloads.matches(labels));
        Arc::new(meant.map(|(identity, _)| identity).collect())
    }

    fn all(&self) -> Arc<IdentitySet> {
        Arc::new(self.identities().iter().map(|(identity, _)| identity).collect())
    }
}
