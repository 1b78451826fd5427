//! Sets of prefixes in `CIDRS`, each for all tables that mean the same by their prefixes.
//!
//! A set is written whole before a table names it, never changed, and removed when the last table that
//! names it is gone. It has the number of the table that it was written for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Datapath;
use super::error::DatapathError;
use super::pods::CidrTrieKey;
use super::tables::RowKeys;
use crate::abi::{CidrKey, RuleSet, TABLE_CIDRS, Table, TableKey};
use crate::compile::{CidrRow, Prefixes};

/// What there is in `CIDRS`.
#[derive(Debug, Default)]
pub(super) struct PrefixSets {
    sets: BTreeMap<TableKey, Set>,
    /// Those that a table may join, by direction and what they say.
    whole: HashMap<(u32, Arc<Prefixes>), TableKey>,
}

#[derive(Debug)]
struct Set {
    prefixes: Arc<Prefixes>,
    users: BTreeSet<u32>,
}

impl PrefixSets {
    /// How many rows they have.
    pub(super) fn row_count(&self) -> usize {
        self.sets.values().map(|set| set.prefixes.len()).sum()
    }

    /// What the kernel has. Sets that no table names are left to the tables of their numbers, to go with
    /// these.
    pub(super) fn of_kernel(
        rows: Vec<(CidrTrieKey, RuleSet)>,
        headers: &[(TableKey, Table)],
        tables: &mut BTreeMap<u32, RowKeys>,
    ) -> Self {
        let mut found: BTreeMap<TableKey, Vec<_>> = BTreeMap::new();
        for (row, rules) in rows {
            let [table, direction] = [row.key.set, row.key.direction].map(u32::from_be_bytes);
            let length = row.length.saturating_sub(CidrKey::PREFIX_BASE);
            let prefix = (row.key.address, u8::try_from(length).unwrap_or(u8::MAX), rules);
            found.entry(TableKey { table, direction }).or_default().push(prefix);
        }
        let mut known = Self::default();
        for (number, rows) in found {
            let set = Set { prefixes: Arc::new(Prefixes::new(rows)), users: BTreeSet::new() };
            known.sets.insert(number, set);
        }
        for (key, header) in headers.iter().filter(|(_, header)| header.flags & TABLE_CIDRS != 0) {
            let number = TableKey { table: header.prefixes, ..*key };
            if let Some(set) = known.sets.get_mut(&number) {
                set.users.insert(key.table);
                known.whole.insert((number.direction, Arc::clone(&set.prefixes)), number);
                tables.entry(key.table).or_default().prefixes.insert(number);
            }
        }
        for (number, set) in known.sets.iter_mut().filter(|(_, set)| set.users.is_empty()) {
            set.users.insert(number.table);
            tables.entry(number.table).or_default().prefixes.insert(*number);
        }
        known
    }
}

impl Datapath {
    /// Has `prefixes` in `CIDRS` for the table and direction `key`, and returns the number of their set:
    /// one that is there, or one that is written.
    pub(super) fn join_prefixes(
        &mut self,
        key: TableKey,
        prefixes: &Arc<Prefixes>,
    ) -> Result<u32, DatapathError> {
        let keys = self.tables.get_mut(&key.table);
        let keys = keys.ok_or(DatapathError::NoTable { table: key.table })?;
        let sets = &mut self.prefixes;
        let content = (key.direction, Arc::clone(prefixes));
        let known = sets.whole.get(&content).copied();
        let number = known.unwrap_or(key);
        // Noted before it is written: a removal of what is not there does no harm.
        keys.prefixes.insert(number);
        let set = sets
            .sets
            .entry(number)
            .or_insert_with(|| Set { prefixes: Arc::clone(prefixes), users: BTreeSet::new() });
        set.users.insert(key.table);
        if known.is_none() {
            let rows = prefixes.rows(key).map(|(row, rules)| (CidrTrieKey::from(row), rules));
            let (rows, rules): (Vec<CidrTrieKey>, Vec<RuleSet>) = rows.unzip();
            self.maps.cidrs.put_all(&rows, &rules)?;
            sets.whole.insert(content, number);
        }
        Ok(number.table)
    }

    /// Has `table` name this set no more, and removes it where nobody else does. Known until nothing is
    /// left of it, and joined by nobody from its first row's removal on.
    pub(super) fn leave_prefixes(
        &mut self,
        table: u32,
        number: TableKey,
    ) -> Result<(), DatapathError> {
        let sets = &mut self.prefixes;
        let Some(set) = sets.sets.get_mut(&number) else {
            return Ok(());
        };
        if set.users.iter().any(|user| *user != table) {
            set.users.remove(&table);
            return Ok(());
        }
        let content = (number.direction, Arc::clone(&set.prefixes));
        if sets.whole.get(&content) == Some(&number) {
            sets.whole.remove(&content);
        }
        let rows = content.1.rows(number).map(|(row, _)| CidrTrieKey::from(row));
        self.maps.cidrs.remove_all(&Vec::from_iter(rows))?;
        sets.sets.remove(&number);
        Ok(())
    }
}

impl From<CidrRow> for CidrTrieKey {
    fn from(row: CidrRow) -> Self {
        Self { length: row.prefix_len, key: row.key }
    }
}
