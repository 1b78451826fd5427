//! Field values that several dialects share: selectors, prefixes, ports, names of objects.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::limits;
use crate::problem::{FieldError, Problem};
use crate::rule::{CidrPeer, CidrReach, PortMatch, PortRange, PortSet, Protocol};
use crate::selector::{Condition, Requirement, Selector};

/// The place of a field in a document.
pub(crate) struct Place<'a>(pub(crate) &'a str);

impl Place<'_> {
    /// The path of the field `name` below.
    pub(crate) fn field(&self, name: &str) -> String {
        if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) }
    }

    /// The path of entry `index` of the list `name` below.
    pub(crate) fn entry(&self, name: &str, index: usize) -> String {
        format!("{}[{index}]", self.field(name))
    }
}

/// One condition of a label selector, as written.
pub(crate) struct WrittenRequirement<'a> {
    pub(crate) key: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) values: &'a [String],
}

/// Reads a label selector (NP-10).
pub(crate) fn selector<'a>(
    path: &str,
    match_labels: &BTreeMap<String, String>,
    match_expressions: impl Iterator<Item = WrittenRequirement<'a>>,
) -> Result<Selector, FieldError> {
    let place = Place(path);
    let mut requirements = Vec::new();
    for (key, value) in match_labels {
        let path = format!("{}.{key}", place.field("matchLabels"));
        if !is_label_key(key) {
            return Err(FieldError::new(path, Problem::LabelKey { key: key.clone() }));
        }
        if !is_label_value(value) {
            return Err(FieldError::new(path, Problem::LabelValue { value: value.clone() }));
        }
        requirements.push(Requirement::equals(key, value));
    }
    for (index, written) in match_expressions.enumerate() {
        requirements.push(requirement(&place.entry("matchExpressions", index), &written)?);
    }
    Ok(requirements.into_iter().collect())
}

/// Reads one condition of a label selector.
pub(crate) fn requirement(
    path: &str,
    written: &WrittenRequirement<'_>,
) -> Result<Requirement, FieldError> {
    let place = Place(path);
    if !is_label_key(written.key) {
        let problem = Problem::LabelKey { key: written.key.to_owned() };
        return Err(FieldError::new(place.field("key"), problem));
    }
    if let Some(value) = written.values.iter().find(|value| !is_label_value(value)) {
        let problem = Problem::LabelValue { value: value.clone() };
        return Err(FieldError::new(place.field("values"), problem));
    }
    let values = || written.values.iter().map(|value| value.as_str().into()).collect();
    let (condition, wants_values) = match written.operator {
        "In" => (Condition::In(values()), true),
        "NotIn" => (Condition::NotIn(values()), true),
        "Exists" => (Condition::Exists, false),
        "DoesNotExist" => (Condition::DoesNotExist, false),
        other => {
            let expected = "In, NotIn, Exists or DoesNotExist".into();
            let problem = Problem::NotOneOf { value: other.to_owned(), expected };
            return Err(FieldError::new(place.field("operator"), problem));
        }
    };
    if written.values.is_empty() == wants_values {
        let operator = written.operator.to_owned();
        let problem = Problem::SelectorValues { operator, wants_values };
        return Err(FieldError::new(place.field("values"), problem));
    }
    Ok(Requirement { key: written.key.into(), condition })
}

/// Reads a prefix and what is cut out of it (NP-12, NP-14).
pub(crate) fn cidr(
    path: &str,
    field: &str,
    text: &str,
    except: &[String],
) -> Result<CidrPeer, FieldError> {
    let place = Place(path);
    let net = prefix(place.field(field), text)?;
    let mut cut_out = Vec::with_capacity(except.len());
    for (index, text) in except.iter().enumerate() {
        let path = place.entry("except", index);
        let except = prefix(path.clone(), text)?;
        if !net.contains(&except) || net == except {
            return Err(FieldError::new(path, Problem::ExceptOutside { except, net }));
        }
        cut_out.push(except);
    }
    Ok(CidrPeer { net, except: cut_out, reach: CidrReach::All })
}

/// Reads a prefix; bits past its length count for nothing.
pub(crate) fn prefix(path: String, text: &str) -> Result<IpNet, FieldError> {
    match text.parse::<IpNet>() {
        Ok(net) => Ok(net.trunc()),
        Err(_) => Err(FieldError::new(path, Problem::NotACidr { text: text.to_owned() })),
    }
}

/// A port as written.
#[derive(Clone, Copy)]
pub(crate) enum WrittenPort<'a> {
    Number(i64),
    Name(&'a str),
}

/// Reads one entry of `ports` (NP-15, NP-16, NP-17).
pub(crate) fn port(
    path: &str,
    protocol: Protocol,
    port: Option<WrittenPort<'_>>,
    end_port: Option<i64>,
) -> Result<PortMatch, FieldError> {
    let place = Place(path);
    let alone = || FieldError::new(place.field("endPort"), Problem::EndPortAlone);
    let ports = match (port, end_port) {
        (None, None) => PortSet::Range(PortRange::ALL),
        (Some(WrittenPort::Name(name)), None) => {
            return named_port(place.field("port"), protocol, name);
        }
        (None | Some(WrittenPort::Name(_)), Some(_)) => return Err(alone()),
        (Some(WrittenPort::Number(start)), end) => {
            let start = port_number(place.field("port"), start)?;
            let end_path = place.field("endPort");
            let end = end.map_or(Ok(start), |end| port_number(end_path.clone(), end))?;
            let range = PortRange::new(start, end).ok_or_else(|| {
                FieldError::new(end_path, Problem::EndPortBelow { start, end: end.into() })
            })?;
            PortSet::Range(range)
        }
    };
    Ok(PortMatch { protocol, ports })
}

/// Reads a port by name (NP-17).
pub(crate) fn named_port(
    path: String,
    protocol: Protocol,
    name: &str,
) -> Result<PortMatch, FieldError> {
    if is_port_name(name) {
        Ok(PortMatch { protocol, ports: PortSet::Named(name.into()) })
    } else {
        Err(FieldError::new(path, Problem::NotAPortName { name: name.to_owned() }))
    }
}

/// Reads a port by number.
pub(crate) fn port_number(path: String, port: i64) -> Result<u16, FieldError> {
    match u16::try_from(port) {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => Err(FieldError::new(path, Problem::NotAPort { port })),
    }
}

/// Reads the name of an object.
pub(crate) fn object_name(path: String, text: &str) -> Result<&str, FieldError> {
    let is_plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    let is_name = text.len() <= 253
        && text.bytes().all(|octet| is_plain(octet) || b"-.".contains(&octet))
        && text.bytes().next().is_some_and(is_plain)
        && text.bytes().next_back().is_some_and(is_plain);
    if is_name {
        Ok(text)
    } else {
        Err(FieldError::new(path, Problem::NotAnObjectName { text: text.to_owned() }))
    }
}

/// Checks the name of a rule.
pub(crate) fn rule_name(path: String, written: Option<&str>) -> Result<(), FieldError> {
    let length = written.unwrap_or_default().chars().count();
    let max = limits::RULE_NAME_CHARACTERS;
    if length > max {
        return Err(FieldError::new(path, Problem::TooLong { length, max }));
    }
    Ok(())
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified(text)
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_qualified(text),
        Some((prefix, name)) => is_qualified(name) && object_name(String::new(), prefix).is_ok(),
    }
}

fn is_qualified(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet))
        && text.bytes().next().is_some_and(|octet| octet.is_ascii_alphanumeric())
        && text.bytes().next_back().is_some_and(|octet| octet.is_ascii_alphanumeric())
}

/// RFC 6335 section 5.1, in lower case as Kubernetes wants it.
fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}
