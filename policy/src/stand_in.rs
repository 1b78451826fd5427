//! What is in force for a policy that is refused and has no good version: the stricter side.
//!
//! What the object selects is closed in the directions that it would have isolated, and nothing is
//! allowed. Where the object denies or passes, everything is denied, as CNP-7 has it for a rule of
//! which something is unknown. So nothing goes through that the object as it was meant would have
//! stopped. Where the subject cannot be read, or the object's name, nobody can say whom to close, and
//! nothing stands in.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api;
use crate::cilium;
use crate::cluster;
use crate::dns::RefuseWith;
use crate::field;
use crate::kubernetes;
use crate::limits;
use crate::note::{Note, Remark};
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, Direction, DnsFilter, DnsPolicy, Isolation, Mode, Peers, Policy, PolicyKind, PolicyRef,
    Ports, Rule, Tier, Workloads,
};

/// What the rule that denies everything is called.
const LABEL: &str = "refused";

/// What stands in for the policy `value`, which was refused because of `error`.
pub(crate) fn stand_in(kind: PolicyKind, value: &Value, error: &FieldError) -> Option<Policy> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let is_namespaced = !matches!(
        kind,
        PolicyKind::ClusterEgressPolicy
            | PolicyKind::ClusterNetworkPolicy
            | PolicyKind::CiliumClusterwideNetworkPolicy
    );
    let name = |text| field::object_name(String::new(), text).ok().map(Into::into);
    let namespace = text("/metadata/namespace").filter(|text| !text.is_empty());
    let reference = PolicyRef {
        kind,
        namespace: if is_namespaced { Some(name(namespace.unwrap_or("default"))?) } else { None },
        name: name(text("/metadata/name")?)?,
    };
    let spec = value.get("spec").filter(|spec| spec.is_object());
    let parts: Vec<Part> = match kind {
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy => {
            let more = entries(value, "specs");
            spec.into_iter().chain(more).filter_map(|spec| cilium_part(&reference, spec)).collect()
        }
        PolicyKind::NetworkPolicy => vec![network_policy_part(&reference, spec?, error)?],
        PolicyKind::EgressPolicy | PolicyKind::ClusterEgressPolicy => {
            vec![egress_part(&reference, spec?)?]
        }
        PolicyKind::ClusterNetworkPolicy => vec![cluster_part(spec?)?],
    };
    let mut closing = parts.into_iter().filter_map(|part| part.policy(&reference));
    let mut policy = closing.next()?;
    policy.notes.push(Note::new("", Remark::StandsIn));
    policy.also = closing.collect();
    Some(policy)
}

/// What can be read of one subject of the object.
struct Part {
    subject: Workloads,
    mode: Mode,
    tier: Tier,
    isolates: Isolation,
    /// The directions in which something is denied, which no allow rule of another may open.
    denies: Isolation,
    filters_lookups: bool,
}

impl Part {
    fn policy(self, reference: &PolicyRef) -> Option<Policy> {
        let Self { subject, mode, tier, isolates, denies, filters_lookups } = self;
        let rules: Vec<Rule> = [Direction::Egress, Direction::Ingress]
            .into_iter()
            .filter(|direction| denies.covers(*direction))
            .map(|direction| Rule {
                label: LABEL.into(),
                direction,
                action: Action::Deny,
                peers: Peers::Any,
                ports: Ports::Any,
            })
            .collect();
        if isolates == Isolation::default() && rules.is_empty() && !filters_lookups {
            return None;
        }
        let dns = filters_lookups.then(|| DnsPolicy {
            filter: DnsFilter::Enforce,
            refuse_with: RefuseWith::Refused,
            names: Vec::new(),
        });
        Some(Policy {
            reference: reference.clone(),
            subject,
            mode,
            tier,
            isolates,
            dns,
            rules,
            notes: Vec::new(),
            also: Vec::new(),
        })
    }
}

/// A list that is there, whatever it holds.
fn has(spec: &Value, field: &str) -> bool {
    spec.get(field).is_some_and(|value| !value.is_null())
}

/// A list that holds something, or something that is no list.
fn has_entry(spec: &Value, field: &str) -> bool {
    has(spec, field) && spec.get(field).and_then(Value::as_array).is_none_or(|l| !l.is_empty())
}

fn read<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
    T::deserialize(value?).ok()
}

fn network_policy_part(reference: &PolicyRef, spec: &Value, error: &FieldError) -> Option<Part> {
    // A missing selector selects everything (NP-3), but it may be the one that was misspelt.
    let is_misspelt = matches!(error.problem, Problem::UnknownField { .. })
        && error.field.strip_prefix("spec.").is_some_and(|field| !field.contains(['.', '[']));
    if !has(spec, "podSelector") && is_misspelt {
        return None;
    }
    let types = spec.get("policyTypes").and_then(Value::as_array).filter(|t| !t.is_empty());
    let isolates = match types {
        Some(types) => {
            let names = |wanted: &str| types.iter().any(|one| one.as_str() == Some(wanted));
            let (egress, ingress) = (names("Egress"), names("Ingress"));
            // A direction that cannot be read may be either.
            let is_readable = types.len() == usize::from(egress) + usize::from(ingress);
            Isolation { egress: egress || !is_readable, ingress: ingress || !is_readable }
        }
        None if has_entry(spec, "policyTypes") => Isolation { egress: true, ingress: true },
        None => Isolation { egress: has_entry(spec, "egress"), ingress: true },
    };
    Some(Part {
        subject: kubernetes::own_pods(
            reference.namespace.as_ref()?,
            match spec.get("podSelector") {
                None | Some(Value::Null) => None,
                written => Some(read(written)?),
            }
            .as_ref(),
        )?,
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates,
        denies: Isolation::default(),
        filters_lookups: false,
    })
}

fn egress_part(reference: &PolicyRef, spec: &Value) -> Option<Part> {
    let pods = spec.get("podSelector");
    let subject = match &reference.namespace {
        Some(namespace) => api::own_pods(namespace, &read(pods)?)?,
        None => {
            let pods = if has(spec, "podSelector") { read(pods)? } else { Default::default() };
            api::pods_in(&read(spec.get("namespaceSelector"))?, &pods)?
        }
    };
    let is_audit = spec.get("mode").and_then(Value::as_str) == Some("Audit");
    let tier = match (reference.kind, spec.get("tier").and_then(Value::as_str)) {
        (PolicyKind::ClusterEgressPolicy, Some("Admin")) => {
            Tier::Admin { priority: api::priority(read(spec.get("priority"))) }
        }
        (PolicyKind::ClusterEgressPolicy, Some("Baseline")) => {
            Tier::Baseline { priority: api::priority(read(spec.get("priority"))) }
        }
        _ => Tier::Namespaced,
    };
    let is_namespaced = tier == Tier::Namespaced;
    let asked = spec.pointer("/dns/filter").and_then(Value::as_str);
    Some(Part {
        subject,
        mode: if is_audit { Mode::Audit } else { Mode::Enforce },
        tier,
        isolates: Isolation { egress: is_namespaced, ingress: false },
        denies: Isolation { egress: has_entry(spec, "deny"), ingress: false },
        // What is written and cannot be read may be either.
        filters_lookups: asked.map_or(is_namespaced, |asked| asked != "Observe"),
    })
}

fn cluster_part(spec: &Value) -> Option<Part> {
    let priority = read(spec.get("priority")).filter(|one| *one <= limits::PRIORITY);
    // What cannot be read comes first.
    let priority = priority.unwrap_or_default();
    let tier = match spec.get("tier").and_then(Value::as_str) {
        Some("Baseline") => Tier::Baseline { priority },
        _ => Tier::Admin { priority },
    };
    let refuses = |list: &str| {
        let rules = spec.get(list).and_then(Value::as_array);
        let accepts = |rule: &Value| rule.get("action").and_then(Value::as_str) == Some("Accept");
        has_entry(spec, list) && rules.is_none_or(|rules| !rules.iter().all(accepts))
    };
    Some(Part {
        subject: cluster::subject(&read(spec.get("subject"))?).ok()?,
        mode: Mode::Enforce,
        tier,
        isolates: Isolation::default(),
        denies: Isolation { egress: refuses("egress"), ingress: refuses("ingress") },
        filters_lookups: false,
    })
}

fn cilium_part(reference: &PolicyRef, spec: &Value) -> Option<Part> {
    let endpoints = read(spec.get("endpointSelector"))?;
    let isolates = |section: &str, denial: &str, pointer: &str| {
        let asked = spec.pointer(pointer).and_then(Value::as_bool);
        asked.unwrap_or_else(|| has(spec, section) || has(spec, denial))
    };
    let isolates = Isolation {
        egress: isolates("egress", "egressDeny", "/enableDefaultDeny/egress"),
        ingress: isolates("ingress", "ingressDeny", "/enableDefaultDeny/ingress"),
    };
    Some(Part {
        subject: cilium::subject(reference.namespace.as_ref(), &endpoints)?,
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates,
        denies: Isolation {
            egress: has_entry(spec, "egressDeny"),
            ingress: has_entry(spec, "ingressDeny"),
        },
        filters_lookups: names_lookups(spec),
    })
}

/// The entries of a list; none of what is no list.
fn entries<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether some `rules.dns` says which names may be asked for.
fn names_lookups(spec: &Value) -> bool {
    let rules = entries(spec, "egress");
    let mut ports = rules.iter().flat_map(|rule| entries(rule, "toPorts"));
    ports.any(|port| port.pointer("/rules/dns").is_some_and(|dns| !dns.is_null()))
}
