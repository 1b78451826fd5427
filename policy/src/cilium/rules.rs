//! One rule: peers, ports, and which names may be asked for.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::icmp;
use super::written::{Layer7, NameRule as WrittenName, Port, PortRule, Rule as Written};
use crate::field::{self, Place, WrittenPort};
use crate::limits;
use crate::pattern::{DomainPattern, PatternError};
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, Direction, NameRule, Peers, PortMatch, PortRange, PortSet, Ports, Protocol, Rule,
};

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

    /// The names of `rules.dns`: they may be asked for and open nothing (CL-1). `None` where no
    /// entry has any `rules.dns`. Lookups are filtered on their way to port 53, whichever port the
    /// resolver's pods listen on.
    pub(super) fn lookups(&self, written: &Written) -> Result<Option<Vec<NameRule>>, FieldError> {
        let place = Place(&self.path);
        let mut names = None;
        for (index, rule) in written.to_ports.iter().flatten().enumerate() {
            let path = format!("{}.rules.dns", place.entry("toPorts", index));
            let Some(list) = rule.rules.as_ref().and_then(|rules| rules.dns.as_ref()) else {
                continue;
            };
            if self.direction == Direction::Ingress || self.action == Action::Deny {
                return Err(FieldError::new(path, Problem::Misplaced { beside: "egress" }));
            }
            let names = names.get_or_insert_with(Vec::new);
            for (index, written) in list.iter().enumerate() {
                let pattern = pattern(&format!("{path}[{index}]"), written)?;
                names.push(NameRule { label: Arc::clone(&self.label), pattern });
            }
        }
        Ok(names)
    }

    fn refuse_unsupported(&self, written: &Written) -> Result<(), FieldError> {
        const REQUIRE: (&str, &str) =
            ("a requirement on the peers of other rules", "write its labels into each of them");
        const GROUP: (&str, &str) =
            ("a group of a cloud provider", "list its prefixes in a CiliumCIDRGroup");
        const NODES: (&str, &str) = (
            "a peer by labels of nodes",
            "write the entity remote-node, or a ClusterNetworkPolicy with nodes",
        );
        const AUTHENTICATION: (&str, &str) =
            ("authentication", "remove the field; peers are known by their addresses alone");
        let place = Place(&self.path);
        for (field, is_set, (feature, instead)) in [
            ("toRequires", written.to_requires.is_some(), REQUIRE),
            ("fromRequires", written.from_requires.is_some(), REQUIRE),
            ("toGroups", written.to_groups.is_some(), GROUP),
            ("fromGroups", written.from_groups.is_some(), GROUP),
            ("toNodes", written.to_nodes.is_some(), NODES),
            ("fromNodes", written.from_nodes.is_some(), NODES),
            ("authentication", written.authentication.is_some(), AUTHENTICATION),
        ] {
            if is_set {
                let problem = Problem::Unsupported { feature, instead };
                return Err(FieldError::new(place.field(field), problem));
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

    fn ports(&self, written: &Written) -> Result<Option<Ports>, FieldError> {
        let place = Place(&self.path);
        let Some(list) = &written.to_ports else {
            let Some(icmps) = &written.icmps else { return Ok(None) };
            let mut types = Vec::new();
            for (index, rule) in icmps.iter().enumerate() {
                let path = format!("{}.fields", place.entry("icmps", index));
                check_count(&path, rule.fields.len())?;
                for (index, written) in rule.fields.iter().enumerate() {
                    types.push(icmp::message(&format!("{path}[{index}]"), written)?);
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
            ports.extend(self.port_rule(&place.entry("toPorts", index), rule)?);
        }
        Ok(Some(Ports::Of(ports)))
    }

    /// One entry of `toPorts`; an empty list of ports matches nothing (CL-3).
    fn port_rule(&self, path: &str, rule: &PortRule) -> Result<Vec<PortMatch>, FieldError> {
        refuse_layer_7(path, rule)?;
        let path = Place(path).field("ports");
        let Some(written) = &rule.ports else {
            return Err(FieldError::new(path, Problem::Missing));
        };
        check_count(&path, written.len())?;
        let mut ports = Vec::with_capacity(written.len());
        for (index, written) in written.iter().enumerate() {
            ports.extend(port(&format!("{path}[{index}]"), written)?);
        }
        Ok(ports)
    }
}

fn check_count(path: &str, count: usize) -> Result<(), FieldError> {
    let max = limits::CILIUM_PORTS;
    if count > max {
        return Err(FieldError::new(path, Problem::TooMany { count, max }));
    }
    Ok(())
}

fn refuse_layer_7(path: &str, rule: &PortRule) -> Result<(), FieldError> {
    const CALLS: &str = "remove it to match by peers and ports alone, or leave it to a proxy";
    const NAMES: &str = "match the names with toFQDNs";
    const PROXY: &str = "remove it; traffic goes to its destination and to no proxy";
    let place = Place(path);
    let none = Layer7 { dns: None, http: None, kafka: None, l7: None, l7proto: None };
    let rules = rule.rules.as_ref().unwrap_or(&none);
    let set = [
        ("rules.http", rules.http.is_some(), CALLS),
        ("rules.kafka", rules.kafka.is_some(), CALLS),
        ("rules.l7", rules.l7.is_some(), CALLS),
        ("rules.l7proto", rules.l7proto.is_some(), CALLS),
        ("terminatingTLS", rule.terminating_tls.is_some(), PROXY),
        ("originatingTLS", rule.originating_tls.is_some(), PROXY),
        ("serverNames", rule.server_names.is_some(), NAMES),
        ("listener", rule.listener.is_some(), PROXY),
    ];
    match set.iter().find(|(_, is_set, _)| *is_set) {
        Some((field, _, instead)) => {
            let problem = Problem::Unsupported { feature: "layer 7", instead };
            Err(FieldError::new(place.field(field), problem))
        }
        None => Ok(()),
    }
}

/// Names in this dialect's own pattern language.
pub(super) fn pattern(path: &str, written: &WrittenName) -> Result<DomainPattern, FieldError> {
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
    let place = Place(path);
    let protocols: &[Protocol] = match written.protocol.as_deref() {
        None | Some("ANY" | "") => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        Some("TCP") => &[Protocol::Tcp],
        Some("UDP") => &[Protocol::Udp],
        Some("SCTP") => &[Protocol::Sctp],
        Some("VRRP" | "IGMP") => {
            let feature = "an IP protocol without ports";
            let instead = "leave toPorts out; such protocols pass where every port may";
            let problem = Problem::Unsupported { feature, instead };
            return Err(FieldError::new(place.field("protocol"), problem));
        }
        Some(other) => {
            let expected = "TCP, UDP, SCTP or ANY";
            let problem = Problem::NotOneOf { value: other.to_owned(), expected: expected.into() };
            return Err(FieldError::new(place.field("protocol"), problem));
        }
    };
    let port = match &written.port {
        None => return Err(FieldError::new(place.field("port"), Problem::Missing)),
        Some(IntOrString::Int(number)) => WrittenPort::Number(i64::from(*number)),
        Some(IntOrString::String(text)) => match text.parse() {
            Ok(number) => WrittenPort::Number(number),
            Err(_) => WrittenPort::Name(text),
        },
    };
    let end = written.end_port.filter(|end| *end != 0);
    let read = |protocol: &Protocol| match port {
        // Zero is every port.
        WrittenPort::Number(0) => {
            Ok(PortMatch { protocol: *protocol, ports: PortSet::Range(PortRange::ALL) })
        }
        WrittenPort::Number(_) | WrittenPort::Name(_) => {
            field::port(path, *protocol, Some(port), end)
        }
    };
    protocols.iter().map(read).collect()
}
