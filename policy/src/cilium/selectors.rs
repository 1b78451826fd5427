//! Endpoint selectors: labels of pods, of their namespaces and of service accounts in one list.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::field::Place;
use crate::kubernetes::selector;
use crate::problem::{FieldError, Problem};
use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{Entity, Namespaces, Peer, Workloads};
use crate::selector::{Condition, Requirement, Selector};

/// A pod's namespace by name.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// A label of a pod's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// A pod's service account.
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// The cluster of a pod, in a mesh.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// The pods that a policy is about: of its own namespace, whatever else is written (CL-7).
pub(super) fn subject(
    path: &str,
    namespace: Option<&Arc<str>>,
    written: &LabelSelector,
) -> Result<Workloads, FieldError> {
    let read = Split::read(path, written)?;
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

/// A remote end: pods, of the policy's own namespace unless it says otherwise (CL-7), or what a
/// `reserved:` label stands for.
pub(super) fn peer(
    path: &str,
    namespace: Option<&Arc<str>>,
    written: &LabelSelector,
) -> Result<Peer, FieldError> {
    if let Some(entity) = reserved(path, written)? {
        return Ok(Peer::Entity(entity));
    }
    let read = Split::read(path, written)?;
    let namespaces = match namespace {
        Some(own) if read.namespaces.is_empty() => Namespaces::Named(Arc::clone(own)),
        Some(_) | None => Namespaces::Selected(read.namespaces.into_iter().collect()),
    };
    Ok(Peer::Workloads(Workloads {
        namespaces,
        pods: read.pods.into_iter().collect(),
        service_accounts: read.service_accounts,
    }))
}

/// Requirements by what they ask about.
#[derive(Default)]
struct Split {
    namespaces: Vec<Requirement>,
    pods: Vec<Requirement>,
    service_accounts: Vec<Condition>,
}

impl Split {
    fn read(path: &str, written: &LabelSelector) -> Result<Self, FieldError> {
        let mut split = Self::default();
        for Requirement { key, condition } in plain(path, written)?.requirements() {
            let condition = condition.clone();
            if **key == *NAMESPACE {
                split.namespaces.push(Requirement { key: NAMESPACE_NAME_LABEL.into(), condition });
            } else if let Some(key) = key.strip_prefix(NAMESPACE_LABELS) {
                split.namespaces.push(Requirement { key: key.into(), condition });
            } else if **key == *SERVICE_ACCOUNT {
                split.service_accounts.push(condition);
            } else if **key == *CLUSTER {
                let problem = Problem::Unsupported { feature: "a cluster of a mesh" };
                return Err(FieldError::new(path, problem));
            } else {
                split.pods.push(Requirement { key: Arc::clone(key), condition });
            }
        }
        Ok(split)
    }
}

/// The selector with the sources of its labels taken off.
fn plain(path: &str, written: &LabelSelector) -> Result<Selector, FieldError> {
    let labels = written.match_labels.iter().flatten();
    let mut match_labels = BTreeMap::new();
    for (key, value) in labels {
        match_labels.insert(source_off(path, key)?, value.clone());
    }
    let mut match_expressions = Vec::new();
    for requirement in written.match_expressions.iter().flatten() {
        let mut requirement = requirement.clone();
        requirement.key = source_off(path, &requirement.key)?;
        match_expressions.push(requirement);
    }
    let plain = LabelSelector {
        match_labels: Some(match_labels),
        match_expressions: Some(match_expressions),
    };
    selector(path, &plain)
}

fn source_off(path: &str, key: &str) -> Result<String, FieldError> {
    match key.split_once(':') {
        None => Ok(key.to_owned()),
        Some(("k8s" | "any", rest)) => Ok(rest.to_owned()),
        Some(_) => {
            let problem = Problem::Unsupported { feature: "a label source besides k8s: and any:" };
            Err(FieldError::new(Place(path).field(key), problem))
        }
    }
}

/// What a selector of one `reserved:` label means.
fn reserved(path: &str, written: &LabelSelector) -> Result<Option<Entity>, FieldError> {
    let mut keys = written.match_labels.iter().flatten().map(|(key, _)| key);
    let has_expressions = written.match_expressions.as_ref().is_some_and(|list| !list.is_empty());
    let Some(name) = keys.next().and_then(|key| key.strip_prefix("reserved:")) else {
        return Ok(None);
    };
    if keys.next().is_some() || has_expressions {
        let problem = Problem::Unsupported { feature: "a reserved: label beside others" };
        return Err(FieldError::new(path, problem));
    }
    match name {
        "world" => Ok(Some(Entity::World)),
        "host" => Ok(Some(Entity::Host)),
        "remote-node" => Ok(Some(Entity::RemoteNode)),
        "kube-apiserver" => Ok(Some(Entity::KubeApiserver)),
        "unmanaged" => Ok(Some(Entity::Unmanaged)),
        _ => {
            let problem = Problem::Unsupported { feature: "this reserved: label" };
            Err(FieldError::new(path, problem))
        }
    }
}
