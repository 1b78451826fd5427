//! The prefixes of one direction of a table, which tables that mean the same by them share.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use namegate_policy::table::{CidrPeer, Clause};

use super::cidr;
use super::rows::numbered;
use crate::abi::{Address, CidrKey, RuleSet, TableKey};

/// A key of `CIDRS` with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrRow {
    /// Bits of `key` that count, those of set and direction included.
    pub prefix_len: u32,
    /// The key; bits past the prefix are zero.
    pub key: CidrKey,
}

/// Prefixes with the rules that hold in each, in order. Two of them are equal where they say the same,
/// and compared by a hash first.
#[derive(Debug, PartialEq, Eq)]
pub struct Prefixes {
    hash: u64,
    rows: Vec<PrefixRow>,
    /// Each once, in the order in which rows name them.
    rules: Vec<RuleSet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PrefixRow {
    address: Address,
    length: u8,
    /// A place in `rules`.
    rules: u32,
}

/// What was compiled of the prefixes of clauses, found by the lists that the clauses share: a policy that
/// selects many identities is in the tables of all, and compiled once.
#[derive(Debug, Default)]
pub struct KnownPrefixes(BTreeMap<Vec<(u16, usize)>, Known>);

#[derive(Debug)]
struct Known {
    /// Kept, so that no other list comes to stand where one of these does.
    _lists: Vec<Arc<Vec<CidrPeer>>>,
    prefixes: Arc<Prefixes>,
}

impl Prefixes {
    /// These prefixes, with the rules of each.
    pub fn new(rows: impl IntoIterator<Item = (Address, u8, RuleSet)>) -> Self {
        let mut sorted: Vec<(Address, u8, RuleSet)> = rows.into_iter().collect();
        sorted.sort_unstable_by_key(|(address, length, _)| (*address, *length));
        let mut places: HashMap<RuleSet, u32> = HashMap::new();
        let mut rules = Vec::new();
        let mut rows = Vec::with_capacity(sorted.len());
        for (address, length, meant) in sorted {
            let place = *places.entry(meant).or_insert_with(|| {
                rules.push(meant);
                u32::try_from(rules.len() - 1).unwrap_or(u32::MAX)
            });
            rows.push(PrefixRow { address, length, rules: place });
        }
        let mut hasher = DefaultHasher::new();
        (&rows, &rules).hash(&mut hasher);
        Self { hash: hasher.finish(), rows, rules }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Each prefix as an address and its length among IPv6 addresses, with the rules that hold there.
    pub fn iter(&self) -> impl Iterator<Item = (Address, u32, &RuleSet)> {
        let rules = |row: &PrefixRow| self.rules.get(row.rules as usize);
        self.rows.iter().filter_map(move |row| Some((row.address, row.length.into(), rules(row)?)))
    }

    /// The rows of `CIDRS` under the set `set`.
    pub fn rows(&self, set: TableKey) -> impl Iterator<Item = (CidrRow, RuleSet)> {
        self.iter().map(move |(address, length, rules)| {
            let key = CidrKey::new(set.table, set.direction, address);
            (CidrRow { prefix_len: CidrKey::PREFIX_BASE + length, key }, *rules)
        })
    }
}

impl Hash for Prefixes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl KnownPrefixes {
    /// What the CIDR peers of these clauses compile to.
    pub(super) fn of(&mut self, clauses: &[Clause]) -> Arc<Prefixes> {
        let named = || numbered(clauses).filter(|(_, clause)| !clause.peers.cidrs.is_empty());
        let place =
            |(bit, clause): (u16, &Clause)| (bit, Arc::as_ptr(&clause.peers.cidrs) as usize);
        let known = self.0.entry(named().map(place).collect()).or_insert_with(|| Known {
            _lists: named().map(|(_, clause)| Arc::clone(&clause.peers.cidrs)).collect(),
            prefixes: Arc::new(cidr::prefixes(clauses)),
        });
        Arc::clone(&known.prefixes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_row(last: u8, rule: u16) -> (Address, u8, RuleSet) {
        let address = std::net::IpAddr::from([10, 0, 0, last]);
        (Address::from(address), 128, RuleSet::of([rule]))
    }

    #[test]
    fn what_says_the_same_is_equal_in_whatever_order_it_came() {
        let rows = [mk_row(1, 3), mk_row(2, 4), mk_row(3, 3)];
        let prefixes = Prefixes::new(rows);
        let [one, two, three] = rows;
        assert_eq!(prefixes, Prefixes::new([three, one, two]));
        assert_eq!(prefixes.rules.len(), 2, "each set of rules once");
        let others = [
            vec![one, two],
            vec![one, two, mk_row(3, 4)],
            vec![one, two, mk_row(4, 3)],
            vec![one, two, (three.0, 127, three.2)],
        ];
        for other in others {
            assert_ne!(prefixes, Prefixes::new(other));
        }
        let set = TableKey { table: 7, direction: 1 };
        let back = prefixes.rows(set).map(|(row, rules)| {
            assert_eq!(row.key, CidrKey::new(7, 1, row.key.address));
            (row.key.address, u8::try_from(row.prefix_len - CidrKey::PREFIX_BASE).unwrap(), rules)
        });
        assert_eq!(Prefixes::new(back.collect::<Vec<_>>()), prefixes);
    }
}
