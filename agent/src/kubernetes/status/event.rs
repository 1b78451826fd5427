//! Events about policies that are refused, one for each version of each object.

use std::time::SystemTime;

use kube::api::ApiResource;
use namegate_policy::rule::PolicyRef;
use serde_json::{Value, json};

use super::facts::{PolicyFact, Refused, kind_name};
use crate::clock;

pub(super) const RESOURCE: &str = "events.events.k8s.io";

/// The longest note that the API server takes.
const NOTE_MAX: usize = 1_024;

/// How much of an object's name an Event's name repeats: a name has 253 characters at most.
const NAME_MAX: usize = 180;

/// Where Events about objects without a namespace are.
const CLUSTER_NAMESPACE: &str = "default";

/// Events.
pub(super) fn resource() -> ApiResource {
    ApiResource {
        group: "events.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "events.k8s.io/v1".to_owned(),
        kind: "Event".to_owned(),
        plural: "events".to_owned(),
    }
}

/// The namespace of an Event about `policy`.
pub(super) fn namespace(policy: &PolicyRef) -> &str {
    policy.namespace.as_deref().unwrap_or(CLUSTER_NAMESPACE)
}

/// An Event that says why `policy` is refused. Its name is that of this version of the object, so
/// that a second one is refused by the API server, whoever makes it.
pub(super) fn refusal(
    policy: &PolicyRef,
    fact: &PolicyFact,
    refused: &Refused,
    instance: &str,
) -> Value {
    let mut note = refused.sentence();
    if note.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX).rev().find(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or(0));
    }
    let name: String = policy.name.chars().take(NAME_MAX).collect();
    let name = name.trim_end_matches(['-', '.']);
    let mut regarding = json!({
        "apiVersion": policy.kind.api_version(),
        "kind": kind_name(policy.kind),
        "name": &*policy.name,
        "uid": &*fact.uid,
        "resourceVersion": fact.version,
    });
    if let Some(namespace) = &policy.namespace {
        regarding["namespace"] = (**namespace).into();
    }
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {
            "name": format!("{name}.{}.{}", fact.uid, fact.generation),
            "namespace": namespace(policy),
        },
        "eventTime": clock::rfc3339(SystemTime::now()),
        "reportingController": "namegate.dev/agent",
        "reportingInstance": instance,
        "type": "Warning",
        "reason": "Refused",
        "action": "Read",
        "regarding": regarding,
        "note": note,
    })
}
