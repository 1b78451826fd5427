//! Policy tables: every rule that selects one identity, resolved, in order of precedence.
//!
//! A table is what the kernel's maps are compiled from. The position of a [`Clause`] in its
//! direction is its bit: the lowest set bit decides. Openness is a clause too: an identity that no
//! policy isolates ends in a clause that forwards everything, so that a flow that no clause matches
//! is always dropped.

use std::sync::Arc;

use crate::dns::NamePolicy;
use crate::identity::{Identity, IdentitySet};
use crate::rule::{Direction, Origin, PolicyRef, PortRange, Protocol};

pub use crate::rule::{CidrPeer, CidrReach};
pub use build::TableSource;
pub use tables::{ClusterChanges, TableChange, Tables};

mod build;
mod depend;
mod ladder;
mod names;
mod resolve;
mod selectors;
mod tables;

/// The number of clauses that one direction of a table can hold.
pub const CLAUSES_MAX: usize = crate::limits::STEPS_PER_DIRECTION;

/// What a clause does to a flow that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClauseAction {
    /// The flow goes through.
    Forward,
    /// The flow is dropped.
    Drop,
    /// An Audit policy would drop the flow: remembered, and the search goes on. The flow is logged
    /// as `audit` where the clause that decides in the end forwards it.
    Audit,
    /// The rest of the clause's tier is skipped.
    Pass,
}

/// The tier a clause belongs to, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClauseTier {
    /// Admin rules.
    Admin,
    /// Deny, allow and isolation of namespaced policies.
    Namespaced,
    /// Baseline rules.
    Baseline,
    /// The final clause of an identity that nothing isolates.
    Open,
}

/// The remote ends that a clause matches, resolved against the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClausePeers {
    /// Matches every remote; the other fields are empty then.
    pub any: bool,
    /// Remotes by identity.
    pub identities: Arc<IdentitySet>,
    /// Remotes by address: the same list in the tables of all that a policy selects.
    pub cidrs: Arc<Vec<CidrPeer>>,
    /// Whether addresses learned for a name can match; which names is the matter of
    /// [`NamePolicy`].
    pub names: bool,
}

/// The ports that a clause matches, named ports resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClausePorts {
    /// Every port of TCP, UDP and SCTP, ICMP echo, and other IP protocols where the agent lets them
    /// be judged at all.
    Any,
    /// These; an empty list matches nothing.
    Of(Vec<(Protocol, PortRange)>),
}

/// One step of a table: the flows that it matches and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// What becomes of a matching flow.
    pub action: ClauseAction,
    /// The tier, for [`ClauseAction::Pass`].
    pub tier: ClauseTier,
    /// The remote ends.
    pub peers: ClausePeers,
    /// The ports of the flow's destination.
    pub ports: ClausePorts,
    /// Who says so. Several for isolation, which all isolating policies bring about together; none
    /// for the final open clause.
    pub origins: Arc<[Origin]>,
}

impl Clause {
    /// Whether this is `other` but for the identities that its peers mean.
    pub fn is_shaped_like(&self, other: &Self) -> bool {
        let (own, its) = (&self.peers, &other.peers);
        self.action == other.action
            && self.tier == other.tier
            && own.any == its.any
            && own.names == its.names
            && self.ports == other.ports
            && self.origins == other.origins
            && own.cidrs == its.cidrs
    }
}

/// All that decides about the flows and the lookups of one identity.
#[derive(Clone, Debug)]
pub struct PolicyTable {
    /// Whose table this is.
    pub identity: Identity,
    /// Clauses for flows that the identity opens, lowest first.
    pub egress: Vec<Clause>,
    /// Clauses for flows that others open to it, lowest first.
    pub ingress: Vec<Clause>,
    /// Which names may be asked, and which egress clauses each name belongs to.
    pub names: Arc<NamePolicy>,
}

/// Why an identity has no table of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// More clauses than bits.
    #[error(
        "{direction:?} rules for one workload need {needed} clauses, {limit} are possible; \
         {policy} is the first that does not fit"
    )]
    TooManyClauses {
        /// The direction.
        direction: Direction,
        /// The object whose clause is the first past the limit.
        policy: PolicyRef,
        /// How many there would be.
        needed: usize,
        /// How many there can be.
        limit: usize,
    },
    /// The identity is not in use.
    #[error("identity {0} is not in use")]
    UnknownIdentity(u32),
}
