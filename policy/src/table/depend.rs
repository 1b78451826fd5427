//! What the rules of a policy are resolved against, besides whom its selectors select.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inventory::{Inventory, InventoryChanges};
use crate::rule::{
    CidrReach, Direction, Entity, Peer, Peers, Policy, PortSet, Ports, Rule, ServiceRef,
};

/// One thing that rules can depend on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dependency {
    /// Which identities there are at all.
    Everybody,
    /// One Service with its backends.
    Service(ServiceRef),
    /// Services by their labels.
    Services,
    /// Nodes by their labels.
    Nodes,
    /// CIDR groups.
    CidrGroups,
    /// Addresses of pods and nodes outside the cluster's ranges.
    Outside,
    /// The pods that call a port by this name.
    PortName(Arc<str>),
}

/// What `policy` depends on.
pub(super) fn of_policy(policy: &Policy) -> BTreeSet<Dependency> {
    let mut dependencies = BTreeSet::new();
    for rule in policy.parts().flat_map(|part| &part.rules) {
        of_rule(rule, &mut dependencies);
    }
    dependencies
}

/// What `changes` touch; `outside` says whether [`Dependency::Outside`] is among it.
pub(super) fn of_changes(changes: &InventoryChanges, outside: bool) -> BTreeSet<Dependency> {
    let mut touched: BTreeSet<Dependency> = BTreeSet::new();
    let flags = [
        (!changes.identities.is_empty(), Dependency::Everybody),
        (!changes.services.is_empty(), Dependency::Services),
        (changes.nodes, Dependency::Nodes),
        (changes.cidr_groups, Dependency::CidrGroups),
        (outside, Dependency::Outside),
    ];
    touched.extend(flags.into_iter().filter_map(|(is_it, what)| is_it.then_some(what)));
    touched.extend(changes.services.iter().cloned().map(Dependency::Service));
    touched.extend(changes.port_names.iter().cloned().map(Dependency::PortName));
    touched
}

fn of_rule(rule: &Rule, dependencies: &mut BTreeSet<Dependency>) {
    if let Ports::Of(ports) = &rule.ports
        && rule.direction == Direction::Egress
    {
        for port in ports {
            if let PortSet::Named(name) = &port.ports {
                dependencies.insert(Dependency::PortName(Arc::clone(name)));
            }
        }
    }
    let Peers::Of(peers) = &rule.peers else { return };
    for peer in peers {
        match peer {
            Peer::Cidr(cidr) => {
                if cidr.reach == CidrReach::World {
                    dependencies.insert(Dependency::Outside);
                }
            }
            Peer::CidrGroups(_) => {
                dependencies.extend([Dependency::CidrGroups, Dependency::Outside]);
            }
            Peer::Entity(entity) => of_entity(*entity, dependencies),
            Peer::Service(service) => {
                dependencies.insert(Dependency::Service(service.clone()));
            }
            Peer::Services(_) => {
                dependencies.insert(Dependency::Services);
            }
            Peer::Nodes(_) => {
                dependencies.insert(Dependency::Nodes);
            }
            // Selectors are followed by whom they select, names by what is learned.
            Peer::Workloads(_) | Peer::Fqdn(_) => {}
        }
    }
}

fn of_entity(entity: Entity, dependencies: &mut BTreeSet<Dependency>) {
    match entity {
        Entity::Cluster => {
            dependencies.insert(Dependency::Everybody);
        }
        Entity::WorldIpv4 | Entity::WorldIpv6 => {
            dependencies.extend([Dependency::Outside, Dependency::Service(Inventory::apiserver())]);
        }
        Entity::KubeApiserver => {
            dependencies.insert(Dependency::Service(Inventory::apiserver()));
        }
        Entity::World | Entity::Host | Entity::RemoteNode | Entity::Unmanaged => {}
    }
}
