//! What is known of the cluster's objects, trimmed to what policies can ask about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::rule::{Protocol, ServiceRef};
use crate::selector::Labels;

/// The label that every namespace carries, with its name as the value (NP-11).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A pod by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, [`NAMESPACE_NAME_LABEL`] always among them.
    pub labels: Arc<Labels>,
}

impl Namespace {
    /// A namespace with these labels and the one that every namespace carries (NP-11).
    pub fn new(name: Arc<str>, mut labels: Labels) -> Self {
        labels.insert(NAMESPACE_NAME_LABEL.into(), Arc::clone(&name));
        Self { name, labels: Arc::new(labels) }
    }
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub reference: PodRef,
    /// What tells it from others that had its name before; `None` outside a cluster.
    pub uid: Option<Arc<str>>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its annotations.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// The name of its service account; `default` where the pod names none.
    pub service_account: Arc<str>,
    /// The node it was given; `None` while it waits for one.
    pub node_name: Option<Arc<str>>,
    /// Whether it shares the node's network: such a pod is node traffic (NP-21).
    pub is_host_network: bool,
    /// Whether all its containers ended for good: it keeps no address then (NP-28).
    pub is_finished: bool,
    /// Every address it reports (NP-29).
    pub addresses: Vec<IpAddr>,
    /// The ports that its containers name (NP-17).
    pub named_ports: Arc<NamedPorts>,
}

/// Port numbers by name and protocol; a name is used once a protocol.
pub type NamedPorts = BTreeMap<(Arc<str>, Protocol), u16>;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub reference: ServiceRef,
    /// Its labels.
    pub labels: Labels,
    /// Its cluster addresses; none for a headless Service.
    pub cluster_addresses: Vec<IpAddr>,
    /// Addresses outside the cluster range: external addresses and those of load balancers.
    pub external_addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether a client's flows all go to one backend (`sessionAffinity: ClientIP`).
    pub is_affine: bool,
    /// Whether its cluster addresses reach backends of the same node alone
    /// (`internalTrafficPolicy: Local`).
    pub is_internal_local: bool,
    /// Those of its external addresses that nodes leave to the load balancer (`ipMode: Proxy`).
    pub left_alone: BTreeSet<IpAddr>,
    /// Those of its external addresses that take some sources only (`loadBalancerSourceRanges`).
    pub restricted: BTreeSet<IpAddr>,
    /// The sources that those take.
    pub sources: Vec<IpNet>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where a Service has one port without a name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port on every node's addresses.
    pub node_port: Option<u16>,
}

/// A part of the backends of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The Service, from the label `kubernetes.io/service-name`; `None` for a slice of none.
    pub service: Option<ServiceRef>,
    /// The addresses of endpoints that are ready or still serve.
    pub addresses: Vec<IpAddr>,
    /// Those of the addresses that still serve and end soon: for new flows only where no other is
    /// left.
    pub ending: BTreeSet<IpAddr>,
    /// The ports that those addresses serve on.
    pub ports: Vec<BackendPort>,
}

/// One port of the backends in an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPort {
    /// The name of the Service port that it serves.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the backend; `None` means every port.
    pub port: Option<u16>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Every address in its status.
    pub addresses: Vec<IpAddr>,
}

/// A CiliumCIDRGroup: prefixes under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrGroup {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its prefixes.
    pub nets: Vec<IpNet>,
}
