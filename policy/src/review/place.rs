//! Where in an object something stands, and the path of it in the document as written.

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use crate::field::Place as Path;
use crate::pattern::DomainPattern;
use crate::rule::Direction;

/// A place in an object, as its normal form knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The label of the rule; `None` for what concerns the object as a whole.
    pub rule: Option<Arc<str>>,
    /// What of it.
    pub part: Part,
}

/// A part of an object or of one of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The selector of the pods that it is about.
    Subject,
    /// What closes a direction.
    Closing(Direction),
    /// A domain pattern.
    Pattern(DomainPattern),
    /// A domain pattern that is cut out of another.
    PatternExcept(DomainPattern),
    /// A prefix.
    Net(IpNet),
    /// A prefix that is cut out of another.
    NetExcept(IpNet),
    /// The peer by labels with this number among the rule's peers by labels.
    Workloads(usize),
    /// The field at this path, as it is written.
    Field(String),
}

impl Place {
    pub(crate) const fn whole(part: Part) -> Self {
        Self { rule: None, part }
    }

    pub(crate) fn of(label: &Arc<str>, part: Part) -> Self {
        Self { rule: Some(Arc::clone(label)), part }
    }

    /// The path of the place in `document`, which the object was read from.
    pub fn path_in(&self, document: &Value) -> String {
        if let Part::Field(path) = &self.part {
            return path.clone();
        }
        let root = if document.get("spec").is_some() { "spec" } else { "specs[0]" };
        let base = match &self.rule {
            Some(label) => rule_path(document, label).unwrap_or_else(|| root.to_owned()),
            None => root.to_owned(),
        };
        let Some(value) = at(document, &base) else { return base };
        let part = match &self.part {
            Part::Whole | Part::Field(_) => None,
            Part::Subject => {
                first_of(value, &base, &["podSelector", "endpointSelector", "subject"])
            }
            Part::Closing(direction) => closing(value, &base, *direction),
            Part::Pattern(pattern) => {
                find(value, &base, |path, text| !is_except(path) && is_pattern(path, text, pattern))
            }
            Part::PatternExcept(pattern) => find(value, &base, |path, text| {
                is_except(path) && DomainPattern::parse(text).as_ref() == Ok(pattern)
            }),
            Part::Net(net) => {
                find(value, &base, |path, text| !is_except(path) && is_net(text, *net))
            }
            Part::NetExcept(net) => {
                find(value, &base, |path, text| is_except(path) && is_net(text, *net))
            }
            Part::Workloads(index) => workloads(value, &base, *index),
        };
        part.unwrap_or(base)
    }
}

/// The value at a path such as `spec.egress[0]`.
fn at<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |value, part| {
        let (key, indices) = part.split_once('[').map_or((part, ""), |(key, rest)| (key, rest));
        let start = value.get(key)?;
        let mut indices = indices.split(['[', ']']).filter(|index| !index.is_empty());
        indices.try_fold(start, |value, index| value.get(index.parse::<usize>().ok()?))
    })
}

/// Where the rule called `label` stands: by its place, or by its own name.
fn rule_path(document: &Value, label: &str) -> Option<String> {
    let several = document.get("specs").and_then(Value::as_array).map_or(0, Vec::len);
    let roots = ["spec".to_owned()].into_iter();
    let mut roots = roots.chain((0..several).map(|index| format!("specs[{index}]")));
    if label.starts_with("specs[") && at(document, label).is_some() {
        return Some(label.to_owned());
    }
    roots.find_map(|root| {
        let by_place = Path(&root).field(label);
        let by_name = || {
            ["deny", "egress", "ingress"].into_iter().find_map(|list| {
                let rules = at(document, &Path(&root).field(list))?.as_array()?;
                let is_named =
                    |rule: &Value| rule.get("name").and_then(Value::as_str) == Some(label);
                Some(Path(&root).entry(list, rules.iter().position(is_named)?))
            })
        };
        by_name().or_else(|| at(document, &by_place).map(|_| by_place))
    })
}

fn first_of(value: &Value, base: &str, fields: &[&str]) -> Option<String> {
    let field = fields.iter().find(|field| value.get(**field).is_some())?;
    Some(Path(base).field(field))
}

fn closing(value: &Value, base: &str, direction: Direction) -> Option<String> {
    let lists = match direction {
        Direction::Egress => ["policyTypes", "egress", "egressDeny"],
        Direction::Ingress => ["policyTypes", "ingress", "ingressDeny"],
    };
    first_of(value, base, &lists)
}

/// The path of the first text below `value` that is wanted.
fn find(value: &Value, path: &str, wanted: impl Fn(&str, &str) -> bool + Copy) -> Option<String> {
    match value {
        Value::String(text) => wanted(path, text).then(|| path.to_owned()),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(index, entry)| find(entry, &format!("{path}[{index}]"), wanted)),
        Value::Object(fields) => {
            fields.iter().find_map(|(key, field)| find(field, &Path(path).field(key), wanted))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn is_except(path: &str) -> bool {
    path.contains(".except[")
}

fn is_pattern(path: &str, text: &str, pattern: &DomainPattern) -> bool {
    let parsed = if path.ends_with(".matchPattern") {
        DomainPattern::parse_cilium(text)
    } else if path.ends_with(".fqdn")
        || path.ends_with(".matchName")
        || path.contains("domainNames[")
    {
        DomainPattern::parse(text)
    } else {
        return false;
    };
    parsed.as_ref() == Ok(pattern)
}

fn is_net(text: &str, net: IpNet) -> bool {
    let alone = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse::<IpNet>().or_else(|_| alone()).is_ok_and(|written| written.trunc() == net)
}

/// The path of peer `index` among those that select by labels.
fn workloads(rule: &Value, base: &str, index: usize) -> Option<String> {
    let plain = ["to", "from"].into_iter().flat_map(|list| {
        let selects = |peer: &Value| {
            ["podSelector", "namespaceSelector", "pods", "namespaces"]
                .iter()
                .any(|field| peer.get(field).is_some())
        };
        entries(rule, base, list, selects)
    });
    let endpoints = ["toEndpoints", "fromEndpoints"].into_iter().flat_map(|list| {
        let is_reserved = |peer: &Value| {
            let labels = peer.get("matchLabels").and_then(Value::as_object);
            labels.is_some_and(|labels| labels.keys().any(|key| key.starts_with("reserved:")))
        };
        entries(rule, base, list, move |peer| !is_reserved(peer))
    });
    plain.chain(endpoints).nth(index)
}

fn entries(rule: &Value, base: &str, list: &str, is_meant: impl Fn(&Value) -> bool) -> Vec<String> {
    let entries = rule.get(list).and_then(Value::as_array).into_iter().flatten().enumerate();
    entries
        .filter(|(_, entry)| is_meant(entry))
        .map(|(index, _)| Path(base).entry(list, index))
        .collect()
}
