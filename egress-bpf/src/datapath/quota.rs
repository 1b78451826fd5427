//! How many entries of the flow table each endpoint holds, and all together: the kernel counts those that
//! come, user space those that go, so that neither writes over the other's count.

use std::sync::atomic::Ordering;

use aya::maps::MapData;

use super::Datapath;
use super::error::DatapathError;
use super::shared::Shared;
use crate::abi::{QuotaKey, TOTAL_OPENED, TOTAL_RELEASED, TOTALS};

/// The map `TOTALS`.
pub(super) struct Totals {
    memory: Shared<{ TOTALS as usize }>,
}

impl Totals {
    pub(super) fn new(map: &MapData) -> Result<Self, DatapathError> {
        Ok(Self { memory: Shared::new("TOTALS", map)? })
    }

    /// Entries that were ever made.
    pub(super) fn opened(&self) -> u64 {
        self.memory.words()[TOTAL_OPENED as usize].load(Ordering::Relaxed)
    }

    /// Entries that there are.
    pub(super) fn held(&self) -> u64 {
        let released = self.memory.words()[TOTAL_RELEASED as usize].load(Ordering::Relaxed);
        self.opened().wrapping_sub(released)
    }

    /// Says how many are gone of those that were ever made.
    pub(super) fn release(&self, released: u64) {
        self.memory.words()[TOTAL_RELEASED as usize].store(released, Ordering::Relaxed);
    }

    /// Begins with entries that the kernel program did not make, while it makes none.
    pub(super) fn begin(&self, held: u64) {
        self.release(0);
        self.memory.words()[TOTAL_OPENED as usize].store(held, Ordering::Relaxed);
    }
}

impl Datapath {
    /// Begins to count; without that, an endpoint opens nothing.
    pub(super) fn begin_quota(&self, key: &QuotaKey) -> Result<(), DatapathError> {
        if self.maps.opened.get(key)?.is_none() {
            self.maps.released.put(key, &0)?;
            self.maps.opened.put(key, &0)?;
        }
        Ok(())
    }
}
