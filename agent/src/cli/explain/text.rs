//! The answer for people.

use std::fmt::Write as _;

use super::answer::{Answer, DnsAnswer, EndAnswer, PolicyAnswer, Target};

/// Policies that do not select an end are listed up to this many.
const UNSELECTING_MAX: usize = 12;

/// The whole answer, several lines.
pub(super) fn render(question: &str, answer: &Answer) -> String {
    let mut text = String::new();
    let verdict = answer.verdict.unwrap_or("cannot be told yet");
    line(&mut text, 0, &format!("{question}: {verdict}"));
    if let Some(service) = &answer.service {
        line(&mut text, 1, &format!("service {service} is judged by its backends, each by itself"));
    }
    if let Some(dns) = &answer.dns {
        lookup(&mut text, dns, answer);
    }
    let mut before: Option<&Target> = None;
    for target in &answer.targets {
        one(&mut text, target, before);
        before = Some(target);
    }
    text
}

fn lookup(text: &mut String, dns: &DnsAnswer, answer: &Answer) {
    let name = &dns.name;
    let by = |policy: &Option<PolicyAnswer>| {
        policy.as_ref().map(|policy| format!(", by {policy}")).unwrap_or_default()
    };
    let words = match dns.verdict {
        "ungoverned" => {
            "no policy is about this pod's lookups: they are ordinary traffic".to_owned()
        }
        "not-asked" => "the source is no pod, and asks nobody".to_owned(),
        "search-miss" => "NXDOMAIN: a name below a search suffix that no rule allows".to_owned(),
        "refused" => {
            format!("no rule allows the name; answered {}", dns.rcode.unwrap_or("REFUSED"))
        }
        "audit" => format!("resolves, and would be refused{}", by(&dns.policy)),
        _ => format!("resolves{}", by(&dns.policy)),
    };
    line(text, 1, &format!("lookup of {name}: {words}"));
    for filter in &dns.policies {
        line(text, 2, &format!("filtered by {filter}"));
    }
    for pattern in &dns.patterns {
        line(text, 2, &format!("{} means it: {}", pattern.pattern, pattern.policy));
    }
    let is_told = answer.dns.as_ref().is_some_and(|dns| dns.verdict == "resolves");
    if dns.patterns.is_empty() && is_told {
        line(text, 2, "no pattern opens its addresses: other rules have to");
    }
    for answer in &dns.answers {
        let words = match answer.not_opened {
            Some(why) => {
                format!("not opened ({why}: only cidr, selector, service or entity peers are)")
            }
            None if answer.opened => "opened".to_owned(),
            None => "not opened (no pattern means the name)".to_owned(),
        };
        line(text, 2, &format!("{}: {words}", answer.address));
    }
    if let Some(needed) = &dns.needed {
        line(text, 1, needed);
    }
}

fn one(text: &mut String, target: &Target, before: Option<&Target>) {
    let port = target.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let Target { source, destination, verdict, .. } = target;
    let is_same = before.is_some_and(|before| {
        is_alike(&before.egress, &target.egress) && is_alike(&before.ingress, &target.ingress)
    });
    let again = if is_same { ", by the same rules" } else { "" };
    line(text, 1, &format!("{source} to {destination}{port}: {verdict}{again}"));
    if !is_same {
        end(text, "egress", &target.egress);
        end(text, "ingress", &target.ingress);
    }
}

/// Whether two ends came to their verdicts by the same steps, as those of two address families do
/// for the most part.
fn is_alike(one: &EndAnswer, other: &EndAnswer) -> bool {
    let steps = |end: &EndAnswer| -> Vec<&'static str> {
        end.considered.iter().map(|step| step.outcome).collect()
    };
    one.reason != "not-a-pod"
        && (one.verdict, one.reason, &one.endpoint)
            == (other.verdict, other.reason, &other.endpoint)
        && (&one.policy, &one.policies) == (&other.policy, &other.policies)
        && steps(one) == steps(other)
}

fn end(text: &mut String, direction: &str, end: &EndAnswer) {
    let EndAnswer { verdict, endpoint, policy, policies, .. } = end;
    let why = match (end.reason, policy) {
        ("rule", Some(policy)) => format!(" by {policy}"),
        ("isolation", _) => {
            let names: Vec<String> = policies.iter().map(PolicyAnswer::to_string).collect();
            format!("; no rule allows it, and it is isolated by {}", names.join(", "))
        }
        ("open", _) => ": nothing isolates it".to_owned(),
        ("lookup", _) => ": a lookup, which the node's proxy answers".to_owned(),
        ("itself", _) => ": a pod always reaches itself".to_owned(),
        ("own-node", _) => ": a node always reaches its own pods".to_owned(),
        ("not-a-pod", _) => {
            line(text, 2, &format!("{direction} of {endpoint}: not judged, no pod is there"));
            return;
        }
        (other, _) => format!(": {other}"),
    };
    line(text, 2, &format!("{direction} of {endpoint}: {verdict}{why}"));
    for (number, step) in (1..).zip(&end.considered) {
        if step.outcome == "not-reached" {
            let last = end.considered.len();
            let which = match last > number {
                true => format!("{number}. to {last}."),
                false => format!("{number}. {} {}", step.action, step.policy.short()),
            };
            line(text, 3, &format!("  {which}: {}", step.because.join("; ")));
            break;
        }
        let because = match step.because.as_slice() {
            [] => String::new(),
            words => format!(": {}", words.join("; ")),
        };
        let sign = match step.outcome {
            "decided" | "audited" => '>',
            _ => ' ',
        };
        let (action, name, outcome) =
            (step.action, step.policy.short(), step.outcome.replace('-', " "));
        line(text, 3, &format!("{sign} {number}. {action} {name}: {outcome}{because}"));
    }
    if !end.not_selecting.is_empty() {
        line(text, 3, &format!("policies that do not select {endpoint}:"));
        for unselecting in end.not_selecting.iter().take(UNSELECTING_MAX) {
            line(text, 4, &format!("{}: {}", unselecting.policy.short(), unselecting.because));
        }
        let more = end.not_selecting.len().saturating_sub(UNSELECTING_MAX);
        if more > 0 {
            line(text, 4, &format!("and {more} more; -o json lists all"));
        }
    }
}

fn line(text: &mut String, depth: usize, words: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:width$}{words}", "", width = depth * 2);
}
