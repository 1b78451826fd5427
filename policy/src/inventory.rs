//! The cluster as it is known: who has which address, which identity, which backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::{Identities, Identity, WorkloadLabels};
use crate::resource::{CidrGroup, EndpointSlice, Namespace, Node, Pod, PodRef, Service};
use crate::rule::{CidrGroups, Namespaces, ServiceRef, ServicesPeer, Workloads};

/// The Service whose backends are the Kubernetes API server.
const APISERVER: (&str, &str) = ("default", "kubernetes");

/// Namespaces, pods, services, nodes and CIDR groups, and what follows from them.
#[derive(Debug, Default)]
pub struct Inventory {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: BTreeMap<PodRef, KnownPod>,
    services: BTreeMap<ServiceRef, Service>,
    slices: BTreeMap<(Arc<str>, Arc<str>), EndpointSlice>,
    nodes: BTreeMap<Arc<str>, Node>,
    cidr_groups: BTreeMap<Arc<str>, CidrGroup>,
    identities: Identities,
    holders: BTreeMap<IpAddr, BTreeSet<PodRef>>,
}

#[derive(Debug)]
struct KnownPod {
    pod: Pod,
    /// `None` for a pod that shares the node's network or is finished.
    identity: Option<Identity>,
}

impl Inventory {
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
        let reference = pod.reference.clone();
        // The new identity is taken before the old is given back, so that an unchanged one stays.
        let identity = self.acquire_identity(&pod);
        self.remove_pod(&reference);
        if identity.is_some() {
            for address in &pod.addresses {
                self.holders.entry(*address).or_default().insert(reference.clone());
            }
        }
        self.pods.insert(reference, KnownPod { pod, identity });
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, reference: &PodRef) {
        let Some(KnownPod { pod, identity }) = self.pods.remove(reference) else { return };
        for address in &pod.addresses {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(reference);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
        }
        if let Some(identity) = identity {
            self.identities.release(identity);
        }
    }

    /// Adds or replaces a Service.
    pub fn upsert_service(&mut self, service: Service) {
        self.services.insert(service.reference.clone(), service);
    }

    /// Removes a Service.
    pub fn remove_service(&mut self, reference: &ServiceRef) {
        self.services.remove(reference);
    }

    /// Adds or replaces an EndpointSlice.
    pub fn upsert_slice(&mut self, slice: EndpointSlice) {
        self.slices.insert((Arc::clone(&slice.namespace), Arc::clone(&slice.name)), slice);
    }

    /// Removes an EndpointSlice.
    pub fn remove_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        self.slices.remove(&(Arc::clone(namespace), Arc::clone(name)));
    }

    /// Adds or replaces a Node.
    pub fn upsert_node(&mut self, node: Node) {
        self.nodes.insert(Arc::clone(&node.name), node);
    }

    /// Removes a Node.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Adds or replaces a CIDR group.
    pub fn upsert_cidr_group(&mut self, group: CidrGroup) {
        self.cidr_groups.insert(Arc::clone(&group.name), group);
    }

    /// Removes a CIDR group.
    pub fn remove_cidr_group(&mut self, name: &str) {
        self.cidr_groups.remove(name);
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
        let holder = self.holders.get(&address)?.first()?;
        let known = self.pods.get(holder)?;
        Some((&known.pod, known.identity?))
    }

    /// Addresses that several pods claim, with the pods in order of their names.
    pub fn conflicts(&self) -> impl Iterator<Item = (IpAddr, &BTreeSet<PodRef>)> {
        self.holders
            .iter()
            .filter(|(_, holders)| holders.len() > 1)
            .map(|(address, holders)| (*address, holders))
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

    /// The EndpointSlices of a Service.
    pub fn slices_of<'a>(
        &'a self,
        service: &'a ServiceRef,
    ) -> impl Iterator<Item = &'a EndpointSlice> {
        self.slices.values().filter(|slice| slice.service.as_ref() == Some(service))
    }

    /// Every CIDR group.
    pub fn cidr_groups(&self) -> impl Iterator<Item = &CidrGroup> {
        self.cidr_groups.values()
    }

    /// Every Node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The addresses of the Kubernetes API server: those of the Service `default/kubernetes` and of
    /// its backends.
    pub fn apiserver_addresses(&self) -> BTreeSet<IpAddr> {
        let (namespace, name) = APISERVER;
        let service = ServiceRef { namespace: namespace.into(), name: name.into() };
        let own = self.service(&service).into_iter().flat_map(|known| &known.cluster_addresses);
        let backends = self.slices_of(&service).flat_map(|slice| &slice.addresses);
        own.chain(backends).copied().collect()
    }

    /// Which address has which identity: pods before the node's own addresses (`own`), those before
    /// the API server's, those before other nodes'. What is missing is a matter of prefixes.
    pub fn ipcache(&self, own: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Identity> {
        let remote_nodes = self.nodes.values().flat_map(|node| &node.addresses);
        let mut ipcache: BTreeMap<IpAddr, Identity> =
            remote_nodes.map(|address| (*address, Identity::REMOTE_NODE)).collect();
        for address in self.apiserver_addresses() {
            ipcache.entry(address).or_insert(Identity::KUBE_APISERVER);
        }
        ipcache.extend(own.iter().map(|address| (*address, Identity::HOST)));
        ipcache.extend(self.holders.keys().filter_map(|address| {
            let (_, identity) = self.pod_at(*address)?;
            Some((*address, identity))
        }));
        ipcache
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
        Some(self.identities.acquire(WorkloadLabels {
            namespace: Arc::clone(namespace),
            namespace_labels,
            pod_labels: Arc::clone(&pod.labels),
            service_account: Arc::clone(&pod.service_account),
            named_ports: pod.named_ports.clone(),
        }))
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
            self.upsert_pod(pod);
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
            labels: Arc::new(Labels::from([("app".into(), name.into())])),
            annotations: BTreeMap::new(),
            service_account: "default".into(),
            node_name: None,
            is_host_network: false,
            is_finished: false,
            addresses: vec![address.parse().unwrap()],
            named_ports: BTreeMap::new(),
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
