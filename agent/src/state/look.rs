//! What whoever asks may look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use namegate_egress_bpf::abi::ServiceKey;
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_policy::identity::Identity;
use namegate_policy::inventory::Inventory;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::Policy;
use namegate_policy::table::TableError;

use super::State;

impl State {
    /// Pods, namespaces, services and nodes.
    pub fn inventory(&self) -> &Inventory {
        self.tables.inventory()
    }

    /// The policies that are known.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.tables.policies()
    }

    /// Identities whose policies make no table.
    pub fn table_errors(&self) -> impl Iterator<Item = (Identity, &TableError)> {
        self.tables.errors()
    }

    /// What the operator was told and is still so.
    pub fn troubles(&self) -> &BTreeSet<String> {
        &self.troubles
    }

    /// Who an address is, where the kernel is told.
    pub fn identity_at(&self, address: IpAddr) -> Option<Identity> {
        self.ipcache.get(&address).copied()
    }

    /// How many addresses the kernel is told the owners of.
    pub fn address_count(&self) -> usize {
        self.ipcache.len()
    }

    /// The services that the kernel translates.
    pub fn services(&self) -> &BTreeMap<ServiceKey, ServiceEntry> {
        &self.services
    }

    /// Pods of this node whose interfaces are not found.
    pub fn waiting_pods(&self) -> Vec<PodRef> {
        let found: BTreeSet<&PodRef> = self.endpoints.values().map(|spec| &spec.pod).collect();
        let wanted = self
            .wanted
            .keys()
            .map(|(namespace, name)| PodRef { namespace: namespace.clone(), name: name.clone() });
        wanted.filter(|pod| !found.contains(pod)).collect()
    }
}
