//! What the short way of known flows knows of endpoints, as memory that is shared with the kernel program
//! (Linux 5.5).
//!
//! A store cannot fail and is seen whole, which an update of an array by system call does not promise.

#![expect(unsafe_code, reason = "memory is mapped")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;

use super::error::DatapathError;
use crate::abi::{PASSAGES, Passage};

const NAME: &str = "PASSAGES";
const PLACES: usize = PASSAGES as usize;
const LENGTH: usize = PLACES * size_of::<Passage>();

/// The words of a [`Passage`].
type Place = [AtomicU64; 3];

const _: () = assert!(size_of::<Place>() == size_of::<Passage>());

/// The map `PASSAGES`.
pub(super) struct Passages {
    places: NonNull<[Place; PLACES]>,
}

// SAFETY: the mapping is this value's alone to unmap, and is read and written by atomic operations.
unsafe impl Send for Passages {}
// SAFETY: as above.
unsafe impl Sync for Passages {}

impl Passages {
    pub(super) fn new(map: &MapData) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { map: NAME, what: "map", source };
        let info = map.info().map_err(|error| failed(io::Error::other(error)))?;
        if (info.max_entries(), info.value_size() as usize) != (PASSAGES, size_of::<Passage>()) {
            return Err(failed(io::Error::other("it has another size")));
        }
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.fd().as_fd().as_raw_fd());
        // SAFETY: the kernel chooses where, and the map is as long as what is asked for.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, access, libc::MAP_SHARED, fd, 0) };
        let places = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        Ok(Self { places: places.ok_or_else(|| failed(io::Error::last_os_error()))? })
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
        for place in self.all() {
            let owner = (place[0].load(Ordering::Relaxed) >> 32) as u32;
            if owner != 0 && !passages.contains_key(&owner) {
                self.clear(owner);
            }
        }
        for (ifindex, passage) in passages {
            self.put(*ifindex, passage);
        }
    }

    fn all(&self) -> &[Place; PLACES] {
        // SAFETY: mapped for as long as this value lives, zeroed by the kernel, and aligned to a page.
        unsafe { self.places.as_ref() }
    }

    fn place(&self, ifindex: u32) -> &Place {
        &self.all()[ifindex as usize % PLACES]
    }
}

impl Drop for Passages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nothing refers to any more.
        unsafe { libc::munmap(self.places.as_ptr().cast(), LENGTH) };
    }
}
