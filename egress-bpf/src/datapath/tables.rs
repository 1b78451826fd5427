//! Policy tables and endpoints, in an order that no packet can see half of.
//!
//! Every row of a table is written before an endpoint names it, one write of the endpoint's entry
//! swaps, and a table is removed only when no endpoint names it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::PerCpuValues;
use namegate_policy::identity::Identity;

use super::error::DatapathError;
use super::prefixes::PrefixSets;
use super::{Datapath, EndpointEntry, Maps, seam};
use crate::abi::{
    ADDRESSES_MAX, Address, ENDPOINT_DNS_GOVERNED, ENDPOINT_MAC_KNOWN, ENDPOINT_TRANSLATED,
    Endpoint, HitKey, Mac, Passage, PeerKey, PortKey, QuotaKey, TableKey,
};
use crate::compile::{RowChanges, TableRows};

/// The keys of a table's rows, to remove them by.
#[derive(Debug, Default)]
pub(super) struct RowKeys {
    pub(super) tables: BTreeSet<TableKey>,
    pub(super) peers: BTreeSet<PeerKey>,
    /// The sets of prefixes that it names, which others may name, too.
    pub(super) prefixes: BTreeSet<TableKey>,
    pub(super) ports: BTreeSet<PortKey>,
    hits: BTreeSet<HitKey>,
}

impl Datapath {
    /// Writes all rows of a table that no endpoint names. Where one cannot be written, those that
    /// were are removed; where that fails, too, [`Datapath::remove_table`] does it later.
    pub fn install(&mut self, table: u32, rows: &TableRows) -> Result<(), DatapathError> {
        if self.tables.contains_key(&table) {
            return Err(DatapathError::TableExists { table });
        }
        self.tables.insert(table, RowKeys::default());
        self.write_rows(table, rows).inspect_err(|_| {
            if let Err(error) = self.remove_table(table) {
                tracing::warn!(table, %error, "rows of a refused table stay");
            }
        })
    }

    /// Writes rows of identities into a table that may be in force, then deletes some: nothing else
    /// can be changed without packets that see half of it. Identities that come are written before
    /// the ipcache names them; those that go, after it forgot them.
    pub fn change_identities(
        &mut self,
        table: u32,
        changes: &RowChanges,
    ) -> Result<(), DatapathError> {
        let keys = self.tables.get_mut(&table).ok_or(DatapathError::NoTable { table })?;
        keys.peers.extend(changes.upsert.keys());
        let (peers, rules) = columns(&changes.upsert);
        self.maps.peers.put_all(&peers, &rules)?;
        self.maps.peers.remove_all(&changes.delete)?;
        self.forget_peers(&changes.delete);
        Ok(())
    }

    /// Remembers rows of name classes, so that they go with their table.
    pub(super) fn note_classes(&mut self, classes: &[PeerKey]) -> Result<(), DatapathError> {
        for class in classes {
            let table = class.table;
            let keys = self.tables.get_mut(&table).ok_or(DatapathError::NoTable { table })?;
            keys.peers.insert(*class);
        }
        Ok(())
    }

    pub(super) fn forget_peers(&mut self, classes: &[PeerKey]) {
        for class in classes {
            if let Some(keys) = self.tables.get_mut(&class.table) {
                keys.peers.remove(class);
            }
        }
    }

    /// Removes all rows of a table; refused while an endpoint names it.
    pub fn remove_table(&mut self, table: u32) -> Result<(), DatapathError> {
        if let Some(endpoint) = self.endpoints.values().find(|entry| entry.table == table) {
            return Err(DatapathError::TableInUse { table, ifindex: endpoint.ifindex });
        }
        let Some(keys) = self.tables.get(&table) else {
            return Ok(());
        };
        let maps = &mut self.maps;
        maps.tables.remove_all(&Vec::from_iter(keys.tables.iter().copied()))?;
        maps.peers.remove_all(&Vec::from_iter(keys.peers.iter().copied()))?;
        maps.ports.remove_all(&Vec::from_iter(keys.ports.iter().copied()))?;
        for key in &keys.hits {
            maps.remove_hit(key)?;
        }
        for set in keys.prefixes.clone() {
            self.leave_prefixes(table, set)?;
        }
        // Known until nothing is left of it, so that a removal that failed can be tried again.
        self.tables.remove(&table);
        Ok(())
    }

    /// The tables that have rows.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        self.tables.keys().copied()
    }

    /// Puts an endpoint under a table that is installed: the one write that a swap is.
    pub fn set_endpoint(&mut self, endpoint: &EndpointEntry) -> Result<(), DatapathError> {
        let ifindex = endpoint.ifindex;
        if !self.tables.contains_key(&endpoint.table) {
            return Err(DatapathError::NoTable { table: endpoint.table });
        }
        // The short way knows the endpoint's addresses by the flows of its epoch.
        if let Some(known) = self.endpoints.get(&ifindex)
            && known.epoch == endpoint.epoch
            && !known.addresses.is_subset(&endpoint.addresses)
        {
            return Err(DatapathError::SameEpoch { ifindex });
        }
        let row = endpoint.row()?;
        self.begin_quota(&QuotaKey { ifindex: endpoint.ifindex, epoch: endpoint.epoch })?;
        // First, so that flows of the generation before ask the row, whichever it is.
        self.maps.passages.put(ifindex, &Passage::of(ifindex, &row));
        self.maps.endpoints.put(&ifindex, &row)?;
        self.endpoints.insert(ifindex, endpoint.clone());
        Ok(())
    }

    /// Forgets an endpoint: what still comes over its interface is dropped. Its flows are dead, and
    /// the next sweep removes them.
    pub fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.maps.passages.clear(ifindex);
        self.maps.endpoints.remove(&ifindex)?;
        self.endpoints.remove(&ifindex);
        // Nor is it there for a sweep because an earlier agent enforced it.
        self.inherited.remove(&ifindex);
        Ok(())
    }

    /// Forgets the endpoints of a previous agent whose interfaces none of its programs were found on: who is
    /// there is somebody else, and has no flows.
    pub(super) fn forget_unjudged(&mut self) -> Result<(), DatapathError> {
        let is_unjudged = |ifindex: &u32| !self.attached.contains(ifindex);
        let unjudged: Vec<u32> = self.endpoints.keys().copied().filter(is_unjudged).collect();
        unjudged.into_iter().try_for_each(|ifindex| self.remove_endpoint(ifindex))
    }

    /// Lets the short way know of the endpoints that a previous agent wrote, and of no others.
    pub(super) fn restore_passages(&self) -> Result<(), DatapathError> {
        let mut rows = BTreeMap::new();
        for (ifindex, endpoint) in &self.endpoints {
            rows.insert(*ifindex, Passage::of(*ifindex, &endpoint.row()?));
        }
        self.maps.passages.restore(&rows);
        Ok(())
    }

    /// Every endpoint, those of a previous agent included, by interface.
    pub fn endpoints(&self) -> &BTreeMap<u32, EndpointEntry> {
        &self.endpoints
    }

    fn write_rows(&mut self, table: u32, rows: &TableRows) -> Result<(), DatapathError> {
        let keys = self.tables.get_mut(&table).ok_or(DatapathError::NoTable { table })?;
        let maps = &mut self.maps;
        // Noted before they are written: a removal of what is not there does no harm.
        keys.peers.extend(rows.peers.keys());
        keys.ports.extend(rows.ports.keys());
        keys.hits.extend(&rows.hits);
        keys.tables.extend(rows.tables.keys());
        let (peers, rules) = columns(&rows.peers);
        maps.peers.put_all(&peers, &rules)?;
        let (ports, rules) = columns(&rows.ports);
        maps.ports.put_all(&ports, &rules)?;
        for key in &rows.hits {
            maps.add_hit(key)?;
        }
        let mut headers = rows.tables.clone();
        for (key, prefixes) in &rows.prefixes {
            let set = self.join_prefixes(*key, prefixes)?;
            headers.entry(*key).and_modify(|header| header.prefixes = set);
        }
        let (tables, headers) = columns(&headers);
        self.maps.tables.put_all(&tables, &headers)
    }
}

impl Maps {
    /// The keys of all tables, and their prefixes, as the kernel has them.
    pub(super) fn read_tables(
        &self,
    ) -> Result<(BTreeMap<u32, RowKeys>, PrefixSets), DatapathError> {
        let mut tables: BTreeMap<u32, RowKeys> = BTreeMap::new();
        let headers = self.tables.read_all()?;
        for (key, _) in &headers {
            tables.entry(key.table).or_default().tables.insert(*key);
        }
        for (key, _) in self.peers.read_all()? {
            tables.entry(key.table).or_default().peers.insert(key);
        }
        for (key, _) in self.ports.read_all()? {
            tables.entry(key.table).or_default().ports.insert(key);
        }
        for key in self.hits.keys() {
            let key = key.map_err(|source| hits_failed("list", source))?;
            tables.entry(key.table).or_default().hits.insert(key);
        }
        let prefixes = PrefixSets::of_kernel(self.cidrs.read_all()?, &headers, &mut tables);
        Ok((tables, prefixes))
    }

    pub(super) fn read_endpoints(&self) -> Result<BTreeMap<u32, EndpointEntry>, DatapathError> {
        let rows = self.endpoints.read_all()?;
        Ok(rows
            .into_iter()
            .filter_map(|(ifindex, row)| Some((ifindex, EndpointEntry::from_row(ifindex, &row)?)))
            .collect())
    }

    fn add_hit(&mut self, key: &HitKey) -> Result<(), DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| DatapathError::Map {
            map: "HITS",
            what: "count processors for",
            source,
        })?;
        let zeroes = PerCpuValues::try_from(vec![0; cpus])
            .map_err(|source| DatapathError::Map { map: "HITS", what: "size", source })?;
        if let Some(source) = seam::write_fault() {
            return Err(DatapathError::Map { map: "HITS", what: "write to", source });
        }
        self.hits.insert(key, zeroes, 0).map_err(|source| hits_failed("write to", source))
    }

    fn remove_hit(&mut self, key: &HitKey) -> Result<(), DatapathError> {
        if let Some(source) = seam::write_fault() {
            return Err(DatapathError::Map { map: "HITS", what: "remove from", source });
        }
        match self.hits.remove(key) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(hits_failed("remove from", source)),
        }
    }
}

/// What failed on `HITS`, which is read and written through aya.
pub(super) fn hits_failed(what: &'static str, source: aya::maps::MapError) -> DatapathError {
    DatapathError::Map { map: "HITS", what, source: std::io::Error::other(source) }
}

impl EndpointEntry {
    /// The row of `ENDPOINTS`.
    pub fn row(&self) -> Result<Endpoint, DatapathError> {
        let mut addresses = [Address::UNSPECIFIED; ADDRESSES_MAX];
        if self.addresses.len() > ADDRESSES_MAX {
            return Err(DatapathError::TooManyAddresses {
                ifindex: self.ifindex,
                count: self.addresses.len(),
            });
        }
        for (place, address) in addresses.iter_mut().zip(&self.addresses) {
            *place = Address::from(*address);
        }
        let mut flags = 0;
        if self.is_dns_governed {
            flags |= ENDPOINT_DNS_GOVERNED;
        }
        if self.is_translated {
            flags |= ENDPOINT_TRANSLATED;
        }
        if self.mac.is_some() {
            flags |= ENDPOINT_MAC_KNOWN;
        }
        Ok(Endpoint {
            identity: self.identity.number(),
            table: self.table,
            generation: self.generation,
            epoch: self.epoch,
            flags,
            mac: Mac(self.mac.unwrap_or_default()),
            addresses,
        })
    }

    pub(super) fn from_row(ifindex: u32, row: &Endpoint) -> Option<Self> {
        Some(Self {
            ifindex,
            identity: Identity::new(row.identity)?,
            table: row.table,
            generation: row.generation,
            epoch: row.epoch,
            is_dns_governed: row.flags & ENDPOINT_DNS_GOVERNED != 0,
            is_translated: row.flags & ENDPOINT_TRANSLATED != 0,
            mac: (row.flags & ENDPOINT_MAC_KNOWN != 0).then_some(row.mac.0),
            addresses: row
                .addresses
                .iter()
                .filter(|address| **address != Address::UNSPECIFIED)
                .map(|address| IpAddr::from(*address))
                .collect(),
        })
    }
}

fn columns<K: Copy, V: Copy>(rows: &BTreeMap<K, V>) -> (Vec<K>, Vec<V>) {
    rows.iter().map(|(key, value)| (*key, *value)).unzip()
}
