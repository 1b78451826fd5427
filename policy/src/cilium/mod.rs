//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy `cilium.io/v2` in normal form.
//!
//! Layers 3 and 4, entities, services, names and `rules.dns`. What is not supported makes the object
//! refused with the path of the field; nothing is half applied.

mod rules;
mod selectors;
mod written;

use std::sync::Arc;

use crate::dns::RefuseWith;
use crate::field::Place;
use crate::kubernetes::{name_of, namespace_of};
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, Direction, DnsFilter, DnsPolicy, Isolation, Mode, Peer, Peers, Policy, PolicyKind,
    PolicyRef, Tier,
};

use rules::RuleReader;
pub use written::Manifest;
use written::Spec;

/// The group and version of the kinds.
pub const API_VERSION: &str = "cilium.io/v2";

/// Reads a CiliumNetworkPolicy.
pub fn network_policy(written: &Manifest) -> Result<Policy, FieldError> {
    let namespace = namespace_of(&written.metadata)?;
    let reference = PolicyRef {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: Some(Arc::clone(&namespace)),
        name: name_of(&written.metadata)?,
    };
    policy(reference, Some(&namespace), written)
}

/// Reads a CiliumClusterwideNetworkPolicy.
pub fn clusterwide_network_policy(written: &Manifest) -> Result<Policy, FieldError> {
    let reference = PolicyRef {
        kind: PolicyKind::CiliumClusterwideNetworkPolicy,
        namespace: None,
        name: name_of(&written.metadata)?,
    };
    policy(reference, None, written)
}

fn policy(
    reference: PolicyRef,
    namespace: Option<&Arc<str>>,
    written: &Manifest,
) -> Result<Policy, FieldError> {
    let (path, spec) = match (&written.spec, written.specs.as_slice()) {
        (Some(spec), []) => ("spec", spec),
        (None, [spec]) => ("specs[0]", spec),
        (None, []) => return Err(FieldError::new("spec", Problem::Missing)),
        (Some(_), _) => {
            return Err(FieldError::new("specs", Problem::Together { fields: "spec and specs" }));
        }
        (None, _) => {
            let feature = "more than one entry in specs";
            return Err(FieldError::new("specs", Problem::Unsupported { feature }));
        }
    };
    let place = Place(path);
    if spec.node_selector.is_some() {
        let problem = Problem::Unsupported { feature: "a policy for nodes" };
        return Err(FieldError::new(place.field("nodeSelector"), problem));
    }
    let Some(endpoints) = &spec.endpoint_selector else {
        return Err(FieldError::new(place.field("endpointSelector"), Problem::Missing));
    };
    let subject = selectors::subject(&place.field("endpointSelector"), namespace, endpoints)?;
    let mut policy = Policy {
        reference,
        subject,
        mode: Mode::Enforce,
        tier: Tier::Namespaced,
        isolates: isolation(spec),
        dns: None,
        rules: Vec::new(),
    };
    read_rules(path, spec, namespace, &mut policy)?;
    Ok(policy)
}

/// CL-5.
fn isolation(spec: &Spec) -> Isolation {
    let default = spec.enable_default_deny.as_ref();
    let wants = |chosen: Option<bool>| chosen != Some(false);
    Isolation {
        egress: (spec.egress.is_some() || spec.egress_deny.is_some())
            && wants(default.and_then(|default| default.egress)),
        ingress: (spec.ingress.is_some() || spec.ingress_deny.is_some())
            && wants(default.and_then(|default| default.ingress)),
    }
}

fn read_rules(
    path: &str,
    spec: &Spec,
    namespace: Option<&Arc<str>>,
    policy: &mut Policy,
) -> Result<(), FieldError> {
    let mut names = Vec::new();
    for (field, list, direction, action) in [
        ("egressDeny", &spec.egress_deny, Direction::Egress, Action::Deny),
        ("ingressDeny", &spec.ingress_deny, Direction::Ingress, Action::Deny),
        ("egress", &spec.egress, Direction::Egress, Action::Allow),
        ("ingress", &spec.ingress, Direction::Ingress, Action::Allow),
    ] {
        for (index, written) in list.iter().flatten().enumerate() {
            let label: Arc<str> = format!("{field}[{index}]").into();
            let path = format!("{path}.{label}");
            let reader = RuleReader { path, label, direction, action, namespace };
            policy.rules.extend(reader.rule(written)?);
            names.extend(reader.lookups(written)?);
        }
    }
    let has_lookups = !names.is_empty();
    let mut opens_names = false;
    for rule in &mut policy.rules {
        let Peers::Of(peers) = &mut rule.peers else { continue };
        for peer in peers {
            if let Peer::Fqdn(fqdn) = peer {
                opens_names = true;
                // Without rules.dns the names that open addresses are those that may be asked for.
                fqdn.resolves = !has_lookups;
            }
        }
    }
    if has_lookups || opens_names {
        policy.dns = Some(DnsPolicy {
            // Only rules.dns filters lookups (CL-1, CH-8).
            filter: if has_lookups { DnsFilter::Enforce } else { DnsFilter::Observe },
            refuse_with: RefuseWith::Refused,
            names,
        });
    }
    Ok(())
}
