//! What would let a flow through, in words.

use super::names::NO_RULE;
use super::why::{ConsideredReport, EndReport, LearnedReport, LookupReport, TargetReport};

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
                advice.push(of_end(end, is_egress, (name.as_deref(), lookup), target));
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

fn of_end(
    end: &EndReport,
    is_egress: bool,
    (name, lookup): (Option<&str>, Option<&LookupReport>),
    target: &TargetReport,
) -> String {
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
    let opens = lookup.filter(|_| is_egress).map_or(&[][..], |lookup| &lookup.opens);
    if let Some(rule) = wrong_port(end, opens) {
        return format!("{} means the other end, and not port {}: add it", rule.rule, target.port);
    }
    let is_over =
        |learned: &&LearnedReport| learned.open_for_s.is_none() && learned.not_opened.is_none();
    let ended = target.learned.iter().find(is_over);
    if let Some((name, why)) = withheld(target).filter(|_| is_egress) {
        return format!(
            "no name opens {} ({why}), and so {name} does not: allow it with a selector, `service`, `entity` or `cidr`",
            target.address
        );
    }
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

/// A rule that is about the other end and lacks the port. One that opens the name that was asked for is
/// about its addresses again once it is looked up.
fn wrong_port<'a>(end: &'a EndReport, opens: &[String]) -> Option<&'a ConsideredReport> {
    let forwards = || end.considered.iter().filter(|rule| rule.action == "forward");
    let opens = |rule: &&ConsideredReport| opens.contains(&rule.rule);
    let mut lacking = forwards().filter(|rule| !rule.means_port);
    let about_it = lacking.clone().find(|rule| rule.means_peer);
    about_it.or_else(|| {
        let would_do = forwards().filter(opens).any(|rule| rule.means_port);
        lacking.find(opens).filter(|_| !would_do)
    })
}

/// A name that led to the address and that may not open it, and why.
fn withheld(target: &TargetReport) -> Option<(&str, &str)> {
    target.learned.iter().find_map(|learned| {
        let why = learned.not_opened.as_deref().filter(|why| *why != NO_RULE)?;
        Some((learned.name.as_str(), why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_target(learned: LearnedReport, rules: &[(&str, bool, bool)]) -> TargetReport {
        let considered = rules.iter().map(|(rule, means_peer, means_port)| ConsideredReport {
            rule: (*rule).to_owned(),
            action: "forward".to_owned(),
            means_peer: *means_peer,
            means_port: *means_port,
        });
        let egress = EndReport {
            verdict: "dropped".to_owned(),
            reason: "denied".to_owned(),
            rules: Vec::new(),
            considered: considered.collect(),
        };
        TargetReport {
            address: [203, 0, 113, 10].into(),
            port: 80,
            service: None,
            who: None,
            learned: vec![learned],
            egress,
            ingress: None,
            flows: Vec::new(),
        }
    }

    fn mk_learned(open_for_s: Option<u64>, not_opened: Option<&str>) -> LearnedReport {
        let not_opened = not_opened.map(str::to_owned);
        LearnedReport { name: "api.example.com".to_owned(), open_for_s, not_opened }
    }

    fn said(target: TargetReport) -> String {
        let lookup = LookupReport {
            verdict: "allowed".to_owned(),
            rules: Vec::new(),
            opens: vec!["apis payments".to_owned()],
        };
        let name = Some("api.example.com".to_owned());
        advice(name, "dropped", Some(&lookup), &[target]).join("; ")
    }

    #[test]
    fn what_would_not_help_is_not_advised() {
        let payments = |port| [("apis payments", false, port), ("apis other", false, true)];
        let over = mk_learned(None, None);
        let told = said(mk_target(over.clone(), &payments(false)));
        assert_eq!(told, "apis payments means the other end, and not port 80: add it");
        let told = said(mk_target(over, &payments(true)));
        assert!(told.contains("look it up again"), "{told}");
        let told = said(mk_target(mk_learned(Some(9), Some("link-local")), &payments(true)));
        assert!(told.contains("no name opens 203.0.113.10 (link-local)"), "{told}");
        let told = said(mk_target(mk_learned(Some(9), Some(NO_RULE)), &[]));
        assert_eq!(told, "no rule opens api.example.com on port 80");
    }
}
