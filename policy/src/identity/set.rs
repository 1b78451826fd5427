use std::collections::{BTreeMap, BTreeSet};

use super::Identity;

/// A set of identities: sorted words of 64, so that ten thousand neighbours are a few kilobytes to
/// keep, to copy and to compare.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentitySet {
    /// By number divided by 64; no word is zero.
    words: Vec<(u32, u64)>,
}

impl IdentitySet {
    /// Whether `identity` is in the set.
    pub fn contains(&self, identity: Identity) -> bool {
        let (block, bit) = place(identity);
        let found = self.words.binary_search_by_key(&block, |(block, _)| *block);
        found.is_ok_and(|index| self.words[index].1 & bit != 0)
    }

    /// Adds `identity`; says whether it was missing.
    pub fn insert(&mut self, identity: Identity) -> bool {
        let (block, bit) = place(identity);
        match self.words.binary_search_by_key(&block, |(block, _)| *block) {
            Ok(index) => {
                let word = &mut self.words[index].1;
                let is_missing = *word & bit == 0;
                *word |= bit;
                is_missing
            }
            Err(index) => {
                self.words.insert(index, (block, bit));
                true
            }
        }
    }

    /// Takes `identity` out; says whether it was there.
    pub fn remove(&mut self, identity: Identity) -> bool {
        let (block, bit) = place(identity);
        let Ok(index) = self.words.binary_search_by_key(&block, |(block, _)| *block) else {
            return false;
        };
        let word = &mut self.words[index].1;
        let was_there = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.words.remove(index);
        }
        was_there
    }

    /// Adds everything in `other`.
    pub fn unite(&mut self, other: &Self) {
        if self.is_empty() {
            self.clone_from(other);
            return;
        }
        let mut united = Vec::with_capacity(self.words.len().max(other.words.len()));
        let (mut own, mut its) = (self.words.iter().peekable(), other.words.iter().peekable());
        while let (Some(&&(one, bits)), Some(&&(two, more))) = (own.peek(), its.peek()) {
            united.push(match one.cmp(&two) {
                std::cmp::Ordering::Less => (one, bits),
                std::cmp::Ordering::Greater => (two, more),
                std::cmp::Ordering::Equal => (one, bits | more),
            });
            own.next_if(|(block, _)| *block <= two);
            its.next_if(|(block, _)| *block <= one);
        }
        united.extend(own);
        united.extend(its);
        self.words = united;
    }

    /// The identities that are in one of the two sets alone, in order.
    pub fn differences(&self, other: &Self) -> Vec<Identity> {
        let mut differing: BTreeMap<u32, u64> = self.words.iter().copied().collect();
        for (block, word) in &other.words {
            *differing.entry(*block).or_default() ^= word;
        }
        let words = differing.into_iter().filter(|(_, word)| *word != 0).collect();
        Self { words }.iter().collect()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many are in the set.
    pub fn len(&self) -> usize {
        self.words.iter().map(|(_, word)| word.count_ones() as usize).sum()
    }

    /// The identities in order.
    pub fn iter(&self) -> impl Iterator<Item = Identity> {
        self.words.iter().flat_map(|&(block, word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(Identity(block * 64 + bit))
            })
        })
    }
}

impl FromIterator<Identity> for IdentitySet {
    fn from_iter<I: IntoIterator<Item = Identity>>(identities: I) -> Self {
        let mut set = Self::default();
        set.extend(identities);
        set
    }
}

impl Extend<Identity> for IdentitySet {
    fn extend<I: IntoIterator<Item = Identity>>(&mut self, identities: I) {
        for identity in identities {
            self.insert(identity);
        }
    }
}

impl From<BTreeSet<Identity>> for IdentitySet {
    fn from(identities: BTreeSet<Identity>) -> Self {
        identities.into_iter().collect()
    }
}

const fn place(identity: Identity) -> (u32, u64) {
    (identity.0 / 64, 1 << (identity.0 % 64))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![1_u32..400, Just(u32::MAX), (u32::MAX - 70)..u32::MAX]
    }

    proptest! {
        #[test]
        fn a_set_of_words_is_a_set(
            steps in vec((any::<bool>(), number()), 0..200),
            others in vec(number(), 0..100),
        ) {
            let (mut set, mut model) = (IdentitySet::default(), BTreeSet::new());
            for (adds, number) in steps {
                let identity = Identity(number);
                if adds {
                    prop_assert_eq!(set.insert(identity), model.insert(identity));
                } else {
                    prop_assert_eq!(set.remove(identity), model.remove(&identity));
                }
                prop_assert!(set.contains(identity) == adds);
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), Vec::from_iter(model.clone()));
            let others: BTreeSet<Identity> = others.into_iter().map(Identity).collect();
            let expected: Vec<_> = model.symmetric_difference(&others).copied().collect();
            prop_assert_eq!(set.differences(&others.clone().into()), expected);
            set.unite(&others.clone().into());
            model.extend(others);
            prop_assert_eq!(&set, &IdentitySet::from(model.clone()));
            prop_assert_eq!(set.is_empty(), model.is_empty());
        }
    }
}
