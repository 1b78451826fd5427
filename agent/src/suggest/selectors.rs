//! Which labels tell a workload's pods from all others.

use std::collections::BTreeMap;

use namegate_policy::api::LabelSelector;
use namegate_policy::selector::Labels;

use super::observed::{Workload, WorkloadRef};

/// Labels that differ between the pods of one workload, or from one release of it to the next.
const PASSING: [&str; 19] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "chart",
    "heritage",
    "version",
    "date",
    "commit",
    "build",
];

/// Labels that say what a pod is; those of them that it has are enough where they tell it apart.
const TELLING: [&str; 9] = [
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app",
    "k8s-app",
    "name",
    "component",
    "role",
    "tier",
];

/// How the pods of a workload are selected.
#[derive(Debug, PartialEq)]
pub(super) enum Selection {
    /// By these labels, which these other workloads have too.
    Labels { labels: LabelSelector, also: Vec<WorkloadRef> },
    /// By none: there is no label that lasts.
    Nothing,
}

/// Chooses the labels for `of` among all workloads that were seen: those that say what it is, and every
/// other that lasts where these are not enough.
pub(super) fn choose(all: &BTreeMap<WorkloadRef, Workload>, of: &WorkloadRef) -> Selection {
    let lasting = all.get(of).map(lasting).unwrap_or_default();
    let telling: Labels = lasting
        .iter()
        .filter(|(key, _)| TELLING.contains(&&***key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let others = |labels: &Labels| -> Vec<WorkloadRef> {
        let has = |set: &Labels| labels.iter().all(|(key, value)| set.get(key) == Some(value));
        let same_namespace = all.iter().filter(|(other, _)| other.namespace == of.namespace);
        same_namespace
            .filter(|(other, workload)| {
                *other != of && workload.label_sets.iter().any(|set| has(set))
            })
            .map(|(other, _)| other.clone())
            .collect()
    };
    let (labels, also) = if telling.is_empty() || !others(&telling).is_empty() {
        let also = others(&lasting);
        (lasting, also)
    } else {
        (telling, Vec::new())
    };
    if labels.is_empty() {
        return Selection::Nothing;
    }
    let match_labels =
        labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Selection::Labels {
        labels: LabelSelector { match_labels, match_expressions: Vec::new() },
        also,
    }
}

/// The labels that all pods of the workload have, and will have.
fn lasting(workload: &Workload) -> Labels {
    let mut sets = workload.label_sets.iter();
    let mut common: Labels = sets.next().map(|set| (**set).clone()).unwrap_or_default();
    common.retain(|key, _| !PASSING.contains(&&**key));
    for set in sets {
        common.retain(|key, value| set.get(key) == Some(value));
    }
    common
}
