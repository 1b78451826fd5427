//! What whoever asks may look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use namegate_egress_bpf::abi::ServiceKey;
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_policy::identity::Identity;
use namegate_policy::inventory::Inventory;
use namegate_policy::oracle::Circumstances;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::Policy;
use namegate_policy::table::TableError;

use super::{NameRules, Settings, State};

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

    /// Who an address is, as the kernel finds it: one that nobody has is unmanaged inside the cluster's
    /// ranges, and the world outside.
    pub fn who(&self, address: IpAddr) -> Option<Identity> {
        let ranges = &self.settings.ranges;
        let is_inside =
            || ranges.pods.iter().chain(&ranges.services).any(|net| net.contains(&address));
        self.identity_at(address).or_else(|| is_inside().then_some(Identity::UNMANAGED))
    }

    /// What an address opens for an identity that learned it.
    pub fn name_rules(&self, identity: Identity, address: IpAddr) -> Option<NameRules> {
        let table = self.tables.built().get(&identity)?;
        let opened = self.openings().rules(&self.learned.read(), identity, &table.names, [address]);
        opened.get(&address).copied().filter(|rules| !rules.live.is_empty())
    }

    /// What decisions depend on beside objects. The resolvers are those of the command line.
    pub fn circumstances(&self) -> Circumstances {
        let Settings { cluster_domain, ranges, guard, window, resolvers, .. } = &self.settings;
        Circumstances {
            own_addresses: self.town.host_addresses.clone(),
            ranges: ranges.clone(),
            resolvers: resolvers.iter().copied().collect(),
            domain: cluster_domain.clone(),
            search: Vec::new(),
            guard: *guard,
            min_ttl: window.min_ttl,
            grace: window.grace,
        }
    }

    /// How many addresses the kernel is told the owners of.
    pub fn address_count(&self) -> usize {
        self.ipcache.len()
    }

    /// The services that the kernel translates.
    pub fn services(&self) -> &BTreeMap<ServiceKey, ServiceEntry> {
        &self.services
    }

    /// The service that the kernel translates there: the address's own, or a port of the node's.
    pub fn service_at(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        let is_node = || self.identity_at(key.address.into()) == Some(Identity::HOST);
        let of_node = || self.services.get(&key.at_node()).filter(|_| is_node());
        self.services.get(key).or_else(of_node)
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
