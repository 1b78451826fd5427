use std::collections::{BTreeMap, BTreeSet};

use namegate_policy::table::{Clause, ClauseAction, ClauseTier, PolicyTable};

use super::{cidr, ports};
use crate::abi::{
    CidrKey, Direction, HitKey, PeerKey, PeerKind, PortKey, RULES_MAX, RuleSet, TABLE_ANY_PEER,
    TABLE_CIDRS, TABLE_IDENTITIES, TABLE_NAMES, Table, TableKey,
};

/// A key of `CIDRS` with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrRow {
    /// Bits of `key` that count, those of table and direction included.
    pub prefix_len: u32,
    /// The key; bits past the prefix are zero.
    pub key: CidrKey,
}

/// All rows of one policy table but those of learned names, which [`super::NameBook`] makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRows {
    /// `TABLES`
    pub tables: BTreeMap<TableKey, Table>,
    /// `PEERS`
    pub peers: BTreeMap<PeerKey, RuleSet>,
    /// `CIDRS`
    pub cidrs: BTreeMap<CidrRow, RuleSet>,
    /// `PORTS`
    pub ports: BTreeMap<PortKey, RuleSet>,
    /// `HITS`
    pub hits: BTreeSet<HitKey>,
}

/// The least set of writes from one [`TableRows`] to another.
///
/// Within one table number the rows are written one by one, so that lookups in between see some of
/// each: good for changes that only add or only remove. Whatever else changes goes into a table of
/// another number, which the endpoint is then switched to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowChanges {
    /// Rows to write: those that differ or were not there.
    pub upsert: TableRows,
    /// `TABLES` rows to delete.
    pub delete_tables: Vec<TableKey>,
    /// `PEERS` rows to delete.
    pub delete_peers: Vec<PeerKey>,
    /// `CIDRS` rows to delete.
    pub delete_cidrs: Vec<CidrRow>,
    /// `PORTS` rows to delete.
    pub delete_ports: Vec<PortKey>,
    /// `HITS` rows to delete.
    pub delete_hits: Vec<HitKey>,
}

impl TableRows {
    /// Compiles `policy` into the rows of the table numbered `table`.
    ///
    /// Clauses past [`RULES_MAX`] have no bit: the policy core refuses such tables, and a table that
    /// still comes with more drops what only they would forward.
    pub fn compile(table: u32, policy: &PolicyTable) -> Self {
        let mut rows = Self::default();
        rows.add(table, Direction::Egress, &policy.egress);
        rows.add(table, Direction::Ingress, &policy.ingress);
        rows
    }

    /// The writes that turn `self` into `next`.
    pub fn diff(&self, next: &Self) -> RowChanges {
        RowChanges {
            upsert: Self {
                tables: changed(&self.tables, &next.tables),
                peers: changed(&self.peers, &next.peers),
                cidrs: changed(&self.cidrs, &next.cidrs),
                ports: changed(&self.ports, &next.ports),
                hits: next.hits.difference(&self.hits).copied().collect(),
            },
            delete_tables: gone(&self.tables, &next.tables),
            delete_peers: gone(&self.peers, &next.peers),
            delete_cidrs: gone(&self.cidrs, &next.cidrs),
            delete_ports: gone(&self.ports, &next.ports),
            delete_hits: self.hits.difference(&next.hits).copied().collect(),
        }
    }

    fn add(&mut self, table: u32, direction: Direction, clauses: &[Clause]) {
        let clauses = clauses.get(..RULES_MAX).unwrap_or(clauses);
        let key = TableKey { table, direction: direction as u32 };
        let mut header = header(clauses);

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

        let cidrs = cidr::rows(&key, clauses);
        if !cidrs.is_empty() {
            header.flags |= TABLE_CIDRS;
        }
        self.cidrs.extend(cidrs);

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
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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

fn changed<K: Copy + Ord, V: Copy + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let differs = |(key, value): &(&K, &V)| old.get(key) != Some(value);
    new.iter().filter(differs).map(|(key, value)| (*key, *value)).collect()
}

fn gone<K: Copy + Ord, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys().filter(|key| !new.contains_key(key)).copied().collect()
}
