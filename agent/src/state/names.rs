//! What learned addresses open, under a policy table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;
use std::net::IpAddr;

use namegate_egress_bpf::abi::RuleSet;
use namegate_policy::dns::NamePolicy;
use namegate_policy::identity::Identity;
use namegate_policy::inventory::Inventory;
use namegate_policy::learned::{Learned, Lease, Place};
use namegate_policy::name::DnsName;
use namegate_policy::opening::{ClusterRanges, NotOpened, RebindingGuard, carried_v4, refusal};
use namegate_policy::time::Timestamp;

use super::{Effects, NameRules, State};

/// Addresses that end at a time at most: a matter of less than a millisecond.
const PORTION: usize = 256;

impl State {
    /// Ends what is due, a portion at a time: the kernel compares deadlines by itself, and lookups wait
    /// meanwhile.
    pub(super) fn end_some(&mut self, now: Timestamp) -> Effects {
        let mut learned = self.learned.write();
        let mut due = learned.expire(now, PORTION);
        if due.len() < PORTION
            && let Some(look) = self.look.take()
        {
            let (idle, rest) = learned.release(look, PORTION - due.len());
            due.extend(idle);
            self.look = rest;
        }
        drop(learned);
        self.rewrite(due)
    }

    /// What these places open, given what is learned of them.
    pub(super) fn rewrite(&self, places: BTreeSet<Place>) -> Effects {
        let mut effects = Effects::default();
        self.rewrite_into(&mut effects.names, places);
        effects
    }

    pub(super) fn rewrite_into(
        &self,
        names: &mut BTreeMap<Place, Option<NameRules>>,
        places: impl IntoIterator<Item = Place>,
    ) {
        let learned = self.learned.read();
        let openings = self.openings();
        let mut places = places.into_iter().peekable();
        while let Some((identity, first)) = places.next() {
            let others = iter::from_fn(|| places.next_if(|(whose, _)| *whose == identity));
            let addresses = iter::once(first).chain(others.map(|(_, address)| address));
            let Some(table) = self.tables.built().get(&identity) else {
                addresses.for_each(drop);
                continue;
            };
            openings.each(&learned, identity, &table.names, addresses, |address, rules| {
                names.insert((identity, address), (!rules.live.is_empty()).then_some(rules));
            });
        }
    }
}

/// Says which rules an address opens for a name (EP-9).
#[derive(Debug)]
pub(super) struct Openings<'a> {
    pub(super) ranges: &'a ClusterRanges,
    pub(super) guard: RebindingGuard,
    /// Addresses of pods, nodes and services, as far as they are known one by one.
    pub(super) known: ClusterAddresses<'a>,
    /// Leases whose deadline is not later linger, although nobody ended them yet.
    pub(super) now: Timestamp,
}

/// The rules of one name, decided once for all its addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct NameClauses {
    /// Rules for any address.
    pub(super) all: RuleSet,
    /// Rules for private addresses under the strict guard.
    pub(super) private: RuleSet,
}

impl NameClauses {
    pub(super) fn of(policy: &NamePolicy, name: &DnsName) -> Self {
        let mut clauses = Self::default();
        policy.for_each_clause(name, |clause, allow_private| {
            clauses.all.insert(clause);
            if allow_private {
                clauses.private.insert(clause);
            }
        });
        clauses
    }
}

impl Openings<'_> {
    /// The rules that `address` opens for a name with these clauses, or why it opens none.
    pub(super) fn judge(
        &self,
        address: IpAddr,
        clauses: &NameClauses,
    ) -> Result<RuleSet, NotOpened> {
        let carried = carried_v4(address).map(IpAddr::V4);
        let mut both = iter::once(address).chain(carried);
        if let Some(reason) = both.find_map(|address| self.known.refusal(address)) {
            return Err(reason);
        }
        match refusal(address, self.ranges, self.guard, false) {
            None => Ok(clauses.all),
            Some(NotOpened::Private) if !clauses.private.is_empty() => Ok(clauses.private),
            Some(reason) => Err(reason),
        }
    }

    /// What every address in `addresses` opens for `identity`.
    pub(super) fn rules(
        &self,
        learned: &Learned,
        identity: Identity,
        policy: &NamePolicy,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> BTreeMap<IpAddr, NameRules> {
        let mut rules = BTreeMap::new();
        self.each(learned, identity, policy, addresses, |address, opened| {
            rules.insert(address, opened);
        });
        rules
    }

    /// Hands what each of `addresses` opens for `identity` to `take`.
    pub(super) fn each(
        &self,
        learned: &Learned,
        identity: Identity,
        policy: &NamePolicy,
        addresses: impl IntoIterator<Item = IpAddr>,
        mut take: impl FnMut(IpAddr, NameRules),
    ) {
        // By hash: a tree's smallest node would be the dearest allocation of a lookup.
        let mut decided: HashMap<&DnsName, NameClauses> = HashMap::new();
        for address in addresses {
            let mut opened = NameRules { deadline: Timestamp::NEVER, ..NameRules::default() };
            for (name, lease) in learned.leases((identity, address)) {
                let clauses = decided.entry(name).or_insert_with(|| NameClauses::of(policy, name));
                let Ok(open) = self.judge(address, clauses) else { continue };
                opened.live = opened.live.union(&open);
                if let Lease::Fresh { deadline } = lease
                    && deadline > self.now
                    && !open.is_empty()
                {
                    opened.fresh = opened.fresh.union(&open);
                    opened.deadline = opened.deadline.min(deadline);
                }
            }
            if opened.fresh.is_empty() {
                opened.deadline = Timestamp::default();
            }
            take(address, opened);
        }
    }
}

/// The single addresses that only other peers than names open.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterAddresses<'a> {
    pub(super) ipcache: &'a BTreeMap<IpAddr, Identity>,
    pub(super) inventory: &'a Inventory,
}

impl ClusterAddresses<'_> {
    /// Why a name may not open this address, apart from its range.
    fn refusal(&self, address: IpAddr) -> Option<NotOpened> {
        match self.ipcache.get(&address) {
            Some(&Identity::HOST | &Identity::REMOTE_NODE) => Some(NotOpened::Node),
            Some(identity) if !identity.is_reserved() => Some(NotOpened::Pod),
            Some(_) | None => {
                self.inventory.is_cluster_address(address).then_some(NotOpened::Service)
            }
        }
    }
}
