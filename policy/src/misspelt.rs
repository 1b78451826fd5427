//! What a word that means nothing where it stands was most likely meant to be.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Words longer than this are nobody's typing error.
const WORD_MAX: usize = 64;

/// One step from a document to a field in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Into a field.
    Field(String),
    /// Into an entry of a list.
    Entry(usize),
}

/// The steps to a field that nothing read.
pub(crate) fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    let (parent, step) = match path {
        serde_ignored::Path::Root => return Vec::new(),
        serde_ignored::Path::Seq { parent, index } => (parent, Some(Step::Entry(*index))),
        serde_ignored::Path::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        serde_ignored::Path::Some { parent }
        | serde_ignored::Path::NewtypeStruct { parent }
        | serde_ignored::Path::NewtypeVariant { parent } => (parent, None),
    };
    steps(parent).into_iter().chain(step).collect()
}

/// Steps as messages write them, such as `spec.egress[0].to`.
pub(crate) fn path(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Field(name) if path.is_empty() => path.push_str(name),
            Step::Field(name) => path.extend([".", name]),
            Step::Entry(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// The field that the last of `steps` was most likely meant to be: one that `T` has at that place.
pub(crate) fn similar_field<T: DeserializeOwned>(steps: &[Step]) -> Option<&'static str> {
    let (Step::Field(written), parents) = steps.split_last()? else { return None };
    let tolerance = (written.len() / 2).clamp(1, 3);
    FIELDS
        .iter()
        .map(|&field| (distance(&written.to_lowercase(), &field.to_lowercase()), field))
        .filter(|&(distance, field)| distance <= tolerance && has_field::<T>(parents, field))
        .min()
        .map(|(_, field)| field)
}

/// Whether `T` reads the field at that place: tried on a document that holds nothing else.
fn has_field<T: DeserializeOwned>(parents: &[Step], field: &str) -> bool {
    let leaf = Value::Object(Map::from_iter([(field.to_owned(), Value::Null)]));
    let document = parents.iter().rev().fold(leaf, |inner, step| match step {
        Step::Field(name) => Value::Object(Map::from_iter([(name.clone(), inner)])),
        Step::Entry(_) => Value::Array(vec![inner]),
    });
    let mut is_ignored = false;
    // Whether it is whole does not matter: what is unknown is told of before what is missing.
    let _: Result<T, _> = serde_ignored::deserialize(document, |_| is_ignored = true);
    !is_ignored
}

/// The value that was written and those that could have been, from what serde says of an enum.
pub(crate) fn unknown_variant(message: &str) -> Option<(&str, String)> {
    let (value, expected) =
        message.strip_prefix("unknown variant `")?.rsplit_once("`, expected ")?;
    let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    Some((value, listed(&names)))
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

/// The one of `known` that `written` was most likely meant to be.
pub(crate) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let tolerance = (written.len() / 3).clamp(1, 3);
    known
        .filter(|one| one.len() <= WORD_MAX)
        .map(|one| (distance(&written.to_lowercase(), &one.to_lowercase()), one))
        .filter(|&(distance, _)| distance <= tolerance)
        .min()
        .map(|(_, one)| one)
}

/// Every field that a policy of some dialect has.
const FIELDS: &[&str] = &[
    "action",
    "allowPrivate",
    "apiVersion",
    "cidr",
    "deny",
    "destinationNamedPort",
    "destinationPort",
    "domainNames",
    "dns",
    "egress",
    "endPort",
    "entity",
    "except",
    "filter",
    "fqdn",
    "from",
    "ingress",
    "ipBlock",
    "key",
    "kind",
    "matchExpressions",
    "matchLabels",
    "metadata",
    "mode",
    "name",
    "namespace",
    "namespaceSelector",
    "operator",
    "podSelector",
    "policyTypes",
    "port",
    "ports",
    "priority",
    "protocol",
    "refuseWith",
    "service",
    "spec",
    "tier",
    "to",
    "namespaces",
    "networks",
    "nodes",
    "number",
    "pods",
    "protocols",
    "range",
    "start",
    "end",
    "subject",
    "tcp",
    "udp",
    "sctp",
    "values",
    "authentication",
    "cidrGroupRef",
    "cidrGroupSelector",
    "egressDeny",
    "enableDefaultDeny",
    "endpointSelector",
    "externalCIDRs",
    "family",
    "fields",
    "fromCIDR",
    "fromCIDRSet",
    "fromEndpoints",
    "fromEntities",
    "icmps",
    "ingressDeny",
    "k8sService",
    "k8sServiceSelector",
    "matchName",
    "matchPattern",
    "rules",
    "selector",
    "serviceName",
    "specs",
    "toCIDR",
    "toCIDRSet",
    "toEndpoints",
    "toEntities",
    "toFQDNs",
    "toPorts",
    "toServices",
    "type",
];

/// How many letters must be added, removed, replaced or swapped with their neighbour to make one word
/// of the other.
pub fn distance(one: &str, two: &str) -> usize {
    if one.len() > WORD_MAX {
        return usize::MAX;
    }
    let (one, two) = (one.as_bytes(), two.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for i in 0..one.len() {
        let mut next = vec![i + 1];
        for j in 0..two.len() {
            let replaced = row[j] + usize::from(one[i] != two[j]);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && one[i] == two[j - 1] && one[i - 1] == two[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::parse;
    use crate::problem::Problem;

    #[test]
    fn a_misspelt_field_is_recognised_by_kind_and_place() {
        let native = "namegate.dev/v1alpha1 EgressPolicy";
        let standard = "networking.k8s.io/v1 NetworkPolicy";
        let cilium = "cilium.io/v2 CiliumNetworkPolicy";
        for (kind, spec, expected) in [
            (native, json!({"podSelectr": {}}), Some("podSelector")),
            (native, json!({"PodSelector": {}}), Some("podSelector")),
            (native, json!({"egress": [{"ports": [{"protcol": "TCP"}]}]}), Some("protocol")),
            (native, json!({"egress": [{"ports": [{"endport": 9}]}]}), Some("endPort")),
            (native, json!({"egress": [{"to": [{"fdqn": "example.com"}]}]}), Some("fqdn")),
            (native, json!({"egress": [{"to": [{"somethingElse": 1}]}]}), None),
            // Right elsewhere, and no hint to write the same again.
            (native, json!({"egress": [{"fqdn": "example.com"}]}), None),
            (native, json!({"egress": [{"port": [443]}]}), Some("ports")),
            (native, json!({"egress": [{"form": []}]}), None),
            (standard, json!({"podSelector": {}, "egress": [{"form": []}]}), None),
            (standard, json!({"podSelector": {}, "ingress": [{"form": []}]}), Some("from")),
            (standard, json!({"podSelector": {}, "egress": [{"toPorts": []}]}), Some("ports")),
            (cilium, json!({"endpointSelector": {}, "egress": [{"ports": []}]}), Some("toPorts")),
            (cilium, json!({"endpointSelector": {}, "egress": [{"toFQDN": []}]}), Some("toFQDNs")),
        ] {
            let (api_version, kind) = kind.split_once(' ').unwrap();
            let metadata = json!({"name": "p", "namespace": "shop"});
            let value = json!({
                "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec,
            });
            let error = parse(value).unwrap_err().error;
            let Problem::UnknownField { suggestion } = error.problem else { panic!("{error}") };
            assert_eq!(suggestion, expected, "{kind} {spec}");
        }
    }

    #[test]
    fn neighbours_that_are_swapped_are_one_error() {
        for (one, two, expected) in
            [("fdqn", "fqdn", 1), ("abc", "abc", 0), ("", "abc", 3), ("acb", "abcd", 2)]
        {
            assert_eq!(distance(one, two), expected, "{one} {two}");
            assert_eq!(distance(two, one), expected, "{two} {one}");
        }
    }

    #[test]
    fn what_serde_says_of_an_enum_is_taken_apart() {
        let said = "unknown variant `a`, expected one of `b`, `c`, `d`";
        assert_eq!(unknown_variant(said), Some(("a", "b, c or d".to_owned())));
        let hostile = "unknown variant ``, expected `x``, expected `Enforce` or `Audit`";
        assert_eq!(
            unknown_variant(hostile),
            Some(("`, expected `x`", "Enforce or Audit".to_owned()))
        );
        assert_eq!(unknown_variant("invalid type: null, expected a string"), None);
    }
}
