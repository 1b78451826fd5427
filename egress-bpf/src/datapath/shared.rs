//! Maps of numbers as memory that is shared with the kernel program (Linux 5.5).
//!
//! A store cannot fail and is seen whole, which an update of an array by system call does not promise.

#![expect(unsafe_code, reason = "memory is mapped")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::maps::MapData;

use super::error::DatapathError;

/// `COUNT` words of an array that may be mapped.
pub(super) struct Shared<const COUNT: usize> {
    words: NonNull<[AtomicU64; COUNT]>,
}

// SAFETY: the mapping is this value's alone to unmap, and is read and written by atomic operations.
unsafe impl<const COUNT: usize> Send for Shared<COUNT> {}
// SAFETY: as above.
unsafe impl<const COUNT: usize> Sync for Shared<COUNT> {}

impl<const COUNT: usize> Shared<COUNT> {
    const LENGTH: usize = COUNT * size_of::<AtomicU64>();

    /// Maps the array `name`.
    pub(super) fn new(name: &'static str, map: &MapData) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { map: name, what: "map", source };
        let info = map.info().map_err(|error| failed(io::Error::other(error)))?;
        let octets = u64::from(info.max_entries()) * u64::from(info.value_size());
        // Values of an array begin at a multiple of eight octets: without that there would be gaps.
        if octets != Self::LENGTH as u64 || !info.value_size().is_multiple_of(8) {
            return Err(failed(io::Error::other("it has another size")));
        }
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.fd().as_fd().as_raw_fd());
        // SAFETY: the kernel chooses where, and the map is as long as what is asked for.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), Self::LENGTH, access, libc::MAP_SHARED, fd, 0)
        };
        let words = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        Ok(Self { words: words.ok_or_else(|| failed(io::Error::last_os_error()))? })
    }

    pub(super) fn words(&self) -> &[AtomicU64; COUNT] {
        // SAFETY: mapped for as long as this value lives, zeroed by the kernel, and aligned to a page.
        unsafe { self.words.as_ref() }
    }
}

impl<const COUNT: usize> Drop for Shared<COUNT> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nothing refers to any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), Self::LENGTH) };
    }
}
