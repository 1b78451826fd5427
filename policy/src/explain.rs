//! Why a rule does not mean a flow, and why a policy does not select a pod, in words.
//!
//! What matches is the oracle's matter; this only puts into words what it said no to.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::name::DnsName;
use crate::oracle::{Oracle, Party, View, has_labels, has_port, is_in, is_named};
use crate::resource::Pod;
use crate::rule::{
    CidrGroups, CidrPeer, CidrReach, Direction, Entity, FqdnPeer, Namespaces, Peer, Peers, Policy,
    PortMatch, PortSet, Ports, Protocol, Rule, Workloads,
};
use crate::selector::{Condition, Labels};

/// Why a rule of `policy` does not mean the flow: by its peers, by its ports, or both; empty where
/// it does.
pub fn mismatch(oracle: &Oracle<'_>, view: &View<'_>, policy: &Policy, rule: &Rule) -> Vec<String> {
    if oracle.is_meant(view, policy, rule) {
        return Vec::new();
    }
    let mut why = Vec::new();
    let mut is_service = false;
    match &rule.peers {
        Peers::Any => {}
        Peers::Of(peers) if peers.is_empty() => {
            why.push("peer: the list is empty, which matches nothing".to_owned());
        }
        Peers::Of(peers) => {
            let is_peer = |peer: &&Peer| oracle.is_peer(view, policy, peer);
            if peers.iter().any(|peer| is_peer(&peer)) {
                is_service = peers.iter().filter(is_peer).all(is_service_peer);
            } else {
                let words = peers.iter().map(|peer| mismatch_of_peer(oracle, view, policy, peer));
                why.extend(words.map(|words| format!("peer: {words}")));
            }
        }
    }
    if is_service {
        why.push(format!(
            "port: {} is not what {} of the Service leads to",
            view.port,
            written(&rule.ports, view)
        ));
    } else if !has_port(&rule.ports, view) {
        why.push(format!("port: {}", mismatch_of_ports(&rule.ports, view)));
    }
    if why.is_empty() {
        why.push("no peer of it means both the other end and the port".to_owned());
    }
    why
}

/// Why `policy` does not select `pod`; `None` where it does.
pub fn unselected(oracle: &Oracle<'_>, policy: &Policy, pod: &Pod) -> Option<String> {
    (!oracle.selects(&policy.subject, pod))
        .then(|| mismatch_of_workloads(oracle, &policy.subject, pod))
}

/// The peers that mean a name that `pod` asks for, with their rules, in the order of precedence.
pub fn naming<'a>(
    oracle: &Oracle<'a>,
    pod: &Pod,
    name: &DnsName,
) -> Vec<(&'a Policy, &'a Rule, &'a FqdnPeer)> {
    let mut patterns = oracle.patterns(pod);
    patterns.retain(|(policy, _, fqdn)| is_named(policy, fqdn, name));
    patterns
}

/// Who an address is, as a noun.
pub fn party(party: Party<'_>) -> String {
    match party {
        Party::Pod(pod) => format!("pod {}", pod.reference),
        Party::Host => "the node itself".to_owned(),
        Party::RemoteNode => "another node".to_owned(),
        Party::KubeApiserver => "the API server".to_owned(),
        Party::Unmanaged => "in a range of the cluster, and no known pod".to_owned(),
        Party::World => "outside the cluster".to_owned(),
    }
}

/// Labels as a manifest shows them.
pub fn labels(labels: &Labels) -> String {
    let mut text = String::from("{");
    for (index, (key, value)) in labels.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{key}: {value}");
    }
    text + "}"
}

/// The name of a protocol.
pub const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        Protocol::Icmp => "ICMP",
        Protocol::Icmpv6 => "ICMPv6",
    }
}

const fn is_service_peer(peer: &Peer) -> bool {
    matches!(peer, Peer::Service(_) | Peer::Services(_))
}

fn mismatch_of_peer(oracle: &Oracle<'_>, view: &View<'_>, policy: &Policy, peer: &Peer) -> String {
    let remote = view.remote;
    match peer {
        Peer::Workloads(workloads) => match view.party.pod() {
            Some(pod) => mismatch_of_workloads(oracle, workloads, pod),
            None => format!("{} is meant; {remote} is {}", meant(workloads), party(view.party)),
        },
        Peer::Cidr(cidr) => mismatch_of_cidr(cidr, view),
        Peer::Fqdn(fqdn) => mismatch_of_names(oracle, view, policy, fqdn),
        Peer::Entity(entity) => {
            format!("entity {}; {remote} is {}", entity_name(*entity), party(view.party))
        }
        Peer::Nodes(selector) => {
            let mut nodes = oracle.nodes();
            match nodes.find(|node| node.addresses.contains(&remote)) {
                Some(node) => format!(
                    "nodes {selector} does not match labels {} of node {}",
                    labels(&node.labels),
                    node.name
                ),
                None => format!("nodes {selector}; {remote} is {}", party(view.party)),
            }
        }
        Peer::CidrGroups(group) => {
            let groups = match &group.groups {
                CidrGroups::Named(name) => format!("CIDR group {name}"),
                CidrGroups::Selected(selector) => format!("CIDR groups {selector}"),
            };
            format!("{groups}; {remote} is {} and in none that counts", party(view.party))
        }
        Peer::Services(services) => {
            let namespace = services.namespace.as_deref().unwrap_or("any namespace");
            format!(
                "{remote} is neither an address nor a backend of a service {} in {namespace}",
                services.labels
            )
        }
        Peer::Service(service) => {
            if oracle.services().any(|known| known.reference == *service) {
                format!("{remote} is neither an address of service {service} nor a backend of it")
            } else {
                format!("there is no service {service}")
            }
        }
    }
}

fn meant(workloads: &Workloads) -> String {
    let namespaces = match &workloads.namespaces {
        Namespaces::Named(name) => format!("namespace {name}"),
        Namespaces::Selected(selector) => format!("namespaceSelector {selector}"),
    };
    format!("a pod of podSelector {} in {namespaces}", workloads.pods)
}

fn mismatch_of_workloads(oracle: &Oracle<'_>, workloads: &Workloads, pod: &Pod) -> String {
    let mut why = Vec::new();
    let namespace = &pod.reference.namespace;
    match &workloads.namespaces {
        Namespaces::Named(name) if name != namespace => {
            why.push(format!("namespace {name} is meant, not {namespace}"));
        }
        Namespaces::Named(_) => {}
        Namespaces::Selected(selector) => {
            let found = oracle.namespace_labels(namespace);
            if !has_labels(selector, &found) {
                why.push(format!(
                    "namespaceSelector {selector} does not match labels {} of namespace {namespace}",
                    labels(&found)
                ));
            }
        }
    }
    if !has_labels(&workloads.pods, &pod.labels) {
        why.push(format!(
            "podSelector {} does not match labels {}",
            workloads.pods,
            labels(&pod.labels)
        ));
    }
    let account = &pod.service_account;
    why.extend(workloads.service_accounts.iter().filter(|one| !one.holds(Some(account))).map(
        |one| match one {
            Condition::In(names) => {
                format!("service account {} is meant, not {account}", list(names.iter()))
            }
            Condition::NotIn(_) | Condition::Exists | Condition::DoesNotExist => {
                format!("service account {account} is left out")
            }
        },
    ));
    why.join(" and ")
}

fn mismatch_of_cidr(cidr: &CidrPeer, view: &View<'_>) -> String {
    let CidrPeer { net, except, reach } = cidr;
    let remote = view.remote;
    if !is_in(net, remote) {
        return format!("{remote} is not in {net}");
    }
    if let Some(cut) = except.iter().find(|cut| is_in(cut, remote)) {
        return format!("{remote} is in {cut}, which is cut out of {net}");
    }
    match reach {
        CidrReach::World => format!(
            "{remote} is {}, and a prefix of this dialect means neither pods nor nodes",
            party(view.party)
        ),
        CidrReach::All => format!("{remote} is not meant by {net}"),
    }
}

fn mismatch_of_names(
    oracle: &Oracle<'_>,
    view: &View<'_>,
    policy: &Policy,
    fqdn: &FqdnPeer,
) -> String {
    let (remote, pod) = (view.remote, &view.subject.reference);
    let pattern = &fqdn.pattern;
    let mut learned = oracle.lessons.iter().filter(|one| one.address == remote && one.pod == *pod);
    let Some(lesson) = learned.next() else {
        return format!("fqdn {pattern}; no answer taught {pod} a name for {remote}");
    };
    let named =
        std::iter::once(lesson).chain(learned).find(|one| is_named(policy, fqdn, &one.name));
    match named {
        None => {
            format!("fqdn {pattern} does not mean {}, the name learned for {remote}", lesson.name)
        }
        Some(lesson) => match oracle.withheld(remote, fqdn.allow_private) {
            Some(why) => format!(
                "fqdn {pattern} means {}, but no name opens {remote} ({})",
                lesson.name,
                why.as_str()
            ),
            None => format!("fqdn {pattern}; what was learned for {} has expired", lesson.name),
        },
    }
}

fn mismatch_of_ports(ports: &Ports, view: &View<'_>) -> String {
    let Ports::Of(list) = ports else { return String::from("every port is meant") };
    if list.is_empty() {
        return String::from("the list is empty, which matches nothing");
    }
    if !list.iter().any(|one| one.protocol == view.protocol) {
        let known = written(ports, view);
        return match view.protocol {
            Protocol::Icmp | Protocol::Icmpv6 => {
                format!("an echo follows rules without ports; this one is for {known}")
            }
            Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
                format!("{} {} is not in {known}", protocol(view.protocol), view.port)
            }
        };
    }
    let same = list.iter().filter(|one| one.protocol == view.protocol);
    let same: Vec<String> = same.map(|one| number(one, view)).collect();
    format!("{} is not in {}", view.port, same.join(","))
}

/// The ports with their protocols.
fn written(ports: &Ports, view: &View<'_>) -> String {
    let Ports::Of(list) = ports else { return String::from("every port") };
    let shown = list.iter().map(|one| format!("{} {}", protocol(one.protocol), number(one, view)));
    shown.collect::<Vec<_>>().join(", ")
}

fn number(port: &PortMatch, view: &View<'_>) -> String {
    match &port.ports {
        PortSet::Range(range) if range.start() == range.end() => range.start().to_string(),
        PortSet::Range(range) if (range.start(), range.end()) == (0, u16::MAX) => "any".to_owned(),
        PortSet::Range(range) => format!("{}-{}", range.start(), range.end()),
        PortSet::Named(name) => {
            let destination = match view.direction {
                Direction::Ingress => Some(view.subject),
                Direction::Egress => view.party.pod(),
            };
            let named =
                destination.and_then(|pod| pod.named_ports.get(&(Arc::clone(name), port.protocol)));
            match named {
                Some(number) => format!("{name} ({number} there)"),
                None => format!("{name} (which the destination does not name)"),
            }
        }
    }
}

const fn entity_name(entity: Entity) -> &'static str {
    match entity {
        Entity::World => "World",
        Entity::WorldIpv4 => "WorldIPv4",
        Entity::WorldIpv6 => "WorldIPv6",
        Entity::Cluster => "Cluster",
        Entity::Host => "Host",
        Entity::RemoteNode => "RemoteNode",
        Entity::KubeApiserver => "KubeApiserver",
        Entity::Unmanaged => "Unmanaged",
    }
}

fn list<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> String {
    names.map(|name| &**name).collect::<Vec<&str>>().join(" or ")
}
