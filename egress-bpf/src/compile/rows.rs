use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::table::{Clause, ClauseAction, ClauseTier, PolicyTable};

use super::ports;
use super::prefixes::{KnownPrefixes, Prefixes};
use crate::abi::{
    Direction, HitKey, PeerKey, PeerKind, PortKey, RULES_MAX, RuleSet, TABLE_ANY_PEER, TABLE_CIDRS,
    TABLE_IDENTITIES, TABLE_NAMES, Table, TableKey,
};

/// All rows of one policy table but those of learned names, which [`super::NameBook`] makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRows {
    /// `TABLES`
    pub tables: BTreeMap<TableKey, Table>,
    /// `PEERS`
    pub peers: BTreeMap<PeerKey, RuleSet>,
    /// `CIDRS`, by the set that they make up: the table's own.
    pub prefixes: BTreeMap<TableKey, Arc<Prefixes>>,
    /// `PORTS`
    pub ports: BTreeMap<PortKey, RuleSet>,
    /// `HITS`
    pub hits: BTreeSet<HitKey>,
}

/// Writes to the rows of identities in `PEERS` of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowChanges {
    /// Rows to write: those that differ or were not there.
    pub upsert: BTreeMap<PeerKey, RuleSet>,
    /// Rows to delete.
    pub delete: Vec<PeerKey>,
}

impl TableRows {
    /// Compiles `policy` into the rows of the table numbered `table`.
    ///
    /// Clauses past [`RULES_MAX`] have no bit: the policy core refuses such tables, and a table that
    /// still comes with more drops what only they would forward.
    pub fn compile(table: u32, policy: &PolicyTable) -> Self {
        Self::compile_among(&mut KnownPrefixes::default(), table, policy)
    }

    /// The same as [`TableRows::compile`], with prefixes that are compiled already taken from `known`.
    pub fn compile_among(known: &mut KnownPrefixes, table: u32, policy: &PolicyTable) -> Self {
        let mut rows = Self::default();
        rows.add(known, table, Direction::Egress, &policy.egress);
        rows.add(known, table, Direction::Ingress, &policy.ingress);
        rows
    }

    fn add(
        &mut self,
        known: &mut KnownPrefixes,
        table: u32,
        direction: Direction,
        clauses: &[Clause],
    ) {
        let clauses = clauses.get(..RULES_MAX).unwrap_or(clauses);
        let key = TableKey { table, direction: direction as u32 };
        let mut header = Table { prefixes: table, ..header(clauses) };

        for (bit, clause) in numbered(clauses) {
            if clause.peers.any {
                header.flags |= TABLE_ANY_PEER;
                self.peer(PeerKey::new(&key, PeerKind::Any, 0)).insert(bit);
            }
            for identity in clause.peers.identities.iter() {
                header.flags |= TABLE_IDENTITIES;
                let row = PeerKey::new(&key, PeerKind::Identity, identity.number());
                self.peer(row).insert(bit);
            }
            if clause.peers.names {
                header.flags |= TABLE_NAMES;
            }
            let clause = bit;
            self.hits.insert(HitKey { table, direction: direction as u16, clause });
        }

        let prefixes = known.of(clauses);
        if !prefixes.is_empty() {
            header.flags |= TABLE_CIDRS;
            self.prefixes.insert(key, prefixes);
        }

        let (ports, levels) = ports::rows(&key, clauses);
        header.levels = levels;
        self.ports.extend(ports);

        self.tables.insert(key, header);
    }

    fn peer(&mut self, key: PeerKey) -> &mut RuleSet {
        self.peers.entry(key).or_insert(RuleSet::EMPTY)
    }
}

impl RowChanges {
    /// The writes that turn the table `table` from `old` into `new` while it is in force: the rows of
    /// identities that came to or went from the peers of clauses. Each row is one write and one
    /// remote end is judged by one such row, so every flow is judged by the old clauses or by the
    /// new.
    ///
    /// `None` where anything else differs, or where a direction gets its first identity or loses its
    /// last: the header tells the kernel whether to look.
    pub fn in_place(table: u32, old: &PolicyTable, new: &PolicyTable) -> Option<Self> {
        let mut changes = Self::default();
        let directions = [
            (Direction::Egress, &old.egress, &new.egress),
            (Direction::Ingress, &old.ingress, &new.ingress),
        ];
        for (direction, old, new) in directions {
            let is_same = old.len() == new.len()
                && old.iter().zip(new).all(|(old, new)| old.is_shaped_like(new))
                && has_identities(old) == has_identities(new);
            if !is_same {
                return None;
            }
            let key = TableKey { table, direction: direction as u32 };
            changes.take_identities(&key, old, new);
        }
        Arc::ptr_eq(&old.names, &new.names).then_some(changes)
    }

    fn take_identities(&mut self, key: &TableKey, old: &[Clause], new: &[Clause]) {
        let mut differing = BTreeSet::new();
        for (old, new) in old.iter().zip(new) {
            let (old, new) = (&old.peers.identities, &new.peers.identities);
            if !Arc::ptr_eq(old, new) {
                differing.extend(old.differences(new));
            }
        }
        for identity in differing {
            let row = PeerKey::new(key, PeerKind::Identity, identity.number());
            let meant = numbered(new).filter(|(_, c)| c.peers.identities.contains(identity));
            let rules = RuleSet::of(meant.map(|(bit, _)| bit));
            if rules.is_empty() {
                self.delete.push(row);
            } else {
                self.upsert.insert(row, rules);
            }
        }
    }

    /// Adds what these rows of identities are in `policy`, whatever the kernel has of them.
    pub fn restate(&mut self, policy: &PolicyTable, rows: &BTreeSet<PeerKey>) {
        for row in rows {
            let clauses = match Direction::from_number(row.direction) {
                Some(Direction::Ingress) => &policy.ingress,
                Some(Direction::Egress) | None => &policy.egress,
            };
            let identity = Identity::new(row.class);
            let is_meant = |clause: &Clause| {
                identity.is_some_and(|identity| clause.peers.identities.contains(identity))
            };
            let meant = numbered(clauses).filter(|(_, clause)| is_meant(clause));
            let rules = RuleSet::of(meant.map(|(bit, _)| bit));
            if !rules.is_empty() {
                self.upsert.insert(*row, rules);
            } else if !self.delete.contains(row) {
                self.delete.push(*row);
            }
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn has_identities(clauses: &[Clause]) -> bool {
    clauses.iter().any(|clause| !clause.peers.identities.is_empty())
}

/// The clauses with their bits.
pub(super) fn numbered(clauses: &[Clause]) -> impl Iterator<Item = (u16, &Clause)> {
    (0..).zip(clauses)
}

fn header(clauses: &[Clause]) -> Table {
    let mut header = Table::default();
    for (bit, clause) in numbered(clauses) {
        match clause.action {
            ClauseAction::Forward => true,
            ClauseAction::Drop => header.drop.insert(bit),
            ClauseAction::Audit => header.audit.insert(bit),
            ClauseAction::Pass => header.pass.insert(bit),
        };
        let [admin, namespaced, baseline] = &mut header.tiers;
        match clause.tier {
            ClauseTier::Admin => admin.insert(bit),
            ClauseTier::Namespaced => namespaced.insert(bit),
            ClauseTier::Baseline => baseline.insert(bit),
            ClauseTier::Open => true,
        };
    }
    header
}

#[cfg(test)]
mod tests {
    use namegate_policy::dns::{ClusterNames, NamePolicy};
    use namegate_policy::identity::IdentitySet;
    use namegate_policy::name::DnsName;
    use namegate_policy::table::{ClausePeers, ClausePorts};
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn mk_clause(is_any: bool, numbers: &BTreeSet<u32>) -> Clause {
        let identities: IdentitySet =
            numbers.iter().filter_map(|number| Identity::new(*number)).collect();
        Clause {
            action: ClauseAction::Forward,
            tier: ClauseTier::Namespaced,
            peers: ClausePeers {
                any: is_any,
                identities: Arc::new(identities),
                ..ClausePeers::default()
            },
            ports: ClausePorts::Any,
            origins: Arc::new([]),
        }
    }

    fn mk_names() -> Arc<NamePolicy> {
        let domain = DnsName::root();
        let cluster = ClusterNames { domain, search: Vec::new(), ranges: Vec::new() };
        Arc::new(NamePolicy::ungoverned(Arc::new(cluster)))
    }

    fn mk_table(egress: Vec<Clause>, ingress: Vec<Clause>, names: &Arc<NamePolicy>) -> PolicyTable {
        let identity = Identity::FIRST_WORKLOAD;
        PolicyTable { identity, egress, ingress, names: Arc::clone(names) }
    }

    /// By clause: whether it is for anyone, and for whom before and after.
    fn clauses() -> impl Strategy<Value = Vec<(bool, BTreeSet<u32>, BTreeSet<u32>)>> {
        let numbers = || btree_set(1_u32..200, 0..6);
        vec((any::<bool>(), numbers(), numbers()), 0..12)
    }

    proptest! {
        #[test]
        fn rows_changed_in_place_are_those_of_a_fresh_compile(
            egress in clauses(),
            ingress in clauses(),
        ) {
            let names = mk_names();
            let old = |clauses: &[(bool, BTreeSet<u32>, BTreeSet<u32>)]| {
                clauses.iter().map(|(is_any, old, _)| mk_clause(*is_any, old)).collect()
            };
            let new = |clauses: &[(bool, BTreeSet<u32>, BTreeSet<u32>)]| {
                clauses.iter().map(|(is_any, _, new)| mk_clause(*is_any, new)).collect()
            };
            let before = mk_table(old(&egress), old(&ingress), &names);
            let after = mk_table(new(&egress), new(&ingress), &names);
            let mut rows = TableRows::compile(7, &before);
            let fresh = TableRows::compile(7, &after);
            let Some(changes) = RowChanges::in_place(7, &before, &after) else {
                prop_assert_ne!(rows.tables, fresh.tables, "only a header keeps it from changing");
                return Ok(());
            };
            prop_assert!(changes.delete.iter().all(|key| rows.peers.contains_key(key)));
            rows.peers.extend(changes.upsert);
            rows.peers.retain(|key, _| !changes.delete.contains(key));
            prop_assert_eq!(rows, fresh);
        }
    }

    #[test]
    fn what_differs_in_more_than_identities_is_not_changed_in_place() {
        let names = mk_names();
        let (one, two) = (BTreeSet::from([300]), BTreeSet::from([300, 301]));
        let old = mk_table(vec![mk_clause(false, &one)], Vec::new(), &names);
        let table = |clause| mk_table(vec![clause], Vec::new(), &names);
        let grown = mk_clause(false, &two);
        assert!(RowChanges::in_place(7, &old, &table(grown.clone())).is_some());
        let others = [
            ("peers", table(mk_clause(true, &two))),
            ("ports", table(Clause { ports: ClausePorts::Of(Vec::new()), ..grown.clone() })),
            ("action", table(Clause { action: ClauseAction::Drop, ..grown.clone() })),
            ("a clause more", mk_table(vec![grown.clone(), grown.clone()], Vec::new(), &names)),
            ("other names", mk_table(vec![grown], Vec::new(), &mk_names())),
            ("the last identity", table(mk_clause(false, &BTreeSet::new()))),
        ];
        for (what, new) in others {
            assert_eq!(RowChanges::in_place(7, &old, &new), None, "{what}");
        }
    }
}
