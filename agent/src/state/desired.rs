//! From objects and interfaces to endpoints, identities, tables and resolvers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use namegate_policy::identity::Identity;
use namegate_policy::learned::{Lease, Term};
use namegate_policy::object::{Object, ObjectKind};
use namegate_policy::resource::{Pod, PodRef};
use namegate_policy::table::{ClusterChanges, TableChange};

use super::{Behind, Effects, EndpointEffect, EndpointSpec, State};
use crate::endpoints::{Attachment, Town};
use crate::resolvers::{NODE_LOCAL, is_cluster_dns};
use crate::source::Changes;

const NETNS_ANNOTATION: &str = "namegate.dev/netns";
const INTERFACE_ANNOTATION: &str = "namegate.dev/interface";

impl State {
    pub(super) fn take_objects(&mut self, changes: Changes) -> Effects {
        for object in &changes.removals {
            if let (ObjectKind::Pod, Some(namespace)) = (object.kind, object.namespace.clone()) {
                self.outdate_claim(&PodRef { namespace, name: Arc::clone(&object.name) }, None);
            }
            self.tables.remove(object);
        }
        // Each goes as it is taken in: those of a whole cluster are many.
        for object in changes.upserts {
            let claimed = if let Object::Pod(pod) = &*object {
                self.outdate_claim(&pod.reference, Some(pod));
                self.with_claim(pod)
            } else {
                None
            };
            match claimed {
                Some(pod) => self.tables.upsert(&Arc::new(Object::Pod(pod))),
                None => self.tables.upsert(&object),
            }
        }
        if changes.is_current {
            self.confined = None;
        }
        let own = self.town.host_addresses.clone();
        self.bring_up_to_date(&own, BTreeSet::new())
    }

    pub(super) fn take_town(&mut self, town: Town) -> Effects {
        let before = std::mem::replace(&mut self.town, town).host_addresses;
        self.bring_up_to_date(&before, BTreeSet::new())
    }

    /// Derives what follows from the objects and interfaces that changed, and compares it with what
    /// is in force. `own_before` are the node's addresses as they were; `claimed` are pods that the
    /// CNI plugin told something of.
    pub(super) fn bring_up_to_date(
        &mut self,
        own_before: &BTreeSet<IpAddr>,
        claimed: BTreeSet<PodRef>,
    ) -> Effects {
        let mut effects = Effects::default();
        let mut troubles = BTreeSet::new();
        let ClusterChanges { mut pods, mut addresses } = self.tables.settle();
        pods.extend(claimed);
        addresses.extend(own_before ^ &self.town.host_addresses);
        self.update_wanted(&pods, &mut effects, &mut troubles);
        self.update_addresses(&addresses, &mut effects, &mut troubles);
        let endpoints = self.desired_endpoints(&mut troubles);
        self.inherit_names(&endpoints);
        self.update_tables(&endpoints, &mut effects, &mut troubles);
        self.update_names(&addresses, &mut effects);
        self.update_endpoints(endpoints, &mut effects, &mut troubles);
        self.update_services(&mut effects, &mut troubles);
        self.update_resolvers(&mut effects, &mut troubles);
        effects.notices.extend(troubles.difference(&self.troubles).cloned());
        self.troubles = troubles;
        effects
    }

    fn update_wanted(
        &mut self,
        changed: &BTreeSet<PodRef>,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        let node = self.settings.node_name.as_deref();
        for reference in changed {
            let key = (Arc::clone(&reference.namespace), Arc::clone(&reference.name));
            let wanted = match self.tables.inventory().pod(reference) {
                Some(pod) => attachment(pod, node).map(|attachment| {
                    (attachment, pod.addresses.iter().copied().collect::<BTreeSet<_>>())
                }),
                // Its interface is closed until its object is known.
                None => self.claim(reference).map(|claim| {
                    let attachment = Attachment::Addresses { uid: claim.uid.clone() };
                    (attachment, claim.addresses.clone())
                }),
            };
            if self.wanted.get(&key) == wanted.as_ref() {
                continue;
            }
            let all = Arc::make_mut(&mut self.wanted);
            match wanted {
                Some(wanted) => all.insert(key, wanted),
                None => all.remove(&key),
            };
            effects.wanted = Some(Arc::clone(&self.wanted));
        }
        for ((namespace, name), (_, addresses)) in &*self.wanted {
            if addresses.is_empty() {
                troubles.insert(format!(
                    "Pod {namespace}/{name}: status.podIPs: the pod has no addresses; nothing passes its interface until they are given"
                ));
            }
        }
    }

    fn update_addresses(
        &mut self,
        changed: &BTreeSet<IpAddr>,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        let inventory = self.tables.inventory();
        for (address, pods) in inventory.conflicts() {
            let mut pods = pods.iter();
            let Some(holder) = pods.next() else { continue };
            for refused in pods {
                troubles.insert(format!(
                    "Pod {refused}: status.podIPs: {address} belongs to Pod {holder} already; what this pod sends from it is dropped until one of the two gives it up"
                ));
            }
        }
        if changed.is_empty() {
            return;
        }
        let apiserver = inventory.apiserver_addresses();
        for &address in changed {
            let identity = inventory.identity_at(address, &self.town.host_addresses, &apiserver);
            let before = match identity {
                Some(identity) => self.ipcache.insert(address, identity),
                None => self.ipcache.remove(&address),
            };
            if before != identity {
                effects.ipcache.insert(address, identity);
                effects.is_anyone_elsewhere = true;
            }
        }
    }

    /// Judges anew what these addresses open where somebody learned them: a pod, a node or a Service
    /// that has one since keeps names out of it (EP-9), and lets them in again when it goes.
    fn update_names(&self, changed: &BTreeSet<IpAddr>, effects: &mut Effects) {
        let learned = self.learned.read();
        let places = learned.identities().flat_map(|identity| {
            let places = changed.iter().map(move |address| (identity, *address));
            places.filter(|place| learned.leases(*place).next().is_some())
        });
        let whole = |identity| effects.tables.contains_key(&identity);
        let places = places.filter(|(identity, _)| !whole(*identity)).collect();
        drop(learned);
        effects.names.extend(self.rewrite(places).names);
    }

    fn desired_endpoints(&self, troubles: &mut BTreeSet<String>) -> BTreeMap<u32, EndpointSpec> {
        let inventory = self.tables.inventory();
        let mut endpoints: BTreeMap<u32, EndpointSpec> = BTreeMap::new();
        for (namespace, name) in self.wanted.keys() {
            let reference = PodRef { namespace: Arc::clone(namespace), name: Arc::clone(name) };
            let Some(pod) = inventory.pod(&reference) else { continue };
            let key = (Arc::clone(namespace), Arc::clone(name));
            let interface = match self.town.pods.get(&key) {
                Some(Ok(interface)) => interface,
                Some(Err(why)) => {
                    troubles.insert(format!("Pod {}: {why}", pod.reference));
                    continue;
                }
                None => continue,
            };
            let Some(identity) = inventory.identity_of(&reference) else { continue };
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
            let confined = self.confined.as_ref();
            let is_behind =
                |known: &Behind| known.addresses == spec.addresses && known.mac == spec.mac;
            if confined.is_some_and(|known| !known.get(&interface.index).is_some_and(is_behind)) {
                troubles.insert(format!(
                    "Pod {}: interface {} came after the last word of the API server; nothing passes it until the API server is read",
                    pod.reference, interface.name
                ));
                continue;
            }
            endpoints.insert(interface.index, spec);
        }
        endpoints
    }

    /// Gives a pod whose labels changed the names that it learned: its live flows need them. Only an
    /// identity that no endpoint had before inherits, so that nobody else gains by it (EP-10).
    /// What ended before ends now for the new one, which opens nothing: a look at live flows that began
    /// earlier knows nothing of it, and must not find it idle.
    fn inherit_names(&mut self, endpoints: &BTreeMap<u32, EndpointSpec>) {
        let moves: BTreeSet<(Identity, Identity)> = endpoints
            .iter()
            .filter_map(|(index, spec)| {
                let before = self.endpoints.get(index)?;
                let is_moved =
                    before.pod == spec.pod && !self.tables.built().contains_key(&spec.identity);
                is_moved.then_some((before.identity, spec.identity))
            })
            .collect();
        for (from, to) in moves {
            let learned = self.learned.read();
            let held: Vec<_> = learned
                .addresses(from)
                .flat_map(|address| {
                    let leases = learned.leases((from, address));
                    leases.map(move |(name, lease)| (address, name.clone(), lease))
                })
                .map(|(address, name, lease)| {
                    let deadline = match lease {
                        Lease::Fresh { deadline } => deadline,
                        Lease::Lingering { since } => since,
                    };
                    let since = learned.learned_at((from, address), &name);
                    (address, name, Term { since, deadline: deadline.max(self.now) })
                })
                .collect();
            drop(learned);
            for (address, name, term) in held {
                // Where there is no room for it, it is as if it had made room for others.
                self.restore(to, &name, address, term);
            }
        }
    }

    /// Governs the identities that endpoints have, and takes over which of their tables differ.
    fn update_tables(
        &mut self,
        endpoints: &BTreeMap<u32, EndpointSpec>,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        let identities: BTreeSet<Identity> = endpoints.values().map(|e| e.identity).collect();
        let known: BTreeSet<Identity> = self.tables.built().keys().copied().collect();
        for &identity in known.difference(&identities) {
            self.tables.release(identity);
            self.learned.write().forget(identity);
            effects.retired.insert(identity);
        }
        for &identity in identities.difference(&known) {
            self.tables.govern(identity);
        }
        for (identity, change) in self.tables.rebuild() {
            match change {
                TableChange::Replaced => {
                    if let Some(effect) = self.table_effect(identity) {
                        effects.tables.insert(identity, effect);
                    }
                }
                TableChange::Members(_) => {
                    if let Some(table) = self.tables.built().get(&identity) {
                        effects.rows.insert(identity, Arc::clone(table));
                    }
                }
            }
        }
        for (_, error) in self.tables.errors() {
            troubles.insert(format!("{error}; the endpoints that it selects are closed"));
        }
    }

    /// Enforces the endpoints that there are. In a cluster an object can vanish before what runs
    /// behind its interface does (a pod that is deleted by force): that interface is closed until it
    /// goes, or is another pod's. In a directory, whoever removes a pod's manifest lets it go.
    fn update_endpoints(
        &mut self,
        endpoints: BTreeMap<u32, EndpointSpec>,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        for (index, spec) in &endpoints {
            self.closed.remove(index);
            if self.endpoints.get(index) != Some(spec) {
                effects.endpoints.insert(*index, EndpointEffect::Enforce(spec.clone()));
            }
        }
        let before = std::mem::replace(&mut self.endpoints, endpoints);
        for index in self.interfaces_of_unknown_pods() {
            if !self.endpoints.contains_key(&index) && !before.contains_key(&index) {
                self.closed.entry(index).or_insert_with(|| {
                    effects.endpoints.insert(index, EndpointEffect::Close);
                    None
                });
            }
        }
        for (index, spec) in before {
            if self.endpoints.contains_key(&index) {
                continue;
            }
            if self.closes(index) {
                self.closed.insert(index, Some(spec.pod));
                effects.endpoints.insert(index, EndpointEffect::Close);
            } else {
                effects.endpoints.insert(index, EndpointEffect::Release);
            }
        }
        let gone: Vec<u32> = self
            .closed
            .keys()
            .filter(|index| !self.town.interfaces.contains(index))
            .copied()
            .collect();
        for index in gone {
            self.closed.remove(&index);
            effects.endpoints.insert(index, EndpointEffect::Release);
        }
        let inventory = self.tables.inventory();
        for (index, pod) in &self.closed {
            if let Some(pod) = pod.as_ref().filter(|pod| inventory.pod(pod).is_none()) {
                troubles.insert(format!(
                    "Pod {pod}: the object is gone and its interface {index} is still there; nothing passes it until it goes"
                ));
            }
        }
    }

    /// Whether an interface that is no endpoint's any more is closed, and not let go.
    pub(super) fn closes(&self, interface: u32) -> bool {
        self.settings.node_name.is_some() && self.town.interfaces.contains(&interface)
    }

    fn update_resolvers(&mut self, effects: &mut Effects, troubles: &mut BTreeSet<String>) {
        let inventory = self.tables.inventory();
        let services = || inventory.services().filter(|service| is_cluster_dns(service));
        // Those that pods are told come first: however many backends there are, these have a slot.
        let mut wanted: Vec<IpAddr> = vec![NODE_LOCAL];
        wanted
            .splice(..0, services().flat_map(|service| service.cluster_addresses.iter().copied()));
        wanted.extend(&self.settings.resolvers);
        let slices = services().flat_map(|service| inventory.slices_of(&service.reference));
        wanted.extend(slices.flat_map(|slice| slice.addresses.iter().copied()));
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
        return is_here.then(|| Attachment::Addresses { uid: pod.uid.clone() });
    }
    let annotation = |key: &str| pod.annotations.get(key).map(|value| value.trim());
    if let Some(path) = annotation(NETNS_ANNOTATION) {
        return Some(Attachment::Namespace(PathBuf::from(path)));
    }
    annotation(INTERFACE_ANNOTATION).map(|name| Attachment::Interface(name.to_owned()))
}
