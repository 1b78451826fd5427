//! What only the text of a policy shows: the normal form has dropped or mended it.

use ipnet::IpNet;
use serde_json::Value;

use super::{Code, Finding, Part, Place, Report};
use crate::field::Place as Path;
use crate::rule::{Policy, PolicyKind};

/// Looks at `document`, which `policy` was read from.
pub fn written(policy: &Policy, document: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = Report { policy, findings: &mut findings };
    host_bits(&mut report, document, "");
    if policy.reference.kind == PolicyKind::NetworkPolicy {
        types(&mut report, document);
        peers(&mut report, document);
    }
    findings
}

fn at(path: String) -> Place {
    Place::whole(Part::Field(path))
}

fn host_bits(report: &mut Report<'_>, value: &Value, path: &str) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                host_bits(report, field, &Path(path).field(key));
            }
        }
        Value::Array(list) => {
            for (index, entry) in list.iter().enumerate() {
                host_bits(report, entry, &format!("{path}[{index}]"));
            }
        }
        Value::String(text) if is_prefix_field(path) => {
            if let Ok(net) = text.parse::<IpNet>()
                && net != net.trunc()
            {
                report.say(
                    Code::CidrHostBits,
                    at(path.to_owned()),
                    format!("{text} has bits set beyond its length: it is read as {}", net.trunc()),
                    &format!(
                        "write {}, or {} for the one address",
                        net.trunc(),
                        IpNet::from(net.addr())
                    ),
                );
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_prefix_field(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or_default();
    let field = last.split('[').next().unwrap_or_default();
    matches!(field, "cidr" | "except" | "networks" | "toCIDR" | "fromCIDR")
        && path.starts_with("spec")
}

/// NP-4, NP-5.
fn types(report: &mut Report<'_>, document: &Value) {
    let list = |field: &str| document.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
    let types = list("policyTypes").filter(|types| !types.is_empty());
    if let Some(types) = types {
        for (direction, field) in [("Ingress", "ingress"), ("Egress", "egress")] {
            let has_rules = list(field).is_some_and(|rules| !rules.is_empty());
            if has_rules && !types.iter().any(|one| one.as_str() == Some(direction)) {
                report.say(
                    Code::RulesIgnored,
                    at(format!("spec.{field}")),
                    format!("policyTypes leaves {direction} out, so these rules have no effect"),
                    &format!("add {direction} to policyTypes, or remove the rules"),
                );
            }
        }
    } else if list("egress").is_some_and(Vec::is_empty) {
        report.say(
            Code::EgressNotClosed,
            at("spec.egress".to_owned()),
            "an empty egress list closes nothing where policyTypes is left out".to_owned(),
            "write `policyTypes: [Egress]`, and Ingress beside it if that is to be closed too",
        );
    }
}

/// NP-8: a dash too many makes two peers of one.
fn peers(report: &mut Report<'_>, document: &Value) {
    for (list, side) in [("ingress", "from"), ("egress", "to")] {
        let rules = document.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        for (index, rule) in rules.into_iter().flatten().enumerate() {
            let path = Path("spec").entry(list, index);
            let peers = rule.get(side).and_then(Value::as_array);
            let peers = peers.map(Vec::as_slice).unwrap_or_default();
            let has_only = |peer: &Value, field: &str| {
                peer.as_object().is_some_and(|peer| peer.len() == 1 && peer.contains_key(field))
            };
            let split = peers.windows(2).position(|pair| {
                has_only(&pair[0], "namespaceSelector") && has_only(&pair[1], "podSelector")
            });
            if let Some(first) = split {
                report.say(
                    Code::PeersOr,
                    at(Path(&path).entry(side, first + 1)),
                    "two entries, so either is enough: every pod of those namespaces, and these pods \
                     of the policy's own"
                        .to_owned(),
                    "for these pods in those namespaces write both selectors in one entry (one dash)",
                );
            }
        }
    }
}
