//! CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and CiliumCIDRGroup `cilium.io/v2` in normal
//! form.
//!
//! Layers 3 and 4, entities, services, names and `rules.dns`. What is not supported makes the object
//! refused with the path of the field; nothing is half applied.

mod icmp;
mod peers;
mod rules;
mod selectors;
mod written;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::dns::RefuseWith;
use crate::field::Place;
use crate::kubernetes::{labels_of, name_of, namespace_of};
use crate::note::{Note, Remark};
use crate::problem::{FieldError, Problem};
use crate::resource::CidrGroup;
use crate::rule::{
    Action, Direction, DnsFilter, DnsPolicy, Isolation, Mode, Peer, Peers, Policy, PolicyKind,
    PolicyRef, Tier, Workloads,
};

use rules::RuleReader;
use written::Spec;
pub use written::{CidrGroupManifest, Manifest};

/// The group and version of the kinds.
pub const API_VERSION: &str = "cilium.io/v2";

/// An earlier version of CiliumCIDRGroup, the same in every field.
pub const API_VERSION_BEFORE: &str = "cilium.io/v2alpha1";

/// Reads a CiliumCIDRGroup.
pub fn cidr_group(written: &CidrGroupManifest) -> Result<CidrGroup, FieldError> {
    let cidrs = written.spec.external_cidrs.iter().enumerate();
    let read = |(index, text): (usize, &String)| {
        peers::net(Place("spec").entry("externalCIDRs", index), text)
    };
    Ok(CidrGroup {
        name: name_of(&written.metadata)?,
        labels: labels_of(&written.metadata),
        nets: cidrs.map(read).collect::<Result<_, _>>()?,
    })
}

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

/// The endpoints that a selector means as a subject; `None` where it cannot be read.
pub(crate) fn subject(namespace: Option<&Arc<str>>, written: &LabelSelector) -> Option<Workloads> {
    selectors::subject("", namespace, written).ok()
}

fn policy(
    reference: PolicyRef,
    namespace: Option<&Arc<str>>,
    written: &Manifest,
) -> Result<Policy, FieldError> {
    let mut parts = Vec::new();
    if let Some(spec) = &written.spec {
        parts.push(SpecReader { path: "spec", prefix: "", namespace }.read(&reference, spec)?);
    }
    for (index, spec) in written.specs.iter().enumerate() {
        let path = format!("specs[{index}]");
        let prefix = format!("{path}.");
        let reader = SpecReader { path: &path, prefix: &prefix, namespace };
        parts.push(reader.read(&reference, spec)?);
    }
    let mut parts = parts.into_iter();
    let Some(mut policy) = parts.next() else {
        return Err(FieldError::new("spec", Problem::Missing));
    };
    for mut part in parts {
        policy.notes.append(&mut part.notes);
        policy.also.push(part);
    }
    Ok(policy)
}

/// Reads `spec`, or an entry of `specs`.
struct SpecReader<'a> {
    path: &'a str,
    /// What the names of its rules begin with.
    prefix: &'a str,
    namespace: Option<&'a Arc<str>>,
}

impl SpecReader<'_> {
    fn read(&self, reference: &PolicyRef, spec: &Spec) -> Result<Policy, FieldError> {
        let place = Place(self.path);
        if spec.node_selector.is_some() {
            let feature = "a policy for nodes";
            let instead = "select pods with endpointSelector; nodes need a host firewall";
            let problem = Problem::Unsupported { feature, instead };
            return Err(FieldError::new(place.field("nodeSelector"), problem));
        }
        let Some(endpoints) = &spec.endpoint_selector else {
            return Err(FieldError::new(place.field("endpointSelector"), Problem::Missing));
        };
        let path = place.field("endpointSelector");
        let mut policy = Policy {
            reference: reference.clone(),
            subject: selectors::subject(&path, self.namespace, endpoints)?,
            mode: Mode::Enforce,
            tier: Tier::Namespaced,
            isolates: isolation(spec),
            dns: None,
            rules: Vec::new(),
            notes: Vec::new(),
            also: Vec::new(),
        };
        self.rules(spec, &mut policy)?;
        Ok(policy)
    }

    fn rules(&self, spec: &Spec, policy: &mut Policy) -> Result<(), FieldError> {
        // `None` without any rules.dns; one without an entry lets no name be asked for (CL-3).
        let mut lookups = None;
        for (field, list, direction, action) in [
            ("egressDeny", &spec.egress_deny, Direction::Egress, Action::Deny),
            ("ingressDeny", &spec.ingress_deny, Direction::Ingress, Action::Deny),
            ("egress", &spec.egress, Direction::Egress, Action::Allow),
            ("ingress", &spec.ingress, Direction::Ingress, Action::Allow),
        ] {
            for (index, written) in list.iter().flatten().enumerate() {
                let path = Place(self.path).entry(field, index);
                let label: Arc<str> = format!("{}{field}[{index}]", self.prefix).into();
                let namespace = self.namespace;
                let reader = RuleReader { path, label, direction, action, namespace };
                policy.rules.extend(reader.rule(written)?);
                if let Some(names) = reader.lookups(written)? {
                    lookups.get_or_insert_with(Vec::new).extend(names);
                }
                if written.to_fqdns.is_some() {
                    let field = Place(&reader.path).field("toFQDNs");
                    policy.notes.push(Note::new(field, Remark::LookupsDerived));
                }
            }
        }
        let opens_names = !policy.notes.is_empty();
        if let Some(names) = lookups {
            policy.notes.clear();
            resolve_nothing(policy);
            policy.dns = Some(dns(DnsFilter::Enforce, names));
        } else if opens_names {
            // Only a written rules.dns filters lookups (CL-1, CH-8).
            policy.dns = Some(dns(DnsFilter::Observe, Vec::new()));
        }
        Ok(())
    }
}

fn dns(filter: DnsFilter, names: Vec<crate::rule::NameRule>) -> DnsPolicy {
    DnsPolicy { filter, refuse_with: RefuseWith::Refused, names }
}

/// With rules.dns beside them, the names that open addresses say nothing about lookups (CL-1).
fn resolve_nothing(policy: &mut Policy) {
    for rule in &mut policy.rules {
        let Peers::Of(peers) = &mut rule.peers else { continue };
        for peer in peers {
            if let Peer::Fqdn(fqdn) = peer {
                fqdn.resolves = false;
            }
        }
    }
}

/// CL-5.
fn isolation(spec: &Spec) -> Isolation {
    let asked = spec.enable_default_deny.as_ref();
    let egress = spec.egress.is_some() || spec.egress_deny.is_some();
    let ingress = spec.ingress.is_some() || spec.ingress_deny.is_some();
    Isolation {
        egress: asked.and_then(|asked| asked.egress).unwrap_or(egress),
        ingress: asked.and_then(|asked| asked.ingress).unwrap_or(ingress),
    }
}
