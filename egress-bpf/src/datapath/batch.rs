//! Maps by many entries a system call (Linux 5.6), which aya has no call for.

#![expect(unsafe_code, reason = "the bpf system call takes addresses")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::MapData;

use super::error::DatapathError;
use super::seam;

const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: i64 = 21;
const BPF_MAP_LOOKUP_BATCH: i64 = 24;
const BPF_MAP_UPDATE_BATCH: i64 = 26;
const BPF_MAP_DELETE_BATCH: i64 = 27;

/// Only where there is no entry.
const BPF_NOEXIST: u64 = 1;

/// Entries read in one call.
const READ_CHUNK: usize = 4_096;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The element member of `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map of the datapath, typed, by name.
#[derive(Debug)]
pub(super) struct Rows<K, V> {
    name: &'static str,
    data: MapData,
    kinds: std::marker::PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Rows<K, V> {
    pub(super) fn new(name: &'static str, data: MapData) -> Result<Self, DatapathError> {
        let info = data
            .info()
            .map_err(|source| DatapathError::MapType { map: name, source: Box::new(source) })?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(DatapathError::MapType {
                map: name,
                source: Box::new(aya::maps::MapError::InvalidValueSize {
                    size: sizes.1,
                    expected: size_of::<V>(),
                }),
            });
        }
        Ok(Self { name, data, kinds: std::marker::PhantomData })
    }

    /// How many entries the map can hold.
    pub(super) fn capacity(&self) -> Result<u32, DatapathError> {
        let info = self.data.info().map_err(|error| self.failed("ask", io::Error::other(error)))?;
        Ok(info.max_entries())
    }

    fn fd(&self) -> u32 {
        self.data.fd().as_fd().as_raw_fd().unsigned_abs()
    }

    fn failed(&self, what: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map { map: self.name, what, source }
    }

    /// Reads one entry.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        self.value(BPF_MAP_LOOKUP_ELEM, key).map_err(|error| self.failed("read", error))
    }

    /// Removes one entry of a hash and says what it was (Linux 5.14).
    pub(super) fn take(&self, key: &K) -> Result<Option<V>, DatapathError> {
        if let Some(fault) = seam::write_fault() {
            return Err(self.failed("remove from", fault));
        }
        self.value(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key)
            .map_err(|error| self.failed("remove from", error))
    }

    fn value(&self, command: i64, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let key = std::ptr::from_ref(key) as u64;
        match self.element(command, key, value.as_mut_ptr() as u64, 0) {
            // SAFETY: the kernel filled the value, whose size was compared with the map's.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one entry where there is none, and says whether there was none.
    pub(super) fn put_new(&self, key: &K, value: &V) -> Result<bool, DatapathError> {
        if let Some(fault) = seam::write_fault() {
            return Err(self.write_failed(fault, 0, 1));
        }
        let (at, from) = (std::ptr::from_ref(key) as u64, std::ptr::from_ref(value) as u64);
        match self.element(BPF_MAP_UPDATE_ELEM, at, from, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.write_failed(error, 0, 1)),
        }
    }

    /// Writes one entry.
    pub(super) fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        if let Some(fault) = seam::write_fault() {
            return Err(self.write_failed(fault, 0, 1));
        }
        self.element(
            BPF_MAP_UPDATE_ELEM,
            std::ptr::from_ref(key) as u64,
            std::ptr::from_ref(value) as u64,
            0,
        )
        .map_err(|error| self.write_failed(error, 0, 1))
    }

    /// Removes one entry and says whether it was there.
    pub(super) fn remove(&self, key: &K) -> Result<bool, DatapathError> {
        if let Some(fault) = seam::write_fault() {
            return Err(self.failed("remove from", fault));
        }
        match self.element(BPF_MAP_DELETE_ELEM, std::ptr::from_ref(key) as u64, 0, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed("remove from", error)),
        }
    }

    /// Writes entries in order, in one call where the kernel can. On an error those before it are
    /// written.
    pub(super) fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError> {
        let wanted = keys.len().min(values.len());
        if wanted == 0 {
            return Ok(());
        }
        if let Some(fault) = seam::write_fault() {
            // In its midst.
            let written = wanted / 2;
            self.put_each(&keys[..written], &values[..written])?;
            return Err(self.write_failed(fault, written, wanted));
        }
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(wanted).unwrap_or(u32::MAX),
            map_fd: self.fd(),
            ..BatchAttr::default()
        };
        // SAFETY: keys and values are as many and as large as the call says.
        match unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) } {
            Ok(()) => Ok(()),
            // Written again, those that were are as they should be.
            Err(error) if is_unsupported(&error) => self.put_each(keys, values),
            Err(error) => {
                let written = usize::try_from(attr.count).unwrap_or(0);
                Err(self.write_failed(error, written.min(wanted), wanted))
            }
        }
    }

    fn put_each(&self, keys: &[K], values: &[V]) -> Result<(), DatapathError> {
        let wanted = keys.len().min(values.len());
        for (written, (key, value)) in keys.iter().zip(values).enumerate() {
            self.element(
                BPF_MAP_UPDATE_ELEM,
                std::ptr::from_ref(key) as u64,
                std::ptr::from_ref(value) as u64,
                0,
            )
            .map_err(|error| self.write_failed(error, written, wanted))?;
        }
        Ok(())
    }

    /// Removes entries; those that are not there are no error.
    pub(super) fn remove_all(&self, keys: &[K]) -> Result<(), DatapathError> {
        let mut left = keys;
        if !left.is_empty()
            && let Some(fault) = seam::write_fault()
        {
            return Err(self.failed("remove from", fault));
        }
        while !left.is_empty() {
            let mut attr = BatchAttr {
                keys: left.as_ptr() as u64,
                count: u32::try_from(left.len()).unwrap_or(u32::MAX),
                map_fd: self.fd(),
                ..BatchAttr::default()
            };
            // SAFETY: the keys are as many and as large as the call says.
            match unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) } {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let done = usize::try_from(attr.count).unwrap_or(0).min(left.len());
                    // The one after those is not there.
                    left = left.get(done + 1..).unwrap_or_default();
                }
                Err(error) if is_unsupported(&error) => {
                    for key in left {
                        self.remove(key)?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(self.failed("remove from", error)),
            }
        }
        Ok(())
    }

    /// Reads all entries of a hash or LPM map.
    pub(super) fn read_all(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        self.walk(|key, value| entries.push((key, value)))?;
        Ok(entries)
    }

    /// Shows all entries of a hash or LPM map, one after the other.
    pub(super) fn walk(&self, mut show: impl FnMut(K, V)) -> Result<(), DatapathError> {
        let mut position = Position::default();
        let mut next = Position::default();
        let mut is_started = false;
        let mut room = READ_CHUNK;
        loop {
            let mut keys: Vec<K> = Vec::with_capacity(room);
            let mut values: Vec<V> = Vec::with_capacity(room);
            let mut attr = BatchAttr {
                in_batch: if is_started { position.address() } else { 0 },
                out_batch: next.address(),
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map_fd: self.fd(),
                ..BatchAttr::default()
            };
            // SAFETY: there is room for as many keys and values as the call says.
            let outcome = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let is_end = match outcome {
                Ok(()) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // A bucket of the hash holds more than there is room for.
                    Some(libc::ENOSPC) => {
                        room *= 2;
                        continue;
                    }
                    _ => return Err(self.failed("list", error)),
                },
            };
            let count = usize::try_from(attr.count).unwrap_or(0).min(room);
            // SAFETY: the kernel says that it filled as many.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            for (key, value) in keys.into_iter().zip(values) {
                show(key, value);
            }
            if is_end {
                return Ok(());
            }
            is_started = true;
            std::mem::swap(&mut position, &mut next);
        }
    }

    fn element(&self, command: i64, key: u64, value: u64, flags: u64) -> io::Result<()> {
        let mut attr = ElementAttr { map_fd: self.fd(), padding: 0, key, value, flags };
        // SAFETY: key and value are addresses of a `K` and a `V`, whose sizes are the map's.
        unsafe { bpf(command, &mut attr) }
    }

    fn write_failed(&self, error: io::Error, written: usize, wanted: usize) -> DatapathError {
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => {
                DatapathError::Full { map: self.name, written, wanted }
            }
            _ => self.failed("write to", error),
        }
    }
}

/// Where a listing goes on: the size of the largest key is enough for every kind of map.
#[repr(C, align(8))]
#[derive(Default)]
struct Position([u64; 8]);

impl Position {
    fn address(&mut self) -> u64 {
        self.0.as_mut_ptr() as u64
    }
}

/// Whether the kernel has no batch call for this kind of map.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}

/// # Safety
///
/// The addresses inside `attr` are valid for what `command` does with them.
unsafe fn bpf<T>(command: i64, attr: &mut T) -> io::Result<()> {
    let size = size_of::<T>();
    // SAFETY: the caller vouches for the addresses inside `attr`.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
