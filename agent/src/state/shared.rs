//! What identities learned, where records are made too.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use namegate_policy::learned::{Cursor, Learned};

/// What identities learned: written by [`super::State`] alone, and read by whoever names addresses in
/// records. Both take it for a moment.
#[derive(Clone, Debug, Default)]
pub struct SharedLearned(Arc<RwLock<Learned>>);

impl SharedLearned {
    /// As it is.
    pub fn read(&self) -> RwLockReadGuard<'_, Learned> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was learned since this was called last; one keeper alone asks.
    pub fn take_changes(&self) -> Cursor {
        self.write().take_changes()
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Learned> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
