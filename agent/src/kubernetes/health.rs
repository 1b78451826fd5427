//! Which kinds are followed, and why others are not: readable from any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kinds::Watched;
use super::trouble::Trouble;

/// How the watches fare; empty where no API server is asked.
#[derive(Clone, Debug, Default)]
pub struct WatchHealth(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl WatchHealth {
    /// Each kind that is watched, by its plural, with what keeps it from being followed.
    pub fn each(&self) -> BTreeMap<&'static str, Option<String>> {
        self.watches().clone()
    }

    /// A kind is watched from now on; nothing is wrong with it yet.
    pub(super) fn begins(&self, watched: Watched) {
        self.watches().entry(watched.plural).or_default();
    }

    /// A kind is followed.
    pub(super) fn follows(&self, watched: Watched) {
        self.watches().insert(watched.plural, None);
    }

    /// A kind is not followed.
    pub(super) fn fails(&self, watched: Watched, trouble: &Trouble) {
        self.watches().insert(watched.plural, Some(trouble.to_string()));
    }

    fn watches(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
