//! Selectors that select none of the given pods.

use std::sync::Arc;

use super::{Code, Finding, Part, Place, Report, Review, by_labels};
use crate::identity::WorkloadLabels;
use crate::misspelt::nearest;
use crate::resource::NAMESPACE_NAME_LABEL;
use crate::rule::{Namespaces, Policy, Workloads};
use crate::selector::{Condition, Requirement, Selector};

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let mut report = Report { policy, findings };
    judge(review, &mut report, &policy.subject, Place::whole(Part::Subject));
    for rule in &policy.rules {
        for (index, workloads) in by_labels(rule).enumerate() {
            let place = Place::of(&rule.label, Part::Workloads(index));
            judge(review, &mut report, workloads, place);
        }
    }
}

fn judge(review: &Review<'_>, report: &mut Report<'_>, workloads: &Workloads, place: Place) {
    let Some(candidates) = candidates(review, &workloads.namespaces) else { return };
    if candidates.is_empty() {
        if let Namespaces::Selected(selector) = &workloads.namespaces {
            report.say(
                Code::SelectsNothing,
                place,
                format!("none of the given namespaces has the labels {selector}"),
                "look at the labels with `kubectl get namespaces --show-labels`",
            );
        }
        return;
    }
    if candidates.iter().any(|pod| workloads.matches(pod)) {
        return;
    }
    let selector = &workloads.pods;
    let message = format!("none of the given pods is selected by {selector}");
    let advice = advice(review, selector, &candidates, &workloads.namespaces);
    report.say(Code::SelectsNothing, place, message, &advice);
}

/// The given pods of the namespaces that are meant; `None` where too little is given to judge.
fn candidates<'r>(
    review: &'r Review<'_>,
    namespaces: &Namespaces,
) -> Option<Vec<&'r Arc<WorkloadLabels>>> {
    match namespaces {
        Namespaces::Named(name) => review.workloads.get(name).map(|pods| pods.iter().collect()),
        Namespaces::Selected(selector) => {
            let meant: Vec<&Arc<str>> = review
                .namespaces
                .iter()
                .filter(|(_, labels)| selector.matches(labels))
                .map(|(name, _)| name)
                .collect();
            if meant.is_empty() {
                return (review.has_namespaces && !asks_by_name(selector)).then(Vec::new);
            }
            let pods: Vec<_> =
                meant.iter().filter_map(|name| review.workloads.get(*name)).flatten().collect();
            (!pods.is_empty()).then_some(pods)
        }
    }
}

/// A namespace that is asked for by its name may well be there and just not be given.
fn asks_by_name(selector: &Selector) -> bool {
    selector.requirements().any(|one| *one.key == *NAMESPACE_NAME_LABEL)
}

fn advice(
    review: &Review<'_>,
    selector: &Selector,
    candidates: &[&Arc<WorkloadLabels>],
    namespaces: &Namespaces,
) -> String {
    for Requirement { key, condition } in selector.requirements() {
        let Condition::In(values) = condition else { continue };
        let known = || candidates.iter().filter_map(|pod| pod.pod_labels.get(key));
        if known().next().is_none() {
            let keys = candidates.iter().flat_map(|pod| pod.pod_labels.keys());
            if let Some(key) = nearest(key, keys.map(|key| &**key)) {
                return format!("did you mean the label `{key}`?");
            }
        } else if !known().any(|value| values.contains(value)) {
            let near = values.iter().find_map(|value| nearest(value, known().map(|one| &**one)));
            if let Some(value) = near {
                return format!("did you mean {key}={value}?");
            }
        }
    }
    let elsewhere = review
        .workloads
        .iter()
        .find(|(_, pods)| pods.iter().any(|pod| selector.matches(&pod.pod_labels)));
    match (namespaces, elsewhere) {
        (Namespaces::Named(_), Some((name, _))) => format!(
            "pods of namespace {name} have these labels; a podSelector alone means the policy's own \
             namespace"
        ),
        _ => "look at the labels with `kubectl get pods --show-labels`".to_owned(),
    }
}
