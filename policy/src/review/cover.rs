//! Whether one thing holds at least all that another does. Where that cannot be told, it is denied:
//! a finding that rests on it stays unsaid.

use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{
    CidrPeer, CidrReach, Entity, Namespaces, Peer, Peers, PortMatch, PortSet, Ports, Workloads,
};
use crate::selector::{Condition, Requirement, Selector};

use super::Review;

impl Review<'_> {
    /// Whether every pod of `inner` is one of `outer`.
    pub(super) fn covers_workloads(&self, outer: &Workloads, inner: &Workloads) -> bool {
        let has_namespaces = match (&outer.namespaces, &inner.namespaces) {
            (Namespaces::Named(one), Namespaces::Named(two)) => one == two,
            (Namespaces::Selected(one), Namespaces::Named(two)) => {
                one.matches(&self.labels_of(two))
            }
            (Namespaces::Selected(one), Namespaces::Selected(two)) => covers_selector(one, two),
            (Namespaces::Named(one), Namespaces::Selected(two)) => {
                let own = Requirement::equals(NAMESPACE_NAME_LABEL, one);
                two.requirements().any(|requirement| *requirement == own)
            }
        };
        has_namespaces
            && covers_selector(&outer.pods, &inner.pods)
            && outer.service_accounts.iter().all(|one| inner.service_accounts.contains(one))
    }

    /// Whether every remote of `inner` is one of `outer`.
    pub(super) fn covers_peer(&self, outer: &Peers, inner: &Peer) -> bool {
        match outer {
            Peers::Any => true,
            Peers::Of(list) => list.iter().any(|outer| self.covers_one(outer, inner)),
        }
    }

    fn covers_one(&self, outer: &Peer, inner: &Peer) -> bool {
        match (outer, inner) {
            (Peer::Workloads(outer), Peer::Workloads(inner)) => self.covers_workloads(outer, inner),
            (Peer::Cidr(outer), Peer::Cidr(inner)) => covers_cidr(outer, inner),
            // A name opens no address of the cluster (EP-9).
            (Peer::Entity(Entity::World), Peer::Fqdn(_)) => true,
            (Peer::Entity(outer), Peer::Entity(inner)) => covers_entity(*outer, *inner),
            (Peer::Entity(Entity::Cluster), Peer::Workloads(_) | Peer::Nodes(_)) => true,
            (Peer::Service(outer), Peer::Service(inner)) => outer == inner,
            (Peer::Nodes(outer), Peer::Nodes(inner)) => covers_selector(outer, inner),
            (Peer::Fqdn(outer), Peer::Fqdn(inner)) => outer == inner,
            _ => false,
        }
    }
}

fn covers_entity(outer: Entity, inner: Entity) -> bool {
    outer == inner
        || match outer {
            Entity::World => matches!(inner, Entity::WorldIpv4 | Entity::WorldIpv6),
            Entity::Cluster => {
                matches!(inner, Entity::Host | Entity::RemoteNode | Entity::Unmanaged)
            }
            Entity::WorldIpv4
            | Entity::WorldIpv6
            | Entity::Host
            | Entity::RemoteNode
            | Entity::KubeApiserver
            | Entity::Unmanaged => false,
        }
}

fn covers_cidr(outer: &CidrPeer, inner: &CidrPeer) -> bool {
    let reaches = outer.reach == CidrReach::All || inner.reach == CidrReach::World;
    let is_cut = |hole: &ipnet::IpNet| {
        let overlaps = hole.contains(&inner.net) || inner.net.contains(hole);
        overlaps && !inner.except.iter().any(|except| except.contains(hole))
    };
    reaches && outer.net.contains(&inner.net) && !outer.except.iter().any(is_cut)
}

/// Whether everything that `inner` selects is selected by `outer`.
pub(super) fn covers_selector(outer: &Selector, inner: &Selector) -> bool {
    outer.requirements().all(|wanted| inner.requirements().any(|given| implies(given, wanted)))
}

/// Whether a label for which `given` holds is one for which `wanted` does.
fn implies(given: &Requirement, wanted: &Requirement) -> bool {
    if given == wanted {
        return true;
    }
    given.key == wanted.key
        && match (&given.condition, &wanted.condition) {
            (Condition::In(given), Condition::In(wanted)) => given.is_subset(wanted),
            (Condition::In(given), Condition::NotIn(wanted)) => given.is_disjoint(wanted),
            (Condition::In(_), Condition::Exists)
            | (Condition::DoesNotExist, Condition::NotIn(_)) => true,
            (Condition::NotIn(given), Condition::NotIn(wanted)) => wanted.is_subset(given),
            _ => false,
        }
}

/// Whether every port of `inner` is one of `outer`.
pub(super) fn covers_ports(outer: &Ports, inner: &Ports) -> bool {
    match (outer, inner) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(outer), Ports::Of(inner)) => {
            inner.iter().all(|inner| outer.iter().any(|outer| covers_port(outer, inner)))
        }
    }
}

fn covers_port(outer: &PortMatch, inner: &PortMatch) -> bool {
    outer.protocol == inner.protocol
        && match (&outer.ports, &inner.ports) {
            (PortSet::Range(outer), PortSet::Range(inner)) => {
                outer.start() <= inner.start() && inner.end() <= outer.end()
            }
            (PortSet::Range(outer), PortSet::Named(_)) => {
                outer.start() <= 1 && outer.end() == u16::MAX
            }
            (PortSet::Named(outer), PortSet::Named(inner)) => outer == inner,
            (PortSet::Named(_), PortSet::Range(_)) => false,
        }
}
