//! NetworkPolicy `networking.k8s.io/v1` in normal form, with everything that its API validates.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{name_of, namespace_of, protocol, selector};
use crate::field::{self, Place, WrittenPort};
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, Direction, Isolation, Mode, Namespaces, Peer, Peers, Policy, PolicyKind, PolicyRef,
    PortMatch, Ports, Rule, Tier, Workloads,
};
use crate::selector::Selector;

/// Reads a NetworkPolicy.
pub fn network_policy(written: &NetworkPolicy) -> Result<Policy, FieldError> {
    let namespace = namespace_of(&written.metadata)?;
    let reference = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some(Arc::clone(&namespace)),
        name: name_of(&written.metadata)?,
    };
    let spec = written.spec.as_ref().ok_or_else(|| FieldError::new("spec", Problem::Missing))?;
    let isolates = isolation(spec)?;
    let mut rules = Vec::new();
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let (from, ports) = (rule.from.as_deref(), rule.ports.as_deref());
        rules.push(self::rule(&namespace, Direction::Ingress, index, from, ports)?);
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let (to, ports) = (rule.to.as_deref(), rule.ports.as_deref());
        rules.push(self::rule(&namespace, Direction::Egress, index, to, ports)?);
    }
    // Rules of a direction that is not isolated have no effect (NP-5).
    rules.retain(|rule| isolates.covers(rule.direction));
    Ok(Policy {
        reference,
        subject: Workloads {
            pods: optional_selector("spec.podSelector", spec.pod_selector.as_ref())?,
            namespaces: Namespaces::Named(namespace),
            service_accounts: Vec::new(),
        },
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates,
        dns: None,
        rules,
        notes: Vec::new(),
        also: Vec::new(),
    })
}

/// The pods of a namespace that a selector means; `None` where it cannot be read.
pub(crate) fn own_pods(namespace: &Arc<str>, written: Option<&LabelSelector>) -> Option<Workloads> {
    Some(Workloads {
        namespaces: Namespaces::Named(Arc::clone(namespace)),
        pods: optional_selector("", written).ok()?,
        service_accounts: Vec::new(),
    })
}

/// NP-4.
fn isolation(spec: &NetworkPolicySpec) -> Result<Isolation, FieldError> {
    let Some(types) = spec.policy_types.as_ref().filter(|types| !types.is_empty()) else {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return Ok(Isolation { ingress: true, egress });
    };
    let mut isolates = Isolation::default();
    for (index, direction) in types.iter().enumerate() {
        match direction.as_str() {
            "Ingress" => isolates.ingress = true,
            "Egress" => isolates.egress = true,
            other => {
                let value = other.to_owned();
                let problem = Problem::NotOneOf { value, expected: "Ingress or Egress".into() };
                return Err(FieldError::new(format!("spec.policyTypes[{index}]"), problem));
            }
        }
    }
    Ok(isolates)
}

fn rule(
    namespace: &Arc<str>,
    direction: Direction,
    index: usize,
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
) -> Result<Rule, FieldError> {
    let (list, peer_field) = match direction {
        Direction::Egress => ("egress", "to"),
        Direction::Ingress => ("ingress", "from"),
    };
    let label = format!("{list}[{index}]");
    let path = format!("spec.{label}");
    let place = Place(&path);
    let mut read_peers = Vec::new();
    for (index, written) in peers.into_iter().flatten().enumerate() {
        read_peers.push(peer(&place.entry(peer_field, index), namespace, written)?);
    }
    let mut read_ports = Vec::new();
    for (index, written) in ports.into_iter().flatten().enumerate() {
        read_ports.push(port(&place.entry("ports", index), written)?);
    }
    Ok(Rule {
        label: label.into(),
        direction,
        action: Action::Allow,
        // Empty or missing is any (NP-7, NP-15).
        peers: if read_peers.is_empty() { Peers::Any } else { Peers::Of(read_peers) },
        ports: if read_ports.is_empty() { Ports::Any } else { Ports::Of(read_ports) },
    })
}

fn peer(path: &str, namespace: &Arc<str>, written: &NetworkPolicyPeer) -> Result<Peer, FieldError> {
    let place = Place(path);
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = written;
    if let Some(block) = ip_block {
        if namespace_selector.is_some() || pod_selector.is_some() {
            let fields = "ipBlock and selectors";
            return Err(FieldError::new(path, Problem::Together { fields }));
        }
        let except = block.except.as_deref().unwrap_or_default();
        return field::cidr(&place.field("ipBlock"), "cidr", &block.cidr, except).map(Peer::Cidr);
    }
    if namespace_selector.is_none() && pod_selector.is_none() {
        let expected = "podSelector, namespaceSelector or ipBlock";
        return Err(FieldError::new(path, Problem::EmptyPeer { expected }));
    }
    let namespaces = match namespace_selector {
        None => Namespaces::Named(Arc::clone(namespace)),
        Some(written) => {
            Namespaces::Selected(selector(&place.field("namespaceSelector"), written)?)
        }
    };
    let pods = optional_selector(&place.field("podSelector"), pod_selector.as_ref())?;
    Ok(Peer::Workloads(Workloads { namespaces, pods, service_accounts: Vec::new() }))
}

fn port(path: &str, written: &NetworkPolicyPort) -> Result<PortMatch, FieldError> {
    let protocol = protocol(&Place(path).field("protocol"), written.protocol.as_deref())?;
    let number = written.port.as_ref().map(|port| match port {
        IntOrString::Int(number) => WrittenPort::Number(i64::from(*number)),
        IntOrString::String(name) => WrittenPort::Name(name),
    });
    field::port(path, protocol, number, written.end_port.map(i64::from))
}

/// A selector that selects everything where it is left out (NP-3, NP-8).
fn optional_selector(path: &str, written: Option<&LabelSelector>) -> Result<Selector, FieldError> {
    written.map_or(Ok(Selector::EVERYTHING), |written| selector(path, written))
}
