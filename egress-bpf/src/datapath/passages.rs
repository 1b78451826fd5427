//! What the short way of known flows knows of endpoints.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;

use super::error::DatapathError;
use super::shared::Shared;
use crate::abi::{PASSAGES, Passage};

const PLACES: usize = PASSAGES as usize;

/// The words of a [`Passage`].
const WORDS: usize = size_of::<Passage>() / size_of::<AtomicU64>();

/// The map `PASSAGES`.
pub(super) struct Passages {
    memory: Shared<{ PLACES * WORDS }>,
}

impl Passages {
    pub(super) fn new(map: &MapData) -> Result<Self, DatapathError> {
        Ok(Self { memory: Shared::new("PASSAGES", map)? })
    }

    /// Tells what `passage` says of the endpoint behind `ifindex`, unless its place is another's.
    pub(super) fn put(&self, ifindex: u32, passage: &Passage) {
        let [whose, current, source] = self.place(ifindex);
        let owner = whose.load(Ordering::Relaxed) >> 32;
        if owner != 0 && owner != u64::from(ifindex) {
            return;
        }
        source.store(passage.source, Ordering::Release);
        current.store(passage.current, Ordering::Release);
        whose.store(passage.whose, Ordering::Release);
    }

    /// Gives up the place of the endpoint behind `ifindex`, if it has one.
    pub(super) fn clear(&self, ifindex: u32) {
        let place = self.place(ifindex);
        if place[0].load(Ordering::Relaxed) >> 32 == u64::from(ifindex) {
            for word in place {
                word.store(0, Ordering::Release);
            }
        }
    }

    /// Makes every place say what these say of their interfaces, and nothing of others.
    pub(super) fn restore(&self, passages: &BTreeMap<u32, Passage>) {
        for [whose, ..] in self.places() {
            let owner = (whose.load(Ordering::Relaxed) >> 32) as u32;
            if owner != 0 && !passages.contains_key(&owner) {
                self.clear(owner);
            }
        }
        for (ifindex, passage) in passages {
            self.put(*ifindex, passage);
        }
    }

    fn places(&self) -> &[[AtomicU64; WORDS]] {
        self.memory.words().as_chunks().0
    }

    fn place(&self, ifindex: u32) -> &[AtomicU64; WORDS] {
        &self.places()[ifindex as usize % PLACES]
    }
}
