//! Blocks of addresses that neither the ipcache nor any service has one of, so that a packet to the world
//! beyond needs to look in neither: two lookups that find nothing, in memory that nobody else warms.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;

use super::Datapath;
use super::error::DatapathError;
use super::shared::Shared;
use crate::abi::{Address, BLOCKS};

const WORDS: usize = BLOCKS as usize / u64::BITS as usize;

/// The map `VACANT`: a bit for each block, set where the block is known to be empty. A block that is not
/// said to be empty is looked up, so that zeroes are always right.
pub(super) struct Vacancy {
    memory: Shared<WORDS>,
    /// Whether the blocks that are empty were found out.
    is_known: bool,
}

impl Vacancy {
    pub(super) fn new(map: &MapData) -> Result<Self, DatapathError> {
        Ok(Self { memory: Shared::new("VACANT", map)?, is_known: false })
    }

    /// Says of no block that it is empty.
    pub(super) fn forget(&mut self) {
        self.is_known = false;
        self.memory.words().iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }

    /// Says that the blocks of these are not empty, which goes before what is written of them.
    pub(super) fn take<'a>(&self, addresses: impl IntoIterator<Item = &'a Address>) {
        for address in addresses {
            let (word, bit) = self.place(address);
            if word.load(Ordering::Relaxed) & bit != 0 {
                word.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }

    fn place(&self, address: &Address) -> (&AtomicU64, u64) {
        let block = address.block() as usize;
        let bits = u64::BITS as usize;
        (&self.memory.words()[block / bits % WORDS], 1 << (block % bits))
    }
}

impl Datapath {
    /// How many blocks of addresses are known to have none.
    pub fn vacant_blocks(&self) -> u32 {
        let words = self.maps.vacancy.memory.words();
        words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// Finds out once which blocks are empty. One that becomes so later is looked up until the next agent:
    /// clusters keep to their ranges.
    pub(super) fn find_vacancy(&mut self) -> Result<(), DatapathError> {
        if self.maps.vacancy.is_known {
            return Ok(());
        }
        let mut taken = vec![0_u64; WORDS];
        let mut note = |address: Address| {
            let block = address.block() as usize;
            let bits = u64::BITS as usize;
            taken[block / bits % WORDS] |= 1 << (block % bits);
        };
        self.maps.ipcache.walk(|address, _| note(address))?;
        self.maps.services.walk(|key, _| note(key.address))?;
        for (word, taken) in self.maps.vacancy.memory.words().iter().zip(taken) {
            word.store(!taken, Ordering::SeqCst);
        }
        self.maps.vacancy.is_known = true;
        Ok(())
    }
}
