//! One rule: peers, ports, and which names may be asked for.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selectors;
use super::written::{IcmpField, Layer7, NameRule as WrittenName, Port, PortRule, Rule as Written};
use crate::field::{self, Place, WrittenPort};
use crate::pattern::{DomainPattern, PatternError};
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, CidrPeer, CidrReach, Direction, Entity, FqdnPeer, NameRule, Peer, Peers, PortMatch,
    PortRange, PortSet, Ports, Protocol, Rule, ServiceRef,
};

/// The most ports of a rule (CL-4).
const PORTS_MAX: usize = 40;

/// Reads the rules of one list.
pub(super) struct RuleReader<'a> {
    /// Where the rule stands in the document.
    pub(super) path: String,
    /// What the rule is called in logs.
    pub(super) label: Arc<str>,
    pub(super) direction: Direction,
    pub(super) action: Action,
    pub(super) namespace: Option<&'a Arc<str>>,
}

impl RuleReader<'_> {
    /// The rule in normal form; `None` for one that says nothing, and so allows nothing.
    pub(super) fn rule(&self, written: &Written) -> Result<Option<Rule>, FieldError> {
        self.refuse_unsupported(written)?;
        let peers = self.peers(written)?;
        let ports = self.ports(written)?;
        let (peers, ports) = match (peers, ports) {
            (None, None) => return Ok(None),
            // What is absent does not restrict (CL-3, CL-4).
            (peers, ports) => (peers.unwrap_or(Peers::Any), ports.unwrap_or(Ports::Any)),
        };
        let (label, direction, action) = (Arc::clone(&self.label), self.direction, self.action);
        Ok(Some(Rule { label, direction, action, peers, ports }))
    }

    /// The names of `rules.dns`: they may be asked for and open nothing (CL-1).
    pub(super) fn lookups(&self, written: &Written) -> Result<Vec<NameRule>, FieldError> {
        let place = Place(&self.path);
        let mut names = Vec::new();
        for (index, rule) in written.to_ports.iter().flatten().enumerate() {
            let path = format!("{}.rules.dns", place.entry("toPorts", index));
            for (index, written) in
                rule.rules.iter().flat_map(|rules| rules.dns.iter().flatten()).enumerate()
            {
                let pattern = pattern(&format!("{path}[{index}]"), written)?;
                names.push(NameRule { label: Arc::clone(&self.label), pattern });
            }
        }
        Ok(names)
    }

    fn refuse_unsupported(&self, written: &Written) -> Result<(), FieldError> {
        let place = Place(&self.path);
        let unsupported = |field: &str| {
            let problem = Problem::Unsupported { feature: "this field" };
            Err(FieldError::new(place.field(field), problem))
        };
        for (field, is_set) in [
            ("toRequires", written.to_requires.is_some()),
            ("fromRequires", written.from_requires.is_some()),
            ("toGroups", written.to_groups.is_some()),
            ("fromGroups", written.from_groups.is_some()),
            ("toNodes", written.to_nodes.is_some()),
            ("fromNodes", written.from_nodes.is_some()),
            ("authentication", written.authentication.is_some()),
        ] {
            if is_set {
                return unsupported(field);
            }
        }
        let foreign: &[(&str, bool)] = match self.direction {
            Direction::Egress => &[
                ("fromEndpoints", written.from_endpoints.is_some()),
                ("fromCIDR", written.from_cidr.is_some()),
                ("fromCIDRSet", written.from_cidr_set.is_some()),
                ("fromEntities", written.from_entities.is_some()),
            ],
            Direction::Ingress => &[
                ("toEndpoints", written.to_endpoints.is_some()),
                ("toCIDR", written.to_cidr.is_some()),
                ("toCIDRSet", written.to_cidr_set.is_some()),
                ("toEntities", written.to_entities.is_some()),
                ("toServices", written.to_services.is_some()),
                ("toFQDNs", written.to_fqdns.is_some()),
            ],
        };
        match foreign.iter().find(|(_, is_set)| *is_set) {
            Some((field, _)) => {
                let beside = "rules of the other direction";
                Err(FieldError::new(place.field(field), Problem::Misplaced { beside }))
            }
            None => Ok(()),
        }
    }

    fn peers(&self, written: &Written) -> Result<Option<Peers>, FieldError> {
        let place = Place(&self.path);
        let (side, endpoints, cidrs, sets, entities) = match self.direction {
            Direction::Egress => (
                "to",
                &written.to_endpoints,
                &written.to_cidr,
                &written.to_cidr_set,
                &written.to_entities,
            ),
            Direction::Ingress => (
                "from",
                &written.from_endpoints,
                &written.from_cidr,
                &written.from_cidr_set,
                &written.from_entities,
            ),
        };
        let mut kinds: Vec<Vec<Peer>> = Vec::new();
        if let Some(endpoints) = endpoints {
            let list = format!("{side}Endpoints");
            let read =
                |(index, one)| selectors::peer(&place.entry(&list, index), self.namespace, one);
            kinds.push(endpoints.iter().enumerate().map(read).collect::<Result<_, _>>()?);
        }
        // Both name prefixes and may stand together.
        if cidrs.is_some() || sets.is_some() {
            let mut peers = Vec::new();
            for (index, text) in cidrs.iter().flatten().enumerate() {
                let entry = format!("{side}CIDR[{index}]");
                peers.push(cidr(&self.path, &entry, text, &[])?);
            }
            for (index, set) in sets.iter().flatten().enumerate() {
                let path = place.entry(&format!("{side}CIDRSet"), index);
                if set.cidr_group_ref.is_some() || set.cidr_group_selector.is_some() {
                    let problem = Problem::Unsupported { feature: "a CIDR group" };
                    return Err(FieldError::new(path, problem));
                }
                let Some(text) = &set.cidr else {
                    return Err(FieldError::new(Place(&path).field("cidr"), Problem::Missing));
                };
                peers.push(cidr(&path, "cidr", text, &set.except)?);
            }
            kinds.push(peers);
        }
        if let Some(entities) = entities {
            let list = format!("{side}Entities");
            let mut peers = Vec::new();
            for (index, text) in entities.iter().enumerate() {
                peers.extend(entity(place.entry(&list, index), text)?.iter().copied());
            }
            kinds.push(peers.into_iter().map(Peer::Entity).collect());
        }
        if let Some(services) = &written.to_services {
            let mut peers = Vec::new();
            for (index, service) in services.iter().enumerate() {
                let path = place.entry("toServices", index);
                peers.push(self.service(&path, service)?);
            }
            kinds.push(peers);
        }
        if let Some(names) = &written.to_fqdns {
            if self.action == Action::Deny {
                return Err(FieldError::new(place.field("toFQDNs"), Problem::DenyByName));
            }
            let read = |(index, one)| {
                Ok(Peer::Fqdn(FqdnPeer {
                    pattern: pattern(&place.entry("toFQDNs", index), one)?,
                    except: Vec::new(),
                    allow_private: false,
                    resolves: true,
                }))
            };
            kinds.push(names.iter().enumerate().map(read).collect::<Result<_, _>>()?);
        }
        if kinds.len() > 1 {
            let fields = "endpoints, CIDRs, entities, services and FQDNs";
            return Err(FieldError::new(self.path.as_str(), Problem::Together { fields }));
        }
        Ok(kinds.pop().map(Peers::Of))
    }

    fn service(
        &self,
        path: &str,
        written: &super::written::ServiceRule,
    ) -> Result<Peer, FieldError> {
        let place = Place(path);
        if written.k8s_service_selector.is_some() {
            let problem = Problem::Unsupported { feature: "a selector of services" };
            return Err(FieldError::new(place.field("k8sServiceSelector"), problem));
        }
        let Some(service) = &written.k8s_service else {
            return Err(FieldError::new(place.field("k8sService"), Problem::Missing));
        };
        let namespace = match (service.namespace.as_deref(), self.namespace) {
            (Some(written), _) => Arc::from(written),
            (None, Some(own)) => Arc::clone(own),
            (None, None) => {
                return Err(FieldError::new(place.field("k8sService.namespace"), Problem::Missing));
            }
        };
        Ok(Peer::Service(ServiceRef { namespace, name: service.service_name.as_str().into() }))
    }

    fn ports(&self, written: &Written) -> Result<Option<Ports>, FieldError> {
        let place = Place(&self.path);
        let Some(list) = &written.to_ports else {
            let Some(icmps) = &written.icmps else { return Ok(None) };
            let mut types = Vec::new();
            for (index, rule) in icmps.iter().enumerate() {
                for (field, written) in rule.fields.iter().enumerate() {
                    let path = format!("{}.fields[{field}]", place.entry("icmps", index));
                    types.push(icmp(&path, written)?);
                }
            }
            return Ok(Some(Ports::Of(types)));
        };
        if written.icmps.is_some() {
            let problem = Problem::Together { fields: "toPorts and icmps" };
            return Err(FieldError::new(place.field("icmps"), problem));
        }
        let mut ports = Vec::new();
        for (index, rule) in list.iter().enumerate() {
            let path = place.entry("toPorts", index);
            refuse_layer_7(&path, rule)?;
            let Some(written) = rule.ports.as_ref().filter(|ports| !ports.is_empty()) else {
                return Err(FieldError::new(Place(&path).field("ports"), Problem::NoEntry));
            };
            if written.len() > PORTS_MAX {
                let problem = Problem::TooMany { count: written.len(), max: PORTS_MAX };
                return Err(FieldError::new(Place(&path).field("ports"), problem));
            }
            for (index, written) in written.iter().enumerate() {
                ports.extend(port(&Place(&path).entry("ports", index), written)?);
            }
        }
        Ok(Some(Ports::Of(ports)))
    }
}

fn refuse_layer_7(path: &str, rule: &PortRule) -> Result<(), FieldError> {
    let place = Place(path);
    let none = Layer7 { dns: None, http: None, kafka: None, l7: None, l7proto: None };
    let rules = rule.rules.as_ref().unwrap_or(&none);
    let set = [
        ("rules.http", rules.http.is_some()),
        ("rules.kafka", rules.kafka.is_some()),
        ("rules.l7", rules.l7.is_some()),
        ("rules.l7proto", rules.l7proto.is_some()),
        ("terminatingTLS", rule.terminating_tls.is_some()),
        ("originatingTLS", rule.originating_tls.is_some()),
        ("serverNames", rule.server_names.is_some()),
        ("listener", rule.listener.is_some()),
    ];
    match set.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => {
            let problem = Problem::Unsupported { feature: "layer 7" };
            Err(FieldError::new(place.field(field), problem))
        }
        None => Ok(()),
    }
}

/// CL-9.
fn cidr(path: &str, entry: &str, text: &str, except: &[String]) -> Result<Peer, FieldError> {
    // An address alone is a prefix of its whole length.
    let alone = text.parse::<std::net::IpAddr>();
    let net = alone.map_or_else(|_| text.to_owned(), |ip| ipnet::IpNet::from(ip).to_string());
    let peer = field::cidr(path, entry, &net, except)?;
    Ok(Peer::Cidr(CidrPeer { reach: CidrReach::World, ..peer }))
}

/// CL-8.
fn entity(path: String, text: &str) -> Result<&'static [Entity], FieldError> {
    Ok(match text {
        "all" => &[Entity::World, Entity::Cluster],
        "world" => &[Entity::World],
        "world-ipv4" => &[Entity::WorldIpv4],
        "world-ipv6" => &[Entity::WorldIpv6],
        "cluster" => &[Entity::Cluster],
        "host" => &[Entity::Host],
        "remote-node" => &[Entity::RemoteNode],
        "kube-apiserver" => &[Entity::KubeApiserver],
        "unmanaged" => &[Entity::Unmanaged],
        // Nothing is in these two: an endpoint is known with its labels or not at all.
        "init" | "none" => &[],
        other => {
            let expected = "all, world, world-ipv4, world-ipv6, cluster, host, remote-node, \
                            kube-apiserver, init, unmanaged or none";
            let problem = Problem::NotOneOf { value: other.to_owned(), expected };
            return Err(FieldError::new(path, problem));
        }
    })
}

fn pattern(path: &str, written: &WrittenName) -> Result<DomainPattern, FieldError> {
    let place = Place(path);
    let (field, parsed) = match (&written.match_name, &written.match_pattern) {
        (Some(name), None) if name.contains('*') => {
            let error = PatternError::Star { label: name.clone() };
            ("matchName", Err(error))
        }
        (Some(name), None) => ("matchName", DomainPattern::parse(name)),
        (None, Some(pattern)) => ("matchPattern", DomainPattern::parse_cilium(pattern)),
        (Some(_), Some(_)) => {
            let problem = Problem::Together { fields: "matchName and matchPattern" };
            return Err(FieldError::new(path, problem));
        }
        (None, None) => return Err(FieldError::new(place.field("matchName"), Problem::Missing)),
    };
    parsed.map_err(|error| FieldError::new(place.field(field), error))
}

fn port(path: &str, written: &Port) -> Result<Vec<PortMatch>, FieldError> {
    let protocols: &[Protocol] = match written.protocol.as_deref() {
        None | Some("ANY" | "") => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        Some("TCP") => &[Protocol::Tcp],
        Some("UDP") => &[Protocol::Udp],
        Some("SCTP") => &[Protocol::Sctp],
        Some(other) => {
            let expected = "TCP, UDP, SCTP or ANY";
            let problem = Problem::NotOneOf { value: other.to_owned(), expected };
            return Err(FieldError::new(Place(path).field("protocol"), problem));
        }
    };
    let number = match &written.port {
        IntOrString::Int(number) => Some(i64::from(*number)),
        IntOrString::String(text) => text.parse().ok(),
    };
    let name = match &written.port {
        IntOrString::Int(_) => "",
        IntOrString::String(text) => text.as_str(),
    };
    let end = written.end_port.filter(|end| *end != 0);
    let read = |protocol: &Protocol| match number {
        // Zero is every port.
        Some(0) => Ok(PortMatch { protocol: *protocol, ports: PortSet::Range(PortRange::ALL) }),
        Some(number) => field::port(path, *protocol, Some(WrittenPort::Number(number)), end),
        None => field::port(path, *protocol, Some(WrittenPort::Name(name)), end),
    };
    protocols.iter().map(read).collect()
}

fn icmp(path: &str, written: &IcmpField) -> Result<PortMatch, FieldError> {
    let place = Place(path);
    let protocol = match written.family.as_deref() {
        None | Some("IPv4") => Protocol::Icmp,
        Some("IPv6") => Protocol::Icmpv6,
        Some(other) => {
            let problem = Problem::NotOneOf { value: other.to_owned(), expected: "IPv4 or IPv6" };
            return Err(FieldError::new(place.field("family"), problem));
        }
    };
    let number = match &written.kind {
        IntOrString::Int(number) => u8::try_from(*number).ok(),
        IntOrString::String(text) => match (text.as_str(), protocol) {
            ("EchoReply", Protocol::Icmpv6) => Some(129),
            ("EchoReply", _) => Some(0),
            ("EchoRequest", Protocol::Icmpv6) => Some(128),
            ("EchoRequest", _) => Some(8),
            (other, _) => other.parse().ok(),
        },
    };
    let Some(number) = number else {
        let problem = Problem::Unsupported { feature: "a message type by this name" };
        return Err(FieldError::new(place.field("type"), problem));
    };
    let ports = PortSet::Range(PortRange::single(u16::from(number)));
    Ok(PortMatch { protocol, ports })
}
