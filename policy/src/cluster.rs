//! ClusterNetworkPolicy `policy.networking.k8s.io/v1alpha2` in normal form.
//!
//! What the CRD checks is checked again here: a manifest has met no API server. Where the standard
//! asks to fail closed, the rule is made stricter and the object stands (CNP-7).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use crate::dns::RefuseWith;
use crate::field::{self, Place};
use crate::kubernetes::{name_of, selector};
use crate::limits;
use crate::note::{Note, Remark};
use crate::pattern::DomainPattern;
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, Direction, DnsFilter, DnsPolicy, FqdnPeer, Isolation, Mode, Namespaces, Peer, Peers,
    Policy, PolicyKind, PolicyRef, PortMatch, PortRange, PortSet, Ports, Protocol, Rule, Tier,
    Workloads,
};
use crate::selector::Selector;

/// The group and version of the kind.
pub const API_VERSION: &str = "policy.networking.k8s.io/v1alpha2";

/// A ClusterNetworkPolicy as a manifest holds it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkPolicy {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Spec {
    tier: String,
    priority: u16,
    subject: WrittenPods,
    #[serde(default)]
    ingress: Vec<WrittenRule>,
    #[serde(default)]
    egress: Vec<WrittenRule>,
}

/// One of `namespaces` or `pods`.
#[derive(Debug, Deserialize)]
pub(crate) struct WrittenPods {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPods {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Debug, Deserialize)]
struct WrittenRule {
    name: Option<String>,
    action: String,
    from: Option<Vec<WrittenPeer>>,
    to: Option<Vec<WrittenPeer>>,
    protocols: Option<Vec<WrittenProtocol>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenProtocol {
    tcp: Option<Transport>,
    udp: Option<Transport>,
    sctp: Option<Transport>,
    destination_named_port: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    destination_port: Option<WrittenPorts>,
}

#[derive(Debug, Deserialize)]
struct WrittenPorts {
    number: Option<i64>,
    range: Option<WrittenRange>,
}

#[derive(Debug, Deserialize)]
struct WrittenRange {
    start: i64,
    end: i64,
}

/// Reads a ClusterNetworkPolicy.
pub fn cluster_network_policy(written: &ClusterNetworkPolicy) -> Result<Policy, FieldError> {
    let spec = &written.spec;
    let priority = spec.priority;
    if priority > limits::PRIORITY {
        let problem = Problem::TooLarge { value: priority.into(), max: limits::PRIORITY.into() };
        return Err(FieldError::new("spec.priority", problem));
    }
    let tier = match spec.tier.as_str() {
        "Admin" => Tier::Admin { priority },
        "Baseline" => Tier::Baseline { priority },
        other => return Err(not_one_of("spec.tier".to_owned(), other, "Admin or Baseline")),
    };
    let (mut rules, mut notes) = (Vec::new(), Vec::new());
    for (direction, list, written) in [
        (Direction::Ingress, "ingress", &spec.ingress),
        (Direction::Egress, "egress", &spec.egress),
    ] {
        check_length(format!("spec.{list}"), written)?;
        for (index, written) in written.iter().enumerate() {
            let reader = RuleReader { path: format!("spec.{list}[{index}]"), tier, direction };
            rules.extend(reader.rules(format!("{list}[{index}]"), written, &mut notes)?);
        }
    }
    Ok(Policy {
        reference: PolicyRef {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: None,
            name: name_of(&written.metadata)?,
        },
        subject: subject(&spec.subject)?,
        mode: Mode::Enforce,
        tier,
        // No implicit isolation (CNP-3).
        isolates: Isolation::default(),
        dns: names_anything(&rules).then(|| DnsPolicy {
            // Names never filter lookups (CNP-16, CH-8).
            filter: DnsFilter::Observe,
            refuse_with: RefuseWith::Refused,
            names: Vec::new(),
        }),
        rules,
        notes,
        also: Vec::new(),
    })
}

/// The pods that a policy is about (CNP-2).
pub(crate) fn subject(written: &WrittenPods) -> Result<Workloads, FieldError> {
    match (&written.namespaces, &written.pods) {
        (Some(namespaces), None) => in_namespaces("spec.subject.namespaces", namespaces),
        (None, Some(pods)) => in_pods("spec.subject.pods", pods),
        (Some(_), Some(_)) => {
            let problem = Problem::Together { fields: "namespaces and pods" };
            Err(FieldError::new("spec.subject", problem))
        }
        (None, None) => Err(FieldError::new("spec.subject", Problem::Missing)),
    }
}

struct RuleReader {
    path: String,
    tier: Tier,
    direction: Direction,
}

/// Peers by whether a named port can mean them (CNP-8).
#[derive(Default)]
struct ReadPeers {
    pods: Vec<Peer>,
    others: Vec<Peer>,
    /// Whether what is written would narrow the rule in a way that is unknown or impossible here.
    has_unknown: bool,
}

impl RuleReader {
    /// One rule as written, in as many as it takes to keep named ports off networks.
    fn rules(
        &self,
        label: String,
        written: &WrittenRule,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<Rule>, FieldError> {
        let place = Place(&self.path);
        let action = match written.action.as_str() {
            "Accept" => Action::Allow,
            "Deny" => Action::Deny,
            "Pass" => Action::Pass,
            other => return Err(not_one_of(place.field("action"), other, "Accept, Deny or Pass")),
        };
        field::rule_name(place.field("name"), written.name.as_deref())?;
        let label: Arc<str> = match &written.name {
            Some(name) if !name.is_empty() => name.as_str().into(),
            Some(_) | None => label.into(),
        };
        let peers = self.peers(action, written, notes)?;
        let (ports, has_unknown_protocol) = self.ports(action, written, notes)?;
        let rule = |action, peers, ports| Rule {
            label: Arc::clone(&label),
            direction: self.direction,
            action,
            peers,
            ports,
        };
        // A field of a later version is unknown here: what it would have narrowed is not narrowed,
        // so nothing may be let through because of it (CNP-7).
        if peers.has_unknown || has_unknown_protocol {
            match action {
                Action::Deny | Action::Pass => {
                    return Ok(vec![rule(Action::Deny, Peers::Any, Ports::Any)]);
                }
                Action::Allow => {}
            }
        }
        let is_numbered = |port: &PortMatch| matches!(port.ports, PortSet::Range(_));
        let numbered = match &ports {
            Ports::Any => Ports::Any,
            Ports::Of(list) => {
                if !peers.others.is_empty() && !list.iter().all(is_numbered) {
                    let field = place.field("protocols");
                    notes.push(Note::new(field, Remark::NamedPortMatchesPodsOnly));
                }
                Ports::Of(list.iter().filter(|port| is_numbered(port)).cloned().collect())
            }
        };
        Ok(vec![
            rule(action, Peers::Of(peers.pods), ports),
            rule(action, Peers::Of(peers.others), numbered),
        ])
    }

    fn peers(
        &self,
        action: Action,
        written: &WrittenRule,
        notes: &mut Vec<Note>,
    ) -> Result<ReadPeers, FieldError> {
        let place = Place(&self.path);
        let (field, foreign, list) = match self.direction {
            Direction::Egress => ("to", ("from", &written.from), &written.to),
            Direction::Ingress => ("from", ("to", &written.to), &written.from),
        };
        if foreign.1.is_some() {
            let suggestion = Some(field);
            return Err(FieldError::new(
                place.field(foreign.0),
                Problem::UnknownField { suggestion },
            ));
        }
        let Some(list) = list else {
            return Err(FieldError::new(place.field(field), Problem::Missing));
        };
        check_filled(place.field(field), list)?;
        let mut read = ReadPeers::default();
        for (index, written) in list.iter().enumerate() {
            let remark = self.peer(&place.entry(field, index), action, written, &mut read)?;
            notes.extend(remark);
        }
        Ok(read)
    }

    fn peer(
        &self,
        path: &str,
        action: Action,
        written: &WrittenPeer,
        read: &mut ReadPeers,
    ) -> Result<Option<Note>, FieldError> {
        let place = Place(path);
        let WrittenPeer { namespaces, pods, nodes, networks, domain_names } = written;
        let set = [
            namespaces.is_some(),
            pods.is_some(),
            nodes.is_some(),
            networks.is_some(),
            domain_names.is_some(),
        ];
        if set.iter().filter(|&&is_set| is_set).count() > 1 {
            let fields = "namespaces, pods, nodes, networks and domainNames";
            return Err(FieldError::new(path, Problem::Together { fields }));
        }
        if self.direction == Direction::Ingress
            && let Some(field) = [
                nodes.as_ref().map(|_| "nodes"),
                networks.as_ref().map(|_| "networks"),
                domain_names.as_ref().map(|_| "domainNames"),
            ]
            .into_iter()
            .flatten()
            .next()
        {
            let problem = Problem::Misplaced { beside: "egress" };
            return Err(FieldError::new(place.field(field), problem));
        }
        if let Some(namespaces) = namespaces {
            let workloads = in_namespaces(&place.field("namespaces"), namespaces)?;
            read.pods.push(Peer::Workloads(workloads));
        } else if let Some(pods) = pods {
            read.pods.push(Peer::Workloads(in_pods(&place.field("pods"), pods)?));
        } else if let Some(nodes) = nodes {
            read.others.push(Peer::Nodes(selector(&place.field("nodes"), nodes)?));
        } else if let Some(networks) = networks {
            check_filled(place.field("networks"), networks)?;
            for (index, text) in networks.iter().enumerate() {
                let entry = format!("networks[{index}]");
                read.others.push(Peer::Cidr(field::cidr(path, &entry, text, &[])?));
            }
        } else if let Some(names) = domain_names {
            let field = place.field("domainNames");
            check_filled(field.clone(), names)?;
            let mut peers = Vec::with_capacity(names.len());
            for (index, text) in names.iter().enumerate() {
                let pattern = domain_name(place.entry("domainNames", index), text)?;
                let (except, allow_private, resolves) = (Vec::new(), false, true);
                peers.push(Peer::Fqdn(FqdnPeer { pattern, except, allow_private, resolves }));
            }
            // Elsewhere the rule is refused, and the stricter side is left of it (CNP-13, CH-7).
            match (action, self.tier) {
                (Action::Allow, Tier::Admin { .. }) => read.others.append(&mut peers),
                (Action::Allow, Tier::Namespaced | Tier::Baseline { .. }) => {
                    return Ok(Some(Note::new(field, Remark::NamesMatchNothing)));
                }
                (Action::Deny | Action::Pass, _) => {
                    read.has_unknown = true;
                    return Ok(Some(Note::new(field, Remark::NamesDenyEverything)));
                }
            }
        } else {
            read.has_unknown = true;
            return Ok(Some(Note::new(path, unknown(action))));
        }
        Ok(None)
    }

    /// The ports, and whether there are entries that say nothing known.
    fn ports(
        &self,
        action: Action,
        written: &WrittenRule,
        notes: &mut Vec<Note>,
    ) -> Result<(Ports, bool), FieldError> {
        let place = Place(&self.path);
        let Some(list) = &written.protocols else { return Ok((Ports::Any, false)) };
        check_filled(place.field("protocols"), list)?;
        let mut ports = Vec::new();
        let mut has_unknown = false;
        for (index, written) in list.iter().enumerate() {
            let path = place.entry("protocols", index);
            let found = protocol(&path, written)?;
            if found.is_empty() {
                has_unknown = true;
                notes.push(Note::new(path, unknown(action)));
            }
            ports.extend(found);
        }
        Ok((Ports::Of(ports), has_unknown))
    }
}

/// What becomes of a rule of which something is unknown (CNP-7).
const fn unknown(action: Action) -> Remark {
    match action {
        Action::Allow => Remark::UnknownMatchesNothing,
        Action::Deny | Action::Pass => Remark::UnknownDeniesEverything,
    }
}

/// One entry of `protocols`; nothing where no known field is set (CNP-8).
fn protocol(path: &str, written: &WrittenProtocol) -> Result<Vec<PortMatch>, FieldError> {
    let WrittenProtocol { tcp, udp, sctp, destination_named_port: name } = written;
    let transports = [
        (Protocol::Tcp, "tcp", tcp.as_ref()),
        (Protocol::Udp, "udp", udp.as_ref()),
        (Protocol::Sctp, "sctp", sctp.as_ref()),
    ];
    let set = transports.iter().filter(|(_, _, transport)| transport.is_some()).count();
    if set + usize::from(name.is_some()) > 1 {
        let fields = "tcp, udp, sctp and destinationNamedPort";
        return Err(FieldError::new(path, Problem::Together { fields }));
    }
    let place = Place(path);
    if let Some(name) = name {
        let path = place.field("destinationNamedPort");
        return [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .map(|protocol| field::named_port(path.clone(), protocol, name))
            .collect();
    }
    let set = transports.into_iter().filter_map(|(p, field, one)| Some((p, field, one?)));
    set.map(|(protocol, field, one)| numbered(&place.field(field), protocol, one)).collect()
}

fn numbered(path: &str, protocol: Protocol, written: &Transport) -> Result<PortMatch, FieldError> {
    let path = Place(path).field("destinationPort");
    let Some(ports) = &written.destination_port else {
        return Ok(PortMatch { protocol, ports: PortSet::Range(PortRange::ALL) });
    };
    let place = Place(&path);
    let range = match (ports.number, &ports.range) {
        (Some(number), None) => {
            PortRange::single(field::port_number(place.field("number"), number)?)
        }
        (None, Some(WrittenRange { start, end })) => {
            let start = field::port_number(place.field("range.start"), *start)?;
            let end = field::port_number(place.field("range.end"), *end)?;
            // One port is no range in this API.
            PortRange::new(start, end).filter(|_| start < end).ok_or_else(|| {
                FieldError::new(place.field("range.end"), Problem::RangeEnd { start, end })
            })?
        }
        (Some(_), Some(_)) => {
            return Err(FieldError::new(path, Problem::Together { fields: "number and range" }));
        }
        (None, None) => return Err(FieldError::new(path, Problem::Missing)),
    };
    Ok(PortMatch { protocol, ports: PortSet::Range(range) })
}

fn in_namespaces(path: &str, namespaces: &LabelSelector) -> Result<Workloads, FieldError> {
    Ok(Workloads {
        namespaces: Namespaces::Selected(selector(path, namespaces)?),
        pods: Selector::EVERYTHING,
        service_accounts: Vec::new(),
    })
}

fn in_pods(path: &str, pods: &NamespacedPods) -> Result<Workloads, FieldError> {
    let place = Place(path);
    let namespaces = selector(&place.field("namespaceSelector"), &pods.namespace_selector)?;
    Ok(Workloads {
        namespaces: Namespaces::Selected(namespaces),
        pods: selector(&place.field("podSelector"), &pods.pod_selector)?,
        service_accounts: Vec::new(),
    })
}

/// CNP-14: `*.` or nothing, then at least two labels that begin and end with a letter, digit or
/// underscore.
fn domain_name(path: String, text: &str) -> Result<DomainPattern, FieldError> {
    let pattern =
        DomainPattern::parse(text).map_err(|error| FieldError::new(path.clone(), error))?;
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name);
    if !name.contains('.') {
        return Err(FieldError::new(path, Problem::DomainNameTooShort { name: text.to_owned() }));
    }
    match name.split('.').find(|label| label.starts_with('-') || label.ends_with('-')) {
        Some(label) => {
            Err(FieldError::new(path, Problem::DomainNameDash { label: label.to_owned() }))
        }
        None => Ok(pattern),
    }
}

fn names_anything(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| match &rule.peers {
        Peers::Any => false,
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Fqdn(_))),
    })
}

fn not_one_of(path: String, value: &str, expected: &'static str) -> FieldError {
    FieldError::new(path, Problem::NotOneOf { value: value.to_owned(), expected: expected.into() })
}

fn check_length<T>(path: String, list: &[T]) -> Result<(), FieldError> {
    if list.len() > limits::CLUSTER_LIST {
        let problem = Problem::TooMany { count: list.len(), max: limits::CLUSTER_LIST };
        return Err(FieldError::new(path, problem));
    }
    Ok(())
}

fn check_filled<T>(path: String, list: &[T]) -> Result<(), FieldError> {
    if list.is_empty() {
        return Err(FieldError::new(path, Problem::NoEntry));
    }
    check_length(path, list)
}
