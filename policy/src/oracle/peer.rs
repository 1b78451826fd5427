//! Whether a rule means a flow: who has an address, which pods a selector means, which ports.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Oracle, View};
use crate::object::Object;
use crate::resource::{
    CidrGroup, EndpointSlice, NAMESPACE_NAME_LABEL, Node, Pod, Service, ServicePort,
};
use crate::rule::{
    CidrGroups, CidrGroupsPeer, CidrReach, Direction, Entity, Namespaces, Peer, Peers, Policy,
    PortMatch, PortSet, Ports, Rule, ServiceRef, ServicesPeer, Workloads,
};
use crate::selector::{Condition, Labels, Selector};

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Party<'a> {
    /// A pod that is no node traffic.
    Pod(&'a Pod),
    /// The node that decides.
    Host,
    /// Another node.
    RemoteNode,
    /// The API server, where it is no node.
    KubeApiserver,
    /// Something in the ranges of pods and services that no object explains.
    Unmanaged,
    /// Anybody else.
    World,
}

impl<'a> Party<'a> {
    /// The pod.
    pub fn pod(self) -> Option<&'a Pod> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }
}

impl<'a> Oracle<'a> {
    /// Whether a rule of `policy` means the flow.
    pub fn is_meant(&self, view: &View<'_>, policy: &Policy, rule: &Rule) -> bool {
        match &rule.peers {
            Peers::Any => has_port(&rule.ports, view),
            Peers::Of(peers) => {
                peers.iter().any(|peer| self.is_meant_by(view, policy, peer, &rule.ports))
            }
        }
    }

    /// Whether one peer of a rule means the flow, on the rule's ports.
    fn is_meant_by(&self, view: &View<'_>, policy: &Policy, peer: &Peer, ports: &Ports) -> bool {
        match peer {
            // The rule's ports are the Service's, not the backends'.
            Peer::Service(meant) => {
                self.is_service(view, ports, |service| service.reference == *meant)
            }
            Peer::Services(meant) => {
                self.is_service(view, ports, |service| is_selected(meant, service))
            }
            Peer::Workloads(_)
            | Peer::Cidr(_)
            | Peer::CidrGroups(_)
            | Peer::Entity(_)
            | Peer::Nodes(_)
            | Peer::Fqdn(_) => self.is_peer(view, policy, peer) && has_port(ports, view),
        }
    }

    /// Whether a peer of `policy` means the other end, whatever the port.
    pub fn is_peer(&self, view: &View<'_>, policy: &Policy, peer: &Peer) -> bool {
        match peer {
            Peer::Workloads(workloads) => {
                view.party.pod().is_some_and(|pod| self.selects(workloads, pod))
            }
            Peer::Cidr(cidr) => {
                is_in(&cidr.net, view.remote)
                    && !cidr.except.iter().any(|net| is_in(net, view.remote))
                    && (cidr.reach == CidrReach::All || self.is_beyond_cluster(view))
            }
            Peer::Fqdn(fqdn) => self.is_open_by_name(view, policy, fqdn),
            Peer::Entity(entity) => self.is_entity(*entity, view),
            Peer::Nodes(selector) => self.nodes().any(|node| {
                has_labels(selector, &node.labels) && node.addresses.contains(&view.remote)
            }),
            Peer::CidrGroups(CidrGroupsPeer { groups, except }) => {
                let is_meant = |group: &CidrGroup| match groups {
                    CidrGroups::Named(name) => group.name == *name,
                    CidrGroups::Selected(selector) => has_labels(selector, &group.labels),
                };
                let holds = |nets: &[IpNet]| nets.iter().any(|net| is_in(net, view.remote));
                self.is_beyond_cluster(view)
                    && !holds(except)
                    && self.cidr_groups().any(|group| is_meant(group) && holds(&group.nets))
            }
            Peer::Service(_) | Peer::Services(_) => {
                self.is_meant_by(view, policy, peer, &Ports::Any)
            }
        }
    }

    /// Whether the other end is no pod, no node and in no range of the cluster (CL-9).
    fn is_beyond_cluster(&self, view: &View<'_>) -> bool {
        let nodes = &self.circumstances.ranges.nodes;
        match view.party {
            Party::Pod(_) | Party::Host | Party::RemoteNode => false,
            Party::KubeApiserver | Party::Unmanaged | Party::World => {
                !self.is_in_range(view.remote) && !nodes.iter().any(|net| is_in(net, view.remote))
            }
        }
    }

    fn is_entity(&self, entity: Entity, view: &View<'_>) -> bool {
        match entity {
            Entity::World => view.party == Party::World,
            Entity::WorldIpv4 => view.party == Party::World && view.remote.is_ipv4(),
            Entity::WorldIpv6 => view.party == Party::World && view.remote.is_ipv6(),
            Entity::Cluster => view.party != Party::World,
            Entity::Host => view.party == Party::Host,
            Entity::RemoteNode => view.party == Party::RemoteNode,
            Entity::KubeApiserver => self.is_apiserver(view.remote),
            Entity::Unmanaged => view.party == Party::Unmanaged,
        }
    }

    /// A Service by its addresses, on its ports, and by its backends, on what those translate to.
    fn is_service(
        &self,
        view: &View<'_>,
        ports: &Ports,
        is_meant: impl Fn(&Service) -> bool,
    ) -> bool {
        let mut services = self.services().filter(|service| is_meant(service));
        services.any(|service| {
            // What its owner calls an external address is translated before anybody asks, but where a
            // balancer wants it left alone.
            let mut own = service.cluster_addresses.iter().chain(&service.left_alone);
            if own.any(|address| *address == view.remote) {
                return is_own_port(service, ports, view);
            }
            self.slices().any(|slice| {
                slice.service.as_ref() == Some(&service.reference)
                    && slice.addresses.contains(&view.remote)
                    && is_backend_port(service, slice, ports, view)
            })
        })
    }

    /// Whether `workloads` means `pod`.
    pub fn selects(&self, workloads: &Workloads, pod: &Pod) -> bool {
        let is_in_namespace = match &workloads.namespaces {
            Namespaces::Named(name) => *name == pod.reference.namespace,
            Namespaces::Selected(selector) => {
                has_labels(selector, &self.namespace_labels(&pod.reference.namespace))
            }
        };
        is_in_namespace
            && has_labels(&workloads.pods, &pod.labels)
            && workloads.service_accounts.iter().all(|one| holds(one, Some(&pod.service_account)))
    }

    /// The labels of a namespace. Its name is known even where the object is not (NP-11).
    pub fn namespace_labels(&self, name: &Arc<str>) -> Labels {
        let known = self.objects.iter().find_map(|object| {
            let Object::Namespace(namespace) = object else { return None };
            (namespace.name == *name).then(|| (*namespace.labels).clone())
        });
        known.unwrap_or_else(|| Labels::from([(NAMESPACE_NAME_LABEL.into(), Arc::clone(name))]))
    }

    /// Who has an address. Pods on the node's network are node traffic (NP-21), finished ones hold
    /// nothing (NP-28); where several claim it, the first by name has it.
    pub fn party(&self, address: IpAddr) -> Party<'a> {
        let holds = |pod: &&Pod| {
            !pod.is_host_network && !pod.is_finished && pod.addresses.contains(&address)
        };
        if let Some(pod) = self.pods().filter(holds).min_by_key(|pod| &pod.reference) {
            Party::Pod(pod)
        } else if self.circumstances.own_addresses.contains(&address) {
            Party::Host
        } else if self.nodes().any(|node| node.addresses.contains(&address)) {
            Party::RemoteNode
        } else if self.is_apiserver(address) {
            Party::KubeApiserver
        } else if self.is_in_range(address) {
            Party::Unmanaged
        } else {
            Party::World
        }
    }

    fn is_in_range(&self, address: IpAddr) -> bool {
        let ranges = &self.circumstances.ranges;
        ranges.pods.iter().chain(&ranges.services).any(|net| is_in(net, address))
    }

    /// Whether the Service `default/kubernetes` or one of its backends has the address.
    fn is_apiserver(&self, address: IpAddr) -> bool {
        let is_it = |one: &ServiceRef| &*one.namespace == "default" && &*one.name == "kubernetes";
        self.services().any(|service| {
            is_it(&service.reference) && service.cluster_addresses.contains(&address)
        }) || self.slices().any(|slice| {
            slice.service.as_ref().is_some_and(is_it) && slice.addresses.contains(&address)
        })
    }

    /// Every pod.
    pub fn pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.objects
            .iter()
            .filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None })
    }

    /// Every Service.
    pub fn services(&self) -> impl Iterator<Item = &'a Service> {
        self.objects.iter().filter_map(|object| {
            if let Object::Service(service) = object { Some(service) } else { None }
        })
    }

    /// Every EndpointSlice.
    pub fn slices(&self) -> impl Iterator<Item = &'a EndpointSlice> {
        self.objects.iter().filter_map(|object| {
            if let Object::EndpointSlice(slice) = object { Some(slice) } else { None }
        })
    }

    /// Every CiliumCIDRGroup.
    fn cidr_groups(&self) -> impl Iterator<Item = &'a CidrGroup> {
        self.objects.iter().filter_map(|object| {
            if let Object::CidrGroup(group) = object { Some(group) } else { None }
        })
    }

    /// Every Node.
    pub fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        self.objects
            .iter()
            .filter_map(|object| if let Object::Node(node) = object { Some(node) } else { None })
    }
}

/// Whether the flow goes to one of these ports. A named one is the destination's (NP-17).
pub(crate) fn has_port(ports: &Ports, view: &View<'_>) -> bool {
    let destination = match view.direction {
        Direction::Ingress => Some(view.subject),
        Direction::Egress => view.party.pod(),
    };
    let is_meant = |meant: &PortMatch| {
        meant.protocol == view.protocol
            && match &meant.ports {
                PortSet::Range(range) => (range.start()..=range.end()).contains(&view.port),
                PortSet::Named(name) => destination.is_some_and(|pod| {
                    pod.named_ports.get(&(name.clone(), view.protocol)) == Some(&view.port)
                }),
            }
    };
    match ports {
        Ports::Any => true,
        Ports::Of(list) => list.iter().any(is_meant),
    }
}

/// Whether labels are selected (NP-10).
pub(crate) fn has_labels(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements().all(|one| holds(&one.condition, labels.get(&one.key)))
}

fn holds(condition: &Condition, value: Option<&Arc<str>>) -> bool {
    match condition {
        Condition::In(values) => value.is_some_and(|value| values.contains(value)),
        Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
        Condition::Exists => value.is_some(),
        Condition::DoesNotExist => value.is_none(),
    }
}

/// Whether an address is in a prefix: the leading bits are the same.
pub(crate) fn is_in(net: &IpNet, address: IpAddr) -> bool {
    match (net.network(), address) {
        (IpAddr::V4(net_address), IpAddr::V4(address)) => {
            let host_bits = 32 - u32::from(net.prefix_len());
            let differing = net_address.to_bits() ^ address.to_bits();
            differing.checked_shr(host_bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(net_address), IpAddr::V6(address)) => {
            let host_bits = 128 - u32::from(net.prefix_len());
            let differing = net_address.to_bits() ^ address.to_bits();
            differing.checked_shr(host_bits).unwrap_or(0) == 0
        }
        // IPv4 and IPv6 never match each other (NP-14).
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn is_selected(meant: &ServicesPeer, service: &Service) -> bool {
    let ServicesPeer { namespace, labels } = meant;
    namespace.as_ref().is_none_or(|one| *one == service.reference.namespace)
        && has_labels(labels, &service.labels)
}

/// Whether the Service has the flow's port, and the rule means it by number or by the Service's name.
fn is_own_port(service: &Service, ports: &Ports, view: &View<'_>) -> bool {
    let mut own = service
        .ports
        .iter()
        .filter(|port| port.protocol == view.protocol && port.port == view.port);
    own.any(|port| match ports {
        Ports::Any => true,
        Ports::Of(list) => list.iter().any(|meant| {
            meant.protocol == view.protocol
                && match &meant.ports {
                    PortSet::Range(range) => (range.start()..=range.end()).contains(&view.port),
                    PortSet::Named(name) => port.name == *name,
                }
        }),
    })
}

fn is_backend_port(
    service: &Service,
    slice: &EndpointSlice,
    ports: &Ports,
    view: &View<'_>,
) -> bool {
    let Ports::Of(list) = ports else { return true };
    let is_meant = |port: &ServicePort| {
        list.iter().any(|meant| {
            meant.protocol == port.protocol
                && match &meant.ports {
                    PortSet::Range(range) => (range.start()..=range.end()).contains(&port.port),
                    PortSet::Named(name) => *name == port.name,
                }
        })
    };
    service.ports.iter().filter(|port| is_meant(port)).any(|port| {
        slice.ports.iter().any(|backend| {
            backend.name == port.name
                && backend.protocol == port.protocol
                && backend.protocol == view.protocol
                && backend.port.is_none_or(|number| number == view.port)
        })
    })
}
