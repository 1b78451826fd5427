//! From Services and their backends to what the kernel translates.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use namegate_egress_bpf::abi::{Backend, ServiceKey};
use namegate_egress_bpf::datapath::ServiceEntry;
use namegate_egress_bpf::packet::protocol;
use namegate_policy::resource::{Service, ServicePort};
use namegate_policy::rule::{Protocol, ServiceRef};
use namegate_policy::time::Timestamp;

use super::{Effects, State};

/// How long nobody reaches what a Service had: kube-proxy writes all its rules anew each 30 s at the latest.
const GONE: Duration = Duration::from_secs(60);

type Backends = BTreeSet<(IpAddr, u16)>;

/// What a Service's port stands for.
struct Served {
    /// Every backend that takes new flows.
    all: Backends,
    /// Those on this node.
    local: Backends,
}

/// How a Service is reached, in the order of who has what several claim. Whoever may edit Services in
/// one namespace writes external addresses, and so takes no other Service's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Cluster,
    NodePort,
    External,
}

/// A Service that has an address and a port.
struct Holder<'a> {
    reach: Reach,
    service: &'a ServiceRef,
    entry: ServiceEntry,
}

impl State {
    /// Finds the services that the kernel translates, and compares them with those in force.
    pub(super) fn update_services(
        &mut self,
        effects: &mut Effects,
        troubles: &mut BTreeSet<String>,
    ) {
        let holders = self.holders(troubles);
        let mut owners: BTreeMap<ServiceKey, ServiceRef> =
            holders.iter().map(|(key, holder)| (*key, holder.service.clone())).collect();
        let mut services: BTreeMap<ServiceKey, ServiceEntry> =
            holders.into_iter().map(|(key, holder)| (key, holder.entry)).collect();
        self.keep_gone(&mut services, &mut owners);
        if *self.services != services {
            // Flows to what was no service yet go on untranslated, to whom nobody judged.
            effects.is_anyone_elsewhere |=
                services.keys().any(|key| !self.services.contains_key(key));
            self.services = Arc::new(services);
            effects.services = Some(Arc::clone(&self.services));
        }
        if *self.service_owners != owners {
            self.service_owners = Arc::new(owners);
            effects.service_owners = Some(Arc::clone(&self.service_owners));
        }
    }

    /// Ends the keeping of services that went a while ago.
    pub(super) fn end_services(&mut self, effects: &mut Effects) {
        if self.next_service_end().is_some_and(|end| end <= self.now) {
            // What is in dispute was told when it came to be.
            self.update_services(effects, &mut BTreeSet::new());
        }
    }

    /// When the next one that went is forgotten.
    pub(super) fn next_service_end(&self) -> Option<Timestamp> {
        self.gone_services.values().min().copied()
    }

    /// Keeps what is no service any more as one without backends: the node may translate it for a while
    /// yet, to backends that nobody judges.
    fn keep_gone(
        &mut self,
        services: &mut BTreeMap<ServiceKey, ServiceEntry>,
        owners: &mut BTreeMap<ServiceKey, ServiceRef>,
    ) {
        let until = self.now.saturating_add(GONE);
        for (key, owner) in &*self.service_owners {
            if !services.contains_key(key) {
                self.gone_services.entry(*key).or_insert(until);
                owners.insert(*key, owner.clone());
            }
        }
        let now = self.now;
        self.gone_services.retain(|key, end| {
            let is_back = services.contains_key(key);
            if *end <= now && !is_back {
                owners.remove(key);
            }
            *end > now && !is_back
        });
        let gone = self.gone_services.keys().map(|key| (*key, ServiceEntry::default()));
        services.extend(gone);
    }

    /// Who has which address and port.
    fn holders(&self, troubles: &mut BTreeSet<String>) -> BTreeMap<ServiceKey, Holder<'_>> {
        let own = self.local_addresses();
        let (mut holders, mut external) = (BTreeMap::new(), Vec::new());
        for service in self.tables.inventory().services() {
            for port in &service.ports {
                let Some(protocol) = number(port.protocol) else { continue };
                let served = self.served(service, port, &own);
                for (reach, address, port, backends) in self.reaches(service, port, &served) {
                    let key = ServiceKey { address: address.into(), port, protocol, padding: 0 };
                    if key == key.at_node() && reach != Reach::NodePort {
                        // That is nobody's address, and stands for all of the node's.
                        continue;
                    }
                    let entry = mk_entry(service, address, backends);
                    let claimant = Holder { reach, service: &service.reference, entry };
                    if reach == Reach::External {
                        external.push((key, claimant));
                    } else {
                        claim(&mut holders, (key, key), claimant, troubles);
                    }
                }
            }
        }
        for (key, claimant) in external {
            let address = IpAddr::from(key.address);
            let is_node_port =
                self.town.host_addresses.contains(&address) && holders.contains_key(&key.at_node());
            let held = if is_node_port { key.at_node() } else { key };
            claim(&mut holders, (key, held), claimant, troubles);
        }
        holders
    }

    /// Where a Service's port is reached, and which backends have it there. `externalTrafficPolicy` is for
    /// who comes from outside: pods of the node reach every backend at external addresses and node ports
    /// (core/v1 ServiceSpec), as by way of the balancer.
    fn reaches<'a>(
        &self,
        service: &Service,
        port: &ServicePort,
        served: &'a Served,
    ) -> Vec<(Reach, IpAddr, u16, &'a Backends)> {
        static NONE: Backends = Backends::new();
        let inner = if service.is_internal_local { &served.local } else { &served.all };
        let cluster = service.cluster_addresses.iter();
        let mut found: Vec<_> =
            cluster.map(|address| (Reach::Cluster, *address, port.port, inner)).collect();
        for address in &service.external_addresses {
            if !service.left_alone.contains(address) {
                let is_closed =
                    service.restricted.contains(address) && !self.sends_all(service, address);
                let backends = if is_closed { &NONE } else { &served.all };
                found.push((Reach::External, *address, port.port, backends));
            }
        }
        if let Some(node_port) = port.node_port {
            // At all addresses of the node in the families of the Service.
            found.extend(service.cluster_addresses.iter().map(|address| {
                let any: IpAddr = match address {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                (Reach::NodePort, any, node_port, &served.all)
            }));
        }
        found
    }

    /// Whether every pod of the node is a source that a restricted address takes: the kernel translates
    /// for all of them alike.
    fn sends_all(&self, service: &Service, address: &IpAddr) -> bool {
        let pods = self.endpoints.values().flat_map(|endpoint| &endpoint.addresses);
        pods.filter(|pod| pod.is_ipv4() == address.is_ipv4())
            .all(|pod| service.sources.iter().any(|range| range.contains(pod)))
    }

    fn served(&self, service: &Service, port: &ServicePort, own: &BTreeSet<IpAddr>) -> Served {
        let (mut ready, mut ending) = (Backends::new(), Backends::new());
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
        let here = |group: &Backends| -> Backends {
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

/// Gives a Service the key that it claims, unless another one has what is `held` already and the better
/// claim.
fn claim<'a>(
    holders: &mut BTreeMap<ServiceKey, Holder<'a>>,
    (key, held): (ServiceKey, ServiceKey),
    claimant: Holder<'a>,
    troubles: &mut BTreeSet<String>,
) {
    let mut known = match holders.entry(held) {
        Entry::Vacant(place) => {
            place.insert(claimant);
            return;
        }
        Entry::Occupied(known) => known,
    };
    let refused =
        if claimant.reach < known.get().reach { known.insert(claimant) } else { claimant };
    let (holder, address) = (known.get().service, IpAddr::from(key.address));
    if refused.service != holder {
        troubles.insert(format!(
            "Service {}: {address} port {} belongs to Service {holder} already; check spec.externalIPs",
            refused.service, key.port
        ));
    }
}

/// What the kernel is told of a Service at one of its addresses.
fn mk_entry(service: &Service, at: IpAddr, backends: &Backends) -> ServiceEntry {
    let backends = backends.iter().filter(|(backend, _)| backend.is_ipv4() == at.is_ipv4());
    let backends = backends.map(|(backend, port)| Backend {
        address: (*backend).into(),
        port: *port,
        padding: [0; 2],
    });
    ServiceEntry { is_affine: service.is_affine, backends: backends.collect() }
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
