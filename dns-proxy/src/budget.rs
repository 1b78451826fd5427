//! How many names below wildcards a pod may ask that it did not ask lately: a bound on what it can
//! carry out in the names themselves.
//!
//! Which names a pod asked is remembered by hash, in room that is the same for every pod, the oldest
//! giving way. So a pod that goes on asking what it knows pays nothing, whatever the type and however
//! often, and one that makes names up pays for each. A name that gave way is a new one again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use namegate_policy::name::DnsName;
use namegate_policy::time::Timestamp;

use crate::clients::EndpointLabel;

const MINUTE: Duration = Duration::from_secs(60);
/// Names remembered of one pod: sets times places.
const SETS: usize = 512;
const PLACES: usize = 8;
/// Pods that are remembered before those are dropped that asked nothing new for a while.
const PODS_SWEEP: usize = 256;
const PODS_IDLE: Duration = Duration::from_secs(600);

/// The budgets of all pods.
#[derive(Debug)]
pub(crate) struct NewNames {
    per_minute: Option<u32>,
    hasher: RandomState,
    pods: Mutex<HashMap<EndpointLabel, Asked>>,
}

/// What one pod asked.
#[derive(Debug)]
struct Asked {
    /// Hashes, the latest of a set first; zero where there is none.
    names: Box<[[u64; PLACES]]>,
    /// When the budget is whole again.
    whole_at: Timestamp,
}

impl NewNames {
    /// Bounds what is new to so many a minute, with a minute's worth at once; `None` sets no bound.
    pub(crate) fn new(per_minute: Option<u32>) -> Self {
        Self { per_minute, hasher: RandomState::new(), pods: Mutex::default() }
    }

    /// Whether there is a bound, so that it is worth knowing which names count.
    pub(crate) const fn is_bounded(&self) -> bool {
        self.per_minute.is_some()
    }

    /// Whether `pod` may ask `name`: one that it asked lately, or one for which there is budget.
    pub(crate) fn admits(&self, pod: &EndpointLabel, name: &DnsName, now: Timestamp) -> bool {
        let Some(per_minute) = self.per_minute else {
            return true;
        };
        let hash = self.hasher.hash_one(name).max(1);
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = pods.get_mut(pod) {
            return asked.admits(hash, per_minute, now);
        }
        if pods.len() >= PODS_SWEEP {
            pods.retain(|_, asked| now.since(asked.whole_at) < PODS_IDLE);
        }
        pods.entry(pod.clone()).or_default().admits(hash, per_minute, now)
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self { names: vec![[0; PLACES]; SETS].into(), whole_at: Timestamp::default() }
    }
}

impl Asked {
    fn admits(&mut self, hash: u64, per_minute: u32, now: Timestamp) -> bool {
        // Fewer than `usize` has on any machine.
        let number = (hash >> 32) as usize % SETS;
        let Some(set) = self.names.get_mut(number) else {
            return false;
        };
        if let Some(known) = set.iter().position(|held| *held == hash) {
            set[..=known].rotate_right(1);
            return true;
        }
        let whole_at = self.whole_at.max(now).saturating_add(MINUTE / per_minute.max(1));
        if per_minute == 0 || whole_at.since(now) > MINUTE {
            return false;
        }
        self.whole_at = whole_at;
        set.rotate_right(1);
        set[0] = hash;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos((1_000 + seconds) * 1_000_000_000)
    }

    fn mk_pod(name: &str) -> EndpointLabel {
        EndpointLabel { namespace: "shop".into(), pod: name.into() }
    }

    fn mk_name(number: u32) -> DnsName {
        DnsName::parse(&format!("n{number}.wild.test")).unwrap()
    }

    fn admitted(
        budget: &NewNames,
        pod: &EndpointLabel,
        names: std::ops::Range<u32>,
        now: u64,
    ) -> usize {
        names.filter(|number| budget.admits(pod, &mk_name(*number), at(now))).count()
    }

    #[test]
    fn new_names_are_bounded_by_the_minute_and_known_ones_are_not() {
        let (budget, pod) = (NewNames::new(Some(30)), mk_pod("checkout"));
        assert_eq!(admitted(&budget, &pod, 0..100, 0), 30);
        assert_eq!(admitted(&budget, &pod, 0..30, 0), 30, "known by now");
        assert_eq!(admitted(&budget, &pod, 30..100, 20), 10, "a third of a minute later");
        assert_eq!(admitted(&budget, &pod, 0..100, 20), 40, "all that are known");
        assert_eq!(admitted(&budget, &pod, 200..300, 600), 30, "never more than a minute's worth");
    }

    #[test]
    fn each_pod_has_a_budget_of_its_own() {
        let budget = NewNames::new(Some(5));
        assert_eq!(admitted(&budget, &mk_pod("loud"), 0..100, 0), 5);
        assert_eq!(admitted(&budget, &mk_pod("quiet"), 0..5, 0), 5);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_gives_way() {
        let (budget, pod) = (NewNames::new(Some(1_000_000)), mk_pod("checkout"));
        assert_eq!(admitted(&budget, &pod, 0..100_000, 0), 100_000);
        let known = |names: std::ops::Range<u32>| {
            let mut pods = budget.pods.lock().unwrap();
            let asked = pods.get_mut(&pod).unwrap();
            let hash = |number| budget.hasher.hash_one(mk_name(number)).max(1);
            names.filter(|number| asked.admits(hash(*number), 0, at(0))).count()
        };
        assert_eq!(known(0..50_000), 0, "long gone");
        assert!(known(99_000..100_000) > 900);
    }

    #[test]
    fn pods_that_are_gone_are_forgotten() {
        let budget = NewNames::new(Some(5));
        for number in 0..2_000 {
            admitted(&budget, &mk_pod(&format!("pod{number}")), 0..1, number * 10);
        }
        assert!(budget.pods.lock().unwrap().len() <= PODS_SWEEP);
    }

    #[test]
    fn without_a_bound_everything_is_admitted() {
        assert_eq!(admitted(&NewNames::new(None), &mk_pod("checkout"), 0..10_000, 0), 10_000);
    }
}
