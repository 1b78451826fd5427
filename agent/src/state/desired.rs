//! From objects and interfaces to endpoints, identities, tables and resolvers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::learned::Lease;
use namegate_policy::object::{Object, ObjectKind, ObjectRef};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::rule::{PolicyKind, PolicyRef, ServiceRef};
use namegate_policy::table::{PolicyTable, TableError, TableSource};

use super::{Effects, EndpointSpec, State};
use crate::endpoints::{Attachment, Wanted};
use crate::resolvers::{NODE_LOCAL, is_cluster_dns};
use crate::source::Changes;

const NETNS_ANNOTATION: &str = "namegate.dev/netns";
const INTERFACE_ANNOTATION: &str = "namegate.dev/interface";

impl State {
    pub(super) fn take_objects(&mut self, changes: Changes) -> Effects {
        let mut reworded = BTreeSet::new();
        for object in &changes.removals {
            self.remove(object, &mut reworded);
        }
        for object in &changes.upserts {
            self.upsert(object, &mut reworded);
        }
        self.bring_up_to_date(&reworded)
    }

    /// Takes an object in. `reworded` gathers where policies changed: namespaces, `None` for all.
    fn upsert(&mut self, object: &Object, reworded: &mut BTreeSet<Option<Arc<str>>>) {
        match object.clone() {
            Object::Namespace(namespace) => self.inventory.upsert_namespace(namespace),
            Object::Pod(pod) => self.inventory.upsert_pod(pod),
            Object::Service(service) => self.inventory.upsert_service(service),
            Object::EndpointSlice(slice) => self.inventory.upsert_slice(slice),
            Object::Node(node) => self.inventory.upsert_node(node),
            Object::CidrGroup(group) => self.inventory.upsert_cidr_group(group),
            Object::Policy(policy) => {
                reworded.insert(policy.reference.namespace.clone());
                self.policies.insert(policy.reference.clone(), Arc::new(policy));
            }
        }
    }

    fn remove(&mut self, object: &ObjectRef, reworded: &mut BTreeSet<Option<Arc<str>>>) {
        let name = &object.name;
        let namespace = object.namespace.clone().unwrap_or_default();
        match object.kind {
            ObjectKind::Namespace => self.inventory.remove_namespace(name),
            ObjectKind::Node => self.inventory.remove_node(name),
            ObjectKind::CidrGroup => self.inventory.remove_cidr_group(name),
            ObjectKind::Pod => {
                self.inventory.remove_pod(&PodRef { namespace, name: Arc::clone(name) });
            }
            ObjectKind::Service => {
                self.inventory.remove_service(&ServiceRef { namespace, name: Arc::clone(name) });
            }
            ObjectKind::EndpointSlice => self.inventory.remove_slice(&namespace, name),
            ObjectKind::Policy(kind) => {
                reworded.insert(object.namespace.clone());
                let namespace = object.namespace.clone();
                self.policies.remove(&PolicyRef { kind, namespace, name: Arc::clone(name) });
            }
        }
    }

    /// Derives everything that follows from objects and interfaces, and compares it with what is in
    /// force. `reworded` is where policies changed.
    pub(super) fn bring_up_to_date(&mut self, reworded: &BTreeSet<Option<Arc<str>>>) -> Effects {
        let mut effects = Effects::default();
        let mut troubles = BTreeSet::new();
        self.update_wanted(&mut effects, &mut troubles);
        self.update_addresses(&mut effects, &mut troubles);
        let endpoints = self.desired_endpoints(&mut troubles);
        self.inherit_names(&endpoints, &mut effects);
        self.update_tables(&endpoints, reworded, &mut effects, &mut troubles);
        self.update_endpoints(endpoints, &mut effects);
        self.update_resolvers(&mut effects, &mut troubles);
        effects.notices.extend(troubles.difference(&self.troubles).cloned());
        self.troubles = troubles;
        effects
    }

    fn update_wanted(&mut self, effects: &mut Effects, troubles: &mut BTreeSet<String>) {
        let mut wanted = Wanted::new();
        for (pod, _) in self.inventory.pods() {
            let node = self.settings.node_name.as_deref();
            let Some(attachment) = attachment(pod, node) else { continue };
            if pod.addresses.is_empty() {
                troubles.insert(format!(
                    "Pod {}: status.podIPs: the pod has no addresses; nothing passes its interface until they are given",
                    pod.reference
                ));
            }
            let key = (Arc::clone(&pod.reference.namespace), Arc::clone(&pod.reference.name));
            wanted.insert(key, (attachment, pod.addresses.iter().copied().collect()));
        }
        if *self.wanted != wanted {
            self.wanted = Arc::new(wanted);
            effects.wanted = Some(Arc::clone(&self.wanted));
        }
    }

    fn update_addresses(&mut self, effects: &mut Effects, troubles: &mut BTreeSet<String>) {
        for (address, pods) in self.inventory.conflicts() {
            let mut pods = pods.iter();
            let Some(holder) = pods.next() else { continue };
            for refused in pods {
                troubles.insert(format!(
                    "Pod {refused}: status.podIPs: {address} belongs to Pod {holder} already; what this pod sends from it is dropped until one of the two gives it up"
                ));
            }
        }
        let ipcache = self.inventory.ipcache(&self.town.host_addresses);
        self.cluster.pods = ipcache
            .iter()
            .filter(|(_, identity)| !identity.is_reserved())
            .map(|(address, _)| *address)
            .collect();
        self.cluster.nodes = ipcache
            .iter()
            .filter(|(_, identity)| matches!(**identity, Identity::HOST | Identity::REMOTE_NODE))
            .map(|(address, _)| *address)
            .collect();
        self.cluster.services = self
            .inventory
            .services()
            .flat_map(|service| service.cluster_addresses.iter().copied())
            .collect();
        for (address, identity) in &ipcache {
            if self.ipcache.get(address) != Some(identity) {
                effects.ipcache.insert(*address, Some(*identity));
            }
        }
        for address in self.ipcache.keys().filter(|address| !ipcache.contains_key(address)) {
            effects.ipcache.insert(*address, None);
        }
        self.ipcache = ipcache;
    }

    fn desired_endpoints(&self, troubles: &mut BTreeSet<String>) -> BTreeMap<u32, EndpointSpec> {
        let inventory = &self.inventory;
        let mut endpoints: BTreeMap<u32, EndpointSpec> = BTreeMap::new();
        for (pod, identity) in inventory.pods() {
            let key = (Arc::clone(&pod.reference.namespace), Arc::clone(&pod.reference.name));
            if !self.wanted.contains_key(&key) {
                continue;
            }
            let interface = match self.town.pods.get(&key) {
                Some(Ok(interface)) => interface,
                Some(Err(why)) => {
                    troubles.insert(format!("Pod {}: {why}", pod.reference));
                    continue;
                }
                None => continue,
            };
            let Some(identity) = identity else { continue };
            if let Some(holder) = endpoints.get(&interface.index) {
                troubles.insert(format!(
                    "Pod {}: interface {} belongs to Pod {} already; check the annotations",
                    pod.reference, interface.name, holder.pod
                ));
                continue;
            }
            let own = |address: &&IpAddr| {
                let holder = inventory.pod_at(**address);
                holder.is_some_and(|(holder, _)| holder.reference == pod.reference)
            };
            let spec = EndpointSpec {
                pod: pod.reference.clone(),
                interface: interface.name.clone(),
                identity,
                mac: interface.pod_mac,
                addresses: pod.addresses.iter().filter(own).copied().collect(),
            };
            endpoints.insert(interface.index, spec);
        }
        endpoints
    }

    /// Gives a pod whose labels changed the names that it learned: its live flows need them. Only an
    /// identity that no endpoint had before inherits, so that nobody else gains by it (EP-10).
    fn inherit_names(&mut self, endpoints: &BTreeMap<u32, EndpointSpec>, effects: &mut Effects) {
        let moves: BTreeSet<(Identity, Identity)> = endpoints
            .iter()
            .filter_map(|(index, spec)| {
                let before = self.endpoints.get(index)?;
                let is_moved = before.pod == spec.pod && !self.built.contains_key(&spec.identity);
                is_moved.then_some((before.identity, spec.identity))
            })
            .collect();
        for (from, to) in moves {
            let held: Vec<_> = self
                .learned
                .addresses(from)
                .flat_map(|address| {
                    let leases = self.learned.leases((from, address));
                    leases.map(move |(name, lease)| (address, name.clone(), lease))
                })
                .collect();
            for (address, name, lease) in held {
                let deadline = match lease {
                    Lease::Fresh { deadline } => deadline,
                    Lease::Lingering { since } => since,
                };
                if self.restore(to, &name, address, deadline) {
                    let names = effects.labels.entry((to, address)).or_default();
                    names.push(name.to_string().into());
                }
            }
        }
    }

    /// Builds the tables of all identities that endpoints have, and finds those that differ.
    fn update_tables(
        &mut self,
        endpoints: &BTreeMap<u32, EndpointSpec>,
        reworded: &BTreeSet<Option<Arc<str>>>,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        let identities: BTreeSet<Identity> = endpoints.values().map(|e| e.identity).collect();
        let gone: Vec<Identity> =
            self.built.keys().filter(|known| !identities.contains(known)).copied().collect();
        for identity in gone {
            self.built.remove(&identity);
            for place in self.learned.forget(identity) {
                effects.labels.insert(place, Vec::new());
            }
            effects.retired.insert(identity);
        }
        for identity in identities {
            let table = self.build(identity, troubles);
            let namespace = self.inventory.identities().labels(identity).map(|l| &l.namespace);
            // Names are no part of the clauses: where policies changed they may differ.
            let may_name_others = reworded.contains(&None)
                || namespace
                    .is_some_and(|namespace| reworded.contains(&Some(Arc::clone(namespace))));
            let is_same = self.built.get(&identity).is_some_and(|known| {
                let names_matter = known.names.is_governed() || table.names.is_governed();
                known.egress == table.egress
                    && known.ingress == table.ingress
                    && !(may_name_others && names_matter)
            });
            if !is_same {
                self.built.insert(identity, Arc::new(table));
                if let Some(effect) = self.table_effect(identity) {
                    effects.tables.insert(identity, effect);
                }
            }
        }
    }

    /// The table of an identity; a policy that cannot be built closes it.
    fn build(&self, identity: Identity, troubles: &mut BTreeSet<String>) -> PolicyTable {
        let source = TableSource {
            policies: &self.policies,
            inventory: &self.inventory,
            names: &self.cluster_names,
        };
        source.build(identity).unwrap_or_else(|error| {
            troubles.insert(format!("{error}; the endpoints that it selects are closed"));
            let culprit = if let TableError::TooManyClauses { policy, .. } = error {
                policy
            } else {
                let (namespace, name) = (None, "unknown".into());
                PolicyRef { kind: PolicyKind::NetworkPolicy, namespace, name }
            };
            PolicyTable::closed(identity, culprit, &self.cluster_names)
        })
    }

    fn update_endpoints(&mut self, endpoints: BTreeMap<u32, EndpointSpec>, effects: &mut Effects) {
        for (index, spec) in &endpoints {
            if self.endpoints.get(index) != Some(spec) {
                effects.endpoints.insert(*index, Some(spec.clone()));
            }
        }
        for index in self.endpoints.keys().filter(|index| !endpoints.contains_key(index)) {
            effects.endpoints.insert(*index, None);
        }
        self.endpoints = endpoints;
    }

    fn update_resolvers(&mut self, effects: &mut Effects, troubles: &mut BTreeSet<String>) {
        let inventory = &self.inventory;
        let mut wanted: Vec<IpAddr> = Vec::new();
        for service in inventory.services().filter(|service| is_cluster_dns(service)) {
            wanted.extend(service.cluster_addresses.iter().copied());
            let slices = inventory.slices_of(&service.reference);
            wanted.extend(slices.flat_map(|slice| slice.addresses.iter().copied()));
        }
        wanted.push(NODE_LOCAL);
        wanted.extend(&self.settings.resolvers);
        wanted.retain(|resolver| resolver.is_ipv4() || self.settings.has_ipv6);
        let changes = self.slots.update(&wanted);
        for resolver in &changes.left_out {
            troubles.insert(format!(
                "resolver {resolver}: all {} slots are taken; lookups to it are ordinary traffic",
                crate::resolvers::SLOTS
            ));
        }
        if !changes.is_empty() {
            effects.resolvers = Some(self.slots.iter().collect());
        }
    }
}

/// Where to look for a pod's interface; `None` for a pod that is no endpoint of this node.
fn attachment(pod: &Pod, node: Option<&str>) -> Option<Attachment> {
    if pod.is_host_network || pod.is_finished {
        return None;
    }
    if let Some(node) = node {
        // What a pod's annotations say is the word of whoever may create pods.
        let is_here = pod.node_name.as_deref() == Some(node) && !pod.addresses.is_empty();
        return is_here.then_some(Attachment::Addresses);
    }
    let annotation = |key: &str| pod.annotations.get(key).map(|value| value.trim());
    if let Some(path) = annotation(NETNS_ANNOTATION) {
        return Some(Attachment::Namespace(PathBuf::from(path)));
    }
    annotation(INTERFACE_ANNOTATION).map(|name| Attachment::Interface(name.to_owned()))
}
