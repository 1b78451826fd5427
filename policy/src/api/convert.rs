//! From what was written to the normal form.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{
    ClusterEgressPolicySpec, DnsFilter, DnsSpec, EgressPeer, EgressPolicySpec, EgressRule, Entity,
    LabelSelector, Mode, PortSpec, PortValue, RefuseWith, Tier, Transport,
};
use crate::field::{self, Place, WrittenPort, WrittenRequirement};
use crate::kubernetes::{name_of, namespace_of};
use crate::limits;
use crate::pattern::DomainPattern;
use crate::problem::{FieldError, Problem};
use crate::rule::{self, Policy, PolicyKind, PolicyRef, Workloads};
use crate::selector::Selector;

/// The priority in a tier where none is written: the last.
const PRIORITY_DEFAULT: u16 = limits::PRIORITY;

/// An object of this API as a manifest holds it.
#[derive(Debug, Deserialize)]
pub struct Manifest<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: S,
}

/// Reads an EgressPolicy.
pub fn egress_policy(written: &Manifest<EgressPolicySpec>) -> Result<Policy, FieldError> {
    let namespace = namespace_of(&written.metadata)?;
    let spec = &written.spec;
    Ok(Policy {
        reference: PolicyRef {
            kind: PolicyKind::EgressPolicy,
            namespace: Some(Arc::clone(&namespace)),
            name: name_of(&written.metadata)?,
        },
        subject: Workloads {
            namespaces: rule::Namespaces::Named(Arc::clone(&namespace)),
            pods: selector("spec.podSelector", &spec.pod_selector)?,
            service_accounts: Vec::new(),
        },
        mode: mode(spec.mode),
        tier: rule::Tier::Namespaced,
        isolates: rule::Isolation { egress: true, ingress: false },
        dns: Some(dns(&spec.dns, DnsFilter::Enforce)),
        rules: rules(Some(&namespace), &spec.deny, &spec.egress)?,
        notes: Vec::new(),
        also: Vec::new(),
    })
}

/// Reads a ClusterEgressPolicy. In a tier it isolates nothing, and observes lookups where it does
/// not say otherwise: an admin rule about one address must not close everything else.
pub fn cluster_egress_policy(
    written: &Manifest<ClusterEgressPolicySpec>,
) -> Result<Policy, FieldError> {
    let spec = &written.spec;
    let priority = spec.priority.unwrap_or(PRIORITY_DEFAULT);
    if priority > limits::PRIORITY {
        let problem = Problem::TooLarge { value: priority.into(), max: limits::PRIORITY.into() };
        return Err(FieldError::new("spec.priority", problem));
    }
    let (tier, is_tiered) = match spec.tier {
        Some(Tier::Admin) => (rule::Tier::Admin { priority }, true),
        Some(Tier::Baseline) => (rule::Tier::Baseline { priority }, true),
        None if spec.priority.is_some() => {
            return Err(FieldError::new("spec.priority", Problem::Misplaced { beside: "tier" }));
        }
        None => (rule::Tier::Namespaced, false),
    };
    let filter = if is_tiered { DnsFilter::Observe } else { DnsFilter::Enforce };
    Ok(Policy {
        reference: PolicyRef {
            kind: PolicyKind::ClusterEgressPolicy,
            namespace: None,
            name: name_of(&written.metadata)?,
        },
        subject: Workloads {
            namespaces: rule::Namespaces::Selected(selector(
                "spec.namespaceSelector",
                &spec.namespace_selector,
            )?),
            pods: selector("spec.podSelector", &spec.pod_selector)?,
            service_accounts: Vec::new(),
        },
        mode: mode(spec.mode),
        tier,
        isolates: rule::Isolation { egress: !is_tiered, ingress: false },
        dns: Some(dns(&spec.dns, filter)),
        rules: rules(None, &spec.deny, &spec.egress)?,
        notes: Vec::new(),
        also: Vec::new(),
    })
}

/// The pods of a namespace that a selector means; `None` where it cannot be read.
pub(crate) fn own_pods(namespace: &Arc<str>, written: &LabelSelector) -> Option<Workloads> {
    Some(Workloads {
        namespaces: rule::Namespaces::Named(Arc::clone(namespace)),
        pods: selector("", written).ok()?,
        service_accounts: Vec::new(),
    })
}

/// The pods that two selectors mean; `None` where one of them cannot be read.
pub(crate) fn pods_in(namespaces: &LabelSelector, pods: &LabelSelector) -> Option<Workloads> {
    Some(Workloads {
        namespaces: rule::Namespaces::Selected(selector("", namespaces).ok()?),
        pods: selector("", pods).ok()?,
        service_accounts: Vec::new(),
    })
}

/// The place in a tier of a policy whose `priority` may be missing or bad.
pub(crate) fn priority(written: Option<u16>) -> u16 {
    written.filter(|priority| *priority <= limits::PRIORITY).unwrap_or(PRIORITY_DEFAULT)
}

fn mode(written: Mode) -> rule::Mode {
    match written {
        Mode::Enforce => rule::Mode::Enforce,
        Mode::Audit => rule::Mode::Audit,
    }
}

fn dns(written: &DnsSpec, default: DnsFilter) -> rule::DnsPolicy {
    rule::DnsPolicy {
        filter: match written.filter.unwrap_or(default) {
            DnsFilter::Enforce => rule::DnsFilter::Enforce,
            DnsFilter::Observe => rule::DnsFilter::Observe,
        },
        refuse_with: match written.refuse_with {
            RefuseWith::Refused => crate::dns::RefuseWith::Refused,
            RefuseWith::NxDomain => crate::dns::RefuseWith::NxDomain,
            RefuseWith::Empty => crate::dns::RefuseWith::Empty,
        },
        names: Vec::new(),
    }
}

/// Denials first: they win over every allow of the same tier.
fn rules(
    namespace: Option<&Arc<str>>,
    deny: &[EgressRule],
    egress: &[EgressRule],
) -> Result<Vec<rule::Rule>, FieldError> {
    let mut rules = Vec::with_capacity(deny.len() + egress.len());
    for (index, written) in deny.iter().enumerate() {
        let label = format!("deny[{index}]");
        rules.push(rule(namespace, label, rule::Action::Deny, written)?);
    }
    for (index, written) in egress.iter().enumerate() {
        let label = format!("egress[{index}]");
        rules.push(rule(namespace, label, rule::Action::Allow, written)?);
    }
    Ok(rules)
}

fn rule(
    namespace: Option<&Arc<str>>,
    label: String,
    action: rule::Action,
    written: &EgressRule,
) -> Result<rule::Rule, FieldError> {
    let path = format!("spec.{label}");
    let place = Place(&path);
    field::rule_name(place.field("name"), written.name.as_deref())?;
    let peers = match &written.to {
        None => rule::Peers::Any,
        Some(list) => {
            refuse_empty(&place, "to", "any peer", list)?;
            let read =
                |(index, peer)| self::peer(&place.entry("to", index), namespace, action, peer);
            rule::Peers::Of(list.iter().enumerate().map(read).collect::<Result<_, _>>()?)
        }
    };
    let ports = match &written.ports {
        None => rule::Ports::Any,
        Some(list) => {
            refuse_empty(&place, "ports", "every port", list)?;
            let read = |(index, written)| port(&place.entry("ports", index), written);
            rule::Ports::Of(list.iter().enumerate().map(read).collect::<Result<_, _>>()?)
        }
    };
    Ok(rule::Rule {
        label: written.name.clone().filter(|name| !name.is_empty()).unwrap_or(label).into(),
        direction: rule::Direction::Egress,
        action,
        peers,
        ports,
    })
}

/// An empty list could mean everything or nothing; whoever writes it shall say which.
fn refuse_empty<T>(
    place: &Place<'_>,
    field: &str,
    absent_means: &'static str,
    list: &[T],
) -> Result<(), FieldError> {
    if list.is_empty() {
        return Err(FieldError::new(place.field(field), Problem::EmptyList { absent_means }));
    }
    Ok(())
}

fn peer(
    path: &str,
    namespace: Option<&Arc<str>>,
    action: rule::Action,
    written: &EgressPeer,
) -> Result<rule::Peer, FieldError> {
    let place = Place(path);
    let has_selector = written.namespace_selector.is_some() || written.pod_selector.is_some();
    let kinds = [
        written.fqdn.is_some(),
        written.cidr.is_some(),
        has_selector,
        written.service.is_some(),
        written.entity.is_some(),
    ];
    let expected = "fqdn, cidr, namespaceSelector, podSelector, service or entity";
    match kinds.iter().filter(|&&is_set| is_set).count() {
        0 => return Err(FieldError::new(path, Problem::EmptyPeer { expected })),
        1 => {}
        _ => {
            let fields = "fqdn, cidr, selectors, service and entity";
            return Err(FieldError::new(path, Problem::Together { fields }));
        }
    }
    if !written.except.is_empty() && written.fqdn.is_none() && written.cidr.is_none() {
        let problem = Problem::Misplaced { beside: "fqdn or cidr" };
        return Err(FieldError::new(place.field("except"), problem));
    }
    if written.allow_private && written.fqdn.is_none() {
        let problem = Problem::Misplaced { beside: "fqdn" };
        return Err(FieldError::new(place.field("allowPrivate"), problem));
    }
    if let Some(text) = &written.fqdn {
        return fqdn(&place, action, text, written).map(rule::Peer::Fqdn);
    }
    if let Some(text) = &written.cidr {
        return field::cidr(path, "cidr", text, &written.except).map(rule::Peer::Cidr);
    }
    if let Some(service) = &written.service {
        let owner = match (&service.namespace, namespace) {
            (Some(written), _) => written.as_str(),
            (None, Some(own)) => own,
            (None, None) => {
                return Err(FieldError::new(place.field("service.namespace"), Problem::Missing));
            }
        };
        return Ok(rule::Peer::Service(rule::ServiceRef {
            namespace: field::object_name(place.field("service.namespace"), owner)?.into(),
            name: field::object_name(place.field("service.name"), &service.name)?.into(),
        }));
    }
    if let Some(written) = written.entity {
        return Ok(rule::Peer::Entity(entity(written)));
    }
    workloads(&place, namespace, written).map(rule::Peer::Workloads)
}

fn fqdn(
    place: &Place<'_>,
    action: rule::Action,
    text: &str,
    written: &EgressPeer,
) -> Result<rule::FqdnPeer, FieldError> {
    if action == rule::Action::Deny {
        return Err(FieldError::new(place.field("fqdn"), Problem::DenyByName));
    }
    let as_address = text.parse::<IpAddr>().map(IpNet::from).ok().or_else(|| text.parse().ok());
    if let Some(net) = as_address {
        return Err(FieldError::new(place.field("fqdn"), Problem::AddressAsName { net }));
    }
    let parse = |path: String, text: &str| {
        DomainPattern::parse(text).map_err(|error| FieldError::new(path, error))
    };
    let pattern = parse(place.field("fqdn"), text)?;
    let except = written.except.iter().enumerate();
    let except = except.map(|(index, text)| parse(place.entry("except", index), text));
    Ok(rule::FqdnPeer {
        pattern,
        except: except.collect::<Result<_, _>>()?,
        allow_private: written.allow_private,
        resolves: true,
    })
}

fn workloads(
    place: &Place<'_>,
    namespace: Option<&Arc<str>>,
    written: &EgressPeer,
) -> Result<Workloads, FieldError> {
    let namespaces = match (&written.namespace_selector, namespace) {
        (Some(written), _) => {
            rule::Namespaces::Selected(selector(&place.field("namespaceSelector"), written)?)
        }
        (None, Some(own)) => rule::Namespaces::Named(Arc::clone(own)),
        // A cluster-scoped policy has no namespace of its own to mean.
        (None, None) => {
            return Err(FieldError::new(place.field("namespaceSelector"), Problem::Missing));
        }
    };
    let pods = match &written.pod_selector {
        Some(written) => selector(&place.field("podSelector"), written)?,
        None => Selector::EVERYTHING,
    };
    Ok(Workloads { namespaces, pods, service_accounts: Vec::new() })
}

fn entity(written: Entity) -> rule::Entity {
    match written {
        Entity::World => rule::Entity::World,
        Entity::Cluster => rule::Entity::Cluster,
        Entity::Host => rule::Entity::Host,
        Entity::RemoteNode => rule::Entity::RemoteNode,
        Entity::KubeApiserver => rule::Entity::KubeApiserver,
    }
}

fn port(path: &str, written: &PortSpec) -> Result<rule::PortMatch, FieldError> {
    let protocol = match written.protocol {
        Transport::Tcp => rule::Protocol::Tcp,
        Transport::Udp => rule::Protocol::Udp,
        Transport::Sctp => rule::Protocol::Sctp,
    };
    let port = written.port.as_ref().map(|port| match port {
        PortValue::Number(number) => WrittenPort::Number(*number),
        PortValue::Name(name) => WrittenPort::Name(name),
    });
    field::port(path, protocol, port, written.end_port.map(i64::from))
}

fn selector(path: &str, written: &LabelSelector) -> Result<Selector, FieldError> {
    let expressions = written.match_expressions.iter();
    field::selector(
        path,
        &written.match_labels,
        expressions.map(|requirement| WrittenRequirement {
            key: &requirement.key,
            operator: &requirement.operator,
            values: &requirement.values,
        }),
    )
}
