//! What would let a flow through, in words.

use super::why::{ConsideredReport, EndReport, LookupReport, TargetReport};

/// Advice at most: what is said of one address holds for its siblings.
const ADVICE_MAX: usize = 4;

/// What to do about `verdict`. `name` is what was asked about, where it is a name.
pub(super) fn advice(
    name: Option<String>,
    verdict: &str,
    lookup: Option<&LookupReport>,
    targets: &[TargetReport],
) -> Vec<String> {
    let mut advice = Vec::new();
    match (verdict, &name, lookup) {
        ("refused", Some(name), _) => advice.push(format!(
            "let a rule of an EgressPolicy that selects the pod name it: `to: [{{fqdn: {name}}}]`"
        )),
        ("unlearned", Some(name), Some(lookup)) if lookup.opens.is_empty() => advice.push(format!(
            "the name resolves and opens nothing: add a rule with `to: [{{fqdn: {name}}}]`"
        )),
        ("unlearned", _, _) => advice.push(
            "the pod has to look the name up: its addresses open when the answer comes".to_owned(),
        ),
        _ => {}
    }
    for target in targets {
        let dropped = [Some(&target.egress), target.ingress.as_ref()];
        for (end, is_egress) in dropped.into_iter().zip([true, false]) {
            if let Some(end) = end.filter(|end| end.verdict == "dropped") {
                advice.push(of_end(end, is_egress, name.as_deref(), target));
            }
        }
        if target.flows.iter().any(|flow| flow.state == "cut") {
            advice.push(format!(
                "a connection to {} was cut by a change of policy: it has to be opened again",
                target.address
            ));
        }
    }
    advice.dedup();
    advice.truncate(ADVICE_MAX);
    advice
}

fn of_end(end: &EndReport, is_egress: bool, name: Option<&str>, target: &TargetReport) -> String {
    let denies = |rule: &&ConsideredReport| {
        rule.action == "drop" && end.rules.contains(&rule.rule) && end.rules.len() == 1
    };
    let is_isolation = |rule: &&ConsideredReport| rule.means_peer && rule.means_port;
    if let Some(rule) = end.considered.iter().filter(denies).find(is_isolation)
        && end.considered.iter().any(|other| other.action == "forward" && is_isolation(&other))
    {
        return format!(
            "{} denies it, and deny wins over every allow: narrow that rule",
            rule.rule
        );
    }
    let wrong_port = end
        .considered
        .iter()
        .find(|rule| rule.action == "forward" && rule.means_peer && !rule.means_port);
    if let Some(rule) = wrong_port {
        return format!("{} means the other end, and not port {}: add it", rule.rule, target.port);
    }
    let ended = target.learned.iter().find(|learned| learned.open_for_s.is_none());
    match (name, ended) {
        _ if !is_egress => format!(
            "the other pod's policies refuse it ({}): allow the pod in their ingress",
            end.rules.join(", ")
        ),
        (_, Some(ended)) => format!(
            "the answer for {} is past its time: the pod has to look it up again before it connects",
            ended.name
        ),
        (Some(name), None) => format!("no rule opens {name} on port {}", target.port),
        (None, None) if target.who.is_some() => format!(
            "allow {} with a selector, `service` or `entity` in a rule",
            target.who.as_deref().unwrap_or_default()
        ),
        (None, None) => format!(
            "no lookup of the pod led to {0}: connect by a name that a rule allows, or add `cidr: {0}/{1}`",
            target.address,
            if target.address.is_ipv4() { 32 } else { 128 }
        ),
    }
}
