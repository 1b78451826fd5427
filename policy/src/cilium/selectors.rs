//! Endpoint selectors: labels of pods, of their namespaces and of service accounts in one list.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::peers::entity;
use crate::field::{self, Place, WrittenRequirement};
use crate::problem::{FieldError, Problem};
use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{Entity, Namespaces, Peer, Workloads};
use crate::selector::{Condition, Requirement};

/// A pod's namespace by name.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// A label of a pod's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// A pod's service account.
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// What the labels of reserved identities begin with.
const RESERVED: &str = "reserved:";
/// The cluster of a pod, in a mesh.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// The pods that a policy is about: of its own namespace, whatever else is written (CL-7).
pub(super) fn subject(
    path: &str,
    namespace: Option<&Arc<str>>,
    written: &LabelSelector,
) -> Result<Workloads, FieldError> {
    let read = Split::read(path, written, Reserved::SelectsNothing)?;
    let own = namespace.map(|own| Requirement::equals(NAMESPACE_NAME_LABEL, own));
    let namespaces = match namespace {
        Some(own) if read.namespaces.is_empty() => Namespaces::Named(Arc::clone(own)),
        Some(_) | None => Namespaces::Selected(read.namespaces.into_iter().chain(own).collect()),
    };
    Ok(Workloads {
        namespaces,
        pods: read.pods.into_iter().collect(),
        service_accounts: read.service_accounts,
    })
}

/// Remote ends: pods, of the policy's own namespace unless it says otherwise (CL-7), or what a
/// `reserved:` label stands for.
pub(super) fn peer(
    path: &str,
    namespace: Option<&Arc<str>>,
    written: &LabelSelector,
) -> Result<Vec<Peer>, FieldError> {
    if let Some(entities) = reserved(path, written)? {
        return Ok(entities.iter().copied().map(Peer::Entity).collect());
    }
    let read = Split::read(path, written, Reserved::IsRefused)?;
    let namespaces = match namespace {
        Some(own) if read.namespaces.is_empty() => Namespaces::Named(Arc::clone(own)),
        Some(_) | None => Namespaces::Selected(read.namespaces.into_iter().collect()),
    };
    Ok(vec![Peer::Workloads(Workloads {
        namespaces,
        pods: read.pods.into_iter().collect(),
        service_accounts: read.service_accounts,
    })])
}

/// Requirements by what they ask about.
#[derive(Default)]
struct Split {
    namespaces: Vec<Requirement>,
    pods: Vec<Requirement>,
    service_accounts: Vec<Condition>,
}

impl Split {
    fn read(path: &str, written: &LabelSelector, reserved: Reserved) -> Result<Self, FieldError> {
        let mut split = Self::default();
        for Requirement { key, condition } in requirements(path, written, reserved)? {
            if *key == *NAMESPACE {
                split.namespaces.push(Requirement { key: NAMESPACE_NAME_LABEL.into(), condition });
            } else if let Some(key) = key.strip_prefix(NAMESPACE_LABELS) {
                split.namespaces.push(Requirement { key: key.into(), condition });
            } else if *key == *SERVICE_ACCOUNT {
                split.service_accounts.push(condition);
            } else {
                split.pods.push(Requirement { key, condition });
            }
        }
        Ok(split)
    }
}

/// What becomes of a condition on a `reserved:` label.
#[derive(Clone, Copy)]
enum Reserved {
    /// It holds for no pod, which is what Cilium means: its own endpoints have such labels.
    SelectsNothing,
    /// It could mean what is no pod.
    IsRefused,
}

/// The conditions with the sources of their labels taken off. Two on one label both count.
fn requirements(
    path: &str,
    written: &LabelSelector,
    reserved: Reserved,
) -> Result<Vec<Requirement>, FieldError> {
    let place = Place(path);
    let mut all = Vec::new();
    for (key, value) in written.match_labels.iter().flatten() {
        let field = format!("{}.{key}", place.field("matchLabels"));
        let plain = source_off(field.clone(), key, reserved)?;
        let one = BTreeMap::from([(plain.to_owned(), value.clone())]);
        let read = field::selector(path, &one, std::iter::empty())
            .map_err(|error| FieldError { field, ..error })?;
        all.extend(read.requirements().map(|one| with_reserved(key, one.clone())));
    }
    for (index, requirement) in written.match_expressions.iter().flatten().enumerate() {
        let path = place.entry("matchExpressions", index);
        let written = WrittenRequirement {
            key: source_off(Place(&path).field("key"), &requirement.key, reserved)?,
            operator: &requirement.operator,
            values: requirement.values.as_deref().unwrap_or_default(),
        };
        all.push(with_reserved(&requirement.key, field::requirement(&path, &written)?));
    }
    Ok(all)
}

fn source_off(field: String, key: &str, reserved: Reserved) -> Result<&str, FieldError> {
    let (feature, instead) = match (key.split_once(':').unwrap_or(("any", key)), reserved) {
        (("k8s" | "any", CLUSTER), _) => {
            ("a cluster of a mesh", "remove the label; every pod is of this cluster")
        }
        (("k8s" | "any", plain), _) | (("reserved", plain), Reserved::SelectsNothing) => {
            return Ok(plain);
        }
        (("reserved", _), Reserved::IsRefused) => {
            ("a reserved: label beside others", "write the entity, in a rule of its own")
        }
        (_, _) => ("a label source besides k8s:, any: and reserved:", "use labels of pods"),
    };
    Err(FieldError::new(field, Problem::Unsupported { feature, instead }))
}

/// A condition on a reserved label with its source, which no label of a pod has.
fn with_reserved(key: &str, requirement: Requirement) -> Requirement {
    if key.starts_with(RESERVED) {
        Requirement { key: key.into(), ..requirement }
    } else {
        requirement
    }
}

/// What a selector of one `reserved:` label means.
fn reserved(path: &str, written: &LabelSelector) -> Result<Option<&'static [Entity]>, FieldError> {
    let mut keys = written.match_labels.iter().flatten().map(|(key, _)| key);
    let has_expressions = written.match_expressions.as_ref().is_some_and(|list| !list.is_empty());
    let Some(key) = keys.next().filter(|key| key.starts_with(RESERVED)) else {
        return Ok(None);
    };
    if keys.next().is_some() || has_expressions {
        let feature = "a reserved: label beside others";
        let instead = "write the entity, in a rule of its own";
        return Err(FieldError::new(path, Problem::Unsupported { feature, instead }));
    }
    let field = format!("{}.{key}", Place(path).field("matchLabels"));
    match entity(&field, key.strip_prefix(RESERVED).unwrap_or(key)) {
        Ok(entities) => Ok(Some(entities)),
        Err(FieldError { field, .. }) => {
            let feature = "this reserved: label";
            let instead = "write one of the entities";
            Err(FieldError::new(field, Problem::Unsupported { feature, instead }))
        }
    }
}
