//! Domain patterns: what they match that their author may not have meant.

use super::{Code, Finding, Part, Place, Report, Review, by_name, is_cilium};
use crate::name::DnsName;
use crate::pattern::DomainPattern;
use crate::rule::{Action, FqdnPeer, Policy, Rule};

pub(super) fn review(review: &Review<'_>, policy: &Policy, findings: &mut Vec<Finding>) {
    let mut report = Report { policy, findings };
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
        for fqdn in by_name(rule) {
            width(&mut report, rule, fqdn);
            depth(review, &mut report, rule, &fqdn.pattern);
            cluster(review, &mut report, rule, &fqdn.pattern);
            exceptions(&mut report, rule, fqdn);
        }
    }
}

fn place(rule: &Rule, pattern: &DomainPattern) -> Place {
    Place::of(&rule.label, Part::Pattern(pattern.clone()))
}

fn width(report: &mut Report<'_>, rule: &Rule, fqdn: &FqdnPeer) {
    let pattern = &fqdn.pattern;
    let text = pattern.to_string();
    if pattern.is_any() {
        report.say(
            Code::PatternAny,
            place(rule, pattern),
            "every name opens the addresses that it resolves to: whoever controls any domain \
             controls what is reached"
                .to_owned(),
            "list the names that are needed; `dns: {filter: Observe}` lets every name resolve \
             without opening anything",
        );
        return;
    }
    let mut labels = text.split('.');
    let first = labels.next().unwrap_or_default();
    let rest: Vec<&str> = labels.collect();
    if first.starts_with('*') && rest.iter().filter(|label| !label.contains('*')).count() == 1 {
        let glued = first.trim_start_matches('*');
        if glued.is_empty() {
            report.say(
                Code::PatternTopLevel,
                place(rule, pattern),
                format!("`{text}` matches every domain below .{}", rest.join(".")),
                "write the domain that is meant, such as *.example.com",
            );
        } else {
            report.say(
                Code::WildcardGlued,
                place(rule, pattern),
                format!(
                    "`{text}` also matches names that anybody can register, such as evil-{glued}.{}",
                    rest.join(".")
                ),
                "write the domain itself, and `*.` before it for what is below",
            );
        }
    }
}

/// EP-4 and the table of the Cilium dialect.
fn depth(review: &Review<'_>, report: &mut Report<'_>, rule: &Rule, pattern: &DomainPattern) {
    let text = pattern.to_string();
    let Some(rest) = text.strip_prefix("*.").filter(|rest| !rest.contains('*')) else { return };
    if is_cilium(report.policy) {
        report.say(
            Code::WildcardDepth,
            place(rule, pattern),
            format!(
                "`{text}` is exactly one label before {rest} here; an EgressPolicy reads the same \
                 text as one or more"
            ),
            &format!("write `**.{rest}` if deeper names are meant too"),
        );
    } else if review.policies.iter().any(|other| is_cilium(other)) {
        report.say(
            Code::WildcardDepth,
            place(rule, pattern),
            format!(
                "`{text}` is one or more labels before {rest} here; a CiliumNetworkPolicy reads the \
                 same text as exactly one"
            ),
            "nothing is wrong; mind it when rules are copied from one kind to the other",
        );
    }
}

fn cluster(review: &Review<'_>, report: &mut Report<'_>, rule: &Rule, pattern: &DomainPattern) {
    let text = pattern.to_string();
    let written = text.trim_start_matches('*').trim_start_matches('.');
    let Ok(name) = DnsName::parse(written) else { return };
    let is_short = written == "svc" || written.ends_with(".svc");
    if name.is_at_or_below(&review.domain) || is_short {
        report.say(
            Code::FqdnClusterName,
            place(rule, pattern),
            format!("`{text}` is a name of the cluster: it resolves anyway and opens nothing"),
            "reach pods and Services by podSelector or service",
        );
    } else if !written.contains('.') && !text.contains('*') {
        report.say(
            Code::FqdnSingleLabel,
            place(rule, pattern),
            format!("`{text}` has one label: pods ask for it with a search suffix behind it"),
            "write the whole name; for a Service of the cluster write service instead of fqdn",
        );
    }
}

/// EP-5.
fn exceptions(report: &mut Report<'_>, rule: &Rule, fqdn: &FqdnPeer) {
    for except in &fqdn.except {
        let place = Place::of(&rule.label, Part::PatternExcept(except.clone()));
        if except.covers(&fqdn.pattern) {
            report.say(
                Code::ExceptEverything,
                place,
                format!("`{except}` leaves nothing of `{}`", fqdn.pattern),
                "remove the peer, or narrow the exception",
            );
        } else if !except.overlaps(&fqdn.pattern) {
            report.say(
                Code::ExceptIdle,
                place,
                format!("no name that `{}` matches is matched by `{except}`", fqdn.pattern),
                "an exception narrows its own fqdn only; to close a name, leave it out of every rule",
            );
        }
    }
}
