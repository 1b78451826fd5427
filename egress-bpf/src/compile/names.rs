//! What an identity learned, as rows.
//!
//! An address does not carry its rules but a *class*, a number local to the identity; a row of
//! `PEERS` says which rules the class means in a given table. So replacing a policy table rewrites a
//! few class rows and not every address. Where addresses of one class mean different rules in the
//! new table, the class is split first: the split-off class gets the old rules in the old table and
//! the new ones in the new, so that an address can be moved to it while either is in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::abi::{Address, Direction, NameEntry, NameKey, PeerKey, PeerKind, RuleSet, TableKey};

/// The number of classes that one identity can have.
pub const NAME_CLASSES_MAX: usize = 4_096;

/// The class of addresses that no rule is open for.
const NO_CLASS: u32 = 0;

/// An identity would need more than [`NAME_CLASSES_MAX`] classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("identity {identity} combines its rules in more than {NAME_CLASSES_MAX} ways")]
pub struct ClassesFull {
    /// The identity.
    pub identity: u32,
}

/// Rows for a change of learned addresses: `delete_entries` make room, then come the rows to write, in
/// this order, and `delete_classes` go last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameWrites {
    /// `PEERS` rows of classes: to be there before any address carries the class.
    pub classes: BTreeMap<PeerKey, RuleSet>,
    /// `NAMES` rows.
    pub entries: BTreeMap<NameKey, NameEntry>,
    /// `NAMES` rows to delete.
    pub delete_entries: Vec<NameKey>,
    /// `PEERS` rows of classes that no address carries, to delete last.
    pub delete_classes: Vec<PeerKey>,
}

/// Writes for a move of an identity from one table to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retable {
    /// To be written before any endpoint is switched to the new table. Nothing is deleted.
    pub before: NameWrites,
    /// `PEERS` rows of the old table, to delete after every endpoint is switched.
    pub delete_after: Vec<PeerKey>,
}

/// The learned addresses of one identity, and what their classes mean in the table in force.
#[derive(Clone, Debug)]
pub struct NameBook {
    identity: u32,
    table: u32,
    classes: BTreeMap<u32, RuleSet>,
    users: BTreeMap<u32, usize>,
    /// A tree of addresses that come in order would take half as much again.
    entries: HashMap<Address, NameEntry>,
    next: u32,
}

impl NameBook {
    /// An identity that learned nothing, with `table` in force.
    pub fn new(identity: u32, table: u32) -> Self {
        Self {
            identity,
            table,
            classes: BTreeMap::new(),
            users: BTreeMap::new(),
            entries: HashMap::new(),
            next: NO_CLASS + 1,
        }
    }

    /// Numbers classes from `first` on: above those of rows that an earlier agent left, which would
    /// mean something else.
    #[must_use]
    pub fn with_first_class(mut self, first: u32) -> Self {
        self.next = first.max(NO_CLASS + 1);
        self
    }

    /// Whether no address is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The addresses held, in no order, as they stand in the kernel.
    pub fn entries(&self) -> impl Iterator<Item = (Address, NameEntry)> {
        self.entries.iter().map(|(address, entry)| (*address, *entry))
    }

    /// What [`Self::set`] was told of `address` last: deadline, fresh rules, live rules.
    pub fn rules(&self, address: Address) -> Option<(u64, RuleSet, RuleSet)> {
        let entry = self.entries.get(&address)?;
        let rules = |class| self.classes.get(&class).copied().unwrap_or(RuleSet::EMPTY);
        Some((entry.deadline_ns, rules(entry.class), rules(entry.live_class)))
    }

    /// Opens `address` for the rules `fresh` to flows that start before `deadline_ns`, and for `live`
    /// to flows that are judged again; `live` holds at least `fresh`. Adds the writes to `writes`.
    pub fn set(
        &mut self,
        address: Address,
        deadline_ns: u64,
        fresh: &RuleSet,
        live: &RuleSet,
        writes: &mut NameWrites,
    ) -> Result<(), ClassesFull> {
        let class = self.class_for(fresh, writes)?;
        self.hold(class);
        let live_class = match self.class_for(live, writes) {
            Ok(live_class) => live_class,
            Err(full) => {
                self.let_go(class, writes);
                return Err(full);
            }
        };
        self.hold(live_class);
        let entry = NameEntry { deadline_ns, class, live_class };
        if let Some(old) = self.entries.insert(address, entry) {
            self.let_go(old.class, writes);
            self.let_go(old.live_class, writes);
        }
        writes.entries.insert(self.name_key(address), entry);
        Ok(())
    }

    /// Forgets `address`. Adds the writes to `writes`.
    pub fn remove(&mut self, address: Address, writes: &mut NameWrites) {
        if let Some(old) = self.entries.remove(&address) {
            if self.entries.len() * 4 < self.entries.capacity() {
                self.entries.shrink_to(self.entries.len() * 2);
            }
            writes.delete_entries.push(self.name_key(address));
            self.let_go(old.class, writes);
            self.let_go(old.live_class, writes);
        }
    }

    /// Moves to the table `next`, where an address has the rules (fresh, live) that `rules` says. On
    /// an error nothing changed and the old table has to stay in force.
    pub fn retable(
        &mut self,
        next: u32,
        mut rules: impl FnMut(Address) -> (RuleSet, RuleSet),
    ) -> Result<Retable, ClassesFull> {
        let entries = HashMap::with_capacity(self.entries.len());
        let mut moved = Self { next: self.next, entries, ..Self::new(self.identity, next) };
        // Which class stands for (class in the old table, rules in the new one).
        let mut variants: BTreeMap<(u32, RuleSet), u32> = BTreeMap::new();
        let mut before = NameWrites::default();
        for (address, entry) in &self.entries {
            let (fresh, live) = rules(*address);
            let mut translate = |class, rules| {
                let known = variants.get(&(class, rules)).copied();
                known.map_or_else(
                    || {
                        let variant = moved.variant(class, rules)?;
                        variants.insert((class, rules), variant);
                        Ok(variant)
                    },
                    Ok,
                )
            };
            let translated = NameEntry {
                class: translate(entry.class, fresh)?,
                live_class: translate(entry.live_class, live)?,
                ..*entry
            };
            moved.hold(translated.class);
            moved.hold(translated.live_class);
            moved.entries.insert(*address, translated);
            if translated != *entry {
                before.entries.insert(self.name_key(*address), translated);
            }
        }
        for (&(old, rules), &class) in &variants {
            if class != NO_CLASS {
                before.classes.insert(moved.class_key(class), rules);
            }
            if class != old {
                let rules = self.classes.get(&old).copied().unwrap_or(RuleSet::EMPTY);
                before.classes.insert(self.class_key(class), rules);
            }
        }
        let split_off = before.classes.keys().filter(|key| key.table == self.table).copied();
        let delete_after: BTreeSet<PeerKey> =
            self.classes.keys().map(|class| self.class_key(*class)).chain(split_off).collect();
        *self = moved;
        Ok(Retable { before, delete_after: delete_after.into_iter().collect() })
    }

    /// A class for `rules` in the table being moved to: `class` itself where it is not taken.
    fn variant(&mut self, class: u32, rules: RuleSet) -> Result<u32, ClassesFull> {
        if class == NO_CLASS && rules.is_empty() {
            return Ok(NO_CLASS);
        }
        let variant = if class == NO_CLASS || self.classes.contains_key(&class) {
            self.number()?
        } else {
            class
        };
        self.classes.insert(variant, rules);
        Ok(variant)
    }

    fn class_for(&mut self, rules: &RuleSet, writes: &mut NameWrites) -> Result<u32, ClassesFull> {
        if rules.is_empty() {
            return Ok(NO_CLASS);
        }
        if let Some((class, _)) = self.classes.iter().find(|(_, known)| *known == rules) {
            return Ok(*class);
        }
        let class = self.number()?;
        self.classes.insert(class, *rules);
        writes.classes.insert(self.class_key(class), *rules);
        Ok(class)
    }

    fn number(&mut self) -> Result<u32, ClassesFull> {
        if self.classes.len() >= NAME_CLASSES_MAX {
            return Err(ClassesFull { identity: self.identity });
        }
        let number = self.next;
        self.next = self.next.checked_add(1).ok_or(ClassesFull { identity: self.identity })?;
        Ok(number)
    }

    fn hold(&mut self, class: u32) {
        if class != NO_CLASS {
            *self.users.entry(class).or_default() += 1;
        }
    }

    fn let_go(&mut self, class: u32, writes: &mut NameWrites) {
        let Some(users) = self.users.get_mut(&class) else { return };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&class);
            self.classes.remove(&class);
            let key = self.class_key(class);
            writes.classes.remove(&key);
            writes.delete_classes.push(key);
        }
    }

    const fn name_key(&self, address: Address) -> NameKey {
        NameKey { identity: self.identity, address }
    }

    const fn class_key(&self, class: u32) -> PeerKey {
        let table = TableKey { table: self.table, direction: Direction::Egress as u32 };
        PeerKey::new(&table, PeerKind::Names, class)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: u32 = 300;

    /// The maps as the writes leave them.
    #[derive(Default)]
    struct Kernel {
        names: BTreeMap<NameKey, NameEntry>,
        classes: BTreeMap<PeerKey, RuleSet>,
    }

    impl Kernel {
        fn write(&mut self, writes: &NameWrites) {
            self.classes.extend(&writes.classes);
            self.names.extend(&writes.entries);
            self.names.retain(|key, _| !writes.delete_entries.contains(key));
            self.classes.retain(|key, _| !writes.delete_classes.contains(key));
        }

        /// The rules (fresh, live) that a lookup in `table` finds; `None` where a row is missing.
        fn rules(&self, table: u32, address: Address) -> Option<(RuleSet, RuleSet)> {
            let entry = self.names.get(&NameKey { identity: IDENTITY, address })?;
            let row = |class| match class {
                NO_CLASS => Some(RuleSet::EMPTY),
                class => {
                    let table = TableKey { table, direction: 0 };
                    self.classes.get(&PeerKey::new(&table, PeerKind::Names, class)).copied()
                }
            };
            Some((row(entry.class)?, row(entry.live_class)?))
        }
    }

    fn mk_address(last: u8) -> Address {
        Address::v4([203, 0, 113, last])
    }

    /// Rules by address: fresh, and live as a superset.
    fn any_rules() -> impl Strategy<Value = BTreeMap<u8, (RuleSet, RuleSet)>> {
        let rules =
            (proptest::collection::vec(0_u16..4, 0..3), proptest::collection::vec(0_u16..4, 0..2))
                .prop_map(|(fresh, more)| {
                    let fresh = RuleSet::of(fresh);
                    (fresh, fresh.union(&RuleSet::of(more)))
                });
        proptest::collection::btree_map(0_u8..12, rules, 0..12)
    }

    fn expected(rules: &BTreeMap<u8, (RuleSet, RuleSet)>) -> Vec<Option<(RuleSet, RuleSet)>> {
        (0..12).map(|last| rules.get(&last).copied()).collect()
    }

    fn found(kernel: &Kernel, table: u32) -> Vec<Option<(RuleSet, RuleSet)>> {
        (0..12).map(|last| kernel.rules(table, mk_address(last))).collect()
    }

    /// Brings the book to exactly these addresses and rules.
    fn bring_to(
        book: &mut NameBook,
        kernel: &mut Kernel,
        rules: &BTreeMap<u8, (RuleSet, RuleSet)>,
    ) {
        let mut writes = NameWrites::default();
        for last in 0..12 {
            match rules.get(&last) {
                Some((fresh, live)) => {
                    book.set(mk_address(last), 9, fresh, live, &mut writes).unwrap();
                }
                None => book.remove(mk_address(last), &mut writes),
            }
        }
        kernel.write(&writes);
    }

    proptest! {
        #[test]
        fn any_change_of_addresses_leaves_exactly_their_rules(
            steps in proptest::collection::vec(any_rules(), 1..6),
        ) {
            let (mut book, mut kernel) = (NameBook::new(IDENTITY, 1), Kernel::default());
            for rules in &steps {
                bring_to(&mut book, &mut kernel, rules);
                prop_assert_eq!(found(&kernel, 1), expected(rules));
                prop_assert_eq!(kernel.classes.len(), book.classes.len(), "no row is left behind");
            }
        }

        #[test]
        fn a_move_between_tables_is_right_in_both_until_the_old_one_goes(
            old in any_rules(),
            new in any_rules(),
        ) {
            let (mut book, mut kernel) = (NameBook::new(IDENTITY, 1), Kernel::default());
            bring_to(&mut book, &mut kernel, &old);
            let nothing = (RuleSet::EMPTY, RuleSet::EMPTY);
            let next = |last: u8| new.get(&last).copied().unwrap_or(nothing);
            let moved = book
                .retable(2, |address| next(address.as_v4().map_or(0, |octets| octets[3])))
                .unwrap();
            let retabled = old.keys().map(|last| (*last, next(*last))).collect();

            kernel.write(&moved.before);
            prop_assert_eq!(found(&kernel, 1), expected(&old), "before the switch");
            prop_assert_eq!(found(&kernel, 2), expected(&retabled), "after the switch");

            kernel.write(&NameWrites { delete_classes: moved.delete_after, ..Default::default() });
            prop_assert_eq!(found(&kernel, 2), expected(&retabled), "after the clean-up");
            prop_assert!(kernel.classes.keys().all(|key| key.table == 2), "no row is left behind");

            bring_to(&mut book, &mut kernel, &new);
            prop_assert_eq!(found(&kernel, 2), expected(&new), "in the new table");
            prop_assert_eq!(kernel.classes.len(), book.classes.len(), "no row is left behind");
        }
    }

    #[test]
    fn a_move_that_splits_no_class_writes_no_address() {
        let (mut book, mut writes) = (NameBook::new(IDENTITY, 1), NameWrites::default());
        for last in 0..100 {
            let rules = RuleSet::of([u16::from(last % 3)]);
            book.set(mk_address(last), 9, &rules, &rules, &mut writes).unwrap();
        }
        let moved = book
            .retable(2, |address| {
                let rules = RuleSet::of([u16::from(address.octets()[15] % 3) + 100]);
                (rules, rules)
            })
            .unwrap();
        assert_eq!(moved.before.entries.len(), 0);
        assert_eq!(moved.before.classes.len(), 3);
        assert_eq!(moved.delete_after.len(), 3);
    }

    #[test]
    fn too_many_classes_are_refused_and_change_nothing() {
        let (mut book, mut writes) = (NameBook::new(IDENTITY, 1), NameWrites::default());
        let distinct = |number: usize| RuleSet { words: [number as u64 + 1, 0, 0, 0, 0, 0, 0, 0] };
        for number in 0..NAME_CLASSES_MAX {
            let address = Address::new([number.to_be_bytes(), [1; 8]].concat().try_into().unwrap());
            let rules = distinct(number);
            book.set(address, 9, &rules, &rules, &mut writes).unwrap();
        }
        let before = book.entries.clone();
        let mut writes = NameWrites::default();
        let rules = distinct(NAME_CLASSES_MAX);
        let refused = book.set(mk_address(1), 9, &rules, &rules, &mut writes);
        assert_eq!(refused, Err(ClassesFull { identity: IDENTITY }));
        assert_eq!((book.entries, writes), (before, NameWrites::default()));
    }
}
