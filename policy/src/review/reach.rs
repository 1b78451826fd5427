//! Rules that never decide, because another rule always decides before.

use super::{Code, Finding, Part, Place, Report, Review, cover};
use crate::rule::{Action, Mode, Peer, Peers, Policy, Rule, Tier};

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let Some(beside) = review.beside(policy) else { return };
    let mut report = Report { policy, findings };
    let stronger: Vec<&Policy> = beside
        .into_iter()
        .filter(|other| {
            other.mode == Mode::Enforce
                && other.rules.iter().any(|rule| is_strong(other, rule))
                && review.covers_workloads(&other.subject, &policy.subject)
        })
        .collect();
    for (index, rule) in policy.rules.iter().enumerate() {
        let mut before = Vec::new();
        for other in &stronger {
            for (at, candidate) in other.rules.iter().enumerate() {
                if is_strong(other, candidate)
                    && candidate.direction == rule.direction
                    && candidate.action != rule.action
                    && precedes((other, at), (policy, index))
                    && cover::covers_ports(&candidate.ports, &rule.ports)
                {
                    before.push((*other, candidate));
                }
            }
        }
        // A Pass can lead around what comes after it.
        if !before.iter().any(|(_, rule)| rule.action == Action::Pass) {
            shadowed(review, &mut report, rule, &before);
        }
    }
}

/// Whether a rule can decide before others: in a tier, or as a denial.
fn is_strong(policy: &Policy, rule: &Rule) -> bool {
    matches!(policy.tier, Tier::Admin { .. } | Tier::Baseline { .. }) || rule.action == Action::Deny
}

/// Whether the first rule is always asked before the second.
fn precedes((one, at): (&Policy, usize), (two, index): (&Policy, usize)) -> bool {
    match (one.tier, two.tier) {
        (Tier::Namespaced, Tier::Namespaced) => true,
        (first, second) if first != second => first < second,
        // Rules of one object, in its order; of two objects nothing is promised.
        _ if one.reference == two.reference => at < index,
        _ => false,
    }
}

fn shadowed(
    review: &Review<'_>,
    report: &mut Report<'_>,
    rule: &Rule,
    before: &[(&Policy, &Rule)],
) {
    let cover_of = |peer: &Peer| {
        before.iter().find(|(_, candidate)| review.covers_peer(&candidate.peers, peer))
    };
    let told = |(policy, rule): &(&Policy, &Rule)| format!("{} {}", policy.reference, rule.label);
    let advice = "remove the one that is not meant, or narrow the stronger one";
    let peers = match &rule.peers {
        Peers::Any => {
            if let Some(by) = before.iter().find(|(_, one)| one.peers == Peers::Any) {
                let place = Place::of(&rule.label, Part::Whole);
                let message = format!("never decides: {} always decides before", told(by));
                report.say(Code::RuleShadowed, place, message, advice);
            }
            return;
        }
        Peers::Of(peers) => peers,
    };
    let covers: Vec<_> = peers.iter().map(cover_of).collect();
    if let Some(Some(by)) = covers.first().filter(|_| covers.iter().all(Option::is_some)) {
        let place = Place::of(&rule.label, Part::Whole);
        let message = format!("never decides: {} always decides before", told(by));
        report.say(Code::RuleShadowed, place, message, advice);
        return;
    }
    let mut workloads = 0;
    for (peer, by) in peers.iter().zip(covers) {
        let part = match peer {
            Peer::Workloads(_) => {
                workloads += 1;
                Part::Workloads(workloads - 1)
            }
            Peer::Cidr(cidr) => Part::Net(cidr.net),
            Peer::Fqdn(fqdn) => Part::Pattern(fqdn.pattern.clone()),
            Peer::Entity(_)
            | Peer::Service(_)
            | Peer::Services(_)
            | Peer::CidrGroups(_)
            | Peer::Nodes(_) => Part::Whole,
        };
        if let Some(by) = by {
            let message = format!("this peer never decides: {} always decides before", told(by));
            report.say(Code::RuleShadowed, Place::of(&rule.label, part), message, advice);
        }
    }
}
