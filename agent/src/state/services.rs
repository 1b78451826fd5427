//! From Services and their backends to what the kernel translates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{Backend, ServiceKey};
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_egress_bpf::packet::protocol;
use namegate_policy::resource::{Service, ServicePort};
use namegate_policy::rule::{Protocol, ServiceRef};

use super::{Effects, State};

/// What a Service's port stands for.
struct Served {
    /// Every backend that takes new flows.
    all: BTreeSet<(IpAddr, u16)>,
    /// Those on this node.
    local: BTreeSet<(IpAddr, u16)>,
}

impl State {
    /// Finds the services that the kernel translates, and compares them with those in force.
    pub(super) fn update_services(&mut self, effects: &mut Effects) {
        let own = self.local_addresses();
        let mut services = BTreeMap::new();
        let mut owners: BTreeMap<ServiceKey, ServiceRef> = BTreeMap::new();
        for service in self.tables.inventory().services() {
            for port in &service.ports {
                let Some(number) = number(port.protocol) else { continue };
                let served = self.served(service, port, &own);
                let entry = |address: &IpAddr, backends: &BTreeSet<(IpAddr, u16)>| ServiceEntry {
                    is_affine: service.is_affine,
                    backends: backends
                        .iter()
                        .filter(|(backend, _)| backend.is_ipv4() == address.is_ipv4())
                        .map(|(backend, port)| Backend {
                            address: (*backend).into(),
                            port: *port,
                            padding: [0; 2],
                        })
                        .collect(),
                };
                let mut serve = |address: &IpAddr, port, backends| {
                    let key = ServiceKey {
                        address: (*address).into(),
                        port,
                        protocol: number,
                        padding: 0,
                    };
                    services.entry(key).or_insert_with(|| {
                        owners.insert(key, service.reference.clone());
                        entry(address, backends)
                    });
                };
                let inner = if service.is_internal_local { &served.local } else { &served.all };
                for address in &service.cluster_addresses {
                    serve(address, port.port, inner);
                }
                let none = BTreeSet::new();
                for address in &service.external_addresses {
                    // Which sources are meant is the balancer's business: none of them comes in here.
                    let is_restricted = service.restricted.contains(address);
                    if !service.left_alone.contains(address) {
                        serve(address, port.port, if is_restricted { &none } else { &served.all });
                    }
                }
                if let Some(node_port) = port.node_port {
                    for address in self.town.host_addresses.iter().filter(|a| is_global(a)) {
                        serve(address, node_port, &served.all);
                    }
                }
            }
        }
        if *self.services != services {
            self.services = Arc::new(services);
            effects.services = Some(Arc::clone(&self.services));
        }
        if *self.service_owners != owners {
            self.service_owners = Arc::new(owners);
            effects.service_owners = Some(Arc::clone(&self.service_owners));
        }
    }

    fn served(&self, service: &Service, port: &ServicePort, own: &BTreeSet<IpAddr>) -> Served {
        let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
        for slice in self.tables.inventory().slices_of(&service.reference) {
            let same = slice
                .ports
                .iter()
                .filter(|backend| backend.name == port.name && backend.protocol == port.protocol);
            for backend in same {
                let number = backend.port.unwrap_or(port.port);
                for address in &slice.addresses {
                    let group =
                        if slice.ending.contains(address) { &mut ending } else { &mut ready };
                    group.insert((*address, number));
                }
            }
        }
        let here = |group: &BTreeSet<(IpAddr, u16)>| -> BTreeSet<(IpAddr, u16)> {
            group.iter().filter(|(address, _)| own.contains(address)).copied().collect()
        };
        // Those that end serve new flows where none is ready (KEP-1669).
        let local = if here(&ready).is_empty() { here(&ending) } else { here(&ready) };
        Served { all: if ready.is_empty() { ending } else { ready }, local }
    }

    /// The addresses of this node and of its pods.
    fn local_addresses(&self) -> BTreeSet<IpAddr> {
        let pods = self.endpoints.values().flat_map(|endpoint| &endpoint.addresses);
        pods.chain(&self.town.host_addresses).copied().collect()
    }
}

/// Whether a node port can be reached at the address from a pod.
fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// The number of a protocol that has ports.
const fn number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(protocol::TCP),
        Protocol::Udp => Some(protocol::UDP),
        Protocol::Sctp => Some(protocol::SCTP),
        Protocol::Icmp | Protocol::Icmpv6 => None,
    }
}
