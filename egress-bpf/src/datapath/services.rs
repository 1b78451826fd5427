//! Services and their backends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Datapath;
use super::error::DatapathError;
use super::{Maps, ServiceEntry};
use crate::abi::{Backend, BackendKey, SERVICE_AFFINE, Service, ServiceKey};

/// A service as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    row: Service,
    entry: ServiceEntry,
}

impl Written {
    /// How many rows of `BACKENDS` it takes.
    pub(super) fn backend_count(&self) -> usize {
        self.entry.backends.len()
    }
}

impl Datapath {
    /// Makes these the services that are translated: for each address and port its backends. A
    /// service changes at once: its new list is whole before the service names it.
    pub fn set_services(
        &mut self,
        wanted: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), DatapathError> {
        self.remove_stale_lists()?;
        let gone: Vec<ServiceKey> =
            self.services.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.maps.services.remove(&key)?;
            if let Some(old) = Arc::make_mut(&mut self.services).remove(&key) {
                self.stale_lists.push(old.row);
            }
        }
        for (key, entry) in wanted {
            if self.services.get(key).is_some_and(|known| known.entry == *entry) {
                continue;
            }
            let row = self.write_list(entry)?;
            self.maps.vacancy.take([&key.address]);
            self.maps.services.put(key, &row).inspect_err(|_| self.stale_lists.push(row))?;
            let written = Written { row, entry: entry.clone() };
            if let Some(old) = Arc::make_mut(&mut self.services).insert(*key, written) {
                self.stale_lists.push(old.row);
            }
            self.remove_stale_lists()?;
        }
        self.remove_stale_lists()
    }

    /// Removes lists that no service names; what cannot be removed is tried again with the next
    /// change.
    fn remove_stale_lists(&mut self) -> Result<(), DatapathError> {
        while let Some(row) = self.stale_lists.last() {
            self.maps.remove_list(row)?;
            self.stale_lists.pop();
        }
        Ok(())
    }

    /// The services that are translated, as the kernel has them.
    pub fn services(&self) -> BTreeMap<ServiceKey, ServiceEntry> {
        self.services.iter().map(|(key, written)| (*key, written.entry.clone())).collect()
    }

    fn write_list(&mut self, entry: &ServiceEntry) -> Result<Service, DatapathError> {
        let list = self.next_list;
        self.next_list += 1;
        let count = u16::try_from(entry.backends.len()).unwrap_or(u16::MAX);
        let row = Service {
            list,
            backends: count,
            flags: if entry.is_affine { SERVICE_AFFINE } else { 0 },
        };
        let keys: Vec<BackendKey> =
            (0..u32::from(count)).map(|place| BackendKey { list, place }).collect();
        let written = self.maps.backends.put_all(&keys, &entry.backends);
        written.inspect_err(|_| self.stale_lists.push(row)).map(|()| row)
    }
}

impl Maps {
    /// The services as the kernel has them, and the first number that no list has.
    pub(super) fn read_services(
        &self,
    ) -> Result<(BTreeMap<ServiceKey, Written>, u32), DatapathError> {
        let mut lists: BTreeMap<u32, BTreeMap<u32, Backend>> = BTreeMap::new();
        for (key, backend) in self.backends.read_all()? {
            lists.entry(key.list).or_default().insert(key.place, backend);
        }
        let next = lists.last_key_value().map_or(0, |(list, _)| list + 1);
        let mut services = BTreeMap::new();
        for (key, row) in self.services.read_all()? {
            let backends = lists.get(&row.list).into_iter().flat_map(BTreeMap::values);
            let entry = ServiceEntry {
                is_affine: row.flags & SERVICE_AFFINE != 0,
                backends: backends.copied().collect(),
            };
            services.insert(key, Written { row, entry });
        }
        let named: BTreeSet<u32> = services.values().map(|written| written.row.list).collect();
        let left: Vec<BackendKey> = lists
            .iter()
            .filter(|(list, _)| !named.contains(list))
            .flat_map(|(list, places)| {
                places.keys().map(|place| BackendKey { list: *list, place: *place })
            })
            .collect();
        self.backends.remove_all(&left)?;
        Ok((services, next))
    }

    fn remove_list(&self, row: &Service) -> Result<(), DatapathError> {
        let places = 0..u32::from(row.backends);
        let keys: Vec<BackendKey> =
            places.map(|place| BackendKey { list: row.list, place }).collect();
        self.backends.remove_all(&keys)
    }
}

/// Whether a service is known and has no such backend.
pub(super) fn lacks_backend(
    services: &BTreeMap<ServiceKey, Written>,
    key: &ServiceKey,
    backend: &Backend,
) -> bool {
    let known = services.get(key).or_else(|| services.get(&key.at_node()));
    known.is_some_and(|known| !known.entry.backends.contains(backend))
}
