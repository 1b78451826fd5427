//! Which worker asks which question of one resolver: where several workers have pods that ask the
//! same, one of them asks, and the others' queries join its own.

use std::hash::{BuildHasher, RandomState};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::cache::Key;

/// A question, by a hash that nobody outside can foresee. Two may have the same one: whoever joins a
/// query compares what is asked.
pub(crate) type Question = u64;

/// Who asks a question, and as which of its queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) worker: usize,
    pub(crate) serial: u64,
}

/// The questions under way; each has one leader, and is there for as long as its query is open, so
/// that the bound on queries bounds these.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    hasher: RandomState,
    leaders: DashMap<Question, Leader>,
}

impl UnderWay {
    pub(crate) fn question(&self, key: &Key) -> Question {
        self.hasher.hash_one(key)
    }

    /// Makes `leader` the one who asks, unless somebody does: then says who.
    pub(crate) fn claim(&self, question: Question, leader: Leader) -> Result<(), Leader> {
        match self.leaders.entry(question) {
            Entry::Occupied(known) => Err(*known.get()),
            Entry::Vacant(free) => {
                free.insert(leader);
                Ok(())
            }
        }
    }

    /// Ends what `leader` claimed.
    pub(crate) fn release(&self, question: Question, leader: Leader) {
        self.leaders.remove_if(&question, |_, known| *known == leader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_has_one_leader_until_that_one_ends() {
        let under_way = UnderWay::default();
        let [first, second] = [1, 2].map(|worker| Leader { worker, serial: 7 });
        assert_eq!(under_way.claim(9, first), Ok(()));
        assert_eq!(under_way.claim(9, second), Err(first));
        under_way.release(9, second);
        assert_eq!(under_way.claim(9, second), Err(first), "nobody ends another's");
        under_way.release(9, first);
        assert_eq!(under_way.claim(9, second), Ok(()));
        under_way.release(9, second);
        assert!(under_way.leaders.is_empty());
    }
}
