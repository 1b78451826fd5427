//! The cluster as it is known: who has which address, which identity, which backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::{Identities, Identity, WorkloadLabels};
use crate::resource::{CidrGroup, EndpointSlice, Namespace, Node, Pod, PodRef, Service};
use crate::rule::{CidrGroups, Namespaces, ServiceRef, ServicesPeer, Workloads};

/// The Service whose backends are the Kubernetes API server.
const APISERVER: (&str, &str) = ("default", "kubernetes");

/// What changed in an [`Inventory`], as far as others derive from it. What did not change in the
/// end may be here too.
#[derive(Clone, Debug, Default)]
pub(crate) struct InventoryChanges {
    /// Identities that came or went.
    pub(crate) identities: BTreeSet<Identity>,
    /// Pods that came, went or are others.
    pub(crate) pods: BTreeSet<PodRef>,
    /// Addresses that somebody else may have, or somebody at all.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Services that are others, by themselves or by their backends.
    pub(crate) services: BTreeSet<ServiceRef>,
    /// Names of ports of pods that came, went or are others.
    pub(crate) port_names: BTreeSet<Arc<str>>,
    /// Whether a node is another.
    pub(crate) nodes: bool,
    /// Whether a CIDR group is another.
    pub(crate) cidr_groups: bool,
}

/// Namespaces, pods, services, nodes and CIDR groups, and what follows from them.
#[derive(Debug, Default)]
pub struct Inventory {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    /// In boxes: the nodes of the map are half empty where pods came in order of their names.
    pods: BTreeMap<PodRef, Box<KnownPod>>,
    services: BTreeMap<ServiceRef, Service>,
    slices: BTreeMap<SliceKey, EndpointSlice>,
    slices_by_service: BTreeMap<ServiceRef, BTreeSet<SliceKey>>,
    nodes: BTreeMap<Arc<str>, Node>,
    cidr_groups: BTreeMap<Arc<str>, CidrGroup>,
    identities: Identities,
    holders: BTreeMap<IpAddr, Holders>,
    /// Addresses that several pods claim.
    contested: BTreeSet<IpAddr>,
    /// How many nodes have an address.
    node_addresses: BTreeMap<IpAddr, usize>,
    /// How many Services have a cluster address.
    cluster_addresses: BTreeMap<IpAddr, usize>,
    changes: InventoryChanges,
}

/// Namespace and name of an EndpointSlice.
type SliceKey = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct KnownPod {
    pod: Pod,
    /// `None` for a pod that shares the node's network or is finished.
    identity: Option<Identity>,
}

/// The pods that claim an address: nearly always one, and a set of one takes room for eleven.
#[derive(Debug)]
enum Holders {
    One(PodRef),
    /// Two at least.
    Several(BTreeSet<PodRef>),
}

impl Holders {
    fn first(&self) -> Option<&PodRef> {
        match self {
            Self::One(pod) => Some(pod),
            Self::Several(pods) => pods.first(),
        }
    }

    fn with(self, pod: PodRef) -> Self {
        match self {
            Self::One(holder) if holder == pod => Self::One(pod),
            Self::One(holder) => Self::Several([holder, pod].into()),
            Self::Several(mut pods) => {
                pods.insert(pod);
                Self::Several(pods)
            }
        }
    }

    /// `None` where nobody is left.
    fn without(self, pod: &PodRef) -> Option<Self> {
        match self {
            Self::One(holder) => (holder != *pod).then_some(Self::One(holder)),
            Self::Several(mut pods) => {
                pods.remove(pod);
                if pods.len() > 1 {
                    return Some(Self::Several(pods));
                }
                pods.pop_first().map(Self::One)
            }
        }
    }
}

impl Inventory {
    /// See [`Identities::continue_from`].
    pub fn continue_from(&mut self, former: BTreeMap<IpAddr, Identity>) {
        self.identities.continue_from(former);
    }

    /// See [`Identities::forget_former`].
    pub fn forget_former(&mut self) {
        self.identities.forget_former();
    }

    /// Adds or replaces a namespace; its pods' identities follow its labels.
    pub fn upsert_namespace(&mut self, namespace: Namespace) {
        let name = Arc::clone(&namespace.name);
        if self.namespaces.insert(Arc::clone(&name), namespace.clone()).as_ref() != Some(&namespace)
        {
            self.identify_pods_of(&name);
        }
    }

    /// Removes a namespace; its pods keep the label of its name.
    pub fn remove_namespace(&mut self, name: &str) {
        if let Some(namespace) = self.namespaces.remove(name) {
            self.identify_pods_of(&namespace.name);
        }
    }

    /// Adds or replaces a pod.
    pub fn upsert_pod(&mut self, pod: Pod) {
        let known = self.pods.get(&pod.reference);
        if known.is_some_and(|known| known.pod == pod) {
            return;
        }
        self.replace_pod(pod);
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, reference: &PodRef) {
        let Some(known) = self.pods.remove(reference) else { return };
        let KnownPod { pod, identity } = *known;
        self.note_pod(&pod);
        for address in &pod.addresses {
            let Some(holders) = self.holders.remove(address) else { continue };
            if let Some(left) = holders.without(reference) {
                if let Holders::One(_) = left {
                    self.contested.remove(address);
                }
                self.holders.insert(*address, left);
            }
        }
        if let Some(identity) = identity {
            self.identities.release(identity);
        }
    }

    /// Adds or replaces a Service.
    pub fn upsert_service(&mut self, service: Service) {
        if self.services.get(&service.reference) == Some(&service) {
            return;
        }
        let reference = service.reference.clone();
        self.remove_service(&reference);
        count(&mut self.cluster_addresses, &service.cluster_addresses);
        self.services.insert(reference.clone(), service);
        self.note_service(&reference);
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, reference: &ServiceRef) {
        self.note_service(reference);
        if let Some(service) = self.services.remove(reference) {
            discount(&mut self.cluster_addresses, &service.cluster_addresses);
        }
    }

    /// Adds or replaces an EndpointSlice.
    pub fn upsert_slice(&mut self, slice: EndpointSlice) {
        let key = (Arc::clone(&slice.namespace), Arc::clone(&slice.name));
        if self.slices.get(&key) == Some(&slice) {
            return;
        }
        self.remove_slice(&slice.namespace, &slice.name);
        if let Some(service) = &slice.service {
            self.note_backends(service, &slice.addresses);
            self.slices_by_service.entry(service.clone()).or_default().insert(key.clone());
        }
        self.slices.insert(key, slice);
    }

    /// Removes an EndpointSlice.
    pub fn remove_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let key = (Arc::clone(namespace), Arc::clone(name));
        let Some(slice) = self.slices.remove(&key) else { return };
        let Some(service) = slice.service else { return };
        self.note_backends(&service, &slice.addresses);
        if let Some(slices) = self.slices_by_service.get_mut(&service) {
            slices.remove(&key);
            if slices.is_empty() {
                self.slices_by_service.remove(&service);
            }
        }
    }

    /// Adds or replaces a Node.
    pub fn upsert_node(&mut self, node: Node) {
        if self.nodes.get(&node.name) == Some(&node) {
            return;
        }
        self.remove_node(&node.name);
        self.changes.nodes = true;
        self.changes.addresses.extend(&node.addresses);
        count(&mut self.node_addresses, &node.addresses);
        self.nodes.insert(Arc::clone(&node.name), node);
    }

    /// Removes a Node.
    pub fn remove_node(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else { return };
        self.changes.nodes = true;
        self.changes.addresses.extend(&node.addresses);
        discount(&mut self.node_addresses, &node.addresses);
    }

    /// Adds or replaces a CIDR group.
    pub fn upsert_cidr_group(&mut self, group: CidrGroup) {
        if self.cidr_groups.get(&group.name) != Some(&group) {
            self.changes.cidr_groups = true;
            self.cidr_groups.insert(Arc::clone(&group.name), group);
        }
    }

    /// Removes a CIDR group.
    pub fn remove_cidr_group(&mut self, name: &str) {
        self.changes.cidr_groups |= self.cidr_groups.remove(name).is_some();
    }

    /// What changed since this was asked last.
    pub(crate) fn take_changes(&mut self) -> InventoryChanges {
        let mut changes = std::mem::take(&mut self.changes);
        changes.identities = self.identities.take_changed();
        changes
    }

    /// A pod by name.
    pub fn pod(&self, reference: &PodRef) -> Option<&Pod> {
        self.pods.get(reference).map(|known| &known.pod)
    }

    /// Every pod with its identity, `None` where it has none of its own (NP-21, NP-28).
    pub fn pods(&self) -> impl Iterator<Item = (&Pod, Option<Identity>)> {
        self.pods.values().map(|known| (&known.pod, known.identity))
    }

    /// The identity of a pod that has one of its own.
    pub fn identity_of(&self, reference: &PodRef) -> Option<Identity> {
        self.pods.get(reference)?.identity
    }

    /// The pod that an address belongs to. Where several claim it, the first by name has it; see
    /// [`Inventory::conflicts`].
    pub fn pod_at(&self, address: IpAddr) -> Option<(&Pod, Identity)> {
        let known = self.pods.get(self.holders.get(&address)?.first()?)?;
        Some((&known.pod, known.identity?))
    }

    /// Addresses that several pods claim, with the pods in order of their names.
    pub fn conflicts(&self) -> impl Iterator<Item = (IpAddr, &BTreeSet<PodRef>)> {
        self.contested.iter().filter_map(|address| match self.holders.get(address)? {
            Holders::One(_) => None,
            Holders::Several(pods) => Some((*address, pods)),
        })
    }

    /// The addresses that pods with an identity of their own and nodes have, in no order.
    pub(crate) fn known_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().chain(self.node_addresses.keys()).copied()
    }

    /// Whether [`Inventory::known_addresses`] has this one.
    pub(crate) fn is_known_address(&self, address: IpAddr) -> bool {
        self.holders.contains_key(&address) || self.node_addresses.contains_key(&address)
    }

    /// The identities in use.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The labels of a pod's namespace, as they were when it was last looked at.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// A Service by name.
    pub fn service(&self, reference: &ServiceRef) -> Option<&Service> {
        self.services.get(reference)
    }

    /// Every Service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Whether `address` is a cluster address of a Service.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        self.cluster_addresses.contains_key(&address)
    }

    /// The EndpointSlices of a Service.
    pub fn slices_of(&self, service: &ServiceRef) -> impl Iterator<Item = &EndpointSlice> {
        let keys = self.slices_by_service.get(service).into_iter().flatten();
        keys.filter_map(|key| self.slices.get(key))
    }

    /// Every CIDR group.
    pub fn cidr_groups(&self) -> impl Iterator<Item = &CidrGroup> {
        self.cidr_groups.values()
    }

    /// Every Node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service whose backends are the Kubernetes API server.
    pub(crate) fn apiserver() -> ServiceRef {
        let (namespace, name) = APISERVER;
        ServiceRef { namespace: namespace.into(), name: name.into() }
    }

    /// The addresses of the Kubernetes API server: those of the Service `default/kubernetes` and of
    /// its backends.
    pub fn apiserver_addresses(&self) -> BTreeSet<IpAddr> {
        let service = Self::apiserver();
        let own = self.service(&service).into_iter().flat_map(|known| &known.cluster_addresses);
        let backends = self.slices_of(&service).flat_map(|slice| &slice.addresses);
        own.chain(backends).copied().collect()
    }

    /// Which address has which identity: pods before the node's own addresses (`own`), those before
    /// other nodes', those before the API server's. What is missing is a matter of prefixes.
    pub fn ipcache(&self, own: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Identity> {
        let apiserver = self.apiserver_addresses();
        let known = self.holders.keys().chain(own).chain(self.node_addresses.keys());
        known
            .chain(&apiserver)
            .filter_map(|address| Some((*address, self.identity_at(*address, own, &apiserver)?)))
            .collect()
    }

    /// The identity of one address, as [`Inventory::ipcache`] has it; `apiserver` is
    /// [`Inventory::apiserver_addresses`].
    pub fn identity_at(
        &self,
        address: IpAddr,
        own: &BTreeSet<IpAddr>,
        apiserver: &BTreeSet<IpAddr>,
    ) -> Option<Identity> {
        if let Some((_, identity)) = self.pod_at(address) {
            return Some(identity);
        }
        [
            (own.contains(&address), Identity::HOST),
            (self.node_addresses.contains_key(&address), Identity::REMOTE_NODE),
            (apiserver.contains(&address), Identity::KUBE_APISERVER),
        ]
        .into_iter()
        .find_map(|(is_it, identity)| is_it.then_some(identity))
    }

    fn note_pod(&mut self, pod: &Pod) {
        self.changes.pods.insert(pod.reference.clone());
        self.changes.addresses.extend(&pod.addresses);
        self.changes.port_names.extend(pod.named_ports.keys().map(|(name, _)| Arc::clone(name)));
    }

    fn note_service(&mut self, service: &ServiceRef) {
        self.changes.services.insert(service.clone());
        if let Some(known) = self.services.get(service) {
            self.changes.addresses.extend(&known.cluster_addresses);
        }
        if *service == Self::apiserver() {
            self.changes.addresses.extend(self.apiserver_addresses());
        }
    }

    fn note_backends(&mut self, service: &ServiceRef, addresses: &[IpAddr]) {
        self.changes.services.insert(service.clone());
        if *service == Self::apiserver() {
            self.changes.addresses.extend(addresses);
        }
    }

    fn replace_pod(&mut self, pod: Pod) {
        let reference = pod.reference.clone();
        // The new identity is taken before the old is given back, so that an unchanged one stays.
        let identity = self.acquire_identity(&pod);
        self.remove_pod(&reference);
        self.note_pod(&pod);
        if identity.is_some() {
            for address in &pod.addresses {
                let holders = match self.holders.remove(address) {
                    None => Holders::One(reference.clone()),
                    Some(holders) => holders.with(reference.clone()),
                };
                if let Holders::Several(_) = holders {
                    self.contested.insert(*address);
                }
                self.holders.insert(*address, holders);
            }
        }
        self.pods.insert(reference, Box::new(KnownPod { pod, identity }));
    }

    fn acquire_identity(&mut self, pod: &Pod) -> Option<Identity> {
        if pod.is_host_network || pod.is_finished {
            return None;
        }
        let namespace = &pod.reference.namespace;
        let namespace_labels = self.namespaces.get(namespace).map_or_else(
            || Namespace::new(Arc::clone(namespace), BTreeMap::new()).labels,
            |known| Arc::clone(&known.labels),
        );
        let labels = WorkloadLabels {
            namespace: Arc::clone(namespace),
            namespace_labels,
            pod_labels: Arc::clone(&pod.labels),
            service_account: Arc::clone(&pod.service_account),
            named_ports: Arc::clone(&pod.named_ports),
        };
        Some(self.identities.acquire(labels, &pod.addresses))
    }

    fn identify_pods_of(&mut self, namespace: &Arc<str>) {
        let first = PodRef { namespace: Arc::clone(namespace), name: "".into() };
        let affected: Vec<Pod> = self
            .pods
            .range(first..)
            .take_while(|(reference, _)| reference.namespace == *namespace)
            .map(|(_, known)| known.pod.clone())
            .collect();
        for pod in affected {
            self.replace_pod(pod);
        }
    }
}

fn count(holders: &mut BTreeMap<IpAddr, usize>, addresses: &[IpAddr]) {
    for address in addresses {
        *holders.entry(*address).or_default() += 1;
    }
}

fn discount(holders: &mut BTreeMap<IpAddr, usize>, addresses: &[IpAddr]) {
    for address in addresses {
        if let Some(times) = holders.get_mut(address) {
            *times -= 1;
            if *times == 0 {
                holders.remove(address);
            }
        }
    }
}

impl Workloads {
    /// Whether pods with these labels are meant.
    pub fn matches(&self, workload: &WorkloadLabels) -> bool {
        let in_namespace = match &self.namespaces {
            Namespaces::Named(name) => workload.namespace == *name,
            Namespaces::Selected(selector) => selector.matches(&workload.namespace_labels),
        };
        in_namespace
            && self.pods.matches(&workload.pod_labels)
            && self.service_accounts.iter().all(|one| one.holds(Some(&workload.service_account)))
    }
}

impl CidrGroups {
    /// Whether `group` is meant.
    pub fn matches(&self, group: &CidrGroup) -> bool {
        match self {
            Self::Named(name) => group.name == *name,
            Self::Selected(selector) => selector.matches(&group.labels),
        }
    }
}

impl ServicesPeer {
    /// Whether `service` is meant.
    pub fn matches(&self, service: &Service) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| service.reference.namespace == *namespace)
            && self.labels.matches(&service.labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::Labels;

    fn mk_pod(name: &str, address: &str) -> Pod {
        Pod {
            reference: PodRef { namespace: "shop".into(), name: name.into() },
            uid: None,
            labels: Arc::new(Labels::from([("app".into(), name.into())])),
            annotations: BTreeMap::new(),
            service_account: "default".into(),
            node_name: None,
            is_host_network: false,
            is_finished: false,
            addresses: vec![address.parse().unwrap()],
            named_ports: Arc::default(),
        }
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn np_28_a_finished_pod_holds_no_address() {
        let mut inventory = Inventory::default();
        inventory.upsert_pod(mk_pod("web", "10.244.1.5"));
        assert!(inventory.pod_at(at("10.244.1.5")).is_some());
        inventory.upsert_pod(Pod { is_finished: true, ..mk_pod("web", "10.244.1.5") });
        assert!(inventory.pod_at(at("10.244.1.5")).is_none());
        inventory.upsert_pod(mk_pod("db", "10.244.1.5"));
        let (pod, _) = inventory.pod_at(at("10.244.1.5")).unwrap();
        assert_eq!(&*pod.reference.name, "db", "the address was handed on");
        assert_eq!(inventory.conflicts().count(), 0);
    }

    #[test]
    fn np_21_a_pod_of_the_node_s_network_has_no_identity() {
        let mut inventory = Inventory::default();
        inventory.upsert_pod(Pod { is_host_network: true, ..mk_pod("web", "192.0.2.11") });
        let own = BTreeSet::from([at("192.0.2.11")]);
        assert_eq!(inventory.ipcache(&own), BTreeMap::from([(at("192.0.2.11"), Identity::HOST)]));
    }

    #[test]
    fn np_11_np_26_identities_follow_the_labels_of_the_namespace() {
        let mut inventory = Inventory::default();
        inventory.upsert_pod(mk_pod("web", "10.244.1.5"));
        let web = PodRef { namespace: "shop".into(), name: "web".into() };
        let before = inventory.identity_of(&web).unwrap();
        let labels = inventory.identities().labels(before).unwrap();
        let named = Labels::from([("kubernetes.io/metadata.name".into(), "shop".into())]);
        assert_eq!(*labels.namespace_labels, named, "also without a Namespace object");

        let team = Labels::from([("team".into(), "data".into())]);
        inventory.upsert_namespace(Namespace::new("shop".into(), team));
        let after = inventory.identity_of(&web).unwrap();
        assert_ne!(before, after);
        assert_eq!(inventory.identities().labels(before), None, "the old one is given back");
        assert_eq!(inventory.pod_at(at("10.244.1.5")).unwrap().1, after);
    }

    #[test]
    fn an_upsert_that_changes_no_label_keeps_the_identity() {
        let mut inventory = Inventory::default();
        inventory.upsert_pod(mk_pod("web", "10.244.1.5"));
        let reference = mk_pod("web", "10.244.1.5").reference;
        let before = inventory.identity_of(&reference);
        inventory.upsert_pod(mk_pod("web", "10.244.1.6"));
        assert_eq!(inventory.identity_of(&reference), before);
        assert!(inventory.pod_at(at("10.244.1.5")).is_none(), "the old address is gone");
        inventory.remove_pod(&reference);
        assert_eq!(inventory.identities().iter().count(), 0);
    }

    #[test]
    fn an_address_that_two_pods_claim_belongs_to_the_first_by_name() {
        let mut inventory = Inventory::default();
        inventory.upsert_pod(mk_pod("web", "10.244.1.5"));
        inventory.upsert_pod(mk_pod("db", "10.244.1.5"));
        let (pod, _) = inventory.pod_at(at("10.244.1.5")).unwrap();
        assert_eq!(&*pod.reference.name, "db");
        assert_eq!(inventory.conflicts().count(), 1);
    }
}
