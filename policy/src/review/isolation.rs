//! Which directions are closed, and what undoes it.

use super::{Code, Finding, Part, Place, Report, Review, by_labels, is_cilium};
use crate::rule::{
    Action, Direction, Mode, Namespaces, Peers, Policy, PolicyKind, Ports, Rule, Tier, Workloads,
};

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let mut report = Report { policy, findings };
    one_direction(review, &mut report);
    for rule in &policy.rules {
        nothing(&mut report, rule);
        everything(&mut report, rule);
        everywhere(&mut report, rule);
    }
}

/// NP-1. An EgressPolicy is about egress alone by its nature.
fn one_direction(review: &Review<'_>, report: &mut Report<'_>) {
    let policy = report.policy;
    let is_ours =
        matches!(policy.reference.kind, PolicyKind::EgressPolicy | PolicyKind::ClusterEgressPolicy);
    let (closed, open) = match (policy.isolates.egress, policy.isolates.ingress) {
        (true, false) => ("egress", Direction::Ingress),
        (false, true) => ("ingress", Direction::Egress),
        (true, true) | (false, false) => return,
    };
    let closes = |other: &&Policy| {
        other.mode == Mode::Enforce
            && other.isolates.covers(open)
            && review.covers_workloads(&other.subject, &policy.subject)
    };
    let other = if open == Direction::Egress { "egress" } else { "ingress" };
    if is_ours || review.beside(policy).is_none_or(|beside| beside.iter().any(closes)) {
        return;
    }
    report.say(
        Code::OneDirection,
        Place::whole(Part::Subject),
        format!("only {closed} is closed for these pods; every flow of {other} stays allowed"),
        &format!("if that is not meant, add a policy for the other direction ({other})"),
    );
}

/// CL-3. In the other dialects an empty list is refused, or means everything.
fn nothing(report: &mut Report<'_>, rule: &Rule) {
    let is_empty = rule.peers == Peers::Of(Vec::new()) || rule.ports == Ports::Of(Vec::new());
    if is_cilium(report.policy) && is_empty {
        report.say(
            Code::RuleMatchesNothing,
            Place::of(&rule.label, Part::Whole),
            "a list of this rule is empty, so the rule matches nothing".to_owned(),
            "fill the list, or leave the field out if it is not to restrict",
        );
    }
}

fn everything(report: &mut Report<'_>, rule: &Rule) {
    let is_namespaced = matches!(report.policy.tier, Tier::Namespaced);
    let is_all = rule.peers == Peers::Any && rule.ports == Ports::Any;
    if is_namespaced && is_all && rule.action == Action::Allow {
        let direction = match rule.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        report.say(
            Code::AllowsEverything,
            Place::of(&rule.label, Part::Whole),
            format!("the rule allows all {direction}: other policies cannot narrow it"),
            "allow rules add up; remove the rule if another one is meant to count",
        );
    }
}

/// NP-9.
fn everywhere(report: &mut Report<'_>, rule: &Rule) {
    let is_everywhere = |workloads: &Workloads| {
        matches!(&workloads.namespaces, Namespaces::Selected(all) if all.is_everything())
            && workloads.pods.is_everything()
            && workloads.service_accounts.is_empty()
    };
    let is_namespaced = report.policy.reference.namespace.is_some();
    for (index, _) in by_labels(rule).enumerate().filter(|(_, one)| is_everywhere(one)) {
        if is_namespaced && rule.action == Action::Allow {
            report.say(
                Code::PeerEverywhere,
                Place::of(&rule.label, Part::Workloads(index)),
                "the peer is every pod of every namespace, and nothing outside the cluster"
                    .to_owned(),
                "for the pods of this namespace alone write `podSelector: {}` without a \
                 namespaceSelector",
            );
        }
    }
}
