//! Rules to peers × ports: selectors, names of ports, Services and the like, resolved against the
//! cluster. What comes out is the same for every identity that the rule's policy selects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{CidrPeer, CidrReach, ClausePeers, ClausePorts};
use crate::dns::ClusterNames;
use crate::identity::{Identity, IdentitySet};
use crate::inventory::Inventory;
use crate::resource::{Service, ServicePort};
use crate::rule::{
    CidrGroupsPeer, Direction, Entity, Origin, Peer, Peers, Policy, PortMatch, PortRange, PortSet,
    Ports, Protocol, Rule, Workloads,
};

/// Says whom selectors select.
pub(super) trait Members {
    /// The identities that `workloads` means.
    fn of(&self, workloads: &Workloads) -> Arc<IdentitySet>;

    /// Every identity that pods have.
    fn all(&self) -> Arc<IdentitySet>;
}

/// The rules of one policy, resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// By the rule's position.
    pub(super) rules: Vec<ResolvedRule>,
}

/// One rule, resolved. Several parts, where named ports have different numbers or a Service's
/// backends serve on other ports than it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvedRule {
    pub(super) origins: Arc<[Origin]>,
    pub(super) parts: Vec<Part>,
}

/// Peers × ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) peers: ClausePeers,
    pub(super) ports: ClausePorts,
    /// Ports besides `ports`, by the names that the endpoint itself gives them.
    pub(super) own_names: Vec<(Protocol, Arc<str>)>,
}

/// What rules are resolved against.
#[derive(Clone, Copy)]
pub(super) struct Resolver<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) names: &'a ClusterNames,
    pub(super) members: &'a dyn Members,
    /// Addresses of pods and nodes outside all of the cluster's ranges.
    pub(super) outside: &'a BTreeSet<IpAddr>,
}

impl Resolver<'_> {
    pub(super) fn policy(&self, policy: &Policy) -> Resolved {
        let rules = policy.rules.iter().map(|rule| {
            let label = Some(Arc::clone(&rule.label));
            let origin = Origin { policy: policy.reference.clone(), rule: label };
            ResolvedRule { origins: Arc::new([origin]), parts: self.rule(rule) }
        });
        Resolved { rules: rules.collect() }
    }

    fn rule(&self, rule: &Rule) -> Vec<Part> {
        let mut parts = Vec::new();
        let peers = self.peers(&rule.peers);
        // Whom a selector selects changes with pods; which bits a table has should not.
        if selects(&rule.peers) || !is_nothing(&peers) {
            parts.extend(numbered(rule, &peers));
            if rule.direction == Direction::Egress {
                for (protocol, name) in named(&rule.ports) {
                    for (number, peers) in self.holders_of(protocol, name, &peers) {
                        parts.push(mk_part(peers, single(protocol, number)));
                    }
                }
            }
        }
        if let Peers::Of(peers) = &rule.peers {
            for service in peers.iter().flat_map(|peer| self.services(peer)) {
                let resolved = self.service(service, &rule.ports);
                parts.extend(resolved.into_iter().map(|(peers, ports)| mk_part(peers, ports)));
            }
        }
        parts
    }

    fn peers(&self, peers: &Peers) -> ClausePeers {
        let mut resolved = ClausePeers::default();
        let Peers::Of(peers) = peers else {
            return ClausePeers { any: true, ..resolved };
        };
        let mut identities = Union::default();
        let mut cidrs = Vec::new();
        for peer in peers {
            match peer {
                Peer::Workloads(workloads) => identities.add(self.members.of(workloads)),
                Peer::Cidr(cidr) => cidrs.extend(self.reach(cidr)),
                Peer::Fqdn(_) => resolved.names = true,
                Peer::Entity(entity) => self.entity(*entity, &mut identities, &mut cidrs),
                Peer::Nodes(selector) => {
                    let meant = self.inventory.nodes().filter(|n| selector.matches(&n.labels));
                    cidrs.extend(meant.flat_map(|n| &n.addresses).map(|a| host(*a)));
                }
                Peer::CidrGroups(groups) => cidrs.extend(self.groups(groups)),
                // Their ports need translation: see `service`.
                Peer::Service(_) | Peer::Services(_) => {}
            }
        }
        resolved.identities = identities.into_set();
        resolved.cidrs = Arc::new(cidrs);
        resolved
    }

    fn entity(&self, entity: Entity, identities: &mut Union, cidrs: &mut Vec<CidrPeer>) {
        match entity {
            Entity::World => identities.one(Identity::WORLD),
            Entity::WorldIpv4 => cidrs.extend(self.world(Ipv4Net::default().into())),
            Entity::WorldIpv6 => cidrs.extend(self.world(Ipv6Net::default().into())),
            Entity::Cluster => {
                identities.add(self.members.all());
                for reserved in [
                    Identity::HOST,
                    Identity::REMOTE_NODE,
                    Identity::KUBE_APISERVER,
                    Identity::UNMANAGED,
                ] {
                    identities.one(reserved);
                }
            }
            Entity::Host => identities.one(Identity::HOST),
            Entity::RemoteNode => identities.one(Identity::REMOTE_NODE),
            // By address: the API server's can be those of a node.
            Entity::KubeApiserver => {
                cidrs.extend(self.inventory.apiserver_addresses().into_iter().map(host));
            }
            Entity::Unmanaged => identities.one(Identity::UNMANAGED),
        }
    }

    /// A prefix as it is; where it does not mean pods and nodes (CL-9), with those cut out of it.
    /// `None` where nothing is left.
    fn reach(&self, cidr: &CidrPeer) -> Option<CidrPeer> {
        let mut resolved = cidr.clone();
        if cidr.reach == CidrReach::World {
            let ranges = &self.names.ranges;
            if ranges.iter().any(|range| range.contains(&cidr.net)) {
                return None;
            }
            resolved.reach = CidrReach::All;
            let inside = self.outside.iter().filter(|address| cidr.net.contains(*address));
            resolved.except.extend(inside.map(|address| IpNet::from(*address)));
            resolved.except.extend(ranges.iter().filter(|range| cidr.net.contains(*range)));
        }
        Some(resolved)
    }

    /// The prefixes of the groups that there are.
    fn groups(&self, peer: &CidrGroupsPeer) -> Vec<CidrPeer> {
        let groups = self.inventory.cidr_groups();
        let nets = groups.filter(|group| peer.groups.matches(group)).flat_map(|group| &group.nets);
        let is_left = |net: &&IpNet| !peer.except.iter().any(|except| except.contains(*net));
        let narrowed = nets.filter(is_left).map(|net| CidrPeer {
            net: *net,
            except: peer.except.iter().filter(|except| net.contains(*except)).copied().collect(),
            reach: CidrReach::World,
        });
        narrowed.filter_map(|cidr| self.reach(&cidr)).collect()
    }

    /// One address family of the world.
    fn world(&self, net: IpNet) -> Option<CidrPeer> {
        let whole = CidrPeer { net, except: Vec::new(), reach: CidrReach::World };
        let mut resolved = self.reach(&whole)?;
        let apiserver = self.inventory.apiserver_addresses();
        let inside = apiserver.into_iter().filter(|address| net.contains(address));
        resolved.except.extend(inside.map(IpNet::from));
        Some(resolved)
    }

    /// Of `peers`, the pods that call a port of theirs `name`, by its number (NP-17).
    fn holders_of(
        &self,
        protocol: Protocol,
        name: &Arc<str>,
        peers: &ClausePeers,
    ) -> BTreeMap<u16, ClausePeers> {
        let key = (Arc::clone(name), protocol);
        let all = self.members.all();
        let meant = if peers.any { &all } else { &peers.identities };
        let mut identities: BTreeMap<u16, IdentitySet> = BTreeMap::new();
        for identity in meant.iter() {
            let labels = self.inventory.identities().labels(identity);
            if let Some(number) = labels.and_then(|labels| labels.named_ports.get(&key)) {
                identities.entry(*number).or_default().insert(identity);
            }
        }
        let mut holders: BTreeMap<u16, ClausePeers> = identities
            .into_iter()
            .map(|(number, found)| {
                (number, ClausePeers { identities: Arc::new(found), ..ClausePeers::default() })
            })
            .collect();
        if peers.cidrs.is_empty() {
            return holders;
        }
        for (pod, identity) in self.inventory.pods() {
            let Some(number) = pod.named_ports.get(&key).filter(|_| identity.is_some()) else {
                continue;
            };
            let meant =
                pod.addresses.iter().filter(|a| peers.cidrs.iter().any(|c| c.contains(**a)));
            for address in meant {
                let holders = holders.entry(*number).or_default();
                Arc::make_mut(&mut holders.cidrs).push(host(*address));
            }
        }
        holders
    }

    /// The Services that a peer means.
    fn services(&self, peer: &Peer) -> Vec<&Service> {
        match peer {
            Peer::Service(reference) => self.inventory.service(reference).into_iter().collect(),
            Peer::Services(meant) => {
                self.inventory.services().filter(|service| meant.matches(service)).collect()
            }
            Peer::Workloads(_)
            | Peer::Cidr(_)
            | Peer::CidrGroups(_)
            | Peer::Fqdn(_)
            | Peer::Entity(_)
            | Peer::Nodes(_) => Vec::new(),
        }
    }

    /// A Service by its own addresses on those of its ports that the rule means, and by its backends
    /// on the ports that those translate to. An external address, which whoever may edit the Service
    /// writes, is translated, and so is its backends; but for those that a balancer wants for itself.
    fn service(&self, known: &Service, ports: &Ports) -> Vec<(ClausePeers, ClausePorts)> {
        let mut parts = Vec::new();
        let own = known.cluster_addresses.iter().chain(&known.left_alone);
        parts.push((hosts(own.copied()), own_ports(known, ports)));
        for slice in self.inventory.slices_of(&known.reference) {
            let backends = hosts(slice.addresses.iter().copied());
            let Ports::Of(matches) = ports else {
                parts.push((backends, ClausePorts::Any));
                continue;
            };
            let is_meant = |protocol, number, name: &str| {
                matches.iter().any(|meant| {
                    meant.protocol == protocol
                        && match &meant.ports {
                            PortSet::Range(range) => range.contains(number),
                            PortSet::Named(meant) => **meant == *name,
                        }
                })
            };
            let meant = known.ports.iter().filter(|p| is_meant(p.protocol, p.port, &p.name));
            let serving = meant.flat_map(|port| {
                let same = |backend: &&crate::resource::BackendPort| {
                    backend.name == port.name && backend.protocol == port.protocol
                };
                slice.ports.iter().filter(same).map(|backend| {
                    (port.protocol, backend.port.map_or(PortRange::ALL, PortRange::single))
                })
            });
            parts.push((backends, ClausePorts::Of(serving.collect())));
        }
        let is_empty = |ports: &ClausePorts| *ports == ClausePorts::Of(Vec::new());
        parts.retain(|(peers, ports)| !is_nothing(peers) && !is_empty(ports));
        parts
    }
}

/// A union of sets that stays shared where it is of one.
#[derive(Default)]
struct Union(Option<Arc<IdentitySet>>);

impl Union {
    fn add(&mut self, set: Arc<IdentitySet>) {
        match &mut self.0 {
            None => self.0 = Some(set),
            Some(known) => Arc::make_mut(known).unite(&set),
        }
    }

    fn one(&mut self, identity: Identity) {
        Arc::make_mut(self.0.get_or_insert_default()).insert(identity);
    }

    fn into_set(self) -> Arc<IdentitySet> {
        self.0.unwrap_or_default()
    }
}

/// The part of a rule whose ports have numbers, or names that the endpoint itself gives them.
/// `None` where there is none.
fn numbered(rule: &Rule, peers: &ClausePeers) -> Option<Part> {
    let mut own_names = Vec::new();
    let ports = match &rule.ports {
        Ports::Any => ClausePorts::Any,
        Ports::Of(matches) => {
            let mut numbers = Vec::new();
            for PortMatch { protocol, ports } in matches {
                match (ports, rule.direction) {
                    (PortSet::Range(range), _) => numbers.push((*protocol, *range)),
                    (PortSet::Named(name), Direction::Ingress) => {
                        own_names.push((*protocol, Arc::clone(name)));
                    }
                    (PortSet::Named(_), Direction::Egress) => {}
                }
            }
            if numbers.is_empty() && own_names.is_empty() {
                // Names resolve whatever the ports (EP-2), and open nothing on those of pods alone.
                let names = ClausePeers { names: true, ..ClausePeers::default() };
                return peers.names.then(|| mk_part(names, ClausePorts::Of(Vec::new())));
            }
            ClausePorts::Of(numbers)
        }
    };
    Some(Part { peers: peers.clone(), ports, own_names })
}

/// The ports of a Service that a rule means, by number or by the Service's name.
fn own_ports(service: &Service, ports: &Ports) -> ClausePorts {
    let is_meant = |port: &&ServicePort| match ports {
        Ports::Any => true,
        Ports::Of(matches) => matches.iter().any(|meant| {
            meant.protocol == port.protocol
                && match &meant.ports {
                    PortSet::Range(range) => range.contains(port.port),
                    PortSet::Named(name) => port.name == *name,
                }
        }),
    };
    let own = service.ports.iter().filter(is_meant);
    ClausePorts::Of(own.map(|port| (port.protocol, PortRange::single(port.port))).collect())
}

fn mk_part(peers: ClausePeers, ports: ClausePorts) -> Part {
    Part { peers, ports, own_names: Vec::new() }
}

fn single(protocol: Protocol, number: u16) -> ClausePorts {
    ClausePorts::Of(vec![(protocol, PortRange::single(number))])
}

fn selects(peers: &Peers) -> bool {
    match peers {
        Peers::Any => false,
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Workloads(_))),
    }
}

fn is_nothing(peers: &ClausePeers) -> bool {
    !peers.any && !peers.names && peers.identities.is_empty() && peers.cidrs.is_empty()
}

fn named(ports: &Ports) -> impl Iterator<Item = (Protocol, &Arc<str>)> {
    let matches = match ports {
        Ports::Any => &[][..],
        Ports::Of(matches) => matches,
    };
    matches.iter().filter_map(|port| match &port.ports {
        PortSet::Named(name) => Some((port.protocol, name)),
        PortSet::Range(_) => None,
    })
}

fn host(address: IpAddr) -> CidrPeer {
    CidrPeer { net: IpNet::from(address), except: Vec::new(), reach: CidrReach::All }
}

fn hosts(addresses: impl Iterator<Item = IpAddr>) -> ClausePeers {
    ClausePeers { cidrs: Arc::new(addresses.map(host).collect()), ..ClausePeers::default() }
}
