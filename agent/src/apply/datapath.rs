//! The trait over the real datapath.

use std::collections::BTreeMap;
use std::net::IpAddr;

use namegate_egress_bpf::abi::ServiceKey;
use namegate_egress_bpf::compile::{NameWrites, RowChanges, TableRows};
use namegate_egress_bpf::datapath::{Datapath, DatapathError, EndpointEntry, ServiceEntry};
use namegate_policy::identity::Identity;

use super::{EndpointRow, Kernel};

impl Kernel for Datapath {
    type Error = DatapathError;

    fn install(&mut self, table: u32, rows: &TableRows) -> Result<(), DatapathError> {
        Self::install(self, table, rows)
    }

    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), DatapathError> {
        Self::change_identities(self, table, changes)
    }

    fn remove_table(&mut self, table: u32) -> Result<(), DatapathError> {
        Self::remove_table(self, table)
    }

    fn write_names(&mut self, writes: &NameWrites) -> Result<(), DatapathError> {
        Self::write_names(self, writes)
    }

    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), DatapathError> {
        Self::set_endpoint(self, &row.into())
    }

    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        Self::remove_endpoint(self, ifindex)
    }

    fn close(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        Self::close(self, ifindex)
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        Self::attach(self, ifindex)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        Self::detach(self, ifindex)
    }

    fn put_identities(
        &mut self,
        entries: &BTreeMap<IpAddr, Identity>,
    ) -> Result<(), DatapathError> {
        Self::put_identities(self, entries)
    }

    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        Self::close_addresses(self, addresses)
    }

    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        Self::remove_identities(self, addresses)
    }

    fn set_complete(&mut self, is_complete: bool) -> Result<(), DatapathError> {
        Self::set_complete(self, is_complete)
    }

    fn set_services(
        &mut self,
        services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), DatapathError> {
        Self::set_services(self, services)
    }

    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), DatapathError> {
        Self::set_resolvers(self, resolvers)
    }
}

impl From<&EndpointRow> for EndpointEntry {
    fn from(row: &EndpointRow) -> Self {
        Self {
            ifindex: row.ifindex,
            identity: row.identity,
            table: row.table,
            generation: row.generation,
            epoch: row.epoch,
            is_dns_governed: row.is_dns_governed,
            is_translated: row.is_translated,
            mac: row.mac,
            addresses: row.addresses.clone(),
        }
    }
}

impl From<&EndpointEntry> for EndpointRow {
    fn from(entry: &EndpointEntry) -> Self {
        Self {
            ifindex: entry.ifindex,
            identity: entry.identity,
            table: entry.table,
            generation: entry.generation,
            epoch: entry.epoch,
            is_dns_governed: entry.is_dns_governed,
            is_translated: entry.is_translated,
            mac: entry.mac,
            addresses: entry.addresses.clone(),
        }
    }
}
