//! Which names an identity may ask for, and which rules an answer opens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::DnsName;
use crate::pattern::{DomainPattern, PatternSeed, PatternSet};
use crate::rule::{FqdnPeer, Origin};

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
        /// The rule that allowed it, or the Audit policy that would have refused it; `None` where no
        /// rule had to, as for the cluster domain.
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

/// What lookups need to know about the cluster, the same for every identity.
#[derive(Clone, Debug)]
pub struct ClusterNames {
    /// Names at or below it always resolve and open nothing (EP-6).
    pub domain: DnsName,
    /// Search suffixes of pods besides those below `domain` (EP-7).
    pub search: Vec<DnsName>,
    /// Ranges of pods, services and nodes, whose reverse names always resolve (EP-6).
    pub ranges: Vec<IpNet>,
}

/// What one identity may look up: an immutable part of its policy table.
#[derive(Clone, Debug)]
pub struct NamePolicy {
    is_governed: bool,
    patterns: PatternSet,
    /// What patterns stand for: many for the same.
    uses: Vec<Use>,
    enforcing: Vec<(Origin, RefuseWith)>,
    auditing: Vec<Origin>,
    cluster: Arc<ClusterNames>,
}

/// What a pattern stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Use {
    /// The clause that it opens addresses for.
    clause: Option<u16>,
    resolves: bool,
    allow_private: bool,
    /// Whether the pattern is one name in full.
    is_exact: bool,
    origin: Origin,
}

impl NamePolicy {
    /// The policy of an identity whose lookups nothing governs.
    pub fn ungoverned(cluster: Arc<ClusterNames>) -> Self {
        Self {
            is_governed: false,
            patterns: PatternSet::default(),
            uses: Vec::new(),
            enforcing: Vec::new(),
            auditing: Vec::new(),
            cluster,
        }
    }

    /// An ungoverned policy whose patterns are hashed by `seed`.
    pub(crate) fn seeded(cluster: Arc<ClusterNames>, seed: PatternSeed) -> Self {
        Self { patterns: PatternSet::new(seed), ..Self::ungoverned(cluster) }
    }

    /// Makes room for `more` patterns.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.patterns.reserve(more);
    }

    /// How many patterns there are, and the octets of memory that they take.
    pub fn size(&self) -> (usize, usize) {
        (self.patterns.len(), self.patterns.footprint())
    }

    /// Sends the identity's lookups through the proxy (EP-2).
    pub(crate) fn govern(&mut self) {
        self.is_governed = true;
    }

    /// Refuses names that no rule allows, on behalf of `origin`.
    pub(crate) fn filter(&mut self, origin: Origin, with: RefuseWith) {
        self.enforcing.push((origin, with));
    }

    /// Marks names that no rule allows, on behalf of an Audit policy.
    pub(crate) fn audit(&mut self, origin: Origin) {
        self.auditing.push(origin);
    }

    /// Lets the names of `peer` open addresses for `clause`.
    pub(crate) fn open(&mut self, peer: &FqdnPeer, clause: u16, origin: &Origin) {
        let (resolves, allow_private) = (peer.resolves, peer.allow_private);
        let (clause, is_exact) = (Some(clause), peer.pattern.is_exact());
        let origin = origin.clone();
        let place = self.place(Use { clause, resolves, allow_private, is_exact, origin });
        self.patterns.insert(&peer.pattern, &peer.except, place);
    }

    /// Lets names resolve that open nothing.
    pub(crate) fn resolve(&mut self, pattern: &DomainPattern, origin: &Origin) {
        let (origin, is_exact) = (origin.clone(), pattern.is_exact());
        let meant = Use { clause: None, resolves: true, allow_private: false, is_exact, origin };
        let place = self.place(meant);
        self.patterns.insert(pattern, &[], place);
    }

    /// Where `meant` stands in `uses`; the patterns of a rule come one after the other.
    fn place(&mut self, meant: Use) -> u32 {
        if self.uses.last() != Some(&meant) {
            self.uses.push(meant);
        }
        (self.uses.len() - 1) as u32
    }

    fn for_each_use<'a>(&'a self, name: &DnsName, mut found: impl FnMut(&'a Use)) {
        self.patterns.for_each_match(name, |place| found(&self.uses[place as usize]));
    }

    /// Whether lookups of this identity go through the proxy at all (EP-2).
    pub fn is_governed(&self) -> bool {
        self.is_governed
    }

    /// Whether rules let `name` be asked by wildcards alone: none of them, nor the cluster's own
    /// domain, names it in full.
    pub fn is_wildcard_alone(&self, name: &DnsName) -> bool {
        let (mut is_below, mut is_named) = (false, false);
        self.for_each_use(name, |found| {
            is_below |= found.resolves;
            is_named |= found.resolves && found.is_exact;
        });
        is_below && !is_named && !self.cluster.owns(name)
    }

    /// Decides about a query for `name`.
    pub fn decide(&self, name: &DnsName) -> NameDecision {
        let mut clauses = ClauseSet::new();
        let mut allowed: Option<(u32, &Use)> = None;
        self.patterns.for_each_match(name, |place| {
            let found = &self.uses[place as usize];
            clauses.extend(found.clause);
            // The lowest clause speaks for the name; a rule that opens nothing only where no other,
            // and then the first.
            let rank = |(place, one): (u32, &Use)| (one.clause.is_none(), one.clause, place);
            let candidate = (place, found);
            if found.resolves && allowed.is_none_or(|known| rank(candidate) < rank(known)) {
                allowed = Some(candidate);
            }
        });
        clauses.sort_unstable();
        clauses.dedup();
        let allow = |origin, audit| NameDecision::Allowed { clauses, origin, audit };
        if let Some((_, rule)) = allowed {
            return allow(Some(rule.origin.clone()), false);
        }
        if self.cluster.owns(name) {
            return allow(None, false);
        }
        match (self.enforcing.first(), self.auditing.first()) {
            (None, None) => allow(None, false),
            (None, Some(origin)) => allow(Some(origin.clone()), true),
            (Some(_), _) if self.cluster.is_search_candidate(name) => NameDecision::SearchMiss,
            (Some((_, with)), _) => NameDecision::Refused {
                with: *with,
                filters: self.enforcing.iter().map(|(origin, _)| origin.clone()).collect(),
            },
        }
    }

    /// The clauses that addresses of `name` are opened for, lowest first.
    pub fn clauses(&self, name: &DnsName) -> ClauseSet {
        self.sorted_clauses(name, |_| true)
    }

    /// Those of [`NamePolicy::clauses`] that private addresses are opened for under the strict
    /// rebinding guard: where a peer that means `name` allows it (EP-9).
    pub fn private_clauses(&self, name: &DnsName) -> ClauseSet {
        self.sorted_clauses(name, |allow_private| allow_private)
    }

    /// Hands out the clauses that addresses of `name` are opened for, each with whether private ones
    /// are too; in no order, and one that several peers mean more than once.
    pub fn for_each_clause(&self, name: &DnsName, mut found: impl FnMut(u16, bool)) {
        self.for_each_use(name, |one| {
            if let Some(clause) = one.clause {
                found(clause, one.allow_private);
            }
        });
    }

    fn sorted_clauses(&self, name: &DnsName, is_meant: impl Fn(bool) -> bool) -> ClauseSet {
        let mut clauses = ClauseSet::new();
        self.for_each_clause(name, |clause, allow_private| {
            if is_meant(allow_private) {
                clauses.push(clause);
            }
        });
        clauses.sort_unstable();
        clauses.dedup();
        clauses
    }
}

impl ClusterNames {
    fn owns(&self, name: &DnsName) -> bool {
        name.is_at_or_below(&self.domain)
            || reverse_prefix(name)
                .is_some_and(|net| self.ranges.iter().any(|range| range.contains(&net)))
    }

    fn is_search_candidate(&self, name: &DnsName) -> bool {
        self.search.iter().any(|suffix| name.is_below(suffix))
    }
}

/// The prefix that a reverse name stands for (RFC 1035 section 3.5, RFC 3596 section 2.5): whole
/// octets under `in-addr.arpa`, whole nibbles under `ip6.arpa`.
fn reverse_prefix(name: &DnsName) -> Option<IpNet> {
    let mut labels = name.labels_from_right();
    if labels.next()? != b"arpa" {
        return None;
    }
    match labels.next()? {
        b"in-addr" => {
            let mut octets = [0_u8; 4];
            let mut count = 0_u8;
            for label in labels {
                *octets.get_mut(usize::from(count))? = decimal(label)?;
                count += 1;
            }
            IpNet::new(IpAddr::from(Ipv4Addr::from(octets)), count * 8).ok()
        }
        b"ip6" => {
            let mut bits = 0_u128;
            let mut count = 0_u8;
            for label in labels {
                let &[digit] = label else { return None };
                let nibble = char::from(digit).to_digit(16)?;
                let shift = 124_u32.checked_sub(u32::from(count) * 4)?;
                bits |= u128::from(nibble) << shift;
                count += 1;
            }
            IpNet::new(IpAddr::from(Ipv6Addr::from_bits(bits)), count * 4).ok()
        }
        _ => None,
    }
}

/// An octet in decimal without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    let is_canonical =
        label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label[0] != b'0');
    std::str::from_utf8(label).ok().filter(|_| is_canonical)?.parse().ok()
}
