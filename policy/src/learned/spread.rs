//! An index by hash, in parts: a table that grows looks at all that it holds again, and a lookup whose
//! answer is to be learned would wait for that, tens of milliseconds where it holds 100,000.

use hashbrown::HashTable;

use super::slab::Index;

/// With a million entries the growth of a part looks at 30,000.
const PARTS: usize = 32;

/// Where entries are, by the hash of what they are found by; whoever asks tells it from others.
#[derive(Debug)]
pub(super) struct Spread {
    parts: Box<[HashTable<Index>]>,
}

impl Default for Spread {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| HashTable::new()).collect() }
    }
}

impl Spread {
    /// The entry with this hash that `is_it` picks.
    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(&Index) -> bool) -> Option<Index> {
        self.parts.get(part(hash))?.find(hash, is_it).copied()
    }

    /// Adds an entry that is not there; `rehash` says the hash of others.
    pub(super) fn insert(&mut self, hash: u64, index: Index, rehash: impl Fn(&Index) -> u64) {
        if let Some(table) = self.parts.get_mut(part(hash)) {
            table.insert_unique(hash, index, rehash);
        }
    }

    /// Takes an entry out; gives room back where less than a quarter of it is used,
    /// so that what comes and goes at one size does not shrink and grow it each time.
    pub(super) fn remove(&mut self, hash: u64, index: Index, rehash: impl Fn(&Index) -> u64) {
        let Some(table) = self.parts.get_mut(part(hash)) else {
            return;
        };
        if let Ok(entry) = table.find_entry(hash, |known| *known == index) {
            entry.remove();
        }
        // Not by its capacity, which what was taken out lessens.
        if table.len() * 4 < table.num_buckets() {
            table.shrink_to(table.len(), rehash);
        }
    }

    /// Octets that it takes, used or not.
    #[cfg(test)]
    pub(super) fn octets(&self) -> usize {
        self.parts.iter().map(HashTable::allocation_size).sum()
    }
}

/// By bits that the tables make little use of: they go by the lowest and the seven highest.
fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::hash::{BuildHasher, RandomState};

    use super::super::slab::Slab;
    use super::*;

    #[test]
    fn no_change_looks_at_more_than_a_small_part_of_the_others() {
        let (mut spread, mut slab, hasher) =
            (Spread::default(), Slab::default(), RandomState::new());
        let indexes: Vec<Index> = (0..100_000u32).map(|number| slab.insert(number)).collect();
        let looks = Cell::new(0);
        let hash = |index: &Index| hasher.hash_one(slab.get(*index).unwrap());
        let counted = |index: &Index| {
            looks.set(looks.get() + 1);
            hash(index)
        };
        for index in &indexes {
            looks.set(0);
            spread.insert(hash(index), *index, counted);
            assert!(looks.get() < 4_000, "{} of {}", looks.get(), indexes.len());
        }
        for index in &indexes {
            assert_eq!(spread.find(hash(index), |known| known == index), Some(*index));
        }
        for index in &indexes {
            looks.set(0);
            spread.remove(hash(index), *index, counted);
            assert!(looks.get() < 4_000, "{} of {}", looks.get(), indexes.len());
            assert_eq!(spread.find(hash(index), |known| known == index), None);
        }
        assert!(spread.octets() < 64 * PARTS, "room is given back");
    }

    #[test]
    fn what_comes_and_goes_at_one_size_is_not_moved_each_time() {
        let (mut spread, mut slab) = (Spread::default(), Slab::default());
        // All in one part.
        let hash = |number: &u32| u64::from(*number) << 57 | u64::from(*number);
        let indexes: Vec<Index> = (0..1_000u32).map(|number| slab.insert(number)).collect();
        let looks = Cell::new(0);
        let counted = |index: &Index| {
            looks.set(looks.get() + 1);
            hash(slab.get(*index).unwrap())
        };
        for index in &indexes {
            spread.insert(hash(slab.get(*index).unwrap()), *index, counted);
        }
        let hash = |index: &Index| hash(slab.get(*index).unwrap());
        for three in indexes.windows(3).rev() {
            spread.remove(hash(&three[2]), three[2], counted);
            looks.set(0);
            for _ in 0..10 {
                three[2..].iter().for_each(|index| spread.insert(hash(index), *index, counted));
                for index in three.iter().rev() {
                    spread.remove(hash(index), *index, counted);
                }
                three[..2].iter().for_each(|index| spread.insert(hash(index), *index, counted));
            }
            assert!(looks.get() < 1_500, "{}", looks.get());
        }
    }
}
