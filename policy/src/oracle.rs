//! The slow obvious decision about a flow, straight from the objects.
//!
//! Nothing is interned, indexed or ordered beforehand: for each flow every policy is looked at. It
//! shares only the parsed objects with what builds policy tables, so that tests can hold one against
//! the other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::DnsName;
use crate::object::Object;
use crate::resource::{CidrGroup, EndpointSlice, NAMESPACE_NAME_LABEL, Node, Pod, Service};
use crate::rule::{
    Action, CidrGroups, CidrGroupsPeer, CidrReach, Direction, Entity, Mode, Namespaces, Origin,
    Peer, Peers, Policy, PolicyKind, PortMatch, PortSet, Ports, Protocol, Rule, ServiceRef,
    ServicesPeer, Tier, Workloads,
};
use crate::selector::Labels;

/// The names that a pod learned for an address and that count.
pub type NamesOf<'a> = dyn Fn(&Pod, IpAddr) -> Vec<DnsName> + 'a;

/// The objects that decide.
pub struct Oracle<'a> {
    /// Every object, policies included.
    pub objects: &'a [Object],
    /// The addresses of the node that the decision is made on.
    pub own_addresses: &'a BTreeSet<IpAddr>,
    /// Ranges of pods and services: what has an address there and is no pod is unmanaged.
    pub ranges: &'a [IpNet],
    /// What pods learned.
    pub names_of: &'a NamesOf<'a>,
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// Whom it is opened to, behind every service.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The destination's port, or the message type for ICMP.
    pub port: u16,
}

/// What becomes of a flow at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It goes through.
    Forward,
    /// It goes through, and only Audit policies would have dropped it.
    Audit,
    /// It is dropped.
    Drop,
}

/// What becomes of a flow at one end, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided, or every policy that isolates; empty where nothing concerns the flow.
    pub origins: Vec<Origin>,
}

/// What becomes of a flow; `None` for an end that is no pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// At the end that opens the flow.
    pub egress: Option<Ruling>,
    /// At the other end.
    pub ingress: Option<Ruling>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Party<'a> {
    Pod(&'a Pod),
    Host,
    RemoteNode,
    KubeApiserver,
    Unmanaged,
    World,
}

impl<'a> Party<'a> {
    fn pod(self) -> Option<&'a Pod> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }
}

/// A flow as one of its ends sees it.
struct View<'a> {
    direction: Direction,
    subject: &'a Pod,
    remote: IpAddr,
    party: Party<'a>,
    protocol: Protocol,
    port: u16,
}

impl<'a> Oracle<'a> {
    /// Decides about `flow` at both of its ends (NP-2).
    pub fn decide(&self, flow: &Flow) -> Decision {
        let (source, destination) = (self.party(flow.source), self.party(flow.destination));
        let Flow { protocol, port, .. } = *flow;
        let view = |direction, subject: Party<'a>, remote, party| {
            let subject = subject.pod()?;
            Some(View { direction, subject, remote, party, protocol, port })
        };
        let egress = view(Direction::Egress, source, flow.destination, destination);
        let ingress = view(Direction::Ingress, destination, flow.source, source);
        Decision {
            egress: egress.map(|view| self.rule_on(&view)),
            ingress: ingress.map(|view| self.rule_on(&view)),
        }
    }

    fn rule_on(&self, view: &View<'a>) -> Ruling {
        // A pod reaches itself (NP-23), and its node reaches it (NP-22, CH-4).
        let is_own_node = view.direction == Direction::Ingress && view.party == Party::Host;
        if is_own_node || view.subject.addresses.contains(&view.remote) {
            return Ruling { verdict: Verdict::Forward, origins: Vec::new() };
        }
        let selecting: Vec<&Policy> =
            self.policies().filter(|policy| self.selects(&policy.subject, view.subject)).collect();
        let mut audit = Vec::new();
        let decided = self
            .tier(view, &selecting, |tier| matches!(tier, Tier::Admin { .. }), &mut audit)
            .or_else(|| self.namespaced(view, &selecting, &mut audit))
            .or_else(|| {
                let is_baseline = |tier| matches!(tier, Tier::Baseline { .. });
                self.tier(view, &selecting, is_baseline, &mut audit)
            })
            .unwrap_or(Ruling { verdict: Verdict::Forward, origins: Vec::new() });
        if decided.verdict == Verdict::Forward && !audit.is_empty() {
            return Ruling { verdict: Verdict::Audit, origins: audit };
        }
        decided
    }

    /// The first matching rule of an ordered tier; `None` where none matches, or one passes.
    fn tier(
        &self,
        view: &View<'a>,
        selecting: &[&Policy],
        is_in_tier: fn(Tier) -> bool,
        audit: &mut Vec<Origin>,
    ) -> Option<Ruling> {
        let mut rules: Vec<(&Policy, &Rule)> = Vec::new();
        for policy in selecting.iter().filter(|policy| is_in_tier(policy.tier)) {
            rules.extend(policy.rules.iter().map(|rule| (*policy, rule)));
        }
        // A stable sort: the rules of one object stay in order, except that the denials of
        // ClusterEgressPolicies come before what those of the same priority allow.
        rules.sort_by_key(|(policy, rule)| {
            let kind = policy.reference.kind;
            let is_late = kind == PolicyKind::ClusterEgressPolicy && rule.action != Action::Deny;
            (policy.tier, kind, is_late, policy.reference.clone())
        });
        for (policy, rule) in rules {
            if !self.matches(view, rule) {
                continue;
            }
            match (rule.action, policy.mode) {
                (Action::Allow, _) => return Some(ruling(Verdict::Forward, policy, rule)),
                (Action::Deny, Mode::Enforce) => return Some(ruling(Verdict::Drop, policy, rule)),
                (Action::Deny, Mode::Audit) => remember(audit, policy, rule),
                (Action::Pass, _) => return None,
            }
        }
        None
    }

    /// Denials, allows, isolation of the policies that add up (EP-1, EP-12, NP-1).
    fn namespaced(
        &self,
        view: &View<'a>,
        selecting: &[&Policy],
        audit: &mut Vec<Origin>,
    ) -> Option<Ruling> {
        let mut policies: Vec<&Policy> =
            selecting.iter().copied().filter(|policy| policy.tier == Tier::Namespaced).collect();
        policies.sort_by_key(|policy| policy.reference.clone());
        let matching = |action: Action, mode: Option<Mode>| {
            let policies = policies.iter().filter(move |p| mode.is_none_or(|mode| p.mode == mode));
            policies.flat_map(move |policy| {
                let rules = policy.rules.iter().filter(move |rule| rule.action == action);
                rules.filter(|rule| self.matches(view, rule)).map(move |rule| (*policy, rule))
            })
        };
        if let Some((policy, rule)) = matching(Action::Deny, Some(Mode::Enforce)).next() {
            return Some(ruling(Verdict::Drop, policy, rule));
        }
        for (policy, rule) in matching(Action::Deny, Some(Mode::Audit)) {
            remember(audit, policy, rule);
        }
        if let Some((policy, rule)) = matching(Action::Allow, None).next() {
            return Some(ruling(Verdict::Forward, policy, rule));
        }
        let isolating = |mode: Mode| -> Vec<Origin> {
            let policies = policies.iter().filter(|policy| policy.isolates.covers(view.direction));
            let isolating = policies.filter(|policy| policy.mode == mode);
            let mut origins: Vec<Origin> = isolating
                .map(|policy| Origin { policy: policy.reference.clone(), rule: None })
                .collect();
            // An object with several subjects can isolate by more than one of them.
            origins.dedup();
            origins
        };
        let enforced = isolating(Mode::Enforce);
        if !enforced.is_empty() {
            return Some(Ruling { verdict: Verdict::Drop, origins: enforced });
        }
        if audit.is_empty() {
            *audit = isolating(Mode::Audit);
        }
        None
    }

    /// Whether `rule` is about the flow.
    fn matches(&self, view: &View<'a>, rule: &Rule) -> bool {
        if rule.direction != view.direction {
            return false;
        }
        // A named port is the destination's (NP-17).
        let destination = match view.direction {
            Direction::Ingress => Some(view.subject),
            Direction::Egress => view.party.pod(),
        };
        match &rule.peers {
            Peers::Any => has_port(&rule.ports, view, destination),
            Peers::Of(peers) => peers.iter().any(|peer| match peer {
                Peer::Service(meant) => {
                    self.is_service(view, &rule.ports, |service| service.reference == *meant)
                }
                Peer::Services(meant) => self.is_service(view, &rule.ports, |service| {
                    let ServicesPeer { namespace, labels } = meant;
                    namespace.as_ref().is_none_or(|one| *one == service.reference.namespace)
                        && labels.matches(&service.labels)
                }),
                Peer::Fqdn(fqdn) => {
                    let names = (self.names_of)(view.subject, view.remote);
                    names.iter().any(|name| fqdn.matches(name)) && has_port(&rule.ports, view, None)
                }
                Peer::Workloads(_)
                | Peer::Cidr(_)
                | Peer::CidrGroups(_)
                | Peer::Entity(_)
                | Peer::Nodes(_) => {
                    self.is_peer(peer, view) && has_port(&rule.ports, view, destination)
                }
            }),
        }
    }

    fn is_peer(&self, peer: &Peer, view: &View<'a>) -> bool {
        match peer {
            Peer::Workloads(workloads) => {
                view.party.pod().is_some_and(|pod| self.selects(workloads, pod))
            }
            Peer::Cidr(cidr) => {
                let is_meant = match cidr.reach {
                    CidrReach::All => true,
                    CidrReach::World => self.is_beyond_labels(view),
                };
                is_meant && cidr.contains(view.remote)
            }
            Peer::CidrGroups(CidrGroupsPeer { groups, except }) => {
                let is_meant = |group: &CidrGroup| match groups {
                    CidrGroups::Named(name) => group.name == *name,
                    CidrGroups::Selected(selector) => selector.matches(&group.labels),
                };
                let mut meant = self.cidr_groups().filter(|group| is_meant(group));
                self.is_beyond_labels(view)
                    && !except.iter().any(|net| net.contains(&view.remote))
                    && meant.any(|group| group.nets.iter().any(|net| net.contains(&view.remote)))
            }
            Peer::Entity(entity) => self.is_entity(*entity, view),
            Peer::Nodes(selector) => self.nodes().any(|node| {
                selector.matches(&node.labels) && node.addresses.contains(&view.remote)
            }),
            Peer::Fqdn(_) | Peer::Service(_) | Peer::Services(_) => false,
        }
    }

    /// Whether the remote end is what Cilium's CIDRs can mean: no pod and no node (CL-9).
    fn is_beyond_labels(&self, view: &View<'a>) -> bool {
        !matches!(view.party, Party::Pod(_) | Party::Host | Party::RemoteNode)
            && !self.is_in_range(view.remote)
    }

    fn is_entity(&self, entity: Entity, view: &View<'a>) -> bool {
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
        view: &View<'a>,
        ports: &Ports,
        is_meant: impl Fn(&Service) -> bool,
    ) -> bool {
        let mut services = self.services().filter(|service| is_meant(service));
        services.any(|service| {
            let mut own = service.cluster_addresses.iter().chain(&service.external_addresses);
            if own.any(|address| *address == view.remote) {
                return match ports {
                    Ports::Any => true,
                    Ports::Of(list) => list.iter().any(|meant| is_own_port(service, meant, view)),
                };
            }
            self.slices().any(|slice| {
                slice.service.as_ref() == Some(&service.reference)
                    && slice.addresses.contains(&view.remote)
                    && is_backend_port(service, slice, ports, view)
            })
        })
    }

    fn selects(&self, workloads: &Workloads, pod: &Pod) -> bool {
        let namespace = &pod.reference.namespace;
        let is_in_namespace = match &workloads.namespaces {
            Namespaces::Named(name) => name == namespace,
            Namespaces::Selected(selector) => {
                let found = self.objects.iter().find_map(|object| {
                    let Object::Namespace(found) = object else { return None };
                    (found.name == *namespace).then_some(&found.labels)
                });
                match found {
                    Some(labels) => selector.matches(labels),
                    // Its name is known even where the object is not (NP-11).
                    None => selector
                        .matches(&Labels::from([(NAMESPACE_NAME_LABEL.into(), namespace.clone())])),
                }
            }
        };
        is_in_namespace
            && workloads.pods.matches(&pod.labels)
            && workloads.service_accounts.iter().all(|one| one.holds(Some(&pod.service_account)))
    }

    fn party(&self, address: IpAddr) -> Party<'a> {
        let mut pods = self
            .objects
            .iter()
            .filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None });
        // Pods on the node's network are node traffic (NP-21), finished ones hold nothing (NP-28).
        let is_holder = |pod: &&Pod| {
            !pod.is_host_network && !pod.is_finished && pod.addresses.contains(&address)
        };
        if let Some(pod) = pods.find(is_holder) {
            Party::Pod(pod)
        } else if self.own_addresses.contains(&address) {
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
        self.ranges.iter().any(|range| range.contains(&address))
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

    /// Every policy, one for each subject.
    fn policies(&self) -> impl Iterator<Item = &'a Policy> {
        let objects = self.objects.iter().filter_map(|object| {
            if let Object::Policy(policy) = object { Some(policy) } else { None }
        });
        objects.flat_map(Policy::parts)
    }

    fn cidr_groups(&self) -> impl Iterator<Item = &'a CidrGroup> {
        self.objects.iter().filter_map(|object| {
            if let Object::CidrGroup(group) = object { Some(group) } else { None }
        })
    }

    fn services(&self) -> impl Iterator<Item = &'a Service> {
        self.objects.iter().filter_map(|object| {
            if let Object::Service(service) = object { Some(service) } else { None }
        })
    }

    fn slices(&self) -> impl Iterator<Item = &'a EndpointSlice> {
        self.objects.iter().filter_map(|object| {
            if let Object::EndpointSlice(slice) = object { Some(slice) } else { None }
        })
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        self.objects
            .iter()
            .filter_map(|object| if let Object::Node(node) = object { Some(node) } else { None })
    }
}

fn ruling(verdict: Verdict, policy: &Policy, rule: &Rule) -> Ruling {
    Ruling { verdict, origins: vec![origin(policy, rule)] }
}

fn origin(policy: &Policy, rule: &Rule) -> Origin {
    Origin { policy: policy.reference.clone(), rule: Some(rule.label.clone()) }
}

/// The first Audit policy that would have dropped the flow is the one that is named.
fn remember(audit: &mut Vec<Origin>, policy: &Policy, rule: &Rule) {
    if audit.is_empty() {
        audit.push(origin(policy, rule));
    }
}

fn has_port(ports: &Ports, view: &View<'_>, destination: Option<&Pod>) -> bool {
    let is_meant = |meant: &PortMatch| {
        meant.protocol == view.protocol
            && match &meant.ports {
                PortSet::Range(range) => range.contains(view.port),
                PortSet::Named(name) => destination.is_some_and(|pod| {
                    let key = (name.clone(), view.protocol);
                    pod.named_ports.get(&key) == Some(&view.port)
                }),
            }
    };
    match ports {
        Ports::Any => true,
        Ports::Of(list) => list.iter().any(is_meant),
    }
}

fn is_own_port(service: &Service, meant: &PortMatch, view: &View<'_>) -> bool {
    meant.protocol == view.protocol
        && match &meant.ports {
            PortSet::Range(range) => range.contains(view.port),
            PortSet::Named(name) => service.ports.iter().any(|port| {
                port.name == *name && port.protocol == view.protocol && port.port == view.port
            }),
        }
}

fn is_backend_port(
    service: &Service,
    slice: &EndpointSlice,
    ports: &Ports,
    view: &View<'_>,
) -> bool {
    let Ports::Of(list) = ports else { return true };
    let is_meant = |port: &crate::resource::ServicePort| {
        list.iter().any(|meant| {
            meant.protocol == port.protocol
                && match &meant.ports {
                    PortSet::Range(range) => range.contains(port.port),
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
