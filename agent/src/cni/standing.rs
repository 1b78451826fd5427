//! How the plugin stands on this node, for whoever asks the agent.

use std::sync::{Arc, Mutex, PoisonError};

/// Written by [`super::chain::Chain::keep`], read by others.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    is_in_place: Option<bool>,
    trouble: Option<String>,
    unguarded: u64,
}

impl Standing {
    /// Whether the plugin is in the node's list; `None` where it is not to be there.
    pub fn is_in_place(&self) -> Option<bool> {
        self.with(|known| known.is_in_place)
    }

    /// What keeps it from there, for people.
    pub fn trouble(&self) -> Option<String> {
        self.with(|known| known.trouble.clone())
    }

    /// How many pods it let start since the agent began without seeing their policy in force.
    pub fn unguarded(&self) -> u64 {
        self.with(|known| known.unguarded)
    }

    /// Takes how the last look at the list ended; says whether that is another trouble than before.
    pub(super) fn note(&self, trouble: Option<String>) -> bool {
        self.with(|known| {
            let is_other = known.trouble != trouble;
            known.is_in_place = Some(trouble.is_none());
            known.trouble = trouble;
            is_other
        })
    }

    /// Counts pods that started unseen.
    pub(super) fn count_unguarded(&self, pods: usize) {
        self.with(|known| known.unguarded += pods as u64);
    }

    fn with<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
