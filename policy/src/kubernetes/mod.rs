//! Kubernetes' own kinds: the objects of the cluster, trimmed, and NetworkPolicy in normal form.

mod network_policy;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

pub use network_policy::network_policy;
pub(crate) use network_policy::own_pods;

use crate::field::{self, WrittenRequirement};
use crate::problem::{FieldError, Problem};
use crate::resource::{
    BackendPort, EndpointSlice, NamedPorts, Namespace, Node, Pod, PodRef, Service, ServicePort,
};
use crate::rule::{Protocol, ServiceRef};
use crate::selector::{Labels, Selector};

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Trims a Namespace.
pub fn namespace(written: &core::Namespace) -> Result<Namespace, FieldError> {
    Ok(Namespace::new(name_of(&written.metadata)?, labels_of(&written.metadata)))
}

/// Trims a Pod.
pub fn pod(written: &core::Pod) -> Result<Pod, FieldError> {
    let metadata = &written.metadata;
    let reference = PodRef { namespace: namespace_of(metadata)?, name: name_of(metadata)? };
    let default_spec = core::PodSpec::default();
    let spec = written.spec.as_ref().unwrap_or(&default_spec);
    let default_status = core::PodStatus::default();
    let status = written.status.as_ref().unwrap_or(&default_status);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    Ok(Pod {
        reference,
        uid: metadata.uid.as_deref().map(Arc::from),
        labels: Arc::new(labels_of(metadata)),
        annotations: shared(metadata.annotations.as_ref()),
        service_account: account.unwrap_or("default").into(),
        node_name: spec.node_name.as_deref().map(Arc::from),
        is_host_network: spec.host_network == Some(true),
        is_finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        addresses: pod_addresses(status)?,
        named_ports: Arc::new(named_ports(spec)),
    })
}

/// Trims a Service.
pub fn service(written: &core::Service) -> Result<Service, FieldError> {
    let metadata = &written.metadata;
    let reference = ServiceRef { namespace: namespace_of(metadata)?, name: name_of(metadata)? };
    let default_spec = core::ServiceSpec::default();
    let spec = written.spec.as_ref().unwrap_or(&default_spec);
    let cluster_ips: Vec<(String, &String)> = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(all), _) if !all.is_empty() => each("spec.clusterIPs", all.iter()).collect(),
        (_, one) => one.iter().map(|text| ("spec.clusterIP".to_owned(), text)).collect(),
    };
    let cluster_ips =
        cluster_ips.into_iter().filter(|(_, text)| !text.is_empty() && *text != "None");
    let balancer = written.status.iter().flat_map(|status| &status.load_balancer);
    let ingress: Vec<(String, &core::LoadBalancerIngress)> = balancer
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .enumerate()
        .map(|(index, one)| (format!("status.loadBalancer.ingress[{index}].ip"), one))
        .collect();
    let ips = |is_meant: fn(&core::LoadBalancerIngress) -> bool| {
        let meant = ingress.iter().filter(|(_, one)| is_meant(one));
        addresses(meant.filter_map(|(path, one)| Some((path.clone(), one.ip.as_ref()?))))
    };
    let mut external = ips(|_| true)?;
    let left_alone = ips(|one| one.ip_mode.as_deref() == Some("Proxy"))?;
    let ranges = || spec.load_balancer_source_ranges.iter().flatten();
    let is_restricted = ranges().next().is_some();
    let restricted =
        if is_restricted { external.iter().copied().collect() } else { BTreeSet::new() };
    external.extend(addresses(each("spec.externalIPs", spec.external_ips.iter().flatten()))?);
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let path = format!("spec.ports[{index}]");
        ports.push(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(&format!("{path}.protocol"), port.protocol.as_deref())?,
            port: port_number(format!("{path}.port"), port.port)?,
            node_port: port
                .node_port
                .filter(|number| *number != 0)
                .map(|number| port_number(format!("{path}.nodePort"), number))
                .transpose()?,
        });
    }
    Ok(Service {
        reference,
        labels: labels_of(metadata),
        is_affine: spec.session_affinity.as_deref() == Some("ClientIP"),
        is_internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        left_alone: left_alone.into_iter().collect(),
        restricted,
        // One that cannot be read lets nobody in.
        sources: ranges().filter_map(|range| range.trim().parse().ok()).collect(),
        cluster_addresses: addresses(cluster_ips)?,
        external_addresses: external,
        ports,
    })
}

/// Trims an EndpointSlice; endpoints that neither are ready nor serve to their end are left out.
pub fn endpoint_slice(written: &discovery::EndpointSlice) -> Result<EndpointSlice, FieldError> {
    let metadata = &written.metadata;
    let namespace = namespace_of(metadata)?;
    let service = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    // What is not written means ready, serving, and not about to end (discovery.k8s.io/v1).
    let is_ready = |endpoint: &discovery::Endpoint| {
        endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
    };
    let is_ending = |endpoint: &discovery::Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_some_and(|c| c.serving != Some(false) && c.terminating == Some(true))
    };
    let usable = written.endpoints.iter().enumerate();
    let usable = usable.filter(|(_, endpoint)| is_ready(endpoint) || is_ending(endpoint));
    let usable = usable.flat_map(|(index, endpoint)| {
        each(format!("endpoints[{index}].addresses"), endpoint.addresses.iter())
    });
    let ending = written.endpoints.iter().filter(|endpoint| !is_ready(endpoint));
    let ending = ending.flat_map(|endpoint| &endpoint.addresses);
    // A usable one that cannot be read is told of below; others are nobody's business.
    let ending: BTreeSet<IpAddr> = ending.filter_map(|text| text.parse().ok()).collect();
    let is_fqdn = written.address_type == "FQDN";
    let mut ports = Vec::new();
    for (index, port) in written.ports.iter().flatten().enumerate() {
        let path = format!("ports[{index}]");
        ports.push(BackendPort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(&format!("{path}.protocol"), port.protocol.as_deref())?,
            port: port
                .port
                .map(|number| port_number(format!("{path}.port"), number))
                .transpose()?,
        });
    }
    Ok(EndpointSlice {
        name: name_of(metadata)?,
        service: service.map(|name| ServiceRef {
            namespace: Arc::clone(&namespace),
            name: name.as_str().into(),
        }),
        namespace,
        addresses: if is_fqdn { Vec::new() } else { addresses(usable)? },
        ending,
        ports,
    })
}

/// Trims a Node.
pub fn node(written: &core::Node) -> Result<Node, FieldError> {
    let status = written.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let numeric = status
        .enumerate()
        .filter(|(_, address)| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
        .map(|(index, one)| (format!("status.addresses[{index}].address"), &one.address));
    Ok(Node {
        name: name_of(&written.metadata)?,
        labels: labels_of(&written.metadata),
        addresses: addresses(numeric)?,
    })
}

/// Reads a label selector of Kubernetes' own type.
pub(crate) fn selector(path: &str, written: &LabelSelector) -> Result<Selector, FieldError> {
    let none = std::collections::BTreeMap::new();
    let expressions = written.match_expressions.iter().flatten();
    field::selector(
        path,
        written.match_labels.as_ref().unwrap_or(&none),
        expressions.map(|requirement| WrittenRequirement {
            key: &requirement.key,
            operator: &requirement.operator,
            values: requirement.values.as_deref().unwrap_or_default(),
        }),
    )
}

/// Reads a protocol; TCP where none is written (NP-15).
pub(crate) fn protocol(path: &str, written: Option<&str>) -> Result<Protocol, FieldError> {
    match written {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => {
            let problem =
                Problem::NotOneOf { value: other.to_owned(), expected: "TCP, UDP or SCTP".into() };
            Err(FieldError::new(path, problem))
        }
    }
}

/// The object's name.
pub(crate) fn name_of(metadata: &ObjectMeta) -> Result<Arc<str>, FieldError> {
    let path = "metadata.name".to_owned();
    match metadata.name.as_deref() {
        Some(name) if !name.is_empty() => field::object_name(path, name).map(Arc::from),
        Some(_) | None => Err(FieldError::new(path, Problem::Missing)),
    }
}

/// The object's namespace; `default` where none is written, as kubectl has it.
pub(crate) fn namespace_of(metadata: &ObjectMeta) -> Result<Arc<str>, FieldError> {
    let written = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    field::object_name("metadata.namespace".to_owned(), written.unwrap_or("default")).map(Arc::from)
}

/// The object's labels.
pub(crate) fn labels_of(metadata: &ObjectMeta) -> Labels {
    shared(metadata.labels.as_ref())
}

fn shared(map: Option<&std::collections::BTreeMap<String, String>>) -> Labels {
    let pairs = map.into_iter().flatten();
    pairs.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

fn pod_addresses(status: &core::PodStatus) -> Result<Vec<IpAddr>, FieldError> {
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut found = addresses(each("status.podIPs", all))?;
    let one = status.pod_ip.iter().map(|text| ("status.podIP".to_owned(), text));
    for address in addresses(one)? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The entries of a list with the path of each.
fn each<'a>(
    list: impl Display,
    texts: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = (String, &'a String)> {
    texts.enumerate().map(move |(index, text)| (format!("{list}[{index}]"), text))
}

/// Addresses by the paths that they are written at, each once.
fn addresses<'a>(
    written: impl Iterator<Item = (String, &'a String)>,
) -> Result<Vec<IpAddr>, FieldError> {
    let mut found = Vec::new();
    for (path, text) in written {
        let address = text
            .parse()
            .map_err(|_| FieldError::new(path, Problem::NotAnAddress { text: text.clone() }))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

fn named_ports(spec: &core::PodSpec) -> NamedPorts {
    // Sidecars are init containers that never end; a plain init container serves nobody.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut named = NamedPorts::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()) {
        let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.container_port)) else {
            continue;
        };
        if let Ok(protocol) = protocol("", port.protocol.as_deref()) {
            named.entry((name.as_str().into(), protocol)).or_insert(number);
        }
    }
    named
}

fn port_number(path: String, port: i32) -> Result<u16, FieldError> {
    u16::try_from(port)
        .map_err(|_| FieldError::new(path, Problem::NotAPort { port: i64::from(port) }))
}
