//! What [`super::Apply`] needs of the kernel's maps: a trait, so that the order of writes can be
//! tested without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use namegate_egress_bpf::abi::ServiceKey;
use namegate_egress_bpf::compile::{NameWrites, RowChanges, TableRows};
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_policy::identity::Identity;

/// An endpoint's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// Host-side interface.
    pub ifindex: u32,
    /// The pod's identity.
    pub identity: Identity,
    /// The table that judges it.
    pub table: u32,
    /// Raised with each change of what judges it.
    pub generation: u32,
    /// Different for each pod that ever had the interface.
    pub epoch: u32,
    /// Whether its lookups go to the proxy.
    pub is_dns_governed: bool,
    /// Whether its flows to services are translated, and judged by the backend.
    pub is_translated: bool,
    /// The pod's MAC, where known.
    pub mac: Option<[u8; 6]>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// The maps and hooks of the kernel program.
pub trait Kernel {
    /// Why a write failed.
    type Error: std::error::Error;

    /// Writes all rows of a table that no endpoint names yet; all or none.
    fn install(&mut self, table: u32, rows: &TableRows) -> Result<(), Self::Error>;

    /// Writes rows of identities in a table that may be in force, then deletes some.
    fn change_identities(&mut self, table: u32, changes: &RowChanges) -> Result<(), Self::Error>;

    /// Removes all rows of a table that no endpoint names.
    fn remove_table(&mut self, table: u32) -> Result<(), Self::Error>;

    /// Writes classes, then entries; deletes entries, then classes.
    fn write_names(&mut self, writes: &NameWrites) -> Result<(), Self::Error>;

    /// Writes an endpoint's row: one atomic swap.
    fn set_endpoint(&mut self, row: &EndpointRow) -> Result<(), Self::Error>;

    /// Removes an endpoint's row.
    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), Self::Error>;

    /// Removes an endpoint's row and keeps, or puts, the programs on its interface, so that nothing
    /// passes; an interface that is gone is no error.
    fn close(&mut self, ifindex: u32) -> Result<(), Self::Error>;

    /// Puts the programs on an interface.
    fn attach(&mut self, ifindex: u32) -> Result<(), Self::Error>;

    /// Takes the programs off an interface; one that is gone is no error.
    fn detach(&mut self, ifindex: u32) -> Result<(), Self::Error>;

    /// Writes who addresses are. Where one cannot be written, no address stays somebody else's.
    fn put_identities(&mut self, entries: &BTreeMap<IpAddr, Identity>) -> Result<(), Self::Error>;

    /// Writes that nobody knows who addresses are, which closes them to new flows. Where one cannot
    /// be written, it stays nobody else's.
    fn close_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Self::Error>;

    /// Forgets who addresses are.
    fn remove_identities(&mut self, addresses: &[IpAddr]) -> Result<(), Self::Error>;

    /// Says whether every address, service and resolver is written; while they are not, an address
    /// that is not found may be anybody's.
    fn set_complete(&mut self, is_complete: bool) -> Result<(), Self::Error>;

    /// Makes these the services that are translated.
    fn set_services(
        &mut self,
        services: &BTreeMap<ServiceKey, ServiceEntry>,
    ) -> Result<(), Self::Error>;

    /// Writes the resolvers whose lookups are taken.
    fn set_resolvers(&mut self, resolvers: &BTreeMap<u8, IpAddr>) -> Result<(), Self::Error>;
}
