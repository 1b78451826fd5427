//! ClusterNetworkPolicy `policy.networking.k8s.io/v1alpha2` in normal form.
//!
//! What the CRD checks is checked again here: a manifest has met no API server. Where the standard
//! asks to fail closed, the rule is made stricter and the object stands (CNP-7).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use crate::dns::RefuseWith;
use crate::field::{self, Place, WrittenPort};
use crate::kubernetes::{name_of, selector};
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

/// The most rules of a direction, peers and protocols of a rule, networks and names of a peer.
const LIST_MAX: usize = 25;
/// The longest name of a rule.
const RULE_NAME_MAX: usize = 100;
/// The largest priority.
const PRIORITY_MAX: u16 = 1000;

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
struct WrittenPods {
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
    if priority > PRIORITY_MAX {
        let problem = Problem::TooLarge { value: priority.into(), max: PRIORITY_MAX.into() };
        return Err(FieldError::new("spec.priority", problem));
    }
    let tier = match spec.tier.as_str() {
        "Admin" => Tier::Admin { priority },
        "Baseline" => Tier::Baseline { priority },
        other => return Err(not_one_of("spec.tier".to_owned(), other, "Admin or Baseline")),
    };
    let mut rules = Vec::new();
    for (direction, list, written) in [
        (Direction::Ingress, "ingress", &spec.ingress),
        (Direction::Egress, "egress", &spec.egress),
    ] {
        check_length(format!("spec.{list}"), written)?;
        for (index, written) in written.iter().enumerate() {
            let reader = RuleReader { path: format!("spec.{list}[{index}]"), tier, direction };
            rules.extend(reader.rules(format!("{list}[{index}]"), written)?);
        }
    }
    let WrittenPods { namespaces, pods } = &spec.subject;
    let subject = match (namespaces, pods) {
        (Some(namespaces), None) => in_namespaces("spec.subject.namespaces", namespaces)?,
        (None, Some(pods)) => in_pods("spec.subject.pods", pods)?,
        (Some(_), Some(_)) => {
            let problem = Problem::Together { fields: "namespaces and pods" };
            return Err(FieldError::new("spec.subject", problem));
        }
        (None, None) => return Err(FieldError::new("spec.subject", Problem::Missing)),
    };
    Ok(Policy {
        reference: PolicyRef {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: None,
            name: name_of(&written.metadata)?,
        },
        subject,
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
        notes: Vec::new(),
        also: Vec::new(),
    })
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
    has_unknown: bool,
}

impl RuleReader {
    /// One rule as written, in as many as it takes to keep named ports off networks.
    fn rules(&self, label: String, written: &WrittenRule) -> Result<Vec<Rule>, FieldError> {
        let place = Place(&self.path);
        let action = match written.action.as_str() {
            "Accept" => Action::Allow,
            "Deny" => Action::Deny,
            "Pass" => Action::Pass,
            other => return Err(not_one_of(place.field("action"), other, "Accept, Deny or Pass")),
        };
        let label: Arc<str> = match &written.name {
            Some(name) if name.len() > RULE_NAME_MAX => {
                let (value, max) = (name.len() as u64, RULE_NAME_MAX as u64);
                return Err(FieldError::new(place.field("name"), Problem::TooLarge { value, max }));
            }
            Some(name) if !name.is_empty() => name.as_str().into(),
            Some(_) | None => label.into(),
        };
        let peers = self.peers(action, written)?;
        let (ports, has_unknown_protocol) = self.ports(written)?;
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
        let numbered = match &ports {
            Ports::Any => Ports::Any,
            Ports::Of(list) => {
                let is_numbered = |port: &&PortMatch| matches!(port.ports, PortSet::Range(_));
                Ports::Of(list.iter().filter(is_numbered).cloned().collect())
            }
        };
        Ok(vec![
            rule(action, Peers::Of(peers.pods), ports),
            rule(action, Peers::Of(peers.others), numbered),
        ])
    }

    fn peers(&self, action: Action, written: &WrittenRule) -> Result<ReadPeers, FieldError> {
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
            self.peer(&place.entry(field, index), action, written, &mut read)?;
        }
        Ok(read)
    }

    fn peer(
        &self,
        path: &str,
        action: Action,
        written: &WrittenPeer,
        read: &mut ReadPeers,
    ) -> Result<(), FieldError> {
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
            if action != Action::Allow || !matches!(self.tier, Tier::Admin { .. }) {
                return Err(FieldError::new(field, Problem::DomainNamesOutsideAccept));
            }
            check_filled(field, names)?;
            for (index, text) in names.iter().enumerate() {
                let pattern = domain_name(place.entry("domainNames", index), text)?;
                read.others.push(Peer::Fqdn(FqdnPeer {
                    pattern,
                    except: Vec::new(),
                    allow_private: false,
                    resolves: true,
                }));
            }
        } else {
            read.has_unknown = true;
        }
        Ok(())
    }

    /// The ports, and whether there are entries that say nothing known.
    fn ports(&self, written: &WrittenRule) -> Result<(Ports, bool), FieldError> {
        let place = Place(&self.path);
        let Some(list) = &written.protocols else { return Ok((Ports::Any, false)) };
        check_filled(place.field("protocols"), list)?;
        let mut ports = Vec::new();
        let mut has_unknown = false;
        for (index, written) in list.iter().enumerate() {
            let path = place.entry("protocols", index);
            let before = ports.len();
            for (protocol, field, transport) in [
                (Protocol::Tcp, "tcp", &written.tcp),
                (Protocol::Udp, "udp", &written.udp),
                (Protocol::Sctp, "sctp", &written.sctp),
            ] {
                if let Some(transport) = transport {
                    ports.push(numbered(&Place(&path).field(field), protocol, transport)?);
                }
            }
            if let Some(name) = &written.destination_named_port {
                if ports.len() == before {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        let name = Some(WrittenPort::Name(name));
                        ports.push(field::port(&path, protocol, name, None)?);
                    }
                } else {
                    let fields = "tcp, udp, sctp and destinationNamedPort";
                    return Err(FieldError::new(path, Problem::Together { fields }));
                }
            }
            has_unknown |= ports.len() == before;
        }
        Ok((Ports::Of(ports), has_unknown))
    }
}

fn numbered(path: &str, protocol: Protocol, written: &Transport) -> Result<PortMatch, FieldError> {
    let path = Place(path).field("destinationPort");
    let Some(ports) = &written.destination_port else {
        return Ok(PortMatch { protocol, ports: PortSet::Range(PortRange::ALL) });
    };
    match (ports.number, &ports.range) {
        (Some(number), None) => {
            field::port(&path, protocol, Some(WrittenPort::Number(number)), None)
        }
        (None, Some(WrittenRange { start, end })) => {
            field::port(&path, protocol, Some(WrittenPort::Number(*start)), Some(*end))
        }
        (Some(_), Some(_)) => {
            Err(FieldError::new(path, Problem::Together { fields: "number and range" }))
        }
        (None, None) => Err(FieldError::new(path, Problem::Missing)),
    }
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

/// CNP-14: `*.` or nothing, then at least two labels.
fn domain_name(path: String, text: &str) -> Result<DomainPattern, FieldError> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_deep = name.strip_suffix('.').unwrap_or(name).contains('.');
    let pattern =
        DomainPattern::parse(text).map_err(|error| FieldError::new(path.clone(), error))?;
    if is_deep {
        Ok(pattern)
    } else {
        Err(FieldError::new(path, Problem::DomainNameTooShort { name: text.to_owned() }))
    }
}

fn names_anything(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| match &rule.peers {
        Peers::Any => false,
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Fqdn(_))),
    })
}

fn not_one_of(path: String, value: &str, expected: &'static str) -> FieldError {
    FieldError::new(path, Problem::NotOneOf { value: value.to_owned(), expected })
}

fn check_length<T>(path: String, list: &[T]) -> Result<(), FieldError> {
    if list.len() > LIST_MAX {
        let problem = Problem::TooMany { count: list.len(), max: LIST_MAX };
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
