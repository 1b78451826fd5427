//! How often policies decided, kept across the tables that come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::Hits;
use namegate_policy::rule::{Origin, PolicyRef};

/// How often a rule decided, and when last, as far as somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Flows that it decided about.
    pub hits: u64,
    /// Between this look and the one before, it decided last.
    pub last: SystemTime,
}

/// Tallies by rule and direction.
pub type Tallies = BTreeMap<(Origin, Direction), Tally>;

/// Adds up what the kernel counts by table and clause.
#[derive(Debug, Default)]
pub struct HitBook(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    seen: Hits,
    tallies: Tallies,
}

impl HitBook {
    /// Adds what was counted since the last look. `origins` says who is behind a clause of a table, by
    /// direction.
    pub fn add(
        &self,
        hits: Hits,
        origins: impl Fn(u32, Direction, u16) -> Option<Arc<[Origin]>>,
        now: SystemTime,
    ) {
        let mut pages = self.pages();
        for (place, count) in &hits {
            let before = pages.seen.get(place).copied().unwrap_or(0);
            // A table of the same number that began anew counts from zero.
            let more = count.checked_sub(before).unwrap_or(*count);
            if more == 0 {
                continue;
            }
            let (table, direction, clause) = *place;
            for origin in
                origins(table, direction, clause).iter().flat_map(|origins| origins.iter())
            {
                let tally = pages
                    .tallies
                    .entry((origin.clone(), direction))
                    .or_insert(Tally { hits: 0, last: now });
                tally.hits += more;
                tally.last = now;
            }
        }
        pages.seen = hits;
    }

    /// Forgets rules of policies that are gone.
    pub fn retain(&self, is_known: impl Fn(&PolicyRef) -> bool) {
        self.pages().tallies.retain(|(origin, _), _| is_known(&origin.policy));
    }

    /// What was added up.
    pub fn tallies(&self) -> Tallies {
        self.pages().tallies.clone()
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use namegate_policy::rule::PolicyKind;

    use super::*;

    const PLACE: (u32, Direction, u16) = (3, Direction::Egress, 1);

    fn mk_origin(name: &str) -> Origin {
        let kind = PolicyKind::EgressPolicy;
        let policy = PolicyRef { kind, namespace: Some("shop".into()), name: name.into() };
        Origin { policy, rule: None }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn hits_add_up_over_tables_that_come_and_go() {
        let book = HitBook::default();
        let origins = |_, _, _| Some(Arc::from([mk_origin("apis")]));
        book.add(Hits::from([(PLACE, 5)]), origins, at(1));
        book.add(Hits::from([(PLACE, 7)]), origins, at(2));
        // The table was replaced, and its successor has another number.
        book.add(Hits::from([((4, Direction::Egress, 0), 2)]), origins, at(3));
        // One of an old number begins anew.
        book.add(Hits::from([((4, Direction::Egress, 0), 1)]), origins, at(4));
        let tally = book.tallies()[&(mk_origin("apis"), Direction::Egress)];
        assert_eq!(tally, Tally { hits: 10, last: at(4) });
    }

    #[test]
    fn a_look_that_finds_nothing_more_leaves_the_last_match_as_it_was() {
        let book = HitBook::default();
        let origins = |_, _, _| Some(Arc::from([mk_origin("apis")]));
        book.add(Hits::from([(PLACE, 5)]), origins, at(1));
        book.add(Hits::from([(PLACE, 5)]), origins, at(9));
        assert_eq!(book.tallies()[&(mk_origin("apis"), Direction::Egress)].last, at(1));
        book.retain(|policy| &*policy.name != "apis");
        assert!(book.tallies().is_empty());
    }
}
