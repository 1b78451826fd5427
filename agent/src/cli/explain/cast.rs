//! Who is in the manifests, and what the words on the command line mean.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr as _;

use namegate_policy::name::DnsName;
use namegate_policy::object::Object;
use namegate_policy::problem::distance;
use namegate_policy::resource::{EndpointSlice, Pod, Service};
use namegate_policy::rule::Protocol;

/// The objects by the names that people use.
#[derive(Debug)]
pub(super) struct Cast<'a> {
    pods: BTreeMap<String, &'a Pod>,
    /// Pods that are no node traffic; where several claim an address, the first by name has it.
    holders: BTreeMap<IpAddr, &'a Pod>,
    services: BTreeMap<String, &'a Service>,
    service_addresses: BTreeMap<IpAddr, &'a Service>,
    slices: Vec<&'a EndpointSlice>,
    nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The addresses of the node of pods that name none.
    here: BTreeSet<IpAddr>,
}

/// One end of a flow, as it was written.
#[derive(Clone, Debug)]
pub(super) enum End<'a> {
    Pod(&'a Pod),
    Address(IpAddr),
    Service(&'a Service),
    Name(DnsName),
}

/// A port as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Number(u16),
    Name(String),
}

/// Where a flow ends, behind every name and service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// Zero for an echo.
    pub(super) port: u16,
}

/// Why a question makes no sense here, for whoever asked it.
pub(super) type Complaint = String;

impl<'a> Cast<'a> {
    pub(super) fn new(objects: &'a [Object], here: &BTreeSet<IpAddr>) -> Self {
        let mut cast = Self {
            pods: BTreeMap::new(),
            holders: BTreeMap::new(),
            services: BTreeMap::new(),
            service_addresses: BTreeMap::new(),
            slices: Vec::new(),
            nodes: BTreeMap::new(),
            here: here.clone(),
        };
        for object in objects {
            match object {
                Object::Pod(pod) => {
                    cast.pods.insert(pod.reference.to_string(), pod);
                }
                Object::Service(service) => {
                    cast.services.insert(service.reference.to_string(), service);
                    let own = service.cluster_addresses.iter().map(|address| (*address, service));
                    cast.service_addresses.extend(own);
                }
                Object::EndpointSlice(slice) => cast.slices.push(slice),
                Object::Node(node) => {
                    let addresses = node.addresses.iter().copied().collect();
                    cast.nodes.insert(node.name.to_string(), addresses);
                }
                Object::Namespace(_) | Object::CidrGroup(_) | Object::Policy(_) => {}
            }
        }
        for pod in cast.pods.values().filter(|pod| !pod.is_host_network && !pod.is_finished) {
            for address in &pod.addresses {
                cast.holders.entry(*address).or_insert(pod);
            }
        }
        cast
    }

    /// The pod that has an address of its own.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&'a Pod> {
        self.holders.get(&address).copied()
    }

    /// The addresses of the node that a pod lives on.
    pub(super) fn node_of(&self, pod: &Pod) -> &BTreeSet<IpAddr> {
        pod.node_name.as_deref().and_then(|name| self.nodes.get(name)).unwrap_or(&self.here)
    }

    /// Reads NS/POD or an address.
    pub(super) fn source(&self, text: &str) -> Result<End<'a>, Complaint> {
        match self.end(text)? {
            End::Name(_) | End::Service(_) => Err(format!(
                "from {text}: a flow comes from a pod or an address; write NAMESPACE/POD, or the \
                 address"
            )),
            end @ (End::Pod(_) | End::Address(_)) => Ok(end),
        }
    }

    /// Reads NS/POD, an address, a name, or `service:NS/NAME`. The address of a Service is that
    /// Service.
    pub(super) fn end(&self, text: &str) -> Result<End<'a>, Complaint> {
        if let Ok(address) = IpAddr::from_str(text) {
            return Ok(match self.service_addresses.get(&address) {
                Some(service) => End::Service(service),
                None => End::Address(address),
            });
        }
        if let Some(name) = text.strip_prefix("service:") {
            let found = self.services.get(name).copied().map(End::Service);
            return found.ok_or_else(|| unknown("service", name, self.services.keys()));
        }
        if text.contains('/') {
            let Some(pod) = self.pods.get(text) else {
                return Err(unknown("pod", text, self.pods.keys()));
            };
            return if pod.is_finished {
                Err(format!("pod {text} has finished, and holds no address any more"))
            } else if pod.addresses.is_empty() {
                Err(format!("pod {text} has no address: add status.podIPs to its manifest"))
            } else {
                Ok(End::Pod(pod))
            };
        }
        match DnsName::parse(text) {
            Ok(name) if !text.contains('*') => Ok(End::Name(name)),
            Ok(_) => Err(format!("{text}: a pattern is no destination; write one name of it")),
            Err(error) => Err(format!(
                "{text} is no NAMESPACE/POD, address, service:NAMESPACE/NAME or DNS name ({error})"
            )),
        }
    }

    /// Where flows to a pod or an address end.
    pub(super) fn places(
        &self,
        end: &End<'_>,
        protocol: Protocol,
        port: Option<&Port>,
    ) -> Result<Vec<Place>, Complaint> {
        match end {
            End::Pod(pod) => {
                let port = number(port, |name| named_port(pod, protocol, name))?;
                Ok(pod.addresses.iter().map(|address| Place { address: *address, port }).collect())
            }
            End::Address(address) => {
                let named = |name: &str| match self.pod_at(*address) {
                    Some(pod) => named_port(pod, protocol, name),
                    None => Err(format!("port {name}: {address} is no pod that could name a port")),
                };
                Ok(vec![Place { address: *address, port: number(port, named)? }])
            }
            End::Service(service) => self.backends(service, protocol, port),
            End::Name(name) => {
                let refused =
                    |port: &str| Err(format!("port {port}: write a number to reach {name}"));
                number(port, refused).map(|_| Vec::new())
            }
        }
    }

    /// What a port of a Service leads to.
    fn backends(
        &self,
        service: &Service,
        protocol: Protocol,
        port: Option<&Port>,
    ) -> Result<Vec<Place>, Complaint> {
        let name = &service.reference;
        let Some(port) = port else {
            return Err(format!("service {name} answers on its ports alone: add --port"));
        };
        let is_meant = |one: &&namegate_policy::resource::ServicePort| {
            one.protocol == protocol
                && match port {
                    Port::Number(number) => one.port == *number,
                    Port::Name(name) => *one.name == **name,
                }
        };
        let Some(own) = service.ports.iter().find(is_meant) else {
            let ports: Vec<String> = service.ports.iter().map(shown).collect();
            return Err(format!("service {name} has no such port; it has {}", ports.join(", ")));
        };
        let mut places = BTreeSet::new();
        for slice in self.slices.iter().filter(|one| one.service.as_ref() == Some(name)) {
            let same = slice.ports.iter().filter(|one| one.name == own.name);
            for backend in same.filter(|one| one.protocol == protocol) {
                let port = backend.port.unwrap_or(own.port);
                places.extend(slice.addresses.iter().map(|address| (*address, port)));
            }
        }
        if places.is_empty() {
            return Err(format!(
                "service {name} has no backends here: add its EndpointSlices to the manifests, or \
                 ask about a pod behind it"
            ));
        }
        Ok(places.into_iter().map(|(address, port)| Place { address, port }).collect())
    }
}

fn shown(port: &namegate_policy::resource::ServicePort) -> String {
    let protocol = namegate_policy::explain::protocol(port.protocol);
    let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
    format!("{protocol} {}{name}", port.port)
}

fn named_port(pod: &Pod, protocol: Protocol, name: &str) -> Result<u16, Complaint> {
    let word = namegate_policy::explain::protocol(protocol);
    pod.named_ports
        .get(&(name.into(), protocol))
        .copied()
        .ok_or_else(|| format!("pod {} names no {word} port {name}", pod.reference))
}

/// The number of a port; zero where the flow has none.
fn number(
    port: Option<&Port>,
    named: impl FnOnce(&str) -> Result<u16, Complaint>,
) -> Result<u16, Complaint> {
    match port {
        None => Ok(0),
        Some(Port::Number(number)) => Ok(*number),
        Some(Port::Name(name)) => named(name),
    }
}

fn unknown<'k>(what: &str, text: &str, known: impl Iterator<Item = &'k String>) -> Complaint {
    let tolerance = (text.len() / 3).clamp(1, 6);
    let (_, bare) = text.rsplit_once('/').unwrap_or(("", text));
    let near = known
        .map(|name| {
            let same_name = name.rsplit_once('/').is_some_and(|(_, name)| name == bare);
            (if same_name { 0 } else { distance(text, name) }, name)
        })
        .filter(|(distance, _)| *distance <= tolerance)
        .min();
    match near {
        Some((_, name)) => format!("there is no {what} {text}; did you mean {name}?"),
        None => format!("there is no {what} {text} in the manifests"),
    }
}

/// Reads a port; a name is a letter at least (RFC 6335 section 5.1).
pub(super) fn port(text: &str) -> Result<Port, Complaint> {
    match text.parse::<u16>() {
        Ok(0) => Err("port 0 is no port; ports are 1 to 65535".to_owned()),
        Ok(number) => Ok(Port::Number(number)),
        Err(_) if text.bytes().any(|octet| octet.is_ascii_alphabetic()) => {
            Ok(Port::Name(text.to_owned()))
        }
        Err(_) => Err(format!("{text} is no port; ports are 1 to 65535, or a name")),
    }
}

/// Reads a protocol.
pub(super) fn protocol(text: &str) -> Result<Protocol, Complaint> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        "ICMP" | "ICMPV6" => Ok(Protocol::Icmp),
        _ => Err(format!("{text} is no protocol; write TCP, UDP, SCTP or ICMP")),
    }
}

/// Whether a port has to be, or must not be, given.
pub(super) fn check_port(protocol: Protocol, port: Option<&Port>) -> Result<(), Complaint> {
    match (protocol, port) {
        (Protocol::Icmp | Protocol::Icmpv6, Some(_)) => {
            Err("an echo (ICMP) has no port: leave it out".to_owned())
        }
        (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, None) => {
            Err("the port is missing: TCP, UDP and SCTP flows go to one".to_owned())
        }
        (Protocol::Icmp | Protocol::Icmpv6, None)
        | (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, Some(_)) => Ok(()),
    }
}
