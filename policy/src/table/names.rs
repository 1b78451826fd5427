//! What the policies that select an identity say about lookups.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::ladder::{Selecting, Step};
use crate::dns::{ClusterNames, NamePolicy};
use crate::pattern::PatternSeed;
use crate::rule::{DnsFilter, Mode, Origin, Peer, Peers, Rule};

/// The policies that say anything about lookups, by wording, and which clause opens for which rule
/// of which: where this is the same, the [`NamePolicy`] is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    filters: Vec<(u64, usize)>,
    openers: Vec<(u16, (u64, usize), usize)>,
}

/// The name policies in use, each kept once.
#[derive(Debug, Default)]
pub(super) struct NamePolicies {
    known: BTreeMap<Key, Weak<NamePolicy>>,
}

impl NamePolicies {
    /// The policy for lookups of an identity, shared where there is one already.
    pub(super) fn of(
        &mut self,
        selecting: &[Selecting<'_>],
        egress: &[Step],
        cluster: &Arc<ClusterNames>,
        seed: PatternSeed,
    ) -> Arc<NamePolicy> {
        let filters = selecting.iter().filter(|one| one.policy.dns.is_some());
        let openers = openers(egress).map(|(position, (place, rule), _)| {
            let wording = selecting[place].wording;
            (position, wording, rule)
        });
        let key =
            Key { filters: filters.map(|one| one.wording).collect(), openers: openers.collect() };
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let policy = Arc::new(build(selecting, egress, cluster, seed));
        self.known.insert(key, Arc::downgrade(&policy));
        policy
    }

    /// Forgets what nobody uses.
    pub(super) fn sweep(&mut self) {
        self.known.retain(|_, policy| policy.strong_count() > 0);
    }
}

/// The policy for lookups of an identity that these policies select (EP-2, EP-12).
pub(super) fn build(
    selecting: &[Selecting<'_>],
    egress: &[Step],
    cluster: &Arc<ClusterNames>,
    seed: PatternSeed,
) -> NamePolicy {
    let mut names = NamePolicy::seeded(Arc::clone(cluster), seed);
    let patterns = openers(egress).map(|(_, place, _)| match &rule(selecting, place).peers {
        Peers::Any => 0,
        Peers::Of(peers) => peers.len(),
    });
    names.reserve(patterns.sum());
    for Selecting { policy, .. } in selecting {
        let Some(dns) = &policy.dns else { continue };
        names.govern();
        let whole = Origin { policy: policy.reference.clone(), rule: None };
        match (dns.filter, policy.mode) {
            (DnsFilter::Enforce, Mode::Enforce) => names.filter(whole, dns.refuse_with),
            (DnsFilter::Enforce, Mode::Audit) => names.audit(whole),
            (DnsFilter::Observe, Mode::Enforce | Mode::Audit) => {}
        }
        for rule in &dns.names {
            let label = Some(Arc::clone(&rule.label));
            names.resolve(&rule.pattern, &Origin { policy: policy.reference.clone(), rule: label });
        }
    }
    for (position, place, step) in openers(egress) {
        let Some(origin) = step.clause.origins.first() else { continue };
        let Peers::Of(peers) = &rule(selecting, place).peers else { continue };
        for peer in peers {
            if let Peer::Fqdn(fqdn) = peer {
                names.open(fqdn, position, origin);
            }
        }
    }
    names
}

fn rule<'a>(selecting: &[Selecting<'a>], (place, number): (usize, usize)) -> &'a Rule {
    &selecting[place].policy.rules[number]
}

/// The steps that names open addresses for, with their positions. `CLAUSES_MAX` of them fit.
fn openers(egress: &[Step]) -> impl Iterator<Item = (u16, (usize, usize), &Step)> {
    (0_u16..).zip(egress).filter_map(|(position, step)| Some((position, step.names?, step)))
}
