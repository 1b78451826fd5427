//! Which names an identity may ask for, and which rules an answer opens.

use crate::name::DnsName;
use crate::rule::Origin;

/// The egress clauses (by position in [`crate::table::PolicyTable::egress`]) whose FQDN peers match
/// a name, lowest first.
pub type ClauseSet = Vec<u16>;

/// How a refused name is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseWith {
    /// RCODE 5.
    #[default]
    Refused,
    /// RCODE 3.
    NxDomain,
    /// RCODE 0 without records.
    Empty,
}

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameDecision {
    /// The name is resolved.
    Allowed {
        /// The clauses that the answer's addresses are opened for; empty where the name resolves and
        /// opens nothing.
        clauses: ClauseSet,
        /// The rule that allowed it; `None` where no rule had to, as for the cluster domain.
        origin: Option<Origin>,
        /// Whether only Audit policies would have refused it.
        audit: bool,
    },
    /// The name is some name under one of the pod's search suffixes: NXDOMAIN, so that the resolver
    /// library tries its next candidate (EP-7).
    SearchMiss,
    /// No rule allows the name.
    Refused {
        /// How to answer.
        with: RefuseWith,
        /// The policies that filter this identity's lookups.
        filters: Vec<Origin>,
    },
}

/// What one identity may look up: an immutable part of its policy table.
#[derive(Clone, Debug, Default)]
pub struct NamePolicy {}

impl NamePolicy {
    /// Whether lookups of this identity go through the proxy at all (EP-2).
    pub fn is_governed(&self) -> bool {
        false
    }

    /// Decides about a query for `name`.
    pub fn decide(&self, _name: &DnsName) -> NameDecision {
        NameDecision::Refused { with: RefuseWith::Refused, filters: Vec::new() }
    }
}
